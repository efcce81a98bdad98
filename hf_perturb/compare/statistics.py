"""What two sets of values have in common, element by element, as numbers and as histograms."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from threading import local
from typing import Any

import numpy as np

from hf_perturb.perturbation.floats import Array, as_integers, widened

BINS = 201  # odd, so that one is about zero
_TAIL, _BULK, _SPREAD = 0.9999, 0.9, 15.0
_NO_SPREAD = 1e-13  # of the norm: less is what rounding leaves of equal values
_ROW = 8192  # elements of a dot product, for which no BLAS starts threads of its own
_kept = local()


def _buffers(size: int) -> Array:
    """Return float64 vectors of a size, `(3, size)`; a thread keeps them, for new memory costs more than a sum."""
    if getattr(_kept, "buffers", np.empty((3, 0))).shape[1] < size:
        _kept.buffers = np.empty((3, size))
    found: Array = _kept.buffers[:, :size]
    return found


def _double(values: Array, out: Array) -> Array:
    np.copyto(out, widened(values))
    return out


def _dot(a: Array, b: Array) -> float:
    rows = a.size // _ROW * _ROW
    whole = np.vecdot(a[:rows].reshape(-1, _ROW), b[:rows].reshape(-1, _ROW)).sum()
    return float(whole + np.dot(a[rows:], b[rows:]))


@dataclass(frozen=True)
class Moments:
    """Moments of a set of values.

    Args:
        count: number of values.
        mean: of the values.
        deviations: sum of the squared deviations from the mean; a sum of squares would cancel where the mean is large.
    """

    count: int = 0
    mean: float = 0.0
    deviations: float = 0.0

    @classmethod
    def centring(cls, values: Array) -> Moments:
        """Return the moments of a non-empty vector in float64, and leave its deviations from its mean in it."""
        mean = float(values.sum()) / values.size
        values -= mean
        return cls(values.size, mean, _dot(values, values))

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of both sets together. Source: Chan, Golub and LeVeque, 1979."""
        if not self.count:
            return other
        count, step = self.count + other.count, other.mean - self.mean
        deviations = self.deviations + other.deviations + step * step * (self.count * other.count / count)
        return Moments(count, self.mean + step * (other.count / count), deviations)

    @property
    def std(self) -> float:
        """The standard deviation of the values, which are all there are, so over their number, not one less."""
        return math.sqrt(self.deviations / self.count) if self.count else math.nan

    @property
    def norm(self) -> float:
        """The Euclidean norm; both terms are positive, so nothing cancels."""
        return math.sqrt(self.deviations + self.count * self.mean * self.mean)

    @property
    def spread(self) -> float:
        """The sum of the squared deviations, 0 for what is constant but for rounding."""
        return 0.0 if self.deviations <= (_NO_SPREAD * self.norm) ** 2 else self.deviations


@dataclass(frozen=True)
class Likeness:
    """How much of some tensors is left in others; the sum of two is that of both pairs of tensors.

    Each tensor is taken about its own mean, which a shuffle keeps: a norm's gains are all near 1, so that of them alone
    the deviations say which is which.

    Args:
        spread_a: sum of the squared deviations of the first from their tensor's mean.
        spread_b: the same of the second.
        shared: sum of the products of both deviations.
        squares: sum of the squared differences, those of the means among them.
    """

    spread_a: float = 0.0
    spread_b: float = 0.0
    shared: float = 0.0
    squares: float = 0.0

    def __add__(self, other: Likeness) -> Likeness:
        spreads = self.spread_a + other.spread_a, self.spread_b + other.spread_b
        return Likeness(*spreads, self.shared + other.shared, self.squares + other.squares)

    @property
    def correlation(self) -> float:
        """Pearson's: 1 for the same values, about 0 for unrelated ones and where one side alone is constant."""
        if self.squares == 0:
            return 1.0  # to the last digit, which the division does not promise
        spreads = math.sqrt(self.spread_a) * math.sqrt(self.spread_b)
        if spreads == 0:
            return math.nan if self.spread_a == self.spread_b else 0.0
        return _in_range(self.shared / spreads)

    @property
    def distance(self) -> float:
        """The root mean square of `b - a` in standard deviations of `a`: `sqrt(2)` for unrelated values as spread."""
        if self.squares == 0:
            return 0.0
        return math.sqrt(self.squares / self.spread_a) if self.spread_a else math.nan

    def to_dict(self) -> dict[str, float | None]:
        """Return JSON-ready data, `None` for what is not a number."""
        numbers = {"standardized_distance": self.distance, "correlation": self.correlation}
        return {key: value if math.isfinite(value) else None for key, value in numbers.items()}


def _in_range(cosine: float) -> float:
    # Python's min and max would take a NaN for a bound
    return math.copysign(1.0, cosine) if abs(cosine) > 1 else cosine


@dataclass(frozen=True)
class PairStatistics:
    """What two sets of values have in common; the sum of two is that of both pairs, one after the other.

    Args:
        a: moments of the first.
        b: moments of the second.
        differing: elements that differ.
        shared: sum of the products of their deviations from their means.
        squares: sum of the squared differences.
    """

    a: Moments = Moments()
    b: Moments = Moments()
    differing: int = 0
    shared: float = 0.0
    squares: float = 0.0

    @classmethod
    @np.errstate(all="ignore")
    def of(cls, a: Array, b: Array) -> PairStatistics:
        """Return the statistics of two vectors of one length, not 0, of any floating-point types."""
        x, y, change = _buffers(a.size)
        _double(a, x)
        if a.dtype == b.dtype:
            differing = int(np.count_nonzero(as_integers(a) != as_integers(b)))
            if not differing:
                one = Moments.centring(x)
                # what is no number differs from itself by no number
                return cls(one, one, 0, one.deviations, math.nan if math.isnan(one.deviations) else 0.0)
            _double(b, y)
        else:
            _double(b, y)
            differing = int(np.count_nonzero((x != y) & ~(np.isnan(x) & np.isnan(y))))
        squares = _dot(np.subtract(y, x, out=change), change)
        one, other = Moments.centring(x), Moments.centring(y)
        return cls(one, other, differing, _dot(x, y), squares)

    def __add__(self, other: PairStatistics) -> PairStatistics:
        a, b = self.a + other.a, self.b + other.b
        shared = self.shared + other.shared
        if self.elements and other.elements:
            # as in `Moments`, whose counts are the same on both sides
            steps = (other.a.mean - self.a.mean) * (other.b.mean - self.b.mean)
            shared += steps * (self.elements * other.elements / a.count)
        return PairStatistics(a, b, self.differing + other.differing, shared, self.squares + other.squares)

    @property
    def elements(self) -> int:
        """Number of elements of either."""
        return self.a.count

    @property
    def distance(self) -> float:
        """The relative distance `||b - a|| / ||a||`: 0 where both are zero, not a number where only `a` is."""
        distance, norm = math.sqrt(self.squares), self.a.norm
        if norm == 0:
            return 0.0 if distance == 0 else math.nan
        return distance / norm

    @property
    def cosine(self) -> float:
        """The cosine of the angle between them, not a number where one is zero."""
        norms = self.a.norm * self.b.norm
        if norms == 0:
            return math.nan
        if self.squares == 0:
            return 1.0  # to the last digit, which the division does not promise
        return _in_range((self.shared + self.elements * self.a.mean * self.b.mean) / norms)

    @property
    def likeness(self) -> Likeness:
        """The same where the two sets are one tensor each."""
        return Likeness(self.a.spread, self.b.spread, self.shared, self.squares)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data, `None` for what is not a number and for the statistics of no elements."""
        numbers: dict[str, float] = {"differing": self.differing}
        for what in ("mean", "std", "norm"):
            numbers |= {f"{what}_a": getattr(self.a, what), f"{what}_b": getattr(self.b, what)}
        numbers |= {"relative_distance": self.distance, "cosine": self.cosine}
        return {key: value if self.elements and math.isfinite(value) else None for key, value in numbers.items()}


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
    def of(cls, width: float, a: Array, b: Array) -> Histogram:
        """Draw up what `bin_counts` counted over bins of this width."""
        edges = tuple(width * (edge - BINS / 2) for edge in range(BINS + 1))
        (below_a, *shown_a, above_a), (below_b, *shown_b, above_b) = a.tolist(), b.tolist()
        return cls(edges, tuple(shown_a), tuple(shown_b), below_a + above_a, below_b + above_b)


def bin_width(samples: Iterable[Array]) -> float:
    """Return the width of `BINS` equal bins about zero in which all but a few of the values of each sample lie.

    Weights of networks differ by orders of magnitude, so a sample says how far the bins reach: to all but one in ten
    thousand values, so that layer-norm gains near 1 are seen beside weights of 0.02, but no farther than 15 times what
    nine in ten values stay below, so that outliers do not crowd the others into one bin.
    """
    reaches = [0.0]
    for sample in samples:
        sizes = np.sort(np.abs(sample[np.isfinite(sample)]))
        if count := len(sizes):
            tail, bulk = (float(sizes[math.ceil(part * count) - 1]) for part in (_TAIL, _BULK))
            # no bulk to make room for where nine in ten values are zero
            reaches.append(min(tail, _SPREAD * bulk) if bulk else tail)
    # the farthest value is in the middle of the last bin
    return (max(reaches) or 1.0) / (BINS // 2)


@np.errstate(all="ignore")
def bin_counts(values: Array, width: float) -> Array:
    """Count values over `BINS` bins of a width, `(BINS + 2,)`: what is beyond them comes first and last."""
    bins = _double(values, _buffers(values.size)[0])
    bins /= width
    bins += BINS / 2 + 1
    np.clip(bins, 0, BINS + 1, out=bins)
    if math.isnan(bins.min()):  # counts as beyond
        bins[np.isnan(bins)] = 0
    return np.bincount(bins.astype(np.uint8), minlength=BINS + 2)
