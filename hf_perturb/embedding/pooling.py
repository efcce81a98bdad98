"""Representations of the tokens of a batch, to residues and to vectors of its sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# rows that are added up at a time: a sum of many is rounded more
_BLOCK = 128


@dataclass(frozen=True)
class Pooling:
    """What becomes of the tokens of a batch; worked out once, for all layers.

    The tokens are those of all windows one after another, without padding, `(tokens, hidden_size)`.

    Args:
        windows: for each sequence, which of its residues the network sees at a time, as (first, after the last).
        begin: tokens that begin a window and are no residues.
        special: all that are none.
        kept: of which residues there are vectors: number of the sequence, and numbers of residues; `None` for all.
    """

    windows: Sequence[Sequence[tuple[int, int]]]
    begin: int
    special: int
    kept: Sequence[tuple[int, NDArray[np.int64]]] | None = None

    @cached_property
    def lengths(self) -> list[int]:
        """Residues of each sequence."""
        return [windows[-1][1] for windows in self.windows]

    @cached_property
    def _starts(self) -> torch.Tensor:
        """The first token of each window."""
        sizes = torch.tensor([last - first + self.special for windows in self.windows for first, last in windows])
        return sizes.cumsum(0) - sizes

    @cached_property
    def _residues(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens that are residues, in the order of these, and how many of them each residue has before it."""
        tokens, residues, before = [], [], 0
        starts = iter(self._starts.tolist())
        for windows, length in zip(self.windows, self.lengths, strict=True):
            for first, last in windows:
                tokens.append(torch.arange(last - first) + next(starts) + self.begin)
                residues.append(torch.arange(first, last) + before)
            before += length
        order, counts = torch.cat(residues).argsort(stable=True), torch.cat(residues).bincount()
        return torch.cat(tokens)[order], counts.cumsum(0) - counts

    def residues(self, values: torch.Tensor) -> torch.Tensor:
        """Leave out what is no residue, and average over the windows that see one: `(residues, hidden_size)`."""
        overlap = len(self._starts) > len(self.windows)
        if not (self.special or overlap):
            return values
        tokens, offsets = (index.to(values.device, non_blocking=True) for index in self._residues)
        if not overlap:
            return values.index_select(0, tokens)
        return torch.nn.functional.embedding_bag(tokens, values, offsets, mode="mean")

    @property
    def counts(self) -> list[int]:
        """Residues of which there are vectors: of each sequence, or of each of `kept`."""
        return self.lengths if self.kept is None else [len(numbers) for _, numbers in self.kept]

    @cached_property
    def _kept(self) -> torch.Tensor:
        """Where residues of which there are vectors are among those of all sequences."""
        before = torch.tensor([0, *self.lengths]).cumsum(0).tolist()
        return torch.cat([torch.from_numpy(numbers) + before[sequence] for sequence, numbers in self.kept or ()])

    def chosen(self, residues: torch.Tensor) -> torch.Tensor:
        """Leave out residues of which there are to be no vectors."""
        if self.kept is None:
            return residues
        return residues.index_select(0, self._kept.to(residues.device, non_blocking=True))

    def pooled(self, pool: str, values: torch.Tensor, residues: torch.Tensor) -> torch.Tensor:
        """Make one vector of each sequence, `(sequences, hidden_size)`; of the tokens that begin it for `cls`."""
        if pool != "cls":
            return pool_rows(pool, residues, self.lengths)
        # windows of a sequence begin with a token each
        heads = values.index_select(0, self._starts.to(values.device, non_blocking=True))
        return pool_rows("mean", heads, [len(windows) for windows in self.windows])


def pool_rows(pool: str, rows: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Make one row of so many each, by `mean` or `max`; what is in one does not depend on the others."""
    if not _has_segments(rows.device):
        # neighbours of one length are one call, which sums each by itself all the same
        runs = [(len([*run]), length) for length, run in groupby(lengths)]
        parts = rows.split([sequences * length for sequences, length in runs])
        each = [part.unflatten(0, run) for part, run in zip(parts, runs, strict=True)]
        return torch.cat([part.mean(1) if pool == "mean" else part.amax(1) for part in each])
    blocks = [min(_BLOCK, length - first) for length in lengths for first in range(0, length, _BLOCK)]
    for sizes in (blocks, [-(-length // _BLOCK) for length in lengths]):
        there = torch.tensor(sizes).to(rows.device, non_blocking=True)
        # unsafe: it does not look whether the lengths are right, which would be a wait
        rows = torch.segment_reduce(rows, "max" if pool == "max" else "sum", lengths=there, unsafe=True)
    if pool == "mean":
        rows = rows / torch.tensor(lengths, dtype=rows.dtype).to(rows.device, non_blocking=True).unsqueeze(-1)
    return rows


def _has_segments(device: torch.device) -> bool:
    """Whether a device pools all sequences by one call; the CPU has it too, and is slower by it."""
    return device.type in ("cuda", "xpu")
