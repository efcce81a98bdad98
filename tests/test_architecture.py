"""The layout: imports go one way, and what travels to the Hub imports nothing else of ours."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hf_perturb"
# from the bottom up; a module may import from its own layer and from those before it
LAYERS = (
    *(("errors",), ("demo",), ("perturbation",), ("networks",), ("storage",), ("loading",), ("checkpoints",)),
    *(("cards", "variants"), ("compare", "hub"), ("embedding",), ("cli", "__main__")),
)
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")


def imported_modules(path: Path) -> list[str]:
    """Return the full name of every module of ours that a file imports, wherever in the file."""
    names = []
    package = ["hf_perturb", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            prefix = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (prefix, node.module)))
            names += [f"{module}.{alias.name}" for alias in node.names]
    return [name for name in names if name.split(".")[0] == "hf_perturb"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imported_modules(path):
        # the top module re-exports names from below; only the command line may use it
        layer = name.partition(".")[2].partition(".")[0]
        if layer not in RANKS:
            assert own in ("cli", "__main__"), f"{path.name} imports {name}"
        else:
            assert RANKS[layer] <= RANKS[own], f"{path.name} imports {name}"


def test_every_module_has_a_layer():
    assert {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in SOURCES} == {*RANKS}


@pytest.mark.parametrize("path", sorted((PACKAGE / "networks").glob("*.py")), ids=lambda path: path.name)
def test_models_reach_the_package_only_through_the_record(path):
    outside = [name for name in imported_modules(path) if not name.startswith("hf_perturb.networks.")]
    assert bool(outside) == (path.name == "record.py"), outside


def test_perturbation_knows_torch_alone():
    for path in (PACKAGE / "perturbation").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "transformers" not in text.replace("Transformers", ""), path
        assert "huggingface" not in text, path


@pytest.mark.parametrize("path", [p for p in SOURCES if "networks" in p.parts], ids=lambda path: path.name)
def test_model_files_stay_flat(path):
    assert path.parent == PACKAGE / "networks"


def test_files_stay_short():
    for path in SOURCES:
        limit = 500 if path.name.startswith("modeling_") else 400
        assert len(path.read_text(encoding="utf-8").splitlines()) <= limit, path


def test_importing_registers_and_brings_no_original():
    code = (
        "import sys, hf_perturb; from transformers import AutoConfig;"
        "assert AutoConfig.for_model('carp').model_type == 'carp';"
        "assert AutoConfig.for_model('fair_esm').model_type == 'fair_esm';"
        "assert not {'esm', 'sequence_models', 'pandas'} & set(sys.modules);"
        "print(sorted(hf_perturb.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("Perturbation", "perturb", "wrap", "FairEsmForMaskedLM", "CarpForMaskedLM", "HfPerturbError"):
        assert repr(name) in done.stdout
