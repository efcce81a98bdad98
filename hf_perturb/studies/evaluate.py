"""What was predicted, made scores with intervals, and base and controls compared on the same resamples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_perturb.embedding.store import arrow
from hf_perturb.perturbation.parallel import for_each
from hf_perturb.storage.folders import nothing_written, replaced_file
from hf_perturb.studies.dataset import Dataset
from hf_perturb.studies.features import GUESS, Source
from hf_perturb.studies.metrics import METRICS, Truth, prepare
from hf_perturb.studies.probes import Probe
from hf_perturb.studies.probing import Found, Place, best_layers
from hf_perturb.studies.results import Score
from hf_perturb.studies.rows import Rows
from hf_perturb.studies.splits import Split
from hf_perturb.studies.statistics import Resamples, Sampled

Draws = NDArray[np.float64]


ZERO_SHOT = "masked marginals"  # in place of a probe
_NOTHING = SimpleNamespace(method=None, rules=None, axis=None, scope=(), seed=None)


@dataclass(frozen=True)
class Entry:
    """One row of predictions: of a source, in a layer or in what each fold chose."""

    source: Source
    layer: int | None
    chosen: bool
    found: Found

    @property
    def strength(self) -> int | None:
        """The strength that all folds chose."""
        first, *others = self.found.strengths.tolist()
        return None if any(other != first for other in others) else first


def entries_of(sources: Sequence[Source], found: Mapping[Place, Found], folds: Sequence[int]) -> dict[str, list[Entry]]:
    """Return what is scored of each source: its layers, and what its folds chose on validation rows if they differ.

    Args:
        sources: what was probed.
        found: what was found.
        folds: test rows of each fold.
    """
    entries: dict[str, list[Entry]] = {}
    for source in sources:
        each = [found[source.name, layer] for layer in source.layers]
        places = best_layers(each)
        # a baseline has no layers to choose from
        best = places[0] if len({*places}) == 1 and source.kind != "baseline" else None
        rows = [Entry(source, layer, place == best, each[place]) for place, layer in enumerate(source.layers)]
        if len({*places}) > 1:
            rows.append(Entry(source, None, True, _joined(each, places, folds)))
        entries[source.name] = rows
    return entries


def _joined(found: Sequence[Found], places: Sequence[int], folds: Sequence[int]) -> Found:
    """Return what each fold chose among the layers of a source."""
    bounds = np.cumsum([0, *folds])
    parts = [found[place].prediction[bounds[fold] : bounds[fold + 1]] for fold, place in enumerate(places)]
    strengths, scores, edges = (
        np.array([getattr(found[place], name)[fold] for fold, place in enumerate(places)])
        for name in ("strengths", "validation", "edges")
    )
    return Found(np.concatenate(parts), strengths, scores, edges, found[0].alike, found[0].warnings)


@dataclass(frozen=True)
class Evaluation:
    """Everything that was predicted of the test rows, by every source in every layer.

    Args:
        dataset: the data.
        split: which proteins are for what.
        rows: of the study.
        probe: what was trained.
        entries: what is scored, of each source by its name; the last of each is its own best, and may be none of one
            layer.
        metrics: the main one first.
        resamples: of the test rows.
    """

    dataset: Dataset
    split: Split
    rows: Rows
    probe: Probe
    entries: Mapping[str, Sequence[Entry]]
    metrics: Sequence[str]
    resamples: Resamples

    def scored(self, progress: Callable[[int, int], object]) -> tuple[list[Score], dict[str, Sampled]]:
        """Return all scores, and what the main metric is on every resample, by network."""
        truth = Truth(self.truth, self.resamples.of_rows)
        scores: dict[str, list[Score]] = {}
        sampled: dict[str, Sampled] = {}
        progress(0, len(self.entries))

        def work(name: str) -> None:
            rows: list[Score] = []
            for metric in self.metrics:
                measures = [prepare(metric, truth, entry.found.prediction) for entry in self.entries[name]]
                values, draws = self.resamples.take(measures, truth)
                if metric == self.metrics[0]:
                    # each layer, and once more what was best
                    at = [*(row for row, entry in enumerate(self.entries[name]) if entry.layer is not None)]
                    at += [row for row, entry in enumerate(self.entries[name]) if entry.chosen]
                    sampled[name] = Sampled(name, values[at or [0]], draws[at or [0]])
                rows += self._scores(metric, self.entries[name], values, *self._interval(metric, values, draws))
            scores[name] = rows
            progress(len(scores), len(self.entries))

        for_each(work, self.entries)
        return [score for name in self.entries for score in scores[name]], sampled

    def zero_shot(self, predicted: Mapping[str, NDArray[np.float64]]) -> list[Score]:
        """Return how well what networks say of substitutions ranks the test rows; nothing was trained for it.

        Args:
            predicted: a score of each protein, by network.
        """
        truth, scores = Truth(self.truth, self.resamples.of_rows), []
        for name, each in predicted.items():
            values, draws = self.resamples.take([prepare("spearman", truth, each[self.rows.test])], truth)
            figures = (values[0], *(end[0] for end in self._interval("spearman", values, draws)))
            scores.append(self._score(self.entries[name][0].source, "spearman", figures, probe=ZERO_SHOT))
        return scores

    def _scores(self, metric: str, entries: Sequence[Entry], *figures: NDArray[np.float64]) -> Iterator[Score]:
        for entry, *each in zip(entries, *figures, strict=True):
            yield self._score(
                entry.source,
                metric,
                each,
                layer=entry.layer,
                chosen=entry.chosen,
                probe=self._probe_of(entry),
                strength=self._strength_of(entry),
                validation=float(np.mean(entry.found.validation)) if metric == self.metrics[0] else None,
            )

    def _interval(self, metric: str, values: Draws, draws: Draws) -> tuple[Draws, Draws]:
        return self.resamples.interval(values, draws, METRICS[metric].least)

    def _probe_of(self, entry: Entry) -> str:
        return "none" if entry.source.name == GUESS else self.probe.name

    def _strength_of(self, entry: Entry) -> float | None:
        if entry.strength is None or entry.source.name == GUESS:
            return None
        return self.probe.strengths[entry.strength]

    def _score(
        self,
        source: Source,
        metric: str,
        figures: Sequence[float],
        *,
        probe: str,
        layer: int | None = None,
        chosen: bool = False,
        strength: float | None = None,
        validation: float | None = None,
    ) -> Score:
        value, low, high = map(float, figures)
        # what a network that is not perturbed, or none, has nothing of
        record: Any = source.record or _NOTHING
        return Score(
            network=source.name,
            kind=source.kind,
            group=source.group,
            method=record.method,
            rules=record.rules,
            axis=record.axis,
            scope=",".join(record.scope) or None,
            seed=record.seed,
            digest=source.digest,
            layer=layer,
            chosen=chosen,
            probe=probe,
            strength=strength,
            split=self.split.name,
            metric=metric,
            value=value,
            low=low,
            high=high,
            n=len(self.truth),
            validation=validation,
        )

    @cached_property
    def truth(self) -> NDArray[Any]:
        """What is true of the test rows."""
        return self.rows.truth[self.rows.test]

    def write_predictions(self, path: Path, predicted: Mapping[str, NDArray[np.float64]]) -> None:
        """Write what was predicted of every test row, as Parquet, an entry at a time.

        Args:
            path: the file.
            predicted: as of `zero_shot`.

        Raises:
            CheckpointError: if it cannot be written.
        """
        pa, parquet = arrow()
        task, test = self.dataset.task, self.rows.test
        proteins = self.rows.protein[test]
        fold = np.repeat(np.arange(len(self.rows.folds)), [len(each.test) for each in self.rows.folds])
        same: dict[str, Any] = {"id": pa.array(np.array(self.dataset.ids, object)[proteins], pa.string())}
        if self.rows.residue is not None:
            same["residue"] = pa.array(self.rows.residue[test] + 1, pa.int32())
        if self.split.clusters is not None:
            same["cluster"] = pa.array(np.array(self.split.clusters, object)[proteins], pa.string())
        same["fold"] = pa.array(fold, pa.int32())
        names = np.array(task.classes, object)

        def readable(values: NDArray[Any]) -> Any:
            return pa.array(names[values], pa.string()) if task.classes else pa.array(values, pa.float64())

        def table(network: str, layer: int | None, probe: str, found: NDArray[np.float64]) -> Any:
            columns = {
                **same,
                "network": pa.array([network] * len(test), pa.string()),
                "layer": pa.array([layer] * len(test), pa.int32()),
                "probe": pa.array([probe] * len(test), pa.string()),
                "truth": readable(self.truth),
                "prediction": readable(found.argmax(1) if task.classes else found),
            }
            for number, name in enumerate(task.classes):
                columns[f"probability {name}"] = pa.array(found[:, number], pa.float64())
            return pa.table(columns)

        probed = (
            (entry.source.name, entry.layer, self._probe_of(entry), entry.found.prediction)
            for entries in self.entries.values()
            for entry in entries
        )
        shot = ((name, None, ZERO_SHOT, each[test]) for name, each in predicted.items())
        tables = (table(*each) for each in chain(probed, shot))
        with nothing_written(path), replaced_file(path) as file:
            first = next(tables)
            with parquet.ParquetWriter(file, first.schema, compression="zstd") as writer:
                for each in (first, *tables):
                    writer.write_table(each)
