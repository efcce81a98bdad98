"""What labels are: numbers or classes, of a protein or of each residue. What may be either is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

from hf_perturb.errors import StudyError
from hf_perturb.studies.task import TASKS, Task

UNLABELLED = "-"  # residue without a label

_MISSING = {"", "nan", "na", "n/a", "#n/a", "null", "<na>"}
_TRUTH = {"true", "false"}
# of two classes, the one that is not the positive one
_NEGATIVE = {
    *("false", "no", "n", "f", "0", "negative", "neg", "-", "inactive", "off", "none", "other", "background"),
    *("insoluble", "nonbinding", "non-binding", "non-binder", "unbound"),
}
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_FEW = 20  # whole numbers of more values than these, mostly different ones, are no classes
_SHORT = 16  # residues; no number has as many digits

Values: TypeAlias = "np.ndarray | tuple[np.ndarray, ...]"
# told of a row that has to go: its place, and why
Refuse: TypeAlias = "Callable[[int, str], None]"


def read_task(asked: str | None) -> tuple[str | None, str | None]:
    """Return level and kind that are asked for by `--task`.

    Raises:
        StudyError: if it is no task.
    """
    if asked is None:
        return None, None
    if asked not in TASKS:
        raise StudyError(f"task: got {asked!r}; allowed: {', '.join(TASKS)}")
    level, _, kind = asked.rpartition("-")
    return level or None, kind


def read_values(
    raw: Sequence[Any], lengths: Sequence[int], asked: tuple[str | None, str | None], source: str, refuse: Refuse
) -> tuple[Task, Values, list[int], str]:
    """Make numbers of labels.

    Args:
        raw: the label of each protein: text, number, or a list or text that has one for each residue.
        lengths: residues of each protein.
        asked: level and kind of the task, as far as they are said.
        source: what messages call the labels: `column 'target'`.
        refuse: told of each protein whose label cannot be used.

    Returns:
        the task, the values of the proteins that are left, their places, and a sentence.

    Raises:
        StudyError: if labels may be understood in more than one way, or if there is nothing to predict.
    """
    level, kind = asked
    if level is None:
        level = _level(raw, lengths, kind, source)
    if level == "residue":
        return _of_residues(raw, lengths, kind, source, refuse)
    places = []
    for place, value in enumerate(raw):
        if _is_missing(value):
            refuse(place, f"no label in {source}")
        else:
            places.append(place)
    kept: list[int] = []
    task, values, why = _of_values([raw[place] for place in places], kind, "protein", source, kept, places, refuse)
    return task, values, [places[number] for number in kept], why


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in _MISSING
    return value is None or (isinstance(value, float) and math.isnan(value))


def _number(value: Any) -> float | None:
    """Return the number that a label is, which may be infinite, or `None` if it is none."""
    if isinstance(value, (bool, list)):
        return None
    if isinstance(value, str) and ("_" in value or not value.isascii()):
        return None  # `float` takes underscores and digits of any script
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _level(raw: Sequence[Any], lengths: Sequence[int], kind: str | None, source: str) -> str:
    """Return whether labels are of proteins or of residues."""
    present = [(value, length) for value, length in zip(raw, lengths, strict=True) if not _is_missing(value)]
    if any(_items(value) is not None for value, _ in present):
        return "residue"
    if kind == "regression" or not present:
        return "protein"
    if not all(isinstance(value, str) and len(value.strip()) == length for value, length in present):
        return "protein"
    numbers = all(_number(value) is not None for value, _ in present)
    if numbers and not all(value.strip().isdigit() for value, _ in present):
        return "protein"
    if max(length for _, length in present) < _SHORT:
        other = "regression" if numbers else "protein-classes"
        raise StudyError(
            f"{source} can be read in two ways, as each label is as long as its sequence (such as {present[0][0]!r}): a"
            f" letter for each residue, or a label of the protein; say which: --task residue-classes or --task {other}"
        )
    return "residue"


# ---- labels of proteins, and of all residues one after another


def _of_values(
    values: list[Any],
    kind: str | None,
    level: str,
    source: str,
    kept: list[int],
    places: Sequence[int],
    refuse: Refuse,
) -> tuple[Task, np.ndarray, str]:
    """Make numbers of labels that are there, and fill `kept` with those that could be used."""
    numbers = [_number(value) for value in values]
    found = sum(number is not None for number in numbers)
    if not values:
        raise StudyError(f"{source} has no labels; there is nothing to predict")
    if kind == "regression" or (kind is None and found * 2 >= len(values)) or found == len(values):
        for number, (value, place) in enumerate(zip(numbers, places, strict=True)):
            if value is not None and math.isfinite(value):
                kept.append(number)
            else:
                refuse(place, _no_number(values[number], source, found))
        finite = np.array([numbers[number] for number in kept], dtype=np.float64)
        return _of_numbers(finite, kind, level, source)
    if kind is None and any(number is not None and number % 1 for number in numbers):
        other = next(value for value, number in zip(values, numbers, strict=True) if number is None)
        raise StudyError(
            f"{source} has {found:,} numbers and {len(values) - found:,} labels that are none (such as"
            f" {str(other)[:40]!r}), which can be read in two ways: as numbers, the others wrong (--task regression),"
            " or all as names of classes (--task classes); say which"
        )
    names = []
    for number, (value, place) in enumerate(zip(values, places, strict=True)):
        name = _name(value)
        if "\ufffd" in name:
            refuse(place, f"a label in {source} that is not UTF-8: {name!r}")
        else:
            kept.append(number)
            names.append(name)
    return _of_names(names, kind, level, source)


def _no_number(value: Any, source: str, found: int) -> str:
    if isinstance(value, str) and _DECIMAL_COMMA.fullmatch(value.strip()):
        return f"{value.strip()!r} in {source}, which has a comma where a number has a point"
    hint = "" if found == 0 else "; --task classes if it is the name of a class"
    if _number(value) is not None:
        return f"{str(value).strip()!r} in {source}, which is no finite number"
    return f"{str(value).strip()[:40]!r} in {source}, which is no number{hint}"


def _name(value: Any) -> str:
    name = str(value).strip()
    return name.lower() if name.lower() in _TRUTH else name


def _of_numbers(numbers: np.ndarray, kind: str | None, level: str, source: str) -> tuple[Task, np.ndarray, str]:
    distinct = np.unique(numbers)
    whole = bool(np.all(distinct == np.floor(distinct)))
    shown = ", ".join(f"{value:.6g}" for value in distinct[:5]) + (" ..." if len(distinct) > 5 else "")
    many = f"{len(distinct):,} different {'whole numbers' if whole else 'numbers'} ({shown}) in {source}"
    if len(distinct) < 2:
        raise StudyError(f"{source} has {shown or 'no number'} everywhere; there is nothing to predict")
    if kind is None:
        if len(distinct) == 2:
            kind = "binary" if whole else None
        elif not whole or (len(distinct) > _FEW and len(distinct) * 2 > len(numbers)):
            kind = "regression"
        if kind is None:
            raise StudyError(
                f"{many}, {len(numbers):,} labels, can be read in two ways: as numbers (--task regression), or as names"
                f" of classes (--task {'binary' if len(distinct) == 2 else 'classes'}); say which"
            )
    if kind == "regression":
        task = Task(kind, level)
        return task, numbers, f"task: {task}: {many}"
    names = [_written(value) for value in distinct]
    return _classes(kind, level, names, np.searchsorted(distinct, numbers), source)


def _written(value: float) -> str:
    return str(int(value)) if value == math.floor(value) and abs(value) < 2**53 else repr(float(value))


def _of_names(names: list[str], kind: str | None, level: str, source: str) -> tuple[Task, np.ndarray, str]:
    distinct = sorted(set(names))
    if len(distinct) < 2:
        raise StudyError(
            f"{source} has {repr(distinct[0]) if distinct else 'no label'} everywhere; there is nothing to predict"
        )
    commas = all(_DECIMAL_COMMA.fullmatch(name) or _number(name) is not None for name in distinct)
    if kind is None and (commas or (len(distinct) > 2 and len(distinct) * 2 > len(names))):
        shown = ", ".join(repr(name[:40]) for name in distinct[:3])
        remedy = "write numbers with a point" if commas else "name another column with --target"
        why = "which have a comma where numbers have a point" if commas else "no numbers, and too many for classes"
        raise StudyError(
            f"{source} has {len(distinct):,} different texts in {len(names):,} labels ({shown} ...), {why}; {remedy},"
            " or say --task classes"
        )
    order = {name: number for number, name in enumerate(distinct)}
    values = np.array([order[name] for name in names], dtype=np.int64)
    return _classes(kind, level, distinct, values, source)


def _classes(
    kind: str | None, level: str, names: list[str], values: np.ndarray, source: str
) -> tuple[Task, np.ndarray, str]:
    kind = kind or ("binary" if len(names) == 2 else "classes")
    if kind == "binary":
        if len(names) != 2:
            shown = ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
            raise StudyError(f"{source} has {len(names)} classes ({shown}); a binary task has two: --task classes")
        if names[1].lower() in _NEGATIVE and names[0].lower() not in _NEGATIVE:
            names, values = names[::-1], np.where(values < 0, values, 1 - values)
    values = values.astype(np.int64)
    task = Task(kind, level, tuple(names))
    counts = np.bincount(values[values >= 0], minlength=len(names))
    shown = ", ".join(f"{name}: {count:,}" for name, count in zip(names[:10], counts, strict=False))
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    positive = f"; {names[1]} is the positive one" if kind == "binary" else ""
    return task, values, f"task: {kind} of a {level}: {len(names)} classes in {source} ({shown}{more}){positive}"


# ---- labels of residues


def _items(value: Any) -> list[Any] | None:
    """Return labels of residues that are a list, or text in square brackets."""
    if isinstance(value, str):
        body = value.strip()
        if not (body.startswith("[") and body.endswith("]")):
            return None
        return [item.strip("'\"") for item in body[1:-1].replace(",", " ").replace(";", " ").split()]
    return list(value) if isinstance(value, (list, tuple)) else None


def _of_residues(
    raw: Sequence[Any], lengths: Sequence[int], kind: str | None, source: str, refuse: Refuse
) -> tuple[Task, Values, list[int], str]:
    kept: list[int] = []
    labels: list[Sequence[Any]] = []
    for place, (value, length) in enumerate(zip(raw, lengths, strict=True)):
        if _is_missing(value) and not (isinstance(value, str) and len(value) == length):
            refuse(place, f"no labels in {source}")
            continue
        items = _items(value)
        label: Sequence[Any] = "".join(str(value).split()) if items is None else items
        if len(label) != length:
            refuse(place, f"{len(label):,} labels in {source} for {length:,} residues")
        elif "\ufffd" in label:
            refuse(place, f"a label in {source} that is not UTF-8")
        else:
            kept.append(place)
            labels.append(label)
    strings = [label for label in labels if isinstance(label, str)]
    if len(strings) == len(labels):
        if kind == "regression":
            raise StudyError(f"{source} has a letter for each residue, which is a class; got --task regression")
        task, values, why = _of_letters(strings, kind, source)
    else:
        task, values, why = _of_items(labels, kind, source)
    parts = tuple(np.split(values, np.cumsum([len(label) for label in labels])[:-1]))
    unlabelled = int(np.isnan(values).sum() if task.kind == "regression" else (values < 0).sum())
    return task, parts, kept, f"{why}; {unlabelled:,} of {len(values):,} residues unlabelled"


def _of_letters(strings: list[str], kind: str | None, source: str) -> tuple[Task, np.ndarray, str]:
    points = np.frombuffer("".join(strings).encode("utf-32-le"), dtype="<u4")
    distinct = np.unique(points)
    distinct = distinct[distinct != ord(UNLABELLED)]
    if len(distinct) < 2:
        shown = "".join(map(chr, distinct)) or "nothing"
        raise StudyError(f"{source} has {shown!r} for every labelled residue; there is nothing to predict")
    values = np.searchsorted(distinct, points).astype(np.int64)
    values[points == ord(UNLABELLED)] = -1
    return _classes(kind, "residue", [chr(point) for point in distinct], values, source)


def _of_items(labels: Iterable[Sequence[Any]], kind: str | None, source: str) -> tuple[Task, np.ndarray, str]:
    """Make numbers of lists of labels, one after another."""
    flat = [item for label in labels for item in label]
    there = [place for place, item in enumerate(flat) if not (_is_missing(item) or item in (UNLABELLED, "None"))]

    def refuse(place: int, why: str) -> None:
        raise StudyError(f"a residue has {why}")

    task, found, why = _of_values([flat[place] for place in there], kind, "residue", source, [], there, refuse)
    empty = np.nan if task.kind == "regression" else -1
    values = np.full(len(flat), empty, dtype=found.dtype)
    values[there] = found
    return task, values, why
