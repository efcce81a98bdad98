"""Rows are resampled with all that is right or wrong together with them."""

from __future__ import annotations

import numpy as np
import pytest

from hf_perturb.errors import StudyError
from hf_perturb.studies.dataset import Dataset
from hf_perturb.studies.rows import rows_of, units_of
from hf_perturb.studies.splits import Fold, Split
from hf_perturb.studies.task import Task

SEQUENCES = ("AC", "KK", "AC", "GG", "KK")


@pytest.mark.parametrize(
    ("clusters", "expected"), [(None, ["b", "d", "a", "a"]), (("x", "x", "y", "y", "z"), ["x", "y", "x", "y"])]
)
def test_identical_proteins_are_resampled_together_where_there_are_no_clusters(clusters, expected):
    values = np.arange(5.0)
    dataset = Dataset((*"abcde",), SEQUENCES, Task("regression", "protein"), "y", values, None, clusters, (), (), "")
    folds = (Fold(np.array([0, 2, 4]), None, np.array([3, 1]), ()), Fold(np.array([1, 3]), None, np.array([2, 0]), ()))
    split = Split("kfold:2", folds, clusters, (), ())
    assert units_of(dataset, split, rows_of(dataset, split, 100, 0)).tolist() == expected


def test_residues_are_resampled_with_their_protein():
    values = tuple(np.array([number % 2, 1 - number % 2, -1]) for number in range(3))
    dataset = Dataset(
        (*"abc",), ("ACD", "KKK", "ACD"), Task("binary", "residue", ("0", "1")), "y", values, None, None, (), (), ""
    )
    split = Split("column", (Fold(np.array([0]), None, np.array([1, 2]), ()),), None, (), ())
    assert units_of(dataset, split, rows_of(dataset, split, 100, 0)).tolist() == ["b", "b", "a", "a"]


def test_a_sample_of_which_all_have_one_label_is_refused():
    values = tuple(np.repeat([0, 1], [59, 1]) for _ in range(6))
    nothing = (None, None, (), (), "")
    dataset = Dataset((*"abcdef",), ("A" * 60,) * 6, Task("binary", "residue", ("0", "1")), "y", values, *nothing)
    split = Split("column", (Fold(np.array([0, 1, 2]), None, np.array([3, 4, 5]), ()),), None, (), ())
    with pytest.raises(
        StudyError, match=r"at most 6 residues, the 6 training ones that were sampled all have the same"
    ):
        rows_of(dataset, split, 6, 0)
    assert len(rows_of(dataset, split, 180, 0).test) == 180
