"""How far scores can be trusted: intervals over test proteins and seeds, and how far representations are alike.

What could have come out otherwise is two things. Other proteins could have been in the test set: these are resampled,
by cluster where there are clusters, and all networks are scored on the same resamples, so that what is hard for all of
them cancels in a difference. And a control could have had other seeds: their scores differ, by the seed itself and by
the test rows on which each happens to fail. The latter is in the resamples already, so that it is taken off what the
seeds are apart, or it would count twice; what is left is spread by Student's t for the number of seeds, since three to
five of them say little about how far seeds lie apart.

`benchmarks/coverage.py` shows on simulated data that the intervals cover what they should.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from hf_perturb.errors import StudyError
from hf_perturb.studies.results import Contrast

if TYPE_CHECKING:
    from hf_perturb.studies.metrics import Truth

DRAWS = 2000
_TOO_FEW = 10  # as the least that was simulated
FEW_UNITS = 30  # of fewer, what simulated intervals cover is up to five percent off
_TAIL = 0.975  # of intervals of 95%
_BLOCK = 2**22  # weights of rows, or values of representations, at a time
_NO_SPREAD = 1e-7  # of the norm: less is what float32 makes of equal values
_SAME = 1e-12  # what scores of equal weights may be apart, by rounding
_LEAST_P = 1e-6  # nobody knows a tail further out

Array = np.ndarray
# what `metrics.prepare` returns: weighted units to values `(b,)`; without any, each is there once
Measure = Callable[..., Array]


class Resamples:
    """Test sets that could have been: as many units as there are, drawn with replacement, by a seed.

    Args:
        units: of each test row what is drawn with all its rows: the cluster of the protein, else the protein.
        draws: how many resamples.
        seed: of the draws; the same seed and as many units give the same resamples.

    Raises:
        StudyError: all rows are of one unit.
    """

    def __init__(self, units: Sequence[Hashable] | Array, draws: int = DRAWS, seed: int = 0):
        number: dict[Hashable, int] = {}
        self.of_rows = np.array([number.setdefault(unit, len(number)) for unit in units], dtype=np.int64)
        self.rows, self.units, self.draws, self._seed = len(self.of_rows), len(number), draws, seed
        if self.units < 2:
            raise StudyError(
                f"test set: all {self.rows} rows are of one protein or cluster ({', '.join(map(str, number))}), but "
                "intervals say what other ones would give; choose a split with at least 2 in the test set"
            )

    @cached_property
    def counts(self) -> Array:
        """How often each unit is in each resample, `(draws, units)`; none is in one 256 times."""
        stream = np.random.Generator(np.random.PCG64(self._seed))
        counts = np.empty((self.draws, self.units), dtype=np.uint8)
        step = max(1, _BLOCK // self.units)
        for block in (counts[first : first + step] for first in range(0, self.draws, step)):
            places = stream.integers(0, self.units, block.shape) + np.arange(0, block.size, self.units)[:, None]
            block[:] = np.bincount(places.ravel(), minlength=block.size).reshape(block.shape)
        return counts

    def blocks(self) -> Iterator[Array]:
        """Give the resamples some at a time, `(some, units)`, so that weights of all their rows fit into memory."""
        step = max(1, _BLOCK // self.rows)
        for first in range(0, self.draws, step):
            yield self.counts[first : first + step]

    def take(self, measures: Sequence[Measure], truth: Truth | None = None) -> tuple[Array, Array]:
        """Score on all test rows, `(measures,)`, and on the same resamples of them each, `(measures, draws)`.

        Args:
            measures: of any networks and layers.
            truth: what they were prepared with, of units `of_rows`; it weighs a block of resamples once for all.
        """
        values = np.array([measure()[0] for measure in measures], dtype=np.float64)
        draws, first = np.empty((len(measures), self.draws)), 0
        for counts in self.blocks():
            weights = truth.weighted(counts) if truth else counts
            for row, measure in zip(draws, measures, strict=True):
                row[first : first + len(counts)] = measure(weights)
            first += len(counts)
        return values, draws

    def spread(self, values: Array, draws: Array) -> Array:
        """Put draws about the values that they are of, and as far from these as so many units allow to say.

        Resampling shifts a metric beside scattering it. Its scatter is too small by `sqrt((units - 1) / units)`, and a
        guess itself, for which Student's t is wider than the normal.
        """
        wider = stats.t.ppf(_TAIL, self.units - 1) / stats.norm.ppf(_TAIL) * np.sqrt(self.units / (self.units - 1))
        about = values[..., None] + wider * (draws - draws.mean(-1, keepdims=True))
        return np.minimum(about, 1.0)  # which no metric exceeds

    def interval(self, values: Array, draws: Array, least: float = -np.inf) -> tuple[Array, Array]:
        """Return where the 95% intervals of scores begin and end: over test proteins, for these networks as they are.

        Args:
            values: scores, of any shape.
            draws: the same on each resample, `(..., draws)`.
            least: of the metric.
        """
        return _within(_interval(self.spread(values, draws)), least)


def _interval(draws: Array) -> tuple[Array, Array]:
    """Return the ends of 95% intervals; they are draws, so that they agree with p-values, which count these."""
    beyond = max(int((1 - _TAIL) * (draws.shape[-1] + 1) + 1e-9) - 1, 0)
    ends = np.partition(draws, (beyond, draws.shape[-1] - 1 - beyond), axis=-1)
    return ends[..., beyond], ends[..., -1 - beyond]


def _within(ends: tuple[Array, Array], least: float) -> tuple[Array, Array]:
    """Keep the ends of intervals of scores where scores can be."""
    low, high = (np.clip(end, least, 1.0) for end in ends)
    return low, high


@dataclass(frozen=True)
class Sampled:
    """What one network scores by one metric.

    Args:
        network: its name.
        values: on all test rows, `(layers,)`.
        draws: on each resample, `(layers, draws)`.
    """

    network: str
    values: Array
    draws: Array


class _Seeds:
    """The seeds of one control; their mean stands for what any seed would give.

    Args:
        seeds: their scores.
        resamples: those of the draws.
    """

    def __init__(self, seeds: Sequence[Sampled], resamples: Resamples):
        values = np.stack([seed.values for seed in seeds])
        spread = np.stack([resamples.spread(seed.values, seed.draws) for seed in seeds])
        self.count, self.mean, self.on_rows = len(seeds), _mean(values), _mean(spread)
        self.sd: Array | None = None
        self.variance, self.draws = np.zeros_like(self.mean), self.on_rows
        if self.count > 1:
            self.sd = np.sqrt(((values - self.mean) ** 2).sum(0) / (self.count - 1))
            # the test rows set seeds apart too, which is in the resamples already
            by_rows = (spread - values[..., None]).var(0, ddof=1).mean(-1)
            self.variance = np.maximum(self.sd**2 - by_rows, 0) / self.count
            self.draws = self.on_rows + np.sqrt(self.variance)[:, None] * self._others(resamples.draws)

    def _others(self, draws: int) -> Array:
        """Return how far off the mean of so few seeds may be: quantiles of t, in an order of their own."""
        quantiles: Array = stats.t.ppf((np.arange(draws) + 0.5) / draws, self.count - 1)
        return np.random.Generator(np.random.PCG64(self.count)).permutation(quantiles)


def _mean(values: Array) -> Array:
    """Return the mean over the first axis, which of equal values is that value."""
    first = values[0]
    mean: Array = first + (values - first).mean(0)
    return mean


def _holm(p: Array) -> Array:
    """Correct the p-values of one family, so that any at all is false with a chance of at most their limit."""
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return corrected


def _share(control: Array, base: Array) -> tuple[Array, Array]:
    """Return the intervals of `control / base` over draws, of which few have a `base` that is not above 0."""
    below = np.where(control > 0, np.inf, -np.inf)
    return _interval(np.divide(control, base, out=below, where=base > 0))


def contrasts(
    base: Sampled,
    controls: Mapping[str, Sequence[Sampled]],
    guess: Sampled,
    layers: Sequence[int | None],
    resamples: Resamples,
    least: float = -np.inf,
) -> tuple[Contrast, ...]:
    """Hold the base against each control, layer by layer.

    The interval of a control's mean covers what the mean over all seeds that there could be scores on all proteins
    that there could be in the test set; those of the difference and of the share likewise, the base being one network.
    Where a control has one seed, they cover what this very network scores.

    Args:
        base: its scores by layer.
        controls: those of the seeds of each, by the name of the control without seed.
        guess: the score of guessing, as of one layer.
        layers: what the scores are of: the numbers of layers, and `None` where each network is at its own best one.
        resamples: those that the draws are of.
        least: of the metric.

    Returns:
        Control by control, in the order of the layers. Holm's correction is over layers and controls; of `None`, which
        is one question a control, over controls. Where a control leaves a representation as it is, there is no share
        and no question.
    """
    ahead = _Ahead(base, guess, resamples, least)
    found = [one for group, seeds in controls.items() for one in ahead.of(group, _Seeds(seeds, resamples), layers)]
    corrected = np.empty(len(found))
    corrected[:] = 1  # of what is the base itself, nothing is asked
    for chosen in (True, False):
        family = np.array([(one.layer is None) == chosen and not one.is_base for one in found], dtype=bool)
        corrected[family] = _holm(np.array([one.p for one in found])[family])
    return tuple(replace(one, p_holm=float(p)) for one, p in zip(found, corrected, strict=True))


class _Ahead:
    """How far the base is ahead of guessing, and of a control.

    Args:
        base: its scores.
        guess: the score of guessing.
        resamples: those of the draws.
        least: of the metric.
    """

    def __init__(self, base: Sampled, guess: Sampled, resamples: Resamples, least: float):
        self._base, self._guess, self._units, self._least = base, guess, resamples.units, least
        self._draws = resamples.spread(base.values, base.draws)
        self._guesses = resamples.spread(guess.values, guess.draws)
        self._above = self._draws - self._guesses

    def of(self, group: str, seeds: _Seeds, layers: Sequence[int | None]) -> Iterator[Contrast]:
        """Give a contrast a layer; its p-value is yet to be corrected."""
        difference, draws = self._base.values - seeds.mean, self._draws - seeds.draws
        above, share = self._base.values - self._guess.values, _share(seeds.draws - self._guesses, self._above)
        figures = {
            "mean": seeds.mean,
            "difference": difference,
            "p": self._p_values(seeds, difference, draws),
            **dict(zip(("low", "high"), _within(_interval(seeds.draws), self._least), strict=True)),
            **dict(zip(("difference_low", "difference_high"), _interval(draws), strict=True)),
        }
        least, most = _interval(self._above)
        for row, layer in enumerate(layers):
            of_layer = {name: float(values[row]) for name, values in figures.items()}
            apart = f"{above[row]:.3f} [{least[row]:.3f}, {most[row]:.3f}]"
            withheld = None if least[row] > 0 else f"the base is not surely above guessing: it is ahead by {apart}"
            if not draws[row].any() and difference[row] == 0:
                withheld = "the control leaves this representation as it is: all seeds score as the base does"
            there = withheld is None
            yield Contrast(
                group=group,
                layer=layer,
                seeds=seeds.count,
                sd=None if seeds.sd is None else float(seeds.sd[row]),
                p_holm=of_layer["p"],
                **of_layer,
                share=float((seeds.mean[row] - self._guess.values[0]) / above[row]) if there else None,
                share_low=float(share[0][row]) if there else None,
                share_high=float(share[1][row]) if there else None,
                withheld=withheld,
            )

    def _p_values(self, seeds: _Seeds, difference: Array, draws: Array) -> Array:
        """Return the two-sided p-values, which are below 0.05 where the interval leaves out 0.

        It is counted how many draws are on the other side of 0. Where hardly any is, a count says no more than that p
        is small, which no correction for many layers would leave so: there p is that of Student's t.
        """
        others, number = np.minimum((draws <= 0).sum(-1), (draws >= 0).sum(-1)), draws.shape[-1]
        counted = np.minimum(2 * (1 + others) / (1 + number), 1)
        on_rows = (self._draws - seeds.on_rows).var(-1, ddof=1)
        variance, known = on_rows + seeds.variance, on_rows > 0
        # Satterthwaite's degrees of freedom
        doubt = on_rows**2 / (self._units - 1) + seeds.variance**2 / max(seeds.count - 1, 1)
        freedom = np.divide(variance**2, doubt, out=np.ones_like(doubt), where=known)
        t = np.divide(np.abs(difference), np.sqrt(variance), out=np.zeros_like(doubt), where=known)
        seen = number / 200
        tail = np.clip(2 * stats.t.sf(t, freedom), _LEAST_P, 2 * (1 + seen) / (1 + number))
        found: Array = np.where(known & (others < seen), tail, counted)
        return found


def cautions(
    base: Sampled,
    controls: Mapping[str, Sequence[Sampled]],
    guess: Sampled,
    layers: Sequence[int | None],
    resamples: Resamples,
) -> tuple[str, ...]:
    """Say what a reader has to know about the intervals, in sentences.

    Args:
        base: as of `contrasts`. Where all seeds score as the base does, the control leaves the layer as it is.
        controls: as of `contrasts`.
        guess: as of `contrasts`. Where all seeds score as guessing does, their probes say one thing of all rows.
        layers: as of `contrasts`.
        resamples: those of the draws.
    """
    said = []
    if resamples.units < FEW_UNITS:
        what = (
            "no interval of so few can be trusted"
            if resamples.units < _TOO_FEW
            else f"with less than {FEW_UNITS}, intervals of 95% may cover the truth in some 90 to 99%"
        )
        said.append(f"the test set has {resamples.units} proteins or clusters to resample; {what}")
    for group, seeds in controls.items():
        names = ", ".join(seed.network for seed in seeds)
        if len(seeds) == 1:
            said.append(f"{group} has one seed ({names}): its intervals are of that network alone, not of other seeds")
            continue
        apart = np.ptp([seed.values for seed in seeds], axis=0)
        # the best layer of a control may be one that it leaves alone
        expected = np.isin(seeds[0].values, [*base.values, *guess.values])
        alike = (apart <= _SAME) & ~expected
        if same := [layer for layer, odd in zip(layers, alike, strict=True) if odd]:
            where = ", ".join("the best layer" if layer is None else f"layer {layer}" for layer in same)
            where = "every layer" if len(same) == len(layers) else where
            said.append(
                f"{group}: all seeds score the same (a standard deviation of 0), and not as the base does, at {where};"
                f" see whether their weights differ: {names}"
            )
    return tuple(said)


def degeneracy(x: Array, lengths: Array) -> tuple[float, float, float]:
    """Return how far representations are alike; three zeros where all are equal.

    Args:
        x: representations, `(n, hidden_size)`.
        lengths: residues of the protein of each, `(n,)`.

    Returns:
        The mean cosine of all pairs of different rows after the mean of all was taken off, where a row that is the mean
        counts as at right angles to all; the participation ratio `(tr C)^2 / tr C^2` of their covariance `C`, which is
        `k` where they vary in `k` directions alike; and the share of their variance, over all features, that a straight
        line in the length explains.
    """
    mean, about = x.mean(0, dtype=np.float64), lengths - lengths.mean()
    (n, hidden), kind = x.shape, np.result_type(x, np.float32)
    gram, slopes, sums = np.zeros((hidden, hidden)), np.zeros(hidden), np.zeros(hidden)
    directed, step = 0, max(1, _BLOCK // hidden)
    for rows in (slice(first, first + step) for first in range(0, n, step)):
        centred = (x[rows] - mean).astype(kind)
        gram += centred.T @ centred
        slopes += about[rows] @ centred
        norms = np.sqrt(np.einsum("ij,ij->i", centred, centred, dtype=np.float64))
        sums += np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0) @ centred
        directed += np.count_nonzero(norms)
    total = float(np.trace(gram))
    if total <= _NO_SPREAD**2 * (total + n * float(mean @ mean)):
        return 0.0, 0.0, 0.0
    # all pairs, without those of a row and itself
    cosine = (float(sums @ sums) - directed) / (n * (n - 1))
    explained = float(slopes @ slopes) / (float(about @ about) * total) if about.any() else 0.0
    return cosine, total**2 / float(np.vdot(gram, gram)), min(explained, 1.0)
