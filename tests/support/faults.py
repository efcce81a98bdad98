"""Writes that fail in the middle: a full disk, or a process that ends there, as far as one process can show it."""

from __future__ import annotations

import builtins
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from transformers import configuration_utils, modeling_utils

from hf_perturb.variants.shards import Shards


class Faults:
    """Lets a number of writes pass, then fails each that follows, half of it being written.

    Args:
        passes: how many.
        folder: in which they count.
    """

    def __init__(self, passes: int, folder: Path):
        self.left, self.folder, self.struck = passes, str(folder), False

    def due(self, path: Any) -> bool:
        """Count a write of a path, and say whether it is to fail."""
        if not str(path).startswith(self.folder):
            return False
        self.left -= 1
        self.struck |= self.left < 0
        return self.left < 0

    def error(self) -> OSError:
        return OSError(errno.ENOSPC, "No space left on device")

    def opened(self, path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "w" in mode and self.due(path):
            os.truncate(path, 0) if os.path.exists(path) else None
            raise self.error()
        return builtins.open(path, mode, *args, **kwargs)

    def saved(self, save: Callable[..., Any]) -> Callable[..., Any]:
        def run(tensors: Any, filename: Any, **kwargs: Any) -> Any:
            if not self.due(filename):
                return save(tensors, filename, **kwargs)
            half = f"{filename}.half"
            save(tensors, half, **kwargs)
            os.truncate(half, os.path.getsize(half) // 2)
            os.replace(half, filename)  # models that were loaded from it have the old one mapped
            raise self.error()

        return run

    def failing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(path: Any, *args: Any, **kwargs: Any) -> Any:
            if self.due(path):
                raise self.error()
            return call(path, *args, **kwargs)

        return run

    def failing_write(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(shards: Any, *args: Any, **kwargs: Any) -> Any:
            if self.due(shards.folder):
                raise self.error()
            return call(shards, *args, **kwargs)

        return run


@contextmanager
def failing_after(passes: int | None, folder: Path, deletes: bool = False) -> Iterator[Faults | None]:
    """Fail what is written into a folder after a number of writes; `None` for never.

    Args:
        passes: that number.
        folder: where.
        deletes: whether nothing is deleted any more, too, as by a process that has ended; a full disk lets it be done.
    """
    if passes is None:
        yield None
        return
    faults = Faults(passes, folder)
    end = faults.failing if deletes else lambda call: call
    with (
        patch.object(modeling_utils, "safe_save_file", faults.saved(modeling_utils.safe_save_file)),
        patch.object(modeling_utils, "open", faults.opened, create=True),
        patch.object(configuration_utils, "open", faults.opened, create=True),
        patch.object(os, "remove", end(os.remove)),
        patch.object(os, "unlink", end(os.unlink)),
        patch.object(Path, "write_text", faults.failing(Path.write_text)),
        patch.object(Path, "rename", faults.failing(Path.rename)),
        patch.object(Shards, "write", faults.failing_write(Shards.write)),
    ):
        yield faults
