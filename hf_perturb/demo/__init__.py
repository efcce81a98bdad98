"""The demo base: a small CARP that was really trained, with sequences that it has not seen.

`folder()` is what the command line calls `demo`; the card in that folder says what it is and is not.
"""

from __future__ import annotations

import gzip
from pathlib import Path

NAME = "demo"


def folder() -> Path:
    """Return the folder of the demo base: config, weights, tokenizer and card."""
    return Path(__file__).parent / "carp_demo"


def located(name: str) -> str:
    """Return the folder or Hub id that a name means to the tools: `demo` is a folder of the package."""
    return str(folder()) if name == NAME else name


def held_out_sequences() -> list[str]:
    """Return the 200 UniProtKB sequences that the demo base was not trained on."""
    return [sequence for _, sequence in read_fasta(Path(__file__).parent / "held_out.fasta.gz")]


def read_fasta(path: Path) -> list[tuple[str, str]]:
    """Read a gzipped FASTA file into (header, sequence) pairs."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        # a header may hold a ">" of its own, so only one that begins a line begins a record
        records = ("\n" + stream.read()).split("\n>")[1:]
    pairs = (record.split("\n", 1) for record in records)
    return [(header, "".join(body.split())) for header, body in pairs]
