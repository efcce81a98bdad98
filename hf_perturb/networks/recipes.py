# Copyright 2026 The hf_perturb authors. All rights reserved.
#
# Licensed under the MIT License: see the LICENSE file at the root of the repository.
"""Recipes: checkpoints without weights, which are rebuilt from the base that their record names."""

import sys
from pathlib import Path
from typing import Any

import torch

from .inspection import refuse_other_tensors
from .loading import detached, stored_config
from .record import CheckpointError, DigestError, base_location, require_rules

MOVED = "; if the base is elsewhere now, perturbation.base.name in the recipe's config.json may be edited"


def recipe_arguments(
    cls: Any, name: Any, own: Any, config: Any, hub: dict[str, Any], kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Rebuild a recipe's weights and return what `from_pretrained(None, ...)` takes to load them like a checkpoint's.

    Args:
        cls: the class that is loaded; the weights are rebuilt as the class that the recipe names.
        name: the recipe's folder or Hub id.
        own: its configuration, with the record and the base.
        config: the configuration that the caller passed, or `None`.
        hub: what `from_pretrained` takes to find a file on the Hub.
        kwargs: the other keywords of the caller.

    Raises:
        OSError: if the base is missing or is no base, or if the weights have another digest than the record.
    """
    whole = _rebuild(cls, name, own, hub)
    refuse_other_tensors(name, own, whole.state_dict(), strict=True)
    config, kwargs = detached(cls, name, config, hub, kwargs)
    config.perturbation = own.perturbation
    config.tie_word_embeddings = whole.config.tie_word_embeddings
    return config, {**kwargs, "state_dict": whole.state_dict()}


def _rebuild(cls: Any, name: Any, own: Any, hub: dict[str, Any]) -> Any:
    rules, record, torch_version = require_rules(), own.perturbation, getattr(own, "torch_version", None)
    if record.base is None or record.base.name is None:
        raise CheckpointError(f"{str(name)!r} has no weights, and its record names no base to rebuild them from")
    refuse_author_s_disk(name, record)
    base = base_location(record.base.name)
    source = {key: value for key, value in hub.items() if key not in ("revision", "subfolder")}
    if record.base.revision is not None:
        source["revision"] = record.base.revision
    whole_class = _class_named(cls, (own.architectures or [cls.__name__])[0], name)
    try:
        if stored_config(base, source)[0].get("perturbation") is not None:
            raise CheckpointError("it is perturbed itself")
        whole = whole_class.from_pretrained(base, perturbation=record.with_record(None, None), **source)
    except OSError as error:
        problem = f"the recipe {str(name)!r} needs its base {record.base.name!r}: {error}"
        raise CheckpointError(problem + MOVED) from error
    digest = rules.digest_of(whole.state_dict())
    if digest == record.digest or (record.digest is None and record.base.digest is None):
        return whole
    found = rules.digest_of(whole_class.from_pretrained(base, **source).state_dict())
    # without a digest of the weights, that of the base is the next best
    if record.digest is not None or found != record.base.digest:
        raise DigestError(other_weights(name, record, torch_version, digest, found))
    return whole


def refuse_author_s_disk(name: Any, record: Any) -> None:
    """Refuse a recipe from elsewhere whose base is a folder: that is the author's, and what is there here is not.

    Raises:
        OSError: naming both.
    """
    base = record.base.name
    if record.base.revision is None and base_location(base) == base and not Path(name).is_dir():
        raise CheckpointError(
            f"the recipe {str(name)!r} names its base {base!r} without a commit, as a folder of its author's; ask the"
            " author to publish the base, and a recipe of that"
        )


def _class_named(cls: Any, architecture: Any, name: Any) -> Any:
    """Return the class that a recipe names, of the family of the one that is loaded, which a user may have extended."""
    for parent in cls.__mro__:
        found = getattr(sys.modules[parent.__module__], str(architecture), None)
        if isinstance(found, type) and getattr(found, "config_class", None) is cls.config_class:
            return found
    family = cls.config_class.model_type
    raise CheckpointError(f"{str(name)!r}: architectures names {architecture!r}, which is no class of {family}")


def other_weights(name: Any, record: Any, torch_version: str | None, digest: str | None, base: str | None) -> str:
    """Say that a recipe gives other weights than it did, and why.

    Args:
        name: the recipe's folder or Hub id.
        record: its perturbation, with the base.
        torch_version: of the torch that its weights were drawn with.
        digest: of the weights that came out.
        base: digest of the base as it is now.
    """
    said = f"the recipe {str(name)!r} gives weights with digest {digest}, its record says {record.digest}"
    if record.base.digest not in (None, base):
        why = f"its base {record.base.name!r} has digest {base}, the record says {record.base.digest}: it has changed"
    else:
        why = "its base is as recorded, so the record was edited, or torch draws differently here"
    return f"{said}; {why} (torch {torch.__version__} on this processor, torch {torch_version or 'unknown'} then)"
