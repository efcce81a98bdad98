"""ESM-1, ESM-1b and ESM-1v compute what fair-esm's `ProteinBertModel` computes from the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from parity.originals import ATTENTIONS, FAIR_ESM, LENGTHS, Pair, assert_close, small_pair

BATCHES = [*((length,) for length in LENGTHS), (7, 1, 100, 2), (7, 1022)]


@pytest.fixture(scope="module", params=FAIR_ESM)
def pair(request) -> Pair:
    return small_pair(request.param)


@pytest.fixture(scope="module")
def models(pair) -> dict[str, nn.Module]:
    models = {attention: pair.model(attention) for attention in ATTENTIONS}
    assert all(model.config._attn_implementation == attention for attention, model in models.items())
    return models


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("lengths", BATCHES, ids=str)
@torch.no_grad()
def test_outputs(pair, models, lengths, masked):
    input_ids = pair.batch(lengths, masked)
    inside = input_ids != pair.original.padding_idx
    mask = inside.long()
    representations, logits = pair.outputs(input_ids)
    assert 0.1 < logits[inside].std() < 10  # of the order that the tolerance is meant for
    for attention, model in models.items():
        outputs = model(input_ids, attention_mask=mask, output_hidden_states=True)
        assert_close(outputs.logits[inside], logits[inside], f"{attention} logits")
        for i, (ours, theirs) in enumerate(zip(outputs.hidden_states, representations, strict=True)):
            assert_close(ours[inside], theirs[inside], f"{attention} representation {i}")


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("lengths", BATCHES, ids=str)
@torch.no_grad()
def test_attentions_and_contacts(pair, models, lengths, masked):
    input_ids = pair.batch(lengths, masked)
    mask = (input_ids != pair.original.padding_idx).long()
    theirs = pair.original(input_ids, need_head_weights=True)["attentions"]
    theirs_contacts = pair.original.predict_contacts(input_ids)
    if lengths == (100,):
        assert theirs[:, -1].std() > 0.01
        assert theirs_contacts.std() > 0.05
    # attentions always come from the eager path, so the longest sequences need not go through it twice
    for model in list(models.values())[: 1 if max(lengths) > 100 else 2]:
        attentions = model(input_ids, attention_mask=mask, output_attentions=True).attentions
        # with the padding: there the original's attentions are zero, and so are ours
        assert_close(torch.stack(attentions, 1), theirs, "attentions")
        contacts = model.predict_contacts(input_ids, mask)
        assert contacts.shape == theirs_contacts.shape
        for contact_map, their_map, n in zip(contacts, theirs_contacts, lengths, strict=True):
            assert_close(contact_map[:n, :n], their_map[:n, :n], f"contact map of {n} residues")


def test_gradients(pair):
    """The tied head, the padding row of the embedding and the extra key train as they do in the original."""
    model = pair.model()
    input_ids = pair.batch((1, 7, 30), masked=True)
    pair.original.zero_grad()
    for logits in (pair.original(input_ids)["logits"], model(input_ids).logits):
        logits.square().mean().backward()  # over padding too, or its row would have no gradient anyway
    for (name, theirs), ours in zip(pair.original.named_parameters(), model.parameters(), strict=True):
        if name.startswith("contact_head."):
            assert ours.grad is theirs.grad is None
        else:
            assert theirs.grad.abs().max() > 0, name
            assert_close(ours.grad, theirs.grad, f"gradient of {name}")


def test_norms_have_the_epsilon_of_the_original(pair, models):
    # 1e-12 or 1e-5 shifts values of order 1 by about the tolerance, so outputs alone would hardly tell
    theirs = {name: module.eps for name, module in pair.original.named_modules() if hasattr(module, "eps")}
    ours = {name: module.eps for name, module in models["eager"].named_modules() if hasattr(module, "eps")}
    assert ours == theirs


def test_longest_sequence(pair, models):
    input_ids = pair.batch((1023,))
    if pair.config.model_version != "ESM-1b":  # neither sines nor rotations have an end
        assert_close(models["sdpa"](input_ids).logits, pair.original(input_ids)["logits"], "logits")
        return
    with pytest.raises(ValueError, match="above maximum"):
        pair.original(input_ids)
    with pytest.raises(ValueError, match="at most 1024"):
        models["sdpa"](input_ids)
