"""How often the intervals of `hf-perturb study` hold what they should, in simulated worlds in which that is known.

python benchmarks/coverage.py                       500 studies of every world, as a table in Markdown
python benchmarks/coverage.py --metric spearman     of one metric

A base scores better than a control, whose seeds differ. What makes figures uncertain is, by turns, mostly which rows
are in the test set (`test`), how good each seed is (`seeds`), or on which rows each of them fails (`rows of seeds`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats

from hf_perturb.studies.metrics import Truth, prepare
from hf_perturb.studies.statistics import Resamples, Sampled, contrasts

Array = np.ndarray
# share of the errors that all networks make on the same rows, and how far apart the quality of seeds is
NOISE = {"test": (0.9, 0.0), "seeds": (0.5, 0.12), "rows of seeds": (0.0, 0.0)}
# quality of base and control: correlation of prediction and truth, its square of R2
QUALITY = {"spearman": (0.618, 0.365), "r2": (0.6, 0.35), "balanced_accuracy": (0.75, 0.45), "mcc": (0.75, 0.45)}
GUESS = {"balanced_accuracy": 0.5}
ALIKE = 0.3  # correlation of rows of one cluster or protein
POSITIVE = 0.5  # from which a row is of the positive class
BATCH = 250  # studies at a time
FIGURES = ("score", "mean", "difference", "share")


@dataclass(frozen=True)
class World:
    """What is studied.

    Args:
        metric: of predictions.
        noise: what makes figures uncertain, of `NOISE`.
        rows: of the test set.
        layout: `rows` that are each their own, in `clusters` of 1 to 20, or `residues`, 20 a protein.
    """

    metric: str
    noise: str
    rows: int
    layout: str = "rows"

    @cached_property
    def units(self) -> Array:
        """The number of the cluster or protein of each row, ascending."""
        sizes = {
            "rows": np.ones(self.rows, dtype=int),
            "clusters": np.random.default_rng(self.rows).integers(1, 21, self.rows),
            "residues": np.full(self.rows, 20),
        }[self.layout]
        return np.repeat(np.arange(self.rows), sizes)[: self.rows]

    def _normal(self, stream: np.random.Generator, *shape: int) -> Array:
        """Return standard normal numbers, `(*shape, rows)`, which are alike in a unit."""
        units = self.units
        own, shared = stream.standard_normal((*shape, len(units))), stream.standard_normal((*shape, units[-1] + 1))
        return np.sqrt(1 - ALIKE) * own + np.sqrt(ALIKE) * shared[..., units]

    def draw(self, stream: np.random.Generator, times: int, seeds: int) -> tuple[Array, Array]:
        """Return truths `(times, rows)` and predictions `(times, 1 + seeds, rows)`, of the base first."""
        shared, apart = NOISE[self.noise]
        base, control = QUALITY[self.metric]
        quality = np.full((times, 1 + seeds, 1), base)
        quality[:, 1:] = control + apart * stream.standard_normal((times, seeds, 1))
        if self.metric == "r2":
            quality = np.sqrt(np.maximum(quality, 0))
        truth, errors = self._normal(stream, times), self._normal(stream, times)
        errors = np.sqrt(shared) * errors[:, None] + np.sqrt(1 - shared) * self._normal(stream, times, 1 + seeds)
        predictions = quality * truth[:, None] + np.sqrt(1 - quality**2) * errors
        if self.metric in ("balanced_accuracy", "mcc"):
            return (truth > POSITIVE).astype(int), (predictions > POSITIVE).astype(int)
        return truth, predictions * quality if self.metric == "r2" else predictions

    @property
    def population(self) -> tuple[float, float]:
        """What the base scores, and the mean of all seeds, on all rows that there could be."""
        base, control = QUALITY[self.metric]
        seeds = control + NOISE[self.noise][1] * stats.norm.ppf((np.arange(200) + 0.5) / 200)
        return self._expected(base), float(np.mean([self._expected(seed) for seed in seeds]))

    def _expected(self, quality: float) -> float:
        if self.metric == "r2":
            return max(quality, 0)
        if self.metric == "spearman":
            return float(6 / np.pi * np.arcsin(quality / 2))
        positive = stats.norm.sf(POSITIVE)
        right = stats.multivariate_normal(cov=[[1, quality], [quality, 1]]).cdf([-POSITIVE] * 2)
        if self.metric == "mcc":
            return float((right - positive**2) / (positive * (1 - positive)))
        return float((right / positive + (1 - 2 * positive + right) / (1 - positive)) / 2)


def scores(metric: str, truths: Array, predictions: Array, weights: Array, units: Array) -> Array:
    """Return a metric of all simulations on all resamples, `(times, networks, resamples)`.

    Args:
        metric: its name.
        truths: `(times, rows)`.
        predictions: `(times, networks, rows)`.
        weights: how often each unit is there, `(resamples, units)`.
        units: ascending, `(rows,)`.
    """
    if metric == "spearman":
        found = np.empty((*predictions.shape[:2], len(weights)))
        for one, values, networks in zip(found, truths, predictions, strict=True):
            truth = Truth(values, units)
            block = truth.weighted(weights)
            one[:] = [prepare(metric, truth, network)(block) for network in networks]
        return found
    starts = np.flatnonzero(np.diff(units, prepend=-1))

    def total(of_rows: Array) -> Array:
        return np.add.reduceat(of_rows.astype(np.float64), starts, axis=-1) @ weights.T

    every, truth = total(np.ones(len(units))), truths[:, None]
    if metric == "r2":
        return 1 - total((truth - predictions) ** 2) / (total(truth**2) - total(truth) ** 2 / every)
    positive, right, found = total(truth), total(truth * predictions), total(predictions)
    wrong = total((1 - truth) * (1 - predictions))
    negative = every - positive
    if metric == "balanced_accuracy":
        there = 0.0 + (positive > 0) + (negative > 0)
        return (right / np.maximum(positive, 1) + wrong / np.maximum(negative, 1)) / there
    scale = np.sqrt(positive * negative * found * (every - found))
    return np.divide(
        right * wrong - (found - right) * (positive - right), scale, out=np.zeros_like(scale), where=scale > 0
    )


def coverage(world: World, times: int, seeds: tuple[int, ...] = (3, 5)) -> dict[int, dict[str, float]]:
    """Return in what percentage of studies each interval holds what is true, and how often a share is told, by seeds.

    Args:
        world: what is studied.
        times: how many studies.
        seeds: numbers of seeds.
    """
    stream, resamples = np.random.default_rng(7), Resamples(world.units)
    held: dict[int, dict[str, list[bool]]] = {number: {name: [] for name in FIGURES} for number in seeds}
    for first in range(0, times, BATCH):
        truths, predictions = world.draw(stream, min(BATCH, times - first), max(seeds))
        for number, parts in _held(world, truths, predictions, resamples, seeds):
            for name, part in parts.items():
                held[number][name] += part
    return {
        number: {name: 100 * float(np.mean(part)) for name, part in parts.items()} | {"told": len(parts["share"])}
        for number, parts in held.items()
    }


def _held(
    world: World, truths: Array, predictions: Array, resamples: Resamples, seeds: tuple[int, ...]
) -> Iterator[tuple[int, dict[str, list[bool]]]]:
    """Give, by the number of seeds, which intervals of some studies hold what is true."""
    weights = np.concatenate([np.ones((1, resamples.units)), resamples.counts])
    # networks first: to the statistics, studies are layers
    found = np.moveaxis(scores(world.metric, truths, predictions, weights, world.units), 1, 0)
    base, *controls = (Sampled(str(number), each[:, 0], each[:, 1:]) for number, each in enumerate(found))
    guess = np.full((1, resamples.draws), GUESS.get(world.metric, 0.0))
    score, mean = world.population
    share = (mean - guess[0, 0]) / (score - guess[0, 0])
    low, high = resamples.interval(base.values, base.draws)
    for number in seeds:
        of_seeds = {"": controls[:number]}
        studies = contrasts(base, of_seeds, Sampled("", guess[:, 0], guess), range(len(truths)), resamples)
        told = [(each.share_low, each.share_high) for each in studies if each.share is not None]
        yield (
            number,
            {
                "score": ((low <= score) & (score <= high)).tolist(),
                "mean": [each.low <= mean <= each.high for each in studies],
                "difference": [each.difference_low <= score - mean <= each.difference_high for each in studies],
                "share": [low <= share <= high for low, high in told],
            },
        )


def worlds(metrics: list[str]) -> Iterator[World]:
    """Give every world, those of one metric together."""
    for metric in metrics:
        for noise in NOISE:
            for rows, layout in (
                (100, "rows"),
                (1000, "rows"),
                (100, "clusters"),
                (300, "clusters"),
                (1000, "clusters"),
                (1000, "residues"),
            ):
                yield World(metric, noise, rows, layout)


def main() -> None:
    """Parse the command line, simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metric", nargs="+", choices=QUALITY, default=[*QUALITY])
    parser.add_argument("--studies", type=int, default=500, help="of each world; default: %(default)s")
    options = parser.parse_args()
    print("| metric | noise | test rows | units | seeds |", " | ".join(FIGURES), "| shares told |")
    print("| --- " * (6 + len(FIGURES)) + "|")
    for world in worlds(options.metric):
        for seeds, held in coverage(world, options.studies).items():
            shown = " | ".join(f"{held[name]:.1f}" for name in FIGURES)
            what = f"{world.rows} {world.layout}" if world.layout != "rows" else str(world.rows)
            about = f"{world.metric} | {world.noise} | {what} | {world.units[-1] + 1} | {seeds}"
            print(f"| {about} | {shown} | {held['told']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
