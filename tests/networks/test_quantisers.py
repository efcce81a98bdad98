"""Quantisers find in an ESM what they find in Transformers' own."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from parity.stock import STOCKS, padded_batch, stock_model
from support.models import small_model

from hf_perturb import wrap
from hf_perturb.checkpoints.origins.stock_esm import our_name

# torch announces that its own quantiser moves to another package
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
]
HEAD = "lm_head.weight"  # the document's head holds its matrix itself, so there is no module to put another in place of


def quantised_modules(model):
    return {name for name, module in model.named_modules() if isinstance(module, torch.ao.nn.quantized.Linear)}


@pytest.mark.parametrize("name", STOCKS)
def test_the_same_modules_are_quantised_as_in_stock_esm(name):
    stock = stock_model(name)
    theirs = torch.ao.quantization.quantize_dynamic(stock)
    ours = torch.ao.quantization.quantize_dynamic(wrap(stock))
    tensors = {our_name(f"{module}.weight") for module in quantised_modules(theirs)}
    assert quantised_modules(ours) == {tensor.removesuffix(".weight") for tensor in tensors - {HEAD}}
    assert HEAD in tensors
    input_ids, mask = padded_batch()
    with torch.no_grad():
        exact, *rounded = (model(input_ids, attention_mask=mask).logits[mask.bool()] for model in (stock, theirs, ours))
    for logits in rounded:
        assert 0 < (logits - exact).norm() < 0.1 * exact.norm()


def test_every_projection_is_a_plain_linear_layer():
    """What looks for layers to replace tests for the class itself, and makes others by calling it."""
    model = small_model("esm1")
    attention = [f"layers.{layer}.self_attn.{name}_proj" for layer in range(3) for name in ("q", "k", "v", "out")]
    assert {type(model.get_submodule(name)) for name in attention} == {torch.nn.Linear}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copied_network_starts_as_the_network_does(copied):
    model = small_model("esm1b", "Model")
    other = copied(model)
    for each in (model, other):
        torch.manual_seed(0)
        for module in each.modules():
            each._init_weights(module)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))
    # uniform within gain * sqrt(6 / (rows + columns)), gain 1/sqrt(2) and 1; any other layer within 1/sqrt(columns)
    attention = other.layers[0].self_attn
    largest = [projection.weight.abs().max().item() for projection in (attention.q_proj, attention.out_proj)]
    assert largest == pytest.approx([(3 / 64) ** 0.5, (6 / 64) ** 0.5], rel=0.02)
