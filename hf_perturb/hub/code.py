"""The code that travels with the weights: the package's own model files, unchanged."""

from __future__ import annotations

import ast
from pathlib import Path

from hf_perturb import networks

_FOLDER = Path(networks.__file__).parent


def travelling_code(family: str) -> dict[str, Path]:
    """Return the files that a family's `auto_map` needs beside it, by their names in the repository.

    Args:
        family: `model_type` of the network.
    """
    found: dict[str, Path] = {}
    waiting = [f"configuration_{family}", f"modeling_{family}"]
    while waiting:
        name = f"{waiting.pop()}.py"
        if name not in found:
            found[name] = _FOLDER / name
            waiting += _siblings(found[name])
    return dict(sorted(found.items()))


def code_names() -> frozenset[str]:
    """Return the names of every file that may travel, whatever the family."""
    return frozenset(path.name for path in _FOLDER.glob("*.py") if path.stem != "__init__")


def _siblings(path: Path) -> list[str]:
    """Return the modules that a file imports from its own folder, wherever in the file, as Transformers looks."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module]
