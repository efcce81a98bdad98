"""Columns of embeddings to Parquet, a row group at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from hf_perturb.embedding.manifest import EMBEDDED, Manifest, Schema, Shard
from hf_perturb.errors import EmbeddingsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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


def write_columns(file: BinaryIO, manifest: Manifest, shard: Shard, columns: Mapping[str, Any]) -> None:
    """Write a Parquet file.

    Args:
        file: to write to.
        manifest: of the folder.
        shard: which file it is.
        columns: as `Store.write` takes them.

    Raises:
        EmbeddingsError: if vectors have another width, or are not as many as a record has residues.
        ValueError: if columns are not of one length.
    """
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
        for rows in _groups(wanted, columns["length"]):
            arrays = [pa.array(columns["id"][rows], pa.string())]
            arrays += [pa.array(columns[name][rows], pa.int32()) for name in ("length", *wanted.integers)]
            arrays += [_vectors(columns[name][rows], nulls[rows], wanted.nullable) for name in wanted.vectors]
            arrays += [_residues(columns[name][rows], nulls[rows], width) for name, width in wanted.residues.items()]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=rows.stop - rows.start)


def _check_shapes(schema: Schema, shard: Shard, columns: Mapping[str, Any]) -> None:
    """Raise if vectors have other shapes than the schema says: a list of another size would be written all the same."""
    lengths = columns[EMBEDDED if EMBEDDED in schema.integers else "length"].tolist()
    found = {name: [columns[name].shape] for name in schema.vectors}
    wanted = {name: [(shard.records, width)] for name, width in schema.vectors.items()}
    found |= {name: [row.shape for row in columns[name]] for name in schema.residues}
    wanted |= {name: [(length, width) for length in lengths] for name, width in schema.residues.items()}
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


def _groups(schema: Schema, lengths: NDArray[np.int32]) -> Iterator[slice]:
    """Divide rows so that the floats of each row group have a bounded number of bytes, or one row."""
    once, each = 4 * sum(schema.vectors.values()), 4 * sum(schema.residues.values())
    first, size = 0, 0
    for row, length in enumerate(lengths.tolist()):
        more = once + each * length
        if row > first and (size + more > GROUP_BYTES or row - first == _GROUP_ROWS):
            yield slice(first, row)
            first, size = row, 0
        size += more
    if first < len(lengths):
        yield slice(first, len(lengths))


def _vectors(rows: NDArray[np.float32], nulls: NDArray[np.bool_], nullable: bool) -> Any:
    import numpy as np

    pa, _ = arrow()
    width = rows.shape[1]
    values = pa.array((rows[~nulls] if nulls.any() else rows).reshape(-1))  # no copy of what is contiguous
    if nullable:
        return _lists(values, np.where(nulls, 0, width), nulls)
    return pa.FixedSizeListArray.from_arrays(values, width)


def _residues(rows: list[NDArray[np.float32]], nulls: NDArray[np.bool_], width: int) -> Any:
    import numpy as np

    pa, _ = arrow()
    kept = [row for row, null in zip(rows, nulls, strict=True) if not null]
    flat = np.concatenate(kept).reshape(-1) if kept else np.zeros(0, np.float32)
    lengths = np.array([0 if null else len(row) for row, null in zip(rows, nulls, strict=True)])
    return _lists(pa.FixedSizeListArray.from_arrays(pa.array(flat), width), lengths, nulls)


def _lists(values: Any, lengths: NDArray[np.int64], nulls: NDArray[np.bool_]) -> Any:
    import numpy as np

    pa, _ = arrow()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), values, mask=pa.array(nulls))
