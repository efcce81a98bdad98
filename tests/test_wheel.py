"""The wheel: built from the tracked files alone, installed beside what it requires, it runs what the README shows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.pages import README, ROOT, shown_outputs
from support.worlds import World


def run(*words: object, cwd: Path, environment: dict[str, str] | None = None) -> None:
    words = list(map(str, words))
    done = subprocess.run(words, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel as a clean clone would: of the files that git tracks, and nothing that lies beside them."""
    words = ["git", "-C", str(ROOT), "ls-files", "-z"]
    listed = subprocess.run(words, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a clone: git does not say which files are tracked")
    folder = tmp_path_factory.mktemp("wheel")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():
            (folder / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "clone" / name)
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=folder / "clone")
    (built,) = folder.glob("*.whl")
    return built


def required(wheel: Path) -> list[str]:
    """Return the distributions that a wheel requires without extras."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = archive.read(name).decode().partition("\n\n")[0].splitlines()
    needed = [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist") and "extra ==" not in line]
    return [re.match(r"[\w.-]+", line).group() for line in needed]


def test_the_wheel_runs_the_readme_s_lines(wheel, tmp_path):
    world = World(tmp_path / "world", *required(wheel))
    # nothing of the tests' own, PYTHONPATH least of all
    environment = {"PATH": os.defpath, "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", world.python]
    # with nothing to ask for packages, this also says whether what the wheel requires is all that it needs
    run(*pip, "install", "--no-index", "--no-compile", wheel, cwd=tmp_path, environment=environment)
    where = world.run("import hf_perturb; print(hf_perturb.__file__)", environment, tmp_path)
    assert Path(where.strip()).is_relative_to(tmp_path / "world")
    ((code, output),) = shown_outputs(README)
    assert world.run(code, environment, tmp_path) == output
    command = [world.python.parent / "hf-perturb", "create", "demo", "control", "--method", "reinit"]
    run(*command, cwd=tmp_path, environment=environment)
    assert (tmp_path / "control" / "README.md").is_file()
