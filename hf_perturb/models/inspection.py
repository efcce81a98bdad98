# Copyright 2026 The hf_perturb authors. All rights reserved.
#
# Licensed under the MIT License: see the LICENSE file at the root of the repository.
"""What a checkpoint holds, compared with what its configuration says, before a network is built."""

from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from .layouts import differences, layout, tied
from .record import CheckpointError, DigestError, digest_in, require_rules

_HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")


def read_configuration(config_class: Any, stored: Mapping[str, Any], what: Any) -> Any:
    """Make a configuration of the content of a `config.json`.

    Args:
        config_class: the class of the family.
        stored: the content, also of another implementation of the same network.
        what: folder or Hub id, for messages.

    Raises:
        OSError: if it is of another family, or cannot be used.
    """
    family = config_class.model_type
    try:
        ours = config_class.read_stored(dict(stored))
        if (found := ours.get("model_type")) in (None, family):
            return config_class.from_dict(ours)
    except (ValueError, StrictDataclassError) as error:
        raise CheckpointError(f"{str(what)!r}: its config.json cannot be used: {error}") from error
    raise CheckpointError(
        f"{str(what)!r}: model_type is {found!r}, this class loads {family!r}; AutoModel finds the right class"
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
    prefix = type(config).__name__.removesuffix("Config")
    architecture = next(iter(config.architectures or ()), None)
    known = strict and architecture in [prefix + head for head in _HEADS]
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if not known:
        architecture = prefix + _HEADS[0]
        trunk = layout(config, architecture)
        found = {name: shape for name, shape in found.items() if name in trunk}
    if said := differences(config, str(architecture), found):
        raise CheckpointError(f"{str(what)!r} is not what its config.json says: {said}")


def refuse_other_digest(what: Any, config: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights that are not the ones that a checkpoint records: `from_pretrained(verify=True)`.

    Raises:
        OSError: naming both digests, or if none is recorded.
        ImportError: if `hf_perturb`, which defines the digest, is not installed.
    """
    recorded = config.digest if config.perturbation is None else digest_in(config.perturbation)
    if recorded is None:
        raise no_digest(what)
    own = {name: tensor for name, tensor in tensors.items() if name not in tied(config)}
    if (found := require_rules().digest_of(own)) != recorded:
        raise DigestError(
            f"{str(what)!r} has weights with digest {found}, its config.json says {recorded}: they were damaged on the"
            " way, or changed since; fetch it again (force_download=True), or ask who gave it to you"
        )


def no_digest(what: Any) -> CheckpointError:
    """Return the error for weights that are to be compared with a digest that is not there."""
    return CheckpointError(f"verify: {str(what)!r} records no digest, so there is nothing to compare its weights with")
