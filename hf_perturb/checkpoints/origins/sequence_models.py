"""Original checkpoints of sequence-models: CARP, released and from training.

Source: `sequence_models.pretrained.load_carp` (sequence-models 1.8.0); training saves no sizes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.origins.relatives import ALLOWED, refuse_others
from hf_perturb.errors import CheckpointError
from hf_perturb.networks.configuration_carp import CarpConfig
from hf_perturb.networks.layouts import listed
from hf_perturb.networks.weights import refuse_what_is_no_state


def read_carp(path: Path, data: dict[str, Any]) -> Checkpoint:
    """Read a CARP; sizes that the file does not state are read off its tensors."""
    name = data.get("model", "")
    refuse_others(path, name)
    state = data["model_state_dict"]
    refuse_what_is_no_state(f"{path}: its 'model_state_dict'", state)
    tensors = {
        "model." + re.sub(r"^(module\.)?(model\.)?", "", name): tensor.detach() for name, tensor in state.items()
    }
    if len(tensors) != len(state):
        raise CheckpointError(f"{path}: two of its tensors have the same name once their prefixes are gone")
    if "model.embedder.up_embedder.conv.weight" not in tensors:
        raise CheckpointError(f"{path} is no CARP: it holds {listed(state)}; {ALLOWED}")
    read = _sizes_of(tensors)
    stated = {
        ours: data[theirs]
        for theirs, ours in {
            "d_embed": "embedding_size",
            "d_model": "hidden_size",
            "n_layers": "num_hidden_layers",
            "kernel_size": "kernel_size",
            "slim": "slim",
            "r": "max_dilation",
            "activation": "hidden_act",
        }.items()
        if theirs in data
    }
    notes = [
        f"it does not say its {what}: taken to be {value}, as in every published CARP"
        for key, what, value in (("max_dilation", "largest dilation", "128"), ("hidden_act", "activation", "gelu"))
        if key not in stated
    ]
    config = CarpConfig(**{**read, "max_dilation": 128, "hidden_act": "gelu", **stated})
    return Checkpoint(str(path), "sequence-models", config, "CarpForMaskedLM", tensors, torch.float32, notes=notes)


def _sizes_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Read the sizes off the tensors; training checkpoints do not state them."""
    hidden = len(tensors["model.embedder.up_embedder.conv.weight"])
    block = tensors["model.embedder.layers.0.conv.weight"]
    layers = {name.split(".")[3] for name in tensors if name.startswith("model.embedder.layers.")}
    return {
        "vocab_size": len(tensors["model.embedder.embedder.weight"]),
        "embedding_size": tensors["model.embedder.embedder.weight"].shape[1],
        "hidden_size": hidden,
        "num_hidden_layers": len(layers),
        "kernel_size": block.shape[2],
        "slim": len(block) != hidden,
    }
