"""Histograms of weights that need no range: gathered over the bits in one pass, drawn up over equal bins afterwards.

The upper half of a float32 is its sign, its exponent and seven bits of its fraction. Counted by that half, values lie
in bins less than 1 % wide from the smallest to the largest that there is, whatever comes next.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

BINS = 1 << 16
_HALF = BINS // 2
_FINITE = 0x7F80  # the first upper half that is infinite
_SHOWN = 201  # an odd number of bins, so that one is about zero
_TAIL, _BULK, _SPREAD = 0.9999, 0.9, 15.0


def bit_counts(values: torch.Tensor) -> torch.Tensor:
    """Count values by the upper half of their bits in float32.

    Args:
        values: a vector of any floating-point type.

    Returns:
        `(BINS,)` counts, those of the negative values first.
    """
    upper = values.float().view(torch.int32) >> 16
    return torch.bincount(upper.add_(_HALF), minlength=BINS)


@dataclass(frozen=True)
class Histogram:
    """Counts of the weights of two networks over the same equal bins, which are symmetric about zero.

    Args:
        edges: of the bins, one more than there are of these.
        a: weights of the first in each bin.
        b: weights of the second in each bin.
        beyond_a: weights of the first outside of all bins, or not finite.
        beyond_b: weights of the second outside of all bins, or not finite.
    """

    edges: tuple[float, ...]
    a: tuple[int, ...]
    b: tuple[int, ...]
    beyond_a: int
    beyond_b: int

    @classmethod
    def of(cls, a: torch.Tensor, b: torch.Tensor) -> Histogram:
        """Draw up what `bit_counts` gathered, over a range in which the bulk of both has room.

        Args:
            a: `(BINS,)` counts of the first.
            b: `(BINS,)` counts of the second.
        """
        reach = max(_reach(a), _reach(b)) or 1.0
        edges = torch.linspace(-reach, reach, _SHOWN + 1, dtype=torch.float64)
        inside = [_between(counts, edges) for counts in (a, b)]
        beyond = [int(counts.sum() - shown.sum()) for counts, shown in zip((a, b), inside, strict=True)]
        shown_a, shown_b = (tuple(shown.tolist()) for shown in inside)
        return cls(tuple(edges.tolist()), shown_a, shown_b, *beyond)


def _sizes() -> torch.Tensor:
    """Return the smallest size of the values in each finite bin, and where the last one ends."""
    return (torch.arange(_FINITE + 1, dtype=torch.int32) << 16).view(torch.float32).double().clamp(max=3.5e38)


def _reach(counts: torch.Tensor) -> float:
    """Return a size that hardly a value exceeds; a few far away must not crowd the bulk into one bin."""
    sizes = counts[_HALF : _HALF + _FINITE] + counts[:_FINITE]
    below = sizes.cumsum(0).double()
    if not below[-1]:
        return 0.0
    edges = _sizes()[1:]
    tail, bulk = (edges[torch.searchsorted(below, below[-1] * part)].item() for part in (_TAIL, _BULK))
    if bulk == edges[0]:
        # nine in ten weights are zero, if not all: there is no bulk to make room for
        return 0.0 if tail == bulk else tail
    return min(tail, _SPREAD * bulk)


def _between(counts: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Count the values between edges; those of a bin that an edge divides are shared out as if spread evenly."""
    sizes = _sizes()
    # from the most negative to the most positive: bins of negative values run away from zero
    values = torch.cat([-sizes.flip(0), sizes[1:]])
    ordered = torch.cat([counts[:_FINITE].flip(0), counts[_HALF : _HALF + _FINITE]])
    below = torch.cat([torch.zeros(1, dtype=torch.float64), ordered.cumsum(0).double()])
    right = torch.searchsorted(values, edges).clamp(1, len(values) - 1)
    left = right - 1
    share = (edges - values[left]) / (values[right] - values[left])
    return (below[left] + share * (below[right] - below[left])).round().long().diff()
