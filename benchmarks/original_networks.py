"""The classes of fair-esm and sequence-models, built as their own loaders do, with the weights of one of our bases.

Nothing of hf_perturb or Transformers is imported.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_model
from torch import nn


def build_esm(config: dict[str, Any]) -> nn.Module:
    """Build the ESM of a `config.json`. Source: `esm.pretrained.load_model_and_alphabet_core` (fair-esm 2.0.0)."""
    from esm.data import Alphabet

    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    if config["model_version"] == "ESM-2":
        from esm.model.esm2 import ESM2

        alphabet = Alphabet.from_architecture("ESM-1b")
        return ESM2(layers, config["hidden_size"], heads, alphabet, config["token_dropout"])
    from esm.model.esm1 import ProteinBertModel

    arch = "protein_bert_base" if config["model_version"] == "ESM-1" else "roberta_large"
    arguments = argparse.Namespace(
        arch=arch,
        layers=layers,
        embed_dim=config["hidden_size"],
        attention_heads=heads,
        ffn_embed_dim=config["intermediate_size"],
        max_positions=config["max_position_embeddings"] - 2,  # the class adds the two itself
        **{key: config[key] for key in ("emb_layer_norm_before", "token_dropout", "final_bias")},
    )
    return ProteinBertModel(arguments, Alphabet.from_architecture(arch))


def build_carp(config: dict[str, Any]) -> nn.Module:
    """Build the CARP of a `config.json`. Source: `sequence_models.pretrained.load_carp` (sequence-models 1.8.0)."""
    from sequence_models.constants import MASK, PROTEIN_ALPHABET
    from sequence_models.convolutional import ByteNetLM
    from sequence_models.pretrained import CARP

    mask = PROTEIN_ALPHABET.index(MASK)
    keys = ("embedding_size", "hidden_size", "num_hidden_layers", "kernel_size", "max_dilation")
    sizes = [config[key] for key in keys]
    options = {"slim": config["slim"], "activation": config["hidden_act"]}
    return CARP(ByteNetLM(len(PROTEIN_ALPHABET), *sizes, padding_idx=mask, final_ln=True, **options))


def load_original(base: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load a base into the class of its publisher, every tensor under the same name.

    Args:
        base: a folder with `config.json` and `model.safetensors`.

    Returns:
        The network, and the content of `config.json`.
    """
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    module = (build_carp if config["model_type"] == "carp" else build_esm)(config)
    # as the original loader has it: ESM-1v was published without a contact regression
    load_model(module, base / "model.safetensors", strict=config.get("contact_head", True))
    return module.eval(), config
