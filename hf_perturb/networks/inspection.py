# Copyright 2026 The hf_perturb authors. All rights reserved.
#
# Licensed under the MIT License: see the LICENSE file at the root of the repository.
"""What a checkpoint holds, compared with what its configuration says, before a network is built."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open

from .layouts import AUTO_CLASSES, PREFIXES, differences, is_parameter, layout, tied
from .record import CheckpointError, DigestError, recorded_digest, require_rules


def read_configuration(config_class: Any, stored: Mapping[str, Any], what: Any) -> Any:
    """Make a configuration of the content of a `config.json`.

    Args:
        config_class: the class of the family.
        stored: the content, also of another implementation of the same network.
        what: folder or Hub id, for messages.

    Raises:
        OSError: if it is of another family, or cannot be used.
    """
    # a class that somebody derived from ours loads what ours loads
    families = [found for parent in config_class.__mro__ if (found := getattr(parent, "model_type", None))]
    try:
        ours = config_class.read_stored(dict(stored))
        if (found := ours.get("model_type")) in (None, *families):
            return config_class.from_dict(ours)
    except (ValueError, StrictDataclassError) as error:
        raise CheckpointError(f"{str(what)!r}: its config.json cannot be used: {error}") from error
    raise CheckpointError(
        f"{str(what)!r}: model_type is {found!r}, this class loads {families[0]!r}; AutoModel finds the right class"
    )


def refuse_other_tensors(what: Any, config: Any, tensors: Mapping[str, torch.Tensor], strict: bool) -> None:
    """Refuse a checkpoint that lacks tensors of its network, or has others.

    Args:
        what: folder or Hub id, for messages.
        config: its own configuration.
        tensors: by document name.
        strict: whether its class is one of ours, whose every tensor is known; else only the trunk is compared.

    Raises:
        OSError: naming the tensors.
    """
    if config.model_type not in PREFIXES:
        return  # a family that somebody derived from ours, whose tensors only he knows
    prefix = PREFIXES[config.model_type]
    if not isinstance(config.architectures, list | None):
        raise CheckpointError(
            f"{str(what)!r}: architectures is {config.architectures!r}; allowed: a list of class names"
        )
    architecture = next(iter(config.architectures or ()), None)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if not strict or architecture not in [prefix + head for head in AUTO_CLASSES.values()]:
        architecture = prefix + AUTO_CLASSES["AutoModel"]
        trunk = layout(config, architecture)
        # buffers follow from the sizes, and others may leave them out
        buffers = {name: shape for name, shape in trunk.items() if not is_parameter(name)}
        found = {**buffers, **{name: shape for name, shape in found.items() if name in trunk}}
    if said := differences(config, str(architecture), found):
        raise CheckpointError(f"{str(what)!r} is not what its config.json says: {said}")


def refuse_too_large(what: Any, config: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse quantised weights that have fewer bits than the network has weights; their names are their package's own.

    Raises:
        OSError: with both numbers.
    """
    if config.model_type not in PREFIXES:
        return
    elements = sum(math.prod(shape) for shape in layout(config, "Model").values())
    bits = 8 * sum(tensor.nbytes for tensor in tensors.values())
    if elements > bits:
        raise CheckpointError(
            f"{str(what)!r} is not what its config.json says: a network of {elements:,} weights, in {bits:,} bits"
        )


def refuse_other_digest(what: Any, config: Any, tensors: Mapping[str, torch.Tensor], files: Iterable[Path]) -> None:
    """Refuse weights that are not the ones that a checkpoint records: `from_pretrained(verify=True)`.

    Args:
        what: folder or Hub id, for messages.
        config: its own configuration.
        tensors: by document name.
        files: where they are stored.

    Raises:
        OSError: naming both digests, or if none is recorded, or if a file has another record.
        ImportError: if `hf_perturb`, which defines the digest, is not installed.
    """
    recorded = recorded_digest(config)
    if recorded is None:
        raise no_digest(what)
    digest_of = require_rules("verify=True").digest_of
    own = {name: tensor for name, tensor in tensors.items() if name not in tied(config)}
    if problems := other_records(config, files):
        raise DigestError(f"{str(what)!r}: {'; '.join(problems)}: its record was changed")
    if (found := digest_of(own)) != recorded:
        raise DigestError(
            f"{str(what)!r} has weights with digest {found}, its config.json says {recorded}: they were damaged on the"
            " way, or changed since; fetch it again (force_download=True), or ask who gave it to you"
        )


def other_records(config: Any, files: Iterable[Path]) -> list[str]:
    """Say where the record in the header of a file of weights differs from that of the configuration.

    Args:
        config: of the checkpoint.
        files: with its weights; one that Transformers saved says nothing of its record.
    """
    ours = config.to_dict().get("perturbation")
    right = [None, {"format": "pt"}, {"format": "pt", "perturbation": json.dumps(ours)}]
    problems = []
    for file in (file for file in files if file.suffix == ".safetensors"):
        with safe_open(file, "pt") as opened:
            said = opened.metadata()
        if said not in right:
            theirs, here = _where_they_differ(said.get("perturbation", str(said)), ours)
            problems.append(f"{file.name} says of itself {theirs}, config.json {here}")
    return problems


def _where_they_differ(said: str, ours: Any) -> tuple[Any, Any]:
    """Return what differs in two records, all of both where one of them is none."""
    try:
        theirs = json.loads(said)
    except (ValueError, RecursionError):
        return said, ours
    if not isinstance(theirs, dict) or not isinstance(ours, dict):
        return said, ours
    differs = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    return {key: theirs.get(key) for key in differs}, {key: ours.get(key) for key in differs}


def no_digest(what: Any) -> CheckpointError:
    """Return the error for weights that are to be compared with a digest that is not there."""
    return CheckpointError(f"verify: {str(what)!r} records no digest, so there is nothing to compare its weights with")
