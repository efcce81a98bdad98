"""What was predicted, made scores with intervals, and base and controls compared on the same resamples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_perturb.embedding.store import arrow
from hf_perturb.perturbation.parallel import for_each
from hf_perturb.storage.folders import nothing_written, replaced_file
from hf_perturb.study.dataset import Dataset
from hf_perturb.study.features import Source
from hf_perturb.study.metrics import Truth, prepare
from hf_perturb.study.probes import Probe
from hf_perturb.study.probing import Found, Place, best_layers
from hf_perturb.study.results import Score
from hf_perturb.study.rows import Rows
from hf_perturb.study.splits import Split
from hf_perturb.study.statistics import Resamples

Draws = NDArray[np.float64]


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


def entries_of(sources: Sequence[Source], found: Mapping[Place, Found], folds: Sequence[int]) -> list[Entry]:
    """Return what is scored: each layer of each source, and what each source chose on validation rows.

    Args:
        sources: what was probed.
        found: what was found.
        folds: test rows of each fold.
    """
    entries = []
    for source in sources:
        each = [found[source.name, layer] for layer in source.layers]
        places = best_layers(each)
        same = len({*places}) == 1
        for place, layer in enumerate(source.layers):
            entries.append(Entry(source, layer, same and place == places[0], each[place]))
        if not same:
            entries.append(Entry(source, None, True, _joined(each, places, folds)))
    return entries


def _joined(found: Sequence[Found], places: Sequence[int], folds: Sequence[int]) -> Found:
    """Return what each fold chose among the layers of a source."""
    bounds = np.cumsum([0, *folds])
    parts = [found[place].prediction[bounds[fold] : bounds[fold + 1]] for fold, place in enumerate(places)]
    strengths, scores = (
        np.array([getattr(found[place], name)[fold] for fold, place in enumerate(places)])
        for name in ("strengths", "validation")
    )
    return Found(np.concatenate(parts), strengths, scores)


@dataclass(frozen=True)
class Evaluation:
    """Everything that was predicted of the test rows, by every network in every layer.

    Args:
        dataset: the data.
        split: which proteins are for what.
        rows: of the study.
        entries: what is scored.
        resamples: of the units of the test rows.
    """

    dataset: Dataset
    split: Split
    rows: Rows
    entries: Sequence[Entry]

    @cached_property
    def truth(self) -> NDArray[Any]:
        """What is true of the test rows."""
        return self.rows.truth[self.rows.test]

    @cached_property
    def proteins(self) -> NDArray[np.int64]:
        """The protein of each test row."""
        return self.rows.protein[self.rows.test]

    @cached_property
    def units(self) -> NDArray[np.int64]:
        """The number of the unit of each test row: its cluster, where clusters are known, or its protein."""
        clusters = self.split.clusters
        of = self.proteins if clusters is None else np.unique(np.array(clusters), return_inverse=True)[1][self.proteins]
        return np.unique(of, return_inverse=True)[1]
