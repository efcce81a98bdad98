"""Pure functions that make a tensor from a stream of its own; nothing reads or changes global random state.

Each is called with the shape and the floating-point type to make, and the stream; those of `READERS` also take the
trained values. It yields blocks, vectors that follow each other and are good until the next: to hash and write one
while it is in the cache takes half the time. What is drawn is float32, rounded to the type once. A shuffle never looks
at values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_perturb.errors import PerturbationError
from hf_perturb.perturbation import normals
from hf_perturb.perturbation.floats import Array, as_integers, cast, widened
from hf_perturb.perturbation.streams import Stream

if TYPE_CHECKING:
    from hf_perturb.perturbation.rules import Shape

_BLOCK = 1 << 18  # entries to a block, a multiple of both chunks
_CHUNK = 1 << 15  # entries at a time, which stay in the cache; even, so that no word is cut
_NETWORK = 8  # rows of up to so many are sorted by exchanges of columns
_BITS = 46  # of an entry, or of a square, in a sum: many thousands of them still fit into 63

_LARGEST = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38, "float32": 3.4028234663852886e38}


def constant(shape: Shape, dtype: np.dtype[Any], stream: Stream, *, value: float) -> Iterator[Array]:
    """Make a tensor of one value; the stream is not used."""
    for block in _blocks(shape, dtype):
        block.fill(value)
        yield block


def uniform(shape: Shape, dtype: np.dtype[Any], stream: Stream, *, bound: float) -> Iterator[Array]:
    """Draw from U(-bound, bound)."""
    # (u - 1/2) * 2 * bound for u of 24 bits: all but the last product is exact
    scale = np.float32(bound) * np.float32(2**-23)
    for block in _blocks(shape, dtype):
        for part in _parts(block):
            bits = stream.halves(part.size)
            bits >>= np.uint32(8)
            bits -= np.uint32(1 << 23)
            drawn = part if part.dtype == np.float32 else np.empty(part.size, np.float32)
            drawn[...] = bits.view(np.int32)
            drawn *= scale
            if drawn is not part:
                part[...] = cast(drawn, part.dtype)
        yield block


def normal(
    shape: Shape,
    dtype: np.dtype[Any],
    stream: Stream,
    *,
    std: float = 1.0,
    mean: float = 0.0,
    zero_row: int | None = None,
) -> Iterator[Array]:
    """Draw from N(mean, std**2), then zero one row."""
    work = np.empty((5, min(normals.CHUNK, math.prod(shape))))
    width = math.prod(shape[1:])
    first = -width if zero_row is None else zero_row * width
    for block in _blocks(shape, dtype):
        for part in _parts(block, normals.CHUNK):
            drawn = normals.normals(stream.words(part.size), work)
            drawn *= std
            drawn += mean
            part[...] = cast(cast(drawn, np.dtype(np.float32)), part.dtype)
        block[max(0, first) : max(0, first + width)] = 0
        first -= block.size
        yield block


def fill(out: Array, blocks: Iterable[Array]) -> Array:
    """Return a contiguous array, filled with the blocks of a kernel; raise a `ValueError` for another."""
    if not out.flags.c_contiguous:
        raise ValueError("an array that is not contiguous cannot be filled block by block")
    flat, done = out.reshape(-1), 0
    for block in blocks:
        flat[done : done + block.size] = block
        done += block.size
    return out


def _blocks(shape: Shape, dtype: np.dtype[Any], unit: int = 1) -> Iterator[Array]:
    """Cut a tensor that is to be made into vectors of whole units, in memory that is used again."""
    size = math.prod(shape)
    at_once = min(size, max(1, _BLOCK // unit) * unit)
    memory = np.empty(at_once, dtype)
    for start in range(0, size, max(1, at_once)):
        yield memory[: min(at_once, size - start)]


def _parts(values: Array, size: int = _CHUNK) -> Iterator[Array]:
    """Cut an array into vectors that stay in the cache."""
    flat = values.reshape(-1)
    for start in range(0, flat.size, size):
        yield flat[start : start + size]


def gaussian(shape: Shape, dtype: np.dtype[Any], stream: Stream, values: Array) -> Iterator[Array]:
    """Draw from a normal distribution with the mean and deviation of the trained values; a constant stays.

    Source: Raghu et al., "Transfusion", 2019, their "mean-var" initialisation.

    Raises:
        PerturbationError: if a value is not finite, or a draw might not be.
    """
    mean, std = _law(values)
    return iter([values.reshape(-1)]) if std == 0 else normal(shape, dtype, stream, std=std, mean=mean)


def check_moments(values: Array, low: float, high: float) -> None:
    """Raise what `gaussian` would of values with these `bounds`, which are mostly enough to tell."""
    # no deviation is more than half of what lies between the bounds
    if not (normals.LARGEST + 1) * max(-low, high) <= _largest(values.dtype):
        _law(values)


def _law(values: Array) -> tuple[float, float]:
    """Return the mean and the standard deviation to draw after values with."""
    mean, std = moments(values)
    if abs(mean) + normals.LARGEST * std > _largest(values.dtype):
        raise PerturbationError(
            f"a normal number of mean {mean:g} and deviation {std:g} may be more than its type holds; repair the base,"
            " or exclude the tensor"
        )
    return mean, std


def bounds(values: Array) -> tuple[float, float]:
    """Return the smallest and the largest of values, twice not a number if one is not, and 0 if there are none."""
    found = [(part.min(), part.max()) for part in map(widened, _parts(values))] or [(0.0, 0.0)]
    return float(np.min(found)), float(np.max(found))


def _largest(dtype: np.dtype[Any]) -> float:
    """Return the largest number that is drawn in a type; those for float64 are of float32, too."""
    return _LARGEST.get(dtype.name, _LARGEST["float32"])


def moments(values: Array) -> tuple[float, float]:
    """Return mean and standard deviation (of the population) of values, the same in whatever order they are summed.

    Sums are of integers of 46 bits: entries over the power of two above the largest, rounded, and squares of what
    deviations are over the power of two above the largest of those, rounded.

    Raises:
        PerturbationError: if a value is not finite.
    """
    low, high = bounds(values)
    if not math.isfinite(high - low):
        raise PerturbationError(
            "values that are not finite, or too far from each other, have no mean and deviation; repair the base, or"
            " exclude the tensor"
        )
    if low == high:
        return low, 0.0
    unit = math.frexp(max(-low, high))[1]
    mean = math.ldexp(sum(_sum(part, unit) for part in _doubles(values)) / values.size, unit - _BITS)
    unit = math.frexp(max(high - mean, mean - low))[1]
    squares = 0
    for part in _doubles(values):
        part -= mean
        _scale(part, -unit)
        part *= part
        squares += _sum(part, 0)
    return mean, math.ldexp(math.sqrt(math.ldexp(squares / values.size, -_BITS)), unit)


def _doubles(values: Array) -> Iterator[Array]:
    """Cut an array into vectors of float64 in memory of their own."""
    return (widened(part).astype(np.float64) for part in _parts(values, normals.CHUNK))


def _sum(part: Array, unit: int) -> int:
    """Return the sum of a vector in units of `2**(unit - _BITS)`; overwrites the vector."""
    _scale(part, _BITS - unit)
    return int(np.rint(part, out=part).astype(np.int64).sum())


def _scale(part: Array, exponent: int) -> None:
    """Multiply a vector by a power of two, in two steps, for the power may be no float64."""
    part *= math.ldexp(1.0, exponent // 2)
    part *= math.ldexp(1.0, exponent - exponent // 2)


def shuffle(shape: Shape, dtype: np.dtype[Any], stream: Stream, values: Array, *, axis: str) -> Iterator[Array]:
    """Put the entries of `values`, of any shape `(..., n)`, in another order.

    Axis `"embedding"` applies one permutation of the last dimension to every row, `"rows"` draws one for every row,
    `"outputs"` permutes the first dimension, so that whole rows change places, `"all"` permutes all entries. For a
    vector all of them are the same.

    Source: the document, "shuffle all weights along non-zero or embedding dimension" and "along all dim"; `outputs` is
    what the study's code did when that was written, from commit 67c9e90 to 5b10059.
    """
    if values.size < 2:
        yield values.reshape(-1)
        return
    # as integers: nothing can rewrite a NaN
    entries = as_integers(np.ascontiguousarray(values))
    unit = {"outputs": values.size // shape[0], "all": 1}.get(axis, shape[-1])
    rows, done = entries.reshape(-1, unit), 0
    places = None if axis == "rows" else order(shape[-1] if axis == "embedding" else len(rows), stream)
    for block in _blocks(shape, dtype, unit):
        out = as_integers(block).reshape(-1, unit)
        part = slice(done, done + len(out))
        if places is None:
            _shuffle_rows(out, stream, rows[part])
        elif axis == "embedding":
            _take(rows[part], places, out, 1)
        else:
            _take(rows, places[part], out, 0)
        done += len(out)
        yield block


def order(length: int, stream: Stream) -> Array:
    """Draw a permutation of `0 ... length - 1`: the places of words in their order, told apart by the places."""
    mask = _mask(length)
    tags = np.empty(length, np.uint64)
    for start in range(0, length, _CHUNK):
        part = tags[start : start + _CHUNK]
        np.bitwise_and(stream.words(part.size), ~mask, out=part)
        part |= np.arange(start, start + part.size, dtype=np.uint64)
    tags.sort()
    tags &= mask
    return tags.view(np.int64)


def _shuffle_rows(out: Array, stream: Stream, rows: Array) -> None:
    length = rows.shape[1]
    mask = _mask(length)
    at_once = max(1, _CHUNK // length)
    columns = np.arange(length, dtype=np.uint64)
    for start in range(0, len(rows), at_once):
        part = rows[start : start + at_once]
        tags = stream.words(part.size).reshape(part.shape)
        tags &= ~mask
        tags |= columns
        tags = _sorted_rows(tags)
        tags &= mask
        tags += np.arange(0, part.size, length, dtype=np.uint64)[:, None]
        _take(part.reshape(-1), tags.view(np.int64), out[start : start + at_once], 0)


def _sorted_rows(tags: Array) -> Array:
    """Sort every row; short ones by exchanging columns, which takes all rows at once."""
    length = tags.shape[1]
    if length > _NETWORK:
        tags.sort(axis=-1)
        return tags
    columns = [*np.ascontiguousarray(tags.T)]
    for end in range(length - 1, 0, -1):
        for i in range(end):
            low = np.minimum(columns[i], columns[i + 1])
            np.maximum(columns[i], columns[i + 1], out=columns[i + 1])
            columns[i] = low
    return np.stack(columns, axis=1)


def _mask(length: int) -> np.uint64:
    """Return the low bits of a tag, which hold a place among `length`."""
    return np.uint64((1 << max(1, (length - 1).bit_length())) - 1)


def _take(entries: Array, places: Array, out: Array, axis: int) -> None:
    # no place is out of bounds, and to look for one would cost a copy
    entries.take(places, axis=axis, out=out, mode="wrap")


KERNELS: dict[str, Callable[..., Iterator[Array]]] = {
    kernel.__name__: kernel for kernel in (constant, uniform, normal, gaussian, shuffle)
}
# those that need the trained values
READERS = ("gaussian", "shuffle")
