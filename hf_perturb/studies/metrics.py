"""How good predictions are, of many weightings of the same rows at once: a resample is a row of whole-number weights.

What has to be sorted is sorted once, when a metric is prepared; the ranks of a resample are then cumulative sums of
weights, and its confusion matrix a product. Sums of weights are whole numbers, so only the last steps are rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from threading import local
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_perturb.studies.task import KINDS

Floats = NDArray[np.float64]
Whole = NDArray[np.int32]
_PART = 32768  # weights that are looked at together: they stay in the cache of a core


class _Scratch(local):
    """Arrays that a thread writes over and over, for new memory costs more than a sum."""

    def __init__(self) -> None:
        self.kept: dict[str, NDArray[Any]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
        """Return an array with whatever is in it; the next of that name is the same memory."""
        size = math.prod(shape)
        if name not in self.kept or self.kept[name].size < size:
            self.kept[name] = np.empty(size, dtype)
        return self.kept[name][:size].reshape(shape)


_scratch = _Scratch()


class _Order:
    """Values in ascending order, equal ones in groups; what a method returns, the thread's next call overwrites."""

    def __init__(self, values: NDArray[Any]):
        self.order = np.argsort(values, kind="stable")
        ascending = values[self.order]
        last = np.append(ascending[1:] != ascending[:-1], True)
        self.ends = np.flatnonzero(last)
        self.tied = len(self.ends) < len(values)
        self.group = np.empty(len(values), np.intp)
        self.group[self.order] = np.cumsum(last) - last

    def counts(self, rows: Whole) -> tuple[Whole, Whole, Whole]:
        """Return the weights in this order, `(b, n)`, and, of each group, that of all up to its end and its own."""
        ordered = rows.take(self.order, axis=1, out=_scratch.array("ordered", rows.shape, np.int32), mode="clip")
        # weights are whole: numpy adds up integers ten times as fast as floats
        upto = np.cumsum(ordered, axis=1, out=_scratch.array("upto", rows.shape, np.int32))
        if not self.tied:
            return ordered, upto, ordered
        shape = (len(rows), len(self.ends))
        upto = upto.take(self.ends, axis=1, out=_scratch.array("of groups", shape, np.int32), mode="clip")
        sizes = _scratch.array("sizes", shape, np.int32)
        sizes[:, 0] = upto[:, 0]
        np.subtract(upto[:, 1:], upto[:, :-1], out=sizes[:, 1:])
        return ordered, upto, sizes

    def ranks(self, rows: Whole) -> tuple[Whole, Floats]:
        """Return of each group twice its mid-rank less one, `(b, groups)`, and 12 times the variance of ranks, `(b,)`.

        The variance is a sum over as many rows as the weights say.
        """
        _, upto, sizes = self.counts(rows)
        squares = np.multiply(sizes, sizes, out=_scratch.array("floats", sizes.shape, np.float64), dtype=np.float64)
        total = upto[:, -1].astype(np.float64)
        spread = total * total * total - np.vecdot(squares, sizes)
        ranks = np.add(upto, upto, out=_scratch.array("ranks", sizes.shape, np.int32))
        return np.subtract(ranks, sizes, out=ranks), spread

    def of_rows(self, found: Whole, group: NDArray[np.intp], name: str = "of rows") -> Whole:
        """Return what each row has of its group, `(b, rows)`."""
        out = _scratch.array(name, (len(found), len(group)), np.int32)
        return found.take(group, axis=1, out=out, mode="clip")


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
        once = np.ones((1, len(self.sizes)), np.int32)
        return Weighted(self, once if weights is None else np.asarray(weights))


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
    def parts(self) -> list[slice]:
        """The block in parts."""
        step = max(_PART // max(len(self.truth.values), 1), 1)
        return [slice(first, first + step) for first in range(0, len(self.weights), step)]

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
        order, centred, spread = self.truth.order, np.empty(self.rows.shape), np.empty(len(self.rows))
        for part in self.parts:
            ranks, spread[part] = order.ranks(self.rows[part])
            np.subtract(order.of_rows(ranks, order.group), self.total[part, None], out=centred[part])
            centred[part] *= self.rows[part]
        return centred, spread

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
        return self.gain(order, self.truth.values[order.order])

    def gain(self, order: _Order, gains: Floats) -> Floats:
        """Return the discounted cumulative gain of a ranking, `(b,)`; the last comes first, and who is tied shares.

        Args:
            order: of what ranks the rows.
            gains: of each row in that order.
        """
        # gains are counted from 0, or from the least that is there where that is less: here from the least of all
        known = float(self.truth.values.min())
        gains, starts = gains - known, np.append(0, order.ends[:-1] + 1)
        found = np.empty(len(self.total))
        for part in self.parts:
            ordered, upto, sizes = order.counts(self.rows[part])
            places = np.subtract(upto[:, -1:], upto, out=_scratch.array("places", upto.shape, np.intp))
            shares = _scratch.array("shares", upto.shape, np.float64)
            shares = self.discounts.take(places, out=shares, mode="clip")
            shares[:, 1:] = shares[:, :-1] - shares[:, 1:]
            shares[:, 0] = self.discounts[upto[:, -1]] - shares[:, 0]
            each = gains
            if order.tied:
                held = np.multiply(ordered, gains, out=_scratch.array("floats", ordered.shape, np.float64))
                each = np.add.reduceat(held, starts, axis=1, out=_scratch.array("gains", upto.shape, np.float64))
                np.divide(each, sizes, out=each, where=sizes > 0)
            found[part] = np.vecdot(shares, each)
        return found - (np.minimum(self.extremes[0], 0) - known) * self.discounts[self.total.astype(np.intp)]


Scorer = Callable[[Weighted], Floats]


def _ratio(above: Floats, below: Floats, otherwise: float | Floats) -> Floats:
    """Divide, and take something else where there is nothing to divide by."""
    return np.divide(above, below, out=np.full(above.shape, otherwise, np.float64), where=below > 0)


def _spearman(truth: Truth, prediction: NDArray[Any]) -> Scorer:
    order = _Order(prediction)

    def score(block: Weighted) -> Floats:
        true, true_spread = block.ranks
        shared, spread = np.empty(len(true)), np.empty(len(true))
        for part in block.parts:
            ranks, spread[part] = order.ranks(block.rows[part])
            # ranks of the truth are from their middle, so that it does not matter where the others are from
            shared[part] = np.vecdot(true[part], order.of_rows(ranks, order.group))
        return _ratio(3 * shared, np.sqrt(true_spread) * np.sqrt(spread), 0.0)

    return score


def _r2(truth: Truth, prediction: NDArray[Any]) -> Scorer:
    errors = np.bincount(truth.of_unit, (truth.values - prediction.astype(np.float64)) ** 2)

    def score(block: Weighted) -> Floats:
        left = block.weights @ errors
        return 1 - _ratio(left, block.squares, np.sign(left))

    return score


def _ndcg(truth: Truth, prediction: NDArray[Any]) -> Scorer:
    """Source: `ndcg_scale` of microsoft/protein-transfer, on scikit-learn's `ndcg_score`."""
    order = _Order(prediction)
    values = truth.values[order.order]

    def score(block: Weighted) -> Floats:
        found = _ratio(block.gain(order, values), block.ideal, 0.0)
        return np.where(block.constant, block.extremes[0] > 0, found)

    return score


def _auroc(truth: Truth, prediction: NDArray[Any]) -> Scorer:
    classes = [1] if prediction.shape[1] == 2 else range(prediction.shape[1])
    known = [(np.flatnonzero(truth.values == each), _Order(prediction[:, each])) for each in classes]

    def wins(rows: Whole, positive: NDArray[np.intp], order: _Order) -> tuple[Floats, Floats]:
        """Return twice the pairs of which the positive row comes later, and the positive rows."""
        _, upto, sizes = order.counts(rows)
        held, group = order.of_rows(rows, positive, "positive"), order.group[positive]
        upto, sizes = order.of_rows(upto, group), order.of_rows(sizes, group, "own") if order.tied else held
        ranks = (np.einsum("ij,ij->i", held, each, dtype=np.float64) for each in (upto, sizes))
        positives = held.sum(axis=1, dtype=np.float64)
        return 2 * next(ranks) - next(ranks) - positives * positives, positives

    def score(block: Weighted) -> Floats:
        sums, there = np.zeros(len(block.total)), np.zeros(len(block.total))
        for part in block.parts:
            for positive, order in known:
                won, positives = wins(block.rows[part], positive, order)
                pairs = positives * (block.total[part] - positives)
                sums[part] += _ratio(won, 2 * pairs, 0.0)
                there[part] += pairs > 0
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
        least: no score is less.
    """

    name: str
    title: str
    regression: bool
    prepared: Callable[[Truth, NDArray[Any]], Scorer]
    least: float = 0.0


METRICS = {
    metric.name: metric
    for metric in (
        Metric("spearman", "Spearman", True, _spearman, -1.0),
        Metric("r2", "R²", True, _r2, -math.inf),
        Metric("ndcg", "NDCG", True, _ndcg),
        Metric("auroc", "AUROC", False, _auroc),
        Metric("mcc", "MCC", False, _of_confusion(_mcc), -1.0),
        Metric("balanced_accuracy", "balanced accuracy", False, _of_confusion(_balanced_accuracy)),
        Metric("macro_f1", "macro F1", False, _of_confusion(_macro_f1)),
    )
}
METRICS_OF = {
    kind: tuple(name for name, metric in METRICS.items() if metric.regression == (kind == "regression"))
    for kind in KINDS
}
# the first of each: of classes what needs no threshold, for where most rows are of one class a probe says no other
MAIN = {kind: names[0] for kind, names in METRICS_OF.items()}


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
