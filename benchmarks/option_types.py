"""Types of command-line options: what is refused before anything is measured."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path


def positive(text: str) -> int:
    """Read a number of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"got {number}; allowed: 1 or more")
    return number


def to_write(text: str) -> Path:
    """Read the name of a file in a folder that exists."""
    # to find out after an hour of measuring would be late
    if not (path := Path(text)).resolve().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path.parent} is no folder")
    return path


def figure(text: str) -> Path:
    """Read the name of a figure, which needs matplotlib."""
    path = to_write(text)
    if path.suffix not in (".svg", ".pdf", ".png"):
        raise argparse.ArgumentTypeError(f"got {text}; allowed: a name that ends in .svg, .pdf or .png")
    if find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("a figure needs matplotlib: pip install 'hf-perturb[plot]'")
    return path


def existing(text: str) -> Path:
    """Read the name of a file that exists."""
    if not (path := Path(text)).is_file():
        raise argparse.ArgumentTypeError(f"{path} is no file")
    return path
