"""Streams: the words of a tensor are Philox4x64-10 under the contract's key, and no two streams know of each other."""

from __future__ import annotations

from itertools import combinations, islice

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from support import draws

from hf_perturb.perturbation.streams import Stream, stream_key

seeds = st.integers(0, 2**63 - 1)
keys = st.one_of(st.integers(0, 2**128 - 1), st.sampled_from([0, 1, 2**64 - 1, 2**64, 2**128 - 1]))

# Random123's `kat_vectors`: counter, key, and the words of `philox4x64 10`, each lowest word first
KNOWN = [
    ("0 0 0 0", "0 0", "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"),
    (
        "ffffffffffffffff " * 4,
        "ffffffffffffffff " * 2,
        "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0",
    ),
    (
        "243f6a8885a308d3 13198a2e03707344 a4093822299f31d0 082efa98ec4e6c89",
        "452821e638d01377 be5466cf34e90c6c",
        "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6",
    ),
]


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_the_reference_gives_the_known_answers_of_philox(counter, key, expected):
    assert draws.philox(numbers(counter), numbers(key)) == numbers(expected)


@given(seed=seeds, name=st.text(max_size=40))
def test_the_key_is_named_by_seed_and_tensor(seed, name):
    assert stream_key(seed, name) == draws.key_of(seed, name) < 2**128


def test_the_first_words_in_numbers():
    """What somebody who writes the contract's algorithm anew compares with."""
    key = draws.key_of(42, "layers.0.fc1.weight")
    assert f"{key:032x}" == "fdcac86a5d3ec93f6b70843126dfcfbf"
    found = [f"{word:016x}" for word in islice(draws.words(key), 5)]
    assert found == ["5e690ad3cea84e67", "8122d9205d10c292", "62d3235f1b48b0bb", "1b5b948606d073bd", "073f96f2b36e1154"]


@settings(deadline=None)
@given(key=keys, counts=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_the_words_are_those_of_the_reference_however_they_are_asked_for(key, counts):
    stream = Stream(key)
    found = [stream.words(count) for count in counts]
    assert [len(words) for words in found] == counts
    assert {words.dtype for words in found} == {np.dtype(np.uint64)}
    assert np.concatenate(found).tolist() == list(islice(draws.words(key), sum(counts)))


@settings(deadline=None)
@given(key=keys, counts=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_each_word_gives_its_low_half_first_and_what_is_left_of_it_goes(key, counts):
    stream, reference = Stream(key), draws.words(key)
    for count in counts:
        words = list(islice(reference, (count + 1) // 2))
        expected = [half for word in words for half in (word % 2**32, word >> 32)][:count]
        assert stream.halves(count).tolist() == expected


def test_streams_of_names_and_seeds_are_not_alike():
    pairs = [(seed, f"layers.{layer}.fc1.{kind}") for seed in range(6) for layer in range(6) for kind in ("weight", "")]
    first = [tuple(Stream(stream_key(*pair)).words(2).tolist()) for pair in pairs]
    assert len({word for words in first for word in words}) == 2 * len(pairs)
    # no name and seed run together
    assert stream_key(1, "1/a") != stream_key(11, "/a") != stream_key(1, "/1/a")


def test_streams_of_tensors_and_seeds_are_not_correlated():
    """All pairs of seeds, of layers and of the two halves of a name's tensors."""
    count = 100_000
    named = [(seed, f"layers.{layer}.{kind}") for seed in (0, 1, 42) for layer in (0, 1) for kind in ("fc1", "fc2")]
    streams = np.stack([Stream(stream_key(*pair)).words(count) for pair in named]).astype(np.float64)
    # 66 pairs: |r| has the deviation 1 / sqrt(count), and 4.5 of them happen once in 2000 such tests
    correlations = np.corrcoef(streams)
    assert max(abs(correlations[pair]) for pair in combinations(range(len(named)), 2)) < 4.5 / count**0.5
    for stream in streams:
        assert max(abs(np.corrcoef(stream[lag:], stream[:-lag])[0, 1]) for lag in (1, 2, 3, 4, 8)) < 4.5 / count**0.5


def test_every_bit_of_a_word_is_even():
    count = 200_000
    words = Stream(stream_key(0, "a")).words(count)
    bits = (words[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    ones = bits.sum(axis=0, dtype=np.int64)
    assert scipy.stats.chi2.sf((4 * (ones - count / 2) ** 2 / count).sum(), 64) > 1e-3
