"""One look at a whole FASTA: how much there is, what is odd in it, and how it is cut into shards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from hf_perturb.embedding.fasta import Findings, Record, read_records, stamp_of
from hf_perturb.embedding.manifest import Shard
from hf_perturb.errors import FastaError

# a small FASTA is cut into about as many shards, so that several processes have something to do,
SHARDS = 128
# but not into shards that a device is done with at once
LEAST_RESIDUES = 16_384


@dataclass(frozen=True, slots=True)
class ShardLimits:
    """What a shard holds at most, and so what is in memory; a single record that is larger is a shard by itself."""

    records: int = 65_536
    residues: int = 262_144
    bytes: int = 128 * 2**20  # of output
    record_bytes: int = 0  # of output that each record costs
    residue_bytes: int = 0  # of output that each of its residues costs besides

    def in_force(self, total: int) -> ShardLimits:
        """Return the limits for a FASTA of `total` residues: residues are clamp(total / 128, 16384, as they were)."""
        return replace(self, residues=min(self.residues, max(LEAST_RESIDUES, total // SHARDS)))


@dataclass(frozen=True, slots=True)
class Survey:
    """What is known of a FASTA once it was read."""

    records: int
    residues: int  # cleaned
    longest: int  # residues of its longest record, the first of them if there are several
    longest_name: str
    digest: str  # of a line "id<tab>sequence" per cleaned record; packing and line widths don't count
    findings: Findings
    shards: tuple[Shard, ...]  # consecutive, together all of it; they depend on the records and the limits alone


def survey(
    path: Path,
    limits: ShardLimits,
    tokens: Iterable[str] = (),
    look: Callable[[Record, Findings], object] = lambda record, findings: None,
    kept: Callable[[Record], int] = lambda record: len(record.sequence),
) -> Survey:
    """Read a FASTA once; memory does not grow with it, but for the plan.

    Args:
        path: the FASTA.
        limits: of a shard.
        tokens: that may be spelt out; see `read_records`.
        look: called with each record, and what is told of the others.
        kept: residues of a record that cost `residue_bytes`.

    Raises:
        FastaError: as `read_records` does.
    """
    findings, digest = Findings(), hashlib.sha256()
    total, longest, longest_name = 0, -1, ""

    def sizes() -> Iterator[tuple[int, int, int]]:
        nonlocal total, longest, longest_name
        for record in read_records(path, findings, tokens):
            look(record, findings)
            length = len(record.sequence)
            digest.update(_line(record.id, record.sequence))
            total += length
            if length > longest:
                longest, longest_name = length, record.name
            yield 1, length, limits.record_bytes + kept(record) * limits.residue_bytes

    # the limit in force is known at the end: pieces that fit any are cut now, and joined then
    pieces = list(_join(sizes(), limits.in_force(0)))
    shards, first = [], 0
    for number, (records, residues, _) in enumerate(_join(pieces, limits.in_force(total))):
        shards.append(Shard(number, first, records, residues))
        first += records
    return Survey(first, total, longest, longest_name, f"sha256:{digest.hexdigest()}", findings, tuple(shards))


def _line(name: str, sequence: str) -> bytes:
    return f"{name}\t{sequence}\n".encode()


def digest_of(ids: Iterable[str], sequences: Iterable[str]) -> str:
    """Return the digest of a FASTA of these records, as a survey has it."""
    digest = hashlib.sha256()
    for name, sequence in zip(ids, sequences, strict=True):
        digest.update(_line(name, sequence))
    return f"sha256:{digest.hexdigest()}"


def iterate_shards(
    path: Path, shards: Sequence[Shard], stamp: tuple[int, int] | None = None, tokens: Iterable[str] = ()
) -> Iterator[tuple[Shard, list[Record]]]:
    """Read the records of some shards, in ascending order, in one pass that ends with the last of them.

    Raises:
        FastaError: as `read_records` does; if the file is not the one that was surveyed any more, or has another stamp.
    """
    read = 0
    with closing(read_records(path, None, tokens)) as records:
        for shard in shards:
            skipped = shard.first - read
            held = list(islice(records, skipped, skipped + shard.records))
            read = shard.first + shard.records
            residues = sum(len(record.sequence) for record in held)
            if (len(held), residues) != (shard.records, shard.residues):
                raise FastaError(
                    f"{path} changed while it was read: {shard.records:,} records from record {shard.first + 1:,} on "
                    f"had {shard.residues:,} residues, now {len(held):,} have {residues:,}; start again with a file "
                    "that stays as it is"
                )
            if stamp not in (None, stamp_of(path)):
                raise FastaError(f"{path} changed while it was read; start again with a file that stays as it is")
            yield shard, held


def _join(parts: Iterable[tuple[int, int, int]], limits: ShardLimits) -> Iterator[tuple[int, int, int]]:
    """Join neighbours, each (records, residues, bytes of output), for as long as the limits allow."""
    records = residues = size = 0
    for part in parts:
        more = records + part[0], residues + part[1], size + part[2]
        if records and (more[0] > limits.records or more[1] > limits.residues or more[2] > limits.bytes):
            yield records, residues, size
            more = part
        records, residues, size = more
    if records:
        yield records, residues, size
