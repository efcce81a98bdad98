"""The base and the controls of a study: what they are, and their embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_perturb.checkpoints.recipe import open_base
from hf_perturb.embedding.h5 import write_h5
from hf_perturb.embedding.manifest import MANIFEST
from hf_perturb.embedding.options import EmbedOptions, read_layers
from hf_perturb.embedding.run import BASE, embed_variants, networks_by_name
from hf_perturb.errors import StudyError
from hf_perturb.perturbation import Perturbation
from hf_perturb.storage.folders import nothing_written
from hf_perturb.studies.dataset import Dataset
from hf_perturb.studies.features import Embedded, Source, Unique, manifests
from hf_perturb.studies.options import StudyOptions
from hf_perturb.studies.rows import Rows
from hf_perturb.variants.create import records_of
from hf_perturb.zero_shot.mutants import read_wildtypes
from hf_perturb.zero_shot.options import LONG, ScoreOptions
from hf_perturb.zero_shot.score import substitution_scores

# options of `embed` that say nothing of embeddings that are there, or that these have to agree with
_OF_READING = ("dtype", "device", "tokens", "revision", "trust_remote_code")
FASTA = "sequences.fasta"  # of what is embedded
Controls = Iterable["Perturbation | Mapping[str, Any] | str"] | Perturbation | Mapping[str, Any] | str
_OF_RECORDS = ("base", "digest")  # what a record has that a request lacks


@dataclass(frozen=True)
class Networks:
    """A base and its controls, by the names of their folders, the base first."""

    model: str
    asked: dict[str, Perturbation | None]
    records: dict[str, Perturbation | None]
    digests: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return what decides the networks, as JSON."""
        return {
            name: {"digest": self.digests[name], "record": each and each.to_dict()}
            for name, each in self.records.items()
        }


def open_networks(model: str | Path, controls: Controls, embedding: Mapping[str, Any]) -> Networks:
    """Say which networks a base and perturbations of it are; no weight is kept.

    Args:
        model: the base, by its name.
        controls: what they are, as `embed_variants` takes them.
        embedding: options of `embed`.

    Raises:
        CheckpointError: if the base cannot be read.
        PerturbationError: if a control cannot be made of it, or comes twice.
    """
    named = networks_by_name(controls)
    asked = [each for each in named.values() if each is not None]
    trusted = bool(embedding.get("trust_remote_code"))
    base = open_base(str(model), asked, trusted, revision=embedding.get("revision"))
    records = records_of(base, asked)
    of_base = records[0].base.digest if records and records[0].base else None
    return Networks(
        str(model),
        named,
        dict(zip(named, [None, *records], strict=True)),
        dict(zip(named, [of_base or base.digest(), *(record.digest or "" for record in records)], strict=True)),
    )


def embed_networks(
    networks: Networks, unique: Unique, out: Path, options: StudyOptions, embedding: Mapping[str, Any]
) -> dict[str, Path]:
    """Embed the sequences of a study with all of its networks; what is there already is kept.

    Args:
        networks: the base and its controls.
        unique: the sequences.
        out: the folder of the study.
        options: of the study.
        embedding: options of `embed`.

    Returns:
        The folders, by network.
    """
    fasta, whole = out / FASTA, options.save_embeddings is not None
    unique.write(fasta)
    wanted: dict[str, Any] = {"layers": _with_zero(options.layers), "pool": options.pool, "per_residue": whole}
    if unique.residues is not None:
        wanted |= {"pool": (), "per_residue": True, "residues": None if whole else unique.residues}
    progress = options.progress

    def advance(done: int, total: int) -> None:
        if progress is not None:
            progress("embedding", done, total)

    asked = [each for each in networks.asked.values() if each is not None]
    # the folder is of this study by now: what else is in it is of one that was replaced
    given = {**embedding, **wanted, "force": True, "progress": advance}
    done = embed_variants(networks.model, fasta, out / "embeddings", asked, **given)
    return {name: each.path for name, each in done.items()}


def _with_zero(layers: str | int | Sequence[int]) -> str | list[int]:
    """Return layers as `embed` takes them, and representation 0, which is a baseline."""
    if isinstance(layers, str):
        return layers if layers == "all" else f"0,{'-1' if layers == 'last' else layers}"
    return [0, *([layers] if isinstance(layers, int) else layers)]


def find_embeddings(networks: Networks, folder: Path, embedding: Mapping[str, Any]) -> dict[str, Path]:
    """Return the folders of embeddings that are there, which have to be of these very networks.

    Args:
        networks: the base and its controls.
        folder: of their folders.
        embedding: options of `embed`, of which few can still be chosen.

    Raises:
        StudyError: naming the network that is missing, or is another; or an option that comes too late.
    """
    for name, value in embedding.items():
        if name not in _OF_READING and value != getattr(EmbedOptions, name):
            raise StudyError(f"{name}: got {value!r} with embeddings, which are made; leave it out, or make others")
    found = {name: folder / name for name in networks.asked}
    if missing := [name for name, place in found.items() if not (place / MANIFEST).is_file()]:
        raise StudyError(
            f"{folder} has no embeddings of {', '.join(missing)}; allowed: a folder with those of base and controls, as"
            " hf-perturb embed --method writes it"
        )
    for name, manifest in manifests(found).items():
        model, record = manifest.inputs["model"], networks.records[name]
        dtype, there = str(embedding.get("dtype") or manifest.inputs["dtype"]), manifest.inputs["dtype"]
        if dtype.removeprefix("torch.") != there:
            raise StudyError(f"{found[name]}: got embeddings of {there}; the study is asked for in {dtype}; embed so")
        wanted = record and {key: value for key, value in record.to_dict().items() if key not in _OF_RECORDS}
        if (model["weights"], model["perturbation"]) != (networks.digests[BASE], wanted):
            raise StudyError(
                f"{found[name]}: got embeddings of weights {model['weights']}, perturbed by {model['perturbation']};"
                f" the study is of {networks.digests[BASE]}, perturbed by {wanted}; embed these"
            )
    return found


def sources_of(
    networks: Networks, folders: Mapping[str, Path], unique: Unique, rows: Rows, options: StudyOptions
) -> tuple[list[Source], Callable[[int | None], Any] | None]:
    """Return what is probed of each network, and what gives the features of representation 0 of the base.

    Raises:
        StudyError: if embeddings are not of the same sequences, or were not made alike.
        ModelInputError: if a network has no such layer.
    """
    said = manifests(folders)
    there: list[int] = said[BASE].inputs["layers"]
    depth = said[BASE].described["model"].get("num_hidden_layers", max(there))
    layers = read_layers(options.layers, depth)
    has = said[BASE].schema
    names = (*has.vectors, *has.residues)
    vector = options.pool if unique.residues is None else "residues"
    if lacking := [name for layer in layers if (name := f"{vector}_{layer}") not in names]:
        raise StudyError(f"{folders[BASE]} has no {lacking[0]}; allowed: {', '.join(names)}, by --pool and --layers")
    whole = options.embeddings is not None or options.save_embeddings is not None
    own = options.embeddings is None
    features = {name: Embedded(folder, options.pool, unique, rows, whole, own) for name, folder in folders.items()}
    sources = [
        Source(
            name, "base" if name == BASE else "control", layers, each, networks.records[name], networks.digests[name]
        )
        for name, each in features.items()
    ]
    return sources, features[BASE] if f"{vector}_0" in names else None


def wildtype_of(dataset: Dataset, wildtype: str | Path) -> str:
    """Return the sequence of which all proteins of a study have to be mutants.

    Args:
        dataset: a regression of a protein.
        wildtype: a FASTA of one record, or the sequence itself.

    Raises:
        StudyError: if the task is another, there are several wild types, or a protein is no mutant of this one.
    """
    if (dataset.task.kind, dataset.task.level) != ("regression", "protein"):
        raise StudyError(f"zero_shot: got a study of {dataset.task}; allowed: a regression of a protein")
    found = read_wildtypes(str(wildtype))
    if len(found) > 1:
        raise StudyError(f"zero_shot: {wildtype} has {len(found):,} records; allowed: one, the wild type")
    [sequence] = found.values()
    lengths = [len(each) for each in dataset.sequences]
    other = next((place for place, length in enumerate(lengths) if length != len(sequence)), None)
    if other is not None:
        raise StudyError(
            f"zero_shot: {dataset.ids[other]!r} has {lengths[other]:,} residues, the wild type {len(sequence):,};"
            " allowed: substitutions alone"
        )
    return sequence


def zero_shot_scores(
    networks: Networks, dataset: Dataset, wildtype: str, embedding: Mapping[str, Any]
) -> dict[str, NDArray[np.float64]]:
    """Score the proteins of a study as mutants of a wild type, by masked marginals, with each of its networks.

    Args:
        networks: the base and its controls.
        dataset: a regression of a protein.
        wildtype: its sequence.
        embedding: options of `embed`.
    """
    names = {each.name for each in fields(ScoreOptions)}
    given = {name: value for name, value in embedding.items() if name in names}
    if given.get("long") not in LONG:
        given.pop("long", None)
    asked = [each for each in networks.asked.values() if each is not None]
    return substitution_scores(networks.model, wildtype, dataset.sequences, asked, **given)


def save_h5(folders: Mapping[str, Path], unique: Unique, layers: Sequence[int | None], out: Path) -> None:
    """Write the vectors of all residues as HDF5 for biotrainer, a file a network and layer; those that are there stay.

    Raises:
        EmbeddingsError: if h5py is not installed, or a file cannot be written.
    """
    with nothing_written(out):
        out.mkdir(exist_ok=True)
    for name, folder in folders.items():
        for layer in layers:
            if not (file := out / f"{name}-layer{layer}.h5").exists():
                write_h5(folder, file, f"residues_{layer}", sequences=unique.sequences)
