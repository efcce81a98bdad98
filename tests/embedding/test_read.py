"""Embeddings come back as they were written, in order, and not from a folder that lacks some."""

from __future__ import annotations

import os

import numpy as np
import pytest

pytest.importorskip("pyarrow")
from support.shards import FIXED, RESIDUES, SCHEMA, content, fill, plan, start

from hf_perturb.embedding import store as module
from hf_perturb.embedding.manifest import Schema
from hf_perturb.embedding.read import read_embeddings
from hf_perturb.errors import EmbeddingsError, FolderExistsError

SIZES = [i % 3 + 1 for i in range(13)]
ONE = Schema(vectors={"mean": 5}, nullable=True)


def expected(sizes: list[int], schema: Schema, name: str) -> tuple[list[str], list[np.ndarray | None]]:
    ids, rows = [], []
    for shard in plan(*sizes):
        columns = content(shard, schema)
        ids += columns["id"]
        rows += [row if length else None for row, length in zip(columns[name], columns["length"], strict=True)]
    return ids, rows


@pytest.mark.parametrize("group", [1, 100, 2**20])
@pytest.mark.parametrize("name", SCHEMA.vectors)
@pytest.mark.parametrize("schema", [SCHEMA, FIXED], ids=["nullable", "fixed"])
def test_vectors_come_back_in_order(tmp_path, monkeypatch, schema, name, group):
    monkeypatch.setattr(module, "GROUP_BYTES", group)
    fill(start(tmp_path, *SIZES, schema=schema))
    ids, vectors = read_embeddings(tmp_path, name)
    wanted, rows = expected(SIZES, schema, name)
    assert ids == wanted == [f"seq{i}" for i in range(sum(SIZES))]
    assert (vectors.dtype, vectors.shape) == (np.float32, (sum(SIZES), SCHEMA.vectors[name]))
    assert vectors.flags.c_contiguous
    assert vectors.flags.writeable
    assert any(row is None for row in rows) == schema.nullable
    for vector, row in zip(vectors, rows, strict=True):
        assert np.isnan(vector).all() if row is None else np.array_equal(vector, row)


@pytest.mark.parametrize("group", [1, 100, 2**20])
def test_vectors_of_residues_come_back_in_order(tmp_path, monkeypatch, group):
    monkeypatch.setattr(module, "GROUP_BYTES", group)
    fill(start(tmp_path, *SIZES, schema=RESIDUES))
    ids, residues = read_embeddings(str(tmp_path))
    wanted, rows = expected(SIZES, RESIDUES, "layer6")
    assert ids == wanted
    for vectors, row in zip(residues, rows, strict=True):
        assert vectors.dtype == np.float32
        assert vectors.shape == (0, 4) if row is None else np.array_equal(vectors, row)


def test_nans_and_bits_come_back(tmp_path):
    store, (shard,) = start(tmp_path, 4, schema=ONE), plan(4)
    columns = content(shard, ONE)
    columns["mean"][0] = [np.nan, np.inf, -0.0, 1e-45, 3.4e38]
    columns["length"][:] = 1
    store.write(shard, columns)
    store.finish({})
    assert read_embeddings(tmp_path)[1].tobytes() == columns["mean"].tobytes()


def test_the_only_column_needs_no_name(tmp_path):
    fill(start(tmp_path, schema=ONE))
    assert np.array_equal(read_embeddings(tmp_path)[1], read_embeddings(tmp_path, "mean")[1], equal_nan=True)


@pytest.mark.parametrize("name", [None, "mean", "id", "length", "unknown", "layer6"])
def test_an_unknown_column_is_told_which_there_are(tmp_path, name):
    fill(start(tmp_path))
    with pytest.raises(EmbeddingsError, match=f"got {name!r}; allowed: 'layer6_mean', 'layer12_mean'"):
        read_embeddings(tmp_path, name)


@pytest.mark.parametrize("written", [[], [1], [0, 2], [0, 1, 2]])
def test_an_incomplete_folder_is_refused_unless_asked_for(tmp_path, written):
    """Also when every shard is there: who wrote them has not said that he is done."""
    store = start(tmp_path, schema=ONE)
    shards = store.missing()
    for number in written:
        store.write(shards[number], content(shards[number], ONE))
    with pytest.raises(EmbeddingsError, match=rf"not complete: {len(written)} of 3 shards are whole; .*partial=True"):
        read_embeddings(tmp_path)
    ids, vectors = read_embeddings(tmp_path, partial=True)
    assert ids == [name for number in written for name in content(shards[number])["id"]]
    assert vectors.shape == (len(ids), 5)


def test_a_complete_folder_that_lost_a_shard_is_refused(tmp_path):
    fill(start(tmp_path, schema=ONE))
    (tmp_path / "shard-000001.parquet").unlink()
    with pytest.raises(EmbeddingsError, match="not complete: 2 of 3 shards are whole"):
        read_embeddings(tmp_path)


@pytest.mark.parametrize("partial", [True, False])
def test_a_flipped_bit_is_an_error(tmp_path, partial):
    """Wherever it is in the data: the footer does not know."""
    fill(start(tmp_path, 3, 64, schema=ONE))
    path = tmp_path / "shard-000001.parquet"
    whole = path.read_bytes()
    place = whole.rindex(bytes([0x28, 0xB5, 0x2F, 0xFD])) + 40  # in the last frame of zstd
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(EmbeddingsError, match=r"shard-000001.parquet is damaged: .*; remove it, and run the same"):
        read_embeddings(tmp_path, partial=partial)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(FolderExistsError, match="is no folder of embeddings"):
        read_embeddings(tmp_path)
    with pytest.raises(EmbeddingsError, match="does not exist"):
        read_embeddings(tmp_path / "new")
    assert os.listdir(tmp_path) == []


def test_no_records_are_an_empty_array(tmp_path):
    fill(start(tmp_path / "vectors", 0, schema=ONE))
    ids, vectors = read_embeddings(tmp_path / "vectors")
    assert (ids, vectors.shape) == ([], (0, 5))
    fill(start(tmp_path / "residues", 0, schema=RESIDUES))
    assert read_embeddings(tmp_path / "residues") == ([], [])
