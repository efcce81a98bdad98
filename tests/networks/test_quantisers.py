"""Quantisers find in an ESM what they find in Transformers' own, and a record stays true of what they make."""

from __future__ import annotations

import copy
import json
import pickle
from functools import partial

import pytest
import torch
from parity.stock import STOCKS, padded_batch, stock_model
from support.models import model_class, small_model
from support.quantiser import Rounded, RoundingConfig, rounded
from torch.testing._internal.two_tensor import TwoTensor
from transformers import PreTrainedModel

import hf_perturb
from hf_perturb import wrap
from hf_perturb.checkpoints.headers import read_tensors
from hf_perturb.checkpoints.origins.stock_esm import our_name
from hf_perturb.networks.alone import load_alone, save_alone
from hf_perturb.networks.seal import record_now

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


def tokens(model):
    return torch.arange(4, 24)[None] if model.config.model_type == "fair_esm" else torch.arange(20)[None]


def stored(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", ["esm1", "esm1b", "esm2"])
def test_a_quantised_control_is_close_claims_no_digest_and_loads_again(name, tmp_path):
    exact = small_model(name).perturb({"method": "resample", "seed": 7})
    exact.save_pretrained(tmp_path / "control")
    assert "digest" in stored(tmp_path / "control")["perturbation"]
    model = type(exact).from_pretrained(tmp_path / "control", quantization_config=RoundingConfig())
    assert isinstance(model.layers[0].self_attn.q_proj, Rounded)
    said = {"method": "resample", "rules": "documented", "seed": 7}
    assert model.config.perturbation.to_dict() == record_now(model).to_dict() == said
    with torch.no_grad():
        logits, expected = (each(tokens(each)).logits for each in (model, exact))
        assert 0 < (logits - expected).norm() < 0.05 * expected.norm()
        model.save_pretrained(tmp_path / "quantised")
        assert stored(tmp_path / "quantised")["perturbation"] == said
        again = type(exact).from_pretrained(tmp_path / "quantised")
        assert torch.equal(again(tokens(again)).logits, logits)
    assert again.config.perturbation.to_dict() == said
    again.layers[0].final_layer_norm.weight.data.add_(1)
    again.save_pretrained(tmp_path / "edited")
    assert stored(tmp_path / "edited")["perturbation"] == {**said, "changed": True}


def test_a_quantised_base_claims_no_digest_and_cannot_be_perturbed(tmp_path):
    small_model("esm2").save_pretrained(tmp_path / "own")
    hf_perturb.convert_checkpoint(tmp_path / "own", tmp_path / "base")
    assert "digest" in stored(tmp_path / "base")
    model = model_class("esm2").from_pretrained(tmp_path / "base", quantization_config=RoundingConfig())
    assert model.config.digest is None
    for quantised in (model, rounded(small_model("esm1")), torch.ao.quantization.quantize_dynamic(small_model("esm1"))):
        with pytest.raises(hf_perturb.PerturbationError, match=r"quantised weights( \(.+\))? cannot be perturbed"):
            hf_perturb.perturb(quantised, "reinit")


def test_verify_says_that_weights_are_quantised(tmp_path):
    small_model("esm1").perturb("reinit").save_pretrained(tmp_path / "control")
    model = model_class("esm1").from_pretrained(tmp_path / "control", quantization_config=RoundingConfig())
    model.save_pretrained(tmp_path / "quantised")
    with pytest.raises(hf_perturb.CheckpointError, match=r"weights are quantised \(rounding\)"):
        hf_perturb.verify_variant(tmp_path / "quantised")


def test_a_header_names_no_tensor_that_torchao_could_not_read_again(tmp_path):
    small_model("esm1").save_pretrained(tmp_path / "base")
    model = model_class("esm1").from_pretrained(tmp_path / "base", quantization_config=RoundingConfig())
    model.save_pretrained(tmp_path / "quantised")
    metadata = read_tensors(tmp_path / "quantised" / "model.safetensors")[1]
    named = json.loads(metadata["tensor_names"])
    assert named == [name for name in model.state_dict() if name not in ("embed_out", "embed_out_bias")]
    assert {*named} < metadata.keys()
    assert "embed_out" not in metadata


def test_model_files_alone_claim_no_digest_of_quantised_weights(tmp_path, monkeypatch):
    exact = small_model("esm1").perturb("reinit")
    exact.save_pretrained(tmp_path / "control")
    monkeypatch.setattr("hf_perturb.networks.record.Perturbation", None)  # what is not there
    monkeypatch.setattr("hf_perturb.networks.seal.lines_of", None)
    given = {"quantization_config": RoundingConfig()}
    model, _ = load_alone(type(exact), tmp_path / "control", (), None, given)
    said = {"method": "reinit", "seed": 42, "rules": "documented"}
    assert model.config.perturbation == said
    save_alone(model, partial(PreTrainedModel.save_pretrained, model, tmp_path / "quantised"), None)
    metadata = read_tensors(tmp_path / "quantised" / "model.safetensors")[1]
    assert "embed_out" not in json.loads(metadata["tensor_names"])
    assert stored(tmp_path / "quantised")["perturbation"] == json.loads(metadata["perturbation"]) == said


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForSequenceClassification"])
def test_a_load_that_quantises_nothing_says_so(head, tmp_path, caplog):
    small_model("carp").perturb("reinit").save_pretrained(tmp_path / "control")
    model = model_class("carp", head).from_pretrained(tmp_path / "control", quantization_config=RoundingConfig())
    said = f"rounding found nothing to quantise in the trunk of this Carp{head}"
    assert [said in record.getMessage() for record in caplog.records if record.name == "hf_perturb"] == [True]
    whole = head == "ForMaskedLM"
    assert (model.config.perturbation.digest is not None) == whole
    if whole:
        model.save_pretrained(tmp_path / "out")
        assert hf_perturb.verify_variant(tmp_path / "out").ok


def test_a_load_that_quantises_says_nothing(tmp_path, caplog):
    small_model("esm1").save_pretrained(tmp_path / "base")
    model_class("esm1").from_pretrained(tmp_path / "base", quantization_config=RoundingConfig())
    assert not [record for record in caplog.records if record.name == "hf_perturb"]


@pytest.mark.parametrize("quantise", ["dynamic", "rounded", "wrapper"])
def test_a_control_that_is_quantised_in_memory_has_changed(quantise):
    model = small_model("esm1b").perturb("reinit")
    if quantise == "dynamic":
        model = torch.ao.quantization.quantize_dynamic(model)
    elif quantise == "rounded":
        rounded(model)
    else:
        weight = model.layers[0].fc1.weight.detach()
        model.layers[0].fc1.weight = torch.nn.Parameter(TwoTensor(weight, weight))
    assert record_now(model).changed
    assert "perturbation-changed:true" in model.model_tags
