"""How good predictions are, of many weightings of the same rows at once: a resample is a row of whole-number weights.

What has to be sorted is sorted once, when a metric is prepared; the ranks of a resample are then cumulative sums of
weights, and its confusion matrix a product. Sums of weights are whole numbers, so only the last steps are rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_perturb.study.task import KINDS

Floats = NDArray[np.float64]
Whole = NDArray[np.int32]


class _Order:
    """Values in ascending order, with those that are equal in groups."""

    def __init__(self, values: NDArray[Any]):
        self.order = np.argsort(values, kind="stable")
        ascending = values[self.order]
        last = np.append(ascending[1:] != ascending[:-1], True)
        self.ends = np.flatnonzero(last)
        self.tied = len(self.ends) < len(values)
        self.group = np.empty(len(values), np.intp)
        self.group[self.order] = np.cumsum(last) - last

    def counts(self, rows: Whole) -> tuple[Whole, Whole]:
        """Return how many rows come before each group, and how many to its end, both `(b, groups)`."""
        # weights are whole: numpy adds up integers ten times as fast as floats
        upto = np.cumsum(rows.take(self.order, axis=1), axis=1, dtype=np.int32)
        if self.tied:
            upto = upto.take(self.ends, axis=1)
        before = np.zeros_like(upto)
        before[:, 1:] = upto[:, :-1]
        return before, upto

    def ranks(self, rows: Whole) -> tuple[Whole, Floats]:
        """Return twice the mid-rank of each row less one, `(b, n)`, and 12 times the sum of the squared ranks, `(b,)`.

        The squares are of ranks from their mean, and of as many as the weights say.
        """
        before, upto = self.counts(rows)
        sizes = (upto - before).astype(np.float64)
        total = upto[:, -1].astype(np.float64)
        spread = total * total * total - np.einsum("ij,ij->i", sizes * sizes, sizes)
        return (before + upto).take(self.group, axis=1), spread


class Truth:
    """The true values of some rows; what every network's metrics need of them is worked out once.

    Args:
        values: numbers, or numbers of classes, `(n,)`.
        units: number of the unit of each row, `(n,)`, where whole units are weighted: the protein of a residue. By
            default each row is its own.
    """

    def __init__(self, values: ArrayLike, units: ArrayLike | None = None):
        self.values = np.asarray(values)
        self.units = None if units is None else np.asarray(units)

    @cached_property
    def of_unit(self) -> NDArray[np.intp]:
        """The number of the unit of each row."""
        return np.arange(len(self.values)) if self.units is None else self.units.astype(np.intp)

    @cached_property
    def sizes(self) -> Floats:
        """Rows of each unit."""
        return np.bincount(self.of_unit).astype(np.float64)

    @cached_property
    def order(self) -> _Order:
        """The values in ascending order."""
        return _Order(self.values)

    @cached_property
    def extremes(self) -> tuple[Floats, Floats]:
        """The least and the greatest value of each unit."""
        low, high = np.full(len(self.sizes), np.inf), np.full(len(self.sizes), -np.inf)
        np.minimum.at(low, self.of_unit, self.values)
        np.maximum.at(high, self.of_unit, self.values)
        return low, high

    @cached_property
    def moments(self) -> tuple[Floats, Floats]:
        """The mean of each unit, and the sum of the squared deviations from it."""
        mean = np.bincount(self.of_unit, self.values) / np.maximum(self.sizes, 1)
        within = np.bincount(self.of_unit, (self.values - mean[self.of_unit]) ** 2).astype(np.float64)
        return mean, within

    def per_class(self, numbers: NDArray[Any], classes: int, among: NDArray[np.bool_] | slice = slice(None)) -> Floats:
        """Count rows of each class in each unit, `(units, classes)`; among all rows or some."""
        found = np.zeros((len(self.sizes), classes))
        np.add.at(found, (self.of_unit[among], numbers[among]), 1.0)
        return found

    def weighted(self, weights: ArrayLike | None = None) -> Weighted:
        """Weight the units; of one block of weights, make one and hand it to the metrics of all networks.

        Args:
            weights: whole numbers, how often each unit is there, `(b, units)`; `None`: once, `(1, units)`.
        """
        if weights is None:
            weights = np.ones((1, len(self.sizes)), np.int32)
        return Weighted(self, np.asarray(weights))


class Weighted:
    """A block of weightings of the same rows; what networks share is worked out when the first one asks.

    Args:
        truth: of the rows.
        weights: whole numbers, `(b, units)`, of any type.
    """

    def __init__(self, truth: Truth, weights: NDArray[Any]):
        self.truth = truth
        self.weights = weights.astype(np.float64, copy=False)
        self._whole = weights.astype(np.int32, copy=False)

    @cached_property
    def rows(self) -> Whole:
        """How often each row is there, `(b, n)`."""
        whole = self._whole
        return np.ascontiguousarray(whole) if self.truth.units is None else whole.take(self.truth.of_unit, axis=1)

    @cached_property
    def total(self) -> Floats:
        """How many rows are there, `(b,)`."""
        return self.weights @ self.truth.sizes

    @cached_property
    def extremes(self) -> tuple[Floats, Floats]:
        """The least and the greatest value that is there, `(b,)`."""
        low, high = self.truth.extremes
        there = self.weights > 0
        return np.where(there, low, np.inf).min(axis=1), np.where(there, high, -np.inf).max(axis=1)

    @cached_property
    def constant(self) -> NDArray[np.bool_]:
        """Whether all values that are there are equal, `(b,)`."""
        low, high = self.extremes
        return low == high

    @cached_property
    def ranks(self) -> tuple[Floats, Floats]:
        """The weight of each row times twice its rank from the middle, `(b, n)`; 12 times the sum of squared ranks."""
        ranks, spread = self.truth.order.ranks(self.rows)
        return self.rows * (ranks - self.total[:, None]), spread

    @cached_property
    def squares(self) -> Floats:
        """The sum of the squared deviations of the values from their mean, `(b,)`."""
        mean, within = self.truth.moments
        held = self.weights * self.truth.sizes
        about = held @ mean / self.total
        between = np.einsum("ij,ij->i", held, (mean - about[:, None]) ** 2)
        return np.where(self.constant, 0.0, between + self.weights @ within)

    @cached_property
    def per_class(self) -> Floats:
        """How many rows of each class are there, `(b, classes)`."""
        return self.weights @ self.truth.per_class(self.truth.values, int(self.truth.values.max()) + 1)

    @cached_property
    def discounts(self) -> Floats:
        """The sum of the discounts of the first 0, 1, 2, ... places of a ranking."""
        places = np.arange(int(self.total.max(initial=0)))
        return np.concatenate([[0.0], np.cumsum(1 / np.log2(places + 2))])

    @cached_property
    def ideal(self) -> Floats:
        """The discounted cumulative gain of the best ranking, `(b,)`."""
        order = self.truth.order
        return self.gain(order, self.truth.values[order.order[order.ends]])

    def gain(self, order: _Order, gains: Floats) -> Floats:
        """Return the discounted cumulative gain of a ranking, `(b,)`; the last group comes first.

        Args:
            order: of what ranks the rows.
            gains: of each group, `(groups,)`, or `(b, groups)`.
        """
        before, upto = order.counts(self.rows)
        total = upto[:, -1:]
        shares = self.discounts.take(total - before, mode="clip") - self.discounts.take(total - upto, mode="clip")
        # a gain less than 0 is counted from the least that is there
        least = np.minimum(self.extremes[0], 0)
        known = min(float(self.truth.values.min()), 0.0)
        return np.vecdot(shares, gains - known) - (least - known) * self.discounts[total[:, 0]]


Scorer = Callable[[Weighted], Floats]


def _ratio(above: Floats, below: Floats, otherwise: float | Floats) -> Floats:
    """Divide, and take something else where there is nothing to divide by."""
    found = np.array(np.broadcast_to(np.asarray(otherwise, np.float64), above.shape))
    return np.divide(above, below, out=found, where=below > 0)


def _spearman(truth: Truth, prediction: NDArray[Any]) -> Scorer:
    order = _Order(prediction)

    def score(block: Weighted) -> Floats:
        ranks, spread = order.ranks(block.rows)
        true, true_spread = block.ranks
        # ranks of the truth are taken from their middle, so that nothing else is needed of the others
        return _ratio(3 * np.einsum("ij,ij->i", true, ranks), np.sqrt(true_spread) * np.sqrt(spread), 0.0)

    return score


def _r2(truth: Truth, prediction: NDArray[Any]) -> Scorer:
    errors = np.bincount(truth.of_unit, (truth.values - prediction.astype(np.float64)) ** 2)

    def score(block: Weighted) -> Floats:
        left = block.weights @ errors
        return 1 - _ratio(left, block.squares, np.sign(left))

    return score


def _ndcg(truth: Truth, prediction: NDArray[Any]) -> Scorer:
    order = _Order(prediction)
    values = truth.values[order.order]
    starts = np.append(0, order.ends[:-1] + 1)

    def score(block: Weighted) -> Floats:
        gains = values
        if order.tied:  # each place has the mean of those that share it
            rows = block.rows.take(order.order, axis=1)
            held = np.add.reduceat(rows, starts, axis=1)
            gains = _ratio(np.add.reduceat(rows * values, starts, axis=1), held, 0.0)
        found = _ratio(block.gain(order, gains), block.ideal, 0.0)
        return np.where(block.constant, block.extremes[0] > 0, found)

    return score


def _auroc(truth: Truth, prediction: NDArray[Any]) -> Scorer:
    classes = [1] if prediction.shape[1] == 2 else range(prediction.shape[1])
    known = [(np.flatnonzero(truth.values == each), _Order(prediction[:, each])) for each in classes]

    def score(block: Weighted) -> Floats:
        sums, there = np.zeros(len(block.total)), np.zeros(len(block.total))
        for positive, order in known:
            before, upto = order.counts(block.rows)
            held = block.rows.take(positive, axis=1)
            ranks = (before + upto).take(order.group[positive], axis=1)
            positives = held.sum(axis=1, dtype=np.float64)
            pairs = positives * (block.total - positives)
            wins = np.einsum("ij,ij->i", held, ranks, dtype=np.float64) - positives * positives
            sums += _ratio(wins, 2 * pairs, 0.0)
            there += pairs > 0
        return _ratio(sums, there, 0.5)

    return score


def _of_confusion(measure: Callable[[Floats, Floats, Floats], Floats]) -> Callable[[Truth, NDArray[Any]], Scorer]:
    """Make a metric of how many rows are rightly said to be of a class, are of it, and are said to be of it."""

    def prepared(truth: Truth, prediction: NDArray[Any]) -> Scorer:
        classes, said = prediction.shape[1], prediction.argmax(axis=1)
        right = truth.per_class(said, classes, said == truth.values)
        both = np.hstack([right, truth.per_class(said, classes)])

        def score(block: Weighted) -> Floats:
            right, said = np.hsplit(block.weights @ both, 2)
            true = np.zeros_like(said)
            true[:, : block.per_class.shape[1]] = block.per_class
            return measure(right, true, said)

        return score

    return prepared


def _mcc(right: Floats, true: Floats, said: Floats) -> Floats:
    """Gorodkin's correlation of classes, which of two is Matthews'. Source: Gorodkin 2004."""
    total = true.sum(axis=1)
    spreads = [np.sqrt(total * total - np.vecdot(each, each)) for each in (true, said)]
    return _ratio(right.sum(axis=1) * total - np.vecdot(true, said), spreads[0] * spreads[1], 0.0)


def _balanced_accuracy(right: Floats, true: Floats, said: Floats) -> Floats:
    return _ratio(right, true, 0.0).sum(axis=1) / np.count_nonzero(true, axis=1)


def _macro_f1(right: Floats, true: Floats, said: Floats) -> Floats:
    return _ratio(2 * right, true + said, 0.0).sum(axis=1) / np.count_nonzero(true + said, axis=1)


@dataclass(frozen=True)
class Metric:
    """A metric, more is better.

    Args:
        name: as it is asked for.
        title: as it is printed.
        regression: whether of numbers, not of classes.
        prepared: what `prepare` calls.
    """

    name: str
    title: str
    regression: bool
    prepared: Callable[[Truth, NDArray[Any]], Scorer]


METRICS = {
    metric.name: metric
    for metric in (
        Metric("spearman", "Spearman", True, _spearman),
        Metric("r2", "R²", True, _r2),
        Metric("ndcg", "NDCG", True, _ndcg),
        Metric("auroc", "AUROC", False, _auroc),
        Metric("mcc", "MCC", False, _of_confusion(_mcc)),
        Metric("balanced_accuracy", "balanced accuracy", False, _of_confusion(_balanced_accuracy)),
        Metric("macro_f1", "macro F1", False, _of_confusion(_macro_f1)),
    )
}
METRICS_OF = {
    kind: tuple(name for name, metric in METRICS.items() if metric.regression == (kind == "regression"))
    for kind in KINDS
}
# of classes the one that needs no threshold: where most residues are of one class, a probe rarely says another
MAIN = {"regression": "spearman", "binary": "auroc", "classes": "auroc"}


def prepare(name: str, truth: Truth | ArrayLike, prediction: ArrayLike) -> Callable[..., Floats]:
    """Sort what a metric needs sorted, and return what takes it of any weighting of the rows.

    What is returned is called with weights, `(b, units)`, with a block of them that `Truth.weighted` made, which
    several networks may share, or with nothing for all weights 1; it returns `(b,)`, never NaN, and may be called by
    several threads. Equal predictions or equal truths have a Spearman and MCC of 0 and an AUROC of 0.5; a class that a
    resample lacks is left out of its mean.

    Args:
        name: of `METRICS`.
        truth: numbers or numbers of classes, `(n,)`; a `Truth` that several networks share.
        prediction: numbers, `(n,)`; of classes probabilities, `(n, classes)`.

    Raises:
        ValueError: if the metric is unknown.
    """
    if name not in METRICS:
        raise ValueError(f"metric {name!r} is unknown; choose from {', '.join(METRICS)}")
    known = truth if isinstance(truth, Truth) else Truth(truth)
    score = METRICS[name].prepared(known, np.asarray(prediction))

    def scored(weights: Weighted | ArrayLike | None = None) -> Floats:
        return score(weights if isinstance(weights, Weighted) else known.weighted(weights))

    return scored
