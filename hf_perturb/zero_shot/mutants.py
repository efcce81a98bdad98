"""Mutants of a wild type: read as people write them, and held against the sequence that they are of."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hf_perturb.embedding.fasta import Findings, Record, clean, file_of, read_records
from hf_perturb.embedding.tables import open_table
from hf_perturb.errors import FastaError, StudyError

STANDARD = "ACDEFGHIKLMNPQRSTVWY"
UNCHANGED = "WT"
WILDTYPE = "wildtype"  # the id of one that is given as it is
_WRITTEN = re.compile(f"[{STANDARD}X]+")
# as columns are called, without case; of several the first of these is taken
_MUTANT = ("mutant", "mutants", "mutation", "mutations", "variant", "substitution", "substitutions")
_SEQUENCE = ("mutated_sequence", "mutant_sequence", "variant_sequence", "sequence", "seq")
_ID = ("id", "protein", "protein_id", "record", "name", "accession")
_MEASURED = ("dms_score", "measured", "fitness", "target", "score", "label", "y", "effect", "value")
_BETWEEN = re.compile(r"[:;,/+\s]+")
_SUBSTITUTION = re.compile(r"([A-Z])(-?[0-9]{1,9})([A-Z])")
_NO_SUBSTITUTION = re.compile("[^A-Za-z]")
_NOTHING = {"", "wt", "_wt", "wildtype", "wild-type"}
_SHOWN = 3


@dataclass(frozen=True)
class Mutants:
    """Mutants of one wild type, as arrays: the substitutions of all of them one after another.

    Args:
        names: what each is called, such as `A24G:T30S`.
        counts: substitutions of each, `(mutants,)`.
        places: where each substitution is, from 0, `(substitutions,)`.
        letters: what is put there, as ASCII, `(substitutions,)`.
        measured: what was measured of each, NaN where nothing was, `(mutants,)`; `None` if there is nothing measured.
    """

    names: Sequence[str]
    counts: NDArray[np.int64]
    places: NDArray[np.int64]
    letters: NDArray[np.uint8]
    measured: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def owners(self) -> NDArray[np.int64]:
        """The number of the mutant that each substitution is of."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


def _codes(sequence: str) -> NDArray[np.uint8]:
    return np.frombuffer(sequence.encode("ascii"), np.uint8)


def every_substitution(wildtype: str, offset: int = 1) -> Mutants:
    """Return the 19 other residues at each position; where the wild type has none of the 20, there is none."""
    names, places, letters = [], array("q"), array("B")
    for place, was in enumerate(wildtype):
        for letter in STANDARD if was in STANDARD else "":
            if letter != was:
                names.append(f"{was}{place + offset}{letter}")
                places.append(place)
                letters.append(ord(letter))
    return Mutants(names, np.ones(len(names), np.int64), np.array(places, np.int64), np.array(letters, np.uint8))


def mutants_of(wildtype: str, sequences: Sequence[str], offset: int = 1, rows: Sequence[int] | None = None) -> Mutants:
    """Compare whole sequences with the wild type that they are mutants of.

    Args:
        wildtype: A-Z.
        sequences: A-Z, as long as the wild type.
        offset: the number of its first residue.
        rows: where each is written, for messages; from 1 if `None`.

    Raises:
        FastaError: for a sequence of another length; an insertion or a deletion has no score of substitutions.
    """
    were, names, counts = _codes(wildtype), [], array("q")
    places, letters = [np.zeros(0, np.int64)], [np.zeros(0, np.uint8)]
    for row, sequence in zip(range(1, len(sequences) + 1) if rows is None else rows, sequences, strict=True):
        if len(sequence) != len(wildtype):
            raise FastaError(
                f"row {row}: the sequence has {len(sequence):,} residues, the wild type {len(wildtype):,}; allowed:"
                " substitutions alone, since an insertion or a deletion has no score here; leave it out"
            )
        are = _codes(sequence)
        changed = np.flatnonzero(are != were)
        names.append(":".join(f"{wildtype[at]}{at + offset}{sequence[at]}" for at in changed.tolist()) or UNCHANGED)
        counts.append(len(changed))
        places.append(changed)
        letters.append(are[changed])
    return Mutants(names, np.array(counts, np.int64), np.concatenate(places), np.concatenate(letters))


def mutants_named(wildtype: str, names: Sequence[str], offset: int = 1, rows: Sequence[int] | None = None) -> Mutants:
    """Read mutants such as `A24G` and `A24G:T30S`, and compare what they say was there with the wild type.

    Args:
        wildtype: A-Z.
        names: the mutants; substitutions are divided by `:`, `,`, `;`, `/`, `+` or blanks.
        offset: the number of its first residue.
        rows: where each is written, for messages; from 1 if `None`.

    Raises:
        FastaError: if one is not written so, or not of this wild type; an offset that fits all of them is named.
    """
    counts, numbers, letters, were = array("q"), array("q"), array("B"), array("B")
    rows = range(1, len(names) + 1) if rows is None else rows
    for row, name in zip(rows, names, strict=True):
        found = [] if name.strip().lower() in _NOTHING else _BETWEEN.split(name.strip())
        for part in found:
            if (match := _SUBSTITUTION.fullmatch(part)) is None:
                raise FastaError(
                    f"row {row}: mutant {name!r}: got {part!r}; allowed: substitutions such as A24G, several with ':'"
                )
            were.append(ord(match[1]))
            numbers.append(int(match[2]))
            letters.append(ord(match[3]))
        counts.append(len(found))
        if len(found) > 1 and len({*numbers[-len(found) :]}) < len(found):
            raise FastaError(f"row {row}: mutant {name!r} names a position twice; allowed: once each")
    places = np.array(numbers, np.int64) - offset
    made = Mutants(names, np.array(counts, np.int64), places, np.array(letters, np.uint8))
    _check_wildtype(wildtype, made, np.array(were, np.uint8), offset, rows)
    return made


def _check_wildtype(wildtype: str, mutants: Mutants, were: NDArray[np.uint8], offset: int, rows: Sequence[int]) -> None:
    """Raise if mutants name other residues than the wild type has, or positions that it has not."""
    there, places = _codes(wildtype), mutants.places
    inside = (places >= 0) & (places < len(there))
    fits = inside & (there[np.where(inside, places, 0)] == were)
    if fits.all():
        return
    at = int(np.flatnonzero(~fits)[0])
    owner = int(mutants.owners[at])
    last = offset + len(wildtype) - 1
    number = int(places[at]) + offset
    found = f"has {wildtype[places[at]]}" if inside[at] else f"goes from {offset} to {last}"
    pairs = np.unique(np.stack([places + offset, were.astype(np.int64)]), axis=1)
    others = [
        other
        for other in range(int(pairs[0].max()) - len(there) + 1, int(pairs[0].min()) + 1)
        if (there[pairs[0] - other] == pairs[1]).all()
    ]
    said = " or ".join(map(str, others[:_SHOWN]))
    remedy = f"with offset {said} all rows fit (--offset)" if others else "no other offset fits all rows: is it of this"
    raise FastaError(
        f"row {rows[owner]}: mutant {mutants.names[owner]!r} says {chr(were[at])} at {number}, where the wild type"
        f" {found} (offset {offset}: its first residue is number {offset}); {remedy}{'' if others else ' wild type?'}"
    )


# ---- files


def read_wildtypes(
    given: str | Path,
    findings: Findings | None = None,
    look: Callable[[Record, Findings], object] = lambda record, findings: None,
) -> dict[str, str]:
    """Read the wild types that mutants are of.

    Args:
        given: a FASTA, plain or packed with gzip, `-` for standard input; or the sequence itself, of the 20 residues
            and X.
        findings: is told what is met.
        look: called with each record, and what is told of the others.

    Returns:
        Sequences by id; one that is given as it is has the id `wildtype`.

    Raises:
        FastaError: if they cannot be read, have no residues, or share an id.
    """
    findings = Findings() if findings is None else findings
    if isinstance(given, str) and given != "-" and not os.path.exists(given):
        if not _WRITTEN.fullmatch(given):
            raise FastaError(
                f"wild type: got {given[:60]!r}, which is no file and no sequence; allowed: a FASTA, or residues"
                f" ({STANDARD}, X)"
            )
        look(record := Record(0, WILDTYPE, given), findings)
        return {record.id: record.sequence}
    found: dict[str, str] = {}
    with file_of(given) as path:
        for record in read_records(path, findings):
            if not record.sequence or record.name in found:
                why = "twice" if record.sequence else "without residues"
                raise FastaError(f"{given}: the record {record.name!r} is there {why}; allowed: a sequence for each id")
            look(record, findings)
            found[record.name] = record.sequence
    return found


def read_mutants(
    path: str | Path, wildtypes: Mapping[str, str], offset: int = 1, measured: str | None = None
) -> tuple[dict[str, Mutants], str | None]:
    """Read a table of mutants: CSV, TSV or Parquet, with the names of its columns.

    Args:
        path: the table; CSV and TSV plain or packed with gzip.
        wildtypes: sequences by id; of several, a column says which each row is of.
        offset: the number of the first residue.
        measured: the column of what was measured; `None` for the only one that says by its name that it is.

    Returns:
        The mutants of each wild type that has some, in the order of the rows, and the name of the measured column.

    Raises:
        FastaError: if it cannot be read, lacks a column, or a row cannot be what it should.
    """
    columns = _read_table(Path(path))
    by_name = _first(columns, _MUTANT)
    source = by_name or _first(columns, _SEQUENCE)
    if source is None:
        allowed = f"one of {', '.join(_MUTANT)}, or of whole sequences: {', '.join(_SEQUENCE)}"
        raise FastaError(f"{path}: columns: got {', '.join(columns) or 'none'}; allowed: {allowed}")
    measured = _measured_column(path, columns, measured)
    rows_of: dict[str, list[int]] = {}
    for row, owner in enumerate(_owners(path, columns, wildtypes)):
        rows_of.setdefault(owner, []).append(row)
    made = {}
    for id_, wildtype in wildtypes.items():
        if (rows := rows_of.get(id_)) is None:
            continue
        texts = [columns[source][row] for row in rows]
        try:
            found = _of_rows(wildtype, texts, by_name is not None, offset, [row + 1 for row in rows])
        except FastaError as error:
            raise FastaError(f"{path}: {error}") from error
        if measured is not None:
            found = replace(found, measured=_numbers(path, measured, columns[measured], rows))
        made[id_] = found
    return made, measured


def _of_rows(wildtype: str, texts: list[str], named: bool, offset: int, rows: list[int]) -> Mutants:
    if named:
        return mutants_named(wildtype, texts, offset, rows)
    sequences = []
    for row, text in zip(rows, texts, strict=True):
        try:
            sequences.append(clean(text))
        except KeyError as error:
            raise FastaError(f"row {row}: the sequence has {error.args[0]!r}; allowed: residues") from error
        if odd := _NO_SUBSTITUTION.search("".join(text.split()).rstrip("*")):
            raise FastaError(
                f"row {row}: the sequence has {odd[0]!r}; allowed: substitutions alone: a gap would move what follows,"
                " and a stop ends it; leave it out"
            )
    return mutants_of(wildtype, sequences, offset, rows)


def _first(columns: Iterable[str], names: Sequence[str]) -> str | None:
    """Return the column that has the first of these names, in whatever case."""
    there = {column.strip().lower(): column for column in columns}
    return next((there[name] for name in names if name in there), None)


def _measured_column(path: str | Path, columns: Mapping[str, list[str]], asked: str | None) -> str | None:
    if asked is not None:
        if asked not in columns:
            raise FastaError(f"{path}: measured: got {asked!r}; allowed: one of its columns: {', '.join(columns)}")
        return asked
    likely = [name for name, cells in columns.items() if name.strip().lower() in _MEASURED and _are_numbers(cells)]
    if len(likely) > 1:
        raise FastaError(
            f"{path}: columns {' and '.join(likely)} may be what was measured; say which with --measured {likely[0]}"
        )
    return likely[0] if likely else None


def _are_numbers(cells: Sequence[str]) -> bool:
    """Whether most cells are numbers: what then is none is told by its row, and not taken for a column of words."""
    there = [cell for cell in cells if cell.strip()]
    return 2 * sum(map(_is_number, there)) > len(there)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _owners(path: str | Path, columns: Mapping[str, list[str]], wildtypes: Mapping[str, str]) -> list[str]:
    """Return the wild type that each row is of."""
    column = _first(columns, _ID)
    # beside one wild type a column called so may name the rows, unless it names the wild type too
    if len(wildtypes) == 1 and (column is None or wildtypes.keys().isdisjoint(columns[column])):
        return [*wildtypes] * len(next(iter(columns.values())))
    if column is None:
        raise FastaError(
            f"{path}: no column says which of the {len(wildtypes):,} wild types a row is of; allowed: one of"
            f" {', '.join(_ID)}"
        )
    for row, id_ in enumerate(columns[column], 1):
        if id_ not in wildtypes:
            known = ", ".join(list(wildtypes)[:_SHOWN]) + (", ..." if len(wildtypes) > _SHOWN else "")
            raise FastaError(f"{path}: row {row}: {column} is {id_!r}; allowed: an id of the FASTA ({known})")
    return columns[column]


def _numbers(path: str | Path, column: str, texts: Sequence[str], rows: Iterable[int]) -> NDArray[np.float64]:
    """Read what was measured; a cell without anything in it is NaN."""
    values = array("d")
    for row in rows:
        text = texts[row].strip()
        try:
            values.append(float(text) if text else float("nan"))
        except ValueError as error:
            raise FastaError(f"{path}: row {row + 1}: {column} is {text!r}; allowed: a number, or nothing") from error
    return np.array(values)


def _read_table(path: Path) -> dict[str, list[str]]:
    """Read the columns of a table as text.

    Raises:
        FastaError: if it cannot be read, has no rows, or rows of several lengths.
    """
    try:
        table = open_table(path)
        if table.kind == "fasta":
            raise FastaError(f"{path} is a FASTA; give a CSV, TSV or Parquet of mutants, or all")
        rows = list(table.read(range(len(table.columns))))
    except StudyError as error:
        raise FastaError(str(error)) from error
    if len({*table.columns}) < len(table.columns):
        raise FastaError(f"{path}: columns: got {', '.join(table.columns)}; allowed: each name once")
    if wrong := next((row for row in rows if isinstance(row[1], str)), None):
        raise FastaError(f"{path}: {table.unit} {wrong[0]:,} {wrong[1]}")
    if not rows:
        raise FastaError(f"{path} has no rows; allowed: the names of columns, and a row a mutant")
    cells = zip(*(fields for _, fields in rows), strict=True)
    return {
        name: ["" if cell is None else str(cell) for cell in column]
        for name, column in zip(table.columns, cells, strict=True)
    }
