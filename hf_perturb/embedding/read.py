"""Embeddings back into memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_perturb.embedding.manifest import Manifest, Schema, Shard, read_manifest
from hf_perturb.embedding.store import arrow, is_whole
from hf_perturb.errors import EmbeddingsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def read_embeddings(
    out: str | Path, column: str | None = None, *, partial: bool = False
) -> tuple[list[str], NDArray[np.float32] | list[NDArray[np.float32]]]:
    """Read one column of a folder of embeddings, in the order of the input.

    Args:
        out: the folder.
        column: which; `None` if there is one.
        partial: take what there is of a folder that is not complete.

    Returns:
        The ids, and `(records, width)` of float32; records without a vector are rows of NaN. Of a column with a
        vector for each residue, a list of `(length, width)`, which may not be written to, of those residues that were
        chosen if some were; empty for records without.

    Raises:
        FolderExistsError: if it is another folder.
        EmbeddingsError: if there is none, it is not complete or is damaged, or has no such column.
    """
    import numpy as np

    out = Path(out)
    manifest = read_manifest(out)
    name, whole = _chosen(out, manifest.schema, column), _whole(out, manifest, partial)
    ids: list[str] = []
    if width := manifest.schema.vectors.get(name):
        vectors = np.empty((sum(shard.records for shard in whole), width), np.float32)
        for shard in whole:
            for chunk in _chunks(out, shard, name, ids):
                rows = vectors[len(ids) - len(chunk) : len(ids)]
                nulls = chunk.is_null().to_numpy(zero_copy_only=False)
                rows[~nulls] = chunk.flatten().to_numpy().reshape(-1, width)
                rows[nulls] = np.nan
        return ids, vectors
    residues: list[NDArray[np.float32]] = []
    for shard in whole:
        for chunk in _chunks(out, shard, name, ids):
            flat = chunk.values.flatten().to_numpy().reshape(-1, manifest.schema.residues[name])
            offsets = chunk.offsets.to_numpy().tolist()
            residues += [flat[first:last] for first, last in pairwise(offsets)]
    return ids, residues


def iterate_embeddings(out: Path, column: str | None = None) -> Iterator[tuple[str, NDArray[np.float32] | None]]:
    """Give one column a record at a time, in the order of the input; a row group is in memory.

    Yields:
        The id, and `(width,)` or `(residues, width)`; `None` for a record without residues.

    Raises:
        HfPerturbError: for what `read_embeddings` raises.
    """
    manifest = read_manifest(out)
    name, ids = _chosen(out, manifest.schema, column), list[str]()
    for shard in _whole(out, manifest):
        for chunk in _chunks(out, shard, name, ids):
            there = chunk.is_valid().to_pylist()
            if name in manifest.schema.vectors:
                width, rows = manifest.schema.vectors[name], chunk.flatten().to_numpy()
                each = iter(rows.reshape(-1, width))
                found = [next(each) if one else None for one in there]
            else:
                rows = chunk.values.flatten().to_numpy().reshape(-1, manifest.schema.residues[name])
                bounds = pairwise(chunk.offsets.to_numpy().tolist())
                found = [rows[slice(*bound)] if one else None for one, bound in zip(there, bounds, strict=True)]
            yield from zip(ids[-len(found) :], found, strict=True)
        ids.clear()


def _whole(out: Path, manifest: Manifest, partial: bool = False) -> list[Shard]:
    """Return the shards that are whole, which have to be all of them unless `partial`."""
    whole = [shard for shard in manifest.shards if is_whole(out / shard.file, manifest, shard)]
    if not partial and not (manifest.complete and len(whole) == len(manifest.shards)):
        raise EmbeddingsError(
            f"{out} is not complete: {len(whole)} of {len(manifest.shards)} shards are whole; "
            "run the same `hf-perturb embed` again to continue, or take what there is with partial=True"
        )
    return whole


def read_lengths(out: Path) -> NDArray[np.int64]:
    """Return how many residues each record of a folder has, in the order of the input."""
    import numpy as np

    _, parquet = arrow()
    tables = [parquet.read_table(out / shard.file, columns=["length"]) for shard in read_manifest(out).shards]
    return np.concatenate([np.zeros(0, np.int64), *(table["length"].to_numpy() for table in tables)])


def _chosen(out: Path, schema: Schema, column: str | None) -> str:
    names = [*schema.vectors, *schema.residues]
    if column is None and len(names) == 1:
        return names[0]
    if column not in names:
        raise EmbeddingsError(f"{out}: column: got {column!r}; allowed: {', '.join(map(repr, names))}")
    return column


def _chunks(out: Path, shard: Shard, name: str, ids: list[str]) -> Any:
    """Give a column of a shard, a row group at a time; the ids of each are added to the list before."""
    _, parquet = arrow()
    try:
        with parquet.ParquetFile(out / shard.file, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=["id", name]).combine_chunks()
                ids += table["id"].to_pylist()
                yield from table[name].chunks
    except (OSError, ValueError) as error:
        raise EmbeddingsError(
            f"{out / shard.file} is damaged: {error}; remove it, and run the same `hf-perturb embed` again"
        ) from error
