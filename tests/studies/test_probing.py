"""What is predicted of several folds is scored together, and says nothing of which fold a row is in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hf_perturb.studies.features import GUESS, Source
from hf_perturb.studies.metrics import prepare
from hf_perturb.studies.probes import DEFAULT, PROBES
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
@pytest.mark.parametrize(("kind", "metric", "nothing"), [("regression", "spearman", 0), ("binary", "auroc", 0.5)])
def test_what_finds_nothing_does_not_rank_folds(kind, metric, nothing, name, folds, tmp_path):
    y = np.sort(np.random.default_rng(0).normal(size=80))  # folds that are as far apart as can be
    y = (y > 0).astype(int) if kind == "binary" else y
    task = Task(kind, "protein", ("a", "b") if kind == "binary" else ())
    rows, lengths = replace(rows_of(y, 4), folds=rows_of(y, 4).folds[:folds]), np.full(80, 9)
    probing = Probing(rows, lengths, task, PROBES[DEFAULT[kind]], metric, tmp_path, "key")
    source = Source(name, "baseline", (None,), lambda layer: np.full((80, 1), 9, np.float32))
    said = probing.run([source], lambda done, total: None)[name, None].prediction
    assert not np.ptp(said, axis=0).any()
    expected = [np.eye(2)[y[fold.train]] if kind == "binary" else y[fold.train] for fold in rows.folds]
    np.testing.assert_allclose(said[0], np.mean([each.mean(axis=0) for each in expected], axis=0), atol=1e-9)
    assert prepare(metric, y[rows.test], said)()[0] == nothing
