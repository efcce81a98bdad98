"""Original checkpoints (`.pt`), read without running anything in them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.origins.fair_esm import read_esm_1, read_esm_2
from hf_perturb.checkpoints.origins.relatives import ALLOWED, read_pickle
from hf_perturb.checkpoints.origins.sequence_models import read_carp
from hf_perturb.errors import CheckpointError
from hf_perturb.networks.layouts import listed

# a key of ours, which the original loaders do not look at: what was done to exported weights
RECORD_KEY = "hf_perturb"


def read_original(path: Path) -> Checkpoint:
    """Read an original checkpoint.

    Args:
        path: a `.pt` file of fair-esm (its contact regression is looked for beside it) or of sequence-models, released
            or from training.

    Raises:
        CheckpointError: if it is damaged, holds code, or is the checkpoint of something else.
    """
    data = read_pickle(path, [Namespace])
    # training leaves "args": None beside a "cfg"
    keys = {key for key, value in data.items() if value is not None} if isinstance(data, dict) else set()
    try:
        if {"model", "args"} <= keys:
            checkpoint = read_esm_1(path, data)
        elif {"model", "cfg"} <= keys:
            checkpoint = read_esm_2(path, data)
        elif "model_state_dict" in keys:
            checkpoint = read_carp(path, data)
        else:
            raise CheckpointError(f"{path} is no checkpoint of a kind that we know: {_kind(data)}; {ALLOWED}")
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, StrictDataclassError) as error:
        why = f"its sizes are missing, or not those of a network that we know: {error!r}"
        raise CheckpointError(f"{path}: {why}") from error
    checkpoint.config.perturbation = data.get(RECORD_KEY)
    return checkpoint


def _kind(data: Any) -> str:
    if not isinstance(data, dict):
        return f"it holds a {type(data).__name__}"
    if data and all(isinstance(value, torch.Tensor) for value in data.values()):
        return (
            "it is a bare state_dict, which does not say its sizes; load it into the original class, wrap that"
            " (hf_perturb.wrap) and save_pretrained"
        )
    return f"it holds {listed(map(str, data))}" if data else "it is empty"
