"""A FASTA is read as it is written, cleaned as documented, and refused by name where it is none."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import re
import string
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given, strategies as st

from hf_perturb.embedding.fasta import Findings, Record, clean, file_of, read_records
from hf_perturb.errors import FastaError


@pytest.fixture
def read(tmp_path):
    """Write a FASTA and return its records as (id, sequence), with what was met in it."""

    def read(content: str | bytes) -> tuple[list[tuple[str, str]], dict]:
        path, findings = tmp_path / "some.txt", Findings()
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        records = list(read_records(path, findings))
        assert [record.index for record in records] == list(range(len(records)))
        return [(record.id, record.sequence) for record in records], findings.to_dict()

    return read


def packed(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def refused(read, content: str | bytes) -> str:
    with pytest.raises(FastaError) as caught:
        read(content)
    assert "some.txt" in str(caught.value)
    return str(caught.value)


def test_the_demo_is_read():
    path = Path(str(files("hf_perturb.demo") / "held_out.fasta.gz"))
    findings = Findings()
    records = list(read_records(path, findings))
    text = gzip.decompress(path.read_bytes()).decode()
    assert [record.id for record in records] == [line[1:].split()[0] for line in text.splitlines() if line[:1] == ">"]
    assert "".join(record.sequence for record in records) == "".join(re.sub(r"(?m)^>.*$", "", text).split())
    assert findings.to_dict() == {}
    assert findings.lines() == []


@pytest.mark.parametrize(
    "content",
    [
        ">a one\nMKV\nLL\n>b\nAC\n",
        ">a one\r\nMKV\r\nLL\r\n>b\r\nAC\r\n",
        ">a one\rMKV\rLL\r>b\rAC\r",
        ">a one\nMKVLL\n>b\nAC",
        "\n\n>a one\n\nMKV\n\nLL\n\n>b\nAC\n\n",
        "\ufeff>a one\nMKVLL\n>b\nAC\n",
        ">a\tone\nM K\tVLL \n> b\n AC\n",
        "# a comment\n>a\nMKVLL\n>b\nAC\n",
    ],
)
@pytest.mark.parametrize(
    "pack", [bytes, gzip.compress, lambda content: gzip.compress(content[:4]) + pack_rest(content)]
)
def test_it_does_not_matter_how_it_is_written(read, content, pack):
    assert read(pack(content.encode())) == ([("a", "MKVLL"), ("b", "AC")], {})


def pack_rest(content: bytes) -> bytes:
    return gzip.compress(content[4:])  # as bgzip does: one file, several members


def test_the_name_of_the_file_does_not_matter(tmp_path):
    for name, content in {"plain.fasta.gz": b">a\nMK\n", "packed.fasta": gzip.compress(b">a\nMK\n")}.items():
        (tmp_path / name).write_bytes(content)
        assert list(read_records(tmp_path / name)) == [Record(0, "a", "MK")]


def test_a_line_of_ten_million_residues(read):
    begun = time.perf_counter()
    (record,), _ = read(">long\n" + "ACDEFGHIKL" * 1_000_000 + "\n")
    assert record == ("long", "ACDEFGHIKL" * 1_000_000)
    assert time.perf_counter() - begun < 5  # seconds; a tenth of one, unless it were quadratic


def test_it_is_read_as_it_is_asked_for(tmp_path):
    path = tmp_path / "broken.fasta"
    path.write_bytes(b">a\nMK\n" * 10_000 + b">b\nM\xff\n")
    records = read_records(path)
    assert next(records).sequence == "MK"
    records.close()


def test_what_is_met_is_told(read):
    content = ">fine\nMKJUOBZX\n>low\nmkV\n>end\nMK*\n>ends\nM-K**\n>in\nM*K\n>gap\nM.K-\n>odd\nM1K?\n"
    content += ">none\n>gaps\n--\n>\nMk\n"
    records, found = read(content)
    assert records == [
        ("fine", "MKJUOBZX"),
        ("low", "MKV"),
        ("end", "MK"),
        ("ends", "MK"),
        ("in", "MXK"),
        ("gap", "MK"),
        ("odd", "MXKX"),
        ("none", ""),
        ("gaps", ""),
        ("", "MK"),
    ]
    assert found == {
        "lower_case": {"records": 2, "first": "low"},
        "stops_at_end": {"records": 2, "first": "end"},
        "stops_inside": {"records": 1, "first": "in"},
        "gaps": {"records": 3, "first": "ends"},
        "non_letters": {"records": 1, "first": "odd"},
        "empty": {"records": 2, "first": "none"},
        "without_id": {"records": 1, "first": "record 10"},
    }


def test_sentences():
    findings = Findings()
    for name in ("b", *["c"] * 1_233):
        findings.add("without_id", name)
    findings.add("lower_case", "P12345")
    findings.add("lower_case", "P2")
    findings.add("empty", "E1")
    assert findings.lines() == [
        "2 records had lower-case letters, read as upper case (first: 'P12345')",
        "1 record had no residues, and get nothing that is computed (first: 'E1')",
        "1,234 records had no id, and keep an empty one (first: 'b')",
    ]
    assert list(findings.to_dict()) == ["lower_case", "empty", "without_id"]


UNSPELT = str.maketrans("", "", "<>")


@given((st.text() | st.text(string.printable)).map(lambda raw: raw.translate(UNSPELT)))
@example("M-*-\n*.")
@example("\u00df\u0131M\u2028*")
def test_cleaning(raw):
    done = clean(raw)
    assert set(done) <= set(string.ascii_uppercase)
    assert clean(done) == done
    body = [letter for letter in raw if not letter.isspace() and letter not in "-."]
    while body and body[-1] == "*":
        body.pop()
    assert done == "".join(letter.upper() if letter in string.ascii_letters else "X" for letter in body)


TOKENS = ("<cls>", "<null_1>", "<mask>")


@given(st.lists(st.tuples(st.text("MKVmk*-. 7\1"), st.sampled_from(TOKENS))), st.text("MKVmk*-. 7"))
def test_a_token_is_one_position_wherever_it_stands(pairs, last):
    """What is beside it is cleaned as ever, but for stops at the end, which are inside where a token follows."""
    characters = {token: chr(number) for number, token in enumerate(TOKENS, 1)}
    raw = "".join(part + token for part, token in pairs) + last
    expected = "".join(clean(part + "A")[:-1] + characters[token] for part, token in pairs) + clean(last)
    assert clean(raw, characters) == expected


def test_a_token_that_is_spelt_out_is_that_token_or_an_error(tmp_path):
    path, findings = tmp_path / "some.fasta", Findings()
    path.write_text(">a\nMK<mask>\n<mask>v*<\ncls>\n>b\n<mask>\n>c\nMK\n")
    records = list(read_records(path, findings, TOKENS))
    assert [record.sequence for record in records] == ["MK\3\3VX\1", "\3", "MK"]
    assert findings.to_dict()["tokens"] == {"records": 2, "first": "a"}
    assert "empty" not in findings.to_dict()
    assert "2 records had tokens spelt out (as <mask>), read as these (first: 'a')" in findings.lines()
    for wrong in ("<MASK>", "<foo>", "<", "<mask", "<<mask>", "<>", "<" + 99 * "K" + ">"):
        path.write_text(f">a\nMK\n>b\nM{wrong}K\n")
        message = (
            r"some\.fasta: the sequence of record 2 \('b'\) has '<[^']{0,30}', which is no token of this network; "
        )
        with pytest.raises(FastaError, match=message + "allowed: residues and <cls>, <null_1>, <mask>"):
            list(read_records(path, None, TOKENS))


def test_no_token_is_known_where_there_is_no_network(read):
    assert "has '<mask>', which is no token of this network; allowed: residues" in refused(read, ">a\nM<mask>K\n")


@given(st.lists(st.tuples(st.text("abPQ19|_.", min_size=1), st.text("MKVmk*-. 7")), min_size=1), st.integers(1, 9))
def test_any_records_are_read_back(pairs, width):
    lines = [
        f">{name} d\n" + "\n".join(raw[i : i + width] for i in range(0, len(raw), width)) + "\n" for name, raw in pairs
    ]
    with tempfile.TemporaryDirectory() as folder:
        path, findings = Path(folder, "drawn.fasta"), Findings()
        path.write_text("".join(lines))
        records = list(read_records(path, findings))
    assert records == [Record(i, name, clean(raw)) for i, (name, raw) in enumerate(pairs)]
    kept = [raw for _, raw in pairs if "".join(raw.split()) == clean(raw) != ""]
    assert len(pairs) - len(kept) <= sum(kind["records"] for kind in findings.to_dict().values())
    if len(kept) == len(pairs):
        assert findings.to_dict() == {}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no sequences in it"),
        (b"\n \n", "no sequences in it"),
        (packed(b""), "no sequences in it"),
        (b"MKV\n>a\nMK\n", "line 1: Expected '>' at beginning of record, but got 'MKV'"),
        (b"\n\nid,sequence\n", "line 3: .*'id,sequence'"),
        (b"@read\nACGT\n+\nIIII\n", "is FASTQ.*seqtk"),
        (packed(b"@read\nACGT\n+\nIIII\n"), "is FASTQ"),
        (b"PAR1\x15\x04", "is Parquet"),
        (b"BZh91AY", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x28\xb5\x2f\xfd\x04", "zstd"),
        (b"PK\x03\x04\x14\0", "zip archive"),
        (b"\x7fELF\x02\0\0", "binary"),
        (">a\nMK\n".encode("utf-16"), "binary, or UTF-16"),
        (">a\nMK\n".encode("utf-16-le"), "binary, or UTF-16"),
        (packed(b">a\nMKVLLAC\n" * 50)[:-12], "truncated or damaged gzip"),
        (packed(b">a\nMK\n")[:-8] + b"\0" * 8, "truncated or damaged gzip.*CRC"),
        (packed(b"")[:10] + b"\xff" * 99, "truncated or damaged gzip"),
        (packed(b">a\nMK\n") + b">b\nMK\n", "truncated or damaged gzip, after 0 records"),
        (">a\nMK\n>b one\nMKβ\n".encode(), r"sequence of record 2 \('b'\) has 'β'; residues are ASCII letters"),
        (b">a\nMK\n>\nM\xffK\n", r"sequence of record 2 \('record 2'\) has bytes that are not UTF-8"),
        (b">a\nMK\n>M\xfcller d\nMK\n", "id of record 2 is not UTF-8: 'M\ufffdller'.*iconv"),
    ],
    ids=itertools.count(),
)
def test_refusals(read, content, told):
    assert re.search(told, refused(read, content))


def test_a_truncated_gzip_tells_how_far_it_got(tmp_path):
    path = tmp_path / "cut.fasta.gz"
    path.write_bytes(
        gzip.compress(b"".join(b">%d\n%s\n" % (i, os.urandom(30).hex().encode()) for i in range(9_999)))[:-9]
    )
    with pytest.raises(FastaError, match=r"cut.fasta.gz is truncated .*, after 9,\d+ records"):
        list(read_records(path))


def test_what_is_no_file_is_refused(tmp_path):
    for name, told in {"absent": "does not exist", ".": "is a folder", os.devnull: "not a regular file"}.items():
        with pytest.raises(FastaError, match=told):
            list(read_records(tmp_path / name))
    with pytest.raises(FastaError, match=r"cannot be read: .*too long"):
        list(read_records(tmp_path / ("n" * 300)))


def test_an_unreadable_file_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "mine.fasta"
    path.write_text(">a\nMK\n")

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(FastaError, match=r"mine.fasta cannot be read: .*Permission denied"):
        list(read_records(path))


def test_headers_may_be_of_any_bytes_in_any_locale(tmp_path):
    path = tmp_path / "named.fasta"
    path.write_bytes(b"\xef\xbb\xbf" + ">β1 of\nMK\n".encode() + b">b by M\xfcller\nMK\n")
    program = (
        "import sys; from pathlib import Path; from hf_perturb.embedding.fasta import read_records\n"
        "print(ascii([record.id for record in read_records(Path(sys.argv[1]))]))"
    )
    for locale in ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"PYTHONUTF8": "1"}):
        command = [sys.executable, "-c", program, str(path)]
        told = subprocess.run(command, env={**os.environ, **locale}, capture_output=True, text=True, check=True).stdout
        assert told.strip() == r"['\u03b21', 'b']"


def test_without_dnaio(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dnaio", None)
    (tmp_path / "a.fasta").write_text(">a\nMK\n")
    with pytest.raises(FastaError, match=r"pip install 'hf-perturb\[embed\]'"):
        list(read_records(tmp_path / "a.fasta"))


def test_standard_input_is_spooled(monkeypatch):
    content = gzip.compress(b">a\nMK\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    with file_of("-") as spooled:
        assert spooled.read_bytes() == content
        assert list(read_records(spooled)) == [Record(0, "a", "MK")]
    assert not spooled.exists()


@pytest.mark.parametrize(
    "stdin", [None, SimpleNamespace(closed=False, isatty=lambda: True), SimpleNamespace(closed=True)]
)
def test_a_terminal_is_not_waited_for(tmp_path, monkeypatch, stdin):
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(FastaError, match="pipe a FASTA in, or name a file"), file_of("-"):
        pass
    assert os.listdir(tmp_path) == []
