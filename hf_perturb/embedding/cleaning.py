"""Sequences as people write them become residues; what that took is counted and told."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass, field
from typing import Any

_SENTENCES = {
    "lower_case": "had lower-case letters, read as upper case",
    "stops_at_end": "had stops (*) at the end, removed",
    "stops_inside": "had stops (*) inside, read as X",
    "gaps": "had gaps (- or .), removed",
    "non_letters": "had characters that are not letters, read as X",
    "empty": "had no residues, and get a row without vectors",
    "without_id": "had no id, and keep an empty one",
    "repeated_ids": "had the id of an earlier record, and keep a row each",
    "repeated_sequences": "had the sequence of an earlier record, computed once per shard",
}

_CLEAN = re.compile("[A-Z]*")
_LOWER = re.compile("[a-z]")
_OTHER = re.compile(r"[^A-Za-z*.\s-]")
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
        found: kind (a key of `_SENTENCES`) -> how many records, and the name of the first of them.
    """

    found: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, kind: str, name: str, records: int = 1) -> None:
        """Count records of a kind; `name` is kept if it is the first."""
        before, first = self.found.get(kind, (0, name))
        self.found[kind] = before + records, first

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return kind -> {"records": how many, "first": name} of what was met, ready for JSON."""
        return {
            kind: {"records": self.found[kind][0], "first": self.found[kind][1]}
            for kind in _SENTENCES
            if kind in self.found
        }

    def lines(self) -> list[str]:
        """Return a sentence for each kind that was met."""
        return [
            f"{count['records']:,} record{'' if count['records'] == 1 else 's'} {_SENTENCES[kind]}"
            f" (first: {count['first']!r})"
            for kind, count in self.to_dict().items()
        ]


def clean(raw: str) -> str:
    """Return the residues of a sequence as it is written: nothing but A-Z, in upper case.

    White space, gaps (`-`, `.`) and stops (`*`) at the end are removed; stops inside and what else is no ASCII letter
    become X.
    """
    if _CLEAN.fullmatch(raw):
        return raw
    return _without_blanks(raw).rstrip("*").translate(_RESIDUES)


def kinds_of(raw: str) -> list[str]:
    """Return what `clean` changes in a sequence, white space aside."""
    body = _without_blanks(raw)
    trimmed = body.rstrip("*")
    met = {
        "lower_case": _LOWER.search(raw),
        "stops_at_end": len(trimmed) < len(body),
        "stops_inside": "*" in trimmed,
        "gaps": "-" in raw or "." in raw,
        "non_letters": _OTHER.search(raw),
    }
    return [kind for kind, value in met.items() if value]


def _without_blanks(raw: str) -> str:
    return "".join(raw.split()).translate(_WITHOUT_GAPS)
