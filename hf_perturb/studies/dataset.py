"""The data of a study: sequences, what is to be predicted of them, and the sets that a file divides them into."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_perturb.embedding.fasta import Findings, clean, kinds_of
from hf_perturb.embedding.tables import Table, open_table
from hf_perturb.errors import StudyError
from hf_perturb.studies.columns import NUMBERED, Labelled, labels_by_id, own_labels
from hf_perturb.studies.labels import Values, read_task, read_values
from hf_perturb.studies.task import Task

SETS = ("train", "validation", "test")
_NAMES_OF_SETS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_TRUE, _FALSE = {"true", "1", "1.0", "yes", "t", "y"}, {"", "false", "0", "0.0", "no", "f", "n", "nan", "na", "none"}
_SHOWN = 5  # bad rows that a message names


@dataclass(frozen=True)
class Dataset:
    """Proteins and what is to be predicted of them.

    Args:
        ids: names of the proteins, no two alike: from the file, or the number of the row, from 1.
        sequences: their residues, as `embed` reads them.
        task: what is to be predicted.
        target: the name of the column, or of the file of labels.
        values: of a protein task `(proteins,)`, of a residue task an array `(residues,)` a protein: float64 of a
            regression, else int64, the number of the class in `task.classes`; NaN or -1 where a residue has no label.
        sets: `train`, `validation` or `test` for each protein; `None` if the file does not say.
        clusters: the cluster of each protein, if it is known.
        notes: what was inferred, and what was left out, in sentences.
        left_out: line or record of each row that was left out, and why.
        digest: of all that a study computes with.
    """

    ids: tuple[str, ...]
    sequences: tuple[str, ...]
    task: Task
    target: str
    values: Values
    sets: tuple[str, ...] | None
    clusters: tuple[str, ...] | None
    notes: tuple[str, ...]
    left_out: tuple[tuple[int, str], ...]
    digest: str

    def __len__(self) -> int:
        return len(self.ids)


def read_dataset(
    path: str | Path,
    *,
    target: str | None = None,
    labels: str | Path | None = None,
    mask: str | Path | None = None,
    task: str | None = None,
    skip_bad: bool = False,
) -> Dataset:
    """Read sequences and labels.

    Args:
        path: CSV, TSV or Parquet with a column of sequences and one of labels; or a FASTA, whose headers have the
            labels (`TARGET=`) if there is no file of `labels`.
        target: name of the column, or of the key in the headers, that has the labels.
        labels: of a FASTA: CSV, TSV or Parquet by id, or a FASTA of strings with a letter for each residue.
        mask: a FASTA of strings of 0 and 1: residues with 0 have no label.
        task: `regression`, `binary` or `classes`, where it could be either; `residue-classes` and the like say of what.
        skip_bad: leave out rows that cannot be used, and count them.

    Raises:
        StudyError: if a file cannot be read, if a row cannot be used, if it is not plain what is to be predicted.
    """
    asked = read_task(task)
    table = open_table(Path(path))
    if labels is None:
        if mask is not None:
            raise StudyError("mask: it is for a FASTA of labels; give that by --labels")
        found = own_labels(table, target)
    else:
        found = labels_by_id(table, target, Path(labels), None if mask is None else Path(mask))
    rows = _Rows(table)
    rows.read(found)
    return rows.dataset(found, asked, skip_bad)


@dataclass
class _Rows:
    """Rows that can be used, and those that cannot."""

    table: Table
    findings: Findings = field(default_factory=Findings)
    bad: list[tuple[int, str, str]] = field(default_factory=list)  # number of the row, why, and what is counted
    numbers: list[int] = field(default_factory=list)  # as in the file
    ids: list[str] = field(default_factory=list)
    sequences: list[str] = field(default_factory=list)
    targets: list[Any] = field(default_factory=list)
    sets: list[str] | None = None
    clusters: list[str] | None = None
    seen: dict[str, int] = field(default_factory=dict)
    column: str = ""  # of ids

    def read(self, found: Labelled) -> None:
        """Take the rows that can be used."""
        self.sets = [] if found.has["set"] or found.has["validation"] else None
        self.clusters = [] if found.has["cluster"] else None
        self.column = found.ids
        for place, (number, fields) in enumerate(found.rows, 1):
            if not isinstance(fields, str) and not found.has["set"]:
                fields[3] = "train"  # unless it is for validation
            why = fields if isinstance(fields, str) else self._take(place, number, *fields)
            if why is not None:
                self.bad.append((number, why, self.table.unit))
        self.bad.extend(found.bad)

    def _take(
        self, place: int, number: int, name: Any, raw: Any, target: Any, given: Any, validation: Any, cluster: Any
    ) -> str | None:
        """Take a row, or return why it cannot be used."""
        # in a FASTA, a line break in a name would make residues of its rest
        own = str(place) if name is NUMBERED else " ".join(_text(name).split())
        if not own:
            return "has no id"
        if "\ufffd" in own:
            return f"has an id that is not UTF-8: {own!r}"
        if own in self.seen:
            where = f" in column {self.column!r}" if self.column.lower() not in ("", "id") else ""
            return f"has the id {own!r}{where}, as {self.table.unit} {self.seen[own]:,} has"
        self.seen[own] = number
        sequence, why = self._residues(raw, own)
        chosen = "train" if self.sets is None else _set_of(given, validation)
        if why is None and chosen not in SETS:
            why = chosen
        if why is None and self.clusters is not None and not _text(cluster):
            why = "has no cluster"
        if why is not None:
            return self._called(own) + why
        if self.sets is not None:
            self.sets.append(chosen)
        if self.clusters is not None:
            self.clusters.append(_text(cluster))
        self.numbers.append(number)
        self.ids.append(own)
        self.sequences.append(sequence)
        self.targets.append(target)
        return None

    def _called(self, own: str) -> str:
        return f"({own!r}) " if self.column else ""

    def _residues(self, raw: Any, name: str) -> tuple[str, str | None]:
        """Clean a sequence; the second is why it cannot be used."""
        if raw is None or not isinstance(raw, str):
            return "", "has no sequence" if raw is None else f"has {str(raw)[:40]!r} for a sequence"
        kinds = []
        try:
            sequence = clean(raw)
            kinds = [] if sequence == raw else kinds_of(raw)
        except KeyError as error:
            return "", f"has {error.args[0][:30]!r} in its sequence; allowed: letters of residues"
        if not sequence:
            return "", "has no sequence"
        if "non_letters" in kinds:
            letters = "".join(raw.split())
            wrong = next(one for one in letters if not (one.isascii() and (one.isalpha() or one in "-.*")))
            return "", f"has {wrong!r} in its sequence; allowed: letters of residues"
        for kind in kinds:
            self.findings.add(kind, name)
        return sequence, None

    def dataset(self, found: Labelled, asked: tuple[str | None, str | None], skip_bad: bool) -> Dataset:
        """Make values of the labels, and a dataset of what can be used.

        Raises:
            StudyError: for rows that cannot be used, unless they are left out; for labels that do not tell what they
                are.
        """
        self._refuse_if_nothing(self.ids)
        lengths = [len(sequence) for sequence in self.sequences]

        def refuse(place: int, why: str) -> None:
            self.bad.append((self.numbers[place], f"{self._called(self.ids[place])}has {why}", self.table.unit))

        level = found.level or asked[0]
        try:
            task, values, kept, why = read_values(self.targets, lengths, (level, asked[1]), found.source, refuse)
        except StudyError as error:
            if self.bad and not skip_bad:
                raise StudyError(f"{self.table.path}: {self._told()}; and without them, {error}") from error
            raise StudyError(f"{self.table.path}: {error}") from error
        if self.bad and not skip_bad:
            raise StudyError(f"{self.table.path}: {self._told()}; correct them, or leave them out with --skip-bad")
        self._refuse_if_nothing(kept)
        ids, sequences = (tuple(all_[place] for place in kept) for all_ in (self.ids, self.sequences))
        sets = None if self.sets is None else tuple(self.sets[place] for place in kept)
        clusters = None if self.clusters is None else tuple(self.clusters[place] for place in kept)
        notes = (why, *self._notes(sets, clusters))
        left_out = tuple((number, why) for number, why, _ in self.bad)
        digest = _digest(ids, sequences, task, values, sets, clusters)
        return Dataset(ids, sequences, task, found.target, values, sets, clusters, notes, left_out, digest)

    def _notes(self, sets: Sequence[str] | None, clusters: Sequence[str] | None) -> Iterator[str]:
        yield from self.findings.lines()
        if sets is not None:
            counts = Counter(sets)
            yield "sets: " + ", ".join(f"{counts[name]:,} {name}" for name in SETS)
        if clusters is not None:
            yield f"clusters: {len(set(clusters)):,}"
        if self.bad:
            yield f"left out: {len(self.bad):,} row{'' if len(self.bad) == 1 else 's'}, as {self._told()}"

    def _refuse_if_nothing(self, left: Sequence[Any]) -> None:
        if not left:
            told = f": {self._told()}" if self.bad else ""
            raise StudyError(f"{self.table.path} has no rows that can be used{told}")

    def _told(self) -> str:
        self.bad.sort(key=lambda row: row[0])
        first = "; ".join(f"{unit} {number:,} {why}" for number, why, unit in self.bad[:_SHOWN])
        more = len(self.bad) - _SHOWN
        return first + (f"; and {more:,} more" if more > 0 else "")


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _set_of(given: Any, validation: Any) -> str:
    """Return the set of a row, or why it has none."""
    name, held = _text(given).lower(), _text(validation).lower()
    if name not in _NAMES_OF_SETS:
        return f"has the set {_text(given)!r}; allowed: train, validation, test" if name else "has no set"
    chosen = _NAMES_OF_SETS[name]
    if held in _TRUE:
        return "is in the test set, and for validation too" if chosen == "test" else "validation"
    return chosen if held in _FALSE else f"has {_text(validation)!r} for validation; allowed: True, False"


def _digest(
    ids: Sequence[str],
    sequences: Sequence[str],
    task: Task,
    values: Values,
    sets: Sequence[str] | None,
    clusters: Sequence[str] | None,
) -> str:
    digest = hashlib.sha256()
    for texts in (ids, sequences, (task.kind, task.level, *task.classes), sets, clusters):
        digest.update(f"{-1 if texts is None else len(texts)};".encode())
        for text in texts or ():
            digest.update(f"{len(text)}:{text}".encode())
    for array in values if isinstance(values, tuple) else (values,):
        digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes())
    return f"sha256:{digest.hexdigest()}"
