"""Folders that appear whole or not at all, and what may be replaced."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hf_perturb.errors import CheckpointError, FolderExistsError
from hf_perturb.models.loading import stored_config

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
        one, other = out.resolve(), source.resolve()
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
        stored = stored_config(folder, {})[0]
    except OSError:
        return False
    record = stored.get("perturbation")
    if kind == "base":
        return record is None and stored.get("digest") is not None
    return isinstance(record, dict) and record.get("digest") is not None


@contextmanager
def whole_folder(out: Path, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Give a folder to fill that becomes `out` when the block ends well, and is gone when it does not.

    Args:
        out: the folder to be; what is there by then is replaced.
        check: raises if that must not be; asked again at the end, because to fill the folder may take an hour.
    """
    with _scratch(out) as (fresh, old):
        yield fresh
        mode = (fresh / "config.json").stat().st_mode
        for file in fresh.iterdir():
            file.chmod(mode)  # safetensors writes files that only their owner can read
        check()
        try:
            if out.exists():
                out.rename(old)
            fresh.rename(out)
        except BaseException:
            if old.exists() and not out.exists():
                old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)


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
    with _scratch(outs[0]) as (fresh, _):
        yield [fresh / out.name for out in outs]
        refuse_existing(*outs)
        written = [out for out in reversed(outs) if (fresh / out.name).exists()]
        try:
            for out in written:
                (fresh / out.name).rename(out)
        except BaseException:
            for out in written:
                if not (fresh / out.name).exists():
                    out.unlink(missing_ok=True)
            raise


@contextmanager
def _scratch(out: Path) -> Iterator[tuple[Path, Path]]:
    """Give an empty folder beside `out`, and a name for what is in its place."""
    absent = [parent for parent in out.parents if not parent.exists()]
    try:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{out.parent} cannot be made: {error}") from error
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent, ignore_cleanup_errors=True) as scratch:
            fresh = Path(scratch) / "new"
            fresh.mkdir()
            # beside the scratch folder, which is removed whatever happens
            yield fresh, Path(scratch + ".old")
    except BaseException:
        for parent in absent:
            with suppress(OSError):  # somebody else's by now
                parent.rmdir()
        raise
