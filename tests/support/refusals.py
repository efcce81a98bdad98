"""What tests of refusals share: that an error is one of ours, and that nothing on disk has changed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from parity.original_files import original_data, state_of, write_original
from parity.originals import Pair, small_pair

import hf_perturb

network: Callable[[str], Pair] = cache(small_pair)  # nothing changes them


def edited(folder: Path, name: str, edit: Callable[[dict[str, Any]], object] = id, **options: Any) -> Path:
    """Write an original checkpoint whose data or tensors were edited.

    Args:
        folder: where to.
        name: of the network.
        edit: changes what the file holds, in place; not the tensors themselves.
        **options: of `write_original`.
    """
    data = original_data(network(name))
    edit(data)
    return write_original(folder, name, data, **options)


def replaced(**tensors: Callable[[Any], Any] | None) -> Callable[[dict[str, Any]], None]:
    """Return an edit that replaces tensors by what a function makes of them, or drops them."""

    def edit(data: dict[str, Any]) -> None:
        state = state_of(data)
        for name, function in tensors.items():
            tensor = state.pop(name, None)
            if function is not None:
                state[name] = function(tensor)

    return edit


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return the content of every file below a folder, `None` for folders."""
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}


def refuse(source: Path | str, folder: Path, message: str, out: str = "out", **options: Any) -> str:
    """Convert what must be refused, and return the message.

    Args:
        source: what to convert.
        folder: where to, and what must stay as it is.
        message: a pattern that the message matches.
        out: name of the output in the folder.
        **options: of `convert_checkpoint`.
    """
    before = tree(folder)
    with pytest.raises(hf_perturb.CheckpointError, match=message) as caught:
        hf_perturb.convert_checkpoint(source, folder / out, **options)
    assert tree(folder) == before, "something was left behind, or run"
    return str(caught.value)
