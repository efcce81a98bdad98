"""What a study found, as plain data: tables, picture and words are made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_perturb.study.task import Task


@dataclass(frozen=True)
class Score:
    """How well one network does by one metric, on the test rows: a row of `scores.parquet`.

    Args:
        network: `base`, a control by the name of its folder, or a baseline.
        kind: `base`, `control` or `baseline`.
        group: of a control its name without the seed, which those of one perturbation share; else the network.
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
        about: what was studied and how, as JSON: model, data, split, options, versions, networks.
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
