"""Files of sequences and labels as tables: CSV and TSV as they are exported, Parquet, and FASTA by its headers."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from hf_perturb.embedding.fasta import raw_records
from hf_perturb.errors import FastaError, StudyError

_GZIP = b"\x1f\x8b"
_HEAD = 4096  # bytes that are looked at
_DELIMITERS = (",", "\t", ";")
_FASTA_ENDINGS = (".fasta", ".fa", ".faa", ".fas")
_REMEDY = "give a CSV, TSV, Parquet or FASTA file"
_OTHERS = {
    b"PK\x03\x04": "is a zip archive or a workbook; export the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "is a workbook; export the sheet as CSV",
    b"BZh": "is packed with bzip2; unpack it, or pack it with gzip",
    b"\xfd7zXZ": "is packed with xz; unpack it, or pack it with gzip",
    b"\x28\xb5\x2f\xfd": "is packed with zstd; unpack it, or pack it with gzip",
}
# KEY=value in a header; a value goes on to the next key, as those of UniProt do
_ATTRIBUTE = re.compile(r"(?:^|\s)(\w+)=(.*?)(?=\s+\w+=|$)")

# what a column is for -> what it may be called, the best name first
ROLES = {
    "id": ("id", "accession", "identifier", "protein_id", "seq_id", "sequence_id", "uniprot_id", "entry", "name"),
    "sequence": (
        *("sequence", "seq", "protein_sequence", "aa_sequence", "aa_seq", "amino_acid_sequence", "mutated_sequence"),
        *("protein", "primary", "sequences"),
    ),
    "target": (
        *("target", "label", "labels", "targets", "fitness", "score", "value", "y", "class", "measurement"),
        *("dms_score", "dms_score_bin"),
    ),
    "set": ("set", "split", "subset"),
    "validation": ("validation", "is_validation"),
    "cluster": ("cluster", "cluster_id"),
}
_KNOWN = {name for names in ROLES.values() for name in names}

# number of a row, and its fields, or what is wrong with it
Row: TypeAlias = "tuple[int, list[Any] | str]"


@dataclass(frozen=True)
class Table:
    """A file as rows of fields.

    Args:
        path: the file.
        kind: `text`, `parquet` or `fasta`.
        columns: names as they are written.
        unit: what its rows are counted by in messages: `line`, `row` or `record`.
        read: gives the rows, with the fields of these columns; that of `None` is `None`.
    """

    path: Path
    kind: str
    columns: tuple[str, ...]
    unit: str
    read: Callable[[Sequence[int | None]], Iterator[Row]]

    def matching(self, names: Sequence[str]) -> list[int]:
        """Return the columns that have one of these names, however they are written, in the order of the names."""
        keys = [_key(column) for column in self.columns]
        return [number for name in names for number, key in enumerate(keys) if key == name]

    def find(self, role: str, other: int | None = None) -> int | None:
        """Return the column of a role, if there is one beside that which is something `other`.

        Raises:
            StudyError: if there are several, and none has the best name.
        """
        found = [number for number in self.matching(ROLES[role]) if number != other]
        best = [number for number in self.matching(ROLES[role][:1]) if number != other]
        if len(found) > 1 and len(best) != 1 and (role != "id" or len(best) > 1):
            raise StudyError(
                f"{self.path} has several columns of a {role}: {self.shown(found)}; call the one that is meant"
                f" {role!r}, or rename the others"
            )
        return found[0] if found else None

    def shown(self, numbers: Sequence[int] | None = None) -> str:
        """Name columns, all of them if it is not said which."""
        names = self.columns if numbers is None else [self.columns[number] for number in numbers]
        text = ", ".join(repr(name[:40]) for name in names[:20])
        return f"{text} and {len(names) - 20} more" if len(names) > 20 else text or "none"


def open_table(path: Path) -> Table:
    """Open a file by what it holds, whatever it is called.

    Raises:
        StudyError: if it cannot be read, is none of what is read, or has no rows.
    """
    head = _head(path)
    begin = head.removeprefix(codecs.BOM_UTF8).lstrip()
    for magic, remedy in _OTHERS.items():
        if head.startswith(magic):
            raise StudyError(f"{path} {remedy}")
    if head.startswith(b"PAR1"):
        return _parquet(path)
    name = path.name.lower().removesuffix(".gz")
    if begin.startswith(b">") or (name.endswith(_FASTA_ENDINGS) and begin):
        return _fasta(path)
    if not begin:
        raise StudyError(f"{path} is empty; {_REMEDY}")
    return _text(path)


def _key(name: str) -> str:
    return re.sub(r"[\s\-.]+", "_", name.strip().lower())


def _head(path: Path) -> bytes:
    """Return how a file begins, unpacked."""
    if not path.is_file():  # a pipe could not be read twice
        kind = "is a folder" if path.is_dir() else "is not a regular file" if path.exists() else "does not exist"
        raise StudyError(f"{path} {kind}; {_REMEDY}")
    with _reading(path), ExitStack() as opened:
        return _unpacked(path, opened).peek(_HEAD)[:_HEAD]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say of which file an error is."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise StudyError(f"{path} is truncated or damaged gzip: {error}; fetch or pack it again") from error
    except OSError as error:
        raise StudyError(f"{path} cannot be read: {error.strerror or error}; {_REMEDY}") from error


def _unpacked(path: Path, opened: ExitStack) -> Any:
    file: Any = opened.enter_context(path.open("rb"))
    return opened.enter_context(gzip.open(file)) if file.peek(2).startswith(_GZIP) else file


# ---- CSV and TSV


def _lines(path: Path, opened: ExitStack) -> TextIO:
    """Open text in UTF-8, or in UTF-16 with its mark; ends of lines are left to `csv`."""
    file = _unpacked(path, opened)
    head = file.peek(_HEAD)[:_HEAD]
    wide = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if not wide and b"\0" in head:
        raise StudyError(f"{path} is binary, or UTF-16 without its mark; {_REMEDY}, in UTF-8")
    encoding = "utf-16" if wide else "utf-8-sig"
    return opened.enter_context(io.TextIOWrapper(file, encoding=encoding, errors="replace", newline=""))


def _text(path: Path) -> Table:
    with _reading(path), ExitStack() as opened:
        lines = (line for line in _lines(path, opened) if line.strip())
        first = next(lines, "")
        said = first.strip().lower().startswith("sep=")  # Excel's own word
        delimiter = first.strip()[4:5] or "\t" if said else _delimiter(path, first)
    rows = _text_rows(path, delimiter)
    skipped = [next(rows, None) for _ in range(1 + said)]
    rows.close()
    if skipped[-1] is None:
        raise StudyError(f"{path} is empty; {_REMEDY}")
    columns = tuple(name.strip() for name in skipped[-1][1])

    def read(wanted: Sequence[int | None]) -> Iterator[Row]:
        for number, (line, fields) in enumerate(_text_rows(path, delimiter)):
            if number <= said:
                continue
            if len(fields) != len(columns) and any(fields[len(columns) :] or ["short"]):
                yield line, f"has {len(fields)} fields, where the header has {len(columns)}"
            else:
                yield line, [None if column is None else fields[column] for column in wanted]

    return Table(path, "text", columns, "line", read)


def _delimiter(path: Path, header: str) -> str:
    """Return what divides the names of columns: what gives the most names that we know, else the most names."""

    def known(delimiter: str) -> tuple[int, int, bool]:
        fields = header.split(delimiter)
        names = sum(_key(field.strip().strip('"')) in _KNOWN for field in fields)
        likely = "\t" if path.name.lower().removesuffix(".gz").endswith((".tsv", ".tab")) else ","
        return names if len(fields) > 1 else 0, len(fields), delimiter == likely

    return max(_DELIMITERS, key=known)


def _text_rows(path: Path, delimiter: str) -> Any:
    """Give the line where each row begins, and its fields; rows without any text are left out."""
    with _reading(path), ExitStack() as opened:
        reader = csv.reader(_lines(path, opened), delimiter=delimiter, strict=True, skipinitialspace=True)
        begin = 1
        try:
            for fields in reader:
                if any(map(str.strip, fields)):
                    yield begin, fields
                begin = reader.line_num + 1
        except csv.Error as error:
            raise StudyError(
                f"{path}: line {begin}: {error}; a field with a quote in it is quoted itself, its quotes doubled"
            ) from error


# ---- Parquet


def _parquet(path: Path) -> Table:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise StudyError(f"{path}: reading Parquet needs pyarrow: pip install 'hf-perturb[study]'") from error
    try:
        with ParquetFile(path) as file:
            columns = tuple(file.schema_arrow.names)
    except (ArrowException, OSError) as error:
        raise StudyError(f"{path} is damaged Parquet: {error}; write it again") from error

    def read(wanted: Sequence[int | None]) -> Iterator[Row]:
        names = [None if column is None else columns[column] for column in wanted]
        number = 0
        try:
            with ParquetFile(path) as file:
                for batch in file.iter_batches(8192, columns=[name for name in names if name is not None]):
                    nothing = [None] * batch.num_rows
                    fields = [nothing if name is None else batch[name].to_pylist() for name in names]
                    for number, row in enumerate(zip(*fields, strict=True), number + 1):  # noqa: B020
                        yield number, list(row)
        except (ArrowException, OSError) as error:
            raise StudyError(f"{path} is damaged Parquet: {error}; write it again") from error

    return Table(path, "parquet", columns, "row", read)


# ---- FASTA


def _fasta(path: Path) -> Table:
    """Read a FASTA; its columns are id, sequence, and what its headers say by `KEY=value`."""
    records = []
    names: dict[str, None] = {}
    try:
        for header, raw in raw_records(path):
            name, *rest = header.split(maxsplit=1) or [""]
            said = {_key(key): value.strip() for key, value in _ATTRIBUTE.findall("".join(rest))}
            for key in said:
                if key not in ("id", "sequence"):
                    names.setdefault(key, None)
            records.append((name, raw, said))
    except FastaError as error:
        raise StudyError(str(error)) from error
    columns = ("id", "sequence", *names)

    def read(wanted: Sequence[int | None]) -> Iterator[Row]:
        for number, (name, raw, said) in enumerate(records, 1):
            own = {0: name, 1: raw}
            fields = [None if column is None else own.get(column, said.get(columns[column])) for column in wanted]
            yield number, fields

    return Table(path, "fasta", columns, "record", read)
