"""Every snippet of the README and of the demo base's card runs, in order, and the README's tables are current."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.hub_client import connected, quiet_uploads
from support.hub_repos import User
from support.hub_server import serve
from support.models import small_model

import hf_perturb
from hf_perturb.cli import main

hub = pytest.fixture(serve)

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {"README.md": README, "card": (hf_perturb.demo.folder() / "README.md").read_text(encoding="utf-8")}


def snippets(page: str) -> list[tuple[str, str]]:
    """Return (language, code) of every fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", PAGES[page], flags=re.DOTALL | re.MULTILINE)


def original_module():
    """Return what the README's first snippet calls `original`: a small, untrained ESM-1b."""
    from esm.data import Alphabet
    from esm.model.esm1 import ProteinBertModel

    sizes = {"arch": "roberta_large", "layers": 2, "embed_dim": 32, "ffn_embed_dim": 64, "attention_heads": 4}
    options = {"max_positions": 1024, "token_dropout": True, "emb_layer_norm_before": True}
    return ProteinBertModel(argparse.Namespace(**sizes, **options), Alphabet.from_architecture("roberta_large"))


def small_checkpoints(folder: Path) -> None:
    """Put small networks where the README's commands look for published ones."""
    names = {"ESM-1b": "esm1b_t33_650M_UR50S.pt", "ESM-2": "hub/checkpoints/esm2_t6_8M_UR50D.pt"}
    (folder / "hub" / "checkpoints").mkdir(parents=True)
    for network, name in (("esm1b", names["ESM-1b"]), ("esm2", names["ESM-2"])):
        small_model(network, intermediate_size=128).save_pretrained(folder / network)
        hf_perturb.export_checkpoint(folder / network, folder / name, "fair-esm")
    hf_perturb.export_checkpoint(folder / "esm2", folder / "facebook" / "esm2_t6_8M_UR50D", "transformers")
    records = [f">{i}\n{sequence}\n" for i, sequence in enumerate(hf_perturb.demo.held_out_sequences()[:3])]
    (folder / "proteins.fasta").write_text("".join(records))


def run_shell(code: str) -> None:
    for line in code.splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] == "hf-perturb":
            assert main(words[1:]) == 0, line
        elif words:
            assert (ROOT / words[0]).is_file(), line


@quiet_uploads
@pytest.mark.parametrize("page", PAGES)
def test_every_snippet_runs(page, tmp_path, monkeypatch, capsys, hub):
    connected(monkeypatch, hub, tmp_path / "home", hub.WRITE)
    hub.users[hub.WRITE] = User("me", "write", ("my-lab",))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    small_checkpoints(tmp_path)
    names = {"original": original_module()}
    ran = 0
    for language, code in snippets(page):
        if language == "python":
            exec(compile(code, page, "exec"), names)
        else:
            assert language == "sh", "a snippet is python or sh, so that this test runs it"
            run_shell(code)
        ran += 1
    assert ran >= (7 if page == "README.md" else 1)
    said = capsys.readouterr().out
    for shown in re.findall(r"print\(.*\) +# (.*)", PAGES[page]):
        assert shown.split(":")[0] in said, f"the page shows {shown!r}"


def test_the_tables_are_current():
    done = subprocess.run([sys.executable, ROOT / "scripts" / "render.py", "--check"], check=False)
    assert done.returncode == 0


def test_the_changelog_and_the_version_agree():
    assert f"## {hf_perturb.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
