"""Data are read as scientists have them; what is not plain, or cannot be used, is refused by line."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from hf_perturb.errors import StudyError
from hf_perturb.studies.dataset import read_dataset
from hf_perturb.studies.task import Task

FLIP = Path(__file__).parents[3] / "shared" / "data"
HEADER = "sequence,target,set,validation"
ROWS = ["MKV,1.5,train,", "MKVL,-0.25,train,True", "ACD,2,test,", "ACDE,1e-3,test,False"]


@pytest.fixture
def read(tmp_path):
    """Write a file and read it; what else is given are further files, by option."""

    def read(content: str | bytes, name: str = "data.csv", **options):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        for option in ("labels", "mask"):
            if option in options:
                other, text = options[option]
                (tmp_path / other).write_text(text, newline="")
                options[option] = tmp_path / other
        return read_dataset(path, **options)

    return read


@pytest.fixture
def refused(read):
    def refused(*args, **options) -> str:
        with pytest.raises(StudyError) as caught:
            read(*args, **options)
        return str(caught.value)

    return refused


def table(*rows: str, header: str = HEADER) -> str:
    return "".join(f"{row}\n" for row in (header, *rows))


# ---- FLIP's own files


@pytest.mark.skipif(not FLIP.exists(), reason="FLIP's files are not here")
def test_gb1_of_flip_is_read():
    data = read_dataset(FLIP / "flip_gb1_two_vs_rest.csv.gz")
    assert data.task == Task("regression", "protein")
    assert [data.sets.count(name) for name in ("train", "validation", "test")] == [381, 43, 8309]
    assert (len(data), data.values.dtype, data.values[1], data.ids[-1]) == (8733, np.float64, 1.4459050863, "8733")


@pytest.mark.skipif(not FLIP.exists(), reason="FLIP's files are not here")
def test_binding_residues_of_flip_are_read_but_for_what_is_there_twice_or_unlabelled():
    paths = FLIP / "flip_bind_sequences.fasta.gz", FLIP / "flip_bind_two_vs_many.labels.fasta.gz"
    with pytest.raises(StudyError, match=r"record 1,069 of flip_bind\S+ has the id 'Q5LL55', as record 1 .* 87 more"):
        read_dataset(paths[0], labels=paths[1])
    data = read_dataset(paths[0], labels=paths[1], skip_bad=True)
    assert data.task == Task("classes", "residue", tuple("01234567"))
    assert (len(data), len(data.left_out)) == (1314, 92)
    assert [len(values) for values in data.values] == [len(sequence) for sequence in data.sequences]


# ---- however it is written


def same(data, other) -> bool:
    return data.digest == other.digest and data.sets == other.sets and data.ids == other.ids


@pytest.mark.parametrize(
    "content",
    [
        table(*ROWS).replace("\n", "\r\n"),
        table(*ROWS).replace("\n", "\r"),
        "\ufeff" + table(*ROWS),
        table(*ROWS).encode("utf-16"),
        "sep=;\n" + table(*ROWS).replace(",", ";"),
        table(*ROWS).replace(",", ";"),
        table(*ROWS).replace(",", "\t"),
        table(*ROWS, header="Sequence, TARGET ,Split,Validation"),
        table(*ROWS, header="seq,fitness,set,validation"),
        "\n" + table(*ROWS).replace("\n", "\n\n") + ",,,\n \n",
        table('"MKV"," 1.5 ","train",""', *ROWS[1:], header='"sequence","target","set","validation"'),
        table("m k v,1.5,Training,", "MKVL*,-0.25,valid,", *ROWS[2:]),
        table(*ROWS).removesuffix("\n"),
        gzip.compress(table(*ROWS).encode()),
        table(*(f'{n},"a\nb"" c",{row}' for n, row in enumerate(ROWS)), header=f",note,{HEADER}"),
    ],
    ids=str.split("CRLF CR BOM UTF-16 sep semicolon tab case synonyms empty-lines quoted unclean no-end gzip notes"),
)
def test_it_does_not_matter_how_a_table_is_written(read, content):
    assert same(read(content), read(table(*ROWS), "plain.txt"))


def test_fasta_with_headers_is_the_same_data(read):
    records = [
        ">1 SET=train VALIDATION=False TARGET=1.5\nMK\nV\n",
        ">2 target=-0.25 set=train validation=true\nMKVL\n",
        ">3 some words TARGET=2 Set=test\nACD\n",
        ">4 OS=Homo sapiens TARGET=1e-3 SET=test\nACDE\n",
    ]
    assert same(read("".join(records), "data.fasta"), read(table(*ROWS)))


def test_labels_by_id_are_put_beside_a_fasta(read):
    plain = read(table(*ROWS))
    fasta = ">2\nMKVL\n>1\nMKV\n>3\nACD\n>4\nACDE\n"
    labels = table(
        *(f"{n},{row.partition(',')[2]}" for n, row in enumerate(ROWS, 1)), header="ID,target,set,validation"
    )
    data = read(fasta, "some.fa", labels=("labels.csv", labels))
    order = [data.ids.index(name) for name in plain.ids]
    assert data.ids == ("2", "1", "3", "4")
    np.testing.assert_array_equal(data.values[order], plain.values)
    assert [data.sets[place] for place in order] == list(plain.sets)
    bare = read(fasta, "some.fa", labels=("labels.tsv", "1\t1.5\n2\t-.25\n3\t2\n4\t1e-3\n"))
    np.testing.assert_array_equal(bare.values, data.values)
    assert bare.sets is None


def test_label_strings_of_residues(read):
    fasta = ">a\nMKV\n>b\nACDE\n"
    labels = ">b SET=test\nHH-E\n>a SET=train VALIDATION=True\nHEC\n"
    data = read(fasta, "some.fasta", labels=("labels.fasta", labels))
    assert data.task == Task("classes", "residue", ("C", "E", "H"))
    assert [values.tolist() for values in data.values] == [[2, 1, 0], [2, 2, -1, 1]]
    assert data.sets == ("validation", "test")
    assert "1 of 7 residues unlabelled" in data.notes[0]
    masked = read(fasta, "some.fasta", labels=("labels.fasta", labels), mask=("mask.fasta", ">a\n110\n>b\n0111\n"))
    assert masked.task == Task("binary", "residue", ("E", "H"))
    assert [values.tolist() for values in masked.values] == [[1, 0, -1], [-1, 1, -1, 0]]
    column = read("id,sequence,ss3\na,MKVMKVMKVMKVMKVMKV,HECHECHECHECHECHEC\nb,ACDE,HH-E\n")
    assert column.task == data.task


def test_of_two_labels_of_residues_the_positive_one_is_last(read):
    data = read(">a\nMKVL\n", "s.fasta", labels=("l.fasta", ">a\nBN-B\n"))
    assert data.task == Task("binary", "residue", ("N", "B"))
    assert data.values[0].tolist() == [1, 0, -1, 1]
    assert "B is the positive one" in data.notes[0]


def test_labels_by_id_leave_sets_to_the_headers_of_the_sequences(read):
    fasta = ">a SET=train\nMKV\n>b SET=test\nAC\n"
    data = read(fasta, "s.fasta", labels=("l.tsv", "id\tTm\na\t1.25\nb\t3\n"), task="regression")
    assert (data.sets, data.target) == (("train", "test"), "Tm")


def test_a_validation_column_is_enough_to_hold_rows_out(read):
    data = read(table("MKV,1.5,", "MKVL,2.5,True", "AC,3,no", header="sequence,y,validation"))
    assert data.sets == ("train", "validation", "train")


def test_the_digest_is_of_all_that_is_computed_with(read):
    rows = ["a,MKV,1.5,train,x", "b,MKVL,2,test,x", "c,AC,3,test,z"]
    changed = [rows[0].replace(old, new) for old, new in ("aA", "Kk", "KR", ("1.5", "1.75"), ("train", "test"), "xy")]
    header = "id,sequence,y,set,cluster"
    digests = [read(table(row, *rows[1:], header=header)).digest for row in (rows[0], *changed)]
    assert digests[2] == digests[0]  # lower case is no other residue
    assert len(set(digests)) == len(changed)
    assert all(digest.startswith("sha256:") for digest in digests)


def test_parquet_is_the_same_data(read, tmp_path):
    plain = read(table(*ROWS))
    columns = {
        "sequence": list(plain.sequences),
        "embedding": [[1.0, 2.0]] * 4,
        "target": pa.array(plain.values),
        "set": pa.array(plain.sets).dictionary_encode(),
    }
    pq.write_table(pa.table(columns), tmp_path / "data.parquet")
    assert same(read_dataset(tmp_path / "data.parquet"), plain)
    lists = {"id": ["a", "b"], "sequence": ["MKV", "AC"], "label": [[0.5, None, 1.25], [float("nan"), 2.0]]}
    pq.write_table(pa.table(lists), tmp_path / "residues.parquet")
    data = read_dataset(tmp_path / "residues.parquet")
    assert data.task == Task("regression", "residue")
    np.testing.assert_array_equal(np.concatenate(data.values), [0.5, np.nan, 1.25, np.nan, 2.0])


# ---- which task


def values(*labels: str, sequence: str = "MKVAAA") -> str:
    return table(*(f"{sequence},{label}" for label in labels), header="sequence,label")


@pytest.mark.parametrize(
    ("labels", "asked", "task"),
    [
        (["0.5", "1", "0.5"], "regression", Task("regression", "protein")),
        ([str(n) for n in range(30)], None, Task("regression", "protein")),
        (["0.1", "0.2", "0.2", "0.3"], None, Task("regression", "protein")),
        (["0", "1", "1"], None, Task("binary", "protein", ("0", "1"))),
        (["-1.0", "1.0", "1.0"], None, Task("binary", "protein", ("-1", "1"))),
        (["True", "FALSE", "true"], None, Task("binary", "protein", ("false", "true"))),
        (["yes", "no", "no"], None, Task("binary", "protein", ("no", "yes"))),
        (["binder", "other", "other"], None, Task("binary", "protein", ("other", "binder"))),
        (["a", "b", "c"] * 2, None, Task("classes", "protein", ("a", "b", "c"))),
        (["10", "9", "2"], "classes", Task("classes", "protein", ("2", "9", "10"))),
        (["10", "9", "2"], "regression", Task("regression", "protein")),
        (["a", "b", "c"], "classes", Task("classes", "protein", ("a", "b", "c"))),
        (["inside", "beside", "beside"], "protein-classes", Task("classes", "protein", ("beside", "inside"))),
        (["inside", "beside", "beside"], "residue-classes", Task("classes", "residue", tuple("bdeins"))),
        (["0.5000", "1.0000", "1.5000"], None, Task("regression", "protein")),
    ],
)
def test_the_task_is_inferred_or_asked_for(read, labels, asked, task):
    data = read(values(*labels), task=asked)
    assert data.task == task
    assert task.kind in data.notes[0]


@pytest.mark.parametrize(
    ("labels", "readings"),
    [
        (["0", "1", "2"] * 9, ["--task regression", "--task classes", "0, 1, 2", "27 labels"]),
        (["0.5", "1.5"] * 9, ["--task regression", "--task binary"]),
        ([str(n) for n in range(30)] * 9, ["--task regression", "--task classes"]),
        (["inside", "beside", "beside"], ["--task residue-classes", "--task protein-classes"]),
        (["100000", "200000", "300000"], ["--task residue-classes", "--task regression"]),
        (
            ["0.5", "x", "y", "y"],
            ["--task regression", "--task classes", "3 labels that are none (such as 'x')"],
        ),
    ],
)
def test_what_may_be_either_is_refused_with_both_readings(refused, labels, readings):
    said = refused(values(*labels))
    assert all(reading in said for reading in readings), said


@pytest.mark.parametrize(
    ("labels", "asked", "says"),
    [
        (["1", "1"], None, "nothing to predict"),
        (["a", "a"], None, "nothing to predict"),
        (["", ""], None, "line 3 has no label"),
        (["a", "bc", "d", "e"], None, "4 different texts"),
        (["a", "bc", "d"], "binary", "3 classes (a, bc, d)"),
        (["a", "b"], "ranking", "allowed: regression, binary, classes"),
        ([f'"{n},5"' for n in range(9)], None, "9 different texts"),
        (['"1,5"', '"2,5"'] * 9, None, "write numbers with a point"),
    ],
)
def test_labels_that_tell_nothing_are_refused(refused, labels, asked, says):
    assert says in refused(values(*labels), task=asked)


# ---- which column


def test_columns_are_found_by_their_names(read, refused):
    def columns(header: str, **options):
        names = header.split(",")
        rows = [",".join({"MKV"} and "MKV" if "seq" in name.lower() else f"{n}.5" for name in names) for n in range(3)]
        return table(*rows, header=header), options

    def target(header: str, **options) -> str:
        content, options = columns(header, **options)
        return read(content, **options).target

    assert target("mutated_sequence,DMS_score") == "DMS_score"
    assert target("sequence,Tm") == "Tm"
    assert target("Unnamed: 0,sequence,Tm") == "Tm"
    assert target(",sequence,Tm") == "Tm"
    assert target("sequence,Tm,pH", target="ph") == "pH"
    assert target("sequence,target,label", target="label") == "label"
    for header, options, says in [
        ("sequence,target,label", {}, "'target', 'label'"),
        ("sequence,Tm,pH", {}, "'Tm', 'pH'"),
        ("sequence,target,Target", {}, "'target', 'Target'"),
        ("sequence,sequence,target", {}, "several columns of a sequence"),
        ("sequence,target,target", {"target": "target"}, "2 times"),
        ("sequence,Tm", {"target": "x"}, "'Tm'"),
        ("Tm,pH", {}, "no column of sequences"),
        ("seq,aa_seq,target", {}, "'seq', 'aa_seq'"),
        ("sequence", {}, "no column that may be the target"),
    ]:
        content, given_ = columns(header, **options)
        assert says in refused(content, **given_)


# ---- rows that cannot be used

BAD = {
    ",1,train,": "has no sequence",
    "MKV,,train,": "no label",
    "MKV,abc,train,": "'abc' in column 'target', which is no number",
    'MKV,"1,5",train,': "comma",
    "MKV,1e400,train,": "no finite number",
    "MKV,inf,train,": "no finite number",
    "MKV,nan,train,": "no label",
    "MKV,1_0,train,": "no number",
    "MKV,\u0661,train,": "no number",
    "MKV,0x10,train,": "no number",
    "MKV,1,tarin,": "has the set 'tarin'; allowed: train, validation, test",
    "MKV,1,,": "has no set",
    "MKV,1,test,True": "test set, and for validation",
    "MKV,1,train,maybe": "'maybe' for validation",
    "M1V,1,train,": "'1' in its sequence",
    "M\u00c5 V,1,train,": "'\u00c5' in its sequence",
    "M V1,1,train,": "'1' in its sequence",
    "MK<mask>,1,train,": "'<mask>' in its sequence",
    "MKV,1,train": "has 3 fields, where the header has 4",
    "MKV,1,train,,5": "has 5 fields",
}


@pytest.mark.parametrize("row", BAD)
def test_a_row_that_cannot_be_used_is_refused_by_its_line_or_left_out_and_counted(read, refused, row):
    content = table(*ROWS, row)
    said = refused(content)
    assert "line 6 " in said
    assert BAD[row] in said
    assert "--skip-bad" in said
    data = read(content, skip_bad=True)
    assert same(data, read(table(*ROWS)))
    ((line, why),) = data.left_out
    assert line == 6
    assert BAD[row] in why
    assert "left out: 1 row, as line 6 " in data.notes[-1]


def test_all_bad_rows_are_counted_and_lines_are_those_of_the_file(refused):
    content = table(*ROWS, '"MKV",1,"a\nb",', "", ",1,train,", *["MKV,x,train,"] * 3, *["MKV,nan,train,"] * 4)
    said = refused(content)
    assert "line 6 has the set" in said
    assert "line 9 has no sequence" in said
    assert "line 12 " in said
    assert "line 13" not in said
    assert "and 4 more" in said


def test_an_id_twice_is_refused(refused):
    assert "line 4 has the id 'a', as line 2 has" in refused("id,sequence,y\na,MKV,1.5\nb,MK,2\na,MK,3\nc,MK,9\n")
    assert "record 2 has the id 'a'" in refused(">a TARGET=1\nM\n>a TARGET=2\nK\n", "some.fasta")
    assert "line 3 has no id" in refused("id,sequence,y\na,MKV,1.5\n,MK,2\nb,MK,3\n")


def test_ids_are_one_line(read, refused):
    assert read('id,sequence,y\n"a\nb\tc ",MKV,1.5\nb,MK,2\nc,MK,3\n').ids == ("a b c", "b", "c")
    assert "line 4 has the id 'a b', as line 2" in refused('id,sequence,y\n"a\nb",M,1.5\na b,K,2\n')


def test_labels_and_sequences_that_do_not_belong_together_are_refused(read, refused):
    fasta = ">a\nMKV\n>b\nACDE\n>c\nMMMM\n>d\nAC\n"
    labels = ">a\nHEC\n>b\nHHE\n>x\nHH\n>c\nHHHE\n>c\nHHHH\n"
    said = refused(fasta, "some.fasta", labels=("l.fasta", labels))
    for part in (
        "record 2 ('b') has 3 labels in l.fasta for 4 residues",
        "record 4 ('d') has no labels in l.fasta",
        "record 3 of l.fasta ('x') has no sequence in some.fasta",
        "record 5 of l.fasta has the id 'c', as record 4 has",
    ):
        assert part in said
    data = read(fasta, "some.fasta", labels=("l.fasta", labels), skip_bad=True)
    assert data.ids == ("a", "c")
    assert [number for number, _ in data.left_out] == [2, 3, 4, 5]
    masks = ">a\n111\n>b\n111\n>c\n1121\n"
    said = refused(fasta, "some.fasta", labels=("l.fasta", labels), mask=("m.fasta", masks))
    assert "record 3 ('c') has no mask of 0 and 1 that is as long as its labels" in said


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        ("", "a.csv", "is empty"),
        ("\n\n", "a.csv", "is empty"),
        (HEADER + "\n", "a.csv", "no rows that can be used"),
        ("", "a.fasta", "is empty"),
        (">a\nMKV\n", "a.fasta", "no TARGET= in its headers"),
        ("MKV\n", "a.fasta", "is not FASTA"),
        (b"PK\x03\x04....", "a.xlsx", "export the sheet as CSV"),
        (b"PAR1....PAR1", "a.parquet", "damaged Parquet"),
        (b"\x1f\x8b\x08\x00", "a.csv.gz", "damaged gzip"),
        (gzip.compress(table(*ROWS * 999).encode())[:-99], "a.csv.gz", "damaged gzip"),
        (table(*ROWS).encode("utf-16-le"), "a.csv", "UTF-16 without its mark"),
        (table(*ROWS, '"MKV,1.5'), "a.csv", "line 6"),
        (table(*ROWS, '"MKV"V,1.5,train,'), "a.csv", "line 6"),
    ],
)
def test_what_is_no_data_is_refused(refused, content, name, says):
    said = refused(content, name)
    assert says in said
    assert name in said


def test_files_that_are_not_there_are_refused(tmp_path):
    for path, says in ((tmp_path, "is a folder"), (tmp_path / "none.csv", "does not exist")):
        with pytest.raises(StudyError, match=says):
            read_dataset(path)


def test_options_that_do_not_fit_are_refused(refused):
    labels = ("l.fasta", ">a\nHHE\n")
    assert "is no FASTA" in refused(table(*ROWS), labels=labels)
    assert "no columns" in refused(">a\nMKV\n", "s.fasta", labels=labels, target="x")
    assert "--labels" in refused(table(*ROWS), mask=labels)
    assert "mask" in refused(">a\nMKV\n", "s.fasta", labels=("l.csv", "id,y\na,1\n"), mask=labels)
    assert "m.csv is no FASTA" in refused(">a\nMKV\n", "s.fasta", labels=labels, mask=("m.csv", "id\na\n"))
    assert "no column of ids" in refused(">a\nMKV\n", "s.fasta", labels=("l.csv", "x,y\na,1\n"))
    assert "letter for each residue" in refused(">a\nMKV\n", "s.fasta", labels=labels, task="regression")


# ---- round trips

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zs", "Zl", "Zp", "Cs")), min_size=1, max_size=9)
SEQUENCES = st.text("ACDEFGHIKLMNPQRSTVWYX", min_size=1, max_size=12)


@st.composite
def written(draw):
    """Rows of a dataset, as the columns of a table."""
    ids = draw(st.lists(NAMES.filter(lambda name: "\ufffd" not in name), min_size=2, max_size=9, unique=True))
    many = len(ids)
    numbers = st.floats(allow_nan=False, allow_infinity=False)
    columns = {
        "id": ids,
        "sequence": draw(st.lists(SEQUENCES, min_size=many, max_size=many)),
        "target": draw(st.lists(numbers, min_size=many, max_size=many).filter(lambda x: len(set(x)) > 1)),
    }
    if draw(st.booleans()):
        columns["set"] = draw(st.lists(st.sampled_from(["train", "validation", "test"]), min_size=many, max_size=many))
    if draw(st.booleans()):
        columns["cluster"] = draw(st.lists(NAMES, min_size=many, max_size=many))
    return columns


@given(columns=written(), delimiter=st.sampled_from(",;\t"), end=st.sampled_from(["\n", "\r\n", "\r"]), data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_dataset_is_read_as_it_was_written(tmp_path, columns, delimiter, end, data):
    order = data.draw(st.permutations(sorted(columns)))
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end)
    writer.writerow(order)
    writer.writerows(zip(*(columns[name] for name in order), strict=True))
    (tmp_path / "x.csv").write_text(text.getvalue(), encoding="utf-8", newline="")
    pq.write_table(pa.table({name: columns[name] for name in order}), tmp_path / "x.parquet")
    keys = [name for name in columns if name not in ("id", "sequence")]
    with (tmp_path / "x.fasta").open("w", encoding="utf-8") as file:
        for number, (name, sequence) in enumerate(zip(columns["id"], columns["sequence"], strict=True)):
            said = "".join(f" {key.upper()}={columns[key][number]}" for key in keys)
            file.write(f">{name}{said}\n{sequence}\n")
    read = [read_dataset(tmp_path / name, task="regression") for name in ("x.csv", "x.parquet", "x.fasta")]
    assert read[0].ids == tuple(columns["id"])
    assert read[0].sequences == tuple(columns["sequence"])
    np.testing.assert_array_equal(read[0].values, columns["target"])
    assert read[0].sets == (tuple(columns["set"]) if "set" in columns else None)
    assert read[0].clusters == (tuple(columns["cluster"]) if "cluster" in columns else None)
    assert read[0].digest == read[1].digest == read[2].digest


@st.composite
def labelled(draw):
    """Sequences, and a string of labels for each."""
    sequences = draw(st.lists(st.text("ACDEFGHIKLMNPQRSTVWY", min_size=16, max_size=30), min_size=1, max_size=6))
    letters = [draw(st.text("HEC01-", min_size=len(one), max_size=len(one))) for one in sequences]
    return sequences, ["".join(pair) for pair in zip(["HE"] * len(letters), (one[2:] for one in letters), strict=True)]


@given(labelled=labelled())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_labels_of_residues_are_read_as_they_were_written(tmp_path, labelled):
    sequences, labels = labelled
    columns = {"id": [f"p{n}" for n in range(len(labels))], "sequence": sequences, "ss": labels}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    (tmp_path / "x.csv").write_text(
        table(*map(",".join, zip(*columns.values(), strict=True)), header="id,sequence,ss"), encoding="utf-8"
    )
    for name, texts in (("x.fasta", sequences), ("y.fasta", labels)):
        text = "".join(f">p{n}\n{text[:9]}\n{text[9:]}\n" for n, text in enumerate(texts))
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "y.tsv").write_text("".join(f"p{n}\t{text}\n" for n, text in enumerate(labels)), encoding="utf-8")
    data = read_dataset(tmp_path / "x.fasta", labels=tmp_path / "y.fasta")
    back = ["".join(data.task.classes[label] if label >= 0 else "-" for label in values) for values in data.values]
    assert back == labels
    for other in (
        read_dataset(tmp_path / "x.parquet"),
        read_dataset(tmp_path / "x.csv"),
        read_dataset(tmp_path / "x.fasta", labels=tmp_path / "y.tsv"),
    ):
        assert other.digest == data.digest
