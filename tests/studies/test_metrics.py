"""Metrics of many weightings at once are those of scikit-learn and scipy on rows that are written out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from support.plain_metrics import EXPECTED

from hf_perturb.studies.metrics import MAIN, METRICS, METRICS_OF, Truth, prepare


def check(name, truth, prediction, weights, units=None):
    known = Truth(truth, units)
    found = prepare(name, known, prediction)(weights)
    rows = weights if units is None else weights[:, units]
    expected = [EXPECTED[name](np.repeat(truth, row), np.repeat(prediction, row, axis=0)) for row in rows]
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)
    assert np.all((METRICS[name].least - 1e-9 <= found) & (found <= 1 + 1e-9))


# few different values make ties, and many zeros leave classes out
WHOLE = st.integers(-3, 3).map(float)
NUMBER = st.one_of(WHOLE, st.floats(-1e3, 1e3).map(lambda value: round(value, 3)))


@st.composite
def weighted_rows(draw, value):
    n = draw(st.integers(1, 12))
    truth, prediction = (np.array(draw(st.lists(value, min_size=n, max_size=n))) for _ in range(2))
    units = draw(st.none() | st.lists(st.integers(0, 2), min_size=n, max_size=n))
    if units is not None:
        units = np.unique(units, return_inverse=True)[1]
    wide = n if units is None else int(units.max()) + 1
    row = st.lists(st.integers(0, 3), min_size=wide, max_size=wide).filter(any)
    return truth, prediction, np.array(draw(st.lists(row, min_size=1, max_size=4))), units


@pytest.mark.parametrize("name", METRICS_OF["regression"])
@settings(deadline=None, max_examples=150)
@given(rows=weighted_rows(NUMBER))
def test_metrics_of_numbers_are_those_of_repeated_rows(name, rows):
    check(name, *rows)


@pytest.mark.parametrize("name", METRICS_OF["classes"])
@settings(deadline=None, max_examples=100)
@given(rows=weighted_rows(st.integers(0, 3)), wide=st.sampled_from([2, 4]), seed=st.integers(0, 3))
def test_metrics_of_classes_are_those_of_repeated_rows(name, rows, wide, seed):
    truth, said, weights, units = rows
    truth, said = np.minimum(truth, wide - 1), np.minimum(said, wide - 1)
    # rounded, so that rows are tied
    chances = np.random.default_rng(seed).dirichlet(np.ones(wide), len(said)).round(1) + np.eye(wide)[said]
    check(name, truth, chances, weights, units)


@pytest.mark.parametrize("name", METRICS)
def test_a_bootstrap_of_many_rows_is_exact(name):
    random = np.random.default_rng(0)
    latent = random.normal(size=3000)
    if METRICS[name].regression:
        truth, prediction = latent.round(2), (latent + random.normal(size=3000)).astype(np.float32)
    else:
        truth = np.digitize(latent, [-1, 0, 2.5])
        prediction = random.dirichlet(np.ones(4), 3000) + np.eye(4)[truth] * 0.2
    weights = random.multinomial(3000, np.full(3000, 1 / 3000), size=4)
    check(name, truth, prediction, weights.astype(np.float32).astype(int))
    scored = prepare(name, truth, prediction)
    np.testing.assert_array_equal(scored(weights), scored(weights.astype(np.float32)))
    # all rows once
    assert scored() == pytest.approx([EXPECTED[name](truth, prediction)], abs=1e-10)


@pytest.mark.parametrize("name", METRICS_OF["regression"])
@pytest.mark.parametrize("size", [1, 3])
def test_a_resample_of_equal_values_is_seen_through_rounding(name, size):
    random = np.random.default_rng(0)
    values = random.normal(-1, 1, 20)
    truth, units = np.repeat(values, 6), np.arange(120) // size
    weights = random.integers(1, 4, 120 // size) * (truth[::size] == values[:, None])
    for prediction in (truth, random.normal(size=120), np.zeros(120)):
        check(name, truth, prediction, weights, units)


@pytest.mark.parametrize("name", METRICS)
def test_networks_and_threads_share_a_block(name):
    random = np.random.default_rng(1)
    if METRICS[name].regression:
        truth, predictions = random.normal(size=4000), random.normal(size=(8, 4000))
    else:
        truth, predictions = random.integers(0, 3, 4000), random.dirichlet(np.ones(3), (8, 4000))
    weights = random.multinomial(4000, np.full(4000, 1 / 4000), size=50)
    shared = Truth(truth)
    block = shared.weighted(weights)
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda each: prepare(name, shared, each)(block), predictions)]
    np.testing.assert_array_equal(found, [prepare(name, truth, each)(weights) for each in predictions])


def test_every_kind_has_a_main_metric():
    assert all(MAIN[kind] in METRICS_OF[kind] for kind in METRICS_OF)
    assert sorted(EXPECTED) == sorted(METRICS)


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="'accuracy' is unknown; choose from spearman, r2"):
        prepare("accuracy", [0, 1], [[1, 0], [0, 1]])
