"""What cannot be perturbed in memory is refused before anything is changed; and what may look odd is perturbed."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import small_model
from support.spec_table import copied, differing
from transformers import AutoModel

import hf_perturb
from hf_perturb import PerturbationError, create_variant

METHODS = ("reinit", "resample", "gaussian")
CONV = "model.embedder.layers.0.conv.weight"
TOKENS = torch.tensor([[0, 5, 6, 7, 2]])


def refused(model, asked, match: str) -> None:
    """Show that a perturbation is refused, and that the model is what it was."""
    before = copied(model)
    tied = getattr(model, "all_tied_weights_keys", None)
    with pytest.raises(PerturbationError, match=match):
        model.perturb(asked)
    assert model.config.perturbation is None
    assert model.all_tied_weights_keys == tied
    now, then = ({name: tensor.nan_to_num() for name, tensor in of.items()} for of in (copied(model), before))
    assert not differing(now, then)


@pytest.mark.parametrize(("value", "why"), [(float("nan"), "not finite"), (60000.0, "more than its type holds")])
def test_a_gaussian_that_cannot_be_drawn_changes_nothing(value, why):
    model = small_model("esm1b").half()
    model.layers[1].fc1.weight.data[0] = value
    model.layers[1].fc1.weight.data[1:] = -value
    refused(model, "gaussian", rf"tensor 'layers\.1\.fc1\.weight': .*{why}")
    # nothing is asked of values that only move
    assert model.perturb("resample").config.perturbation.digest is not None


@pytest.mark.parametrize("method", METHODS)
def test_tensors_that_are_one_in_memory_are_refused_by_name(method):
    model = small_model("esm1b")
    model.layers[1].fc1.weight = model.layers[0].fc1.weight
    refused(model, method, r"tensor 'layers\.1\.fc1\.weight' is 'layers\.0\.fc1\.weight' in memory.*clone it")
    model = small_model("carp")
    weight = model.model.embedder.layers[0].conv.weight
    weight.data = weight.data[:1].expand(weight.shape)
    refused(model, method, r"layers\.0\.conv\.weight' is of entries that are one in memory")


@pytest.mark.parametrize("method", ["resample", "gaussian"])
def test_constant_tensors_have_no_such_control(method):
    model = small_model("carp")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    refused(model, method, "changes no tensor of this model")


@pytest.mark.parametrize("network", ["esm1b", "carp"])
@pytest.mark.parametrize("method", METHODS)
def test_a_control_is_the_same_in_inference_mode_and_can_be_trained(network, method):
    expected = small_model(network).perturb(method)
    model = small_model(network)
    with torch.inference_mode():
        model.perturb(method)
        built = small_model(network).perturb(method)
    assert not differing(copied(model), copied(expected))
    assert model.config.perturbation.digest == expected.config.perturbation.digest == built.config.perturbation.digest
    model(TOKENS).logits.sum().backward()
    assert all(
        parameter.grad is not None for name, parameter in model.named_parameters() if "fc1" in name or "conv" in name
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_graph_of_the_weights_before_is_not_believed(method):
    model = small_model("esm1b")
    loss = model(TOKENS).logits.sum()
    model.perturb(method)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_float8_is_refused_by_name(tmp_path):
    model = small_model("carp").to(torch.float8_e4m3fn)
    with pytest.raises(PerturbationError, match=r"conv\.weight F8_E4M3.*F64, F32, F16, BF16"):
        model.perturb("reinit")
    base = tmp_path / "base"
    small_model("carp").save_pretrained(base)
    weights = base / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.embedder.layers.0.conv.weight"] = tensors["model.embedder.layers.0.conv.weight"].to(
        torch.float8_e5m2
    )
    save_file(tensors, weights, {"format": "pt"})
    named = r"model\.embedder\.layers\.0\.conv\.weight F8_E5M2; allowed: F64, F32, F16, BF16"
    with pytest.raises(PerturbationError, match=named):
        AutoModel.from_pretrained(base, perturbation="reinit")
    with pytest.raises(hf_perturb.CheckpointError, match=named):
        create_variant(base, tmp_path / "out", "reinit")


@pytest.mark.parametrize("asked", ["Reinit", {"method": "reinit", "seed": -1}, {"method": "resample", "axis": "up"}])
def test_a_wrong_keyword_is_no_fault_of_the_file(asked, tmp_path):
    small_model("carp").save_pretrained(tmp_path)
    for cls in (AutoModel, hf_perturb.CarpModel, hf_perturb.CarpConfig):
        with pytest.raises(PerturbationError, match=r"^perturbation (method|seed|axis): got"):
            cls.from_pretrained(tmp_path, perturbation=asked)
