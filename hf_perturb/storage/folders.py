"""Folders and files that appear whole or not at all, what may be replaced, and the locks that keep two writers apart.

What is written grows in a hidden folder beside its place; what a killed process left there is swept by the next one.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from hf_perturb.errors import CheckpointError, FolderExistsError, FolderLockedError, HfPerturbError

# what a folder of ours may hold
_FILES = ("config.json", "model*.safetensors", "model.safetensors.index.json", "tokenizer*.json", "README.md")
NOWHERE = "the working directory has been removed; go to another one"
_OLD = ".old"
LOCK = ".hf_perturb-lock"  # in a folder that is filled where it stands
# of Linux, for `renameat2`
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


# ---- what may be replaced


def refuse_out(
    out: Path,
    source: Path,
    force: bool,
    kind: str,
    keep: bool = False,
    beside: Callable[[Path], bool] = lambda file: False,
) -> None:
    """Raise if a folder to write is or holds the source, or holds what is not ours to replace.

    Args:
        out: the folder to write.
        source: where the weights come from.
        force: whether a folder of the same kind may be replaced.
        kind: `"variant"` or `"base"`.
        keep: whether a folder of the same kind may stay, for the caller to look into.
        beside: whether a file is one that was taken over from the base.

    Raises:
        CheckpointError: if the source would be lost.
        FolderExistsError: if something is there that must not be.
    """
    if source.exists() and resolved(source).is_relative_to(resolved(out)):
        raise CheckpointError(f"{out} is, or holds, the base {source}; choose another folder to write")
    if not os.path.lexists(out):
        return
    if not force:
        if keep and not out.is_symlink() and _is_as_written(out, kind):
            return
        raise FolderExistsError(f"{out} exists already; choose another folder, or replace it with --force (force=True)")
    if out.is_symlink() or not out.is_dir():
        raise FolderExistsError(f"{out} is no folder, so --force does not replace it; choose another")
    files = sorted(out.iterdir())
    if others := [x.name for x in files if not any(x.match(glob) for glob in _FILES) and not beside(x)]:
        raise FolderExistsError(
            f"{out} holds {others[0]}, which is not ours to replace; move it, or choose another folder"
        )
    if files and not _is_as_written(out, kind):
        raise FolderExistsError(f"{out} is no {kind}, so --force does not replace it; choose another folder")


def resolved(path: Path) -> Path:
    """Return a path from the root, through all links.

    Raises:
        CheckpointError: if there is none.
    """
    try:
        return path.resolve()
    except RuntimeError as error:  # what Python before 3.13 makes of it
        raise CheckpointError(f"{path} leads round in a circle of links: {error}") from error
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is nowhere: {NOWHERE}") from error


def refuse_existing(*outs: Path) -> None:
    """Raise if there is something that is never replaced.

    Raises:
        FolderExistsError: naming it.
    """
    for out in filter(os.path.lexists, outs):
        raise FolderExistsError(f"{out} exists already; choose another name, or move it")


def _is_as_written(folder: Path, kind: str) -> bool:
    """Whether a folder is as we left it, and no model that was trained on since."""
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        record = stored.get("perturbation")
        if kind == "base":
            return record is None and stored.get("digest") is not None
        return record.get("digest") is not None and not record.get("changed")
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


# ---- whole or not at all


@contextmanager
def whole_folder(out: Path, check: Callable[[Path], None] = lambda out: None) -> Iterator[Path]:
    """Give a folder to fill that becomes `out` when the block ends well, and is gone when it does not.

    Args:
        out: the folder to be; what is there by then is replaced.
        check: called with `out` at the end, raises if it must not be: to fill the folder may take an hour.

    Raises:
        FolderLockedError: if another process is writing `out`.
    """
    # the folder that one is in may be replaced, and every path from there with it
    place = resolved(out.parent) / out.name
    with scratch_folder(place) as scratch:
        fresh = scratch / "new"
        fresh.mkdir()
        yield fresh
        mode = (fresh / "config.json").stat().st_mode
        for file in fresh.iterdir():
            file.chmod(mode)  # safetensors writes files that only their owner can read
        check(out)
        _put_in_place(fresh, place)


@contextmanager
def whole_files(*outs: Path) -> Iterator[list[Path]]:
    """Give files to write that get their names when the block ends well, the first one last; none may exist before.

    Raises:
        FolderExistsError: if one exists.
    """
    refuse_existing(*outs)
    with scratch_folder(outs[0]) as scratch:
        fresh = {out: scratch / out.name for out in outs}
        yield list(fresh.values())
        refuse_existing(*outs)
        written = [out for out in reversed(outs) if fresh[out].exists()]
        try:
            for out in written:
                fresh[out].rename(out)
        except BaseException:
            for out in written:
                if not fresh[out].exists():
                    out.unlink(missing_ok=True)
            raise


@contextmanager
def replaced_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write that takes the place of what has its name when the block ends well, else is gone."""
    fresh = path.with_name(f".{path.name}.hf_perturb-{secrets.token_hex(4)}")
    try:
        with fresh.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    sync(path.parent)


def temporary(names: str = ".+") -> str:
    """Return the pattern of what a killed process leaves of `replaced_file`, for files of names of a pattern."""
    return rf"\.({names})\.hf_perturb-[0-9a-f]{{8}}"


@contextmanager
def nothing_written(what: str | Path, errors: tuple[type[Exception], ...] = (OSError,)) -> Iterator[None]:
    """Say of an error of the system that nothing was written; one of ours says so itself.

    Raises:
        CheckpointError: in its place.
    """
    try:
        yield
    except HfPerturbError:
        raise
    except errors as error:
        raise CheckpointError(f"{what}: nothing was written, because {error}") from error


def allow_open_files(folders: int) -> None:
    """Let this process have the files of so many folders open at once.

    Raises:
        CheckpointError: if the system does not allow that many.
    """
    import resource  # loading a model works on systems without it

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # a lock and the weights of each, and what the process has open already
    needed = 4 * folders + 100
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise CheckpointError(f"{folders} variants at once need {needed} open files, {hard} are allowed; build fewer")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(fresh: Path, out: Path) -> None:
    """Make a folder inside a scratch folder appear as `out`; what is there goes to the scratch folder."""
    for path in (*fresh.iterdir(), fresh):
        sync(path)
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


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; `False` where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    paths = os.fsencode(one), os.fsencode(other)
    return bool(renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0)


# ---- scratch folders and locks


@contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """Give an empty folder beside `out` that is gone afterwards; what a killed process left there is swept first.

    Raises:
        FolderLockedError: if another process is writing `out`.
        CheckpointError: if the folder above cannot be made.
    """
    prefix = f".{out.name}.hf_perturb-"
    with folders_made(out.parent), lock(out, out.parent / f"{prefix}lock") as locked:
        if locked:
            _sweep(out, prefix)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=out.parent, ignore_cleanup_errors=True) as name:
            yield Path(name)


def _sweep(out: Path, prefix: str) -> None:
    """Remove what killed processes left, and put back what one had moved away."""
    # as `tempfile` names them; what only begins so is a user's, or an output's that is called `{out}.hf_perturb-x`
    pattern = re.compile(f"{re.escape(prefix)}[a-z0-9_]{{8}}({re.escape(_OLD)})?")
    left = [path for path in out.parent.iterdir() if pattern.fullmatch(path.name) and path.is_dir()]
    for path in left:
        if path.name.endswith(_OLD) and not out.exists():
            path.rename(out)
        else:
            shutil.rmtree(path, ignore_errors=True)


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
