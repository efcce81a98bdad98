"""A column of embeddings as biotrainer's HDF5, whole or not at all."""

from __future__ import annotations

import builtins
from hashlib import sha256

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("h5py")

import h5py
from support.embedding import draw, write_carp, write_fasta

import hf_perturb
from hf_perturb.embedding import h5, read, store
from hf_perturb.embedding.h5 import write_h5
from hf_perturb.embedding.read import iterate_embeddings
from hf_perturb.errors import EmbeddingsError, FolderExistsError, ModelInputError

COLUMNS = ("mean_2", "residues_2")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Sequences of which one is there twice and one is empty, and embeddings of several shards and row groups."""
    folder = tmp_path_factory.mktemp("places")
    sequences = draw([1 + 37 * i % 250 for i in range(200)])
    sequences[7], sequences[9] = "", sequences[3]
    write_fasta(folder / "a.fasta", sequences)
    write_carp(folder / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "GROUP_BYTES", 100_000)
        hf_perturb.embed(folder / "base", folder / "a.fasta", folder / "out", pool="mean", per_residue=True)
    return folder, sequences


@pytest.mark.parametrize("column", COLUMNS)
def test_each_protein_is_a_dataset(places, tmp_path, column):
    folder, sequences = places
    ids, vectors = hf_perturb.read_embeddings(folder / "out", column)
    write_h5(folder / "out", tmp_path / "a.h5", column)
    with h5py.File(tmp_path / "a.h5") as file:
        assert {*file} == {str(number) for number in range(200)} - {"7"}
        for number in {*range(200)} - {7}:
            found = file[str(number)]
            assert found.attrs["original_id"] == ids[number] == f"s{number}"
            assert found.dtype == np.float32
            assert found.shape == ((16,) if column == "mean_2" else (len(sequences[number]), 16))
            assert np.array_equal(found[()], vectors[number])


def test_biotrainer_finds_sequences(places, tmp_path):
    """By the digest of residues and length; identical ones are one."""
    folder, sequences = places
    _, vectors = hf_perturb.read_embeddings(folder / "out", "mean_2")
    write_h5(folder / "out", tmp_path / "a.h5", "mean_2", sequences=sequences)
    keys = [sha256(f"{sequence}_{len(sequence)}".encode()).hexdigest() for sequence in sequences]
    with h5py.File(tmp_path / "a.h5") as file:
        assert {*file} == {key for key, sequence in zip(keys, sequences, strict=True) if sequence}
        assert file[keys[9]].attrs["original_id"] == "s3"
        assert all(np.array_equal(file[keys[i]][()], vectors[i]) for i in range(200) if i != 7)
    with pytest.raises(ModelInputError, match="sequences: got 199; allowed: those of the 200 records, in order"):
        write_h5(folder / "out", tmp_path / "b.h5", "mean_2", sequences=sequences[1:])


@pytest.mark.parametrize("column", COLUMNS)
def test_records_come_one_at_a_time_as_all_at_once(places, column):
    folder, _ = places
    ids, vectors = hf_perturb.read_embeddings(folder / "out", column)
    found = list(iterate_embeddings(folder / "out", column))
    assert [name for name, _ in found] == ids
    assert [vector is None for _, vector in found] == [number == 7 for number in range(200)]
    assert all(np.array_equal(one, other) for (_, one), other in zip(found, vectors, strict=True) if one is not None)


def test_what_cannot_be_written_whole_is_not_there(places, tmp_path, monkeypatch):
    folder, _ = places
    out = tmp_path / "a.h5"
    with pytest.raises(EmbeddingsError, match="column: got 'mean_9'; allowed: 'mean_2', 'residues_2'"):
        write_h5(folder / "out", out, "mean_9")
    chunks = read._chunks

    def half(place, shard, *arguments):
        if shard.number:
            raise OSError(28, "No space left on device")
        yield from chunks(place, shard, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(read, "_chunks", half)
        with pytest.raises(EmbeddingsError, match=r"a.h5: nothing was written, because .*No space left on device"):
            write_h5(folder / "out", out, "mean_2")
    assert list(tmp_path.iterdir()) == []
    write_h5(folder / "out", out, "mean_2")
    with pytest.raises(FolderExistsError, match=r"a\.h5"):
        write_h5(folder / "out", out, "mean_2")
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def test_chosen_residues_are_no_proteins(places, tmp_path):
    folder, sequences = places
    kept = [[0] if sequence else [] for sequence in sequences]
    options = {"per_residue": True, "pool": "mean", "residues": kept}
    hf_perturb.embed(folder / "base", folder / "a.fasta", tmp_path / "out", **options)
    with pytest.raises(
        EmbeddingsError, match=r"has the vectors of chosen residues alone, .* embed it without residues"
    ):
        write_h5(tmp_path / "out", tmp_path / "a.h5", "residues_2")
    write_h5(tmp_path / "out", tmp_path / "a.h5", "mean_2")


def test_what_to_install_is_said(places, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments):
        if name == "h5py":
            raise ImportError("No module named 'h5py'")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EmbeddingsError, match=r"HDF5 needs h5py \(.*\): pip install 'hf-perturb\[h5\]'"):
        h5.write_h5(places[0] / "out", tmp_path / "a.h5", "mean_2")
