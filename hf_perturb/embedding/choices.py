"""What is asked of a run of embeddings, checked against the network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import index
from typing import Any

from hf_perturb.embedding.manifest import EMBEDDED
from hf_perturb.errors import FastaError, ModelInputError

POOLS = ("mean", "max", "cls")
LONG = ("refuse", "truncate", "window")


@dataclass(frozen=True)
class Choices:
    """What is made of each record.

    Args:
        layers: numbers of the representations, ascending; 0 is the embedding.
        pools: how the residues of a record become one vector; may be empty.
        per_residue: whether the vector of every residue is kept too.
        limit: most residues that the network takes at once, `None` for any number.
        long: what becomes of longer records; see `LONG`.
        overlap: residues that neighbouring windows share.
    """

    layers: tuple[int, ...]
    pools: tuple[str, ...] = ("mean",)
    per_residue: bool = False
    limit: int | None = None
    long: str = "refuse"
    overlap: int = 0

    @property
    def vectors(self) -> list[tuple[str, str, int]]:
        """Column, pooling and layer of each vector a record."""
        return [(f"{pool}_{layer}", pool, layer) for layer in self.layers for pool in self.pools]

    @property
    def residues(self) -> list[tuple[str, int]]:
        """Column and layer of each vector a residue."""
        return [(f"residues_{layer}", layer) for layer in self.layers] if self.per_residue else []

    @property
    def integers(self) -> tuple[str, ...]:
        """Columns that say what became of long records."""
        names = {"truncate": (EMBEDDED,), "window": ("windows",)}
        return () if self.limit is None else names.get(self.long, ())

    def to_dict(self) -> dict[str, Any]:
        """Return what decides the embeddings, as JSON."""
        long: dict[str, Any] = {"long": self.long, "limit": self.limit, "overlap": self.overlap}
        kept = {key: value for key, value in long.items() if key != "overlap" or self.long == "window"}
        return {
            "layers": list(self.layers),
            "pool": list(self.pools),
            "per_residue": self.per_residue,
            "long_records": None if self.limit is None else kept,
        }

    def windows(self, length: int) -> list[tuple[int, int]]:
        """Return which residues the network sees at a time, as (first, after the last).

        All windows are as wide as the network takes; the last ends where the record does, and so may share more with
        its neighbour than the others do.
        """
        if self.limit is None or length <= self.limit:
            return [(0, length)]
        if self.long == "truncate":
            return [(0, self.limit)]
        starts = range(0, length - self.limit, self.limit - self.overlap)
        return [(start, start + self.limit) for start in (*starts, length - self.limit)]

    def refuse_long(self, longest: int, name: str) -> None:
        """Refuse records that the network cannot take, if nobody said what to make of them.

        Args:
            longest: residues of the longest record.
            name: what messages call it.

        Raises:
            FastaError: naming the record, the limit and the ways out.
        """
        if self.long == "refuse" and self.limit is not None and longest > self.limit:
            raise FastaError(
                f"record {name!r} has {longest:,} residues; allowed: at most {self.limit:,}, because this network has"
                " learned its positions; cut longer ones off with --long truncate, or slide with --long window"
            )


def make_choices(
    config: Any, layers: Any, pool: str | Iterable[str], per_residue: bool, long: str, overlap: int | None
) -> Choices:
    """Check what is asked for.

    Args:
        config: the network's `FairEsmConfig` or `CarpConfig`.
        layers: `"last"`, `"all"`, numbers, or numbers in a string with commas; negative ones count from the end.
        pool: one of `POOLS`, or several.
        per_residue: see `Choices`.
        long: see `Choices`.
        overlap: see `Choices`; `None` for a quarter of a window.

    Raises:
        ModelInputError: naming what it got and what is allowed.
    """
    pools = tuple(dict.fromkeys([pool] if isinstance(pool, str) else pool))
    for name in pools:
        if name not in POOLS:
            raise ModelInputError(f"pool: got {name!r}; allowed: {', '.join(POOLS)}")
    if "cls" in pools and getattr(config, "bos_token_id", None) is None:
        raise ModelInputError(
            f"pool: got 'cls'; a {config.model_type} network has no token that begins a sequence; allowed: mean, max"
        )
    if not pools and not per_residue:
        raise ModelInputError("pool: got none; allowed: at least one of mean, max, cls, or the vectors of residues")
    if long not in LONG:
        raise ModelInputError(f"long: got {long!r}; allowed: {', '.join(LONG)}")
    tokens = getattr(config, "max_tokens", None)
    limit = None if tokens is None else tokens - _special_tokens(config)
    if limit is not None and limit < 1:
        raise ModelInputError(f"this network takes {tokens} tokens, and none of them a residue")
    if overlap is not None and (long != "window" or limit is None):
        why = "records of any length are taken whole" if limit is None else f"long is {long!r}"
        raise ModelInputError(f"overlap: got {overlap}, but {why}; it is for networks with a limit and long='window'")
    if limit is not None and overlap is not None and not 0 <= overlap < limit:
        raise ModelInputError(f"overlap: got {overlap}; allowed: 0 to {limit - 1} residues")
    shared = (limit or 0) // 4 if overlap is None else overlap
    return Choices(read_layers(layers, config.num_hidden_layers), pools, per_residue, limit, long, shared)


def read_layers(layers: Any, depth: int) -> tuple[int, ...]:
    """Read numbers of representations, counted as fair-esm and sequence-models count them.

    Args:
        layers: see `make_choices`.
        depth: layers of the network.

    Raises:
        ModelInputError: naming what it got and what is allowed.
    """
    if isinstance(layers, str) and layers in ("last", "all"):
        return (depth,) if layers == "last" else tuple(range(depth + 1))
    given = layers.split(",") if isinstance(layers, str) else layers if isinstance(layers, Iterable) else [layers]
    found = set()
    for item in given:
        try:
            number = int(item) if isinstance(item, str) else index(item)
        except (TypeError, ValueError):
            number = depth + 1
        if isinstance(item, bool) or not -depth - 1 <= number <= depth:
            raise ModelInputError(
                f"layers: got {item!r}; allowed: last, all, or numbers from 0 (the embedding) to {depth}, and from"
                f" -{depth + 1} to -1 (the last)"
            )
        found.add(number % (depth + 1))
    if not found:
        raise ModelInputError("layers: got none; allowed: last, all, or at least one number")
    return tuple(sorted(found))


def _special_tokens(config: Any) -> int:
    return sum(getattr(config, name, None) is not None for name in ("bos_token_id", "eos_token_id"))
