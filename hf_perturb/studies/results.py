"""What a study found, as plain data: tables, picture and words are made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from hf_perturb.studies.task import Task


@dataclass(frozen=True)
class Score:
    """How well one network does by one metric, on the test rows: a row of `scores.parquet`.

    Args:
        network: `base`, a control by the name of its folder, or a baseline.
        kind: `base`, `control` or `baseline`.
        group: of a control its name without the seed, which those of one perturbation share, and of shuffled labels,
            of which there are several orders; else the network.
        method: of a control, as `rules`, `axis`, `scope`, `seed` and the `digest` of its weights.
        layer: the representation; `None` of a baseline, and of what is chosen where folds choose different ones.
        chosen: whether this is what was best on validation rows, of all layers of the network.
        probe: `ridge`, `logistic` or `knn`; what else gives predictions says how.
        strength: of the probe, chosen on validation rows; `None` where folds chose different ones.
        split: what says which rows are for what.
        metric: name of the metric.
        value: on all test rows.
        low: where its 95% interval begins.
        high: where it ends.
        n: test rows.
        validation: on validation rows; of inner folds, on what they held out.
    """

    network: str
    kind: str
    group: str
    method: str | None
    rules: str | None
    axis: str | None
    scope: str | None
    seed: int | None
    digest: str | None
    layer: int | None
    chosen: bool
    probe: str
    strength: float | None
    split: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    validation: float | None


def _in_one(scores: Sequence[Score]) -> Score:
    """Return the mean of scores, with an interval that holds all of theirs."""
    first, *others = scores
    if not others:
        return first
    low, high = min(score.low for score in scores), max(score.high for score in scores)
    mean = fmean(score.value for score in scores)
    return replace(first, network=first.group, value=mean, low=low, high=high, strength=None, validation=None)


@dataclass(frozen=True)
class Contrast:
    """The base against the seeds of one control, by the main metric.

    Args:
        group: the name of the control without its seed.
        layer: the representation; `None`: each network at its own best one.
        seeds: how many networks.
        mean: of their scores.
        sd: over the seeds; `None` of a single one.
        low: where the 95% interval of the mean begins, over test rows and seeds.
        high: where it ends.
        difference: base less `mean`, and its interval.
        p: that there is no difference, two-sided.
        p_holm: the same, corrected by Holm's procedure over all layers and controls.
        share: (mean - guess) / (base - guess), and its interval: what is there without training.
        withheld: why there is no share.
    """

    group: str
    layer: int | None
    seeds: int
    mean: float
    sd: float | None
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    p: float
    p_holm: float
    share: float | None
    share_low: float | None
    share_high: float | None
    withheld: str | None

    @property
    def is_base(self) -> bool:
        """Whether the control leaves the representation as it is: no resample tells it from the base."""
        return self.difference == self.difference_low == self.difference_high == 0


@dataclass(frozen=True)
class Degeneracy:
    """How far the representations of one layer are alike.

    Args:
        cosine: mean cosine of pairs, after the mean was taken off.
        participation: participation ratio of the covariance: in how many directions they differ.
        length: share of their variance that the length of a protein explains.
    """

    network: str
    group: str
    layer: int
    cosine: float
    participation: float
    length: float


@dataclass(frozen=True)
class Results:
    """All that a study found.

    Args:
        about: what was studied and how, as JSON. `methods.md` is made of `model`, `data` (`name`, `digest`, `target`,
            `sets`: by name, each with its `proteins` and `rows`), `split` (`name`, `folds`, `inner` folds, or 0, and
            how many `clusters`, or `None`), `options` (`probe`, `pool`, `resamples`, `seed`), `strengths`,
            `embedding` (perhaps with `dtype` and `revision`), `networks` (of each its `digest`) and `versions`.
        task: what was to be predicted.
        metric: the main one, by which strengths and layers were chosen.
        warnings: what a reader has to know before believing a figure.
        notes: what was inferred, left out or sampled.
    """

    about: dict[str, Any]
    task: Task
    metric: str
    scores: tuple[Score, ...]
    contrasts: tuple[Contrast, ...]
    degeneracy: tuple[Degeneracy, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def base(self) -> Score:
        """The base, at what was best on validation rows."""
        return next(score for score in self.of("base") if score.chosen)

    @property
    def guess(self) -> float:
        """What guessing reaches."""
        return self.of("guess")[0].value

    @property
    def baselines(self) -> tuple[Score, ...]:
        """What does without the representations of any layer, guessing first; of shuffled labels all orders in one."""
        groups: dict[str, list[Score]] = {}
        for score in self.scores:
            if score.kind == "baseline" and score.metric == self.metric:
                groups.setdefault(score.group, []).append(score)
        return tuple(sorted(map(_in_one, groups.values()), key=lambda score: score.network != "guess"))

    @property
    def groups(self) -> tuple[str, ...]:
        """The controls by name without seed, in the order in which they were asked for."""
        return tuple(dict.fromkeys(score.group for score in self.scores if score.kind == "control"))

    @property
    def layers(self) -> tuple[int, ...]:
        """Which representations of the base were probed."""
        return tuple(sorted({score.layer for score in self.of("base") if score.layer is not None}))

    def of(self, network: str) -> tuple[Score, ...]:
        """Return what a network reaches by the main metric."""
        return tuple(score for score in self.scores if (score.network, score.metric) == (network, self.metric))

    def seeds_of(self, group: str) -> tuple[Score, ...]:
        """Return what each network of a control reaches at what was best for it on validation rows."""
        found = (score for score in self.scores if (score.kind, score.group) == ("control", group) and score.chosen)
        return tuple(score for score in found if score.metric == self.metric)

    def contrast(self, group: str, layer: int | None = None) -> Contrast | None:
        """Return the base against a control at a layer; without one, each at its own best; `None` if there is none."""
        return next((each for each in self.contrasts if (each.group, each.layer) == (group, layer)), None)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Results:
        """Make it again of what `to_dict` returned."""
        task = given["task"]
        return cls(
            about=given["about"],
            task=Task(task["kind"], task["level"], tuple(task["classes"])),
            metric=given["metric"],
            scores=tuple(Score(**each) for each in given["scores"]),
            contrasts=tuple(Contrast(**each) for each in given["contrasts"]),
            degeneracy=tuple(Degeneracy(**each) for each in given["degeneracy"]),
            warnings=tuple(given["warnings"]),
            notes=tuple(given["notes"]),
        )
