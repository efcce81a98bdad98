"""The contract's section 5, read a second time and on its own: every draw and shuffle in plain Python numbers.

Nothing here comes from `hf_perturb/perturbation`, no step is numpy's, and each is an exact integer or one IEEE-754
operation: what a kernel must equal to the bit, at the speed of a reading. Tensors are flat lists in row-major order.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator
from fractions import Fraction

Shape = tuple[int, ...]
Words = Iterator[int]  # of 64 bits
WORD = 2**64
EDITION = "hf_perturb/2"

# ---- the stream: Salmon et al. 2011, Philox4x64 of ten rounds

_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)


def philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return the four words of a counter of four under a key of two, all of them lowest first."""
    (a, b, c, d), (one, two) = counter, key
    for _ in range(10):
        left, right = _MULTIPLIERS[0] * a, _MULTIPLIERS[1] * c
        a, b, c, d = right // WORD ^ b ^ one, right % WORD, left // WORD ^ d ^ two, left % WORD
        one, two = (one + _WEYL[0]) % WORD, (two + _WEYL[1]) % WORD
    return a, b, c, d


def key_of(seed: int, name: str) -> int:
    """Return K, the 128 bits that name the stream of a tensor."""
    return int.from_bytes(hashlib.sha256(f"{EDITION}/{seed}/{name}".encode()).digest()[:16], "big")


def words(key: int) -> Words:
    """Give the words of a stream from the first; the counter, 256 bits of it, begins at 1."""
    count = 0
    while True:
        count += 1
        yield from philox(tuple(count >> shift & WORD - 1 for shift in (0, 64, 128, 192)), (key % WORD, key >> 64))


# ---- floating-point types: binary digits, exponent of the smallest step, exponent that is too large

_TYPES = {"float16": (11, -24, 16), "bfloat16": (8, -133, 128), "float32": (24, -149, 128)}


def rounded(value: float, dtype: str) -> float:
    """Return the nearest number of a type, of two as near the even one."""
    if dtype == "float64" or not math.isfinite(value) or value == 0:
        return value
    digits, lowest, limit = _TYPES[dtype]
    step = max(math.frexp(value)[1] - digits, lowest)
    # Python rounds a float to the nearest integer exactly, and halves to even
    nearest = math.ldexp(float(round(math.ldexp(value, -step))), step)
    return math.copysign(math.inf if abs(nearest) >= math.ldexp(1.0, limit) else nearest, value)


def encoded(values: list[float], dtype: str) -> bytes:
    """Return the little-endian bytes of draws, which are float32, as a type holds them."""
    values = [rounded(value, dtype) for value in values]
    if dtype == "bfloat16":
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return struct.pack(f"<{len(values)}{ {'float16': 'e', 'float32': 'f', 'float64': 'd'}[dtype] }", *values)


# ---- uniform


def uniform(stream: Words, count: int, bound: float) -> list[float]:
    """Draw U(-bound, bound): each word gives its low half and then its high one."""
    width, values = 2 * rounded(bound, "float32"), []
    while len(values) < count:
        word = next(stream)
        for half in (word % 2**32, word >> 32):
            # 24 bits times 24 bits: exact until it is rounded
            values.append(rounded(((half >> 8) * 2.0**-24 - 0.5) * width, "float32"))
    return values[:count]


# ---- normal: Wichura 1988, Algorithm AS241, PPND16; coefficients from the highest power to the constant

_CENTRAL = (
    "2509.0809287301226727 33430.575583588128105 67265.770927008700853 45921.953931549871457"
    " 13731.693765509461125 1971.5909503065514427 133.14166789178437745 3.3871328727963666080",
    "5226.4952788528545610 28729.085735721942674 39307.895800092710610 21213.794301586595867"
    " 5394.1960214247511077 687.18700749205790830 42.313330701600911252 1",
)
_MIDDLE = (
    "7.74545014278341407640e-4 0.0227238449892691845833 0.241780725177450611770 1.27045825245236838258"
    " 3.64784832476320460504 5.76949722146069140550 4.63033784615654529590 1.42343711074968357734",
    "1.05075007164441684324e-9 5.47593808499534494600e-4 0.0151986665636164571966 0.148103976427480074590"
    " 0.689767334985100004550 1.67638483018380384940 2.05319162663775882187 1",
)
_FAR = (
    "2.01033439929228813265e-7 2.71155556874348757815e-5 0.00124266094738807843860 0.0265321895265761230930"
    " 0.296560571828504891230 1.78482653991729133580 5.46378491116411436990 6.65790464350110377720",
    "2.04426310338993978564e-15 1.42151175831644588870e-7 1.84631831751005468180e-5 7.86869131145613259100e-4"
    " 0.0148753612908506148525 0.136929880922735805310 0.599832206555887937690 1",
)
CENTRAL, MIDDLE, FAR = (
    tuple(tuple(map(float, text.split())) for text in region) for region in (_CENTRAL, _MIDDLE, _FAR)
)
_LN2 = (float.fromhex("0x1.62e42fee00000p-1"), float.fromhex("0x1.a39ef35793c76p-33"))


def _polynomial(coefficients: tuple[float, ...], x: float) -> float:
    value = coefficients[0]
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


def logarithm(x: float) -> float:
    """Return the natural logarithm of a number above 0, as the contract works it out."""
    mantissa, exponent = math.frexp(x)
    if mantissa < 0.7071067811865476:
        mantissa, exponent = 2 * mantissa, exponent - 1
    s = (mantissa - 1) / (mantissa + 1)
    series = 2 * s * _polynomial(tuple(1 / (2 * k + 1) for k in reversed(range(11))), s * s)
    # the contract leaves it open how the three are added: the small ones first
    return exponent * _LN2[0] + (series + exponent * _LN2[1])


def probability(word: int) -> float:
    """Return the probability that a word stands for, the middle of one of 2**52 equal parts."""
    return ((word >> 12) + 0.5) * 2.0**-52


def quantile(p: float) -> float:
    """Return where the standard normal distribution reaches a probability."""
    q = p - 0.5
    if abs(q) <= 0.425:
        r = 0.180625 - q * q
        return q * _polynomial(CENTRAL[0], r) / _polynomial(CENTRAL[1], r)
    r = math.sqrt(-logarithm(min(p, 1 - p)))
    (top, bottom), r = (FAR, r - 5) if r > 5 else (MIDDLE, r - 1.6)
    return math.copysign(_polynomial(top, r) / _polynomial(bottom, r), q)


def normal(stream: Words, count: int, mean: float = 0.0, std: float = 1.0) -> list[float]:
    """Draw a normal distribution: a word each."""
    return [rounded(mean + std * quantile(probability(next(stream))), "float32") for _ in range(count)]


# ---- orders and axes


def order(tags: list[int]) -> list[int]:
    """Return the order that as many words say: each with its low bits replaced by its place, sorted."""
    low = 2 ** max(1, (len(tags) - 1).bit_length())
    return [tag % low for tag in sorted(tag - tag % low + place for place, tag in enumerate(tags))]


def places(stream: Words, shape: Shape, axis: str) -> list[int]:
    """Return, for every place of a shuffled tensor, from which place its entry comes."""
    total, length = math.prod(shape), shape[-1]

    def drawn(count: int) -> list[int]:
        return order([next(stream) for _ in range(count)])

    if axis == "all":
        return drawn(total)
    if axis == "outputs":
        size = total // shape[0]
        return [row * size + entry for row in drawn(shape[0]) for entry in range(size)]
    if axis == "rows":
        return [start + entry for start in range(0, total, length) for entry in drawn(length)]
    columns = drawn(length)
    return [start + column for start in range(0, total, length) for column in columns]


# ---- a tensor's own normal distribution


def moments(values: list[float]) -> tuple[float, float]:
    """Return mean and standard deviation of the population of values that are not all the same.

    The contract says that sums are of integers, and leaves open of which: values, then deviations, are scaled by the
    power of two that bounds the largest of them, and they and the squares rounded to 46 binary places.
    """
    unit = _bound(values)
    mean = math.ldexp(_mean([math.ldexp(value, -unit) for value in values]), unit)
    deviations = [value - mean for value in values]
    unit = _bound(deviations)
    return mean, math.ldexp(math.sqrt(_mean([math.ldexp(value, -unit) ** 2 for value in deviations])), unit)


def _bound(values: list[float]) -> int:
    return max(math.frexp(value)[1] for value in values if value)


def _mean(values: list[float]) -> float:
    total = sum(round(math.ldexp(value, 46)) for value in values)
    return math.ldexp(float(Fraction(total, len(values))), -46)


def gaussian(stream: Words, values: list[float]) -> list[float]:
    """Draw a tensor anew with the mean and deviation of its values; a constant one stays."""
    if len(set(values)) == 1:
        return values
    return normal(stream, len(values), *moments(values))


# ---- bounds and deviations, from the shape of a tensor and of the weight beside it


def xavier_std(shape: Shape, gain: float = 1.0) -> float:
    """Return the deviation of Glorot's initialiser; an output's fan is its rows, an input's the rest, with the taps."""
    taps = math.prod(shape[2:])
    return gain * math.sqrt(2.0 / (shape[1] * taps + shape[0] * taps))


def xavier_bound(shape: Shape, gain: float = 1.0) -> float:
    """Return the bound of the uniform distribution with that deviation."""
    return math.sqrt(3.0) * xavier_std(shape, gain)


def kaiming_bound(shape: Shape) -> float:
    """Return the bound of He's initialiser with `a=sqrt(5)`."""
    return math.sqrt(3.0) * (math.sqrt(2.0 / (1 + math.sqrt(5) ** 2)) / math.sqrt(shape[1] * math.prod(shape[2:])))


def fan_in_bound(weight: Shape) -> float:
    """Return the bound of a bias beside a weight."""
    return 1 / math.sqrt(math.prod(weight[1:]))
