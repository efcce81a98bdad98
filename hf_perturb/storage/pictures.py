"""Pictures for print: one style, the same bytes for the same numbers, and files that are whole or not there."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_perturb.errors import CheckpointError
from hf_perturb.storage.folders import nothing_written, replaced_file

# what each format would record of the day it was written, left out: the same numbers give the same file
_FORMATS: dict[str, dict[str, Any]] = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
_DOTS_PER_INCH = 200
# 42: letters of a PDF stay letters; the salt: an SVG names its parts alike every time
STYLE: dict[str, Any] = {"font.size": 8, "axes.linewidth": 0.6, "pdf.fonttype": 42, "svg.hashsalt": "hf_perturb"}
_NAME = 40  # letters of a name that are shown


def check_picture(path: str | Path) -> None:
    """Raise if a picture could not be written, before anything is computed for it.

    Raises:
        CheckpointError: if it has no known suffix, its folder is missing, or matplotlib is.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise CheckpointError(f"{path}: a picture ends in {path.suffix!r}; allowed: {', '.join(_FORMATS)}")
    if not path.parent.is_dir():
        raise CheckpointError(f"{path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the name of a file")
    import_matplotlib()


def import_matplotlib() -> Any:
    """Import matplotlib with its figures, which have no window and leave those of pyplot alone.

    Raises:
        CheckpointError: if it is not installed.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise CheckpointError("a picture needs matplotlib: pip install 'hf-perturb[plot]'") from error
    return matplotlib


def write_picture(path: Path, draw: Callable[[], Any]) -> None:
    """Write a figure, whole or not at all; a picture of that name is replaced.

    Args:
        path: of a `.png`, `.pdf` or `.svg`.
        draw: makes the figure, in our style.

    Raises:
        CheckpointError: as `check_picture` does, or if the file cannot be written.
    """
    check_picture(path)
    matplotlib, suffix = import_matplotlib(), path.suffix.lower()
    with nothing_written(path), matplotlib.rc_context(), warnings.catch_warnings():
        # a style of the user's own may make letters too small for print
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        warnings.filterwarnings("ignore", message="Glyph")  # a name may have letters that the font lacks
        figure = draw()
        with replaced_file(path) as file:
            figure.savefig(file, format=suffix[1:], dpi=_DOTS_PER_INCH, metadata=_FORMATS[suffix])


def shortened(name: str) -> str:
    """Leave out the middle of a long name."""
    return name if len(name) <= _NAME else f"{name[: _NAME // 2]}…{name[-_NAME // 2 :]}"
