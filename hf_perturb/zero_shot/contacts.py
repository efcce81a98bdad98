"""Contact maps of a FASTA, by the attentions of a base and of its controls."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_perturb import loading
from hf_perturb.checkpoints.any_network import AnyNetwork
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.shapes import listed
from hf_perturb.embedding.any_encoder import trunk_of
from hf_perturb.embedding.batches import Unit, units_of
from hf_perturb.embedding.encoder import AlphabetEncoder, Encoder
from hf_perturb.embedding.fasta import Findings, Record, file_of, stamp_of
from hf_perturb.embedding.model import Embedder, choose_device, choose_dtype, memory_told
from hf_perturb.embedding.options import Choices, with_options
from hf_perturb.embedding.survey import ShardLimits, Survey, iterate_shards, survey
from hf_perturb.errors import EmbeddingsError, FastaError, FolderExistsError, UnsupportedModuleError
from hf_perturb.networks.modeling_fair_esm import FairEsmPreTrainedModel
from hf_perturb.perturbation import select
from hf_perturb.storage.folders import nothing_written
from hf_perturb.storage.pictures import import_matplotlib
from hf_perturb.zero_shot.contact_options import ContactOptions
from hf_perturb.zero_shot.contact_plot import draw_maps
from hf_perturb.zero_shot.maps import PLOTS, Maps, Protein, open_maps, read_map, refuse_foreign
from hf_perturb.zero_shot.networks import Asked, embedders_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# numbers of attention of all layers and heads at a time; a few such arrays are in memory at once
_CELLS_ON_CPU, _CELLS_ELSEWHERE = 2**25, 2**28
_HEAD = "contact_head."


@dataclass(frozen=True)
class Contacts:
    """The contact maps of one network.

    Args:
        path: the folder; `read_contacts` reads it.
        fingerprint: digest of what decides the maps: weights, FASTA and type.
        computed: maps that this run had to make; 0 if the folder was complete.
        records: how many maps there are, one for each record of the FASTA.
        residues: how many the records have.
        pictures: what was drawn of this network and the others of the call.
        findings: what was odd in the FASTA, by kind: `records` and the `first` of them.
        notes: the same in words, and what else should be known.
    """

    path: Path
    fingerprint: str
    computed: int
    records: int
    residues: int
    pictures: tuple[Path, ...] = ()
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the same as JSON has it."""
        return {**asdict(self), "path": str(self.path), "pictures": [*map(str, self.pictures)], "notes": [*self.notes]}


@partial(with_options, kind=ContactOptions)
def contacts(
    model: str | Path | PreTrainedModel,
    fasta: str | Path,
    out: str | Path,
    perturbations: Iterable[Asked] | Asked = (),
    **options: Any,
) -> dict[str, Contacts]:
    """Predict which residues of each protein touch, with a network and with variants of it, which are made in memory.

    An interrupted run is continued by the same call.

    Args:
        model: a folder, a Hub id, an original `.pt`, or a model of this package or of Transformers, which has a contact
            head: an ESM.
        fasta: plain or packed with gzip; `-` for standard input.
        out: a folder of folders: `base`, one for each variant, named as `hf-perturb create` names them, and `plots`.
            Each has a `.npy` a protein, float32 `(length, length)`, named by its place in the FASTA (`000001.npy`),
            and `index.json` with ids, lengths and digests.
        perturbations: what to do to the base, each a `Perturbation`, its dict, or a method name; or one of them.
        **options: those listed at the end.

    Returns:
        What was written, by the name of the folder, the model's own first.

    Raises:
        UnsupportedModuleError: a `TypeError`: if the network predicts no contacts, as CARP and ESM-1v.
        FastaError: a `ValueError`: if the FASTA cannot be read, or has records that the network cannot take.
        ModelInputError: a `ValueError`: if an option has a value that is not allowed.
        PerturbationError: a `ValueError`: if a perturbation cannot be applied to this base, or comes twice.
        EmbeddingsError: an `OSError`: if a folder holds other maps, or cannot be written.
        CheckpointError: an `OSError`: if the model cannot be read, or pictures cannot be written.
        TypeError: if there is no such option.
    """
    asked, parent = ContactOptions(**options), Path(out)
    if asked.pictures:
        import_matplotlib()
        _refuse_no_folder(parent / PLOTS)
    embedders = embedders_of(model, perturbations, asked.embedding, _refuse_mapless)
    [network, *_] = embedders.values()
    dtype, device = choose_dtype(asked.dtype, network), choose_device(asked.device, network)
    for name in embedders:
        refuse_foreign(parent / name)
    with file_of(fasta) as path:
        stamp, told = stamp_of(path), _Listed(network.encoder)
        found = survey(path, ShardLimits(), network.encoder.spelt, told.look)
        run = _Run(asked, dtype, device, path, stamp, Path(fasta).name, found, network.digest(), told.proteins)
        for name, embedder in embedders.items():  # what is there is refused, or goes, before the first is filled
            with run.opened(parent / name, embedder):
                pass
        done = {name: run.fill(parent / name, embedder) for name, embedder in embedders.items()}
    drawn = _draw(parent, [*embedders], told.proteins[: asked.pictures])
    notes = [*network.encoder.notes, *found.findings.lines(), *_notes_of_heads(embedders)]
    if drawn and len(drawn) < found.records:
        notes.append(f"drew the first {len(drawn):,} of {found.records:,} proteins; --pictures N draws more")
    shared: Any = (found.records, found.residues, tuple(drawn), found.findings.to_dict(), tuple(notes))
    return {name: Contacts(parent / name, *each, *shared) for name, each in done.items()}


def _refuse_mapless(embedder: Embedder) -> None:
    """Raise if a network predicts no contacts.

    Raises:
        UnsupportedModuleError: saying why, and which do.
    """
    source, encoder = embedder.source, embedder.encoder
    allowed = "allowed: an ESM with its contact head (ESM-1, ESM-1b, ESM-2)"
    if not isinstance(encoder, AlphabetEncoder):
        network = source.network if isinstance(source, Checkpoint) else None
        whole: Any = network.empty() if isinstance(network, AnyNetwork) else source
        trunk = trunk_of(whole)
        if not hasattr(trunk, "predict_contacts") or (len(encoder.begin), len(encoder.end)) != (1, 1):
            raise UnsupportedModuleError(
                f"model: {embedder.name!r} is a {type(trunk).__name__}, which has no contact head; {allowed}"
            )
        _refuse_unfitted(embedder.name, trunk.config, trunk.config.position_embedding_type == "absolute")
        return
    if encoder.kind == "carp":
        raise UnsupportedModuleError(
            f"model: {embedder.name!r} is a CARP, whose layers are convolutions: it has no attentions, and no contact"
            f" maps come from it; {allowed}"
        )
    sizes: Any = source.network.sizes if isinstance(source, Checkpoint) else source.config
    if not sizes.contact_head:
        raise UnsupportedModuleError(
            f"model: {embedder.name!r} came without a contact head, as ESM-1v was published; {allowed}; if the original"
            " has a -contact-regression.pt, convert it again with that beside it"
        )
    if isinstance(source, Checkpoint) and source.origin == "transformers":
        _refuse_unfitted(embedder.name, sizes, source.network.version == "ESM-1b")


def _refuse_unfitted(name: str, sizes: Any, learned: bool) -> None:
    """Raise if a head is one that Transformers adds to every ESM, and nobody has fitted.

    Source: `transformers.models.esm.convert_esm`, which stores what the constructor of fair-esm's network drew.
    """
    if learned and not sizes.emb_layer_norm_before:
        raise UnsupportedModuleError(
            f"model: {name!r} is an ESM-1v as Transformers stores it, with random numbers for a contact head, since it"
            " was published without one; allowed: an ESM that came with its own; if somebody fitted this one, make a"
            " base of it (hf-perturb convert)"
        )


class _Listed:
    """What the FASTA has, told by `survey` as it reads."""

    def __init__(self, encoder: Encoder):
        self._encoder = encoder
        self._limit = None if encoder.most is None else encoder.most - encoder.special
        self.proteins: list[Protein] = []

    def look(self, record: Record, findings: Findings) -> None:
        self._encoder.look(record, findings)
        length = len(record.sequence)
        if self._limit is not None and length > self._limit:
            raise FastaError(
                f"record {record.name!r} has {length:,} residues; allowed: at most {self._limit:,}, because this"
                " network has learned its positions; leave it out, or divide it, for a map needs all residues at once"
            )
        self.proteins.append(Protein(record.index + 1, record.id, length))


@dataclass(frozen=True)
class _Run:
    """One FASTA and its maps, in a folder for each network."""

    options: ContactOptions
    dtype: torch.dtype
    device: str
    fasta: Path
    stamp: tuple[int, int]  # of the FASTA, when it was opened
    called: str  # as the user calls it
    found: Survey
    weights: str  # digest of what the network has before it is perturbed
    proteins: list[Protein] = field(repr=False)

    def opened(self, out: Path, embedder: Embedder) -> AbstractContextManager[Maps]:
        """Begin a folder, or continue with it."""
        asked = embedder.perturbation
        inputs = {
            "model": {"weights": self.weights, "perturbation": None if asked is None else asked.to_dict()},
            "fasta": self.found.digest,
            "dtype": str(self.dtype).removeprefix("torch."),
            **embedder.encoder.to_dict(),
        }
        described = {
            "model": embedder.described(),
            "fasta": {"name": self.called, "records": self.found.records, "residues": self.found.residues},
            "versions": {name: version(name) for name in ("hf-perturb", "torch", "transformers")},
        }
        return open_maps(out, inputs, described, self.proteins, self.options.force)

    def fill(self, out: Path, embedder: Embedder) -> tuple[str, int]:
        """Fill a folder; return its fingerprint, and how many maps had to be made."""
        with self.opened(out, embedder) as maps:
            missing = {protein.number: protein for protein in maps.missing()}
            if missing:
                self._write(maps, missing, embedder)
            maps.state(complete=True, findings=self.found.findings.to_dict())
            return maps.fingerprint, len(missing)

    def _write(self, maps: Maps, missing: Mapping[int, Protein], embedder: Embedder) -> None:
        """Make the maps of those that have none."""
        done, total = 0, sum(protein.length for protein in missing.values())
        advance = self.options.progress or (lambda done, total: None)
        left = [
            shard
            for shard in self.found.shards
            if any(shard.first + place + 1 in missing for place in range(shard.records))
        ]
        encoder = embedder.encoder
        choices = Choices((encoder.depth,))
        with embedder.loaded(self.dtype, self.device) as model, _predicting(model, encoder) as predict:
            advance(0, total)
            for _, records in iterate_shards(self.fasta, left, self.stamp, encoder.spelt):
                records = [record for record in records if record.index + 1 in missing]
                for record in records:
                    if not record.sequence:
                        maps.write(missing[record.index + 1], np.zeros((0, 0), np.float32))
                units = units_of(records, choices, encoder)
                for batch in _batches(units, encoder.special, *_room(model)):
                    for unit, found in zip(batch, predict([unit.sequence for unit in batch]), strict=True):
                        for record in (records[row] for row in unit.rows):
                            self._refuse_nonfinite(record, found)
                            maps.write(missing[record.index + 1], found)
                            done += len(record.sequence)
                    advance(done, total)

    def _refuse_nonfinite(self, record: Record, found: NDArray[np.float32]) -> None:
        if not np.isfinite(found).all():
            why = f", or this is too much for {self.dtype}: try --dtype float32" if self.dtype.itemsize < 4 else ""
            raise EmbeddingsError(f"record {record.name!r}: contacts are NaN or infinite; so are weights{why}")


def _room(model: Any) -> tuple[int, int]:
    """Return the attentions of a network for a pair of residues, and how many there may be at a time."""
    config = model.config
    cells = _CELLS_ON_CPU if model.device.type in ("cpu", "meta") else _CELLS_ELSEWHERE
    return config.num_hidden_layers * config.num_attention_heads, cells


def _batches(units: Sequence[Unit], special: int, attentions: int, cells: int) -> Iterator[list[Unit]]:
    """Put units of like length together, the longest first; a batch has so many attentions at most, or is one unit."""
    batch: list[Unit] = []
    width = 0
    for unit in sorted(units, key=lambda unit: -len(unit.sequence)):
        if batch and (len(batch) + 1) * width**2 * attentions > cells:
            yield batch
            batch = []
        if not batch:  # whatever follows is no wider
            width = len(unit.sequence) + special
        batch.append(unit)
    if batch:
        yield batch


@contextmanager
def _predicting(model: Any, encoder: Encoder) -> Iterator[Callable[[Sequence[Any]], list[NDArray[np.float32]]]]:
    """Give what makes the maps of a batch, `(length, length)` each, without padding and special tokens."""
    ours = isinstance(encoder, AlphabetEncoder)
    trunk: Any = model if ours else trunk_of(model)
    # the first weights of a network that is larger than its devices are nowhere until they are needed
    device = "cpu" if model.device.type == "meta" else model.device

    def predict(parts: Sequence[Any]) -> list[NDArray[np.float32]]:
        ids, lengths = encoder.encode(parts), [len(part) for part in parts]
        inside = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None] + encoder.special
        size = f"{len(parts)} rows of up to {ids.shape[1]} tokens"
        with torch.no_grad(), memory_told(f"{device}, for the attentions of {size}; try a smaller --dtype"):
            found = trunk.predict_contacts(ids.to(device), inside.long().to(device)).float().cpu().numpy()
        # the token that begins a sequence is left out of a map, and what ends it or is padding comes after it
        return [each[:length, :length] for each, length in zip(found, lengths, strict=True)]

    before = trunk.config._attn_implementation
    if not ours:  # whose other implementations give no attentions
        trunk.set_attn_implementation("eager")
    try:
        yield predict
    finally:
        if not ours:
            trunk.set_attn_implementation(before)


def _notes_of_heads(embedders: Mapping[str, Embedder]) -> list[str]:
    """Say of which networks the contact head itself is perturbed, which nobody may expect of a map."""
    touched = [name for name, embedder in embedders.items() if _touches_head(embedder)]
    if not touched:
        return []
    return [
        f"{listed(touched)}: the contact head is perturbed too, so a map shows what it makes of attentions that it was"
        " not fitted to; --exclude '*contact_head.*' keeps that of the base"
    ]


def _touches_head(embedder: Embedder) -> bool:
    asked = embedder.perturbation or embedder.record
    source: Any = embedder.source
    if asked is None or not isinstance(source, Checkpoint | FairEsmPreTrainedModel):
        return False
    network = source.network if isinstance(source, Checkpoint) else loading.network_of(source)
    chosen = select(network.table(asked.rules or network.rules), [*network.shapes, *network.language_head], asked)
    return any(_HEAD in name for name in chosen)


def _refuse_no_folder(plots: Path) -> None:
    """Raise if pictures have no place, before maps are made for them."""
    if os.path.lexists(plots) and not plots.is_dir():
        raise FolderExistsError(f"{plots} is no folder, and pictures go to one of that name; move it")


def _draw(parent: Path, names: Sequence[str], proteins: Sequence[Protein]) -> list[Path]:
    """Draw the maps of proteins, those of all networks side by side."""
    if not proteins:
        return []
    with nothing_written(parent / PLOTS):
        (parent / PLOTS).mkdir(exist_ok=True)
    drawn = []
    for protein in proteins:
        path = parent / PLOTS / f"{Path(protein.file).stem}.png"
        draw_maps(path, protein.id, {name: read_map(parent / name / protein.file) for name in names})
        drawn.append(path)
    return drawn
