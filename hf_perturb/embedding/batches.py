"""Records to batches of like length, and a batch through the network to what is kept of it, one layer at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hf_perturb.embedding.encoder import Encoder
from hf_perturb.embedding.fasta import Record
from hf_perturb.embedding.model import memory_told
from hf_perturb.embedding.options import Choices
from hf_perturb.embedding.pooling import Pooling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Unit:
    """A sequence in pieces, the rows of its shard that have it, and which pieces the network sees at a time."""

    sequence: Sequence[Any]
    rows: list[int]
    windows: list[tuple[int, int]]
    kept: list[NDArray[np.int64]] | None = None  # of which residues each row has vectors, `None` for all


def units_of(records: Sequence[Record], choices: Choices, encoder: Encoder) -> list[Unit]:
    """Return the different sequences of a shard; records without residues have none."""
    rows: dict[str, list[int]] = {}
    for row, record in enumerate(records):
        if record.sequence:
            rows.setdefault(record.sequence, []).append(row)
    kept = [None if choices.kept is None else [choices.kept.of(records[row]) for row in each] for each in rows.values()]
    parts = zip(encoder.pieces([*rows]), rows.values(), kept, strict=True)
    return [Unit(pieces, places, choices.windows(len(pieces)), chosen) for pieces, places, chosen in parts]


def batches(units: Sequence[Unit], tokens: int, special: int, least: float = 0.0) -> Iterator[list[Unit]]:
    """Put units of like length together, the longest first, so that a device that is too small says so at once.

    A batch has at most so many tokens, padding and the special ones of each row included, or is one unit by itself. Its
    rows have at least so large a part of the tokens of the first, so that padding is no more than the rest.
    """
    batch: list[Unit] = []
    rows = width = 0
    for unit in sorted(units, key=lambda unit: -len(unit.sequence)):
        first, last = unit.windows[0]
        is_other = last - first + special < least * width
        if batch and ((rows + len(unit.windows)) * width > tokens or is_other):
            yield batch
            batch, rows = [], 0
        if not batch:  # whatever follows is no wider
            width = last - first + special
        batch.append(unit)
        rows += len(unit.windows)
    if batch:
        yield batch


def embed_batch(
    model: Any, units: Sequence[Unit], encoder: Encoder, choices: Choices, tokens: int
) -> dict[str, list[Any]]:
    """Run a batch, with at most so many tokens at a time, since a record of many windows takes several goes.

    Returns:
        By column, a float32 array a row of these units: `(hidden_size,)` of a pooled one, else `(residues,
        hidden_size)`.

    Raises:
        EmbeddingsError: if the device's memory is too small.
    """
    windows = [unit.sequence[first:last] for unit in units for first, last in unit.windows]
    at_once = max(1, tokens // (max(map(len, windows)) + encoder.special))
    # the first weights of a network that is larger than its devices are nowhere until they are needed
    device = "cpu" if model.device.type == "meta" else model.device
    chosen = [(number, each) for number, unit in enumerate(units) for each in unit.kept or ()]
    sampled = None if choices.kept is None else chosen
    pooling = Pooling([unit.windows for unit in units], len(encoder.begin), encoder.special, sampled)
    kept: dict[str, torch.Tensor] = {}
    seen: dict[int, list[torch.Tensor]] = {layer: [] for layer in choices.layers}
    for begin in range(0, len(windows), at_once):
        part = windows[begin : begin + at_once]

        def visit(layer: int, values: torch.Tensor, end: int = begin + len(part)) -> None:
            if layer in seen:
                # those of one long record may be too much for a device
                seen[layer].append(values.float() if at_once >= len(windows) else values.float().cpu())
                if end == len(windows):
                    kept.update(_keep(layer, seen.pop(layer), pooling, choices))

        size = f"{len(part)} rows of up to {max(map(len, part)) + encoder.special} tokens"
        with memory_told(f"{device}, for a batch of {size}; give fewer with --tokens, or a smaller --dtype"):
            encoder.show(model, part, visit, choices, device)
    of = [number for number, unit in enumerate(units) for _ in unit.rows]
    vectors = {name: list(kept[name].cpu().numpy()[of]) for name, _, _ in choices.vectors}
    if sampled is not None:  # each row has its own
        of = [*range(len(sampled))]
    parts = {name: kept[name].split(pooling.counts) for name, _ in choices.residues}
    return {**vectors, **{name: [each[number].numpy() for number in of] for name, each in parts.items()}}


def _keep(layer: int, seen: list[torch.Tensor], pooling: Pooling, choices: Choices) -> dict[str, torch.Tensor]:
    """Pool one layer; vectors stay where they are, so that nobody waits for them between two layers."""
    values = seen[0] if len(seen) == 1 else torch.cat(seen)
    residues = pooling.residues(values)
    kept = {name: pooling.pooled(pool, values, residues) for name, pool, number in choices.vectors if number == layer}
    # all layers of these would be too much for a device
    return kept | {name: pooling.chosen(residues).cpu() for name, number in choices.residues if number == layer}
