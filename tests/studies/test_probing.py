"""What is predicted of several folds is scored together, and says nothing of which fold a row is in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hf_perturb.studies.features import GUESS, Source
from hf_perturb.studies.metrics import prepare
from hf_perturb.studies.probes import PROBES
from hf_perturb.studies.probing import Probing
from hf_perturb.studies.rows import FoldRows, Rows
from hf_perturb.studies.task import Task


def rows_of(y, folds):
    """Divide rows in their order, each fold's training rows once more for inner folds."""
    made = []
    for test in np.array_split(np.arange(len(y)), folds):
        train = np.setdiff1d(np.arange(len(y)), test)
        inner = tuple((np.setdiff1d(train, held), held) for held in np.array_split(train, 3))
        made.append(FoldRows(train, None, test, inner))
    return Rows(y, np.arange(len(y)), None, tuple(made))


@pytest.mark.parametrize("folds", [1, 4])
@pytest.mark.parametrize("name", ["length", GUESS])
def test_what_finds_nothing_does_not_rank_folds(name, folds, tmp_path):
    y = np.sort(np.random.default_rng(0).normal(size=80))  # folds that are as far apart as can be
    rows = rows_of(y, 4)
    rows, lengths = replace(rows, folds=rows.folds[:folds]), np.full(80, 9)
    probing = Probing(rows, lengths, Task("regression", "protein"), PROBES["ridge"], "spearman", tmp_path, "key")
    source = Source(name, "baseline", (None,), lambda layer: np.full((80, 1), 9, np.float32))
    found = probing.run([source], lambda done, total: None)[name, None]
    assert np.ptp(found.prediction) == 0
    assert found.prediction[0] == pytest.approx(np.mean([y[fold.train].mean() for fold in rows.folds]))
    assert prepare("spearman", y[rows.test], found.prediction)()[0] == 0
