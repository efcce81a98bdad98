"""Records to batches of like length, and a batch through the network to what is kept of it, one layer at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_perturb.checkpoints.network import alphabet_of
from hf_perturb.embedding.fasta import Record
from hf_perturb.embedding.model import memory_told
from hf_perturb.embedding.options import Choices


@dataclass(frozen=True)
class Unit:
    """A sequence, the rows of its shard that have it, and which residues the network sees at a time."""

    sequence: str
    rows: list[int]
    windows: list[tuple[int, int]]


class Encoder:
    """Sequences to tokens, as the network's tokenizer does, by a table: it has one token for each character.

    Tokens that were spelt out are the characters from 1 on; see `read_records`.
    """

    def __init__(self, config: Any):
        ends = ([getattr(config, name, None)] for name in ("bos_token_id", "eos_token_id"))
        self.begin, self.end = (torch.tensor([id_ for id_ in end if id_ is not None], dtype=torch.long) for end in ends)
        self.pad: int = config.pad_token_id
        alphabet = alphabet_of(config)
        ids = alphabet.ids
        spelt = dict(enumerate(alphabet.spelt.values(), 1))
        self.table = torch.tensor([spelt.get(code, ids.get(chr(code), ids[alphabet.unk])) for code in range(128)])

    @property
    def special(self) -> int:
        """Tokens of a row that are no residues."""
        return len(self.begin) + len(self.end)

    def encode(self, sequences: Sequence[str]) -> torch.Tensor:
        """Return the tokens of sequences, padded on the right, `(batch, length)`."""
        longest = max(map(len, sequences)) + self.special
        ids = torch.full((len(sequences), longest), self.pad)
        for row, sequence in zip(ids, sequences, strict=True):
            letters = torch.frombuffer(bytearray(sequence, "ascii"), dtype=torch.uint8).long()
            row[: len(letters) + self.special] = torch.cat([self.begin, self.table[letters], self.end])
        return ids


def units_of(records: Sequence[Record], choices: Choices) -> list[Unit]:
    """Return the different sequences of a shard; records without residues have none."""
    rows: dict[str, list[int]] = {}
    for row, record in enumerate(records):
        if record.sequence:
            rows.setdefault(record.sequence, []).append(row)
    return [Unit(sequence, places, choices.windows(len(sequence))) for sequence, places in rows.items()]


def batches(units: Sequence[Unit], tokens: int, special: int) -> Iterator[list[Unit]]:
    """Put units of like length together, the longest first, so that a device that is too small says so at once.

    A batch has at most so many tokens, padding and the special ones of each row included, or is one unit by itself.
    """
    batch: list[Unit] = []
    rows = width = 0
    for unit in sorted(units, key=lambda unit: -len(unit.sequence)):
        first, last = unit.windows[0]
        if batch and (rows + len(unit.windows)) * width > tokens:
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
        By column, a float32 array a unit: `(hidden_size,)` of a pooled one, else `(residues, hidden_size)`.

    Raises:
        EmbeddingsError: if the device's memory is too small.
    """
    windows = [unit.sequence[first:last] for unit in units for first, last in unit.windows]
    at_once = max(1, tokens // (max(map(len, windows)) + encoder.special))
    # the first weights of a network that is larger than its devices are nowhere until they are needed
    device = "cpu" if model.device.type == "meta" else model.device
    kept: dict[str, list[Any]] = {}
    seen: dict[int, list[torch.Tensor]] = {layer: [] for layer in choices.layers}
    for begin in range(0, len(windows), at_once):
        part = windows[begin : begin + at_once]
        lengths = [len(window) + encoder.special for window in part]

        def visit(layer: int, values: torch.Tensor, lengths: list[int] = lengths) -> None:
            if layer in seen:
                rows = [row.float() for row in values.split(lengths)]
                # those of one long record may be too much for a device
                seen[layer] += rows if len(lengths) == len(windows) else [row.cpu() for row in rows]
                if len(seen[layer]) == len(windows):
                    kept.update(_keep(layer, units, seen.pop(layer), encoder, choices))

        size = f"{len(part)} rows of up to {max(lengths)} tokens"
        with memory_told(f"{device}, for a batch of {size}; give fewer with --tokens, or a smaller --dtype"):
            model.visit_representations(visit, encoder.encode(part).to(device), depth=choices.layers[-1])
    return kept


def _keep(
    layer: int, units: Sequence[Unit], seen: list[torch.Tensor], encoder: Encoder, choices: Choices
) -> dict[str, list[Any]]:
    """Pool one layer; `seen` has `(tokens, hidden_size)` for each window of each unit."""
    first, special = len(encoder.begin), encoder.special
    each = iter(seen)
    rows = [[next(each) for _ in unit.windows] for unit in units]
    residues = [
        _joined(unit, [row[first : len(row) - special + first] for row in windows])
        for unit, windows in zip(units, rows, strict=True)
    ]
    kept: dict[str, list[Any]] = {}
    for name, pool, number in choices.vectors:
        if number == layer:
            # windows of a sequence begin with a token each
            heads = [torch.stack([row[0] for row in windows]).mean(0) for windows in rows] if pool == "cls" else []
            pooled = torch.stack(heads or [x.mean(0) if pool == "mean" else x.amax(0) for x in residues])
            kept[name] = list(pooled.cpu().numpy())
    for name, number in choices.residues:
        if number == layer:
            kept[name] = [x.cpu().numpy() for x in residues]
    return kept


def _joined(unit: Unit, windows: list[torch.Tensor]) -> torch.Tensor:
    """Average over the windows that see a residue, `(residues, hidden_size)`."""
    if len(windows) == 1:
        return windows[0]
    length = unit.windows[-1][1]
    total, seen = windows[0].new_zeros(length, windows[0].shape[1]), windows[0].new_zeros(length, 1)
    for (first, last), values in zip(unit.windows, windows, strict=True):
        total[first:last] += values
        seen[first:last] += 1
    return total / seen
