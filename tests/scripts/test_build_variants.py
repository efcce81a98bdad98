"""The script that builds a matrix of variants: whole, again, and over what is damaged."""

import json
import subprocess
import sys
from pathlib import Path

from support.any_folders import stored

import hf_perturb

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_variants.py"
MATRIX = "bases: [demo, {any: ./bert}]\nmethods: [reinit, gaussian]\nseeds: [1-1]\nalso: [embeddings, head]\n"


def build(folder: Path, *options: str) -> tuple[int, dict[str, str]]:
    """Run it in a folder; return its exit code, and what became of each variant."""
    (folder / "matrix.yaml").write_text(MATRIX, encoding="utf-8")
    command = [sys.executable, SCRIPT, "matrix.yaml", "--json", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.stdout, done.stderr
    rows = json.loads(done.stdout)
    return done.returncode, {row["path"]: row["status"] for row in rows}


def test_what_is_missing_is_built_and_what_is_there_is_verified(tmp_path):
    stored("bert", tmp_path / "bert")
    code, built = build(tmp_path)
    assert code == 0
    assert list(built.values()) == ["built"] * 4
    paths = [tmp_path / path for path in built]
    bases = ["demo", "demo", tmp_path / "bert", tmp_path / "bert"]
    assert [hf_perturb.verify_variant(*pair).ok for pair in zip(paths, bases, strict=True)] == [True] * 4
    hf_perturb.create_variant("demo", paths[0], "resample", force=True)
    paths[1].joinpath("model.safetensors").write_bytes(b"")
    code, found = build(tmp_path)
    assert code == 1
    assert found[str(paths[0].relative_to(tmp_path))].startswith("another variant is there")
    assert found[str(paths[1].relative_to(tmp_path))].startswith("damaged")
    code, found = build(tmp_path, "--force")
    assert code == 0
    assert sorted(found.values()) == ["built", "built", "verified", "verified"]
