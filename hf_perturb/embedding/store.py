"""A folder of embeddings: shards of Parquet that are whole or absent, and a manifest that tells what they are.

The first of the processes goes `with store_lock(out)`, `open_store`, and `finish` at the end; the others make a `Store`
of the same manifest. Who writes which of `missing()` is settled before the first `write`.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from hf_perturb.embedding.manifest import MANIFEST, Manifest, Schema, Shard, canonical, read_manifest
from hf_perturb.errors import CheckpointError, EmbeddingsError, FolderExistsError, FolderLockedError
from hf_perturb.storage.folders import LOCK, folders_made, lock, replaced_file, temporary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SHARD = r"shard-\d{6}\.parquet"
# whoever reads the folder as one table passes by what begins with a dot or an underscore
_TEMPORARY = temporary(f"{_SHARD}|{MANIFEST}")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# what is written from is made for one at a time, and a reader holds one at a time
GROUP_BYTES = 32 * 2**20
_GROUP_ROWS = 65_536
_OPTIONS: dict[str, Any] = {
    # of float32 noise, zstd alone leaves 92 %; with the bytes of each place together 81-85 %, and as fast as raw
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": False,
    # a flipped bit is an error and not an embedding
    "write_page_checksum": True,
}


def arrow() -> tuple[Any, Any]:
    """Import pyarrow and its Parquet.

    Raises:
        EmbeddingsError: if it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise EmbeddingsError(f"embeddings need pyarrow ({error}): pip install 'hf-perturb[embed]'") from error
    return pyarrow, pyarrow.parquet


class Store:
    """A folder of embeddings that is being written, and what is in it, or is to be."""

    def __init__(self, out: Path, manifest: Manifest):
        self.out = out
        self.manifest = manifest

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.manifest.complete

    def path(self, shard: Shard) -> Path:
        """Name the file of a shard."""
        return self.out / shard.file

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
                vector a residue: for each record float32 `(length, width)`, or `(embedded, width)` if that is a column,
                or `(kept, width)` if that is one.

        Raises:
            EmbeddingsError: if vectors have other shapes, the disk is full, or nothing can be written.
            ValueError: if columns are not of one length.
        """
        with _placed(self.path(shard)) as file:
            _write_columns(file, self.manifest, shard, columns)

    def finish(self, report: Mapping[str, Any]) -> None:
        """Declare the folder complete; the report is what the run has to say, as JSON.

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

    With shards of other `inputs`, another plan or other columns, it is not continued: these are removed if `force`, and
    what is in the folder and not ours stays.

    Raises:
        EmbeddingsError: if the folder is of other inputs, or damaged, or cannot be written.
    """
    arrow()
    # in one order, however they were put together
    wanted = Manifest(json.loads(canonical(dict(inputs))), dict(described), schema, tuple(shards))
    if (out / MANIFEST).exists():
        found = read_manifest(out)
        if said := found.differences(wanted):
            names = _names_in(out)
            if names and not force:
                raise EmbeddingsError(
                    f"{out} holds other embeddings: {'; '.join(said)}; choose another folder, or replace them with"
                    " --force"
                )
            # the manifest goes last: who is killed here leaves a folder that is still ours
            for name in names:
                (out / name).unlink()
        elif found.complete and not Store(out, found).missing():
            return Store(out, found)
    _write_manifest(out, wanted)
    return Store(out, wanted)


@contextmanager
def store_lock(out: Path) -> Iterator[None]:
    """Hold a folder of embeddings for one run, and sweep what killed ones left.

    One that was not there is made, and removed again if the block fails before anything is in it.

    Raises:
        FolderLockedError: if another run holds it.
        FolderExistsError: if there is something else by its name, or in it.
        EmbeddingsError: if the folder cannot be made or written.
    """
    refuse_foreign(out)
    with ExitStack() as stack:
        try:
            stack.enter_context(folders_made(out))
            # inside: a folder that a container was given may be all that one may write
            locked = stack.enter_context(lock(out, out / LOCK))
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
        if out.is_symlink():
            raise FolderExistsError(f"{out} is a link that leads nowhere; choose another folder")
        return
    if not out.is_dir():
        raise FolderExistsError(f"{out} is no folder; choose another name for the folder of embeddings")
    # leftovers of killed runs are nobody's
    names = sorted(name for name in os.listdir(out) if name != LOCK and not re.fullmatch(_TEMPORARY, name))
    if MANIFEST in names:
        read_manifest(out)
    elif names:
        raise FolderExistsError(
            f"{out} holds {names[0]} and is no folder of embeddings, so nothing in it is replaced; choose another"
        )


def _names_in(out: Path, pattern: str = _SHARD) -> list[str]:
    """Name the shards in a folder, whole or not, in order; or what has names of another pattern."""
    return sorted(name for name in os.listdir(out) if re.fullmatch(pattern, name))


@contextmanager
def _placed(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write that gets its name when the block ends well, and is gone when it does not.

    Raises:
        EmbeddingsError: if there is no room, or it cannot be written.
    """
    try:
        with replaced_file(path) as file:
            yield file
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


def _write_columns(file: BinaryIO, manifest: Manifest, shard: Shard, columns: Mapping[str, Any]) -> None:
    """Write columns, as `Store.write` takes them, to Parquet, a row group at a time."""
    pa, parquet = arrow()
    wanted = manifest.schema
    _check_shapes(wanted, shard, columns)
    nulls = columns["length"] == 0
    fields = [pa.field("id", pa.string(), nullable=False)]
    fields += [pa.field(name, pa.int32(), nullable=False) for name in ("length", *wanted.integers)]
    # no pyarrow before 26 reads a list of fixed size that is null; the offsets of a plain list end at 2**31
    kinds = {
        name: pa.large_list(pa.float32()) if wanted.nullable else pa.list_(pa.float32(), width)
        for name, width in wanted.vectors.items()
    }
    kinds |= {name: pa.large_list(pa.list_(pa.float32(), width)) for name, width in wanted.residues.items()}
    fields += [pa.field(name, kind, nullable=wanted.nullable) for name, kind in kinds.items()]
    schema = pa.schema(fields, _metadata(manifest, shard))
    floats = [f"{name}.list.element" for name in wanted.vectors]
    floats += [f"{name}.list.element.list.element" for name in wanted.residues]
    options = {**_OPTIONS, "use_byte_stream_split": floats, "write_statistics": ["id", "length", *wanted.integers]}
    with parquet.ParquetWriter(file, schema, **options) as writer:
        for rows in _groups(wanted, columns[wanted.counts]):
            arrays = [pa.array(columns["id"][rows], pa.string())]
            arrays += [pa.array(columns[name][rows], pa.int32()) for name in ("length", *wanted.integers)]
            arrays += [_vectors(columns[name][rows], nulls[rows], wanted.nullable) for name in wanted.vectors]
            arrays += [_residues(columns[name][rows], nulls[rows], width) for name, width in wanted.residues.items()]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=rows.stop - rows.start)


def _check_shapes(schema: Schema, shard: Shard, columns: Mapping[str, Any]) -> None:
    """Raise if vectors have other shapes than the schema says: a list of another size would be written all the same."""
    counts = columns[schema.counts].tolist()
    found = {name: [columns[name].shape] for name in schema.vectors}
    wanted = {name: [(shard.records, width)] for name, width in schema.vectors.items()}
    found |= {name: [row.shape for row in columns[name]] for name in schema.residues}
    wanted |= {name: [(count, width) for count in counts] for name, width in schema.residues.items()}
    for name in found:
        for got, allowed in zip_longest(found[name], wanted[name]):
            if got != allowed:
                raise EmbeddingsError(f"{shard.file}: {name}: got {got}; allowed: {allowed}")


def is_whole(path: Path, manifest: Manifest, shard: Shard) -> bool:
    """Whether a file is this very shard, by its footer and, where it is known, its size."""
    _, parquet = arrow()
    try:
        with path.open("rb") as file:
            footer = parquet.read_metadata(file)
        size = path.stat().st_size
    except (OSError, ValueError):  # as pyarrow says that it is no Parquet, or half of one
        return False
    found, wanted = footer.metadata or {}, _metadata(manifest, shard)
    same = all(found.get(key.encode()) == wanted[key].encode() for key in ("fingerprint", "shard"))
    return same and footer.num_rows == shard.records and shard.bytes in (None, size)


def _metadata(manifest: Manifest, shard: Shard) -> dict[str, str]:
    """Say all that one needs who finds the file alone."""
    return {
        "fingerprint": manifest.fingerprint,
        "shard": str(shard.number),
        "inputs": json.dumps(manifest.inputs),
        "described": json.dumps(manifest.described),
    }


def _groups(schema: Schema, counts: NDArray[np.int32]) -> Iterator[slice]:
    """Divide rows so that the floats of each row group have a bounded number of bytes, or one row."""
    once, each = 4 * sum(schema.vectors.values()), 4 * sum(schema.residues.values())
    first, size = 0, 0
    for row, count in enumerate(counts.tolist()):
        more = once + each * count
        if row > first and (size + more > GROUP_BYTES or row - first == _GROUP_ROWS):
            yield slice(first, row)
            first, size = row, 0
        size += more
    if first < len(counts):
        yield slice(first, len(counts))


def _vectors(rows: NDArray[np.float32], nulls: NDArray[np.bool_], nullable: bool) -> Any:
    pa, _ = arrow()
    if nullable:
        given = [None if null else row for row, null in zip(rows, nulls, strict=True)]
        return pa.array(given, pa.large_list(pa.float32()))
    # nothing of what is contiguous is copied
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def _residues(rows: list[NDArray[np.float32]], nulls: NDArray[np.bool_], width: int) -> Any:
    import numpy as np

    pa, _ = arrow()
    kept = [row for row, null in zip(rows, nulls, strict=True) if not null]
    flat = np.concatenate(kept).reshape(-1) if kept else np.zeros(0, np.float32)
    lengths = [0 if null else len(row) for row, null in zip(rows, nulls, strict=True)]
    offsets = pa.array(np.cumsum([0, *lengths], dtype=np.int64))
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat), width)
    return pa.LargeListArray.from_arrays(offsets, vectors, mask=pa.array(nulls))
