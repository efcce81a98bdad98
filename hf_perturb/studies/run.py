"""One command from data to an answer: embed a base and its controls, probe all, compare, write."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_perturb.embedding.manifest import read_manifest
from hf_perturb.embedding.options import EmbedOptions
from hf_perturb.embedding.run import BASE
from hf_perturb.embedding.survey import digest_of
from hf_perturb.errors import StudyError
from hf_perturb.storage.folders import nothing_written
from hf_perturb.studies.dataset import Dataset, read_dataset
from hf_perturb.studies.evaluate import Entry, Evaluation, entries_of
from hf_perturb.studies.features import GUESS, SHUFFLED, Source, Unique, baselines
from hf_perturb.studies.folder import H5, PREDICTIONS, PROBED, WRITTEN, held
from hf_perturb.studies.metrics import MAIN, METRICS, METRICS_OF
from hf_perturb.studies.networks import (
    Controls,
    Networks,
    embed_networks,
    find_embeddings,
    open_networks,
    save_h5,
    sources_of,
    wildtype_of,
    zero_shot_scores,
)
from hf_perturb.studies.options import METHODS, SEEDS, StudyOptions, divide_options, refuse_without_extra
from hf_perturb.studies.plot import draw
from hf_perturb.studies.probes import DEFAULT, PROBES, Probe
from hf_perturb.studies.probing import Found, Place, Probing, best_layers
from hf_perturb.studies.results import Degeneracy, Results
from hf_perturb.studies.rows import Rows, rows_of, units_of
from hf_perturb.studies.splits import Split, make_split
from hf_perturb.studies.statistics import Resamples, Sampled, cautions, contrasts
from hf_perturb.studies.tables import read_report, write_tables
from hf_perturb.variants.matrix import matrix

ORDERS = 5  # of shuffled labels
_OF_DATA = ("target", "labels", "mask", "task", "skip_bad")
_VERSIONS = ("hf-perturb", "torch", "transformers", "scikit-learn", "numpy", "scipy")


def study(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    controls: Controls | None = None,
    **options: Any,
) -> Results:
    """Say whether a result is due to what a network learned: probe it, its controls and plain baselines.

    Args:
        model: the base: a folder, a Hub id, an original `.pt`, or `demo`.
        data: sequences and what is to be predicted: FLIP's CSV, a FASTA, or Parquet.
        out: the folder to write; an interrupted study is continued by the same call.
        controls: what to do to the base, each a `Perturbation`, its dict, or a method name; or one of them; reinit
            and resample with seeds 0 to 4 if `None`.
        **options: those of `StudyOptions`, and those of `embed` that say how sequences are read and networks are run.

    Returns:
        What was found; it is in `out` too.

    Raises:
        StudyError: a `ValueError`: if data or options do not fit.
        FolderExistsError: if `out` holds something else, or another study.
        HfPerturbError: for what `embed` raises.
        TypeError: if there is no such option.
    """
    asked, embedding = divide_options(options)
    if asked.save_embeddings == "h5":
        refuse_without_extra("h5")
    given = matrix(METHODS, SEEDS) if controls is None else controls
    return _Study(str(model), Path(data), Path(out), given, asked, embedding).run()


@dataclass(frozen=True)
class _Study:
    model: str
    data: Path
    out: Path
    controls: Controls
    options: StudyOptions
    embedding: Mapping[str, Any]

    def run(self) -> Results:
        """Do what is not done yet."""
        options = self.options
        dataset = read_dataset(self.data, **{name: getattr(options, name) for name in _OF_DATA})
        metrics = _metrics(options, dataset.task.kind)
        probe = _probe(options, dataset.task.kind)
        split = make_split(dataset, options.split, options.seed)
        rows = rows_of(dataset, split, options.max_residues, options.seed)
        resamples = Resamples(units_of(dataset, split, rows), options.resamples, options.seed)
        wildtype = None if options.zero_shot is None else wildtype_of(dataset, options.zero_shot)
        networks = open_networks(self.model, self.controls, self.embedding)
        given = options.embeddings
        there = None if given is None else find_embeddings(networks, Path(given), self.embedding)
        inputs = self._inputs(dataset, split, networks, probe, metrics)
        inputs |= {"zero_shot": wildtype, "embeddings": there and read_manifest(there[BASE]).fingerprint}
        with held(self.out, inputs, options.force) as key:
            if all((self.out / name).exists() for name in WRITTEN):
                shutil.rmtree(self.out / PROBED, ignore_errors=True)
                return read_report(self.out)
            predicted = {} if wildtype is None else zero_shot_scores(networks, dataset, wildtype, self.embedding)
            sources, said = self._sources(networks, dataset, rows, there)
            found = self._probed(sources, dataset, rows, probe, metrics[0], key)
            entries = entries_of(sources, found, [len(fold.test) for fold in rows.folds])
            evaluation = Evaluation(dataset, split, rows, probe, entries, metrics, resamples)
            about = self._about(inputs, dataset, split, rows)
            results = self._results(evaluation, about, (*dataset.notes, *split.notes, *rows.notes, *said), predicted)
            evaluation.write_predictions(self.out / PREDICTIONS, predicted)
            draw(results, self.out)
            write_tables(results, self.out)
            shutil.rmtree(self.out / PROBED)
        return results

    def _results(
        self,
        evaluation: Evaluation,
        about: dict[str, Any],
        notes: tuple[str, ...],
        predicted: Mapping[str, NDArray[np.float64]],
    ) -> Results:
        """Score all that was predicted, and hold the base against its controls."""
        scores, sampled = evaluation.scored(self._progress("resampling"))
        controls: dict[str, list[Sampled]] = {}
        for rows in evaluation.entries.values():
            if (source := rows[0].source).kind == "control":
                controls.setdefault(source.group, []).append(sampled[source.name])
        layers = [entry.layer for entry in evaluation.entries[BASE] if entry.layer is not None]
        every, least = [*layers, None], METRICS[evaluation.metrics[0]].least
        return Results(
            about=about,
            task=evaluation.dataset.task,
            metric=evaluation.metrics[0],
            scores=(*scores, *evaluation.zero_shot(predicted)),
            contrasts=contrasts(sampled[BASE], controls, sampled[GUESS], every, evaluation.resamples, least),
            degeneracy=_degeneracy(evaluation.entries),
            warnings=(
                *evaluation.split.warnings,
                *cautions(sampled[BASE], controls, sampled[GUESS], every, evaluation.resamples),
                *_cautions_of_probes(evaluation.entries, evaluation.probe),
            ),
            notes=notes,
        )

    def _probed(
        self, sources: list[Source], dataset: Dataset, rows: Rows, probe: Probe, metric: str, key: str
    ) -> dict[Place, Found]:
        """Probe all sources, and the base's best layer with shuffled labels, which is added to them."""
        with nothing_written(self.out / PROBED):
            (self.out / PROBED).mkdir(exist_ok=True)
        lengths = np.array([len(sequence) for sequence in dataset.sequences])
        probing = Probing(rows, lengths, dataset.task, probe, metric, self.out / PROBED, key)
        found = probing.run(sources, self._progress("probing"))
        if self.options.baselines:
            sources += (shuffled := _shuffled(sources[0], found, self.options.seed))
            found |= probing.run(shuffled, lambda done, total: None)
        return found

    def _about(self, inputs: dict[str, Any], dataset: Dataset, split: Split, rows: Rows) -> dict[str, Any]:
        """Return what was studied, and how, as JSON."""
        first, first_rows = split.folds[0], rows.folds[0]
        sets = {}
        for name in ("train", "validation", "test"):
            proteins, numbers = getattr(first, name), getattr(first_rows, name)
            if proteins is not None:
                sets[name] = {"proteins": len(proteins), "rows": len(numbers)}
        return {
            **inputs,
            "model": self.model,
            "data": {**inputs["data"], "proteins": len(dataset.ids), "left_out": len(dataset.left_out), "sets": sets},
            "split": {
                **inputs["split"],
                "folds": len(split.folds),
                "inner": len(first.inner),
                "clusters": split.clusters and len({*split.clusters}),
            },
            "versions": {name.replace("-", "_"): version(name) for name in _VERSIONS},
        }

    def _progress(self, what: str) -> Callable[[int, int], object]:
        progress = self.options.progress
        return lambda done, total: None if progress is None else progress(what, done, total)

    def _sources(
        self, networks: Networks, dataset: Dataset, rows: Rows, there: dict[str, Path] | None
    ) -> tuple[list[Source], list[str]]:
        """Return what is probed, the base first, and what is to be said of it."""
        options, unique = self.options, Unique.of(dataset, rows)
        folders = there or embed_networks(networks, unique, self.out, options, self.embedding)
        sources, zero = sources_of(networks, folders, unique, rows, options)
        if options.save_embeddings is not None:
            save_h5(folders, unique, sources[0].layers, self.out / H5)
        plain, said = baselines(dataset, rows, zero)
        if there is not None and not _are_of(read_manifest(there[BASE]).inputs["fasta"], dataset, unique):
            said.append(
                "embeddings: found by the ids of proteins, and their lengths agree; they are of a FASTA with other"
                " records, in another order or besides, so that it cannot be told whether sequences agree too"
            )
        # without others, guessing is there all the same: a share is of what lies beyond it
        return [*sources, *(each for each in plain if options.baselines or each.name == GUESS)], said

    def _inputs(
        self, dataset: Dataset, split: Split, networks: Networks, probe: Probe, metrics: tuple[str, ...]
    ) -> dict[str, Any]:
        """Return what decides the results, as JSON."""
        folds = hashlib.sha256()
        for fold in split.folds:
            for numbers in (fold.train, fold.validation, fold.test):
                folds.update(b"none" if numbers is None else numbers.tobytes() + b"|")
        folds.update(repr(split.clusters).encode())
        usual = EmbedOptions()
        # how it is said, and what does not decide, make no other study
        embedding = {
            name: str(value).removeprefix("torch.")
            for name, value in self.embedding.items()
            if name not in ("device", "tokens", "trust_remote_code") and value != getattr(usual, name)
        }
        return {
            "networks": networks.to_dict(),
            "data": {"name": self.data.name, "digest": dataset.digest, "target": dataset.target},
            "split": {"name": split.name, "digest": f"sha256:{folds.hexdigest()}"},
            "strengths": list(probe.strengths),
            "options": {**self.options.to_dict(), "probe": probe.name, "metrics": list(metrics)},
            "embedding": embedding,
        }


def _probe(options: StudyOptions, kind: str) -> Probe:
    """Return what is trained.

    Raises:
        StudyError: for a probe of numbers where classes are predicted, or the other way round.
    """
    name = options.probe or DEFAULT[kind]
    if name not in (allowed := (DEFAULT[kind], "knn")):
        raise StudyError(f"probe: got {name!r} for a task of kind {kind}; allowed: {', '.join(allowed)}")
    return PROBES[name]


def _metrics(options: StudyOptions, kind: str) -> tuple[str, ...]:
    """Return the metrics, the main one first.

    Raises:
        StudyError: for one that is not of the task.
    """
    allowed = METRICS_OF[kind]
    for name in options.metrics:
        if name not in allowed:
            raise StudyError(f"metric: got {name!r} for a task of kind {kind}; allowed: {', '.join(allowed)}")
    return tuple(dict.fromkeys([*options.metrics, MAIN[kind], *allowed]))


def _shuffled(base: Source, found: Mapping[Place, Found], seed: int) -> list[Source]:
    """Return the base's best layer, to be trained on labels in other orders; where a single one leads is chance."""
    places = best_layers([found[base.name, layer] for layer in base.layers])
    # of several folds, the layer that most of them choose
    best = base.layers[max(sorted({*places}), key=places.count)]
    return [
        Source(f"{SHUFFLED}-seed{n}", "baseline", (None,), lambda layer: base.features(best), shuffled=(seed, n))
        for n in range(ORDERS)
    ]


def _are_of(fasta: str, dataset: Dataset, unique: Unique) -> bool:
    """Whether a FASTA, by its digest, is of all proteins of a study, or of all different ones, in their order."""
    return fasta in (digest_of(each.ids, each.sequences) for each in (dataset, unique))


def _degeneracy(entries: Mapping[str, Sequence[Entry]]) -> tuple[Degeneracy, ...]:
    return tuple(
        Degeneracy(entry.source.name, entry.source.group, entry.layer, *map(float, entry.found.alike))
        for rows in entries.values()
        for entry in rows
        if entry.layer is not None
    )


def _cautions_of_probes(entries: Mapping[str, Sequence[Entry]], probe: Probe) -> Iterator[str]:
    """Say where the base's best layer chose a strength beyond which none was tried, and what did not converge."""
    for entry in entries[BASE]:
        if entry.chosen and (edges := {*entry.found.edges.tolist()} - {""}):
            yield (
                f"the best layer of the base chose the {' and the '.join(sorted(edges))} penalty of those tried"
                f" ({probe.strengths[0]:g} to {probe.strengths[-1]:g}): a better one may lie beyond"
            )
    yield from dict.fromkeys(
        said for rows in entries.values() for entry in rows for said in entry.found.warnings.tolist()
    )
