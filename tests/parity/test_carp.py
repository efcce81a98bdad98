"""CARP computes what sequence-models' `CARP(ByteNetLM(...))` computes from the same weights."""

from __future__ import annotations

import pytest
import torch
from sequence_models.constants import MASK, PROTEIN_ALPHABET
from torch import nn

from parity.originals import CARPS, LENGTHS, Pair, assert_close, small_pair

BATCHES = [*((length,) for length in LENGTHS), (7, 1, 100, 2), (7, 1022)]


@pytest.fixture(scope="module", params=CARPS)
def pair(request) -> Pair:
    return small_pair(request.param)


@pytest.fixture(scope="module")
def model(pair) -> nn.Module:
    return pair.model()


def assert_same_outputs(pair: Pair, model: nn.Module, input_ids: torch.Tensor) -> None:
    inside = input_ids != pair.original.pad_idx
    representations, logits = pair.outputs(input_ids)
    assert 0.1 < logits[inside].std() < 10  # of the order that the tolerance is meant for
    outputs = model(input_ids, attention_mask=inside.long(), output_hidden_states=True)
    assert_close(outputs.logits[inside], logits[inside], "logits")
    for i, (ours, theirs) in enumerate(zip(outputs.hidden_states, representations, strict=True)):
        assert_close(ours[inside], theirs[inside], f"representation {i}")


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("lengths", BATCHES, ids=str)
@torch.no_grad()
def test_outputs(pair, model, lengths, masked):
    assert_same_outputs(pair, model, pair.batch(lengths, masked))


@torch.no_grad()
def test_gap_inside_a_sequence_is_padding(pair, model):
    # the alphabet has one token, `-`, for both
    input_ids = pair.tokenize(["MKV--LAGE", "M-K"])
    assert_same_outputs(pair, model, input_ids)
    # so attending to it changes nothing
    attended = model(input_ids, attention_mask=torch.ones_like(input_ids)).logits
    assert_close(attended, model(input_ids).logits, "logits")


def test_gradients(pair):
    """The mask token's embedding is not trained: the original calls it padding."""
    model = pair.model()
    input_ids = pair.batch((1, 7, 30), masked=True)
    inside = input_ids != pair.original.pad_idx
    pair.original.zero_grad()
    for logits in (pair.outputs(input_ids)[1], model(input_ids).logits):
        logits[inside].square().mean().backward()
    assert not pair.original.model.embedder.embedder.weight.grad[PROTEIN_ALPHABET.index(MASK)].any()
    for (name, theirs), ours in zip(pair.original.named_parameters(), model.parameters(), strict=True):
        assert theirs.grad.abs().max() > 0, name
        assert_close(ours.grad, theirs.grad, f"gradient of {name}")


def test_norms_have_the_epsilon_of_the_original(pair, model):
    theirs = {name: module.eps for name, module in pair.original.named_modules() if hasattr(module, "eps")}
    assert {name: module.eps for name, module in model.named_modules() if hasattr(module, "eps")} == theirs
