"""Files that appear in a folder of embeddings whole or not at all, and the one run at a time that writes there."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from hf_perturb.errors import CheckpointError, EmbeddingsError, FolderExistsError, FolderLockedError
from hf_perturb.storage.scratch import folders_made, lock, sync

MANIFEST = "_manifest.json"
_LOCK = ".hf_perturb-lock"
_SHARD = r"shard-\d{6}\.parquet"
# whoever reads the folder as one table passes by what begins with a dot or an underscore
_TEMPORARY = rf"\.({_SHARD}|{MANIFEST})\.hf_perturb-[0-9a-f]{{8}}"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def store_lock(out: Path) -> Iterator[None]:
    """Hold a folder of embeddings for one run, and sweep what killed ones left; a folder that was not there is made.

    Args:
        out: the folder; removed again if the block fails before anything is in it.

    Raises:
        FolderLockedError: if another run holds it.
        FolderExistsError: if something that is no folder has the name.
        EmbeddingsError: if the folder cannot be made or written.
    """
    if out.is_symlink() and not out.exists():
        raise FolderExistsError(f"{out} is a link that leads nowhere; choose another folder")
    refuse_file(out)
    with ExitStack() as stack:
        try:
            stack.enter_context(folders_made(out))
            # inside: a folder that a container was given may be all that one may write
            locked = stack.enter_context(lock(out, out / _LOCK))
        except FolderLockedError:
            raise
        except CheckpointError as error:
            raise EmbeddingsError(f"{error}; choose a folder that you may write") from error
        if locked:  # else it may be another's, who is at it
            for name in names_in(out, _TEMPORARY):
                (out / name).unlink(missing_ok=True)
        yield


def refuse_file(out: Path) -> None:
    """Refuse what is there and no folder.

    Raises:
        FolderExistsError: if so.
    """
    if out.exists() and not out.is_dir():
        raise FolderExistsError(f"{out} is no folder; choose another name for the folder of embeddings")


def names_in(out: Path, pattern: str = _SHARD) -> list[str]:
    """Name the shards in a folder, whole or not, in order; or what has names of another pattern."""
    return sorted(name for name in os.listdir(out) if re.fullmatch(pattern, name))


def foreign_names(out: Path) -> list[str]:
    """Name what is in a folder, in order, but for leftovers of killed runs."""
    return sorted(name for name in os.listdir(out) if name != _LOCK and not re.fullmatch(_TEMPORARY, name))


@contextmanager
def placed(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write that gets its name when the block ends well, and is gone when it does not.

    Raises:
        EmbeddingsError: if there is no room, or it cannot be written.
    """
    fresh = path.with_name(f".{path.name}.hf_perturb-{secrets.token_hex(4)}")
    try:
        try:
            with fresh.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)
        sync(path.parent)
    except EmbeddingsError:
        raise
    except OSError as error:
        what = "the disk is full" if error.errno in _FULL else "it cannot be written"
        raise EmbeddingsError(
            f"{path}: {what} ({error}); the shards that are written stay: "
            f"{'make room' if error.errno in _FULL else 'mend that'}, and run the same command again to continue"
        ) from error
