# Copyright 2026 The hf_perturb authors. All rights reserved.
#
# Licensed under the MIT License: see the LICENSE file at the root of the repository.
"""What a call of `from_pretrained` asks for, next to what the checkpoint records of itself."""

import copy
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from .fetching import HUB_ARGUMENTS
from .files import weight_paths
from .inspection import (
    no_digest,
    read_configuration,
    refuse_other_digest,
    refuse_other_tensors,
    refuse_too_large,
)
from .loading import (
    detached,
    has_no_weights,
    refuse_another,
    refuse_another_tie,
    refuse_quantised_or_offloaded,
    stored_config,
)
from .recipes import recipe_arguments
from .record import CheckpointError, ModelInputError, digest_in, parse_perturbation
from .weights import stored_tensors

# keywords with which other files are read than those that `stored_tensors` finds
_OTHER_FILES = {"gguf_file", "transformers_weights"}


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
    stored, commit = stored_config(name, hub)
    own = read_configuration(cls.config_class, stored, name) if stored else None
    if (verify := kwargs.pop("verify", False)) and own is None:
        raise no_digest(name)
    if config is not None and not isinstance(config, PreTrainedConfig):
        config = cls.config_class.from_pretrained(config, **hub)
    if commit is not None:
        hub["revision"] = kwargs["revision"] = commit
    if config is not None and (ours := cls.config_class.read_stored(theirs := config.to_dict())) is not theirs:
        config = cls.config_class.from_dict(ours, attn_implementation=config._attn_implementation)
    config, asked = copy.deepcopy(config), getattr(config, "perturbation", None)
    # with a state_dict in place of a checkpoint, the config is all that describes the weights
    record = asked if name is None else getattr(own, "perturbation", None)
    if "perturbation" in kwargs:
        asked = parse_perturbation(kwargs.pop("perturbation"))
    if record is not None and asked is not None:
        refuse_another(record, asked, cls.config_class.model_type, f"the checkpoint {str(name)!r}")
    request = LoadRequest(name, config, kwargs, record, asked if record is None else None)
    if request.asked is not None:
        refuse_quantised_or_offloaded(stored, kwargs)
        _keep_the_caller_s_tensors(kwargs)
    if own is not None:
        _describe_what_is_stored(request, own)
        _find_weights(cls, request, own, hub, verify, foreign=cls.config_class.read_stored(stored) is not stored)
    return request


def _find_weights(cls: Any, request: LoadRequest, own: Any, hub: dict[str, Any], verify: bool, foreign: bool) -> None:
    """Look at what is stored before a network is built, and translate what Transformers would not find.

    Args:
        cls: the class that is loaded.
        request: what is asked for; it is completed.
        own: configuration of the checkpoint.
        hub: what finds its files on the Hub.
        verify: whether to compare the weights with the digest that is recorded.
        foreign: whether it is one of another implementation.
    """
    name, kwargs = request.name, request.kwargs
    if kwargs.get("state_dict") is not None:
        if foreign or verify:
            raise ModelInputError(f"state_dict: got one beside the checkpoint {str(name)!r}; allowed: one of the two")
        return
    if other := sorted(key for key in _OTHER_FILES if kwargs.get(key) is not None):
        if verify:
            raise ModelInputError(f"verify: got {other[0]} too, whose weights have no digest; allowed: one of the two")
        return
    which = {key: kwargs.get(key) for key in ("variant", "use_safetensors")}
    if hub.pop("force_download", False):
        kwargs.pop("force_download")
        with suppress(CheckpointError):  # a recipe's; the rest is refused below
            weight_paths(name, {**hub, "force_download": True}, **which)
    if request.record is not None and has_no_weights(name, hub, which["variant"]):
        if verify and digest_in(request.record) is None:
            raise no_digest(name)
        request.config, request.kwargs = recipe_arguments(cls, name, own, request.config, hub, kwargs)
        request.name = None
        return
    files = weight_paths(name, hub, **which)
    found = stored_tensors(files)
    if verify:
        # mapped tensors would follow what becomes of the file
        found = {key: tensor.clone() for key, tensor in found.items()}
    tensors = cls.foreign_tensors(found, own) if foreign else found
    if getattr(own, "quantization_config", None) is None:
        refuse_other_tensors(name, own, tensors, strict=not foreign)
    else:
        refuse_too_large(name, own, tensors)
    if verify:
        refuse_other_digest(name, own, tensors, files)
    if foreign or verify:
        # what was looked at is what is loaded, and nothing that lies beside it
        kept = {key: value for key, value in kwargs.items() if key not in which}
        request.config, request.kwargs = detached(cls, name, request.config, hub, kept)
        given = cls.foreign_tensors(found, request.config) if foreign else found
        request.kwargs["state_dict"], request.name = given, None


def _keep_the_caller_s_tensors(kwargs: dict[str, Any]) -> None:
    # Transformers takes a state_dict's tensors for its own, and these are about to change
    if kwargs.get("state_dict") is not None:
        kwargs["state_dict"] = {name: tensor.clone() for name, tensor in kwargs["state_dict"].items()}


def _describe_what_is_stored(request: LoadRequest, own: Any) -> None:
    """Make a configuration that was passed say of the weights what the checkpoint says."""
    tied = own.tie_word_embeddings
    refuse_another_tie(tied, request.kwargs.pop("tie_word_embeddings", tied), request.name)
    if request.config is not None:
        request.config.perturbation, request.config.tie_word_embeddings = request.record, tied
