"""A folder of embeddings: shards whole or absent, continued with by the same run only, and one run at a time."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from support.shards import (
    FIXED,
    INPUTS,
    RESIDUES,
    SCHEMA,
    TESTS,
    attach_store,
    child,
    content,
    fill,
    numbers,
    plan,
    start,
)

from hf_perturb.embedding import store as module
from hf_perturb.embedding.manifest import Schema
from hf_perturb.embedding.store import is_whole, open_store, refuse_foreign, store_lock
from hf_perturb.errors import EmbeddingsError, FolderExistsError, FolderLockedError

# what is written


def test_a_manifest_says_what_there_is(tmp_path):
    store = start(tmp_path / "new" / "out")
    path = store.out / "_manifest.json"
    before = json.loads(path.read_text())
    assert before["complete"] is store.complete is False
    fill(store)
    after = json.loads(path.read_text())
    assert store.complete
    assert list(after)[:5] == ["format", "complete", "fingerprint", "inputs", "described"]
    assert (after["format"], after["complete"]) == ("hf_perturb embeddings/1", True)
    assert (after["inputs"], after["described"], after["report"]) == (INPUTS, {"name": "esm"}, {"seconds": 1})
    assert after["fingerprint"] == before["fingerprint"]
    assert after["shards"][1] == {
        "file": "shard-000001.parquet",
        "first": 3,
        "records": 3,
        "residues": 21,
        "bytes": (store.out / "shard-000001.parquet").stat().st_size,
    }
    assert sorted(os.listdir(store.out)) == ["_manifest.json", *(f"shard-00000{i}.parquet" for i in range(3))]


def test_the_fingerprint_is_that_of_canonical_json(tmp_path):
    import hashlib

    text = b'{"a":{"x":[1,2],"y":null},"b":"\\u00e9"}'
    with store_lock(tmp_path):
        store = open_store(tmp_path, {"b": "é", "a": {"y": None, "x": (1, 2)}}, {}, plan(1), SCHEMA)
    assert store.manifest.fingerprint == "sha256:" + hashlib.sha256(text).hexdigest()


def test_a_shard_alone_says_what_it_is(tmp_path):
    store = fill(start(tmp_path))
    schema = pq.read_schema(tmp_path / "shard-000001.parquet")
    assert schema.metadata[b"shard"] == b"1"
    assert schema.metadata[b"fingerprint"].decode() == store.manifest.fingerprint
    assert json.loads(schema.metadata[b"inputs"]) == INPUTS
    assert json.loads(schema.metadata[b"described"]) == {"name": "esm"}
    assert schema.names == ["id", "length", "unknown", "layer6_mean", "layer12_mean"]
    assert schema.types[:3] == [pa.string(), pa.int32(), pa.int32()]
    assert schema.types[3:] == [pa.large_list(pa.float32())] * 2


def test_vectors_that_are_all_there_have_a_fixed_size(tmp_path):
    fill(start(tmp_path, schema=FIXED))
    schema = pq.read_schema(tmp_path / "shard-000001.parquet")
    assert schema.types[3:] == [pa.list_(pa.float32(), 5), pa.list_(pa.float32(), 3)]
    assert not any(schema.field(name).nullable for name in schema.names)


def test_vectors_take_less_room_than_their_numbers(tmp_path):
    schema = Schema(vectors={"mean": 100}, residues={"each": 100})
    fill(start(tmp_path, 1000, schema=schema))
    footer = pq.read_metadata(tmp_path / "shard-000000.parquet").row_group(0)
    for column in map(footer.column, (2, 3)):
        assert "BYTE_STREAM_SPLIT" in column.encodings
        assert column.total_compressed_size < 0.9 * 4 * column.num_values


def readers():
    yield lambda out: pa.dataset.dataset(out).to_table().to_pylist()
    yield lambda out: pq.read_table(out).to_pylist()
    pandas = pytest.importorskip("pandas")
    yield lambda out: pandas.read_parquet(out).to_dict("records")


@pytest.mark.parametrize("schema", [SCHEMA, FIXED], ids=["nullable", "fixed"])
@pytest.mark.parametrize("which", range(3), ids=["dataset", "parquet", "pandas"])
def test_the_folder_reads_as_one_table_in_order(tmp_path, which, schema):
    read = list(readers())[which]
    sizes = [i % 3 + 1 for i in range(12)]
    store = fill(start(tmp_path, *sizes, schema=schema))
    (tmp_path / ".shard-000001.parquet.hf_perturb-01234567").write_text("half")
    (tmp_path / ".hf_perturb-lock").touch()
    rows = read(tmp_path)
    assert [row["id"] for row in rows] == [f"seq{i}" for i in range(sum(sizes))]
    for shard in store.manifest.shards:
        columns = content(shard, schema)
        for i, row in enumerate(rows[shard.first :][: shard.records]):
            assert row["unknown"] == shard.first + i
            expected = columns["layer6_mean"][i].tolist() if columns["length"][i] else None
            assert (row["layer6_mean"] is None) == (expected is None)
            assert expected is None or list(row["layer6_mean"]) == expected


@pytest.mark.parametrize("nulls", ["none", "all", "first", "last", "alternate"])
@pytest.mark.parametrize("schema", [SCHEMA, RESIDUES], ids=["vectors", "residues"])
@pytest.mark.parametrize("group", [1, 100, 2**20])
def test_null_rows_come_back(tmp_path, monkeypatch, nulls, schema, group):
    """In row groups of any size: before version 26, pyarrow reads no nulls of lists of fixed size."""
    monkeypatch.setattr(module, "GROUP_BYTES", group)
    rows = np.arange(9)
    masks = {"none": rows < 0, "all": rows >= 0, "first": rows == 0, "last": rows == 8, "alternate": rows % 2 == 0}
    store = start(tmp_path, 9, schema=schema)
    columns = content(store.manifest.shards[0], schema)
    columns["length"] = np.where(masks[nulls], 0, 2).astype(np.int32)
    columns |= {name: [np.full((n, 4), n, np.float32) for n in columns["length"]] for name in schema.residues}
    store.write(store.manifest.shards[0], columns)
    table = pq.read_table(tmp_path / "shard-000000.parquet")
    table.validate(full=True)
    for name in [*schema.vectors, *schema.residues]:
        expected = [None if null else x.tolist() for x, null in zip(columns[name], masks[nulls], strict=True)]
        assert table[name].to_pylist() == expected


def test_vectors_for_each_residue_are_lists_of_64_bits(tmp_path):
    fill(start(tmp_path, schema=RESIDUES))
    kind = pq.read_schema(tmp_path / "shard-000000.parquet").field("layer6").type
    assert kind == pa.large_list(pa.list_(pa.float32(), 4))


def test_row_groups_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "GROUP_BYTES", 10 * 8 * 4)
    start(tmp_path, 35).write(plan(35)[0], content(plan(35)[0]))
    footer = pq.read_metadata(tmp_path / "shard-000000.parquet")
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [10, 10, 10, 5]


def test_an_array_that_is_a_view_is_written(tmp_path):
    store, columns = start(tmp_path, 3), content(plan(3)[0])
    expected = columns["layer6_mean"].copy()
    columns["layer6_mean"] = np.asfortranarray(expected)
    columns["length"][:] = 1
    store.write(plan(3)[0], columns)
    assert pq.read_table(tmp_path / "shard-000000.parquet")["layer6_mean"].to_pylist() == expected.tolist()


def test_no_records_are_written_too(tmp_path):
    assert fill(start(tmp_path / "shard", 0)).complete
    assert pq.read_table(tmp_path / "shard" / "shard-000000.parquet").num_rows == 0
    with store_lock(tmp_path / "none"):
        store = open_store(tmp_path / "none", INPUTS, {}, [], SCHEMA)
    assert fill(store).complete


def test_memory_of_writing_is_bounded(tmp_path):
    """By a row group and not by the shard: 64 MB of vectors in row groups of 1 MB."""
    code = (
        "import resource; module.GROUP_BYTES = 2**20; schema = Schema(residues={'r': 1000})\n"
        "with store_lock(Path(sys.argv[1])) as _: store = open_store(Path(sys.argv[1]), {}, {}, plan(9, 160), schema)\n"
        "def go(shard):\n"
        "    rows = [np.full((100, 1000), i, np.float32) for i in range(shard.records)]\n"
        "    ids, lengths = ['x'] * len(rows), np.full(len(rows), 100, np.int32)\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    store.write(shard, {'id': ids, 'length': lengths, 'r': rows})\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "print([go(shard) for shard in store.missing()][1])"
    )
    done = child(code, tmp_path)
    assert int(done.stdout) < 20_000, done.stderr  # KiB


def test_vectors_of_another_width_are_refused(tmp_path):
    """Lists of any size would hold them."""
    store = start(tmp_path)
    columns = {**content(plan(3)[0]), "layer6_mean": np.zeros((3, 4), np.float32)}
    with pytest.raises(EmbeddingsError, match=r"shard-000000.parquet: layer6_mean: got \(3, 4\); allowed: \(3, 5\)"):
        store.write(plan(3)[0], columns)
    assert os.listdir(tmp_path) == ["_manifest.json"]


def test_vectors_for_more_or_fewer_residues_are_refused(tmp_path):
    store = start(tmp_path, schema=RESIDUES)
    columns = content(plan(3)[0], RESIDUES)
    with pytest.raises(EmbeddingsError, match=r"layer6: got None; allowed: \(3, 4\)"):
        store.write(plan(3)[0], {**columns, "layer6": columns["layer6"][:2]})
    columns["layer6"][2] = columns["layer6"][2][1:]
    with pytest.raises(EmbeddingsError, match=r"shard-000000.parquet: layer6: got \(2, 4\); allowed: \(3, 4\)"):
        store.write(plan(3)[0], columns)


@pytest.mark.parametrize(
    "change",
    [{"id": ["a"]}, {"unknown": np.zeros(2, np.int32)}, {"length": np.ones((3, 2), np.int32)}, {"id": [1, 2, 3]}],
)
def test_other_wrong_columns_are_not_written(tmp_path, change):
    with pytest.raises((TypeError, ValueError)):
        start(tmp_path).write(plan(3)[0], {**content(plan(3)[0]), **change})
    assert os.listdir(tmp_path) == ["_manifest.json"]


def test_without_pyarrow_one_is_told_what_to_install(tmp_path):
    code = "import sys; sys.modules['pyarrow'] = None; from hf_perturb.embedding.store import *"
    code += "; open_store(Path(sys.argv[1]), {}, {}, [], Schema())"
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert "pip install 'hf-perturb[embed]'" in done.stderr
    assert "EmbeddingsError" in done.stderr
    assert os.listdir(tmp_path) == []


def test_modules_import_no_torch_arrow_or_numpy():
    code = (
        "import sys, hf_perturb.embedding.read, hf_perturb.embedding.store, hf_perturb.embedding.ranks;"
        "print(sorted({'torch', 'pyarrow', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# continuing


def test_the_same_run_continues(tmp_path):
    store = start(tmp_path)
    assert numbers(store.missing()) == [0, 1, 2]
    store.write(plan(3, 3, 2)[1], content(plan(3, 3, 2)[1]))
    time = store.path(plan(3, 3)[1]).stat().st_mtime_ns
    again = start(tmp_path)
    assert numbers(again.missing()) == numbers(attach_store(tmp_path).missing()) == [0, 2]
    with pytest.raises(EmbeddingsError, match=r"not complete: shard-000000.parquet and 1 more of 3 .* run the same"):
        again.finish({})
    fill(again)
    assert store.path(plan(3, 3)[1]).stat().st_mtime_ns == time, "written again"
    assert attach_store(tmp_path).complete


def test_a_complete_folder_is_left_alone(tmp_path):
    fill(start(tmp_path))
    before = (tmp_path / "_manifest.json").read_bytes()
    with store_lock(tmp_path):
        store = open_store(tmp_path, INPUTS, {"name": "another"}, plan(3, 3, 2), SCHEMA)
    assert store.complete
    assert store.missing() == []
    assert (tmp_path / "_manifest.json").read_bytes() == before


def test_a_complete_folder_that_lost_a_shard_is_not_complete_when_continued_with(tmp_path):
    fill(start(tmp_path))
    (tmp_path / "shard-000001.parquet").unlink()
    store = start(tmp_path)
    assert not store.complete
    assert not attach_store(tmp_path).complete
    assert numbers(store.missing()) == [1]
    assert fill(store).complete


def test_what_is_said_of_a_run_is_that_of_the_last(tmp_path):
    start(tmp_path)
    with store_lock(tmp_path):
        open_store(tmp_path, INPUTS, {"name": "another"}, plan(3, 3, 2), SCHEMA)
    assert attach_store(tmp_path).manifest.described == {"name": "another"}


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"layers": [6]}, r"layers: \[6,12\] in the folder, \[6\] asked for"),
        ({"layers": [6], "pool": None}, r"layers: \[6,12\] .*; pool: \[\"mean\"\] in the folder, null asked for"),
        ({"dtype": None}, "dtype: nothing in the folder, null asked for"),
        (
            {"fasta": {"digest": "sha256:" + 63 * "b" + "c"}},
            r"fasta.digest: \"sha256:b+\.\.\.b+\" .*, \".*bc\" asked for",
        ),
        ({"fasta": True}, r"fasta.digest: .* in the folder, nothing .*; fasta: nothing in the folder, true asked for"),
    ],
)
def test_other_inputs_are_named_with_both_values(tmp_path, inputs, said):
    store = start(tmp_path)
    store.write(plan(3)[0], content(plan(3)[0]))
    before = (tmp_path / "_manifest.json").read_bytes()
    with pytest.raises(EmbeddingsError, match=rf"holds other embeddings: {said}; choose another folder, .* --force"):
        start(tmp_path, **inputs)
    assert (tmp_path / "_manifest.json").read_bytes() == before


def test_a_folder_that_has_nothing_yet_takes_other_inputs(tmp_path):
    """As after a first run that failed at once, because of an option that is now mended."""
    start(tmp_path)
    fill(start(tmp_path, 3, 5, dtype="float32"))
    assert attach_store(tmp_path).manifest.inputs["dtype"] == "float32"


def test_another_plan_or_other_columns_are_refused(tmp_path):
    store = start(tmp_path)
    store.write(plan(3)[0], content(plan(3)[0]))
    with pytest.raises(
        EmbeddingsError, match=r"embeddings: shards: 3 of \[\[3,21\],.* in the folder, 2 of .* asked for"
    ):
        start(tmp_path, 3, 5)
    with pytest.raises(EmbeddingsError, match=r"embeddings: columns: .*layer6.* in the folder"):
        start(tmp_path, schema=RESIDUES)


# damaged


def cut(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def empty(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def text(path: Path, other: Path) -> None:
    path.write_text("this is no Parquet")


def folder(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()


def foreign(path: Path, other: Path) -> None:
    shutil.copy(other / path.name, path)


def misplaced(path: Path, other: Path) -> None:
    shutil.copy(path.with_name("shard-000000.parquet"), path)


def plain(path: Path, other: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata(), path)


def short(path: Path, other: Path) -> None:
    pq.write_table(pq.read_table(path).slice(1), path)


@pytest.mark.parametrize("damage", [cut, empty, text, folder, foreign, misplaced, plain, short])
def test_a_shard_that_is_not_this_very_one_is_missing(tmp_path, damage):
    fill(start(tmp_path / "other", layers=[6]))
    store = start(tmp_path / "out")
    for shard in store.missing():
        store.write(shard, content(shard))
    damage(tmp_path / "out" / "shard-000001.parquet", tmp_path / "other")
    store = start(tmp_path / "out")
    assert numbers(store.missing()) == [1]
    if damage is folder:
        (tmp_path / "out" / "shard-000001.parquet").rmdir()
    fill(store)


def test_the_size_of_a_complete_shard_is_known(tmp_path):
    store = fill(start(tmp_path))
    path = tmp_path / "shard-000001.parquet"
    path.write_bytes(b"more" + path.read_bytes())
    assert is_whole(path, store.manifest, replace(store.manifest.shards[1], bytes=None))
    assert numbers(attach_store(tmp_path).missing()) == [1]


@pytest.mark.parametrize("written", ["{", "", '{"format": "hf_perturb embeddings/1"}', b"\xff"])
@pytest.mark.parametrize("force", [True, False])
def test_a_damaged_manifest_is_named_with_the_remedy(tmp_path, written, force):
    fill(start(tmp_path))
    (tmp_path / "_manifest.json").write_bytes(written if isinstance(written, bytes) else written.encode())
    with pytest.raises(EmbeddingsError, match=r"_manifest.json is damaged: .*; remove the folder and begin again"):
        start(tmp_path, force=force)
    with pytest.raises(EmbeddingsError, match="is damaged"):
        attach_store(tmp_path)
    assert len(os.listdir(tmp_path)) == 4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("inputs", {"layers": [7]}), ("fingerprint", "sha256:0"), ("shards", [{}]), ("columns", None)),
        *(("shards", None), ("report", 3), ("described", [3])),
        ("shards", [{"file": "../x", "first": 0, "records": 1, "residues": 1}]),
    ],
)
def test_a_changed_manifest_is_damaged(tmp_path, key, value):
    start(tmp_path)
    path = tmp_path / "_manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(EmbeddingsError, match="is damaged"):
        attach_store(tmp_path)


def test_a_newer_format_asks_for_an_update(tmp_path):
    start(tmp_path)
    path = tmp_path / "_manifest.json"
    path.write_text(path.read_text().replace("embeddings/1", "embeddings/2"))
    with pytest.raises(EmbeddingsError, match=r"got format 'hf_perturb embeddings/2'; allowed: .*update hf-perturb"):
        start(tmp_path, force=True)


# what is in the way


@pytest.mark.parametrize("name", ["notes.txt", "shard-000000.parquet", ".hidden"])
@pytest.mark.parametrize("force", [True, False])
def test_a_folder_of_something_else_is_refused(tmp_path, name, force):
    (tmp_path / name).write_text("precious")
    with pytest.raises(FolderExistsError, match=f"holds {name} and is no folder of embeddings"):
        start(tmp_path, force=force)
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "precious"


@pytest.mark.parametrize("written", ["{}", "[]", '{"format": 3}', '{"format": "another"}'])
def test_a_manifest_of_something_else_is_refused(tmp_path, written):
    (tmp_path / "_manifest.json").write_text(written)
    with pytest.raises(FolderExistsError, match=r"is no folder of embeddings: the format of its _manifest.json is"):
        start(tmp_path, force=True)
    assert (tmp_path / "_manifest.json").read_text() == written


def test_force_removes_what_is_ours_and_nothing_else(tmp_path):
    fill(start(tmp_path, 1, 1, 1, 1, 4))
    theirs = {"notes.txt", "shard-1.parquet", "shard-000000.parquet.bak", ".shard-000001.parquet", "_other"}
    for name in theirs:
        (tmp_path / name).write_text("precious")
    store = start(tmp_path, force=True, layers=[6])
    assert {*os.listdir(tmp_path)} == {"_manifest.json", *theirs}
    assert numbers(store.missing()) == [0, 1, 2]
    assert all((tmp_path / name).read_text() == "precious" for name in theirs)
    assert fill(store).complete


def test_force_keeps_what_is_of_the_same_inputs(tmp_path):
    fill(start(tmp_path))
    assert start(tmp_path, force=True).complete, "a job that is started again goes on"


def test_force_that_is_killed_leaves_a_folder_of_ours(tmp_path):
    fill(start(tmp_path))
    code = (
        "os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\nstart(Path(sys.argv[1]), force=True, layers=[6])"
    )
    assert child(code, tmp_path).returncode == -signal.SIGKILL
    assert numbers(attach_store(tmp_path).missing()) == [0, 1, 2]
    fill(start(tmp_path, force=True, layers=[6]))


def test_a_shard_of_an_old_run_keeps_the_folder_from_being_complete(tmp_path):
    store = start(tmp_path)
    (tmp_path / "shard-000003.parquet").touch()
    with pytest.raises(EmbeddingsError, match=r"holds shard-000003.parquet, a shard of another run; remove it"):
        fill(store)
    assert not attach_store(tmp_path).complete


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(FolderExistsError, match="file is no folder"):
        start(tmp_path / "file", force=True)
    with pytest.raises(FolderExistsError, match="link is a link that leads nowhere"):
        start(tmp_path / "link", force=True)
    with pytest.raises(FolderExistsError, match="file is no folder"):
        refuse_foreign(tmp_path / "file")
    with pytest.raises(EmbeddingsError, match=r"cannot be made: .*; choose a folder that you may write"):
        start(tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="the administrator may write anywhere")
def test_a_place_that_may_not_be_written_is_named(tmp_path):
    (tmp_path / "sealed").mkdir(mode=0o555)
    for name, said in (("sealed", "written"), ("sealed/out", "made")):
        with pytest.raises(EmbeddingsError, match=rf"{name} cannot be {said}: .*; choose a folder that you may write"):
            start(tmp_path / name)


def test_nothing_is_said_of_a_folder_that_is_free(tmp_path):
    refuse_foreign(tmp_path)
    refuse_foreign(tmp_path / "new")
    fill(start(tmp_path / "new"))
    refuse_foreign(tmp_path / "new")


def test_nothing_can_be_attached_to_what_is_none(tmp_path):
    with pytest.raises(EmbeddingsError, match="new does not exist"):
        attach_store(tmp_path / "new")
    with pytest.raises(FolderExistsError, match=r"holds no _manifest.json"):
        attach_store(tmp_path)


def test_a_link_to_a_folder_is_that_folder(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    fill(start(tmp_path / "link"))
    assert start(tmp_path / "real").complete
    with (
        store_lock(tmp_path / "real"),
        pytest.raises(FolderLockedError, match="locked"),
        store_lock(tmp_path / "link"),
    ):
        pass


# killed, full, two at once


@pytest.mark.parametrize("shard", [0, 1])
def test_a_killed_writer_leaves_whole_shards(tmp_path, shard):
    """Between the last byte and the name."""
    code = (
        "replace_ = os.replace\n"
        "def kill(old, new): os.kill(os.getpid(), signal.SIGKILL) if new.name == sys.argv[2] else replace_(old, new)\n"
        "os.replace = kill\n"
        "with store_lock(Path(sys.argv[1])):\n"
        "    fill(open_store(Path(sys.argv[1]), INPUTS, {}, plan(3, 3, 2), SCHEMA))"
    )
    done = child(code, tmp_path, f"shard-00000{shard}.parquet")
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = [name for name in os.listdir(tmp_path) if name.startswith(f".shard-00000{shard}.parquet.hf_perturb-")]
    assert len(left) == 1
    assert sum(len(pq.read_table(tmp_path / left[0])) for _ in left) == 3, "it was killed too early"
    assert ".hf_perturb-lock" in os.listdir(tmp_path)
    assert numbers(attach_store(tmp_path).missing()) == list(range(shard, 3))
    store = start(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["_manifest.json", *(f"shard-00000{i}.parquet" for i in range(shard))]
    fill(store)


def test_who_is_killed_at_the_first_manifest_leaves_a_free_folder(tmp_path):
    code = "os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\nstart(Path(sys.argv[1]))"
    assert child(code, tmp_path).returncode == -signal.SIGKILL
    left = sorted(os.listdir(tmp_path))
    assert left[0].startswith("._manifest.json.hf_perturb-")
    refuse_foreign(tmp_path)
    fill(start(tmp_path))


def test_only_leftovers_are_swept(tmp_path):
    fill(start(tmp_path))
    theirs = [
        ".shard-000000.parquet.hf_perturb-0123456",
        ".shard-0.parquet.hf_perturb-01234567",
        ".x.hf_perturb-01234567",
    ]
    for name in [*theirs, ".shard-000009.parquet.hf_perturb-01234567", "._manifest.json.hf_perturb-89abcdef"]:
        (tmp_path / name).touch()
    with store_lock(tmp_path):
        pass
    assert sorted(name for name in os.listdir(tmp_path) if name.startswith(".")) == sorted(theirs)


def test_without_locks_nothing_is_swept(tmp_path, monkeypatch):
    import fcntl

    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / ".shard-000000.parquet.hf_perturb-01234567").touch()
    fill(start(tmp_path))
    assert (tmp_path / ".shard-000000.parquet.hf_perturb-01234567").exists(), "it may be another's, who is at it"


def test_a_full_disk_says_so_and_leaves_what_is_written(tmp_path):
    code = (
        "import resource\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "store = start(Path(sys.argv[1]), 3, 5000)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "fill(store)"
    )
    done = child(code, tmp_path)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert "EmbeddingsError" in said
    assert "shard-000001.parquet: the disk is full" in said
    assert "make room, and run the same command again to continue" in said
    assert sorted(os.listdir(tmp_path)) == ["_manifest.json", "shard-000000.parquet"]
    store = start(tmp_path, 3, 5000)
    assert numbers(store.missing()) == [1]
    fill(store)


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "the disk is full"), (errno.EIO, "it cannot be written")])
def test_a_disk_that_fails_leaves_no_temporary_file(tmp_path, monkeypatch, call, number, said):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    store = start(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(EmbeddingsError, match=rf"shard-000000.parquet: {said} .*run the same command again"):
            fill(store)
    assert os.listdir(tmp_path) == ["_manifest.json"]
    fill(store)


def test_an_interrupt_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    store = start(tmp_path)
    monkeypatch.setattr(module, "_vectors", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fill(store)
    assert os.listdir(tmp_path) == ["_manifest.json"]


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls, fsync, rename = [], os.fsync, os.replace

    def synced(descriptor):
        calls.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def renamed(old, new):
        calls.append(("name", old.name))
        rename(old, new)

    store = start(tmp_path)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    store.write(plan(3)[0], content(plan(3)[0]))
    (one, fresh), (other, named), last = calls
    assert (one, other, last) == ("sync", "name", ("sync", tmp_path.name))
    assert fresh == named
    assert fresh.startswith(".shard-000000.parquet.")


def test_one_run_at_a_time_has_a_folder(tmp_path):
    out = tmp_path / "out"
    code = (
        "with store_lock(Path(sys.argv[1])):\n"
        "    fill(open_store(Path(sys.argv[1]), INPUTS, {}, plan(3, 3, 2), SCHEMA)); print('held', flush=True); input()"
    )
    words = [sys.executable, "-c", f"from support.shards import *\n{code}", str(out)]
    with subprocess.Popen(words, cwd=TESTS, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(FolderLockedError, match=f"{out} is locked: another process is writing it"):
            start(out, force=True)
        assert attach_store(out).complete, "whoever reads needs no lock"
        process.kill()
    assert start(out).complete
    assert not (out / ".hf_perturb-lock").exists()


def test_several_processes_share_the_shards(tmp_path):
    with store_lock(tmp_path):
        store = open_store(tmp_path, INPUTS, {"name": "esm"}, plan(*[3] * 12), SCHEMA)
        code = (
            "store = attach_store(Path(sys.argv[1]))\n"
            "for shard in store.manifest.shards[1::2]: store.write(shard, content(shard))"
        )
        words = [sys.executable, "-c", f"from support.shards import *\n{code}", str(tmp_path)]
        with subprocess.Popen(words, cwd=TESTS) as process:
            for shard in store.manifest.shards[::2]:
                store.write(shard, content(shard))
        assert process.returncode == 0
        store.finish({})
    assert pq.read_table(tmp_path)["id"].to_pylist() == [f"seq{i}" for i in range(36)]


def test_a_run_that_fails_before_it_begins_leaves_no_folder(tmp_path):
    with pytest.raises(RuntimeError), store_lock(tmp_path / "above" / "out"):
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_files_may_be_read_by_whom_the_user_lets(tmp_path):
    mask = os.umask(0o027)
    try:
        fill(start(tmp_path))
    finally:
        os.umask(mask)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}
