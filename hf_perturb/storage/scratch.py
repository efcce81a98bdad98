"""Scratch folders beside what they become: locked, swept after a crash, and put in place in one step."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from hf_perturb.errors import CheckpointError, FolderLockedError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_OLD = ".old"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


@contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """Give an empty folder beside `out` that is gone afterwards; what a killed process left there is swept first.

    Raises:
        FolderLockedError: if another process is writing `out`.
        CheckpointError: if the folder above cannot be made.
    """
    with folders_made(out.parent), lock(out, out.parent / f"{_prefix(out)}lock") as locked:
        if locked:
            _sweep(out)
        with tempfile.TemporaryDirectory(prefix=_prefix(out), dir=out.parent, ignore_cleanup_errors=True) as name:
            yield Path(name)


@contextmanager
def folders_made(folder: Path) -> Iterator[None]:
    """Make a folder and those above it; the ones that were not there are removed again when the block fails.

    Raises:
        CheckpointError: if they cannot be made.
    """
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be made: {error}") from error
        yield
    except BaseException:
        for path in absent:
            with suppress(OSError):  # somebody else's by now
                path.rmdir()
        raise


def put_in_place(fresh: Path, out: Path) -> None:
    """Make a folder inside a scratch folder appear as `out`; what is there goes to the scratch folder.

    Everything in it is on the disk before.
    """
    for file in fresh.iterdir():
        sync(file)
    sync(fresh)
    if not out.exists():
        fresh.rename(out)
    elif not _exchange(fresh, out):
        # beside the scratch folder, where a run after a crash finds it
        old = fresh.parent.with_name(fresh.parent.name + _OLD)
        out.rename(old)
        try:
            fresh.rename(out)
        except BaseException:
            old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    sync(out.parent)


def _prefix(out: Path) -> str:
    return f".{out.name}.hf_perturb-"


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; `False` where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    paths = os.fsencode(one), os.fsencode(other)
    return bool(renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0)


@contextmanager
def lock(out: Path, path: Path) -> Iterator[bool]:
    """Hold the lock of an output, the file `path`; give `False` where the file system has no locks.

    Raises:
        FolderLockedError: if another process holds it.
        CheckpointError: if the file cannot be written.
    """
    held = FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        held.acquire()
    except Timeout as error:
        raise FolderLockedError(
            f"{out} is locked: another process is writing it; wait for it, or choose another folder"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise CheckpointError(f"{path.parent} cannot be written: {error}") from error
    try:
        yield held.is_locked
    finally:
        # before it is let go: who opens it after that makes a new one
        path.unlink(missing_ok=True)
        held.release()


def _sweep(out: Path) -> None:
    """Remove what killed processes left, and put back what one had moved away."""
    # as `tempfile` names them; what only begins so is a user's, or an output's that is called `{out}.hf_perturb-x`
    pattern = re.compile(f"{re.escape(_prefix(out))}[a-z0-9_]{{8}}({re.escape(_OLD)})?")
    left = [path for path in out.parent.iterdir() if pattern.fullmatch(path.name) and path.is_dir()]
    for path in left:
        if path.name.endswith(_OLD) and not out.exists():
            path.rename(out)
        else:
            shutil.rmtree(path, ignore_errors=True)
