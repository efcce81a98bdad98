"""Probes of every layer of everything that is studied; what each found is kept, so that a killed run goes on."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from hf_perturb.perturbation.parallel import for_each, processors
from hf_perturb.storage.folders import nothing_written, replaced_file
from hf_perturb.studies.features import GUESS, Source
from hf_perturb.studies.probes import DEFAULT, PROBES, Probe, choose, level
from hf_perturb.studies.rows import FoldRows, Rows
from hf_perturb.studies.statistics import degeneracy
from hf_perturb.studies.task import Task

_AT_ONCE = 4  # layers, each with its features in float64 and as much again

Place = tuple[str, int | None]  # name of a source, and layer


@dataclass(frozen=True)
class Found:
    """What a probe found in one layer of something.

    Args:
        prediction: of the test rows, fold after fold: `(rows,)` of a regression, else probabilities `(rows, classes)`.
        strengths: number of the strength that each fold chose.
        validation: score on validation rows, of each fold.
        edges: of each fold, where the strength is the last of those tried: `strongest` or `weakest`, else empty.
        alike: how far what the probe is given is alike; see `degeneracy`.
        warnings: what was not as it should be on the way.
    """

    prediction: NDArray[np.float64]
    strengths: NDArray[np.int64]
    validation: NDArray[np.float64]
    edges: NDArray[np.str_]
    alike: NDArray[np.float64]
    warnings: NDArray[np.str_]


@dataclass(frozen=True)
class Probing:
    """How all of a study is probed.

    Args:
        rows: of the study.
        lengths: residues of each protein.
        task: what is predicted.
        probe: what is trained.
        metric: by which strengths and layers are chosen.
        folder: where what was found is kept.
        key: what decides it beside name and layer; what was kept under another is not used.
    """

    rows: Rows
    lengths: NDArray[np.int64]
    task: Task
    probe: Probe
    metric: str
    folder: Path
    key: str

    def run(self, sources: Sequence[Source], progress: Callable[[int, int], object]) -> dict[Place, Found]:
        """Probe each layer of each source; several at a time, as their problems are small, but not all in memory."""
        wanted = [(source, layer) for source in sources for layer in source.layers]
        found: dict[Place, Found] = {}
        progress(0, len(wanted))

        def work(one: tuple[Source, int | None]) -> None:
            source, layer = one
            found[source.name, layer] = self._kept(source, layer)
            progress(len(found), len(wanted))

        jobs = min(_AT_ONCE, processors())
        with threadpool_limits(processors() // jobs):
            for_each(work, wanted, jobs)
        return found

    def _kept(self, source: Source, layer: int | None) -> Found:
        path = self.folder / f"{source.name.replace(' ', '-')}-{'all' if layer is None else layer}.npz"
        if (found := _read(path, self.key)) is None:
            found = self._probe(source, layer)
            with nothing_written(path), replaced_file(path) as file:
                np.savez(file, key=np.array(self.key), **vars(found))
        return found

    def _probe(self, source: Source, layer: int | None) -> Found:
        """Choose and train in each fold, and predict its test rows."""
        features = source.features(layer)
        predictions, choices = [], []
        for number, fold in enumerate(self.rows.folds):
            truth = self.rows.truth if source.shuffled is None else self._shuffled(number, fold, source.shuffled)
            # of features that are all equal, neighbours are any
            probe = PROBES[DEFAULT[self.task.kind]] if source.name == GUESS else self.probe
            choices.append(choose(probe, features, truth, fold, self.metric, self.task))
            predictions.append(choices[-1].predict(features[fold.test]))
        if source.name == GUESS:
            # also of a class that some folds have not seen
            mean = np.mean([each[0] for each in predictions], axis=0)
            predictions = [np.broadcast_to(mean, each.shape) for each in predictions]
        else:
            seen = [self.rows.truth[fold.train] for fold in self.rows.folds]
            predictions = level(predictions, seen, self.task)
        return Found(
            np.concatenate(predictions),
            np.array([each.strength for each in choices]),
            np.array([each.score for each in choices], np.float64),
            np.array([each.edge or "" for each in choices], np.str_),
            np.array(degeneracy(features, self.lengths[self.rows.protein])),
            np.array([f"{source.name}: {said}" for each in choices for said in each.warnings], np.str_),
        )

    def _shuffled(self, number: int, fold: FoldRows, seeds: tuple[int, int]) -> NDArray[Any]:
        """Return the labels, with those of a fold's training rows, and of its validation rows, in another order."""
        truth, random = self.rows.truth.copy(), np.random.default_rng([*seeds, number])
        for rows in (fold.train, fold.validation):
            if rows is not None:
                truth[rows] = truth[random.permutation(rows)]
        return truth


def best_layers(found: Sequence[Found]) -> list[int]:
    """Return, of the layers of one source in order, the place of the one that is best on validation, for each fold."""
    return [int(place) for place in np.argmax([each.validation for each in found], axis=0)]


def _read(path: Path, key: str) -> Found | None:
    """Return what was kept, `None` where there is nothing, or something of another study."""
    try:
        # numpy leaves a damaged one open that it opened itself
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            if str(kept["key"]) != key:
                return None
            return Found(**{each.name: kept[each.name] for each in fields(Found)})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
