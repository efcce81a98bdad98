"""A folder of embeddings: shards of Parquet that are whole or absent, and a manifest that tells what they are.

The first of the processes goes `with store_lock(out)`, `open_store`, and `finish` at the end; the others make a `Store`
of the same manifest. Who writes which of `missing()` is settled before the first `write`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from hf_perturb.embedding.columns import arrow, is_whole, write_columns
from hf_perturb.embedding.manifest import MANIFEST, Manifest, Schema, Shard, canonical, read_manifest
from hf_perturb.errors import CheckpointError, EmbeddingsError, FolderExistsError, FolderLockedError
from hf_perturb.storage.scratch import folders_made, lock, sync

_LOCK = ".hf_perturb-lock"
_SHARD = r"shard-\d{6}\.parquet"
# whoever reads the folder as one table passes by what begins with a dot or an underscore
_TEMPORARY = rf"\.({_SHARD}|{MANIFEST})\.hf_perturb-[0-9a-f]{{8}}"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Store:
    """A folder of embeddings that is being written.

    Args:
        out: the folder.
        manifest: what is in it, or is to be.
    """

    def __init__(self, out: Path, manifest: Manifest):
        self.out = out
        self.manifest = manifest

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.manifest.complete

    def path(self, shard: Shard) -> Path:
        """Name the file of a shard."""
        return self.out / self.manifest.shards[shard.number].file

    def missing(self) -> list[Shard]:
        """List the shards that are to be written: those without a whole file of this very run; only footers are read.

        Raises:
            EmbeddingsError: if pyarrow is not installed.
        """
        return [shard for shard in self.manifest.shards if not is_whole(self.path(shard), self.manifest, shard)]

    def write(self, shard: Shard, columns: Mapping[str, Any]) -> None:
        """Write a shard, whole or not at all; what is there by its name is replaced.

        Args:
            shard: one of the plan.
            columns: by name, those of the schema. `id`: list of str; `length` and the further integers: int32
                `(records,)`; a vector a record: float32 `(records, width)`, not looked at where the length is 0; a
                vector a residue: for each record float32 `(length, width)`, or `(embedded, width)` if that is a column.

        Raises:
            EmbeddingsError: if vectors have other shapes, the disk is full, or nothing can be written.
        """
        own = self.manifest.shards[shard.number]
        with _placed(self.path(own)) as file:
            write_columns(file, self.manifest, own, columns)

    def finish(self, report: Mapping[str, Any]) -> None:
        """Declare the folder complete.

        Args:
            report: what the run has to say, as JSON.

        Raises:
            EmbeddingsError: if a shard is missing, or there is one that the plan does not name.
        """
        if missing := self.missing():
            raise EmbeddingsError(
                f"{self.out} is not complete: {missing[0].file} and {len(missing) - 1} more of "
                f"{len(self.manifest.shards)} shards are missing or damaged; run the same command again to continue"
            )
        if others := sorted({*_names_in(self.out)} - {shard.file for shard in self.manifest.shards}):
            raise EmbeddingsError(
                f"{self.out} holds {others[0]}, a shard of another run; remove it, and run this again"
            )
        shards = tuple(replace(shard, bytes=self.path(shard).stat().st_size) for shard in self.manifest.shards)
        self.manifest = replace(self.manifest, complete=True, report=dict(report), shards=shards)
        _write_manifest(self.out, self.manifest)


def open_store(
    out: Path,
    inputs: Mapping[str, Any],
    described: Mapping[str, Any],
    shards: Sequence[Shard],
    schema: Schema,
    force: bool = False,
) -> Store:
    """Begin a folder of embeddings, or continue with one. Within `store_lock`, which makes the folder.

    Args:
        out: the folder.
        inputs: what decides the embeddings, as JSON: with shards of other inputs, none is continued with.
        described: what is only said of them, as JSON.
        shards: the plan, in order.
        schema: the columns.
        force: remove other embeddings; what is in the folder and not ours stays.

    Raises:
        FolderExistsError: if there is something in the folder and no manifest of ours.
        EmbeddingsError: if the folder is of other inputs, or damaged, or cannot be written.
    """
    arrow()
    # as they are read back
    as_read = (json.loads(canonical(dict(inputs))), json.loads(json.dumps(dict(described))))
    wanted = Manifest(*as_read, schema, tuple(shards))
    refuse_foreign(out)
    store = Store(out, wanted)
    if (out / MANIFEST).exists():
        found = read_manifest(out)
        said = found.differences(wanted)
        if said and _names_in(out) and not force:
            raise EmbeddingsError(
                f"{out} holds other embeddings: {'; '.join(said)}; choose another folder, or replace them with --force"
            )
        # the manifest goes last: who is killed here leaves a folder that is still ours
        for name in _names_in(out) if said else ():
            (out / name).unlink()
        if not said and found.complete and not Store(out, found).missing():
            return Store(out, found)
    _write_manifest(out, wanted)
    return store


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
    _refuse_file(out)
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
            for name in _names_in(out, _TEMPORARY):
                (out / name).unlink(missing_ok=True)
        yield


def refuse_foreign(out: Path) -> None:
    """Raise if a folder has something in it and no manifest of ours, before any work is done; not there is fine.

    Raises:
        FolderExistsError: naming what is there.
        EmbeddingsError: if the manifest is damaged, or of a newer release.
    """
    if not out.exists():
        return
    _refuse_file(out)
    # leftovers of killed runs are nobody's
    names = sorted(name for name in os.listdir(out) if name != _LOCK and not re.fullmatch(_TEMPORARY, name))
    if MANIFEST in names:
        read_manifest(out)
    elif names:
        raise FolderExistsError(
            f"{out} holds {names[0]} and is no folder of embeddings, so nothing in it is replaced; choose another"
        )


def _refuse_file(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise FolderExistsError(f"{out} is no folder; choose another name for the folder of embeddings")


def _names_in(out: Path, pattern: str = _SHARD) -> list[str]:
    """Name the shards in a folder, whole or not, in order; or what has names of another pattern."""
    return sorted(name for name in os.listdir(out) if re.fullmatch(pattern, name))


@contextmanager
def _placed(path: Path) -> Iterator[BinaryIO]:
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


def _write_manifest(out: Path, manifest: Manifest) -> None:
    with _placed(out / MANIFEST) as file:
        file.write((json.dumps(manifest.to_dict(), indent=1, ensure_ascii=False) + "\n").encode())
