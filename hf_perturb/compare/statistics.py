"""Statistics of two tensors side by side, a chunk at a time, in float64.

What two chunks have is added up with Chan's formula for the mean and the sum of squared deviations, so nothing is lost
to cancellation, and no tensor is ever held whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from hf_perturb.networks.weights import Region, read_region, region_of
from hf_perturb.perturbation.kernels import as_integers

CHUNK = 1 << 16  # elements: in float64 a pair fits into a core's cache, and larger buffers come from the system anew


@dataclass(frozen=True)
class Moments:
    """Moments of a set of values.

    Args:
        count: number of values.
        mean: of the values.
        deviations: sum of the squared deviations from the mean.
    """

    count: int = 0
    mean: float = 0.0
    deviations: float = 0.0

    @classmethod
    def of(cls, values: torch.Tensor) -> Moments:
        """Return the moments of a non-empty vector in float64."""
        mean = values.mean()
        centred = values - mean
        return cls(values.numel(), mean.item(), torch.dot(centred, centred).item())

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


@dataclass(frozen=True)
class PairStatistics:
    """What two sets of values have in common, element by element.

    Args:
        a: moments of the first.
        b: moments of the second.
        differing: elements that differ.
        product: sum of the products.
        squares: sum of the squared differences.
    """

    a: Moments = field(default_factory=Moments)
    b: Moments = field(default_factory=Moments)
    differing: int = 0
    product: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, a: torch.Tensor, b: torch.Tensor) -> PairStatistics:
        """Return the statistics of two vectors of one length, of any floating-point types."""
        if not a.numel():
            return cls()
        x, y = a.double(), b.double()
        difference = y - x
        return cls(
            Moments.of(x),
            Moments.of(y),
            _differing(a, b),
            torch.dot(x, y).item(),
            torch.dot(difference, difference).item(),
        )

    def __add__(self, other: PairStatistics) -> PairStatistics:
        """Return the statistics of both pairs, one after the other."""
        return PairStatistics(
            self.a + other.a,
            self.b + other.b,
            self.differing + other.differing,
            self.product + other.product,
            self.squares + other.squares,
        )

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
        # Python's min and max would take a NaN for a bound
        cosine = self.product / norms
        return math.copysign(1.0, cosine) if abs(cosine) > 1 else cosine


def _differing(a: torch.Tensor, b: torch.Tensor) -> int:
    """Count the elements that differ: by bits where the types are one, else by value, NaN for NaN."""
    if a.dtype == b.dtype:
        return int(torch.count_nonzero(as_integers(a) != as_integers(b)))
    x, y = a.double(), b.double()
    return int(torch.count_nonzero((x != y) & ~(x.isnan() & y.isnan())))


def chunks(a: torch.Tensor, b: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Read two tensors of one shape as pairs of vectors of at most `CHUNK` elements.

    Args:
        a: mapped from a file, or in memory.
        b: of the same shape, of any type.
    """
    readers = [_reader(a), _reader(b)]
    for start in range(0, a.numel(), CHUNK):
        first, second = (read(start) for read in readers)
        yield first, second


def _reader(tensor: torch.Tensor) -> Callable[[int], torch.Tensor]:
    """Return what reads a chunk from an element on; of a mapped file no page stays in memory."""
    region, width = region_of(tensor), tensor.element_size()
    if region is None:
        flat = tensor.detach().reshape(-1)
        return lambda start: flat[start : start + CHUNK]

    def read(start: int) -> torch.Tensor:
        size = min(CHUNK, tensor.numel() - start) * width
        return read_region(Region(region.path, region.begin + start * width, size)).view(tensor.dtype)

    return read
