"""Made-up results of a study: any number of layers, controls and seeds, without running anything."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from hf_perturb.studies.results import Contrast, Degeneracy, Results, Score
from hf_perturb.studies.task import Task

REGRESSION = Task("regression", "protein")
BINARY = Task("binary", "protein", ("bacterium", "eukaryote"))
CLASSES = Task("classes", "residue", ("metal", "none", "nuclear", "small"))
SIX = ("reinit", "resample-all", "resample-embedding", "gaussian", "reinit-top4", "resample-all-top4")
SIMPLE = {"length": 0.11, "composition": 0.35, "one-hot": 0.33, "representation 0": 0.36, "shuffled labels": 0.01}


def score(network: str, value: float, layer: int | None = None, **fields: Any) -> Score:
    """Return a row, its interval 0.04 to each side."""
    group, _, seed = network.partition("-seed")
    kind = "base" if network == "base" else "control" if seed else "baseline"
    method = group.partition("-")[0] if seed else None
    given = {
        "kind": kind,
        "group": group,
        "method": method,
        "rules": "documented" if seed else None,
        "axis": None,
        "scope": (group.partition("-top")[2] and f"top:{group[-1]}") or None,
        "seed": int(seed) if seed else None,
        "digest": f"sha256:{network}" if kind != "baseline" else None,
        "chosen": False,
        "probe": "ridge",
        "strength": 10.0,
        "split": "column",
        "metric": "spearman",
        "low": value - 0.04,
        "high": value + 0.04,
        "n": 1745,
        "validation": value + 0.01,
        **fields,
    }
    return Score(network=network, layer=layer, value=value, **given)


def with_zero_shot(made: Results, **values: float) -> Results:
    """Add what networks predict without a probe: of the base, and of the seeds of controls, each a little more."""
    networks = dict.fromkeys(each.network for each in made.scores if each.kind != "baseline")
    more = []
    for network in networks:
        group, _, seed = network.partition("-seed")
        value = values.get(group.replace("-", "_"), 0.1) + 0.02 * int(seed or 0)
        more.append(score(network, value, probe="masked marginals"))
    return replace(made, scores=(*made.scores, *more))


def record(one: Score) -> dict[str, Any] | None:
    """Return what was done to the weights of a control."""
    if one.kind != "control":
        return None
    done = {"method": one.method, "seed": one.seed, "rules": one.rules}
    return done | ({"scope": [one.scope]} if one.scope else {})


def contrast(group: str, mean: float, layer: int | None = None, *, base: float, guess: float, seeds: int) -> Contrast:
    """Return a contrast whose share follows from its numbers."""
    share = (mean - guess) / (base - guess) if base - 0.04 > guess else None
    return Contrast(
        group=group,
        layer=layer,
        seeds=seeds,
        mean=mean,
        sd=0.02 if seeds > 1 else None,
        low=mean - 0.05,
        high=mean + 0.05,
        difference=base - mean,
        difference_low=base - mean - 0.04,
        difference_high=base - mean + 0.04,
        p=0.0005,
        p_holm=0.008,
        share=share,
        share_low=None if share is None else share - 0.08,
        share_high=None if share is None else share + 0.08,
        withheld=None if share is not None else "the base is not above guessing",
    )


def results(
    layers: int = 17,
    controls: tuple[str, ...] = ("reinit",),
    seeds: int = 5,
    *,
    task: Task = REGRESSION,
    metric: str = "spearman",
    base: float = 0.61,
    control: float = 0.38,
    guess: float = 0.0,
    simple: dict[str, float] | None = None,
    by_fold: bool = False,
) -> Results:
    """Make results in which the base rises to `base` at a late layer, and controls fall from the first one.

    Args:
        layers: how many representations.
        controls: names without seeds.
        seeds: of each control.
        task: what was predicted.
        metric: the main one.
        base: its score at the chosen layer.
        control: mean score of the first control; each further one is a little lower.
        guess: what guessing reaches.
        simple: what the further baselines reach.
        by_fold: whether folds chose different layers.
    """
    best = (3 * (layers - 1)) // 4
    shape = {"split": "kfold:5" if by_fold else "column", "metric": metric}
    scores = [score("guess", guess, low=guess, high=guess, probe="mean", **shape)]
    scores += [score(name, value, **shape) for name, value in (SIMPLE if simple is None else simple).items()]
    contrasts = []
    curve = [base - (base - 0.3) * abs(layer - best) / max(layers, 2) for layer in range(layers)]
    for layer, value in enumerate(curve):
        scores.append(score("base", value, layer, chosen=layer == best and not by_fold, **shape))
    if by_fold:
        scores.append(score("base", base, chosen=True, **{**shape, "strength": None}))
    for number, group in enumerate(controls):
        top = control - 0.04 * number
        means = [top - 0.1 * (layer / layers) - 0.015 * math.sin(layer + number) for layer in range(layers)]
        first = min(1, layers - 1)
        means[first] = top
        for layer, mean in enumerate(means):
            contrasts.append(contrast(group, mean, layer, base=curve[layer], guess=guess, seeds=seeds))
            scores += [
                score(
                    f"{group}-seed{seed}",
                    mean + 0.01 * (seed - seeds // 2),
                    layer,
                    chosen=layer == first and not by_fold,
                    **shape,
                )
                for seed in range(seeds)
            ]
        if by_fold:
            scores += [score(f"{group}-seed{seed}", top, chosen=True, **shape) for seed in range(seeds)]
        contrasts.append(contrast(group, top, base=base, guess=guess, seeds=seeds))
    degeneracy = [Degeneracy("base", "base", layer, 0.001 * layer, 40.0 - layer, 0.05) for layer in range(layers)]
    networks = {each.network: {"digest": each.digest, "record": record(each)} for each in scores if each.digest}
    made = Results(about(networks), task, metric, tuple(scores), tuple(contrasts), tuple(degeneracy), (), ())
    return replace(made, warnings=("similar sequences may be in several folds",)) if by_fold else made


def about(networks: dict[str, Any]) -> dict[str, Any]:
    """Return what a study says of itself."""
    sets = {"train": 5089, "validation": 1899, "test": 1745}
    return {
        "model": "demo",
        "data": {
            "name": "two_vs_rest.csv",
            "digest": "sha256:abc",
            "target": "target",
            "sets": {name: {"proteins": count, "rows": 10 * count} for name, count in sets.items()},
        },
        "split": {"name": "column", "folds": 1, "inner": 0, "clusters": None},
        "options": {"probe": "ridge", "pool": "mean", "resamples": 2000, "seed": 0},
        "strengths": [1e5, 1e3, 10.0, 0.1],
        "embedding": {"dtype": "float32"},
        "networks": networks,
        "versions": {"hf_perturb": "0.1.0", "numpy": "2.0.0", "scikit-learn": "1.5.0"},
    }
