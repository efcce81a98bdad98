"""Records to batches of tokens: of like length, none computed twice, and no larger than asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_perturb.checkpoints.network import alphabet_of
from hf_perturb.embedding.fasta import Record
from hf_perturb.embedding.options import Choices


@dataclass(frozen=True)
class Unit:
    """A sequence, and the rows of its shard that have it.

    Args:
        sequence: at least one residue.
        rows: places of its records in the shard.
        windows: which residues the network sees at a time.
    """

    sequence: str
    rows: list[int]
    windows: list[tuple[int, int]]


class Encoder:
    """Sequences to tokens, as the network's tokenizer does, by a table: it has one token for each letter.

    Args:
        config: the sizes of the network, a `FairEsmConfig` or `CarpConfig` among them.
    """

    def __init__(self, config: Any):
        ends = ([getattr(config, name, None)] for name in ("bos_token_id", "eos_token_id"))
        self.begin, self.end = (torch.tensor([id_ for id_ in end if id_ is not None], dtype=torch.long) for end in ends)
        self.pad: int = config.pad_token_id
        alphabet = alphabet_of(config)
        ids = alphabet.ids
        self.table = torch.tensor([ids.get(chr(code), ids[alphabet.unk]) for code in range(128)])

    @property
    def special(self) -> int:
        """Tokens of a row that are no residues."""
        return len(self.begin) + len(self.end)

    def encode(self, sequences: Sequence[str]) -> torch.Tensor:
        """Return the tokens of sequences, padded on the right, `(batch, length)`."""
        longest = max(map(len, sequences)) + self.special
        ids = torch.full((len(sequences), longest), self.pad)
        first = len(self.begin)
        for row, sequence in zip(ids, sequences, strict=True):
            letters = torch.frombuffer(bytearray(sequence, "ascii"), dtype=torch.uint8).long()
            row[:first] = self.begin
            row[first : first + len(letters)] = self.table[letters]
            row[first + len(letters) : len(letters) + self.special] = self.end
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

    Args:
        units: of a shard.
        tokens: most tokens of a batch, padding included; a unit that has more is a batch by itself.
        special: tokens of a row that are no residues.
    """
    batch: list[Unit] = []
    rows = width = 0
    for unit in sorted(units, key=lambda unit: -len(unit.sequence)):
        more = len(unit.windows)
        wide = max(width, unit.windows[0][1] - unit.windows[0][0] + special)
        if batch and (rows + more) * wide > tokens:
            yield batch
            batch, rows, wide = [], 0, unit.windows[0][1] - unit.windows[0][0] + special
        batch.append(unit)
        rows, width = rows + more, wide
    if batch:
        yield batch
