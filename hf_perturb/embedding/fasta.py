"""Records of a FASTA, one at a time, and their sequences as people write them made residues."""

from __future__ import annotations

import gzip
import re
import shutil
import stat
import string
import sys
import tempfile
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_perturb.errors import FastaError

_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_HEAD = 4096  # bytes that are looked at for what is no text
_UNDECODABLE = "\ufffd"
_REMEDY = "give a FASTA file, plain or packed with gzip"

# how files begin that are taken for a FASTA, and what to do with them
_OTHERS = {
    b"@": "is FASTQ; convert it, for instance with: seqtk seq -A",
    b"PAR1": "is Parquet; write its sequences as FASTA",
    b"BZh": "is packed with bzip2; unpack it, or pack it with gzip",
    b"\xfd7zXZ": "is packed with xz; unpack it, or pack it with gzip",
    b"\x28\xb5\x2f\xfd": "is packed with zstd; unpack it, or pack it with gzip",
    b"PK\x03\x04": "is a zip archive; unpack it",
}

# what is met in sequences -> what is said of it
_SENTENCES = {
    "lower_case": "had lower-case letters, read as upper case",
    "stops_at_end": "had stops (*) at the end, removed",
    "stops_inside": "had stops (*) inside, read as X",
    "gaps": "had gaps (- or .), removed",
    "tokens": "had tokens spelt out (as <mask>), read as these",
    "non_letters": "had characters that are not letters, read as X",
    "replaced": "had residues that were replaced, as asked for",
    "rare": "had U, Z, O or B, read as tokens of their own (ProtTrans reads them as X: --replace UZOB=X)",
    "empty": "had no residues, and get nothing that is computed",
    "without_id": "had no id, and keep an empty one",
}

_CLEAN = re.compile("[A-Z]*")
_LOWER = re.compile("[a-z]")
_OTHER = re.compile(r"[^A-Za-z*.\s-]")
_SPELT = re.compile("(<[^<>]*>|[<>])")
# where a network has tokens such as [MASK]
_SPELT_IN_BRACKETS = re.compile(r"(<[^<>]*>|\[[^\[\]]*\]|[<>\[\]])")
_WITHOUT_GAPS = str.maketrans("", "", "-.")


class _Residues(dict[int, str]):
    """Code points to residues, for `str.translate`."""

    def __missing__(self, point: int) -> str:
        return "X"


# `str.upper` would make two letters of some that are not ASCII
_RESIDUES = _Residues({ord(letter): letter.upper() for letter in string.ascii_letters})


@dataclass(slots=True)
class Findings:
    """What was met in a FASTA that its owner may not know of.

    Args:
        found: kind (a key of `_SENTENCES`) -> how many `records`, and the name of the `first` of them.
    """

    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        """Count a record of a kind; its name is kept if it is the first."""
        self.found.setdefault(kind, {"records": 0, "first": name})["records"] += 1

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return what was met, ready for JSON, in one order."""
        return {kind: dict(self.found[kind]) for kind in _SENTENCES if kind in self.found}

    def lines(self) -> list[str]:
        """Return a sentence for each kind that was met."""
        return [
            f"{count['records']:,} record{'' if count['records'] == 1 else 's'} {_SENTENCES[kind]}"
            f" (first: {count['first']!r})"
            for kind, count in self.to_dict().items()
        ]


@dataclass(frozen=True, slots=True)
class Record:
    """A sequence of a FASTA."""

    index: int  # place in the file, from 0
    id: str  # first word of the header; empty where there is none
    sequence: str  # residues, and tokens that were spelt out, as `clean` leaves them; may be empty

    @property
    def name(self) -> str:
        """What messages call it: its id, or its place (from 1) where it has none."""
        return self.id or f"record {self.index + 1}"


def stamp_of(path: Path) -> tuple[int, int]:
    """Return size and time of a FASTA, which tell whether it was changed.

    Raises:
        FastaError: if it is not there, or no regular file, which could not be read more than once.
    """
    try:
        found = path.stat()
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise FastaError(f"{path} {reason}; {_REMEDY}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        raise FastaError(f"{path} is {kind}; {_REMEDY}")
    return found.st_size, found.st_mtime_ns


def read_records(
    path: Path, findings: Findings | None = None, tokens: Iterable[str] = ()
) -> Generator[Record, None, None]:
    """Read a FASTA, plain or packed with gzip, a record at a time.

    Args:
        path: the FASTA.
        findings: is told what is met.
        tokens: that may be spelt out in a sequence (`<mask>`); the first becomes the character 1, the second 2.

    Raises:
        FastaError: if the file cannot be read, is damaged, is not FASTA, or has no sequences; if an id or a sequence
            is not text that it can be; if a sequence spells out another token; if `dnaio` is not installed.
    """
    findings = Findings() if findings is None else findings
    characters = {token: chr(number) for number, token in enumerate(tokens, 1)}
    for index, (header, raw) in enumerate(raw_records(path)):
        yield _record(path, index, header, raw, findings, characters)


def raw_records(path: Path) -> Generator[tuple[str, str], None, None]:
    """Read header and sequence of each record of a FASTA, as they are written but for the ends of lines.

    Raises:
        FastaError: if the file cannot be read, is damaged, is not FASTA, or has no sequences; if `dnaio` is not
            installed.
    """
    read = 0
    stamp_of(path)
    try:
        for record in _split(path):
            yield record
            read += 1
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FastaError(
            f"{path} is truncated or damaged gzip, after {read:,} records: {error}; fetch or pack it again"
        ) from error
    except OSError as error:
        raise FastaError(f"{path} cannot be read: {error}") from error
    if not read:
        raise FastaError(f"{path} has no sequences in it; a FASTA record is a line that begins with '>' and residues")


@contextmanager
def file_of(fasta: str | Path) -> Iterator[Path]:
    """Give a file that can be read twice: for `-`, one of what standard input holds, which is removed afterwards.

    Raises:
        FastaError: if standard input is closed, or a terminal, or cannot be kept.
    """
    if str(fasta) != "-":
        yield Path(fasta)
        return
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise FastaError("standard input has no FASTA: it is a terminal or closed; pipe a FASTA in, or name a file")
    with tempfile.TemporaryDirectory(prefix="hf_perturb-") as folder:
        path = Path(folder) / "standard-input.fasta"
        try:
            with path.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        except OSError as error:
            raise FastaError(f"standard input cannot be kept: {error}; set TMPDIR to a folder that has room") from error
        yield path


def _record(path: Path, index: int, header: str, raw: str, findings: Findings, tokens: Mapping[str, str]) -> Record:
    """Check and clean what a record is made of."""
    words = header.split(maxsplit=1)
    wrong: str | None = None
    try:
        sequence = clean(raw, tokens)
    except KeyError as error:
        sequence, wrong = "", error.args[0]
    record = Record(index, words[0] if words else "", sequence)
    if _UNDECODABLE in record.id:
        raise FastaError(f"{path}: the id of record {index + 1} is not UTF-8: {record.id!r}; convert it, as with iconv")
    if not raw.isascii():
        wrong = next(character for character in raw if not character.isascii())
        got = "bytes that are not UTF-8" if wrong == _UNDECODABLE else repr(wrong)
        raise FastaError(f"{path}: {_called(record)} has {got}; residues are ASCII letters")
    if wrong is not None:
        allowed = f"residues and {', '.join(tokens)}" if tokens else "residues"
        raise FastaError(
            f"{path}: {_called(record)} has {wrong[:30]!r}, which is no token of this network; allowed: {allowed}"
        )
    if raw != record.sequence:
        for kind in kinds_of(raw, tokens):
            findings.add(kind, record.name)
    if not record.sequence:
        findings.add("empty", record.name)
    if not record.id:
        findings.add("without_id", record.name)
    return record


def _called(record: Record) -> str:
    return f"the sequence of record {record.index + 1} ({record.name!r})"


def _split(path: Path) -> Iterator[tuple[str, str]]:
    """Give header and sequence of each record, as they are written but for the ends of lines."""
    try:
        import dnaio
    except ImportError as error:
        raise FastaError("reading FASTA needs dnaio: pip install 'hf-perturb[embed]'") from error

    def pair(header: str, sequence: str, _: None) -> tuple[str, str]:
        return header, sequence  # dnaio's own class refuses headers that are not ASCII

    with ExitStack() as opened:
        file: Any = opened.enter_context(path.open("rb"))
        if file.peek(2).startswith(_GZIP):
            file = opened.enter_context(gzip.open(file))
        _check_text(path, file)
        reader: Any = dnaio.FastaReader(file, sequence_class=pair)
        # it decodes as the locale says, and stops at what it cannot: a name in a description is no reason to
        reader._file.reconfigure(encoding="utf-8-sig", errors="replace")
        try:
            yield from reader
        except dnaio.FastaFormatError as error:
            raise FastaError(f"{path} is not FASTA: line {(error.line or 0) + 1}: {error.message}") from error


def _check_text(path: Path, file: Any) -> None:
    """Raise if a file is plainly something else; the reader sees to the rest."""
    head: bytes = file.peek(_HEAD)[:_HEAD]
    begin = head.removeprefix(_BOM).lstrip()
    for magic, remedy in _OTHERS.items():
        if begin.startswith(magic):
            raise FastaError(f"{path} is not FASTA: it {remedy}")
    if b"\0" in head:
        raise FastaError(f"{path} is not FASTA: it is binary, or UTF-16; give text in UTF-8, plain or packed with gzip")


def clean(raw: str, tokens: Mapping[str, str] | None = None) -> str:
    """Return the residues of a sequence as it is written: nothing but A-Z, in upper case.

    White space, gaps (`-`, `.`) and stops (`*`) at the end are removed; stops inside and what else is no ASCII letter
    become X. A token that is spelt out, `<...>`, and `[...]` where there are such, becomes the character that it has in
    `tokens`.

    Raises:
        KeyError: for a token that has none.
    """
    if _CLEAN.fullmatch(raw):
        return raw
    *parts, last = _spelt(raw, tokens or {})
    done = [
        (tokens or {})[part] if number % 2 else part.translate(_WITHOUT_GAPS).translate(_RESIDUES)
        for number, part in enumerate(parts)
    ]
    return "".join([*done, last.translate(_WITHOUT_GAPS).rstrip("*").translate(_RESIDUES)])


def kinds_of(raw: str, tokens: Mapping[str, str] | None = None) -> list[str]:
    """Return what `clean` changes in a sequence, white space aside."""
    parts = _spelt(raw, tokens or {})
    parts[1::2] = ["A"] * len(parts[1::2])
    written = "".join(parts)
    body = written.translate(_WITHOUT_GAPS)
    trimmed = body.rstrip("*")
    met = {
        "lower_case": _LOWER.search(written),
        "stops_at_end": len(trimmed) < len(body),
        "stops_inside": "*" in trimmed,
        "gaps": "-" in written or "." in written,
        "tokens": len(parts) > 1,
        "non_letters": _OTHER.search(written),
    }
    return [kind for kind, value in met.items() if value]


def _spelt(raw: str, tokens: Iterable[str]) -> list[str]:
    """Divide a sequence, without white space, into what is written by letters and, every other part, a token."""
    body = "".join(raw.split())
    if any(token.startswith("[") for token in tokens):
        return _SPELT_IN_BRACKETS.split(body)
    return _SPELT.split(body) if "<" in body or ">" in body else [body]
