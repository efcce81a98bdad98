"""What the tests of publishing share: folders to publish, a Hub to publish to, and how the command is run."""

from __future__ import annotations

import shutil
from pathlib import Path

import hf_perturb
from hf_perturb.cli import main
from hf_perturb.variants.create import create_variant
from support.downloading import count_naps
from support.hub_client import connected
from support.models import small_model

REPO = "lab/control"


def built_folders(tmp_path_factory) -> Path:
    """Return a folder of folders to publish, which nobody may change; a fixture of scope `session`."""
    out = tmp_path_factory.mktemp("to_publish")
    create_variant("demo", out / "carp", "reinit")
    create_variant("demo", out / "other", {"method": "reinit", "seed": 0})
    create_variant("demo", out / "recipe", "reinit", recipe=True)
    hf_perturb.convert_checkpoint("demo", out / "base")
    for network in ("esm1", "esm1b", "esm2"):
        small_model(network).save_pretrained(out / f"{network}-raw")
        hf_perturb.convert_checkpoint(out / f"{network}-raw", out / f"{network}-base")
        create_variant(out / f"{network}-base", out / network, "resample")
    return out


def connect(monkeypatch, hub, tmp_path) -> list[float]:
    """Log `lab` in, from a machine of its own; return the pauses that were made, none of which takes any time."""
    connected(monkeypatch, hub, tmp_path / "home", hub.WRITE)
    return count_naps(monkeypatch)


class Pusher:
    """Runs `hf-perturb push`, and keeps what it said."""

    def __init__(self, capsys) -> None:
        self.capsys = capsys
        self.everything = ""

    def __call__(self, folder: Path, *words: str, repo_id: str = REPO) -> str:
        """Push what must be accepted; return what was printed."""
        code, out, err = self.run(folder, *words, repo_id=repo_id)
        assert code == 0, err
        return out

    def refused(self, folder: Path, *words: str, repo_id: str = REPO) -> str:
        """Push what must be refused; return the message."""
        code, out, err = self.run(folder, *words, repo_id=repo_id)
        assert code == 1, out
        assert not out
        assert err.startswith("hf-perturb push: "), err
        assert "Traceback" not in err
        return err

    def run(self, folder: Path, *words: str, repo_id: str = REPO) -> tuple[int, str, str]:
        code = main(["push", str(folder), repo_id, *words])
        out, err = self.capsys.readouterr()
        self.everything += out + err
        return code, out, err


def copied(source: Path, folder: Path) -> Path:
    """Return a copy of a folder that a test may spoil."""
    return Path(shutil.copytree(source, folder / f"{source.name}-copy"))
