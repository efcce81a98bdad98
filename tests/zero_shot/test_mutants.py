"""Mutants as people write them, and what of them does not fit their wild type."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

pytest.importorskip("pyarrow")

import pyarrow as pa
from pyarrow import parquet

from hf_perturb.errors import FastaError
from hf_perturb.zero_shot.mutants import (
    every_substitution,
    mutants_named,
    mutants_of,
    read_mutants,
    read_wildtypes,
)

WILDTYPE = "MKTAYIAKQR"
ROWS = [("K2A", "1.5"), ("K2A:Q9W", ""), ("R10M", "-2")]


def listed(mutants):
    letters = map(chr, mutants.letters)
    parts = [*zip(mutants.owners.tolist(), mutants.places.tolist(), letters, strict=True)]
    return list(mutants.names), mutants.counts.tolist(), parts


def table(path, columns, rows, divider=","):
    lines = [divider.join(columns), *(divider.join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_every_substitution_has_the_other_residues_of_each_position():
    made = every_substitution("MXK", offset=5)
    assert len(made) == 38  # nothing is known of what an X is
    assert made.names[:2] == ["M5A", "M5C"]
    assert made.names[-1] == "K7Y"
    assert {*made.places.tolist()} == {0, 2}
    assert len({*made.names}) == 38


@pytest.mark.parametrize("text", ["K2A:Q9W", "K2A,Q9W", "K2A;Q9W", "K2A/Q9W", "K2A+Q9W", " K2A Q9W", "K2A, Q9W"])
def test_substitutions_are_divided_as_people_divide_them(text):
    assert listed(mutants_named(WILDTYPE, [text]))[1:] == ([2], [(0, 1, "A"), (0, 8, "W")])


@pytest.mark.parametrize("text", ["WT", "wt", "_wt", ""])
def test_a_row_may_be_the_wild_type(text):
    assert listed(mutants_named(WILDTYPE, [text, "M1A"]))[1:] == ([0, 1], [(1, 0, "A")])


@pytest.mark.parametrize("offset", [1, 24, -3, 0])
def test_sequences_give_the_mutants_that_name_them(offset):
    sequences = [WILDTYPE, "MATAYIAKQR", "AKTAYIAKQW"]
    made = mutants_of(WILDTYPE, sequences, offset)
    assert made.names[0] == "WT"
    assert made.names[1] == f"K{1 + offset}A"
    assert listed(mutants_named(WILDTYPE, made.names, offset)) == listed(made)


def test_a_sequence_of_another_length_is_refused_with_its_row():
    with pytest.raises(FastaError, match=r"row 2: the sequence has 11 residues, the wild type 10.*insertion"):
        mutants_of(WILDTYPE, [WILDTYPE, WILDTYPE + "A"])


@pytest.mark.parametrize(
    ("names", "offset", "said"),
    [
        (["M1A", "A2G"], 1, r"row 2: mutant 'A2G' says A at 2, where the wild type has K .*no other offset fits"),
        (["K25A", "Q32A"], 1, r"row 1: mutant 'K25A' says K at 25, where the wild type goes from 1 to 10.*offset 24 "),
        (["M0A", "K1A"], 1, r"row 1: mutant 'M0A'.*goes from 1 to 10.*with offset 0 all rows fit"),
        (["M1A"], 0, r"says M at 1, where the wild type has K \(offset 0.*with offset 1 all rows fit"),
        (["K5G"], 1, "where the wild type has Y .*with offset -2 or 4 all rows fit"),
        (["K2A:A4G", "A7G:K2A:A6G"], 1, r"row 2: mutant 'A7G:K2A:A6G' says A at 6, where the wild type has I"),
    ],
)
def test_another_wild_type_is_told_with_the_offset_that_fits_all(names, offset, said):
    with pytest.raises(FastaError, match=said):
        mutants_named(WILDTYPE, names, offset)


@pytest.mark.parametrize("text", ["A24", "24G", "a4g", "A4*", "A4-", "p.Ala4Gly", "A4GG", "K2A:", f"K{10**25}A", "K٢A"])
def test_what_is_no_substitution_is_refused(text):
    with pytest.raises(FastaError, match=r"row 1: mutant .*allowed: substitutions such as A24G"):
        mutants_named(WILDTYPE, [text])


def test_a_position_is_named_once():
    with pytest.raises(FastaError, match="row 1: mutant 'K2A:K2G' names a position twice"):
        mutants_named(WILDTYPE, ["K2A:K2G"])


# ---- files


def test_tables_of_every_kind_say_the_same(tmp_path):
    columns = ("Mutant", "DMS_score")
    paths = [table(tmp_path / f"{i}.txt", columns, ROWS, divider) for i, divider in enumerate(",\t;")]
    packed = tmp_path / "packed.csv.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + paths[0].read_bytes().replace(b"\n", b"\r\n")))
    numbers = pa.table({"Mutant": [row[0] for row in ROWS], "DMS_score": [1.5, None, -2.0]})
    parquet.write_table(numbers, tmp_path / "a.parquet")
    for path in (*paths, packed, tmp_path / "a.parquet"):
        made, measured = read_mutants(path, {"w": WILDTYPE})
        assert measured == "DMS_score"
        assert listed(made["w"]) == listed(mutants_named(WILDTYPE, [row[0] for row in ROWS]))
        np.testing.assert_array_equal(made["w"].measured, [1.5, np.nan, -2.0])


def test_a_column_of_whole_sequences_is_compared_with_the_wild_type(tmp_path):
    path = table(tmp_path / "a.csv", ("sequence", "target"), [("mktayiakqr", "1"), ("MKTAYIAKQW", "2")])
    made, measured = read_mutants(path, {"w": WILDTYPE}, offset=3)
    assert measured == "target"
    assert made["w"].names == ["WT", "R12W"]
    both = table(tmp_path / "b.csv", ("mutant", "mutated_sequence"), [("K2A", "longer than it")])
    assert read_mutants(both, {"w": WILDTYPE})[0]["w"].names == ["K2A"]
    longer = table(tmp_path / "c.csv", ("sequence",), [(WILDTYPE,), (WILDTYPE[1:],)])
    with pytest.raises(FastaError, match=r"c.csv: row 2: the sequence has 9 residues"):
        read_mutants(longer, {"w": WILDTYPE})


@pytest.mark.parametrize("odd", ["MK-TAYIAKQ", "MK-TAYIAKQR", "MKTAY*AKQR", "MKT.YIAKQR", "MKTAY?AKQR"])
def test_a_sequence_with_what_is_no_residue_is_no_substitution(tmp_path, odd):
    path = table(tmp_path / "a.csv", ("sequence",), [(f"{WILDTYPE}*",), (odd,)])
    with pytest.raises(FastaError, match=r"a.csv: row 2: the sequence has '[-*.?]'; allowed: substitutions alone"):
        read_mutants(path, {"w": WILDTYPE})


def test_a_cell_that_is_no_number_is_told_among_numbers(tmp_path):
    rows = [("K2A", "1"), ("M1A", "NA"), ("T3A", "2")]
    path = table(tmp_path / "a.csv", ("mutant", "DMS_score"), rows)
    with pytest.raises(FastaError, match="row 2: DMS_score is 'NA'; allowed: a number, or nothing"):
        read_mutants(path, {"w": WILDTYPE})


def test_what_was_measured_is_named_where_it_is_not_plain(tmp_path):
    rows = [("K2A", "1", "2", "x"), ("M1A", "3", "4", "y")]
    path = table(tmp_path / "a.csv", ("mutant", "fitness", "growth", "label"), rows)
    assert read_mutants(path, {"w": WILDTYPE})[1] == "fitness"  # labels are no numbers
    made, measured = read_mutants(path, {"w": WILDTYPE}, measured="growth")
    assert (measured, made["w"].measured.tolist()) == ("growth", [2, 4])
    with pytest.raises(FastaError, match="row 1: label is 'x'; allowed: a number, or nothing"):
        read_mutants(path, {"w": WILDTYPE}, measured="label")
    with pytest.raises(FastaError, match="measured: got 'none'; allowed: one of its columns: mutant, fitness"):
        read_mutants(path, {"w": WILDTYPE}, measured="none")
    several = table(tmp_path / "b.csv", ("mutant", "fitness", "target"), [("K2A", "1", "2")])
    with pytest.raises(FastaError, match="columns fitness and target may be what was measured"):
        read_mutants(several, {"w": WILDTYPE})
    plain = table(tmp_path / "c.csv", ("mutant", "mass"), [("K2A", "1")])
    made, measured = read_mutants(plain, {"w": WILDTYPE})
    assert (measured, made["w"].measured) == (None, None)


def test_rows_of_several_wild_types_are_told_apart_by_their_id(tmp_path):
    wildtypes = {"one": WILDTYPE, "two": "ACD", "three": "W"}
    path = table(tmp_path / "a.csv", ("id", "mutant"), [("two", "C2A"), ("one", "K2A"), ("two", "D3W")])
    made, _ = read_mutants(path, wildtypes)
    assert {id_: each.names for id_, each in made.items()} == {"one": ["K2A"], "two": ["C2A", "D3W"]}
    wrong = table(tmp_path / "b.csv", ("id", "mutant"), [("two", "C2A"), ("one", "K2A"), ("two", "A3W")])
    with pytest.raises(FastaError, match="row 3: mutant 'A3W' says A at 3, where the wild type has D"):
        read_mutants(wrong, wildtypes)
    other = table(tmp_path / "c.csv", ("id", "mutant"), [("two", "C2A"), ("four", "K2A")])
    with pytest.raises(FastaError, match=r"row 2: id is 'four'; allowed: an id of the FASTA \(one, two, three\)"):
        read_mutants(other, wildtypes)
    without = table(tmp_path / "d.csv", ("mutant",), [("C2A",)])
    with pytest.raises(FastaError, match="no column says which of the 3 wild types"):
        read_mutants(without, wildtypes)


def test_rows_of_another_protein_are_none_of_a_single_wild_type(tmp_path):
    rows = [("one", "MKTAYIAKQA"), ("two", "MKTAYIAKQW")]
    path = table(tmp_path / "a.csv", ("id", "sequence"), rows)
    with pytest.raises(FastaError, match=r"row 2: id is 'two'; allowed: an id of the FASTA \(one\)"):
        read_mutants(path, {"one": WILDTYPE})
    made, _ = read_mutants(path, {"wildtype": WILDTYPE})  # then it names the rows
    assert made["wildtype"].names == ["R10A", "R10W"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("mutant,score\n", "has no rows"),
        ("name,mass\na,1\n", "columns: got name, mass; allowed: one of mutant"),
        ("mutant,mutant\nK2A,K2A\n", "each name once"),
        ("mutant,score\nK2A,1\nM1A\n", "line 3 has 1 fields, where the header has 2"),
        ('mutant,name\nK2A,"one\nM1A,two\n', "line 2: unexpected end of data"),
        ("sequence\nMKT<cls>\n", "row 1: the sequence has '<cls>'"),
        (b"\x00\xffm", "is binary"),
        (">a\nMKT\n", "is a FASTA; give a CSV"),
        (b"\x1f\x8b\x08\x00", "a.csv"),
        (b"PAR1 and no more", "is damaged"),
        (None, "does not exist"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, content, said):
    path = tmp_path / "a.csv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FastaError, match=said):
        read_mutants(path, {"w": WILDTYPE})


def test_a_table_as_a_spreadsheet_exports_it_is_read(tmp_path):
    (tmp_path / "a.csv").write_bytes("sep=;\nmutant;score\nK2A;1.5\n".encode("utf-16"))
    made, measured = read_mutants(tmp_path / "a.csv", {"w": WILDTYPE})
    assert (made["w"].names, made["w"].measured.tolist(), measured) == (["K2A"], [1.5], "score")


# ---- wild types


def test_a_wild_type_is_a_sequence_or_a_fasta(tmp_path):
    assert read_wildtypes(WILDTYPE) == {"wildtype": WILDTYPE}
    path = tmp_path / "a.fasta"
    path.write_text(">one of two\nmktay\niakqr*\n>two\nACD\n")
    assert read_wildtypes(path) == read_wildtypes(str(path)) == {"one": WILDTYPE, "two": "ACD"}
    assert read_wildtypes("ACDEX" * 400) == {"wildtype": "ACDEX" * 400}  # longer than a name of a file may be


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("wildtype.fasta", "no file and no sequence"),
        ("proteins", "no file and no sequence"),
        ("MK-T", "no file and no sequence"),
        (">a\nMKT\n>a\nMK\n", "'a' is there twice"),
        (">a\nMKT\n>b\n\n", "'b' is there without residues"),
    ],
)
def test_what_is_no_wild_type_is_refused(tmp_path, given, said):
    if given.startswith(">"):
        (tmp_path / "a.fasta").write_text(given)
        given = tmp_path / "a.fasta"
    with pytest.raises(FastaError, match=said):
        read_wildtypes(given)
