"""One folder of embeddings: open it, embed what is missing, declare it complete."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hf_perturb.embedding.batches import Encoder, Unit, batches, units_of
from hf_perturb.embedding.choices import Choices
from hf_perturb.embedding.devices import exact_products
from hf_perturb.embedding.fasta import Record
from hf_perturb.embedding.manifest import EMBEDDED, Manifest, Schema, Shard
from hf_perturb.embedding.networks import Network
from hf_perturb.embedding.pooling import embed_batch
from hf_perturb.embedding.ranks import Ranks, split
from hf_perturb.embedding.store import Store, open_store, store_lock
from hf_perturb.embedding.survey import Survey, iterate_shards
from hf_perturb.errors import EmbeddingsError

# called with the residues that are done and those that this process has to do
Progress = Callable[[int, int], object]

# on a core, ESM-2 and CARP are as fast with 1,024 to 8,192, within a tenth
_TOKENS_ON_CPU = 4_096
_TOKENS_ELSEWHERE = 32_768
_LATE = 90.0  # seconds until a node sees what another has written to a shared disk


@dataclass(frozen=True)
class Embeddings:
    """What a run left behind.

    Args:
        path: the folder.
        columns: names of those with vectors.
        records: rows, one for each record of the FASTA.
        residues: how many the records have.
        fingerprint: digest of what decides the embeddings: weights, FASTA and options.
        computed: residues that this run had to do; 0 if the folder was complete.
        findings: what was odd in the FASTA, by kind: `records` and the `first` of them.
        notes: the same in words.
    """

    path: Path
    columns: tuple[str, ...]
    records: int
    residues: int
    fingerprint: str
    computed: int
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the same as JSON has it."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return values | {"path": str(self.path), "columns": list(self.columns), "notes": list(self.notes)}


@dataclass(frozen=True)
class Work:
    """What one folder takes.

    Args:
        out: the folder.
        fasta: the file.
        stamp: size and time of it, as they were when it was opened.
        called: how the user calls it.
        found: what is known of it.
        network: that embeds.
        weights: digest of what it has before it is perturbed.
        choices: what is kept.
        dtype: of weights and arithmetic.
        device: where to.
        ranks: the processes that share it.
    """

    out: Path
    fasta: Path
    stamp: tuple[int, int]
    called: str
    found: Survey
    network: Network
    weights: str
    choices: Choices
    dtype: torch.dtype
    device: str
    ranks: Ranks

    def run(self, tokens: int | None, force: bool, progress: Progress | None) -> Embeddings:
        """Do it, or what is left of it.

        Args:
            tokens: most tokens of a batch, `None` for what suits the device.
            force: begin again in a folder of other embeddings.
            progress: called with the residues that are done and those that this process has to do.
        """
        with ExitStack() as held:

            def begin() -> tuple[Manifest, list[Shard]]:
                held.enter_context(store_lock(self.out))
                store = open_store(self.out, self.inputs(), self.described(), self.found.shards, self.schema(), force)
                return store.manifest, [] if store.complete else store.missing()

            # what is left is settled once, before anybody writes; and told, as another node may see the folder late
            manifest, left = self.ranks.together(begin, first_only=True)
            store = Store(self.out, manifest)
            mine = split(left, self.ranks.size)[self.ranks.rank]
            if mine:  # who fails here says so at once, whatever the others still have to do
                self._write(store, mine, tokens, progress)
            self.ranks.wait()
            if not store.complete:
                self.ranks.together(lambda: self._finish(store), first_only=True)
        return Embeddings(
            path=self.out,
            columns=(*self.schema().vectors, *self.schema().residues),
            records=self.found.records,
            residues=self.found.residues,
            fingerprint=store.manifest.fingerprint,
            computed=sum(shard.residues for shard in left),
            findings=self.found.findings.to_dict(),
            notes=tuple(self.found.findings.lines()),
        )

    def inputs(self) -> dict[str, Any]:
        """Return what decides the embeddings, as JSON."""
        dtype = str(self.dtype).removeprefix("torch.")
        asked = self.network.perturbation
        model = {"weights": self.weights, "perturbation": None if asked is None else asked.to_dict()}
        return {"model": model, "fasta": self.found.digest, "dtype": dtype, **self.choices.to_dict()}

    def described(self) -> dict[str, Any]:
        """Return what is said of them besides, as JSON."""
        versions = {name: version(name) for name in ("hf-perturb", "torch", "transformers")}
        fasta = {"name": Path(self.called).name, "records": self.found.records, "residues": self.found.residues}
        return {"model": self.network.described(), "fasta": fasta, "versions": versions}

    def schema(self) -> Schema:
        """Return the columns."""
        width = self.network.config.hidden_size
        vectors = {name: width for name, _, _ in self.choices.vectors}
        residues = {name: width for name, _ in self.choices.residues}
        return Schema(self.choices.integers, vectors, residues, nullable="empty" in self.found.findings.to_dict())

    def _finish(self, store: Store) -> None:
        # one process by itself sees what it wrote, and `finish` looks anyway
        until = time.monotonic() + _LATE
        while self.ranks.size > 1 and time.monotonic() < until and store.missing():
            time.sleep(1)
        store.finish({"findings": self.found.findings.to_dict()})

    def _write(self, store: Store, shards: Sequence[Shard], tokens: int | None, progress: Progress | None) -> None:
        encoder = Encoder(self.network.config)
        done, total = 0, sum(shard.residues for shard in shards)
        advance = progress or (lambda done, total: None)
        with self.network.loaded(self.dtype, self.device) as model, exact_products():
            advance(0, total)
            budget = tokens or (_TOKENS_ON_CPU if model.device.type == "cpu" else _TOKENS_ELSEWHERE)
            for shard, records in iterate_shards(self.fasta, shards, self.stamp):
                units = units_of(records, self.choices)
                columns = self._blank(records, units)
                for batch in batches(units, budget, encoder.special):
                    self._fill(columns, records, batch, embed_batch(model, batch, encoder, self.choices, budget))
                    done += sum(len(unit.sequence) * len(unit.rows) for unit in batch)
                    advance(done, total)
                store.write(shard, columns)

    def _fill(
        self, columns: dict[str, Any], records: Sequence[Record], batch: Sequence[Unit], found: dict[str, list[Any]]
    ) -> None:
        """Put what was found for a batch where it belongs, and refuse what is no number."""
        import numpy as np

        for name, values in found.items():
            for unit, value in zip(batch, values, strict=True):
                if not np.isfinite(value).all():
                    half = self.dtype.itemsize < 4
                    why = f", or this is too much for {self.dtype}: try --dtype float32" if half else ""
                    record = records[unit.rows[0]].name
                    raise EmbeddingsError(f"record {record!r}: {name} is NaN or infinite; so are weights{why}")
                for row in unit.rows:
                    columns[name][row] = value

    def _blank(self, records: Sequence[Record], units: Sequence[Unit]) -> dict[str, Any]:
        """Return the columns of a shard before its vectors are known."""
        import numpy as np

        schema = self.schema()
        lengths = np.array([len(record.sequence) for record in records], np.int32)
        columns: dict[str, Any] = {"id": [record.id for record in records], "length": lengths}
        if EMBEDDED in schema.integers:
            columns[EMBEDDED] = np.minimum(lengths, self.choices.limit or 0).astype(np.int32)
        if "windows" in schema.integers:
            columns["windows"] = np.zeros(len(records), np.int32)
            for unit in units:
                columns["windows"][unit.rows] = len(unit.windows)
        for name, width in schema.vectors.items():
            columns[name] = np.zeros((len(records), width), np.float32)
        for name, width in schema.residues.items():
            columns[name] = [np.zeros((0, width), np.float32)] * len(records)
        return columns
