"""Folders that appear whole or not at all, and what may be replaced."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_perturb.errors import CheckpointError, FolderExistsError
from hf_perturb.storage.scratch import put_in_place, scratch_folder

# what a folder of ours may hold
_FILES = ("config.json", "model*.safetensors", "model.safetensors.index.json", "tokenizer*.json", "README.md")


def refuse_out(out: Path, source: Path, force: bool, kind: str) -> None:
    """Refuse a folder to write that is or holds the source, or that holds what is not ours to replace.

    Args:
        out: the folder to write.
        source: where the weights come from.
        force: whether a folder of the same kind may be replaced.
        kind: `"variant"` or `"base"`, what is about to be written.

    Raises:
        CheckpointError: if the source would be lost.
        FolderExistsError: if something is there that must not be.
    """
    if source.exists():
        try:
            one, other = out.resolve(), source.resolve()
        except RuntimeError as error:  # what Python before 3.13 makes of it
            raise CheckpointError(f"{out} leads round in a circle of links: {error}") from error
        if one == other or one in other.parents:
            raise CheckpointError(f"{out} is, or holds, the base {source}; choose another folder to write")
    if not out.exists() and not out.is_symlink():
        return
    if not force:
        raise FolderExistsError(f"{out} exists already; choose another folder, or replace it with --force (force=True)")
    if out.is_symlink() or not out.is_dir():
        raise FolderExistsError(f"{out} is no folder, so --force does not replace it; choose another")
    others = sorted(file.name for file in out.iterdir() if not any(file.match(glob) for glob in _FILES))
    if others:
        raise FolderExistsError(
            f"{out} holds {others[0]}, which is not ours to replace; move it, or choose another folder"
        )
    if any(out.iterdir()) and not _is_as_written(out, kind):
        raise FolderExistsError(f"{out} is no {kind}, so --force does not replace it; choose another folder")


def _is_as_written(folder: Path, kind: str) -> bool:
    """Whether a folder is as we left it: a model that was trained on has no digest any more."""
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        record = stored.get("perturbation")
    except (OSError, ValueError, AttributeError, RecursionError):
        return False
    if kind == "base":
        return record is None and stored.get("digest") is not None
    return isinstance(record, dict) and record.get("digest") is not None


@contextmanager
def whole_folder(out: Path, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Give a folder to fill that becomes `out` when the block ends well, and is gone when it does not.

    Args:
        out: the folder to be; what is there by then is replaced.
        check: raises if that must not be; asked again at the end, because to fill the folder may take an hour.

    Raises:
        FolderLockedError: if another process is writing `out`.
    """
    # the folder that one is in may be replaced, and every path from there with it
    place = out.parent.resolve() / out.name
    with scratch_folder(place) as scratch:
        fresh = scratch / "new"
        fresh.mkdir()
        yield fresh
        mode = (fresh / "config.json").stat().st_mode
        for file in fresh.iterdir():
            file.chmod(mode)  # safetensors writes files that only their owner can read
        check()
        put_in_place(fresh, place)


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


def refuse_existing(*outs: Path) -> None:
    """Refuse what is there already and is never replaced.

    Raises:
        FolderExistsError: naming it.
    """
    for out in outs:
        if out.exists() or out.is_symlink():
            raise FolderExistsError(f"{out} exists already; choose another name, or move it")


@contextmanager
def whole_files(*outs: Path) -> Iterator[list[Path]]:
    """Give files to write that get their names when the block ends well, the first one last; none may exist before.

    Raises:
        FolderExistsError: if one exists.
    """
    refuse_existing(*outs)
    with scratch_folder(outs[0]) as scratch:
        yield [scratch / out.name for out in outs]
        refuse_existing(*outs)
        written = [out for out in reversed(outs) if (scratch / out.name).exists()]
        try:
            for out in written:
                (scratch / out.name).rename(out)
        except BaseException:
            for out in written:
                if not (scratch / out.name).exists():
                    out.unlink(missing_ok=True)
            raise
