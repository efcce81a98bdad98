"""Proteins are divided as asked: clusters whole, classes evenly, the same everywhere; leaks are said."""

from __future__ import annotations

import os
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from hf_perturb.errors import StudyError
from hf_perturb.studies.dataset import Dataset
from hf_perturb.studies.splits import make_split
from hf_perturb.studies.task import Task

REGRESSION = Task("regression", "protein")


def dataset(values, sets=None, clusters=None, task=REGRESSION, sequences=None) -> Dataset:
    many = len(values)
    if task.level == "protein":
        values = np.asarray(values, dtype=np.float64 if task.kind == "regression" else np.int64)
    sequences = sequences or [f"M{'A' * n}" for n in range(many)]
    sets = None if sets is None else tuple(sets)
    clusters = None if clusters is None else tuple(clusters)
    ids = tuple(f"p{n}" for n in range(many))
    return Dataset(ids, tuple(sequences), task, "y", values, sets, clusters, (), (), "sha256:")


def check_whole(split, groups, many: int) -> None:
    """Every protein is tested once, nothing leaks, and no group is divided."""
    everything = np.arange(many)
    np.testing.assert_array_equal(np.sort(np.concatenate([fold.test for fold in split.folds])), everything)
    for fold in split.folds:
        pairs = [(everything, fold.train, fold.test), *((fold.train, *inner) for inner in fold.inner)]
        for rows, train, held in pairs:
            assert train.dtype == held.dtype == np.int64
            np.testing.assert_array_equal(np.sort(np.concatenate([train, held])), rows)
            assert len(train)
            assert len(held)
            assert not {groups[row] for row in train} & {groups[row] for row in held}
        held = np.concatenate([held for _, held in fold.inner])
        np.testing.assert_array_equal(np.sort(held), fold.train)


def test_the_sets_of_the_data_are_kept():
    data = dataset(range(7), ["train", "test", "validation", "train", "test", "train", "validation"])
    for asked in (None, "column"):
        split = make_split(data, asked)
        (fold,) = split.folds
        assert (split.name, fold.inner, split.warnings) == ("column", (), ())
        assert [rows.tolist() for rows in (fold.train, fold.validation, fold.test)] == [[0, 3, 5], [2, 6], [1, 4]]


def test_without_a_validation_set_inner_folds_choose():
    data = dataset(range(20), ["train"] * 15 + ["test"] * 5)
    (fold,) = make_split(data).folds
    assert fold.validation is None
    assert [len(held) for _, held in fold.inner] == [3] * 5


def test_without_a_test_set_there_are_five_folds_and_a_warning():
    split = make_split(dataset(range(23), ["train"] * 23))
    check_whole(split, range(23), 23)
    assert (split.name, len(split.folds)) == ("kfold:5", 5)
    assert sorted(len(fold.test) for fold in split.folds) == [4, 4, 5, 5, 5]
    assert "no test set" in split.warnings[0]
    assert "similar sequences" in split.warnings[0]
    assert all(fold.validation is None and len(fold.inner) == 5 for fold in split.folds)


def test_folds_depend_on_the_seed_alone():
    data = dataset(range(12))
    tests = [[fold.test.tolist() for fold in make_split(data, "kfold:3", seed).folds] for seed in (0, 0, 1)]
    assert tests[0] == tests[1] != tests[2]
    assert tests[0] == FIRST  # on any machine


FIRST = [[1, 3, 6, 10], [0, 2, 7, 11], [4, 5, 8, 9]]


@given(
    groups=st.lists(st.integers(0, 12), min_size=12, max_size=60).filter(lambda groups: len(set(groups)) >= 8),
    classes=st.integers(2, 4),
    seed=st.integers(0, 2**40),
    kind=st.sampled_from(["regression", "classes", "residue"]),
)
@settings(max_examples=60, deadline=None)
def test_clusters_are_kept_whole(groups, classes, seed, kind):
    draw = np.random.default_rng(seed)
    if kind == "regression":
        data = dataset(draw.normal(size=len(groups)), clusters=map(str, groups))
    elif kind == "classes":
        values = draw.integers(0, classes, len(groups))
        values[[groups.index(group) for group in set(groups)]] = np.arange(len(set(groups))) % 2
        task = Task("classes", "protein", tuple(map(str, range(classes))))
        data = dataset(values, clusters=map(str, groups), task=task)
    else:
        values = tuple(np.append(draw.integers(-1, classes, 9), [0, 1]) for _ in groups)
        task = Task("classes", "residue", tuple(map(str, range(classes))))
        data = dataset(values, clusters=map(str, groups), task=task)
    try:
        split = make_split(data, "kfold:4", seed)
    except StudyError as error:
        assert "one class" in str(error)  # noqa: PT017
        return
    check_whole(split, groups, len(groups))
    assert split.clusters == data.clusters
    assert not any("similar" in warning for warning in split.warnings)


def test_classes_are_spread_evenly():
    values = random.Random(0).sample([0] * 40 + [1] * 10 + [2] * 5, 55)
    split = make_split(dataset(values, task=Task("classes", "protein", ("a", "b", "c"))), "kfold:5")
    for fold in split.folds:
        assert Counter(np.array(values)[fold.test].tolist()) == {0: 8, 1: 2, 2: 1}


def test_rare_classes_of_residues_are_spread_evenly():
    values = tuple(np.array([0] * 50 + [1] * (5 if n % 4 == 0 else 0) + [-1]) for n in range(40))
    split = make_split(dataset(values, task=Task("binary", "residue", ("0", "1"))), "kfold:5")
    for fold in split.folds:
        assert sum((values[row] == 1).sum() for row in fold.test) == 10


def test_identical_sequences_are_never_in_training_and_test():
    sequences = ["MK", "ML", "MV"] * 6 + [f"M{'A' * n}" for n in range(7)]
    data = dataset(range(25), sequences=sequences)
    check_whole(make_split(data, "kfold:5"), sequences, 25)


def test_what_the_data_itself_leaks_is_said():
    sets = ["train", "train", "validation", "test", "test", "test", "validation"]
    data = dataset(range(7), sets, "ababccx", sequences=["MK", "ML", "MV", "MK", "MV", "MA", "MI"])
    sequence, cluster = make_split(data).warnings
    assert "2 of 3 test proteins have a sequence" in sequence
    assert "1 of 3 test proteins have a cluster" in cluster


# ---- clusters


@pytest.mark.parametrize(
    "content",
    [
        "p0\tp0\np0\tp1\np2\tp2\np3\tp3\np3\tp4\np5\tp5\nother\tother\n",
        "id,cluster\np1,p0\np0,p0\np2,p2\np3,p3\np4,p3\np5,p5\nother,x\n",
        "Cluster\tID\np0\tp0\np0\tp1\np2\tp2\np3\tp3\np3\tp4\np5\tp5\np5\tz\n",
    ],
)
def test_clusters_of_a_file_are_held_out_whole(tmp_path, content):
    path = tmp_path / "some_cluster.tsv"
    path.write_text(content)
    split = make_split(dataset(range(6), ["train"] * 6), f"cluster:{path}")
    assert split.clusters == ("p0", "p0", "p2", "p3", "p3", "p5")
    assert (split.name, len(split.folds), split.warnings) == ("cluster", 4, ())
    check_whole(split, split.clusters, 6)
    assert "1 ids of it are not in the data" in split.notes[2]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("p0\tp0\np0\tp1\n", "no cluster for 2 of 4 proteins, the first 'p2'; its ids are like 'p0'"),
        ("p0\tp0\np0\tp1\np2\tp2\np3\tp3\np3\tp1\n", "line 5 has 'p1' in cluster 'p3', which is in 'p0' too"),
        ("p0\tp0\np0\tp1\np0\tp2\np0\tp3\n", "all proteins in 1 cluster"),
        ("p0\tp0\np0\n", "line 2 has 1 fields"),
        ("a,b,c\n", "allowed: id and cluster"),
        (">a\nMKV\n", "is a FASTA"),
    ],
)
def test_clusters_that_do_not_fit_are_refused(tmp_path, content, says):
    path = tmp_path / "c.tsv"
    path.write_text(content)
    with pytest.raises(StudyError) as caught:
        make_split(dataset(range(4)), f"cluster:{path}")
    assert says in str(caught.value)


MMSEQS = """#!/bin/sh
# clusters by the first two letters; and leaves out the last record
[ "$1 $2 $3 $5 $6" = "easy-cluster in.fasta out --min-seq-id 0.3" ] || exit 3
paste - - < in.fasta | tr -d '>' | sed '$d' > records
awk '{k=substr($2,1,2); if (!(k in r)) r[k]=$1; print r[k] "\\t" $1}' records > out_cluster.tsv
"""


@pytest.fixture
def mmseqs(tmp_path, monkeypatch):
    def install(script: str) -> None:
        program = tmp_path / "mmseqs"
        program.write_text(script)
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return install


def test_mmseqs_makes_clusters(mmseqs):
    mmseqs(MMSEQS)
    sequences = ["MKA", "MKV", "MLA", "MLV", "MVA", "MVM", "M"]
    split = make_split(dataset(range(7), sequences=sequences), "cluster:0.3")
    assert split.clusters == ("p0", "p0", "p2", "p2", "p4", "p4", "p6")
    assert split.name == "cluster:0.3"
    check_whole(split, split.clusters, 7)


def test_mmseqs_that_is_not_there_or_fails_is_told(mmseqs, monkeypatch):
    mmseqs("#!/bin/sh\necho no room >&2; exit 7\n")
    with pytest.raises(StudyError, match="status 7: no room"):
        make_split(dataset(range(9)), "cluster:0.3")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(StudyError, match=r"needs MMseqs2 .* --split cluster:FILE"):
        make_split(dataset(range(9)), "cluster:0.3")


# ---- what cannot be used


@pytest.mark.parametrize(
    ("data", "asked", "says"),
    [
        (dataset(range(9)), "column", "no column of sets"),
        (dataset(range(9), ["train"] * 9), "column", "test set of the data is empty"),
        (dataset(range(9), ["test"] * 9), None, "training set of the data is empty"),
        (dataset([1, 1, 2], ["train", "train", "test"]), None, "training set (2 proteins) has one value, '1'"),
        (dataset([1, 2, 2], ["train", "train", "test"]), None, "test set (1 proteins) has one value, '2'"),
        (
            dataset([1, 2, 3, 4, 5], ["train", "train", "validation", "test", "test"]),
            *(None, "validation set (1 proteins) has one value, '3'"),
        ),
        (
            dataset([0, 0, 1, 0, 1], ["train"] * 3 + ["test"] * 2, task=Task("binary", "protein", ("no", "yes"))),
            *(None, "training set less an inner fold (2 proteins) has one class, 'no'"),
        ),
        (
            dataset([1, 1, 0], ["train", "train", "test"], task=Task("binary", "protein", ("no", "yes"))),
            *(None, "training set (2 proteins) has one class, 'yes'"),
        ),
        (
            dataset([0] * 9 + [1], task=Task("binary", "protein", ("no", "yes"))),
            *("kfold:5", "training set of fold 4 (8 proteins) has one class, 'no'"),
        ),
        (
            dataset(
                (np.array([0, 1]), np.array([0, 1]), np.array([-1, -1])),
                ["train", "validation", "test"],
                task=Task("binary", "residue", ("a", "b")),
            ),
            *(None, "test set (1 proteins) has no label"),
        ),
        (dataset([1, 2, 3, 4], ["train"] * 2 + ["test"] * 2, "aabb"), None, "one cluster"),
        (dataset(range(4)), None, "4 different sequences; allowed: at most as many folds"),
        (dataset(range(9)), "kfold:1", "at least 2"),
        (dataset(range(9)), "kfold", "at least 2"),
        (dataset(range(9)), "kfold:x", "at least 2"),
        (dataset(range(9)), "cluster", "allowed: column, kfold:K"),
        (dataset(range(9)), "cluster:30", "between 0 and 1"),
        (dataset(range(9)), "cluster:nan", "between 0 and 1"),
        (dataset(range(9)), "cluster:none.tsv", "does not exist"),
        (dataset(range(9)), "random", "allowed: column, kfold:K"),
        (dataset(range(9)), "column:x", "allowed: column, kfold:K"),
    ],
)
def test_a_split_that_cannot_be_used_is_refused(data, asked, says):
    with pytest.raises(StudyError) as caught:
        make_split(data, asked)
    assert says in str(caught.value)


def test_classes_that_training_lacks_are_named():
    task = Task("classes", "protein", ("a", "b", "c"))
    split = make_split(dataset([0, 1, 0, 1, 2, 1], ["train"] * 4 + ["test"] * 2, task=task))
    assert split.warnings == ("classes in test that training lacks: c",)
