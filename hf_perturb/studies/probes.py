"""Probes of representations: closed-form or convex, so that no optimiser comes between two networks.

A probe is fitted at all its strengths at once, from the strongest penalty to the weakest, on features that are
standardised on the training rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import scipy.linalg
import scipy.special
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from hf_perturb.errors import StudyError
from hf_perturb.studies.logistic import Descent, Loss
from hf_perturb.studies.metrics import Truth, prepare
from hf_perturb.studies.task import Task

Array = NDArray[Any]
Floats = NDArray[np.float64]
Rows = NDArray[np.integer[Any]]

FLAT = 0.01  # of a score: where the last strength gains less than that over the one before, another would gain little
_ALL = 100  # more strengths than there are


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
    def warnings(self) -> Sequence[str]:
        """What was not as it should be."""

    def predict(self, x: Array, strength: int) -> Floats:
        """Predict rows, `(n, p)`, by one strength: numbers, `(n,)`, or probabilities of classes, `(n, classes)`."""

    def path(self, x: Array) -> Iterator[Floats]:
        """Predict by one strength after the other; what nobody asks for may not be fitted."""


class Probe(Protocol):
    """A kind of probe."""

    @property
    def name(self) -> str:
        """As it is asked for."""

    @property
    def strengths(self) -> tuple[float, ...]:
        """All at which it may be fitted, from the strongest penalty to the weakest."""

    @property
    def patience(self) -> int:
        """How many strengths in a row may rank rows no better than the best before, until no weaker one is tried."""

    def fit(self, x: Array, y: Array, classes: int = 0) -> Fitted:
        """Fit all strengths, at once or as they are asked for.

        Args:
            x: training rows, `(n, p)`.
            y: numbers, `(n,)`, or numbers of classes.
            classes: how many there are, whether or not these rows have them all; 0 of a regression.
        """


@dataclass(frozen=True)
class _Linear:
    """Coefficients and intercept of each strength, by its number, on standardised features."""

    standard: Standard
    at: Callable[[int], tuple[Floats, Any]]
    strengths: int
    link: Callable[[Floats], Floats]
    warnings: Sequence[str] = ()

    def predict(self, x: Array, strength: int) -> Floats:
        coefficients, intercept = self.at(strength)
        return self.link(self.standard(x) @ coefficients + intercept)

    def path(self, x: Array) -> Iterator[Floats]:
        rows = self.standard(x)
        for coefficients, intercept in map(self.at, range(self.strengths)):
            yield self.link(rows @ coefficients + intercept)


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
    patience: int = _ALL

    def fit(self, x: Array, y: Array, classes: int = 0) -> Fitted:
        """Fit all strengths by one singular value decomposition; `y` may hold several targets, `(n, targets)`."""
        standard, rows = Standard.of(x)
        mean = y.mean(axis=0, dtype=np.float64)
        left, values, right = scipy.linalg.svd(rows, full_matrices=False, check_finite=False, overwrite_a=True)
        onto = (left.T @ (y - mean)).T * values
        fitted = [((onto / (values**2 + alpha)) @ right).T for alpha in self.strengths]
        return _Linear(standard, lambda number: (fitted[number], mean), len(fitted), _as_is)


def _as_is(scores: Floats) -> Floats:
    return scores


@dataclass(frozen=True)
class Logistic:
    """Multinomial logistic regression with an L2 penalty, by L-BFGS; the strengths are 1/C of scikit-learn's.

    The strongest leaves little but the direction in which the means of classes differ. The weaker ones are for some
    hundred rows, and take longest, so that none is tried once two in a row ranked rows no better.
    """

    strengths: tuple[float, ...] = tuple(10.0**power for power in range(5, -3, -1))
    name: str = "logistic"
    patience: int = 2

    def fit(self, x: Array, y: Array, classes: int = 0) -> Fitted:
        """Fit one strength after the other, each from where the last one ended; a class that is not there gets 0."""
        present, numbers = np.unique(y, return_inverse=True)
        standard, rows = Standard.of(x)
        chances = _Chances(present, classes)
        if len(present) == 1:
            nothing = np.zeros((x.shape[1], 1))
            return _Linear(standard, lambda number: (nothing, 0.0), len(self.strengths), chances)
        # of two classes scikit-learn has one set of coefficients, which is the difference of two here
        unit = (2 if len(present) == 2 else 1) / len(y)
        descent = Descent(Loss(rows, numbers), self.strengths, unit)
        return _Linear(standard, descent, len(self.strengths), chances, descent.warnings)


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
    patience: int = _ALL

    def fit(self, x: Array, y: Array, classes: int = 0) -> Fitted:
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
        return self._nearest(x)[:, : self.counts[strength]].mean(axis=1)

    def path(self, x: Array) -> Iterator[Floats]:
        nearest = self._nearest(x)
        return (nearest[:, :count].mean(axis=1) for count in self.counts)

    def _nearest(self, x: Array) -> Floats:
        nearest: Floats = self.said[self.found.kneighbors(self.standard(x), return_distance=False)]
        return nearest


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

    Strengths are tried from the strongest penalty on, until `patience` ends. Predictions of held-out folds are scored
    together, as `level` makes them, and the probe is then fitted to all training rows; with a validation set it is not
    fitted to that. Of strengths that are equally good the strongest penalty is taken.

    Args:
        probe: of `PROBES`.
        x: all rows, `(n, p)`, or what returns those of some numbers.
        y: of all rows.
        fold: which rows are for what.
        metric: of `METRICS`.
        task: what is predicted.
    """
    rows, classes = x if callable(x) else x.__getitem__, len(task.classes)
    parts = list(fold.inner) if fold.validation is None else [(fold.train, fold.validation)]
    held = np.concatenate([out for _, out in parts])
    fits = [probe.fit(rows(train), y[train], classes) for train, _ in parts]
    paths = zip(*(fit.path(rows(out)) for fit, (_, out) in zip(fits, parts, strict=True)), strict=True)
    seen = [y[train] for train, _ in parts]
    # at strong penalties all rows are said to be of the most frequent class, which many weaker ones may not change
    patience = probe.patience if metric in ("auroc", "spearman") else len(probe.strengths)
    curve = _curve(metric, y[held], (np.concatenate(level(each, seen, task)) for each in paths), patience)
    best = int(np.argmax(curve))
    if fold.validation is None:
        fits.append(probe.fit(rows(fold.train), y[fold.train], classes))
        fits[-1].predict(rows(fold.train[:1]), best)  # so that what is wrong is known
    warnings = dict.fromkeys(warning for fit in fits for warning in fit.warnings)
    return Choice(best, curve[best], curve, fits[-1], tuple(warnings))


def level(predictions: Sequence[Floats], seen: Sequence[Array], task: Task) -> list[Floats]:
    """Make predictions of several folds, which are scored together, as if all had been trained on the same mean.

    Where what is held out is high, what a probe has seen is low, and so is all that it predicts. The less it finds in
    representations, the more would its predictions rank folds, the wrong way round. Of classes it is the share of each
    that is seen.

    Args:
        predictions: of each fold.
        seen: the truth of the rows that its probe was fitted to.
        task: what is predicted.
    """
    if len(predictions) == 1:
        return list(predictions)
    if task.kind == "regression":
        means = [truth.mean(dtype=np.float64) for truth in seen]
        return [(each - own) + np.mean(means) for each, own in zip(predictions, means, strict=True)]
    shares = np.array([np.bincount(truth, minlength=len(task.classes)) / len(truth) for truth in seen])
    # a class that a fold has not seen is never expected
    odds = np.divide(shares.mean(axis=0), shares, out=np.zeros_like(shares), where=shares > 0)
    weighted = [each * own for each, own in zip(predictions, odds, strict=True)]
    # what is equal stays so
    return [np.round(each / each.sum(axis=1, keepdims=True), 12) for each in weighted]


def _curve(metric: str, truth: Array, predictions: Iterable[Floats], patience: int) -> tuple[float, ...]:
    """Score one strength after the other, until so many in a row were no better than the best before."""
    known = Truth(truth)
    block, curve = known.weighted(), list[float]()
    for each in predictions:
        curve.append(float(prepare(metric, known, each)(block)[0]))
        if len(curve) - 1 - int(np.argmax(curve)) >= patience:
            break
    return tuple(curve)
