"""The format of sequence-models: CARP, released and from training, read and written.

Source: `sequence_models.pretrained.load_carp` (sequence-models 1.8.0); training saves no sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hf_perturb.checkpoints.network import Network
from hf_perturb.checkpoints.of_torch import check_state, mapped
from hf_perturb.checkpoints.origins.original import (
    ALLOWED,
    Original,
    cannot,
    check_class,
    check_constants,
    check_relative,
    check_suffix,
    write_pickle,
)
from hf_perturb.checkpoints.shapes import listed, without_prefix
from hf_perturb.checkpoints.tensors import Tensor
from hf_perturb.errors import CheckpointError
from hf_perturb.storage.folders import whole_files

# how it calls the sizes
_SIZES = {
    "d_embed": "embedding_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "kernel_size": "kernel_size",
    "activation": "hidden_act",
    "slim": "slim",
    "r": "max_dilation",
}


def read_carp(path: Path, data: dict[str, Any]) -> Original:
    """Read a CARP; sizes that the file does not state are read off its tensors."""
    name = data.get("model", "")
    check_relative(path, name)
    state = data["model_state_dict"]
    check_state(f"{path}: its 'model_state_dict'", state)
    named, _ = without_prefix(state, "embedder.embedder.weight")
    tensors = {f"model.{name}": tensor.detach() for name, tensor in named.items()}
    if "model.embedder.up_embedder.conv.weight" not in tensors:
        raise CheckpointError(f"{path} is no CARP: it holds {listed(state)}; {ALLOWED}")
    read = _sizes_of(tensors)
    stated = {ours: data[theirs] for theirs, ours in _SIZES.items() if theirs in data}
    notes = [
        f"it does not say its {what}: taken to be {value}, as in every published CARP"
        for key, what, value in (("max_dilation", "largest dilation", "128"), ("hidden_act", "activation", "gelu"))
        if key not in stated
    ]
    network = Network.of("carp", **{**read, "max_dilation": 128, "hidden_act": "gelu", **stated})
    return Original(str(path), network, {name: Tensor.of(x) for name, x in tensors.items()}, notes=notes)


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


def write_sequence_models(original: Original, out: Path) -> tuple[Path, ...]:
    """Write what `sequence_models.pretrained.load_model_and_alphabet` reads.

    Raises:
        CheckpointError: if its class has no such network.
    """
    if original.network.family != "carp":
        raise cannot(original, "sequence-models", "it has no ESM; allowed: CARP")
    check_class(original, "sequence-models", "CarpForMaskedLM")
    check_constants(original, "sequence-models", ("vocab_size", "pad_token_id", "mask_token_id"))
    check_suffix(out)
    sizes = {theirs: getattr(original.network.sizes, ours) for theirs, ours in _SIZES.items()}
    state = {name.removeprefix("model."): tensor for name, tensor in mapped(original.tensors).items()}
    with whole_files(out) as (file,):
        write_pickle({"model": "carp", **sizes, "model_state_dict": state}, original.record, file)
    return (out,)
