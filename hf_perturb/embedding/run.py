"""FASTA to folders of embeddings, with one network or with variants of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.embedding.batches import Unit, batches, embed_batch, units_of
from hf_perturb.embedding.fasta import Record, file_of, stamp_of
from hf_perturb.embedding.manifest import EMBEDDED, KEPT, MANIFEST, Manifest, Schema, Shard
from hf_perturb.embedding.model import Embedder, choose_device, choose_dtype, open_embedder, tokens_at_once
from hf_perturb.embedding.options import Choices, EmbedOptions, with_options
from hf_perturb.embedding.ranks import Ranks, find_ranks, split
from hf_perturb.embedding.store import Store, open_store, refuse_foreign, store_lock
from hf_perturb.embedding.survey import ShardLimits, Survey, iterate_shards, survey
from hf_perturb.embedding.threads import side_by_side, workers_for
from hf_perturb.errors import EmbeddingsError, FastaError, FolderExistsError, ModelInputError, PerturbationError
from hf_perturb.perturbation import Perturbation
from hf_perturb.variants.matrix import folder_name

if TYPE_CHECKING:
    from hf_perturb.networks.perturbable import PerturbablePreTrainedModel

BASE = "base"  # the folder of what is not perturbed, beside those of its variants
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
        return {**asdict(self), "path": str(self.path), "columns": list(self.columns), "notes": list(self.notes)}


@with_options
def embed(
    model: str | Path | PerturbablePreTrainedModel,
    fasta: str | Path,
    out: str | Path,
    *,
    perturbation: Perturbation | Mapping[str, Any] | str | None = None,
    **options: Any,
) -> Embeddings:
    """Embed the sequences of a FASTA, to a folder of Parquet; an interrupted run is continued by the same call.

    Started by `torchrun` or `accelerate launch` on several processes, each embeds its share of the residues.

    Args:
        model: a folder, a Hub id, an original `.pt`, `demo`, or a model of this package or of Transformers.
        fasta: the FASTA, plain or packed with gzip; `-` for standard input.
        out: the folder; `read_embeddings` reads it, and so does whatever reads Parquet.
        perturbation: what to do to the weights first; see `Perturbation`.
        **options: those listed at the end.

    Raises:
        FastaError: a `ValueError`: if the FASTA cannot be read, or has records that the network cannot take.
        ModelInputError: a `ValueError`: if an option has a value that is not allowed.
        EmbeddingsError: an `OSError`: if `out` holds other embeddings, or cannot be written.
        CheckpointError: an `OSError`: if the model cannot be read.
        TypeError: if there is no such option.
    """
    asked, folder = EmbedOptions(**options), _path("out", out)
    wanted = {folder: None if perturbation is None else Perturbation.parse(perturbation)}
    return _embed_all(model, fasta, wanted, asked)[folder]


@with_options
def embed_variants(
    base: str | Path,
    fasta: str | Path,
    out: str | Path,
    perturbations: Iterable[Perturbation | Mapping[str, Any] | str] | Perturbation | Mapping[str, Any] | str,
    **options: Any,
) -> dict[str, Embeddings]:
    """Embed the sequences of a FASTA with a base and with variants of it, which are made in memory.

    Args:
        base: a folder, a Hub id, an original `.pt`, or `demo`.
        fasta: as for `embed`.
        out: a folder of folders: `base`, and one for each variant, named as `hf-perturb create` names them.
        perturbations: what to do to the base, each a `Perturbation`, its dict, or a method name; or one of them.
        **options: those listed at the end.

    Returns:
        What was written, by the name of the folder, the base first.

    Raises:
        PerturbationError: a `ValueError`: if a perturbation cannot be applied to this base, or comes twice.
        HfPerturbError: for what `embed` raises.
        TypeError: if there is no such option.
    """
    asked, parent = EmbedOptions(**options), _path("out", out)
    if (parent / MANIFEST).exists():
        raise FolderExistsError(f"{out} holds embeddings, and is no folder of such folders; choose another")
    wanted = {parent / name: perturbation for name, perturbation in networks_by_name(perturbations).items()}
    return {path.name: done for path, done in _embed_all(base, fasta, wanted, asked).items()}


def networks_by_name(
    perturbations: Iterable[Perturbation | Mapping[str, Any] | str] | Perturbation | Mapping[str, Any] | str,
) -> dict[str, Perturbation | None]:
    """Return a base and what is done to it for its variants, by what each is called.

    Raises:
        PerturbationError: if one is none, or two are called the same.
    """
    named: dict[str, Perturbation | None] = {BASE: None}
    listed = [perturbations] if isinstance(perturbations, (str, Mapping, Perturbation)) else perturbations
    for perturbation in map(Perturbation.parse, listed):
        name = folder_name(perturbation)
        if name in named:
            raise PerturbationError(f"two variants would be called {name}; take them in two calls")
        named[name] = perturbation
    return named


def _path(what: str, given: str | Path) -> Path:
    if not isinstance(given, (str, Path)):
        raise ModelInputError(f"{what}: got a {type(given).__name__}; allowed: the path of a file or folder")
    return Path(given)


def _embed_all(
    model: str | Path | PerturbablePreTrainedModel,
    fasta: str | Path,
    wanted: Mapping[Path, Perturbation | None],
    options: EmbedOptions,
) -> dict[Path, Embeddings]:
    """Embed a FASTA with a network, and with variants of it, each to a folder."""
    ranks = find_ranks(options.device == "cpu")

    def prepare() -> tuple[dict[Path, Embedder], Choices, torch.dtype, str]:
        """Check all that can be checked before the FASTA is read."""
        _path("fasta", fasta)
        if ranks.size > 1 and str(fasta) == "-":
            raise FastaError("fasta: got '-' on several processes, and only one has a standard input; name a file")
        asked = [perturbation for perturbation in wanted.values() if perturbation is not None]
        network = open_embedder(model, options, asked)
        each = {out: network.perturbed(perturbation) for out, perturbation in wanted.items()}
        choices = options.choices(network.encoder)
        return each, choices, choose_dtype(options.dtype, network), choose_device(options.device, network, ranks.device)

    embedders, choices, dtype, device = ranks.together(prepare)
    [network, *_] = embedders.values()
    encoder = network.encoder
    width = encoder.width
    # bytes of a record and of a residue, whose vectors are of float32
    record, residue = 64 + 4 * width * len(choices.vectors), 1 + 4 * width * len(choices.residues)
    with file_of(fasta) as path:
        stamp = ranks.together(lambda: stamp_of(path))

        def look() -> tuple[Survey, str]:
            for out in wanted:
                refuse_foreign(out)
            limits = ShardLimits(record_bytes=record, residue_bytes=residue)
            found = survey(path, limits, encoder.spelt, encoder.look, choices.kept_of)
            choices.refuse_long(found.longest, found.longest_name)
            if choices.kept is not None:
                choices.kept.refuse_count(found.records)
            return found, network.digest()

        found, weights = ranks.together(look, first_only=True)
        schema = choices.schema(width, nullable="empty" in found.findings.found)
        run = _Run(options, choices, dtype, device, ranks, path, stamp, str(fasta), found, weights, schema)
        return {out: run.embed(out, embedder) for out, embedder in embedders.items()}


@dataclass(frozen=True)
class _Run:
    """One FASTA and what is made of it, in one folder or several."""

    options: EmbedOptions
    choices: Choices  # what the options mean for this network
    dtype: torch.dtype
    device: str
    ranks: Ranks
    fasta: Path
    stamp: tuple[int, int]  # of the FASTA, when it was opened
    called: str  # as the user calls it
    found: Survey
    weights: str  # digest of what the network has before it is perturbed
    schema: Schema

    def embed(self, out: Path, embedder: Embedder) -> Embeddings:
        """Fill one folder: open it, embed what is missing, declare it complete."""
        inputs, described = self._inputs(embedder), self._described(embedder)
        with ExitStack() as held:

            def begin() -> tuple[Manifest, list[Shard]]:
                held.enter_context(store_lock(out))
                store = open_store(out, inputs, described, self.found.shards, self.schema, self.options.force)
                return store.manifest, [] if store.complete else store.missing()

            # what is left is settled once, before anybody writes; and told, as another node may see the folder late
            manifest, left = self.ranks.together(begin, first_only=True)
            store = Store(out, manifest)
            mine = split(left, self.ranks.size)[self.ranks.rank]
            if mine:  # who fails here says so at once, whatever the others still have to do
                self._write(store, mine, embedder)
            self.ranks.gather(None)
            if not store.complete:
                self.ranks.together(lambda: self._finish(store), first_only=True)
        return Embeddings(
            path=out,
            columns=(*self.schema.vectors, *self.schema.residues),
            records=self.found.records,
            residues=self.found.residues,
            fingerprint=manifest.fingerprint,
            computed=sum(shard.residues for shard in left),
            findings=self.found.findings.to_dict(),
            notes=(*embedder.encoder.notes, *self.found.findings.lines()),
        )

    def _inputs(self, embedder: Embedder) -> dict[str, Any]:
        """Return what decides the embeddings, as JSON."""
        dtype = str(self.dtype).removeprefix("torch.")
        asked = embedder.perturbation
        model = {"weights": self.weights, "perturbation": None if asked is None else asked.to_dict()}
        chosen = {**self.choices.to_dict(), **embedder.encoder.to_dict()}
        return {"model": model, "fasta": self.found.digest, "dtype": dtype, **chosen}

    def _described(self, embedder: Embedder) -> dict[str, Any]:
        """Return what is said of them besides, as JSON."""
        versions = {name: version(name) for name in ("hf-perturb", "torch", "transformers")}
        fasta = {"name": Path(self.called).name, "records": self.found.records, "residues": self.found.residues}
        return {"model": embedder.described(), "fasta": fasta, "versions": versions}

    def _finish(self, store: Store) -> None:
        # one process by itself sees what it wrote, and `finish` looks anyway
        until = time.monotonic() + _LATE
        while self.ranks.size > 1 and time.monotonic() < until and store.missing():
            time.sleep(1)
        store.finish({"findings": self.found.findings.to_dict()})

    def _write(self, store: Store, shards: Sequence[Shard], embedder: Embedder) -> None:
        """Embed the records of some shards, and write these."""
        encoder = embedder.encoder
        done, total = 0, sum(shard.residues for shard in shards)
        advance = self.options.progress or (lambda done, total: None)
        with embedder.loaded(self.dtype, self.device) as model:
            advance(0, total)
            budget = self.options.tokens or tokens_at_once(model)
            network, least = encoder.prepare(model, self.choices)

            def jobs() -> Iterator[tuple[Shard, list[Record], dict[str, Any], list[Unit]]]:
                for shard, records in iterate_shards(self.fasta, shards, self.stamp, encoder.spelt):
                    units, columns = units_of(records, self.choices, encoder), self._blank(records)
                    for batch in batches(units, budget, encoder.special, least):
                        yield shard, records, columns, batch
                    yield shard, records, columns, []  # it is done

            def found_for(job: tuple[Any, Any, Any, list[Unit]]) -> dict[str, list[Any]]:
                return embed_batch(network, job[-1], encoder, self.choices, budget) if job[-1] else {}

            workers = workers_for(model) if isinstance(embedder.source, Checkpoint) else 1
            with closing(side_by_side(found_for, jobs(), workers)) as results:
                for (shard, records, columns, batch), found in results:
                    if not batch:
                        store.write(shard, columns)
                        continue
                    self._fill(columns, records, batch, found)
                    done += sum(len(records[row].sequence) for unit in batch for row in unit.rows)
                    advance(done, total)

    def _fill(
        self, columns: dict[str, Any], records: Sequence[Record], batch: Sequence[Unit], found: dict[str, list[Any]]
    ) -> None:
        """Put what was found for a batch where it belongs.

        Raises:
            EmbeddingsError: if there is something that is no number.
        """
        import numpy as np

        rows = [row for unit in batch for row in unit.rows]
        for name, values in found.items():
            for row, value in zip(rows, values, strict=True):
                if not np.isfinite(value).all():
                    half = self.dtype.itemsize < 4
                    why = f", or this is too much for {self.dtype}: try --dtype float32" if half else ""
                    record = records[row].name
                    raise EmbeddingsError(f"record {record!r}: {name} is NaN or infinite; so are weights{why}")
                columns[name][row] = value

    def _blank(self, records: Sequence[Record]) -> dict[str, Any]:
        """Return the columns of a shard before its vectors are known."""
        import numpy as np

        schema = self.schema
        lengths = np.array([len(record.sequence) for record in records], np.int32)
        columns: dict[str, Any] = {"id": [record.id for record in records], "length": lengths}
        if EMBEDDED in schema.integers:
            columns[EMBEDDED] = np.array([self.choices.seen(length) for length in lengths.tolist()], np.int32)
        if "windows" in schema.integers:
            counts = [len(self.choices.windows(length)) if length else 0 for length in lengths.tolist()]
            columns["windows"] = np.array(counts, np.int32)
        if KEPT in schema.integers:
            columns[KEPT] = np.array([self.choices.kept_of(record) for record in records], np.int32)
        for name, width in schema.vectors.items():
            columns[name] = np.zeros((len(records), width), np.float32)
        for name, width in schema.residues.items():
            columns[name] = [np.zeros((0, width), np.float32)] * len(records)
        return columns
