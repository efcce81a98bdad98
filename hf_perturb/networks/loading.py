# Copyright 2026 The hf_perturb authors. All rights reserved.
#
# Licensed under the MIT License: see the LICENSE file at the root of the repository.
"""What a checkpoint says of itself before it is loaded, and what is refused because of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils.hub import extract_commit_hash

from .fetching import cached
from .files import weight_files
from .layouts import listed
from .record import CheckpointError, PerturbationError, StackedPerturbationError, rules, same_perturbation


def has_no_weights(name: Any, hub: Mapping[str, Any], variant: str | None = None) -> bool:
    """Whether a checkpoint is a recipe: a configuration without weights.

    Args:
        name: a folder, a Hub id, or `None` for no checkpoint, which is no recipe.
        hub: what `from_pretrained` takes to find a file on the Hub.
        variant: Transformers' `variant=`; a checkpoint with weights by another name is no recipe.
    """
    if name is None or variant is not None:
        return False
    return all(cached(name, file, hub) is None for file in weight_files())


def refuse_absent_folder(name: Any) -> None:
    """Refuse what is written like a path and is none, before the Hub is asked for it.

    Raises:
        OSError: naming it.
    """
    text = str(name)
    if (text.startswith(("/", ".", "~")) or text.count("/") > 1) and not Path(text).exists():
        raise CheckpointError(f"{text}: no such file or folder; was it moved?")


def stored_config(name: Any, hub: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Read a checkpoint's own `config.json`, untouched by keywords.

    Args:
        name: a folder, a Hub id, or `None` for no checkpoint.
        hub: what `from_pretrained` takes to find a file on the Hub.

    Returns:
        Its content, `{}` where there is none, and the commit that it came from, `None` for a folder.

    Raises:
        OSError: if the folder or repository cannot be reached, or the file is not JSON.
    """
    if name is None:
        return {}, None
    refuse_absent_folder(name)
    path = cached(name, "config.json", hub)
    if path is None:
        return {}, None
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path}: got a JSON {type(stored).__name__}; allowed: an object")
    return stored, extract_commit_hash(path, None)


def detached(
    cls: Any, name: Any, config: Any, hub: Mapping[str, Any], kwargs: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return configuration and keywords for `from_pretrained(None, state_dict=...)`, which reads no checkpoint.

    Args:
        cls: the class that is loaded.
        name: the folder or Hub id whose configuration it has.
        config: the configuration that the caller passed, or `None`.
        hub: what `from_pretrained` takes to find a file on the Hub.
        kwargs: the other keywords of the caller.
    """
    kept = {key: value for key, value in kwargs.items() if key not in hub}
    if config is None:
        # these two belong to the loading as well, and a config would swallow them
        types: dict[str, Any] = {key: kept.pop(key) for key in ("dtype", "torch_dtype") if key in kept}
        config, kept = cls.config_class.from_pretrained(name, return_unused_kwargs=True, **hub, **kept)
        kept.update(types)
    return config, kept


def refuse_another(record: Any, asked: Any, family: str, what: str) -> None:
    """Refuse a perturbation on top of another one.

    Raises:
        ValueError: naming both.
    """
    if not same_perturbation(record, asked, family):
        raise StackedPerturbationError(
            f"{what} is perturbed already, by {record}; got {asked} on top; perturbations do not stack: start from"
            " the base"
        )


def refuse_quantised_or_offloaded(stored: dict[str, Any], kwargs: dict[str, Any]) -> None:
    """Refuse to perturb what will have no plain values in memory.

    Raises:
        ValueError: with the remedy.
    """
    if kwargs.get("quantization_config") is not None or stored.get("quantization_config") is not None:
        raise quantised()
    device_map = kwargs.get("device_map")
    if isinstance(device_map, dict) and "disk" in device_map.values():
        raise PerturbationError(
            "perturbation: weights that are offloaded to disk cannot be perturbed while they load; build the variant"
            " first (hf-perturb create) and load that"
        )


def refuse_another_network(model: Any, info: Mapping[str, Any], record: Any, asked: Any, name: Any) -> None:
    """Refuse a model that is not the whole network which a perturbation describes; its heads may be others.

    Transformers drops what a network has no place for, and draws what a checkpoint lacks from the global random state;
    the record would still claim all of it.

    Args:
        model: what was loaded.
        info: what Transformers says of its tensors.
        record: what was done to the weights that are stored, or `None`.
        asked: what is about to be done to them, or `None`.
        name: of the checkpoint.

    Raises:
        OSError: naming the tensors.
    """
    if (perturbed := record or asked) is None:
        return
    heads = model.language_head_names()
    lost = sorted(name for name in info["missing_keys"] if not name.startswith("classifier."))
    if rules is not None and lost:
        chosen = rules.select(model.config.model_type, [*model.document_tensors(), *heads], perturbed)
        lost = [name for name in lost if name in chosen]
    if lost:
        raise CheckpointError(
            f"the checkpoint {str(name)!r} lacks {listed(lost)}, which {perturbed} perturbs; build the variant from a"
            " base with that head"
        )
    unused = [name for name in info["unexpected_keys"] if name not in heads and not name.startswith("classifier.")]
    if record is not None and unused:
        raise CheckpointError(
            f"the checkpoint {str(name)!r} has {listed(sorted(unused))}, for which this network has no place, so"
            f" {record} would not describe it; load it with the sizes that it is stored with"
        )


def refuse_another_tie(tied: bool, asked: bool, name: Any) -> None:
    """Refuse to tie or untie a head by keyword: the file holds one tensor or two.

    Raises:
        ValueError: with the remedy.
    """
    if bool(asked) != bool(tied):
        raise PerturbationError(
            f"tie_word_embeddings: got {asked}; the checkpoint {str(name)!r} is stored with {tied}, which decides;"
            " a perturbation of lm_head.weight unties it"
        )


def quantised() -> PerturbationError:
    """Return the error for quantised weights."""
    return PerturbationError(
        "perturbation: quantised weights cannot be perturbed; build the variant first (hf-perturb create) and load"
        " that with the quantization_config"
    )
