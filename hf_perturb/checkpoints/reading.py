"""How a file, a folder or a repository becomes a `Checkpoint`: which kind of network it is of, and what is stored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_perturb.checkpoints.any_network import AnyNetwork, Code
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.headers import read_files
from hf_perturb.checkpoints.network import Network, stored_fields
from hf_perturb.checkpoints.origins import read_original
from hf_perturb.checkpoints.origins.stock_esm import STOCK_CLASSES, config_from_stock, is_stock, read_stock
from hf_perturb.checkpoints.shapes import AUTO_CLASSES, PREFIXES, listed
from hf_perturb.checkpoints.source import WEIGHTS, Place
from hf_perturb.checkpoints.tokenizers import refuse_other_alphabet
from hf_perturb.errors import CheckpointError
from hf_perturb.perturbation.spec import Perturbation, check_digest


def read_file(file: Path) -> Checkpoint:
    """Read an original file."""
    if file.suffix in (".safetensors", ".json"):
        raise CheckpointError(f"{file} is one file of a folder; give the folder, which has the config.json too")
    found = read_original(file)
    origin = "sequence-models" if found.network.family == "carp" else "fair-esm"
    # its own package loads it in float32
    more: dict[str, Any] = {"record": found.record, "dtype": "F32", "notes": found.notes}
    return Checkpoint(found.name, origin, found.network, found.tensors, **more)


def read_place(
    place: Place, weights: bool, family: str | None, rules: str | None = None, trust_remote_code: bool = False
) -> Checkpoint:
    """Read a folder or a repository once; the caller looks whether its files changed meanwhile."""
    written, place = place.configuration()
    if family is None and _is_any(written, rules):
        return _read_any(place, written, weights, trust_remote_code)
    if family is not None:
        written = {"model_type": family, **written}
    stock, name = is_stock(written), place.name
    try:
        ours, others = (config_from_stock(written), {}) if stock else stored_fields(written, family)
        check_digest("digest", ours.get("digest"))
        record = _record_of(written, stock, ours.get("digest"))
    except (ValueError, CheckpointError) as error:
        raise CheckpointError(f"{name!r}: its config.json cannot be used: {error}") from error
    read_as = ours if family is None or ours.get("model_type") in PREFIXES else {**ours, "model_type": family}
    architecture, unusable = _class_of(written if stock else read_as, stock, name)
    network = Network.read(read_as, architecture, name) if architecture else None
    if weights and network is not None:
        refuse_other_alphabet(place, written, network.alphabet)  # before weights are fetched
    tensors, headers = read_files(files := place.weights() if weights else [])
    if not files and network is None:
        raise CheckpointError(f"{name!r}: {unusable}")
    is_recipe = weights and _is_recipe(place, files, record)
    notes = [f"left out of config.json, for no such network has it: {listed(map(repr, others))}"] if others else []
    more: dict[str, Any] = {"place": place, "headers": headers, "is_recipe": is_recipe, "unusable": unusable}
    if stock and network is not None:
        tensors, network, theta = read_stock(name, tensors, network, written)
        said = f"its rotary frequencies are not stored: computed from rope_theta {theta}, as Transformers does"
        more["rope_theta"], notes = theta, [said] if theta is not None else []
    origin = "transformers" if stock else "hf_perturb"
    if unusable and network is not None and files and not stock:
        more |= {"unusable": "", "owner": (owner := ours["architectures"][0])}
        network, more["prefix"], found = network.among(tensors, name)
        more["own"] = {key: tensor for key, tensor in tensors.items() if key not in {*found.values()}}
        if more["own"]:
            notes.append(f"left out, being no part of the network but {owner}'s own: {listed(more['own'])}")
        tensors = {key: tensors[stored] for key, stored in found.items()}
    return Checkpoint(name, origin, network, tensors, ours, others, record, **more, notes=notes)


def _record_of(written: Mapping[str, Any], stock: bool, digest: str | None) -> Perturbation | None:
    """Read the record of a network of ours; raise a `ValueError` for one that it cannot have."""
    if (said := written.get("perturbation")) is None:
        return None
    record = Perturbation.parse(said, "documented")
    if stock and record.rules == "transformers":
        raise ValueError(f"it is {record} of Transformers' own ESM: AutoModel, or hf_perturb.from_pretrained, loads it")
    if digest is not None:
        raise ValueError("digest: got one beside a perturbation; a control has its digest inside: take it out")
    return record


def _is_any(written: Mapping[str, Any], rules: str | None) -> bool:
    """Whether a network is none of ours, by what its configuration or whoever opens it says."""
    kind, record = written.get("model_type"), written.get("perturbation")
    if kind == "esm":
        return "transformers" in (rules, record.get("rules") if isinstance(record, dict) else None)
    return isinstance(kind, str) and kind not in PREFIXES


def _read_any(place: Place, written: dict[str, Any], weights: bool, trust_remote_code: bool) -> Checkpoint:
    """Read a folder or a repository of a network that is none of ours; its classes are asked for later."""
    name, hub = place.name, tuple(sorted((key, value) for key, value in place.hub.items()))
    try:
        record = written.get("perturbation")
        record = None if record is None else Perturbation.parse(record, "transformers")
        if record is not None and record.rules != "transformers":
            kind = written["model_type"]
            raise ValueError(f"perturbation rules: got {record.rules!r} of a {kind!r}; allowed: 'transformers'")
    except ValueError as error:
        raise CheckpointError(f"{name!r}: its config.json cannot be used: {error}") from error
    network = AnyNetwork.of_config(written, name, Code(place.location, hub) if trust_remote_code else None)
    tensors, headers = read_files(files := place.weights() if weights else [])
    is_recipe = weights and _is_recipe(place, files, record)
    more: dict[str, Any] = {"place": place, "headers": headers, "is_recipe": is_recipe}
    network = network.with_tensors({key: tensor.shape for key, tensor in tensors.items()})
    return Checkpoint(name, "transformers", network, tensors, written, {}, record, **more)


def _is_recipe(place: Place, files: list[Path], record: Perturbation | None) -> bool:
    """Whether a record stands for the weights, which are not there; raise if nothing does."""
    if files:
        return False
    elsewhere = place.variant is not None or any(map(place.find, WEIGHTS))
    if record is None or record.changed or elsewhere:
        looked = f"looked for {', '.join(place.weight_names)}{place.other_kind() if place.is_local else ''}"
        raise CheckpointError(f"{place.name!r} has no weights; {looked}")
    return True


def _class_of(stored: Mapping[str, Any], stock: bool, name: str) -> tuple[str, str]:
    """Return our class of a checkpoint, or that of its trunk and why; none for a family that is not ours."""
    family = "fair_esm" if stock else stored.get("model_type")
    if not isinstance(family, str) or family not in PREFIXES:
        return "", f"model_type is {family!r}; allowed: {', '.join(PREFIXES)}, esm (Transformers' own)"
    ours = [PREFIXES[family] + head for head in AUTO_CLASSES.values()]
    allowed = list(STOCK_CLASSES) if stock else ours
    given = stored.get("architectures") or [allowed[0] if stock else f"{PREFIXES[family]}ForMaskedLM"]
    problem = f"architectures is {given!r}; allowed: one of {', '.join(allowed)}"
    if given[0] not in allowed:
        trunk = f"{PREFIXES[family]}Model"
        alone = f"hf_perturb.{trunk}.from_pretrained({name!r}).save_pretrained('OUT')"
        return trunk, f"{problem}; its trunk alone is one: {alone}"
    return (f"Fair{given[0]}" if stock else str(given[0])), ""
