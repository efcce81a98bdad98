"""One look at a whole FASTA: how much there is, what is odd in it, and how it is cut into shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from hf_perturb.embedding.fasta import Findings, Record, read_records
from hf_perturb.embedding.manifest import Shard
from hf_perturb.errors import FastaError

# a small FASTA is cut into about as many shards, so that several processes have something to do,
SHARDS = 128
# but not into shards that a device is done with at once
LEAST_RESIDUES = 16_384


@dataclass(frozen=True, slots=True)
class ShardLimits:
    """What a shard may hold; a single record that is larger is a shard by itself.

    Args:
        records: most records.
        residues: most residues.
        bytes: most bytes of output.
        record_bytes: bytes of output that each record costs.
        residue_bytes: bytes of output that each of its residues costs besides.
    """

    records: int
    residues: int
    bytes: int
    record_bytes: int = 0
    residue_bytes: int = 0

    def allow(self, records: int, residues: int) -> bool:
        """Whether so much fits into a shard."""
        size = records * self.record_bytes + residues * self.residue_bytes
        return records <= self.records and residues <= self.residues and size <= self.bytes

    def in_force(self, total: int) -> ShardLimits:
        """Return the limits for a FASTA of `total` residues: residues are clamp(total / 128, 16384, as they were)."""
        return replace(self, residues=min(self.residues, max(LEAST_RESIDUES, total // SHARDS)))


@dataclass(frozen=True, slots=True)
class Survey:
    """What is known of a FASTA once it was read.

    Args:
        records: how many it has.
        residues: how many they have, cleaned.
        longest: residues of its longest record.
        longest_name: what messages call that record, the first of them if there are several.
        digest: "sha256:<hex>" of a line "id<tab>sequence" per cleaned record; packing and line widths don't count.
        findings: what was met in it.
        shards: consecutive, together all of it. They depend on the records and the limits alone.
    """

    records: int
    residues: int
    longest: int
    longest_name: str
    digest: str
    findings: Findings
    shards: tuple[Shard, ...]


def survey(path: Path, limits: ShardLimits) -> Survey:
    """Read a FASTA once; memory does not grow with it, but for the plan.

    Args:
        path: the FASTA, plain or packed with gzip.
        limits: of each shard. That of the residues is lowered for a small FASTA: see `ShardLimits.in_force`.

    Raises:
        FastaError: as `read_records` does.
    """
    look = _Look()
    # the limit in force is known at the end: pieces that fit any are cut now, and joined then
    pieces = list(_join(look.sizes(path), limits.in_force(0)))
    shards, first = [], 0
    for number, (records, residues) in enumerate(_join(pieces, limits.in_force(look.residues))):
        shards.append(Shard(number, first, records, residues))
        first += records
    digest = f"sha256:{look.hash.hexdigest()}"
    return Survey(first, look.residues, look.longest, look.longest_name, digest, look.findings, tuple(shards))


def stamp_of(path: Path) -> tuple[int, int]:
    """Return size and time of a file, which tell whether it was changed.

    Raises:
        FastaError: if it is not there.
    """
    try:
        found = path.stat()
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise FastaError(f"{path} {reason}; give a FASTA file, plain or packed with gzip") from error
    return found.st_size, found.st_mtime_ns


def iterate_shards(
    path: Path, shards: Sequence[Shard], stamp: tuple[int, int] | None = None
) -> Iterator[tuple[Shard, list[Record]]]:
    """Read the records of some shards, one shard after another, in one pass that ends with the last of them.

    Args:
        path: the FASTA that was surveyed.
        shards: ascending; those between them are skipped.
        stamp: what `stamp_of` said when it was surveyed.

    Raises:
        FastaError: as `read_records` does; if the file is not the one that was surveyed any more.
    """
    with closing(read_records(path)) as records:
        for shard in shards:
            end = shard.first + shard.records
            held = []
            for record in records:
                if record.index >= shard.first:
                    held.append(record)
                if record.index + 1 >= end:
                    break
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


def _join(parts: Iterable[tuple[int, int]], limits: ShardLimits) -> Iterator[tuple[int, int]]:
    """Join neighbours, each (records, residues), for as long as the limits allow."""
    records = residues = 0
    for more_records, more_residues in parts:
        if records and not limits.allow(records + more_records, residues + more_residues):
            yield records, residues
            records = residues = 0
        records += more_records
        residues += more_residues
    if records:
        yield records, residues


@dataclass(slots=True)
class _Look:
    """What adds up while a FASTA is read."""

    residues: int = 0
    longest: int = -1
    longest_name: str = ""
    hash: hashlib._Hash = field(default_factory=hashlib.sha256)
    findings: Findings = field(default_factory=Findings)

    def sizes(self, path: Path) -> Iterator[tuple[int, int]]:
        """Read the records; give (1, residues) for each."""
        for record in read_records(path, self.findings):
            length = len(record.sequence)
            self.hash.update(f"{record.id}\t{record.sequence}\n".encode())
            self.residues += length
            if length > self.longest:
                self.longest, self.longest_name = length, record.name
            yield 1, length
