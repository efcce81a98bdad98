"""Probes of representations: closed-form or convex, so that no optimiser comes between two networks.

A probe is fitted at all its strengths at once, from the strongest penalty to the weakest, on features that are
standardised on the training rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.special
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from hf_perturb.errors import StudyError
from hf_perturb.studies.metrics import Truth, prepare
from hf_perturb.studies.task import Task

Array = NDArray[Any]
Floats = NDArray[np.float64]
Rows = NDArray[np.integer[Any]]

GRADIENT = 3e-8  # greatest element at which a logistic probe is fitted
ITERATIONS = 1000  # most, of one strength
FLAT = 0.01  # of a score: where the last strength gains less than that over the one before, another would gain little
_MEMORY = 30  # pairs of vectors that L-BFGS keeps
_BLOCK = 4096  # rows


@dataclass(frozen=True)
class Standard:
    """Features less their mean, over their standard deviation, of some rows; what is constant in these becomes 0."""

    mean: Floats
    scale: Floats

    @classmethod
    def of(cls, x: Array) -> tuple[Standard, Floats]:
        """Take rows, `(n, p)`, of any floating-point type; return them standardised too.

        Raises:
            StudyError: if there is something in them that is no number.
        """
        _check(x)
        mean = x.mean(axis=0, dtype=np.float64)
        rows = np.subtract(x, mean, dtype=np.float64)
        variance = np.einsum("ij,ij->j", rows, rows) / len(rows)
        # as scikit-learn's StandardScaler: no more than rounding leaves of equal values
        least = len(x) * np.finfo(np.float64).eps
        constant = variance <= least * variance + (least * mean) ** 2
        standard = cls(mean, np.where(constant, 1.0, np.sqrt(variance)))
        rows /= standard.scale
        return standard, rows

    def __call__(self, x: Array) -> Floats:
        """Standardise rows, `(n, p)`, as those that this is of."""
        _check(x)
        rows: Floats = np.subtract(x, self.mean, dtype=np.float64)
        rows /= self.scale
        return rows


def _check(x: Array) -> None:
    with np.errstate(invalid="ignore"):
        total = x.sum(dtype=np.float64)
    if not np.isfinite(total) and (wrong := np.count_nonzero(~np.isfinite(x).all(axis=1))):
        raise StudyError(
            f"{wrong:,} of {len(x):,} representations hold NaN or infinity, so that nothing can be trained or tried on "
            "them; embed in float32"
        )


class Fitted(Protocol):
    """A probe fitted at several strengths."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was not as it should be."""

    def predict(self, x: Array, strength: int) -> Floats:
        """Predict rows, `(n, p)`, by one strength: numbers, `(n,)`, or probabilities of classes, `(n, classes)`."""

    def path(self, x: Array) -> list[Floats]:
        """Predict by every strength."""


class Probe(Protocol):
    """A kind of probe."""

    @property
    def name(self) -> str:
        """As it is asked for."""

    @property
    def strengths(self) -> tuple[float, ...]:
        """All at which it is fitted, from the strongest penalty to the weakest."""

    def fit(self, x: Array, y: Array, classes: int = 0, last: int | None = None) -> Fitted:
        """Fit all strengths, or those up to one.

        Args:
            x: training rows, `(n, p)`.
            y: numbers, `(n,)`, or numbers of classes.
            classes: how many there are, whether or not these rows have them all; 0 of a regression.
            last: number of the weakest strength that is asked for; default: all.
        """


@dataclass(frozen=True)
class _Linear:
    """Coefficients of each strength, on standardised features."""

    standard: Standard
    coefficients: Sequence[Floats]
    intercepts: Sequence[Any]
    link: Callable[[Floats], Floats]
    warnings: tuple[str, ...] = ()

    def predict(self, x: Array, strength: int) -> Floats:
        return self.link(self.standard(x) @ self.coefficients[strength] + self.intercepts[strength])

    def path(self, x: Array) -> list[Floats]:
        rows = self.standard(x)
        every = zip(self.coefficients, self.intercepts, strict=True)
        return [self.link(rows @ coefficients + intercept) for coefficients, intercept in every]


@dataclass(frozen=True)
class Ridge:
    """Ridge regression; the strengths are scikit-learn's `alpha`.

    They are not relative to the rows: the best one is the variance of the noise over that of the coefficients, and no
    number of rows changes either. The weakest, 1, leaves alone all directions but those in which the training rows
    together vary less than one feature does in one of them: less follows noise where rows are few, and is the same
    where they are many.
    """

    strengths: tuple[float, ...] = tuple(10.0**power for power in range(6, -1, -1))
    name: str = "ridge"

    def fit(self, x: Array, y: Array, classes: int = 0, last: int | None = None) -> Fitted:
        """Fit all strengths by one singular value decomposition; `y` may hold several targets, `(n, targets)`."""
        standard, rows = Standard.of(x)
        mean = y.mean(axis=0, dtype=np.float64)
        left, values, right = scipy.linalg.svd(rows, full_matrices=False, check_finite=False, overwrite_a=True)
        onto = (left.T @ (y - mean)).T * values
        coefficients = [(onto / (values**2 + alpha)) @ right for alpha in self.strengths]
        return _Linear(standard, [each.T for each in coefficients], [mean] * len(self.strengths), _as_is)


def _as_is(scores: Floats) -> Floats:
    return scores


class _Logistic:
    """The loss of multinomial logistic regression, in coordinates in which it curves about alike in all directions.

    L-BFGS needs some ten times fewer steps in them than in the coefficients of features, for those of a network are
    far from independent, and classes far from equally frequent. The optimum is the same.

    Args:
        x: standardised rows, `(n, p)`.
        y: numbers of classes, each of which is there, `(n,)`.
    """

    def __init__(self, x: Floats, y: Array):
        _, self.rotation = scipy.linalg.eigh(x.T @ x, check_finite=False, driver="evd")
        self.x, counts = x @ self.rotation, np.bincount(y)
        self.of_truth = (y, np.arange(len(y)))
        # the optimum for no coefficients
        self.weights = np.zeros((x.shape[1], len(counts)))
        self.intercept = np.log(counts / len(y))

    def descend(self, penalty: float) -> float:
        """Go on to the optimum for a penalty, which is of the mean loss of a row; return the gradient that is left."""
        self._choose_coordinates(penalty)
        start = np.vstack([self.weights, self.intercept]) @ self.axes / self.steps
        options = {"maxcor": _MEMORY, "gtol": GRADIENT, "ftol": 0, "maxiter": ITERATIONS, "maxfun": 2 * ITERATIONS}
        found = scipy.optimize.minimize(
            self._loss, start.ravel(), (penalty,), "L-BFGS-B", jac=True, options={**options, "maxls": 50}
        )
        placed = found.x.reshape(self.steps.shape) * self.steps @ self.axes.T
        self.weights, self.intercept = placed[:-1], placed[-1]
        return float(np.abs(found.jac).max())

    def _choose_coordinates(self, penalty: float) -> None:
        """Scale them by the second derivatives where the last optimum was."""
        chances = scipy.special.softmax(self._scores(self.weights, self.intercept), axis=0)
        n, mean = len(self.x), chances.mean(axis=1)
        # the first one is what adds the same to all classes, which changes nothing
        self.axes = scipy.linalg.eigh(np.diag(mean) - chances @ chances.T / n)[1][:, 1:]
        curves = chances.T @ self.axes**2 - (chances.T @ self.axes) ** 2
        second = np.full((self.x.shape[1] + 1, self.axes.shape[1]), penalty)
        for first in range(0, n, _BLOCK):
            second[:-1] += (self.x[first : first + _BLOCK] ** 2).T @ curves[first : first + _BLOCK] / n
        second[-1] = curves.mean(axis=0)
        self.steps = 1 / np.sqrt(np.maximum(second, np.finfo(np.float64).tiny))

    def _loss(self, flat: Floats, penalty: float) -> tuple[float, Floats]:
        """Return the mean loss with its penalty, and its gradient."""
        at, n = flat.reshape(self.steps.shape) * self.steps, len(self.x)
        scores = self._scores(*np.vsplit(at @ self.axes.T, [-1]))
        scores -= scores.max(axis=0)
        of_truth = scores[self.of_truth].sum()
        np.exp(scores, out=scores)
        sums = scores.sum(axis=0)
        loss = (np.log(sums).sum() - of_truth) / n + penalty / 2 * np.vdot(at[:-1], at[:-1])
        scores /= sums
        scores[self.of_truth] -= 1
        gradient = np.vstack([(scores @ self.x).T, scores.sum(axis=1)]) @ self.axes / n
        gradient[:-1] += penalty * at[:-1]
        return float(loss), (gradient * self.steps).ravel()

    def _scores(self, weights: Floats, intercept: Floats) -> Floats:
        """Return the scores of all rows, `(classes, n)`, in which the largest of each is found faster."""
        scores: Floats = weights.T @ self.x.T
        scores += intercept.reshape(-1, 1)
        return scores


@dataclass(frozen=True)
class Logistic:
    """Multinomial logistic regression with an L2 penalty, by L-BFGS; the strengths are 1/C of scikit-learn's.

    The strongest leaves little but the direction in which the means of classes differ.
    """

    strengths: tuple[float, ...] = tuple(10.0**power for power in range(5, 0, -1))
    name: str = "logistic"

    def fit(self, x: Array, y: Array, classes: int = 0, last: int | None = None) -> Fitted:
        """Fit one strength after the other, each from where the last one ended; a class that is not there gets 0."""
        present, numbers = np.unique(y, return_inverse=True)
        standard, rows = Standard.of(x)
        strengths = self.strengths[: None if last is None else last + 1]
        if len(present) == 1:
            nothing = np.zeros((x.shape[1], 1))
            return _Linear(standard, [nothing] * len(strengths), [0.0] * len(strengths), _Chances(present, classes))
        loss = _Logistic(rows, numbers)
        # of two classes scikit-learn has one set of coefficients, which is the difference of two here
        unit = (2 if len(present) == 2 else 1) / len(y)
        coefficients, intercepts, warnings = [], [], []
        for strength in strengths:
            left = loss.descend(strength * unit)
            if left > 10 * GRADIENT:
                warnings.append(
                    f"a logistic probe at strength {strength:g} was not fitted in {ITERATIONS} steps: "
                    f"gradient {left:.1e}, not {GRADIENT:.0e}"
                )
            coefficients.append(loss.rotation @ loss.weights)
            intercepts.append(loss.intercept)
        return _Linear(standard, coefficients, intercepts, _Chances(present, classes), tuple(warnings))


@dataclass(frozen=True)
class _Chances:
    """Scores of the classes that there were, to probabilities of all."""

    present: Array
    classes: int

    def __call__(self, scores: Floats) -> Floats:
        chances = np.zeros((len(scores), self.classes))
        chances[:, self.present] = scipy.special.softmax(scores, axis=1)
        return chances


@dataclass(frozen=True)
class Neighbours:
    """The nearest training rows, each with the same say; the strengths are how many."""

    strengths: tuple[float, ...] = (100.0, 50.0, 20.0, 10.0, 5.0, 2.0, 1.0)
    name: str = "knn"

    def fit(self, x: Array, y: Array, classes: int = 0, last: int | None = None) -> Fitted:
        """Keep the rows; of fewer than a strength says, all are asked."""
        standard, rows = Standard.of(x)
        most = min(int(self.strengths[0]), len(rows))
        found = NearestNeighbors(n_neighbors=most, algorithm="brute").fit(rows)
        said = np.eye(classes)[y] if classes else np.asarray(y, np.float64)
        return _Near(standard, found, said, tuple(min(int(each), most) for each in self.strengths))


@dataclass(frozen=True)
class _Near:
    standard: Standard
    found: NearestNeighbors
    said: Floats
    counts: tuple[int, ...]
    warnings: tuple[str, ...] = ()

    def predict(self, x: Array, strength: int) -> Floats:
        return self.path(x)[strength]

    def path(self, x: Array) -> list[Floats]:
        nearest = self.said[self.found.kneighbors(self.standard(x), return_distance=False)]
        return [nearest[:, :count].mean(axis=1) for count in self.counts]


PROBES: dict[str, Probe] = {probe.name: probe for probe in (Ridge(), Logistic(), Neighbours())}
# by kind of task
DEFAULT = {"regression": "ridge", "binary": "logistic", "classes": "logistic"}


class FoldRows(Protocol):
    """Which rows are for what: a fold whose numbers are those of rows."""

    @property
    def train(self) -> Rows:
        """What the probe is fitted to."""

    @property
    def validation(self) -> Rows | None:
        """What says which strength is best, if there is such a set."""

    @property
    def inner(self) -> Sequence[tuple[Rows, Rows]]:
        """Else the folds of the training rows that say it, as (train, held out)."""


@dataclass(frozen=True)
class Choice:
    """A probe at the strength that did best on rows that it was not fitted to.

    Args:
        strength: the number of it.
        score: of it, on those rows.
        curve: the scores of all strengths.
        fitted: to all training rows.
        warnings: what was not as it should be on the way.
    """

    strength: int
    score: float
    curve: tuple[float, ...]
    fitted: Fitted
    warnings: tuple[str, ...]

    @property
    def edge(self) -> str | None:
        """`strongest` or `weakest` where the score still rises to that end of the strengths, else `None`."""
        before = {0: 1, len(self.curve) - 1: -2}.get(self.strength)
        if before is None or len(self.curve) < 2 or self.score - self.curve[before] <= FLAT:
            return None
        return "weakest" if self.strength else "strongest"

    def predict(self, x: Array) -> Floats:
        """Predict rows, `(n, p)`."""
        return self.fitted.predict(x, self.strength)


def choose(
    probe: Probe, x: Array | Callable[[Rows], Array], y: Array, fold: FoldRows, metric: str, task: Task
) -> Choice:
    """Fit a probe, at the strength that is best on the validation set, or on what inner folds held out.

    Predictions of held-out folds are scored together, as `level` makes them, and the probe is then fitted to all
    training rows; with a validation set it is not fitted to that. Of strengths that are equally good the strongest
    penalty is taken.

    Args:
        probe: of `PROBES`.
        x: all rows, `(n, p)`, or what returns those of some numbers.
        y: of all rows.
        fold: which rows are for what.
        metric: of `METRICS`.
        task: what is predicted.
    """
    rows, classes = x if callable(x) else x.__getitem__, len(task.classes)
    if fold.validation is not None:
        fitted = probe.fit(rows(fold.train), y[fold.train], classes)
        curve = _scores(metric, y[fold.validation], fitted.path(rows(fold.validation)))
        best = int(np.argmax(curve))
        return Choice(best, curve[best], curve, fitted, fitted.warnings)
    parts = [probe.fit(rows(train), y[train], classes) for train, _ in fold.inner]
    held = [held_out for _, held_out in fold.inner]
    paths = [part.path(rows(numbers)) for part, numbers in zip(parts, held, strict=True)]
    paths = level(paths, [y[train] for train, _ in fold.inner], task)
    curve = _scores(metric, y[np.concatenate(held)], [np.concatenate(each) for each in zip(*paths, strict=True)])
    best = int(np.argmax(curve))
    fitted = probe.fit(rows(fold.train), y[fold.train], classes, last=best)
    warnings = dict.fromkeys(warning for each in (*parts, fitted) for warning in each.warnings)
    return Choice(best, curve[best], curve, fitted, tuple(warnings))


def level(paths: Sequence[Sequence[Floats]], seen: Sequence[Array], task: Task) -> list[list[Floats]]:
    """Make predictions of several folds, which are scored together, as if all had been trained on the same mean.

    Where what is held out is high, what a probe has seen is low, and so is all that it predicts. The less it finds in
    representations, the more would its predictions rank folds, the wrong way round. Of classes it is the share of each
    that is seen.

    Args:
        paths: what was predicted of each fold, by any strengths.
        seen: the truth of the rows that its probe was fitted to.
        task: what is predicted.
    """
    if len(paths) == 1:
        return [list(path) for path in paths]
    if task.kind == "regression":
        means = [truth.mean(dtype=np.float64) for truth in seen]
        return [[(each - own) + np.mean(means) for each in path] for path, own in zip(paths, means, strict=True)]
    shares = np.array([np.bincount(truth, minlength=len(task.classes)) / len(truth) for truth in seen])
    # a class that a fold has not seen is never expected
    odds = np.divide(shares.mean(axis=0), shares, out=np.zeros_like(shares), where=shares > 0)
    weighted = [[each * own for each in path] for path, own in zip(paths, odds, strict=True)]
    # what is equal stays so
    return [[np.round(each / each.sum(axis=1, keepdims=True), 12) for each in path] for path in weighted]


def _scores(metric: str, truth: Array, predictions: Sequence[Floats]) -> tuple[float, ...]:
    known = Truth(truth)
    block = known.weighted()
    return tuple(float(prepare(metric, known, each)(block)[0]) for each in predictions)
