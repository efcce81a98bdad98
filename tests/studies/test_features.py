"""Baselines are given what their names say, and no more memory than they need."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from hf_perturb.studies.dataset import Dataset
from hf_perturb.studies.features import RESIDUES, baselines
from hf_perturb.studies.rows import rows_of
from hf_perturb.studies.splits import Fold, Split
from hf_perturb.studies.task import Task


def made_of(sequences):
    """Return the baselines of a regression of these proteins by name, and what is said of others."""
    number = np.arange(len(sequences))
    ids = tuple(map(str, number))
    dataset = Dataset(ids, tuple(sequences), Task("regression", "protein"), "y", number * 1.0, None, None, (), (), "")
    split = Split("kfold:2", (Fold(number, None, number, ()),), None, (), ())
    found, said = baselines(dataset, rows_of(dataset, split, 100, 0), None)
    return {source.name: source.features for source in found}, [line for line in said if "one-hot" in line]


def test_one_hot_has_a_column_for_each_letter_where_sequences_differ():
    found, said = made_of(["ACD", "AKD", "AKX", "ACD"])
    assert not said
    np.testing.assert_array_equal(found["one-hot"](None), [[1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]])
    assert made_of(["ACD", "ACD"])[0]["one-hot"](None).tolist() == [[0], [0]]


def test_a_one_hot_that_is_too_wide_is_never_made():
    random = np.random.default_rng(0)
    sequences = ["".join(row) for row in random.choice([*RESIDUES], (300, 1100))]
    tracemalloc.start()
    try:
        found, [said] = made_of(sequences)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "one-hot" not in found
    assert "22,000 columns; at most 20,000" in said
    assert peak < 300 * 22_000  # less than a byte for each of what there would be


@pytest.mark.parametrize("sequences", [["ACD", "AC"], ["A", "AAAA"]])
def test_sequences_of_several_lengths_have_no_one_hot(sequences):
    found, said = made_of(sequences)
    assert "one-hot" not in found
    assert said
    assert found["length"](None).ravel().tolist() == [*map(len, sequences)]
