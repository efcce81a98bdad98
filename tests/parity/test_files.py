"""A file of ours fills an original, and an original's tensors fill a model of ours."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, load_model

import hf_perturb
from parity.originals import CARPS, FAIR_ESM, TIED, small_pair


def another_original(name: str) -> torch.nn.Module:
    """Build the same network with other weights, as its own constructor draws them."""
    torch.manual_seed(1)
    return {**FAIR_ESM, **CARPS}[name]().original


@pytest.mark.parametrize("name", [*FAIR_ESM, *CARPS])
@torch.no_grad()
def test_saved_file_fills_the_original(name, tmp_path):
    pair = small_pair(name)
    pair.model().save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    expected = pair.original.state_dict()
    tied = name in TIED
    assert stored.keys() == expected.keys() - ({"lm_head.weight"} if tied else set())  # a tied tensor once
    filled = another_original(name)
    input_ids = pair.batch((7, 1, 30), masked=True)
    assert not torch.allclose(pair.represent(filled, input_ids)[1], pair.outputs(input_ids)[1], atol=0.1)
    assert load_model(filled, tmp_path / "model.safetensors", strict=True) == (set(), [])
    for tensor_name, tensor in filled.state_dict().items():
        assert torch.equal(tensor, expected[tensor_name]), tensor_name
    assert torch.equal(pair.represent(filled, input_ids)[1], pair.outputs(input_ids)[1])
    if tied:
        assert filled.lm_head.weight is filled.embed_tokens.weight


@pytest.mark.parametrize("name", [*FAIR_ESM, *CARPS])
@torch.no_grad()
def test_original_tensors_fill_ours(name):
    pair = small_pair(name)
    model = pair.model()  # loads strictly
    for tensor_name, tensor in pair.original.state_dict().items():
        assert torch.equal(model.state_dict()[tensor_name], tensor), tensor_name
    state = pair.original.state_dict()
    state.popitem()
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(state, strict=True)


@torch.no_grad()
def test_control_with_an_untied_head_fills_an_original_with_one(tmp_path):
    """The one file that a plain original cannot take: the document keeps the embedding and perturbs the head."""
    pair = small_pair("esm1b")
    control = hf_perturb.perturb(pair.model(), "reinit")
    control.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"lm_head\.weight"):
        load_model(another_original("esm1b"), tmp_path / "model.safetensors", strict=True)
    filled = another_original("esm1b")
    filled.lm_head.weight = torch.nn.Parameter(filled.lm_head.weight.clone())
    load_model(filled, tmp_path / "model.safetensors", strict=True)
    input_ids = pair.batch((7, 30))
    inside = input_ids != filled.padding_idx
    torch.testing.assert_close(filled(input_ids)["logits"][inside], control(input_ids).logits[inside])
