"""Whether a file that torch saved is as it was saved: its zip format sums every entry, its older one does not."""

from __future__ import annotations

import zipfile
from pathlib import Path

_LEGACY = b"\x80\x02"  # how the older format begins: a pickle of protocol 2


def damage(path: Path) -> str:
    """Say what is wrong with a zip, nothing for any other file; reading one maps it, and looks at no sum.

    Args:
        path: an existing file.
    """
    if not path.is_file() or not zipfile.is_zipfile(path):
        return ""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as error:  # a damaged archive can provoke any
        return f"it is damaged ({str(error).strip() or type(error).__name__})"
    return "" if broken is None else f"it is damaged (the sum of {broken} in it is wrong)"


def strange(path: Path) -> str:
    """Say so if a file does not begin like one of torch's, or lacks its end."""
    if zipfile.is_zipfile(path):
        return ""
    with path.open("rb") as file:
        known = file.read(len(_LEGACY)) == _LEGACY
    return "" if known else "it is no file that torch saved, or its end is missing"
