"""Which column is what, and labels of another file put beside their sequences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hf_perturb.embedding.tables import ROLES, Row, Table, open_table
from hf_perturb.errors import StudyError
from hf_perturb.studies.labels import UNLABELLED

NUMBERED = object()  # an id that is the number of the row
_REST = ("set", "validation", "cluster")


@dataclass(frozen=True)
class Labelled:
    """Sequences with their labels, as they are written.

    Args:
        rows: id, sequence, label, set, validation, cluster.
        target: name of the labels.
        source: what messages call them.
        has: whether the files say the `set`, the `validation` and the `cluster` of a protein.
        ids: the name of the column of ids, if there is one.
        level: `residue` if it is plain that the labels are of residues.
        bad: number of a row that `rows` does not have, why, and what is counted; filled while `rows` are read.
    """

    rows: Iterable[Row]
    target: str
    source: str
    has: Mapping[str, bool]
    ids: str = ""
    level: str | None = None
    bad: list[tuple[int, str, str]] = field(default_factory=list)


def own_labels(table: Table, target: str | None) -> Labelled:
    """Read labels that are in the file of the sequences.

    Raises:
        StudyError: if it is not plain which column has sequences or labels.
    """
    sequence = table.find("sequence")
    if sequence is None:
        raise StudyError(
            f"{table.path} has no column of sequences: its columns are {table.shown()}; call it 'sequence', in the"
            " first line of the file"
        )
    wanted = _find_target(table, target, sequence)
    others = _others(table, wanted)
    rows: Iterable[Row] = table.read([others["id"], sequence, wanted, *(others[role] for role in _REST)])
    if others["id"] is None:
        rows = ((number, row if isinstance(row, str) else [NUMBERED, *row[1:]]) for number, row in rows)
    name = table.columns[wanted]
    source = f"{name.upper()}= of its header" if table.kind == "fasta" else f"column {name!r}"
    has = {role: others[role] is not None for role in _REST}
    ids = "" if others["id"] is None else table.columns[others["id"]]
    return Labelled(rows, name, source, has, ids)


def labels_by_id(table: Table, target: str | None, path: Path, mask: Path | None) -> Labelled:
    """Read labels that are in a file of their own, and put them beside the sequences of a FASTA.

    Args:
        table: the sequences.
        target: name of the column of labels.
        path: CSV, TSV or Parquet by id, or a FASTA of strings with a letter for each residue.
        mask: a FASTA of strings of 0 and 1.

    Raises:
        StudyError: if it is not plain which column has ids or labels, or if `table` is no FASTA.
    """
    if table.kind != "fasta":
        raise StudyError(f"labels: {table.path} is no FASTA; labels of a table are a column of it: --target NAME")
    labels, own = open_table(path), _others(table, None)
    if labels.kind == "fasta":
        if target is not None:
            raise StudyError(f"target: got {target!r}, but {path} is a FASTA of labels, which has no columns")
        wanted, name, source, level = 1, path.name, path.name, "residue"
    else:
        if mask is not None:
            raise StudyError(f"mask: it is for a FASTA of labels; {path} is none")
        labels = _with_header(labels, {row[0] for _, row in table.read([0])})
        wanted = _find_target(labels, target, None)
        name, level = labels.columns[wanted], None
        source = f"column {name!r} of {path.name}"
    theirs = _others(labels, wanted)
    columns = [0 if labels.kind == "fasta" else theirs["id"], wanted, *(theirs[role] for role in _REST)]
    has = {role: own[role] is not None or theirs[role] is not None for role in _REST}
    bad: list[tuple[int, str, str]] = []
    found = _by_id(labels, columns, bad)
    masks = None
    if mask is not None:
        if (shown := open_table(mask)).kind != "fasta":
            raise StudyError(f"mask: {mask} is no FASTA; give one of strings of 0 and 1")
        masks = _by_id(shown, [0, 1], bad)
    rows = _joined(table, [0, 1, *(own[role] for role in _REST)], labels, found, masks, bad)
    return Labelled(rows, name, source, has, table.columns[0], level, bad)


def _joined(
    table: Table,
    columns: Sequence[int | None],
    labels: Table,
    found: dict[str, tuple[int, list[Any]]],
    masks: dict[str, tuple[int, list[Any]]] | None,
    bad: list[tuple[int, str, str]],
) -> Iterator[Row]:
    """Give each sequence with its label; what the file of labels says of a set goes before what a header says."""
    used = set()
    for number, fields in table.read(columns):
        name, raw, *own = list(fields)
        used.add(name)
        if name not in found:
            yield number, f"({name!r}) has no labels in {labels.path.name}"
            continue
        label, *theirs = found[name][1]
        if masks is not None:
            label = _masked(label, masks.get(name, (0, [None]))[1][0])
            if label is None:
                yield number, f"({name!r}) has no mask of 0 and 1 that is as long as its labels"
                continue
        rest = [mine if other is None else other for mine, other in zip(own, theirs, strict=True)]
        yield number, [name, raw, label, *rest]
    for name, (number, _) in found.items():
        if name not in used:
            bad.append((number, f"of {labels.path.name} ({name!r}) has no sequence in {table.path.name}", labels.unit))


def _by_id(table: Table, columns: Sequence[int | None], bad: list[tuple[int, str, str]]) -> dict[str, tuple[int, Any]]:
    """Return number and fields of each row by the id that is its first field."""
    found: dict[str, tuple[int, Any]] = {}
    for number, row in table.read(columns):
        name = row if isinstance(row, str) else str("" if row[0] is None else row[0]).strip()
        if isinstance(row, str):
            bad.append((number, f"of {table.path.name} {row}", table.unit))
        elif not name:
            bad.append((number, f"of {table.path.name} has no id", table.unit))
        elif name in found:
            why = f"of {table.path.name} has the id {name!r}, as {table.unit} {found[name][0]:,} has"
            bad.append((number, why, table.unit))
        else:
            found[name] = number, row[1:]
    return found


def _masked(label: str, mask: Any) -> str | None:
    label, shown = "".join(label.split()), "".join(str(mask).split())
    if len(shown) != len(label) or set(shown) - {"0", "1"}:
        return None
    return "".join(letter if seen == "1" else UNLABELLED for letter, seen in zip(label, shown, strict=True))


def _with_header(labels: Table, ids: set[str]) -> Table:
    """Return a table of labels that has a column of ids; a file of two columns may come without their names."""
    if labels.find("id") is not None:
        return labels
    if len(labels.columns) == 2 and labels.columns[0] in ids:
        return without_header(labels, ("id", "target"))
    raise StudyError(
        f"{labels.path} has no column of ids: its columns are {labels.shown()}; call it 'id'"
        " (a file of two columns may do without names, if its first id is one of the sequences)"
    )


def without_header(table: Table, columns: tuple[str, ...]) -> Table:
    """Return a table whose first line is a row too, with these names for its columns."""

    def read(wanted: Sequence[int | None]) -> Iterator[Row]:
        yield 1, [None if column is None else table.columns[column] for column in wanted]
        yield from table.read(wanted)

    return replace(table, columns=columns, read=read)


def _others(table: Table, target: int | None) -> dict[str, int | None]:
    """Return the columns beside sequence and target; what is the target is nothing else."""
    return {role: table.find(role, target) for role in ("id", *_REST)}


def _find_target(table: Table, asked: str | None, sequence: int | None) -> int:
    """Return the column of labels.

    Raises:
        StudyError: if there is none, or several.
    """
    fasta = table.kind == "fasta"
    if asked is not None:
        found = [number for number, name in enumerate(table.columns) if name == asked]
        found = found or [n for n, name in enumerate(table.columns) if name.lower() == asked.strip().lower()]
        if len(found) != 1:
            got = f"is there {len(found)} times" if found else "is not there"
            raise StudyError(f"target: {asked!r} {got}; {table.path} has {table.shown()}")
        if found[0] == sequence:
            raise StudyError(f"target: {asked!r} has the sequences; {table.path} has {table.shown()}")
        return found[0]
    found = table.matching(ROLES["target"])
    if not found and not fasta:
        taken = {sequence, *(table.find(role) for role in ("id", "sequence", *_REST))}
        # the numbers of rows that R and pandas write have no name
        names = [(n, name) for n, name in enumerate(table.columns) if name and not name.startswith("Unnamed:")]
        found = [number for number, _ in names if number not in taken]
    if len(found) == 1:
        return found[0]
    if found:
        shown = table.shown(found)
        raise StudyError(f"{table.path} has several columns that may be the target: {shown}; say which: --target NAME")
    if fasta:
        raise StudyError(f"{table.path} has no TARGET= in its headers; write it there, or give a file by --labels")
    raise StudyError(f"{table.path} has no column that may be the target, among {table.shown()}; say --target NAME")
