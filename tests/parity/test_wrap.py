"""`wrap` makes a model of ours over the memory of a live original."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from esm.model.esm1 import ProteinBertModel
from sequence_models.convolutional import ByteNetLM
from sequence_models.pretrained import CARP
from torch import nn

import hf_perturb
from parity.originals import CARPS, FAIR_ESM, Pair, assert_close, small_pair

# options of the original class that no published model, or not every one, has
OPTIONS = {
    "esm1 without bias": ("esm1", {"final_bias": False}),
    "esm1 with token dropout": ("esm1", {"token_dropout": True}),
    "esm1b without token dropout": ("esm1b", {"token_dropout": False}),
    "esm2 without token dropout": ("esm2", {"token_dropout": False}),
}


@pytest.fixture(params=[*FAIR_ESM, *CARPS, *OPTIONS])
def pair(request) -> Pair:
    name, options = OPTIONS.get(request.param, (request.param, {}))
    return small_pair(name, **options)


def assert_same_outputs(pair: Pair, model: nn.Module) -> None:
    input_ids = pair.batch((7, 1, 30), masked=True)
    inside = input_ids != model.config.pad_token_id
    with torch.no_grad():
        assert_close(model(input_ids).logits[inside], pair.outputs(input_ids)[1][inside], "logits")


def test_configuration_is_read_from_the_module(pair):
    wrapped = hf_perturb.wrap(pair.original)
    read, expected = wrapped.config.to_dict(), pair.config.to_dict()
    if wrapped.config.model_type == "carp":  # the module keeps dilations, not the r that they came from
        assert wrapped.config.dilations == pair.config.dilations
        del read["max_dilation"], expected["max_dilation"]
    assert read == expected


def test_every_tensor_is_shared(pair):
    wrapped = hf_perturb.wrap(pair.original)
    theirs, ours = pair.original.state_dict(keep_vars=True), wrapped.state_dict(keep_vars=True)
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].data_ptr() == tensor.data_ptr() != 0, name
    for (name, parameter), ours in zip(pair.original.named_parameters(), wrapped.parameters(), strict=True):
        assert ours is parameter, name
    if hasattr(pair.original, "lm_head"):
        assert wrapped.lm_head.weight is wrapped.embed_tokens.weight is pair.original.lm_head.weight
    assert_same_outputs(pair, wrapped)


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_frozen_parameters_stay(pair, training):
    next(pair.original.parameters()).requires_grad_(False)
    wrapped = hf_perturb.wrap(pair.original.train(training))
    assert {module.training for module in wrapped.modules()} == {training}
    assert [p.requires_grad for p in wrapped.parameters()] == [p.requires_grad for p in pair.original.parameters()]


@torch.no_grad()
def test_editing_one_edits_the_other(pair):
    wrapped = hf_perturb.wrap(pair.original)
    before = pair.outputs(pair.batch((7,)))[1]
    for edited in (pair.original, wrapped):
        for parameter in edited.parameters():
            parameter.mul_(1.05)
        assert_same_outputs(pair, wrapped)
    assert not torch.allclose(pair.outputs(pair.batch((7,)))[1], before, atol=1e-3)


@torch.no_grad()
def test_saved_model_is_loaded_again(pair, tmp_path):
    wrapped = hf_perturb.wrap(pair.original)
    wrapped.save_pretrained(tmp_path)
    loaded = type(wrapped).from_pretrained(tmp_path)
    for name, tensor in pair.original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert_same_outputs(pair, loaded)


def test_control_of_a_wrapped_model(pair):
    embedding = next(pair.original.parameters()).detach().clone()
    expected = hf_perturb.perturb(pair.model(), "reinit").state_dict()
    wrapped = hf_perturb.wrap(pair.original)
    assert hf_perturb.perturb(wrapped, "reinit") is wrapped
    assert wrapped.config.perturbation == hf_perturb.Perturbation("reinit")
    theirs, tied = pair.original.state_dict(), hasattr(pair.original, "lm_head")
    for name, tensor in wrapped.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
        assert (tensor.data_ptr() == theirs[name].data_ptr()) != (tied and name == "lm_head.weight"), name
    # the document keeps the embedding, so the original's tied head, which is the embedding, is kept as well
    assert torch.equal(next(pair.original.parameters()), embedding)
    if tied:
        assert not wrapped.config.tie_word_embeddings
        assert pair.original.lm_head.weight is pair.original.embed_tokens.weight
    else:
        assert_same_outputs(pair, wrapped)


def test_subclasses_are_recognised():
    for name, base in (("esm1b", ProteinBertModel), ("carp", CARP)):
        pair = small_pair(name)
        pair.original.__class__ = type("Own", (base,), {"__module__": "own_package.networks"})
        assert_same_outputs(pair, hf_perturb.wrap(pair.original))


class SomeoneElse(nn.Linear):
    pass


SomeoneElse.__name__ = "CARP"  # the name alone is not enough


@pytest.mark.parametrize("foreign", [nn.Linear(2, 2), SomeoneElse(2, 2), "esm1b_t33_650M_UR50S", None], ids=repr)
def test_foreign_object_is_refused(foreign):
    with pytest.raises(TypeError, match=r"allowed: fair-esm's ProteinBertModel .* sequence-models' CARP") as caught:
        hf_perturb.wrap(foreign)
    assert isinstance(caught.value, hf_perturb.HfPerturbError)


def test_original_of_another_build_is_refused():
    other = CARP(ByteNetLM(30, 8, 32, 2, 5, 4, padding_idx=28, final_ln=False))
    with pytest.raises(hf_perturb.UnsupportedModuleError, match=r"last_norm"):
        hf_perturb.wrap(other)


def test_importing_the_package_imports_no_original():
    code = """
import sys
import torch
import hf_perturb, hf_perturb.checkpoints.tokenizers
try:
    hf_perturb.wrap(torch.nn.Linear(1, 1))
except TypeError:
    assert not {"esm", "sequence_models"} & {name.partition(".")[0] for name in sys.modules}
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_head_that_is_untied_already_stays_so():
    original = small_pair("esm1b").original
    original.lm_head.weight = nn.Parameter(torch.randn_like(original.lm_head.weight))
    wrapped = hf_perturb.wrap(original)
    assert wrapped.config.tie_word_embeddings is False
    wrapped.tie_weights()
    assert wrapped.lm_head.weight is original.lm_head.weight is not wrapped.embed_tokens.weight


@pytest.mark.parametrize(
    "change",
    [
        {"causal": True},
        {"n_frozen_embs": 10},
        {"down_embed": False, "d_embedding": 30},
        {"n_layers": 0},
        {"kernel_size": 4},
        {"padding_idx": None},
        {"final_ln": False},
        {"rank": 4},
    ],
    ids=str,
)
def test_a_carp_of_another_build_is_refused(change):
    sizes = {"n_tokens": 30, "d_embedding": 8, "d_model": 16, "n_layers": 3, "kernel_size": 5, "r": 4}
    options = {"padding_idx": 28, "final_ln": True, "activation": "gelu"}
    with pytest.raises(hf_perturb.UnsupportedModuleError, match="not built like an original"):
        hf_perturb.wrap(CARP(ByteNetLM(**{**sizes, **options, **change})))
