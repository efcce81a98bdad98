"""The kernels are as random as they say: draws of their laws, orders all alike, tensors and seeds apart.

Seeds are fixed, so these give the same numbers every time: a p-value below 1e-3 is no accident of the day, and there
are some hundred of them.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import scipy.stats

from hf_perturb.perturbation import kernels
from hf_perturb.perturbation.floats import Array, as_integers
from hf_perturb.perturbation.kernels import order
from hf_perturb.perturbation.streams import Stream, stream_key

LEAST = 1e-3
SEEDS = (0, 1, 2, 42, 12345)


def drawn(kernel, count: int, seed: int, name: str = "a", **arguments: float) -> Array:
    out = np.empty(count, np.float32)
    blocks = kernel(out.shape, out.dtype, Stream(stream_key(seed, name)), **arguments)
    return kernels.fill(out, blocks).astype(np.float64)


def shuffled(values: Array, axis: str, seed: int, name: str = "a") -> Array:
    out = np.empty(values.shape, values.dtype)
    blocks = kernels.shuffle(out.shape, out.dtype, Stream(stream_key(seed, name)), values, axis=axis)
    return kernels.fill(out, blocks)


def places(shape: tuple[int, ...]) -> Array:
    """Return the place of every entry in its row."""
    return np.broadcast_to(np.arange(shape[-1], dtype=np.float32), shape)


def is_even(counts: Array) -> None:
    """Check that all counts are of one chance, and not more even than chance."""
    p_value = scipy.stats.chisquare(np.asarray(counts, np.float64).reshape(-1)).pvalue
    assert LEAST < p_value < 1 - LEAST / 10


# ---- laws


@pytest.mark.parametrize("bound", [1.0, 0.0279508497])
@pytest.mark.parametrize("seed", SEEDS)
def test_uniform_is_uniform(bound, seed):
    values = drawn(kernels.uniform, 200_000, seed, bound=bound)
    assert scipy.stats.kstest(values, scipy.stats.uniform(-bound, 2 * bound).cdf).pvalue > LEAST
    assert -np.float32(bound) <= values.min() < -0.9999 * bound
    assert 0.9999 * bound < values.max() < np.float32(bound)
    # the variance of a square is 4 / 45
    assert abs(values.mean()) < 4 * bound / (3 * len(values)) ** 0.5
    assert abs((values**2).mean() / bound**2 - 1 / 3) < 4 * (4 / 45 / len(values)) ** 0.5
    # both halves of every word, and the two of one, know nothing of each other
    for half in (values[::2], values[1::2]):
        is_even(np.histogram(half, 256, (-bound, bound))[0])
    is_even(np.histogram2d(values[::2], values[1::2], 16, ((-bound, bound),) * 2)[0])


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.0, 0.02), (-3.0, 0.5)])
@pytest.mark.parametrize("seed", SEEDS)
def test_normal_is_normal(mean, std, seed):
    values = drawn(kernels.normal, 200_000, seed, mean=mean, std=std)
    assert scipy.stats.kstest(values, scipy.stats.norm(mean, std).cdf).pvalue > LEAST
    assert scipy.stats.normaltest(values).pvalue > LEAST
    is_even(np.histogram(scipy.stats.norm(mean, std).cdf(values), 256, (0, 1))[0])


@pytest.mark.parametrize("law", [scipy.stats.uniform(-1, 5), scipy.stats.expon(2, 3), scipy.stats.cauchy(0, 0.01)])
def test_gaussian_is_normal_whatever_the_values_are(law):
    values = law.ppf((np.arange(100_000) + 0.5) / 100_000).astype(np.float32)
    out = np.empty_like(values)
    kernels.fill(out, kernels.gaussian(out.shape, out.dtype, Stream(stream_key(0, "a")), values))
    wide = values.astype(np.float64)
    assert scipy.stats.kstest(out, scipy.stats.norm(wide.mean(), wide.std()).cdf).pvalue > LEAST


# ---- orders


def orders(length: int, kind: str, count: int) -> Array:
    """Return many permutations, as a kind of shuffle draws them: a stream each, or the rows of one."""
    if kind == "streams":
        return np.stack([order(length, Stream(key)) for key in map(stream_key, range(count), ["a"] * count)])
    # rows of a network of exchanges, which are those of a sort behind the same words
    return shuffled(places((count, length)), "rows", 0).astype(np.int64)


@pytest.mark.parametrize("kind", ["streams", "rows"])
@pytest.mark.parametrize("length", [2, 3, 4, 5])
def test_all_orders_are_equally_likely(length, kind):
    found = orders(length, kind, 24_000)
    codes, counts = np.unique(found @ (length ** np.arange(length)), return_counts=True)
    assert len(codes) == math.factorial(length)
    is_even(counts)
    # neighbouring rows, and streams of neighbouring seeds, know nothing of each other
    alike, chance = (found[1:] == found[:-1]).all(-1).mean(), 1 / math.factorial(length)
    assert abs(alike - chance) < 4 * (chance * (1 - chance) / len(found)) ** 0.5


def test_an_entry_goes_anywhere_in_a_row_of_1280():
    count, length = 4096, 1280
    found = orders(length, "rows", count).astype(np.int16)
    for place in (0, 1, 639, 640, 1279):
        # which entry is at a place, in cells of five: 16 a cell
        is_even(np.bincount(found[:, place] // 5, minlength=256))
        is_even(np.bincount(np.nonzero(found == place)[1] // 5, minlength=256))
    # from any eightieth of the row to any other; every row has 16 in each, so there are 79 * 79 degrees of freedom
    cells = np.zeros((80, 80), np.int64)
    np.add.at(cells, (np.broadcast_to(np.arange(length) // 16, found.shape), found // 16), 1)
    expected = found.size / cells.size
    # what is drawn is not put back, which makes the statistic larger by length / (length - 1)
    statistic = ((cells - expected) ** 2 / expected).sum() * (length - 1) / length
    assert LEAST < scipy.stats.chi2.sf(statistic, 79 * 79) < 1 - LEAST
    # no entry stays more often than chance has it: one of a row does so on average, with a variance of one
    assert abs((found == np.arange(length)).sum() / count - 1) < 4 / count**0.5


def test_an_order_of_many_has_no_trace_of_where_entries_were():
    length = 300_000
    for seed in SEEDS:
        found = order(length, Stream(stream_key(seed, "a"))).astype(np.float64)
        for lag in (0, 1, 2, 7):
            behind = np.arange(length) if lag == 0 else np.roll(found, lag)
            assert abs(np.corrcoef(found, behind)[0, 1]) < 4.5 / length**0.5
        assert scipy.stats.kstest(found[:100_000] / length, "uniform").pvalue > LEAST


@pytest.mark.parametrize("axis", ["rows", "all"])
def test_a_shuffle_leaves_no_correlation_with_what_was(axis):
    values = drawn(kernels.normal, 500 * 400, 7).astype(np.float32).reshape(500, 400)
    found = shuffled(values, axis, 0)
    assert abs(np.corrcoef(found.reshape(-1), values.reshape(-1))[0, 1]) < 4.5 / values.size**0.5
    kept = (-1,) if axis == "all" else values.shape
    assert (np.sort(as_integers(found).reshape(kept)) == np.sort(as_integers(values).reshape(kept))).all()


# ---- tensors and seeds

NAMED = [(seed, f"layers.{layer}.fc1.{kind}") for seed in (0, 1, 42) for layer in (0, 1) for kind in ("weight", "bias")]


@pytest.mark.parametrize("kind", ["uniform", "normal", "order", "rows"])
def test_tensors_and_seeds_know_nothing_of_each_other(kind):
    count, made = 40_000, []
    for seed, name in NAMED:
        if kind == "order":
            made.append(order(count, Stream(stream_key(seed, name))))
        elif kind == "rows":
            made.append(shuffled(places((count // 8, 8)), "rows", seed, name).reshape(-1))
        else:
            arguments = {"bound": 1.0} if kind == "uniform" else {}
            made.append(drawn(getattr(kernels, kind), count, seed, name, **arguments))
    correlations = np.corrcoef(np.stack(made).astype(np.float64))
    # 66 pairs, of which the largest is beyond 4.5 deviations once in 2000 times
    assert max(abs(correlations[pair]) for pair in combinations(range(len(NAMED)), 2)) < 4.5 / count**0.5
    # and the squares of deviations, which a common scale would show
    squares = np.corrcoef((np.stack(made) - np.mean(made, axis=1, keepdims=True)) ** 2)
    assert max(abs(squares[pair]) for pair in combinations(range(len(NAMED)), 2)) < 4.5 / count**0.5
