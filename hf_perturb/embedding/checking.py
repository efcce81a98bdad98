"""What is refused before it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_perturb.embedding.manifest import EMBEDDED, Schema, Shard
from hf_perturb.errors import EmbeddingsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_SHARDS = 1_000_000  # more have no name of six digits, and the order of names is that of rows


def check_plan(shards: Sequence[Shard]) -> None:
    """Check that shards follow each other.

    Raises:
        EmbeddingsError: naming the first that does not, or if there are too many.
    """
    if len(shards) > MAX_SHARDS:
        raise EmbeddingsError(f"{len(shards)} shards; at most {MAX_SHARDS} are allowed: make them larger")
    first = 0
    for number, shard in enumerate(shards):
        if (shard.number, shard.first) != (number, first):
            raise EmbeddingsError(f"shard {number} of the plan is to begin at record {first}, got {shard}")
        first += shard.records


def check_columns(schema: Schema, shard: Shard, columns: Mapping[str, Any]) -> None:
    """Refuse columns that are not those of a shard.

    Raises:
        EmbeddingsError: naming the first one.
    """
    rows = shard.records
    _refuse(f"{shard.file}: columns", sorted(columns), sorted(schema.names))
    _refuse(f"{shard.file}: number of ids", len(columns["id"]), rows)
    for name in ("length", *schema.integers):
        _refuse(f"{shard.file}: {name}", (columns[name].dtype.name, columns[name].shape), ("int32", (rows,)))
    for name, width in schema.vectors.items():
        _refuse(f"{shard.file}: {name}", (columns[name].dtype.name, columns[name].shape), ("float32", (rows, width)))
    lengths = columns[EMBEDDED if EMBEDDED in schema.integers else "length"].tolist()
    for name, width in schema.residues.items():
        _refuse(f"{shard.file}: {name}, number of records", len(columns[name]), rows)
        for row, length in zip(columns[name], lengths, strict=True):
            _refuse(f"{shard.file}: {name}", (row.dtype.name, row.shape), ("float32", (length, width)))


def check_nulls(schema: Schema, shard: Shard, nulls: NDArray[np.bool_]) -> None:
    """Refuse what does not say which records of a shard have no vectors, or that some have none where all must.

    Raises:
        EmbeddingsError: if so.
    """
    _refuse(f"{shard.file}: nulls", (nulls.dtype.name, nulls.shape), ("bool", (shard.records,)))
    if not schema.nullable:
        _refuse(f"{shard.file}: records without vectors, of a schema that is not nullable", int(nulls.sum()), 0)


def _refuse(what: str, got: Any, allowed: Any) -> None:
    if got != allowed:
        raise EmbeddingsError(f"{what}: got {got}; allowed: {allowed}")
