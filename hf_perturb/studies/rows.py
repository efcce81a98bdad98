"""The rows of a study: proteins, or residues that are sampled within proteins, and which are for what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_perturb.errors import StudyError
from hf_perturb.studies.dataset import Dataset
from hf_perturb.studies.splits import Split

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class FoldRows:
    """Which rows are for what, as `Fold` says it of proteins."""

    train: Numbers
    validation: Numbers | None
    test: Numbers
    inner: tuple[tuple[Numbers, Numbers], ...]


@dataclass(frozen=True)
class Rows:
    """What is predicted, a row each.

    Args:
        truth: what is to be predicted, `(rows,)`: numbers, or numbers of classes.
        protein: number of the protein of each, ascending.
        residue: number of the residue in its protein, from 0; `None` where a row is a protein.
        folds: which rows are for what.
        notes: what was sampled.
    """

    truth: NDArray[np.float64] | Numbers
    protein: Numbers
    residue: Numbers | None
    folds: tuple[FoldRows, ...]
    notes: tuple[str, ...] = ()

    @property
    def test(self) -> Numbers:
        """All rows that are predicted, fold after fold."""
        return np.concatenate([fold.test for fold in self.folds])


def rows_of(dataset: Dataset, split: Split, most: int, seed: int) -> Rows:
    """Return the rows of a study.

    Args:
        dataset: the data.
        split: which proteins are for what.
        most: most residues to train and validate with, and most to test with.
        seed: of the sample.

    Raises:
        StudyError: if sampled residues of a set are all alike, so that there is nothing to tell apart.
    """
    proteins = len(dataset.ids)
    if dataset.task.level == "protein":
        values = np.asarray(dataset.values)
        number = np.arange(proteins)
        return Rows(values, number, None, _folds(split, number, proteins))
    known = [np.flatnonzero(_is_known(values)) for values in dataset.values]
    tested = np.unique(np.concatenate([fold.test for fold in split.folds]))
    others = np.setdiff1d(np.arange(proteins), tested)
    kept: list[Numbers] = [np.zeros(0, np.int64)] * proteins
    notes = []
    for group, called in ((others, "training and validation"), (tested, "test")):
        each = _quota([len(known[number]) for number in group], most)
        for number in group:
            kept[number] = _sample(known[number], each, seed, number)
        total, there = sum(len(kept[number]) for number in group), sum(len(known[number]) for number in group)
        if total < there:
            notes.append(
                f"of {there:,} labelled residues of {len(group):,} {called} proteins, {total:,} were sampled: at most"
                f" {each} a protein, seed {seed}"
            )
    protein = np.repeat(np.arange(proteins), [len(residues) for residues in kept])
    residue = np.concatenate(kept)
    truth = np.concatenate([values[residues] for values, residues in zip(dataset.values, kept, strict=True)])
    rows = Rows(truth, protein, residue, _folds(split, protein, proteins), tuple(notes))
    if notes:
        _refuse_alike(rows, most)
    return rows


def _refuse_alike(rows: Rows, most: int) -> None:
    for called, numbers in (
        *(("training", fold.train) for fold in rows.folds),
        *(("validation", fold.validation) for fold in rows.folds if fold.validation is not None),
        ("test", rows.test),
    ):
        if len(np.unique(rows.truth[numbers])) < 2:
            raise StudyError(
                f"max_residues: of at most {most:,} residues, the {len(numbers):,} {called} ones that were sampled all"
                " have the same label, and there is nothing to tell apart; give a larger number"
            )


def units_of(dataset: Dataset, split: Split, rows: Rows) -> NDArray[Any]:
    """Return what each test row is resampled with: its cluster, else the first protein that has its sequence.

    Identical proteins are right or wrong together; each by itself, they would say as much as if they were different.
    """
    first: dict[str, str] = {}
    same = [first.setdefault(sequence, name) for sequence, name in zip(dataset.sequences, dataset.ids, strict=True)]
    return np.array(split.clusters or same, object)[rows.protein[rows.test]]


def _is_known(values: NDArray[np.float64] | Numbers) -> NDArray[np.bool_]:
    return values >= 0 if values.dtype.kind == "i" else ~np.isnan(values)


def _folds(split: Split, protein: Numbers, proteins: int) -> tuple[FoldRows, ...]:
    def rows(numbers: Numbers) -> Numbers:
        wanted = np.zeros(proteins, bool)
        wanted[numbers] = True
        return np.flatnonzero(wanted[protein])

    return tuple(
        FoldRows(
            rows(fold.train),
            None if fold.validation is None else rows(fold.validation),
            rows(fold.test),
            tuple((rows(train), rows(held_out)) for train, held_out in fold.inner),
        )
        for fold in split.folds
    )


def _quota(lengths: Sequence[int], most: int) -> int:
    """Return how many residues a protein may give so that all give no more than `most`, at least one."""
    low, high = 1, max([1, *lengths])
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(min(length, middle) for length in lengths) <= most else (low, middle - 1)
    return low


def _sample(residues: Numbers, most: int, seed: int, protein: int) -> Numbers:
    """Return some of the residues of a protein, ascending; what is drawn depends on the seed and the protein alone."""
    if len(residues) <= most:
        return residues
    return np.sort(np.random.default_rng([seed, protein]).choice(residues, most, replace=False))
