"""The eight documented models, at full size but without memory: every tensor as in the original, in its order."""

from __future__ import annotations

import re

import pytest
import torch

import hf_perturb
from parity.originals import Pair, carp, fair_esm

ESM1 = {"arch": "protein_bert_base"}
MODELS = {
    "esm1_t6_43M_UR50S": (fair_esm, {**ESM1, "layers": 6, "embed_dim": 768, "attention_heads": 12}),
    "esm1_t12_85M_UR50S": (fair_esm, {**ESM1, "layers": 12, "embed_dim": 768, "attention_heads": 12}),
    "esm1_t34_670M_UR50S": (fair_esm, {**ESM1, "layers": 34, "embed_dim": 1280, "attention_heads": 20}),
    "esm1b_t33_650M_UR50S": (
        fair_esm,
        {"arch": "roberta_large", "layers": 33, "embed_dim": 1280, "attention_heads": 20},
    ),
    "carp_600k": (carp, {"d_model": 128, "n_layers": 16}),
    "carp_38M": (carp, {"d_model": 1024, "n_layers": 16}),
    "carp_76M": (carp, {"d_model": 1024, "n_layers": 32}),
    "carp_640M": (carp, {"d_model": 1280, "n_layers": 56, "slim": False}),
}


def on_meta(config) -> torch.nn.Module:
    is_carp = isinstance(config, hf_perturb.CarpConfig)
    with torch.device("meta"):
        return (hf_perturb.CarpForMaskedLM if is_carp else hf_perturb.FairEsmForMaskedLM)(config)


def tensors(model: torch.nn.Module) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    return [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in model.state_dict().items()]


def pair_on_meta(name: str) -> Pair:
    build, sizes = MODELS[name]
    with torch.device("meta"):
        return build(**sizes)


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_is_that_of_the_original(name):
    pair = pair_on_meta(name)
    ours = on_meta(pair.config)
    assert tensors(ours) == tensors(pair.original)
    # state_dict holds buffers too, and a tied tensor twice
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in pair.original.named_parameters()]
    stated, unit = re.search(r"_(\d+)([kM])", name).groups()
    parameters = sum(parameter.numel() for parameter in ours.parameters())
    assert parameters == pytest.approx(int(stated) * {"k": 1e3, "M": 1e6}[unit], rel=0.03)


@pytest.mark.parametrize(
    ("config", "name"),
    [(hf_perturb.FairEsmConfig, "esm1b_t33_650M_UR50S"), (hf_perturb.CarpConfig, "carp_640M")],
)
def test_defaults_are_the_largest_models(config, name):
    pair = pair_on_meta(name)
    assert config().to_dict() == pair.config.to_dict()
    assert tensors(on_meta(config())) == tensors(pair.original)
