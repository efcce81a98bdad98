"""The peer of `scripts/benchmark`: the study's procedure as a whole process, from a weights file to a weights file.

It builds the original class as the original loader does, loads the weights, perturbs them in memory as the study's code
did (`tests/parity/study.py`), and saves them. Nothing of hf_perturb or Transformers is imported.

  python scripts/study_procedure.py resample my-base/model.safetensors out.safetensors
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from safetensors.torch import load_model, save_model
from torch import nn

STUDY = Path(__file__).parent.parent / "tests" / "parity" / "study.py"


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


def study(family: str) -> ModuleType:
    """Import the study's procedure from the tests."""
    if family != "carp":
        # it asks whether a module is a CARP; sequence_models would cost the peer half a second for nothing
        sys.modules["sequence_models.pretrained"] = SimpleNamespace(CARP=type(None))  # type: ignore[assignment]
    spec = importlib.util.spec_from_file_location("study", STUDY)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def main() -> None:
    """Parse the command line and run the procedure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=("reinit", "resample"))
    parser.add_argument("base", type=Path, help="model.safetensors of a base, its config.json beside it")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--seed", type=int, default=42, help="default: %(default)s, the study's first")
    options = parser.parse_args()
    config = json.loads(options.base.with_name("config.json").read_text(encoding="utf-8"))
    family = config["model_type"]
    procedure = getattr(study(family), options.method)
    module = (build_carp if family == "carp" else build_esm)(config)
    # as the original loader has it: ESM-1v was published without a contact regression
    load_model(module, options.base, strict=config.get("contact_head", True))
    procedure(module, options.seed)
    save_model(module, str(options.out))


if __name__ == "__main__":
    main()
