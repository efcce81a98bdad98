"""A new network starts like the original's: every tensor equal in distribution to what its constructor draws."""

from __future__ import annotations

import argparse

import pytest
import torch
from esm.data import Alphabet
from esm.model.esm1 import ProteinBertModel
from esm.model.esm2 import ESM2
from scipy.stats import ks_2samp
from sequence_models.convolutional import ByteNetLM
from sequence_models.pretrained import CARP
from support.spec_table import PARTS, part_of
from transformers.initialization import no_init_weights

import hf_perturb


def esm_pair(arch, version):
    sizes = {"layers": 2, "embed_dim": 128, "ffn_embed_dim": 256, "attention_heads": 4, "max_positions": 1024}
    options = {"token_dropout": True, "emb_layer_norm_before": True, "final_bias": True}
    original = ProteinBertModel(argparse.Namespace(arch=arch, **sizes, **options), Alphabet.from_architecture(arch))
    config = hf_perturb.FairEsmConfig(
        model_version=version, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256
    )
    return original, hf_perturb.FairEsmForMaskedLM(config)


def carp_pair():
    network = ByteNetLM(30, 8, 128, 3, 5, 128, padding_idx=28, final_ln=True, slim=True, activation="gelu")
    config = hf_perturb.CarpConfig(hidden_size=128, num_hidden_layers=3, slim=True)
    return CARP(network), hf_perturb.CarpForMaskedLM(config)


def esm2_pair():
    config = hf_perturb.FairEsmConfig(
        model_version="ESM-2", hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512
    )
    return ESM2(2, 128, 4), hf_perturb.FairEsmForMaskedLM(config)


PAIRS = {
    "ESM-1": lambda: esm_pair("protein_bert_base", "ESM-1"),
    "ESM-1b": lambda: esm_pair("roberta_large", "ESM-1b"),
    "ESM-2": esm2_pair,
    "CARP": carp_pair,
}


@pytest.mark.parametrize("pair", PAIRS)
def test_equal_in_distribution(pair):
    torch.manual_seed(0)
    original, model = PAIRS[pair]()
    theirs, ours = original.state_dict(), model.state_dict()
    assert list(theirs) == list(ours)
    compared = 0
    for name, expected in theirs.items():
        if name == "embed_positions._float_tensor":
            continue  # the original leaves it uninitialised
        one, other = expected.flatten(), ours[name].flatten()
        if one.numel() == 1:
            continue  # one draw says nothing
        if one.min() == one.max():
            assert torch.equal(one, other), f"{name} is a constant"
        else:
            # Bonferroni: about a hundred tensors, one false alarm in a thousand runs (and the seed is fixed)
            assert ks_2samp(one.numpy(), other.numpy()).pvalue > 1e-5, name
            compared += 1
    assert compared > 20


@pytest.mark.parametrize("pair", PAIRS)
def test_what_the_rules_keep_is_perturbed_also_as_the_original_draws_it(pair):
    torch.manual_seed(0)
    original, model = PAIRS[pair]()
    drawn = model.perturb({"method": "reinit", "seed": 0, "also": PARTS}).state_dict()
    parts = [name for name in drawn if part_of(model.config.model_type, name)]
    assert len(parts) == {"ESM-1": 3, "CARP": 7}.get(pair, 1)
    for name in parts:
        theirs, ours = original.state_dict()[name], drawn[name]
        assert torch.equal(theirs.eq(0).all(-1), ours.eq(0).all(-1)), f"{name}: the same rows are zero"
        if theirs.min() == theirs.max():
            assert torch.equal(theirs, ours), f"{name} is a constant"
        else:
            assert ks_2samp(theirs.flatten().numpy(), ours.flatten().numpy()).pvalue > 1e-4, name


@pytest.mark.parametrize("pair", PAIRS)
def test_zero_rows_are_the_same(pair):
    original, model = PAIRS[pair]()
    for name, expected in original.state_dict().items():
        if "embed" in name and expected.dim() == 2 and expected.shape[0] > 1:
            zero = (expected == 0).all(1)
            assert torch.equal(zero, (model.state_dict()[name] == 0).all(1)), name


@pytest.mark.parametrize("pair", PAIRS)
def test_parts_that_a_state_lacks_start_like_the_original(pair):
    """Loading draws only what is missing, and leaves what is there, whatever module it sits in."""
    _, model = PAIRS[pair]()
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 7.0)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(".bias")}
    state.pop("lm_head.weight", None)
    loaded = type(model).from_pretrained(None, config=model.config, state_dict=state)
    for name, tensor in loaded.named_parameters():
        seven = bool((tensor == 7.0).all())
        assert seven != name.endswith(".bias"), name


@pytest.mark.parametrize("pair", PAIRS)
def test_a_network_without_any_tensor_given_is_a_new_one(pair):
    _, model = PAIRS[pair]()
    loaded = type(model).from_pretrained(None, config=model.config, state_dict={})
    assert not [name for name, tensor in loaded.state_dict().items() if tensor.is_meta]
    assert loaded.state_dict().keys() == model.state_dict().keys()
    if model.config.tie_word_embeddings:
        assert loaded.lm_head.weight is loaded.embed_tokens.weight


@pytest.mark.parametrize("pair", PAIRS)
def test_buffers_have_their_values_where_initialisation_is_skipped(pair):
    _, model = PAIRS[pair]()
    with no_init_weights():
        made = type(model)(model.config)
    for (name, expected), (_, found) in zip(model.named_buffers(), made.named_buffers(), strict=True):
        assert torch.equal(expected, found), name
