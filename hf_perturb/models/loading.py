# Copyright 2026 The hf_perturb authors. All rights reserved.
#
# Licensed under the MIT License: see the LICENSE file at the root of the repository.
"""What a checkpoint says of itself before it is loaded, and what is refused because of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file, extract_commit_hash

from .record import CheckpointError, PerturbationError, StackedPerturbationError, same_perturbation

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def has_no_weights(name: Any, hub: Mapping[str, Any], variant: str | None = None) -> bool:
    """Whether a checkpoint is a recipe: a configuration without weights.

    Args:
        name: a folder, a Hub id, or `None` for no checkpoint, which is no recipe.
        hub: what `from_pretrained` takes to find a file on the Hub.
        variant: Transformers' `variant=`; a checkpoint with weights by another name is no recipe.
    """
    if name is None or variant is not None:
        return False
    return all(_cached(name, file, hub) is None for file in _WEIGHTS)


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
    path = None if name is None else _cached(name, "config.json", hub)
    if path is None:
        return {}, None
    try:
        stored: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    return stored, extract_commit_hash(path, None)


def _cached(name: Any, file: str, hub: Mapping[str, Any]) -> str | None:
    path: str | None = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub)
    return path


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


def quantised() -> PerturbationError:
    """Return the error for quantised weights."""
    return PerturbationError(
        "perturbation: quantised weights cannot be perturbed; build the variant first (hf-perturb create) and load"
        " that with the quantization_config"
    )
