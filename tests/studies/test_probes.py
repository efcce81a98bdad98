"""Probes are those of scikit-learn, and strengths are chosen on rows that a probe has not seen."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge as TheirRidge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hf_perturb.errors import StudyError
from hf_perturb.studies import logistic
from hf_perturb.studies.metrics import prepare
from hf_perturb.studies.probes import PROBES, Logistic, Neighbours, Ridge, choose
from hf_perturb.studies.task import Task


def features(n, p, seed=0):
    """Rows of which the columns depend on one another, differ in scale and are far from 0, as those of a network."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(n, p)) * np.geomspace(1, 1e-2, p) @ random.normal(size=(p, p))
    mixed = mixed * random.uniform(0.1, 10, p) + random.normal(0, 20, p)
    mixed[:, -1] = 0.1  # says nothing
    return mixed


def labels(x, classes, seed=1):
    """Classes, most rows of the first one."""
    random = np.random.default_rng(seed)
    standard = StandardScaler().fit_transform(x)
    latent = standard @ random.normal(size=(x.shape[1], classes)) / 3 - 1.5 * np.arange(classes)
    return (latent + random.gumbel(size=latent.shape)).argmax(axis=1)


@pytest.mark.parametrize(("n", "p"), [(120, 8), (40, 90), (30, 30)])
@pytest.mark.parametrize("targets", [(), (3,)])
def test_ridge_is_that_of_scikit_learn(n, p, targets):
    x, new = features(n, p), features(50, p, seed=5)
    y = np.random.default_rng(2).normal(3, 2, (n, *targets)) + x[:, :1].reshape(n, *[1 for _ in targets])
    fitted = Ridge().fit(x, y)
    for number, alpha in enumerate(Ridge().strengths):
        expected = make_pipeline(StandardScaler(), TheirRidge(alpha)).fit(x, y).predict(new)
        np.testing.assert_allclose(fitted.predict(new, number), expected, rtol=1e-8, atol=1e-8 * np.ptp(expected))


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(("n", "p"), [(400, 10), (60, 90)])
def test_logistic_is_that_of_scikit_learn(n, p, classes):
    x, new = features(n, p), features(50, p, seed=5)
    y = labels(x, classes)
    assert len({*y}) == classes
    fitted = Logistic().fit(x, y, classes)
    assert not fitted.warnings
    for number, strength in enumerate(Logistic().strengths):
        theirs = LogisticRegression(C=1 / strength, tol=1e-9, max_iter=100_000)
        expected = make_pipeline(StandardScaler(), theirs).fit(x, y).predict_proba(new)
        # of a weak penalty on few rows the optimum is flat, for both
        np.testing.assert_allclose(fitted.predict(new, number), expected, atol=1e-5 if strength >= 1 else 2e-4)


@pytest.mark.parametrize("classes", [0, 3])
def test_neighbours_are_those_of_scikit_learn(classes):
    x, new = features(80, 6), features(50, 6, seed=5)
    y = labels(x, 3) if classes else x[:, 0]
    fitted = Neighbours().fit(x, y, classes)
    for number, count in enumerate(Neighbours().strengths):
        theirs = (KNeighborsClassifier if classes else KNeighborsRegressor)(min(int(count), 80))
        made = make_pipeline(StandardScaler(), theirs).fit(x, y)
        expected = made.predict_proba(new) if classes else made.predict(new)
        np.testing.assert_allclose(fitted.predict(new, number), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["logistic", "knn"])
@pytest.mark.parametrize("present", [[1], [0, 2], [0, 1, 3]])
def test_a_class_that_no_training_row_has_is_never_expected(name, present):
    x = features(60, 5)
    y = np.array(present)[np.arange(60) % len(present)]
    for chances in PROBES[name].fit(x, y, 4).path(x):
        assert chances.shape == (60, 4)
        np.testing.assert_allclose(chances.sum(axis=1), 1)
        assert not chances[:, [each for each in range(4) if each not in present]].any()


@pytest.mark.parametrize("name", PROBES)
def test_float32_is_probed_as_float64(name):
    x = features(60, 12).astype(np.float32)
    y = labels(x, 2) if name == "logistic" else x[:, 0]
    classes = 2 * (name == "logistic")
    narrow, wide = ([*PROBES[name].fit(each, y, classes).path(each)] for each in (x, x.astype(float)))
    np.testing.assert_array_equal(narrow, wide)


@pytest.mark.parametrize("name", PROBES)
def test_all_strengths_are_those_that_are_fitted_alone(name):
    x = features(60, 12)
    y = labels(x, 3) if name == "logistic" else x[:, 0]
    classes = 3 * (name == "logistic")
    path = [*PROBES[name].fit(x, y, classes).path(x)]
    assert len(path) == len(PROBES[name].strengths)
    for number in range(len(path)):
        alone = PROBES[name].fit(x, y, classes).predict(x, number)
        np.testing.assert_allclose(alone, path[number], rtol=1e-12)


def test_what_is_not_fitted_in_time_is_a_warning(monkeypatch):
    monkeypatch.setattr(logistic, "ITERATIONS", 2)
    x = features(200, 10)
    fitted = Logistic((100.0, 10.0)).fit(x, labels(x, 3), 3)
    assert not fitted.warnings
    fitted.predict(x, 1)
    warnings = fitted.warnings
    assert "strength 10 was not fitted in 2 steps: gradient" in warnings[-1]


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_representations_that_are_no_numbers_are_refused(name, wrong):
    x, y = features(30, 4).astype(np.float32), np.arange(30) % 2
    fitted = PROBES[name].fit(x, y, 2 * (name == "logistic"))
    x[[3, 5], 1] = wrong
    for tried in (lambda x: next(fitted.path(x)), lambda x: PROBES[name].fit(x, y, 2 * (name == "logistic"))):
        with pytest.raises(StudyError, match="2 of 30 representations hold NaN or infinity"):
            tried(x)


# ---- choosing

NUMBERS = Task("regression", "protein")
CLASSES = Task("classes", "protein", ("a", "b", "c"))


def fold(train, validation=None, inner=()):
    return SimpleNamespace(train=train, validation=validation, inner=inner)


def noisy(n=300, p=40):
    x = features(n, p)
    return x, StandardScaler().fit_transform(x)[:, :3].sum(axis=1) + np.random.default_rng(3).normal(0, 3, n)


def test_the_strength_is_that_which_is_best_on_validation_rows():
    x, y = noisy()
    train, validation = np.arange(0, 200), np.arange(200, 300)
    found = choose(Ridge(), lambda rows: x[rows], y, fold(train, validation), "spearman", NUMBERS)
    scores = []
    for alpha in Ridge().strengths:
        made = make_pipeline(StandardScaler(), TheirRidge(alpha)).fit(x[train], y[train])
        scores.append(prepare("spearman", y[validation], made.predict(x[validation]))()[0])
    np.testing.assert_allclose(found.curve, scores, atol=1e-12)
    assert found.strength == np.argmax(scores)
    assert found.score == max(found.curve)
    # and it was not fitted to those rows
    np.testing.assert_array_equal(found.predict(x), Ridge().fit(x[train], y[train]).predict(x, found.strength))


@pytest.mark.parametrize("kind", ["numbers", "classes"])
def test_inner_folds_are_scored_together_and_all_training_rows_fitted(kind):
    x, y = noisy()
    probe, metric, task = (Ridge(), "r2", NUMBERS) if kind == "numbers" else (Logistic(), "mcc", CLASSES)
    classes = len(task.classes)
    y = y if kind == "numbers" else np.digitize(y, [-1, 3])
    train = np.arange(0, 240)
    inner = [(train[train % 3 != each], train[train % 3 == each]) for each in range(3)]
    found = choose(probe, x, y, fold(train, inner=inner), metric, task)
    held = [np.zeros((240, *[classes][: classes > 0])) for _ in probe.strengths]
    for fitted_to, out in inner:
        for number, predicted in enumerate(probe.fit(x[fitted_to], y[fitted_to], classes).path(x[out])):
            if classes:
                seen = np.bincount(y[fitted_to], minlength=3) / len(fitted_to)
                predicted *= np.bincount(y[train], minlength=3) / len(train) / seen
                predicted /= predicted.sum(axis=1, keepdims=True)
            else:
                predicted += y[train].mean() - y[fitted_to].mean()
            held[number][out] = predicted
    curve = [prepare(metric, y[train], each)()[0] for each in held]
    np.testing.assert_allclose(found.curve, curve[: len(found.curve)], atol=1e-12)
    assert found.strength == np.argmax(curve)
    expected = probe.fit(x[train], y[train], classes).predict(x, found.strength)
    np.testing.assert_allclose(found.predict(x), expected, rtol=1e-12)


def test_no_weaker_logistic_probe_is_fitted_once_two_in_a_row_were_no_better():
    x, y = noisy()
    y = np.digitize(y, [-1, 3])
    found = choose(Logistic(), x, y, fold(np.arange(200), np.arange(200, 300)), "auroc", CLASSES)
    assert len(found.curve) == found.strength + 3 < len(Logistic().strengths)
    # of what costs nothing all are
    assert len(choose(Ridge(), x, y, fold(np.arange(200), np.arange(200, 300)), "r2", NUMBERS).curve) == 7


@pytest.mark.parametrize(("kind", "metric", "nothing"), [("numbers", "spearman", 0), ("classes", "auroc", 0.5)])
def test_what_finds_nothing_does_not_rank_inner_folds(kind, metric, nothing):
    y = np.sort(np.random.default_rng(0).normal(size=60))  # folds that are as far apart as can be
    probe, task = (Ridge(), NUMBERS) if kind == "numbers" else (Logistic(), Task("binary", "protein", ("a", "b")))
    y = y if kind == "numbers" else (y > 0).astype(int)
    inner = [(np.setdiff1d(np.arange(60), held), held) for held in np.split(np.arange(60), 3)]
    rows = fold(np.arange(60), inner=inner)
    found = choose(probe, np.ones((60, 2)), y, rows, metric, task)
    assert {*found.curve} == {nothing}
    # a column of noise is no better, and no worse for the strongest penalty
    column = np.random.default_rng(1).normal(size=(60, 1))
    assert choose(probe, column, y, rows, metric, task).curve[0] == pytest.approx(nothing, abs=0.2)


@pytest.mark.parametrize("metric", ["mcc", "balanced_accuracy", "macro_f1"])
def test_rare_classes_are_waited_for(metric):
    x = np.random.default_rng(0).normal(size=(600, 5))
    y = (x.sum(axis=1) > 3.5).astype(int)
    rows = fold(np.arange(400), np.arange(400, 600))
    found = choose(Logistic(), x, y, rows, metric, Task("binary", "protein", ("a", "b")))
    assert found.curve[0] == found.curve[1] == found.curve[2]  # all are said to be common
    assert found.score > found.curve[0] + 0.1


def test_of_equal_strengths_the_strongest_penalty_is_taken():
    x, y = noisy(60, 1)  # a single column that says nothing
    found = choose(Ridge(), x, y, fold(np.arange(40), np.arange(40, 60)), "spearman", NUMBERS)
    assert (found.strength, found.score, found.edge) == (0, 0, None)


def test_a_strength_at_the_end_of_its_grid_is_told():
    x, _ = noisy()
    y = x @ np.ones(40)  # without noise no penalty is wanted
    rows = fold(np.arange(200), np.arange(200, 300))
    assert choose(Ridge((1e4, 1e2)), x, y, rows, "r2", NUMBERS).edge == "weakest"
    # further on nothing is left to gain
    assert choose(Ridge(), x, y, rows, "r2", NUMBERS).edge is None
    assert choose(Ridge((1e4,)), x, y, rows, "r2", NUMBERS).edge is None
    noise = np.random.default_rng(0).normal(size=300)
    assert choose(Ridge((1e6, 1e2)), x, noise, rows, "r2", NUMBERS).edge == "strongest"
    assert choose(Ridge(), *noisy(), rows, "r2", NUMBERS).edge is None


def test_warnings_of_inner_folds_are_told_once(monkeypatch):
    monkeypatch.setattr(logistic, "ITERATIONS", 1)
    monkeypatch.setattr(logistic, "GRADIENT", 1e-6)
    x, y = noisy()
    y = np.digitize(y, [-1, 3])
    inner = [(np.arange(100), np.arange(100, 200)), (np.arange(100, 200), np.arange(100))]
    found = choose(Logistic(), x, y, fold(np.arange(200), inner=inner), "auroc", CLASSES)
    assert found.warnings
    assert len(found.warnings) == len({*found.warnings})
