# Copyright 2026 The hf_perturb authors. All rights reserved.
#
# Licensed under the MIT License: see the LICENSE file at the root of the repository.
"""What a call of `from_pretrained` asks for, next to what the checkpoint records of itself."""

import copy
from dataclasses import dataclass
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from .loading import (
    HUB_ARGUMENTS,
    detached,
    has_no_weights,
    refuse_another,
    refuse_another_tie,
    refuse_quantised_or_offloaded,
    stored_config,
)
from .recipes import recipe_arguments
from .record import ModelInputError, parse_perturbation
from .weights import stored_tensors


@dataclass
class LoadRequest:
    """What is handed to Transformers, and what is left to do.

    Args:
        name: folder or Hub id, `None` where `kwargs` holds the weights.
        config: configuration, or `None` for the checkpoint's own.
        kwargs: the other keywords.
        record: what was done to the weights already, or `None`.
        asked: what is to be done to them, or `None`.
    """

    name: Any
    config: Any
    kwargs: dict[str, Any]
    record: Any
    asked: Any


def read_request(cls: Any, name: Any, config: Any, kwargs: dict[str, Any]) -> LoadRequest:
    """Read the arguments of `from_pretrained`; the table of what follows is in the contract, section 3.

    Args:
        cls: the class that is loaded.
        name: a folder, a Hub id, or `None` with a `state_dict` among the keywords.
        config: a configuration, where to load one from, or `None`.
        kwargs: the other keywords.

    Raises:
        ValueError: for a perturbation on top of another, or one that could not be applied while loading.
        OSError: if a recipe's base is gone.
    """
    hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
    written, commit = stored_config(name, hub)
    stored = cls.config_class.read_stored(written)
    if commit is not None:
        hub["revision"] = kwargs["revision"] = commit
    if config is not None and not isinstance(config, PreTrainedConfig):
        config = cls.config_class.from_pretrained(config, **hub)
    if config is not None and (ours := cls.config_class.read_stored(theirs := config.to_dict())) is not theirs:
        config = cls.config_class.from_dict(ours, attn_implementation=config._attn_implementation)
    config, asked = copy.deepcopy(config), getattr(config, "perturbation", None)
    # with a state_dict in place of a checkpoint, the config is all that describes the weights
    record = asked if name is None else parse_perturbation(stored.get("perturbation"))
    if "perturbation" in kwargs:
        asked = parse_perturbation(kwargs.pop("perturbation"))
    if record is not None and asked is not None:
        refuse_another(record, asked, cls.config_class.model_type, f"the checkpoint {str(name)!r}")
    request = LoadRequest(name, config, kwargs, record, asked if record is None else None)
    if request.asked is not None:
        refuse_quantised_or_offloaded(stored, kwargs)
        _keep_the_caller_s_tensors(kwargs)
    _describe_what_is_stored(cls, request, stored)
    if record is not None and has_no_weights(name, hub, kwargs.get("variant")):
        request.config, request.kwargs = recipe_arguments(cls, name, record, request.config, hub, kwargs)
        request.name = None
    elif stored is not written:
        if kwargs.get("state_dict") is not None:
            raise ModelInputError(f"state_dict: got one beside the checkpoint {str(name)!r}; allowed: one of the two")
        variant = kwargs.pop("variant", None)
        request.config, request.kwargs = detached(cls, name, request.config, hub, kwargs)
        request.kwargs["state_dict"] = cls.foreign_tensors(stored_tensors(name, hub, variant), request.config)
        request.name = None
    return request


def _keep_the_caller_s_tensors(kwargs: dict[str, Any]) -> None:
    # Transformers takes a state_dict's tensors for its own, and these are about to change
    if kwargs.get("state_dict") is not None:
        kwargs["state_dict"] = {name: tensor.clone() for name, tensor in kwargs["state_dict"].items()}


def _describe_what_is_stored(cls: Any, request: LoadRequest, stored: dict[str, Any]) -> None:
    """Make a configuration that was passed say of the weights what the checkpoint says."""
    if request.config is not None:
        request.config.perturbation = request.record
    if stored:
        tied = cls.config_class.from_dict(stored).tie_word_embeddings
        refuse_another_tie(tied, request.kwargs.pop("tie_word_embeddings", tied), request.name)
        if request.config is not None:
            request.config.tie_word_embeddings = tied
