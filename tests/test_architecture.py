"""The layout: imports go one way and in no circle, files stay readable, and what travels to the Hub is whole."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
import torch
from support.models import small_model
from transformers.dynamic_module_utils import get_relative_import_files

from hf_perturb.hub.files import travelling_code

PACKAGE = Path(__file__).parent.parent / "hf_perturb"
FILES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [path for path in FILES if path.name != "__init__.py" or path.parent != PACKAGE]
_BELOW = ("errors", "demo", "storage", "perturbation")
_ON_FILES = (*_BELOW, "checkpoints", "cards", "variants")
# the rooms that each room may import from, beside itself
MAY_IMPORT = {
    "errors": (),
    "interrupts": (),
    "demo": (),
    "storage": ("errors",),
    "perturbation": ("errors",),
    "checkpoints": _BELOW,
    "cards": (*_BELOW, "checkpoints"),
    "variants": (*_BELOW, "checkpoints", "cards"),
    "compare": _ON_FILES,
    "hub": _ON_FILES,
    "networks": ("errors", "perturbation", "loading"),
    "loading": (*_BELOW, "checkpoints", "networks"),
    "embedding": (*_ON_FILES, "loading", "networks"),
    "zero_shot": (*_ON_FILES, "loading", "networks", "embedding"),
    "studies": (*_ON_FILES, "loading", "networks", "embedding", "zero_shot"),
    "cli": (*_ON_FILES, "compare", "hub", "loading", "embedding", "zero_shot", "studies", "interrupts", "hf_perturb"),
    "__main__": ("cli",),
}
# plain data, which needs nothing: who reads a configuration and who runs the network check the same sizes
_DATA = "hf_perturb.networks.sizes"
# imported by those who ask about any model of Transformers, when they do
_NETWORKS = ("skeleton", "drawing", "constructed", "classes", "conversions")
_OF_TRANSFORMERS = tuple(f"hf_perturb.checkpoints.{name}" for name in _NETWORKS)
LONGEST_FILE, LONGEST_FUNCTION, SHORTEST_MODULE = 420, 40, 60  # lines; docstrings do not count for a function


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(name: str) -> str:
    return name.split(".")[1] if "." in name else name


def imported_modules(path: Path, nodes=None) -> set[str]:
    """Return the name of every module of ours that a file imports; wherever in the file if no nodes are given."""
    own = name_of(path).split(".")
    package = own if path.name == "__init__.py" else own[:-1]
    names = set()
    for node in ast.walk(tree_of(path)) if nodes is None else nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            prefix = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (prefix, node.module)))
            modules = {f"{module}.{alias.name}" for alias in node.names}
            names |= {name if name in NAMES else module for name in modules}
    return {name for name in names if name.split(".")[0] == "hf_perturb"}


NAMES = {name_of(path): path for path in FILES}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    own = room_of(name_of(path))
    for name in imported_modules(path) - {_DATA}:
        assert room_of(name) in (own, *MAY_IMPORT[own]), f"{path.name} imports {name}"


def test_every_module_has_a_room():
    assert {room_of(name_of(path)) for path in SOURCES} == {*MAY_IMPORT}


def test_no_modules_import_each_other_in_a_circle():
    """What is imported inside a function, or for types alone, is imported when all is there."""
    graph = {name: imported_modules(path, tree_of(path).body) for name, path in NAMES.items()}
    left = dict(graph)
    while left:
        free = [name for name, needs in left.items() if not (needs - {name}) & left.keys()]
        assert free, f"in a circle, or behind one: {sorted(left)}"
        for name in free:
            del left[name]


# ---- what works on files


def loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_what_works_on_files_imports_no_network():
    rooms = ("checkpoints", "cards", "variants", "compare", "hub")
    names = [name for name in NAMES if room_of(name) in rooms and name not in _OF_TRANSFORMERS]
    loaded = loaded_by("".join(f"import {name}\n" for name in names))
    assert {name for name in loaded if name.startswith("hf_perturb.networks.")} == {_DATA}
    assert "transformers.modeling_utils" not in loaded


def test_a_checkpoint_is_opened_without_torch_and_transformers():
    code = (
        "from hf_perturb.checkpoints.checkpoint import Checkpoint\n"
        "opened = Checkpoint.open('demo').check()\n"
        "assert opened.digest() == opened.stated_digest\n"
    )
    assert not {"torch", "transformers"} & loaded_by(code)


@pytest.mark.parametrize("options", ["", "--json", "--per tensor", "--plot"])
def test_compare_needs_neither_torch_nor_transformers(tmp_path, options):
    given = ["compare", "demo", "demo", *options.split()]
    if options == "--plot":
        pytest.importorskip("matplotlib")
        given.append(str(tmp_path / "out.png"))
    loaded = loaded_by(f"from hf_perturb.cli import main\nassert main({given}) == 0\n")
    assert {"torch", "transformers", "matplotlib"} & loaded == ({"matplotlib"} if options == "--plot" else set())


# every command that works on files, after the one that made what it works on
COMMANDS = """
create {base} one --method reinit
create {base} many --method reinit --method resample --method gaussian
create {base} recipe --method resample --recipe
create recipe made
verify one
verify one --base {base}
verify recipe
verify many
compare {base} one
list {base}
push one someone/one --dry-run
convert {base} converted
"""
_RUN = """
import os, sys
from hf_perturb.cli.main import main
os.chdir(sys.argv[1])
for line in sys.stdin:
    assert main(line.split()) == 0, line
    heavy = {"torch", "transformers", "esm", "sequence_models", "pandas"} & set(sys.modules)
    assert not heavy, f"{line}: {heavy}"
"""


@pytest.mark.parametrize(
    ("network", "dtype"),
    [
        *(("esm1", "float32"), ("esm1b", "bfloat16"), ("esm2", "float16")),
        *(("carp", "float32"), ("carp", "bfloat16"), ("carp", "float16")),
    ],
)
def test_commands_on_files_import_neither_torch_nor_transformers(network, dtype, tmp_path):
    """What a process has imported once it has for good: one process is enough for all of them."""
    small_model(network).to(getattr(torch, dtype)).save_pretrained(tmp_path / "base")
    lines = COMMANDS.format(base="base").strip()
    command = [sys.executable, "-c", _RUN, str(tmp_path)]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_embed_begins_without_what_is_for_other_networks_alone():
    loaded = loaded_by("import hf_perturb; hf_perturb.embed")
    assert not {"hf_perturb.embedding.any_encoder", "hf_perturb.loading.any_checkpoint"} & loaded


def test_the_command_begins_without_the_client_of_the_hub():
    assert not {"huggingface_hub", "torch", "transformers", "numpy"} & loaded_by("import hf_perturb.cli.main")


# ---- manners


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_as_long_as_their_subject(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef) and node.body:
            first = node.body[1] if ast.get_docstring(node) is not None and len(node.body) > 1 else node.body[0]
            assert node.end_lineno - first.lineno < LONGEST_FUNCTION, f"{node.name} is long"


def test_a_short_module_has_several_importers():
    importers = defaultdict(set)
    for path in FILES:
        for name in imported_modules(path):
            importers[name].add(path)
    # entry points, and what the stubs of a package name
    stubs = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.pyi"))
    for name, path in NAMES.items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines < SHORTEST_MODULE and path.name not in ("__init__.py", "__main__.py"):
            named = name.rpartition(".")[2] in stubs
            assert len(importers[name]) + named > 1, f"{name} has {lines} lines and one importer: make it part of it"


# ---- what travels to the Hub


def test_networks_reach_the_package_only_through_the_hook():
    for path in (PACKAGE / "networks").glob("*.py"):
        outside = {name for name in imported_modules(path) if not name.startswith("hf_perturb.networks.")}
        assert bool(outside) == (path.name == "record.py"), outside
    (guarded,) = (node for node in tree_of(PACKAGE / "networks" / "record.py").body if isinstance(node, ast.Try))
    assert [handler.type.id for handler in guarded.handlers] == ["ImportError"]


@pytest.mark.parametrize(("family", "most"), [("carp", 12), ("fair_esm", 13)])
def test_few_files_travel(family, most):
    """And they are those that Transformers fetches."""
    files = travelling_code(family)
    named = [PACKAGE / "networks" / f"{kind}_{family}.py" for kind in ("configuration", "modeling")]
    assert {*files.values()} == {*named, *(Path(file) for path in named for file in get_relative_import_files(path))}
    assert len(files) <= most, sorted(files)
    assert all(path.parent == PACKAGE / "networks" for path in files.values())


def test_all_of_networks_travels_and_nothing_else():
    travelling = {name for family in ("carp", "fair_esm") for name in travelling_code(family)}
    assert travelling == {path.name for path in (PACKAGE / "networks").glob("*.py")} - {"__init__.py"}
    assert not [path for path in (PACKAGE / "networks").iterdir() if path.is_dir() and path.name != "__pycache__"]


def test_perturbation_knows_no_transformers():
    for path in (PACKAGE / "perturbation").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(import|from) transformers", text), path
        assert "huggingface" not in text, path


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
