"""Of chosen residues alone there are vectors, the same as without a choice."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from pyarrow import parquet
from support.embedding import draw, write_carp, write_fasta
from support.models import small_model

import hf_perturb
from hf_perturb.embedding.batches import embed_batch, units_of
from hf_perturb.embedding.encoder import AlphabetEncoder
from hf_perturb.embedding.fasta import Record
from hf_perturb.embedding.manifest import read_manifest
from hf_perturb.embedding.options import EmbedOptions
from hf_perturb.embedding.store import Store
from hf_perturb.errors import EmbeddingsError, ModelInputError

LENGTHS = (5, 100, 1, 42, 100, 2, 29, 30, 31)
NETWORKS = {"carp": {}, "esm2": {}, "esm1b": {"long": "window"}}


@pytest.fixture
def places(tmp_path):
    """Sequences of which one is there three times, and which residues of each are kept: all, some, or none."""
    sequences = draw(LENGTHS)
    sequences = [*sequences, sequences[1], "", sequences[1], sequences[3]]
    residues = [sorted({0, len(x) // 3, len(x) - 1}) for x in sequences]
    residues[1], residues[4], residues[6], residues[10] = [7, 8], [], list(range(29)), []
    return write_fasta(tmp_path / "a.fasta", sequences), sequences, residues


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("pool", [(), ("mean",)])
def test_they_are_what_they_are_among_all(tmp_path, places, name, pool):
    fasta, sequences, residues = places
    model = small_model(name, **({"max_position_embeddings": 34} if name == "esm1b" else {}))
    options = {"layers": "all", "pool": pool, "per_residue": True, "tokens": 400, **NETWORKS[name]}
    seen, visit = [], model.visit_representations
    hf_perturb.embed(model, fasta, tmp_path / "all", **options)
    model.visit_representations = lambda show, ids, **k: seen.append(len(ids)) or visit(show, ids, **k)
    done = hf_perturb.embed(model, fasta, tmp_path / "some", residues=residues, **options)
    windows = sum(1 if len(x) <= 30 or name != "esm1b" else -(-(len(x) - 30) // 23) + 1 for x in {*sequences} - {""})
    assert sum(seen) == windows, "a sequence that is there several times is run once"
    for column in done.columns:
        (_, ours), (_, theirs) = (hf_perturb.read_embeddings(tmp_path / out, column) for out in ("some", "all"))
        for numbers, one, every in zip(residues, ours, theirs, strict=True):
            assert np.array_equal(one, every[numbers] if column.startswith("res") else every, equal_nan=True)
    counts = parquet.read_table(tmp_path / "some", columns=["length", "kept"]).to_pydict()
    assert counts == {"length": [*map(len, sequences)], "kept": [*map(len, residues)]}
    inputs = [read_manifest(tmp_path / out).inputs for out in ("some", "all")]
    assert inputs[0] == {**inputs[1], "residues": inputs[0]["residues"]} != inputs[1]


def test_of_truncated_records_those_that_are_cut_off_are_refused(tmp_path, places):
    fasta, _, residues = places
    model = small_model("esm1b", max_position_embeddings=34)
    options = {"per_residue": True, "long": "truncate"}
    said = r"residues: got 99 for record 's9'; allowed: numbers of the 30 that are not cut off, from 0 on"
    with pytest.raises(ModelInputError, match=said):
        hf_perturb.embed(model, fasta, tmp_path / "out", residues=[[]] * 9 + residues[9:], **options)
    kept = [[number for number in numbers if number < 30] for numbers in residues]
    hf_perturb.embed(model, fasta, tmp_path / "some", residues=kept, **options)
    hf_perturb.embed(model, fasta, tmp_path / "all", **options)
    ours, theirs = (hf_perturb.read_embeddings(tmp_path / out, "residues_3")[1] for out in ("some", "all"))
    for numbers, one, every in zip(kept, ours, theirs, strict=True):
        assert np.array_equal(one, every[numbers])
    table = parquet.read_table(tmp_path / "some", columns=["embedded", "kept"])
    assert table["embedded"].to_pylist() == [5, 30, 1, 30, 30, 2, 29, 30, 30, 30, 0, 30, 30]
    assert table["kept"].to_pylist() == [*map(len, kept)]


@pytest.mark.parametrize(
    ("residues", "said"),
    [
        ([[0], [1, 1], [0]], r"residues: got \[1, 1\] for record 2; allowed: a list of numbers from 0 on, ascending"),
        ([[2, 1], [], []], r"residues: got \[2, 1\] for record 1"),
        ([[-1, 1], [], []], r"residues: got \[-1, 1\] for record 1"),
        ([[], [0.5], []], r"residues: got \[0.5\] for record 2"),
        ([[], [True], []], r"residues: got \[True\] for record 2"),
        ([[], [[1], [2, 3]], []], r"residues: got \[\[1\], \[2, 3\]\] for record 2"),
        ([0, 1, 2], "residues: got 0 for record 1"),
        ("012", "residues: got 0 for record 1"),
        (3, "residues: got 3; allowed: a list of numbers for each record"),
        ([], "residues: got 0 lists for 3 records; allowed: a list of numbers for each record, empty where none are"),
        ([[0], [1]], "residues: got 2 lists for 3 records"),
        ([[]] * 4, "residues: got 4 lists for 3 records"),
        ([[], [0, 30], []], "residues: got 30 for record 's1'; allowed: numbers of its 30 residues, from 0 on"),
        (np.full((3, 1), 9), "residues: got 9 for record 's0'; allowed: numbers of its 9 residues"),
    ],
)
def test_others_are_refused(tmp_path, residues, said):
    fasta, base = write_fasta(tmp_path / "a.fasta", draw((9, 30, 2))), write_carp(tmp_path / "base")
    with pytest.raises(ModelInputError, match=said):
        hf_perturb.embed(base, fasta, tmp_path / "out", per_residue=True, residues=residues)
    assert not (tmp_path / "out").exists()


def test_they_need_vectors_of_residues():
    options = EmbedOptions(residues=[[0]])
    with pytest.raises(ModelInputError, match="residues: got some, and per_residue is False"):
        options.choices(AlphabetEncoder(small_model("carp").config))


def test_a_run_is_continued_with_the_same_and_with_no_others(tmp_path, monkeypatch):
    lengths = [1 + 37 * i % 250 for i in range(600)]  # 4 shards
    fasta, base = write_fasta(tmp_path / "a.fasta", draw(lengths)), write_carp(tmp_path / "base")
    residues = [np.arange(i % 4, length, 40) for i, length in enumerate(lengths)]
    options = {"per_residue": True, "pool": (), "layers": "all", "residues": residues}
    whole = hf_perturb.embed_variants(base, fasta, tmp_path / "whole", ["reinit"], **options)
    write = Store.write

    def once(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", once)
        with pytest.raises(KeyboardInterrupt):
            hf_perturb.embed(base, fasta, tmp_path / "out", **options)
    others = [*residues[:-1], residues[-1][:-1]]
    with pytest.raises(EmbeddingsError, match=r"residues: \"sha256:.* in the folder, \"sha256:.* asked for"):
        hf_perturb.embed(base, fasta, tmp_path / "out", **{**options, "residues": others})
    with pytest.raises(EmbeddingsError, match=r"residues: \"sha256:.* in the folder, nothing asked for"):
        hf_perturb.embed(base, fasta, tmp_path / "out", **{**options, "residues": None})
    done = hf_perturb.embed(base, fasta, tmp_path / "out", **{**options, "residues": [[*x] for x in residues]})
    assert 0 < done.computed < done.residues
    hf_perturb.embed(base, fasta, tmp_path / "all", per_residue=True)
    every = hf_perturb.read_embeddings(tmp_path / "all", "residues_2")[1]
    for out in (done.path, whole["base"].path):
        for numbers, one, each in zip(residues, hf_perturb.read_embeddings(out, "residues_2")[1], every, strict=True):
            assert np.array_equal(one, each[numbers])
    assert [len(x) for x in hf_perturb.read_embeddings(whole["reinit-seed42"].path, "residues_2")[1]] == [
        *map(len, residues)
    ]


def test_no_others_are_held():
    """Those of one layer at a time are enough for a device; those of all layers would not be."""
    model = small_model("carp")
    choices = EmbedOptions(layers="all", pool=(), per_residue=True, residues=[[3, 99], [0]]).choices(
        encoder := AlphabetEncoder(model.config)
    )
    units = units_of([Record(0, "a", "MK" * 100), Record(1, "b", "KM" * 100)], choices, encoder)
    for parts in embed_batch(model, units, encoder, choices, 4096).values():
        assert [part.shape for part in parts] == [(2, 32), (1, 32)]
        assert parts[0].base.untyped_storage().nbytes() == 3 * 32 * 4
