"""Checkpoint files as fair-esm and sequence-models publish theirs, and those packages' own loaders."""

from __future__ import annotations

import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import esm.pretrained
import sequence_models.pretrained
import torch
from sequence_models.pretrained import CARP
from torch import nn

from parity.originals import Pair

REGRESSION = "-contact-regression.pt"
CONTACTS = ("contact_head.regression.weight", "contact_head.regression.bias")
EMBEDDING, HEAD = "encoder.sentence_encoder.embed_tokens.weight", "encoder.lm_head.weight"
# the loaders go by the names of the files
NAMES = {
    "esm1": "esm1_t6_43M_UR50S",
    "esm1b": "esm1b_t33_650M_UR50S",
    "esm1v": "esm1v_t33_650M_UR90S_1",
    "esm2": "esm2_t6_8M_UR50D",
    "carp": "carp_600k",
    "carp_wide": "carp_640M",
    "carp_relu": "carp_relu",
}
# of the trainers, without a meaning to the loaders
_NOISE = {"task": "masked_lm", "lr": [0.0004], "no_progress_bar": True, "save_dir": "/checkpoints/1"}


def original_data(pair: Pair) -> dict[str, Any]:
    """Return what the file of a network holds; fair-esm's still with the contact regression.

    Tensors and arguments have the prefixes of the modules that the networks were trained in.
    """
    if isinstance(pair.original, CARP):
        return _carp_data(pair)
    config, state = pair.config, pair.original.state_dict()
    sizes = {
        "layers": config.num_hidden_layers,
        "embed_dim": config.hidden_size,
        "attention_heads": config.num_attention_heads,
        "token_dropout": config.token_dropout,
    }
    if config.model_version == "ESM-2":
        del sizes["token_dropout"]
        described = _arguments("encoder", sizes, _name="esm2", token_dropout=config.token_dropout)
        return {"cfg": {"model": described, "task": None}, "model": _prefixed(state)}
    sizes["ffn_embed_dim"] = config.intermediate_size
    if config.model_version == "ESM-1":
        sizes["final_bias"] = config.final_bias
        described = _arguments("decoder", sizes, arch="protein_bert_base", share_decoder_input_output_embed=False)
        return {"args": described, "model": _prefixed(state, "decoder.")}
    positions = config.max_position_embeddings - 2
    # the loader believes the tensors, not this argument
    stale = {"emb_layer_norm_before": not config.emb_layer_norm_before}
    described = _arguments("encoder", sizes, arch="roberta_large", max_positions=positions, **stale)
    return {"args": described, "model": _prefixed(state)}


def _arguments(prefix: str, sizes: dict[str, Any], **more: Any) -> Namespace:
    return Namespace(**{f"{prefix}_{key}": value for key, value in sizes.items()}, **more, **_NOISE)


def _prefixed(state: dict[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
    """Name the tensors as in a checkpoint; without a prefix, as the trainer of ESM-1b and ESM-2 does."""

    def name_of(name: str) -> str:
        if name in CONTACTS:
            return name
        return (prefix or ("encoder." if name.startswith("lm_head.") else "encoder.sentence_encoder.")) + name

    return {name_of(name): tensor for name, tensor in state.items()}


def _carp_data(pair: Pair) -> dict[str, Any]:
    config = pair.config
    return {
        "model": "carp",
        "d_embed": config.embedding_size,
        "d_model": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "kernel_size": config.kernel_size,
        "activation": config.hidden_act,
        "slim": config.slim,
        "r": config.max_dilation,
        "model_state_dict": pair.original.model.state_dict(),
    }


def state_of(data: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors among what a file holds."""
    return data["model_state_dict" if "model_state_dict" in data else "model"]


def write_original(
    folder: Path, name: str, data: dict[str, Any], *, legacy: bool = False, contacts: str | None = None
) -> Path:
    """Write a checkpoint.

    Args:
        folder: where to.
        name: of the network, or the stem of the file.
        data: of `original_data`.
        legacy: write torch's format of before 1.6.
        contacts: where fair-esm's regression goes: `"beside"`, `"inside"`, `"both"` (that inside is then another), or
            `"absent"`; as it was published if `None`.
    """
    path = folder / f"{NAMES.get(name, name)}.pt"
    save = {"_use_new_zipfile_serialization": not legacy}
    if contacts is None:
        contacts = "absent" if name == "esm1v" else "beside"
    if "model_state_dict" not in data and contacts != "inside":
        state = dict(data["model"])
        beside = {key: state.pop(key) for key in CONTACTS if key in state}
        if contacts == "both":
            state.update({key: tensor + 1 for key, tensor in beside.items()})
        if contacts != "absent":
            torch.save({"model": beside}, path.with_name(path.stem + REGRESSION), **save)
        data = {**data, "model": state}
    torch.save(data, path, **save)
    return path


def load_original(path: Path) -> nn.Module:
    """Load a checkpoint with the loader of its own package."""
    if path.stem.startswith("carp"):
        return sequence_models.pretrained.load_model_and_alphabet(str(path))[0].eval()
    with warnings.catch_warnings(), torch.serialization.safe_globals([Namespace]):
        warnings.filterwarnings("ignore", message="Regression weights not found")
        return esm.pretrained.load_model_and_alphabet_local(path)[0].eval()
