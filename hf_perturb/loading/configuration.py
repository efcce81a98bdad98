"""The configuration that a network is built with: what is passed, held against what the checkpoint says."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError
from transformers.configuration_utils import PreTrainedConfig

from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.shapes import PREFIXES
from hf_perturb.checkpoints.source import HUB_ARGUMENTS
from hf_perturb.errors import CheckpointError, PerturbationError

if TYPE_CHECKING:
    from hf_perturb.networks.perturbable import PerturbablePreTrainedModel

# keywords that belong to the loading, and that a configuration would swallow
_TYPES = ("dtype", "torch_dtype", "quantization_config")


def family_of(cls: type[PerturbablePreTrainedModel]) -> str:
    """Return the family of a class, that of ours for one that somebody derived from it."""
    return next(family for family in families_of(cls) if family in PREFIXES)


def families_of(cls: type[PerturbablePreTrainedModel]) -> list[str]:
    """Return the `model_type` of a class and of those that it is derived from."""
    parents = cls.config_class.__mro__
    return [found for parent in parents if isinstance(found := getattr(parent, "model_type", None), str) and found]


def of_the_hub(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords that find a file on the Hub."""
    return {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}


def given_config(
    cls: type[PerturbablePreTrainedModel], config: Any, hub: Mapping[str, Any], opened: Checkpoint | None
) -> Any:
    """Return a copy of the configuration that was passed, as one of the class; `None` for none."""
    config_class: Any = cls.config_class
    if config is None:
        return None
    if not isinstance(config, PreTrainedConfig):
        return config_class.from_pretrained(config, **hub)
    if (ours := config_class.read_stored(theirs := config.to_dict())) is not theirs:
        asked, computed = theirs.get("rope_theta"), None if opened is None else opened.rope_theta
        if None not in (asked, computed) and asked != computed:
            raise CheckpointError(
                f"config: got rope_theta {asked}; that of the checkpoint is {computed}, and its files have no rotary"
                " frequencies: say it in its config.json"
            )
        return config_class.from_dict(ours, attn_implementation=config._attn_implementation)
    read_as = getattr(config, "_read_as", None)
    # the Auto classes have read the same config.json a moment ago
    if opened is not None and opened.is_local and read_as is not None and read_as[0] == opened.name:
        then = {"model_type": family_of(cls), **json.loads(read_as[1])}
        now, _ = config_class.read_fields(opened.written)
        if json.dumps(then, sort_keys=True) != json.dumps(now, sort_keys=True):  # as text, in which NaN is NaN
            raise CheckpointError(
                f"config: was read from {opened.name!r} before its config.json was replaced; read it again, or leave it"
                " out"
            )
    return copy.deepcopy(config)


def described(
    cls: type[PerturbablePreTrainedModel], opened: Checkpoint, config: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return a configuration that says of the weights what the checkpoint says, and the keywords that it left."""
    config_class: Any = cls.config_class
    kwargs = dict(kwargs)
    try:
        own = config_class.from_dict(opened.written)
        tied = kwargs.pop("tie_word_embeddings", own.tie_word_embeddings)
        if config is None:
            hub = {key: kwargs.pop(key) for key in HUB_ARGUMENTS if key in kwargs}
            files: dict[str, Any] = {key: kwargs.pop(key) for key in ("variant", "use_safetensors") if key in kwargs}
            types = {key: kwargs.pop(key) for key in _TYPES if key in kwargs}
            config, left = config_class.from_dict(opened.written, return_unused_kwargs=True, **kwargs)
            kwargs = {**hub, **files, **types, **left}
    except (ValueError, StrictDataclassError) as error:
        raise CheckpointError(f"{opened.name!r}: its config.json cannot be used: {error}") from error
    if bool(tied) != bool(own.tie_word_embeddings):
        raise PerturbationError(
            f"tie_word_embeddings: got {tied}; the checkpoint {opened.name!r} is stored with {own.tie_word_embeddings},"
            " which decides; a perturbation of lm_head.weight unties it"
        )
    for key in ("tie_word_embeddings", "published_as"):
        setattr(config, key, getattr(own, key))
    vars(config).pop("transformers_weights", None)  # other weights than those that were looked at
    config.set_record(opened.record, own.digest, of_model=False)
    if opened.described is not None and opened.network.family == "fair_esm":
        config.contact_head = opened.network.sizes.contact_head and config.contact_head
    return config, kwargs
