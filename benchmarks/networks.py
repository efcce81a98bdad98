"""The networks that `benchmark forward` and `embed` run, and the sequences they run on. Standard library only."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple


class Network(NamedTuple):
    """A network to measure.

    Args:
        family: `esm` or `carp`.
        parameters: how many it has, about.
        sizes: keywords of its configuration.
        layers: how many layers are run if nobody asks for another number; `None` for all of them.
    """

    family: str
    parameters: float
    sizes: dict[str, Any]
    layers: int | None = None


def _esm(parameters: float, version: str, layers: int, width: int, heads: int) -> Network:
    keys = ("model_version", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    return Network("esm", parameters, dict(zip(keys, (version, layers, width, heads, 4 * width), strict=True)))


def _carp(parameters: float, layers: int, width: int, slim: bool, run: int | None = None) -> Network:
    return Network("carp", parameters, {"num_hidden_layers": layers, "hidden_size": width, "slim": slim}, run)


# by the name of their size; those that begin with `tiny` are for tests, and no help lists them
NETWORKS = {
    "8M": _esm(8e6, "ESM-2", 6, 320, 20),
    "85M": _esm(86e6, "ESM-1b", 12, 768, 12),
    "650M": _esm(652e6, "ESM-1b", 33, 1280, 20),
    "600k": _carp(0.6e6, 16, 128, True),
    "38M": _carp(38e6, 16, 1024, True),
    "640M": _carp(643e6, 56, 1280, False, 8),  # one cycle of dilations, 1 to 128
    "tiny-esm": _esm(1e5, "ESM-1b", 2, 32, 2),
    "tiny-carp": _carp(1e5, 8, 32, True),
}
SHOWN = [size for size in NETWORKS if not size.startswith("tiny")]
# what the package ships: sequences of UniProt
FASTA = Path(__file__).parent.parent / "hf_perturb" / "demo" / "held_out.fasta.gz"
# what ESM-1b takes, and where fair-esm's extract.py truncates
LONGEST = 1022


def read_fasta(path: Path) -> list[tuple[str, str]]:
    """Return id and sequence of every record of a FASTA, plain or packed with gzip."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        records = file.read().split(">")[1:]
    lines = (record.splitlines() for record in records)
    return [(header.split()[0], "".join(rest).replace(" ", "").upper()) for header, *rest in lines]


def choose(path: Path, count: int) -> list[tuple[str, str]]:
    """Return the first sequences of a FASTA that every network takes whole.

    Raises:
        SystemExit: if there are fewer than `count`.
    """
    fitting = [(name, sequence) for name, sequence in read_fasta(path) if 0 < len(sequence) <= LONGEST]
    if len(fitting) < count:
        raise SystemExit(
            f"benchmark: {path} has {len(fitting)} sequences of at most {LONGEST} residues, fewer than --sequences"
        )
    return fitting[:count]


def write_fasta(records: Iterable[tuple[str, str]], path: Path) -> Path:
    """Write records as plain FASTA, which is all that the originals read."""
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in records), encoding="utf-8")
    return path


def with_padding(records: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return a few of the sequences, of different lengths, so that a batch of them has padding."""
    ordered = sorted(records, key=lambda record: len(record[1]))
    few = [ordered[place * len(ordered) // 4] for place in range(4)]
    name, longest = few[-1]
    # whatever the lengths are
    return [*dict(few).items(), (f"{name}-half", longest[: (len(longest) + 1) // 2])]
