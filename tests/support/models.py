"""Small networks that every test may use, and what is put into them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

import hf_perturb
from hf_perturb.checkpoints.network import CARP, ESM1, ESM1B, ESM2, Alphabet
from hf_perturb.checkpoints.tokenizers import save_tokenizer

ESM_SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
CARP_SIZES = {"hidden_size": 32, "num_hidden_layers": 9, "slim": True}

CONFIGS = {
    "esm1": lambda **kw: hf_perturb.FairEsmConfig(model_version="ESM-1", **(ESM_SIZES | kw)),
    "esm1b": lambda **kw: hf_perturb.FairEsmConfig(model_version="ESM-1b", **(ESM_SIZES | kw)),
    "esm2": lambda **kw: hf_perturb.FairEsmConfig(model_version="ESM-2", **(ESM_SIZES | kw)),
    "carp": lambda **kw: hf_perturb.CarpConfig(**(CARP_SIZES | kw)),
}
UNSTUDIED = ("esm1v", "esm2")  # no control by the rules "published"
TIED = ("esm1b", "esm2")  # the language head is the embedding
HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")


def model_class(network: str, head: str = "ForMaskedLM"):
    """Return the class of a head: `model_class("esm1", "Model")` is `FairEsmModel`."""
    return getattr(hf_perturb, ("Carp" if network == "carp" else "FairEsm") + head)


def small_model(network: str, head: str = "ForMaskedLM", seed: int = 0, **config):
    """Return a small network whose every weight is a draw of its own, as if trained."""
    torch.manual_seed(seed)
    model = model_class(network, head)(CONFIGS[network](**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


ALPHABETS = {"esm1": ESM1, "esm1b": ESM1B, "esm2": ESM2, "carp": CARP}
SEQUENCES = ["MKTAYIAKQRQISFVKSHFSRQ", "MKT", "ACDEFGHIKLMNPQRSTVWY"]


def build_tokenizer(alphabet: Alphabet) -> PreTrainedTokenizerFast:
    """Return the tokenizer of an alphabet as Transformers reads it."""
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(alphabet, Path(folder))
        return PreTrainedTokenizerFast.from_pretrained(folder)


def batch_of(network, sequences=SEQUENCES, side="right"):
    """Tokenize sequences for a network."""
    tokenizer = build_tokenizer(ALPHABETS[network])
    return tokenizer(sequences, padding=True, padding_side=side, return_tensors="pt")


def layers_of(model):
    return model.model.embedder.layers if model.config.model_type == "carp" else model.layers
