"""Normal numbers of which every step is an exact integer or one operation of IEEE 754, so that all agree on the bits.

Source: Wichura, "Algorithm AS 241: the percentage points of the normal distribution", 1988, its PPND16.
"""

from __future__ import annotations

import numpy as np

from hf_perturb.perturbation.floats import Array

LARGEST = 8.3  # no word gives a larger one
CHUNK = 1 << 16  # numbers at a time: fewer of them cost more in calls than they save in the cache

# numerator and denominator of each region, from the highest coefficient
_CENTRAL = (
    (
        *(2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4),
        *(1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0),
    ),
    (
        *(5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4),
        *(5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0),
    ),
)
_MIDDLE = (
    (
        *(7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258e0),
        *(3.64784832476320460504e0, 5.76949722146069140550e0, 4.63033784615654529590e0, 1.42343711074968357734e0),
    ),
    (
        *(1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1),
        *(6.89767334985100004550e-1, 1.67638483018380384940e0, 2.05319162663775882187e0, 1.0),
    ),
)
_FAR = (
    (
        *(2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2),
        *(2.96560571828504891230e-1, 1.78482653991729133580e0, 5.46378491116411436990e0, 6.65790464350110377720e0),
    ),
    (
        *(2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4),
        *(1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0),
    ),
)
_LN2_HIGH, _LN2_LOW = float.fromhex("0x1.62e42fee00000p-1"), float.fromhex("0x1.a39ef35793c76p-33")
_ATANH = tuple(1 / n for n in range(21, 0, -2))


def normals(words: Array, work: Array) -> Array:
    """Return the normal number of every word, float64 of mean 0 and deviation 1, in the memory of `work`.

    Args:
        words: `(count,)` of 64 bits, at most `CHUNK`; overwritten.
        work: `(5, CHUNK)` of float64, for the results on the way: to allocate them takes a fifth of the time.
    """
    p, q, r, value, divisor = work[:, : words.size]
    np.right_shift(words, np.uint64(12), out=words)
    np.copyto(p, words, casting="unsafe")  # below 2**53, so exact
    p += 0.5
    p *= 2.0**-52
    np.subtract(p, 0.5, out=q)
    np.multiply(q, q, out=r)
    np.subtract(0.180625, r, out=r)
    _horner(_CENTRAL[0], r, value)
    value *= q
    value /= _horner(_CENTRAL[1], r, divisor)
    # r is negative beyond |q| = 0.425, and rounding moves no such q to the other side
    tails = np.flatnonzero(np.abs(q, out=r) > 0.425)
    value[tails] = _tail(p[tails], q[tails])
    return value


def _tail(p: Array, q: Array) -> Array:
    np.minimum(p, 1 - p, out=p)
    r = _minus_log(p)
    np.sqrt(r, out=r)
    far = np.flatnonzero(r > 5)
    s = r - 1.6
    value = _horner(_MIDDLE[0], s)
    value /= _horner(_MIDDLE[1], s)
    if far.size:
        s = r[far] - 5
        value[far] = _horner(_FAR[0], s) / _horner(_FAR[1], s)
    return np.copysign(value, q, out=value)


def _minus_log(p: Array) -> Array:
    """Return the negative logarithm of numbers from 2**-53 to 1/2, in memory of its own."""
    m, e = np.frexp(p)
    low = m < 0.7071067811865476
    np.multiply(m, 2, out=m, where=low)
    exponent = np.subtract(e, low, dtype=np.float64)
    s = m - 1
    m += 1
    s /= m
    series = _horner(_ATANH, np.multiply(s, s, out=m))
    s *= 2
    s *= series
    s += exponent * _LN2_LOW
    exponent *= _LN2_HIGH
    s += exponent
    return np.negative(s, out=s)


def _horner(coefficients: tuple[float, ...], x: Array, out: Array | None = None) -> Array:
    """Return a polynomial, its highest coefficient first, in memory of its own or in `out`."""
    first, second, *others = coefficients
    value: Array = np.multiply(x, first, out=out)
    value += second
    for coefficient in others:
        value *= x
        value += coefficient
    return value
