"""Normal numbers: Wichura's PPND16 as the contract writes it, to the bit, and a normal distribution."""

from __future__ import annotations

import math
import statistics

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from support import draws

from hf_perturb.perturbation.normals import CHUNK, normals
from hf_perturb.perturbation.streams import Stream, stream_key

STEPS = 2**52  # of probability; a word's low 12 bits do not count
LAST = 2**64 - 1


def found(words: list[int]) -> list[float]:
    return normals(np.array(words, np.uint64), np.empty((5, len(words)))).tolist()


def expected(words: list[int]) -> list[float]:
    return [draws.quantile(draws.probability(word)) for word in words]


def around(p: float, steps: int = 40) -> list[int]:
    """Return the words whose probabilities are next to one, and as far from the other end."""
    middle = int(p * STEPS)
    below = [step for step in range(middle - steps, middle + steps) if 0 <= step < STEPS]
    return [step << 12 for side in (below, [STEPS - 1 - step for step in below]) for step in side]


def next_to(edge: float, inside: bool) -> float:
    """Return the largest |p - 1/2| that there is up to an edge, or the smallest beyond it."""
    steps = math.floor(edge * STEPS - 0.5)
    return (steps + 0.5 + (not inside)) / STEPS


FAR = math.exp(-25.0)  # the probability where r is 5
EDGES = {
    "ends": [0, 1, 4095, 4096, 4097, LAST, LAST - 1, LAST - 4095, LAST - 4096, 2**63, 2**63 - 1],
    "first and last": [*(step << 12 for step in range(300)), *(LAST - (step << 12) for step in range(300))],
    "middle": around(0.5),
    "where the tails begin": around(0.075),
    "where the far tails begin": around(FAR, 20_000),
    "where the mantissa is doubled": [word for e in range(2, 40) for word in around(0.7071067811865476 * 2.0**-e, 8)],
    "powers of two": [word for e in range(1, 53) for word in around(2.0**-e, 4)],
}


@pytest.mark.parametrize("edge", EDGES)
def test_an_edge_is_that_of_the_contract_to_the_bit(edge):
    assert found(EDGES[edge]) == expected(EDGES[edge])


def test_the_edges_have_words_on_both_sides():
    distances = [abs(draws.probability(word) - 0.5) for word in EDGES["where the tails begin"]]
    assert min(distances) < max(d for d in distances if d <= 0.425) == next_to(0.425, True)
    assert max(distances) > min(d for d in distances if d > 0.425) == next_to(0.425, False)
    rs = {
        math.sqrt(-draws.logarithm(min(p, 1 - p))) for p in map(draws.probability, EDGES["where the far tails begin"])
    }
    assert min(rs) < 5 < max(rs)
    assert max(r for r in rs if r <= 5) > 5 - 2e-6
    assert min(r for r in rs if r > 5) < 5 + 2e-6


@settings(deadline=None)
@given(words=st.lists(st.integers(0, LAST), min_size=1, max_size=30))
def test_any_word_is_that_of_the_contract_to_the_bit(words):
    assert found(words) == expected(words)


@settings(deadline=None)
@given(words=st.lists(st.integers(0, 51).flatmap(lambda e: st.integers(0, 2**64 >> e)), min_size=1, max_size=30))
def test_a_word_of_the_tails_is_that_of_the_contract_to_the_bit(words):
    words = [min(word, LAST) for word in words]
    words += [LAST - word for word in words]
    assert found(words) == expected(words)


def test_many_words_are_those_of_the_contract_to_the_bit():
    """More than a chunk at once, no two regions apart."""
    words = Stream(stream_key(3, "normals")).words(CHUNK + 1).tolist()
    assert found(words) == expected(words)
    one_by_one = [number for word in words[:100] for number in found([word])]
    assert one_by_one == found(words[:100])


def test_numbers_are_quantiles_to_sixteen_digits():
    """The contract's own reading against two libraries, and each number against its mirror image."""
    words = Stream(stream_key(4, "normals")).words(20_000).tolist() + EDGES["first and last"] + EDGES["powers of two"]
    standard = statistics.NormalDist()
    for word in words:
        p = draws.probability(word)
        z = draws.quantile(p)
        # the three differ by no more than the last three bits
        assert abs(z - standard.inv_cdf(p)) <= 8 * math.ulp(z)
        assert abs(z - scipy.special.ndtri(p)) <= 1e-14 * max(1, abs(z))
        assert draws.quantile(1 - p) == -z
        small = min(p, 1 - p)
        assert abs(draws.logarithm(small) - math.log(small)) <= math.ulp(math.log(small))


def test_the_largest_numbers():
    """No number is infinite: 2**-53 is 8.2 deviations away."""
    assert found([0, LAST]) == [-8.209536151601386, 8.209536151601386]


@pytest.mark.parametrize("seed", range(5))
def test_numbers_are_normally_distributed(seed):
    numbers = normals(Stream(stream_key(seed, "normals")).words(200_000), np.empty((5, 200_000)))
    assert scipy.stats.kstest(numbers, scipy.stats.norm.cdf).pvalue > 1e-3
    assert abs(scipy.stats.zscore(numbers)).max() < 6
    # deviations of mean, skewness and kurtosis of so many; four of each
    for moment, deviation in ((numbers.mean(), 1), (scipy.stats.skew(numbers), 6), (scipy.stats.kurtosis(numbers), 24)):
        assert abs(moment) < 4 * (deviation / len(numbers)) ** 0.5
    # the tails by themselves, which Kolmogorov and Smirnov hardly look at: chi-squared of how many lie beyond
    edges = [-math.inf, -4, -3.5, -3, -2.5, -2, -1, 0, 1, 2, 2.5, 3, 3.5, 4, math.inf]
    counts, _ = np.histogram(numbers, edges)
    assert scipy.stats.chisquare(counts, len(numbers) * np.diff(scipy.stats.norm.cdf(edges))).pvalue > 1e-3
