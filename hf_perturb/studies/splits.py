"""Which proteins are for training, for choosing and for testing."""

from __future__ import annotations

import math
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_perturb.embedding.tables import open_table
from hf_perturb.errors import StudyError
from hf_perturb.studies.columns import without_header
from hf_perturb.studies.dataset import SETS, Dataset

FOLDS = 5
_ALLOWED = "column, kfold:K, cluster:FILE, cluster:IDENTITY (such as cluster:0.3)"
_LEAK = "similar sequences may be in training and test alike, and scores too high; --split cluster:0.3 keeps them apart"


@dataclass(frozen=True)
class Fold:
    """Numbers of proteins, ascending.

    Args:
        train: what probes are fitted on.
        validation: what strengths and layers are chosen on; `None` where inner folds are for that.
        test: what scores are of.
        inner: inner folds of `train`, as (fitted on, held out); none where there is a validation set.
    """

    train: np.ndarray
    validation: np.ndarray | None
    test: np.ndarray
    inner: tuple[tuple[np.ndarray, np.ndarray], ...]


@dataclass(frozen=True)
class Split:
    """Folds of a dataset.

    Args:
        name: `column`, `kfold:5`, `cluster`, `cluster:0.3`.
        folds: one, or those of a k-fold, whose test sets are all proteins.
        clusters: the cluster of each protein, if it is known.
        notes: how they were made.
        warnings: what a reader has to know before believing a score.
    """

    name: str
    folds: tuple[Fold, ...]
    clusters: tuple[str, ...] | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def make_split(dataset: Dataset, asked: str | None = None, seed: int = 0) -> Split:
    """Divide proteins into training, validation and test.

    Args:
        dataset: the proteins.
        asked: `column` (as the file says), `kfold:K`, `cluster:FILE` (clusters from a file, held out whole) or
            `cluster:0.3` (those that MMseqs2 finds); `None`: as the file says, or `kfold:5` where it has no test set.
        seed: of all that is drawn.

    Raises:
        StudyError: if it is none of these, if the file does not say, or if a set cannot be used.
    """
    has_test = dataset.sets is not None and "test" in dataset.sets
    kind, _, value = (asked or ("column" if has_test else f"kfold:{FOLDS}")).partition(":")
    if kind == "column" and not value:
        return _column(dataset, seed)
    if kind == "kfold":
        return _kfold(dataset, _whole(value, asked), seed, chosen=asked is None)
    if kind == "cluster" and value:
        return _clustered(dataset, value, seed)
    raise StudyError(f"split: got {asked!r}; allowed: {_ALLOWED}")


def _whole(value: str, asked: str | None) -> int:
    if not (value.isascii() and value.isdigit() and int(value) >= 2):
        raise StudyError(f"split: got {asked!r}; allowed: kfold:K, K a number of at least 2; or {_ALLOWED}")
    return int(value)


def _column(dataset: Dataset, seed: int) -> Split:
    if dataset.sets is None:
        raise StudyError(
            f"split: got 'column', but the data has no column of sets (set, split); allowed without: {_ALLOWED[8:]}"
        )
    sets = np.array(dataset.sets)
    train, validation, test = (np.flatnonzero(sets == name) for name in SETS)
    for name, rows in (("training", train), ("test", test)):
        if not len(rows):
            raise StudyError(f"split: the {name} set of the data is empty; --split kfold:{FOLDS} makes one")
    groups = _numbered(dataset.clusters or dataset.sequences)
    inner = () if len(validation) else _inner(dataset, groups, train, seed)
    fold = Fold(train, validation if len(validation) else None, test, inner)
    _check(dataset, [fold])
    note = f"split: as the data says, {len(train):,} training, {len(validation):,} validation, {len(test):,} test"
    warnings = [*_shared(dataset, fold), *_unseen(dataset, [fold])]
    return Split("column", (fold,), dataset.clusters, (note, *_said(fold)), tuple(warnings))


def _said(fold: Fold) -> list[str]:
    return [] if fold.validation is not None else [f"chosen on {len(fold.inner)} inner folds of training rows"]


def _shared(dataset: Dataset, fold: Fold) -> list[str]:
    """Say which test proteins are not new."""
    seen = fold.train if fold.validation is None else np.concatenate([fold.train, fold.validation])
    warnings = []
    for what, names in (("sequence", dataset.sequences), ("cluster", dataset.clusters)):
        if names is not None:
            known = {names[row] for row in seen}
            same = sum(names[row] in known for row in fold.test)
            if same:
                warnings.append(
                    f"{same:,} of {len(fold.test):,} test proteins have a {what} that training or validation has too;"
                    " scores are too high"
                )
    return warnings


def _kfold(dataset: Dataset, folds: int, seed: int, *, chosen: bool) -> Split:
    name = f"kfold:{folds}"
    note = f"split: {folds} folds of proteins, seed {seed}"
    warnings = []
    if dataset.clusters is not None:
        note += ", clusters kept whole"
    else:
        warnings.append(f"{'no test set: ' if chosen else ''}{folds} folds at random: {_LEAK}")
    return _folds(dataset, name, dataset.clusters, folds, seed, note, warnings)


def _clustered(dataset: Dataset, value: str, seed: int) -> Split:
    identity = _identity(value)
    if identity is None:
        name, clusters, notes = "cluster", *_from_file(dataset, Path(value))
    else:
        name, clusters, notes = f"cluster:{value}", *_by_mmseqs(dataset, identity)
    many = len(set(clusters))
    if many < 2:
        raise StudyError(
            f"split: got 'cluster:{value}', which has all proteins in {many} cluster; there is no test set"
        )
    folds = min(FOLDS, many)
    note = f"split: {folds} folds, {many:,} clusters kept whole, seed {seed}"
    return _folds(dataset, name, clusters, folds, seed, note, [], notes)


def _folds(
    dataset: Dataset,
    name: str,
    clusters: tuple[str, ...] | None,
    folds: int,
    seed: int,
    note: str,
    warnings: list[str],
    notes: Sequence[str] = (),
) -> Split:
    groups = _numbered(clusters or dataset.sequences)
    everything = np.arange(len(dataset))
    if folds > (many := int(groups.max()) + 1):
        what = "clusters" if clusters else "different sequences"
        raise StudyError(f"split: got {name!r}, but the data has {many:,} {what}; allowed: at most as many folds")
    held = _dealt(dataset, groups, everything, folds, seed)
    made = []
    for number in range(folds):
        train = np.flatnonzero(held != number)
        inner = _inner(dataset, groups, train, seed + number + 1)
        made.append(Fold(train, None, np.flatnonzero(held == number), inner))
    _check(dataset, made)
    if dataset.sets is not None:
        notes = [*notes, "the sets that the data says are not used"]
    return Split(name, tuple(made), clusters, (note, *notes, *_said(made[0])), (*warnings, *_unseen(dataset, made)))


# ---- folds


def _numbered(names: Sequence[str]) -> np.ndarray:
    """Return the number of each name, by first appearance."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def _inner(
    dataset: Dataset, groups: np.ndarray, train: np.ndarray, seed: int
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    folds = min(FOLDS, len(np.unique(groups[train])))
    if folds < 2:
        raise StudyError(f"split: {len(train):,} training proteins of one cluster, none to choose on; give more")
    held = _dealt(dataset, groups, train, folds, seed)
    return tuple((train[held != number], train[held == number]) for number in range(folds))


def _dealt(dataset: Dataset, groups: np.ndarray, rows: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Return the fold of each of these proteins; groups stay whole, classes are spread evenly.

    The largest group goes first, each to the fold that has least of its classes. scikit-learn's splitters break ties
    by how a machine sorts, or shuffle no groups.
    """
    _, own = np.unique(groups[rows], return_inverse=True)
    many = int(own.max()) + 1
    kinds, places, shares = _shares(dataset, rows, own)
    tally: list[list[tuple[int, float]]] = [[] for _ in range(many)]
    for kind, place, share in zip(kinds.tolist(), places.tolist(), shares.tolist(), strict=True):
        tally[place].append((kind, share))
    sizes = np.bincount(own, minlength=many)
    order = np.random.RandomState(seed % 2**32).permutation(many)  # its stream is frozen
    order = order[np.argsort(-sizes[order], kind="stable")]
    load = [[0.0] * folds for _ in range(int(kinds.max(initial=0)) + 1)]
    held, filled = np.empty(many, dtype=np.int64), [0] * folds
    for group, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        costs = [0.0] * folds
        for kind, share in tally[group]:
            costs = [cost + share * has for cost, has in zip(costs, load[kind], strict=True)]
        _, _, fold = min(zip(costs, filled, range(folds), strict=True))
        held[group] = fold
        filled[fold] += size
        for kind, share in tally[group]:
            load[kind][fold] += share
    return held[own]


def _shares(dataset: Dataset, rows: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return class, group and which share of the class is in the group; all is one class of a regression."""
    if dataset.task.kind == "regression":
        kinds, groups = np.zeros(len(rows), dtype=np.int64), own
    elif isinstance(dataset.values, np.ndarray):
        kinds, groups = dataset.values[rows], own
    else:
        labels = [dataset.values[row] for row in rows]
        kinds, groups = np.concatenate(labels), np.repeat(own, [len(label) for label in labels])
    many = int(own.max()) + 1
    pairs, counts = np.unique(kinds[kinds >= 0] * many + groups[kinds >= 0], return_counts=True)
    kinds, groups = np.divmod(pairs, many)
    return kinds, groups, counts / np.bincount(kinds, weights=counts)[kinds]


# ---- what cannot be used


def _labels(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """Return the different labels of these proteins."""
    if isinstance(dataset.values, np.ndarray):
        return np.unique(dataset.values[rows])
    found = np.unique(np.concatenate([dataset.values[row] for row in rows]))
    return found[~np.isnan(found)] if dataset.task.kind == "regression" else found[found >= 0]


def _check(dataset: Dataset, folds: Sequence[Fold]) -> None:
    """Raise if there is nothing to learn from, or nothing to tell apart."""
    of = [f" of fold {number}" if len(folds) > 1 else "" for number in range(1, len(folds) + 1)]
    named = [(f"training set{one}", fold.train) for one, fold in zip(of, folds, strict=True)]
    named += [("validation set", fold.validation) for fold in folds if fold.validation is not None]
    named.append(("test set", np.concatenate([fold.test for fold in folds])))
    for one, fold in zip(of, folds, strict=True):
        named += [(f"training set{one} less an inner fold", train) for train, _ in fold.inner]
    for name, rows in named:
        found = _labels(dataset, rows)
        if len(found) < 2:
            label = "value" if dataset.task.kind == "regression" else "class"
            shown = [dataset.task.classes[int(one)] if dataset.task.classes else f"{one:g}" for one in found]
            has = f"one {label}, {shown[0]!r}" if shown else "no label"
            raise StudyError(
                f"split: the {name} ({len(rows):,} proteins) has {has}; it takes two to tell apart: give more data, or"
                " another --split"
            )


def _unseen(dataset: Dataset, folds: Sequence[Fold]) -> list[str]:
    """Name classes that a probe is asked for, and has not seen."""
    missing: Counter[str] = Counter()
    for fold in folds:
        if dataset.task.classes:
            new = set(_labels(dataset, fold.test).tolist()) - set(_labels(dataset, fold.train).tolist())
            missing.update(dataset.task.classes[label] for label in new)
    shown = ", ".join(sorted(missing))
    return [f"classes in test that training lacks{' in a fold' if len(folds) > 1 else ''}: {shown}"] if missing else []


# ---- clusters


def _identity(value: str) -> float | None:
    try:
        identity = float(value)
    except ValueError:
        return None
    if not (math.isfinite(identity) and 0 < identity <= 1):
        raise StudyError(f"split: got 'cluster:{value}'; allowed: an identity between 0 and 1, or a file")
    return identity


def _from_file(dataset: Dataset, path: Path) -> tuple[tuple[str, ...], list[str]]:
    """Read clusters: MMseqs2's representative and member, or a table with columns of ids and clusters."""
    table = open_table(path)
    if table.kind == "fasta":
        raise StudyError(
            f"split: {path} is a FASTA; give a file of clusters: representative and member, or id and cluster"
        )
    member, cluster = table.find("id"), table.find("cluster")
    if member is None or cluster is None:
        if len(table.columns) != 2:
            raise StudyError(
                f"split: {path} has the columns {table.shown()}; allowed: id and cluster, or representative and member"
                " without names"
            )
        table, member, cluster = without_header(table, ("cluster", "id")), 1, 0
    found: dict[str, str] = {}
    for number, row in table.read([member, cluster]):
        if isinstance(row, str):
            raise StudyError(f"split: {path}: {table.unit} {number:,} {row}")
        name, of = (str("" if field is None else field).strip() for field in row)
        if not name or not of or found.setdefault(name, of) != of:
            wrong = f"has {name!r} in cluster {of!r}" + (f", which is in {found[name]!r} too" if name in found else "")
            raise StudyError(f"split: {path}: {table.unit} {number:,} {wrong}; allowed: one cluster an id")
    missing = [name for name in dataset.ids if name not in found]
    if missing:
        raise StudyError(
            f"split: {path} has no cluster for {len(missing):,} of {len(dataset):,} proteins, the first {missing[0]!r};"
            f" its ids are like {next(iter(found), '')!r}"
        )
    others = len(found) - len(dataset)
    notes = [f"clusters of {path.name}"] + ([f"{others:,} ids of it are not in the data"] if others else [])
    return tuple(found[name] for name in dataset.ids), notes


def _by_mmseqs(dataset: Dataset, identity: float) -> tuple[tuple[str, ...], list[str]]:
    """Have MMseqs2 make clusters.

    Raises:
        StudyError: if it is not installed, or fails.
    """
    program = shutil.which("mmseqs")
    if program is None:
        raise StudyError(
            f"split: got 'cluster:{identity:g}', which needs MMseqs2 (mmseqs on PATH): conda install -c bioconda"
            " mmseqs2; or make clusters elsewhere, and give their file: --split cluster:FILE"
        )
    with tempfile.TemporaryDirectory(prefix="hf_perturb-") as name:
        folder = Path(name)
        records = (f">{number}\n{sequence}\n" for number, sequence in enumerate(dataset.sequences))
        (folder / "in.fasta").write_text("".join(records), encoding="ascii")
        command = [program, "easy-cluster", "in.fasta", "out", "tmp", "--min-seq-id", f"{identity:g}", "-v", "1"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
        made = folder / "out_cluster.tsv"
        if done.returncode or not made.is_file():
            said = (done.stderr or done.stdout).strip()[-300:]
            raise StudyError(f"split: mmseqs easy-cluster failed with status {done.returncode}: {said}")
        pairs = [line.split("\t") for line in made.read_text(encoding="ascii").splitlines()]
    of = {int(member): dataset.ids[int(representative)] for representative, member in pairs}
    # what it does not list is like nothing else
    clusters = tuple(of.get(number, own) for number, own in enumerate(dataset.ids))
    return clusters, [f"clusters of mmseqs easy-cluster --min-seq-id {identity:g}"]
