"""What `forward` is given means what the caller meant, or is refused."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch
from support.models import CONFIGS, batch_of, model_class, small_model
from transformers import AttentionInterface, AttentionMaskInterface, AutoModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

import hf_perturb

ESMS = [name for name in CONFIGS if name != "carp"]


@pytest.mark.parametrize(
    ("keyword", "value", "nearest"),
    [
        ("atention_mask", torch.ones(1, 5), "attention_mask"),
        ("head_mask", torch.ones(9, 4), "attention_mask"),
        ("output_hidden_state", True, "output_hidden_states"),
        ("return_dcit", False, "return_dict"),
        ("input_embeds", torch.ones(1, 5, 32), "inputs_embeds"),
        ("is_causal", True, ""),
        ("cu_seq_lens_q", torch.tensor([0, 5]), ""),
        ("encoder_hidden_states", torch.ones(1, 5, 32), "output_hidden_states"),
    ],
)
def test_a_keyword_that_is_not_used_is_named_with_the_nearest(network, head, keyword, value, nearest):
    model = small_model(network, head)
    message = (
        rf"{type(model).__name__}\.forward: got {keyword}, .*; did you mean|got {keyword}, .*did you mean {nearest}"
    )
    with pytest.raises(TypeError, match=message) as caught:
        model(torch.full((1, 5), 5), **{keyword: value})
    assert isinstance(caught.value, hf_perturb.UnusedKeywordError)
    assert isinstance(caught.value, hf_perturb.HfPerturbError)
    assert f"did you mean {nearest}" in str(caught.value)
    # every name that the message offers is taken
    for name in str(caught.value).rpartition("allowed: ")[2].split(", "):
        model(**{name: None, "input_ids": torch.full((1, 5), 5)})
    # who passes nothing on has lost nothing
    model(torch.full((1, 5), 5), **{keyword: None})


def test_labels_are_for_heads_alone(network):
    with pytest.raises(TypeError, match=r"Model\.forward: got labels, which is not used"):
        small_model(network, "Model")(torch.full((1, 5), 5), labels=torch.full((1, 5), 5))


def test_a_count_of_labels_is_taken_by_the_losses_that_use_it(network, head):
    model, batch = small_model(network, head), batch_of(network)
    if head != "ForSequenceClassification":
        assert "num_items_in_batch" not in inspect.signature(model.forward).parameters
        model(**batch, num_items_in_batch=7)
        return
    with pytest.raises(TypeError, match="got num_items_in_batch, which is not used"):
        model(**batch, num_items_in_batch=7)


def test_an_attention_function_that_is_registered_may_have_arguments(monkeypatch):
    given = []

    def attend(*args, strength=None, **kwargs):
        given.append(strength)
        return sdpa_attention_forward(*args, **kwargs)

    AttentionInterface.register("with strength", attend)
    AttentionMaskInterface.register("with strength", sdpa_mask)
    model = small_model("esm1b")
    with pytest.raises(TypeError, match="got strength"):
        model(**batch_of("esm1b"), strength=2)
    model.set_attn_implementation("with strength")
    model(**batch_of("esm1b"), strength=2)
    assert given == [2] * model.config.num_hidden_layers
    with pytest.raises(TypeError, match="got strenght"):
        model(**batch_of("esm1b"), strenght=2)


@pytest.mark.parametrize(("keyword", "why"), [("position_ids", "positions"), ("output_attentions", "no attentions")])
def test_a_carp_has_neither_positions_nor_attentions(head, keyword, why):
    model, batch = small_model("carp", head), batch_of("carp")
    value = batch["attention_mask"] if keyword == "position_ids" else True
    with pytest.raises(hf_perturb.UnusedKeywordError, match=f"got {keyword}, which is not used: .*{why}; leave it out"):
        model(**batch, **{keyword: value})
    model(**batch, output_attentions=False, position_ids=None)


# ---- positions


def counted(model, batch):
    """Return the positions that a network counts by itself."""
    mask = batch["attention_mask"].long()
    if model.config.model_version == "ESM-2":
        return torch.arange(mask.shape[1]).expand_as(mask)
    return mask.cumsum(1) * mask + 1


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("network", ESMS)
def test_positions_that_are_given_are_those_that_are_counted(network, side, head):
    model = small_model(network, head)
    batch = batch_of(network, side=side)
    positions = counted(model, batch)
    assert torch.equal(model(**batch, position_ids=positions)[0], model(**batch)[0])
    assert torch.equal(model(**batch, position_ids=positions.int())[0], model(**batch)[0])
    moved = model(**batch, position_ids=2 * positions)[0]
    assert (moved - model(**batch)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("network", ESMS)
def test_positions_of_embeddings_and_for_all_sequences(network):
    model = small_model(network)
    ids = torch.randint(4, 20, (3, 9))
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-5)
    positions = torch.tensor([[2, 9, 4, 4, 30, 7, 8, 3, 10]])
    expected = model(ids, position_ids=positions.expand(3, -1)).logits
    close(model(ids, position_ids=positions).logits, expected)
    close(model(inputs_embeds=model.get_input_embeddings()(ids), position_ids=positions).logits, expected)
    # a residue alone stands for the sum of what it is and where it is, so the order in the batch says nothing
    order = torch.randperm(9)
    close(model(ids[:, order], position_ids=positions[:, order]).logits, expected[:, order])


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([[2, 3, 4]], "position_ids: got a list; allowed: torch.int64 or torch.int32 of"),
        (torch.tensor([2, 3, 4]), r"got shape \(3,\) of torch.int64; allowed: .* of \(2, 3\), \(batch, length\), or"),
        (torch.full((3, 3), 2), r"got shape \(3, 3\)"),
        (torch.full((2, 4), 2), r"got shape \(2, 4\)"),
        (torch.full((2, 3), 2.0), "of torch.float32"),
    ],
)
@pytest.mark.parametrize("network", ESMS)
def test_positions_that_cannot_be_are_refused(network, head, positions, message):
    with pytest.raises(hf_perturb.ModelInputError, match=message):
        small_model(network, head)(torch.full((2, 3), 5), position_ids=positions)


def test_learned_positions_are_rows_of_their_table():
    model = small_model("esm1b")
    for wrong in (-1, 1026):
        with pytest.raises(hf_perturb.ModelInputError, match=rf"got positions from .*{wrong}.*; allowed: 0 to 1025"):
            model(torch.full((1, 2), 5), position_ids=torch.tensor([[2, wrong]]))
    # the limit of the length is that of the table
    windows = torch.arange(2, 602).repeat(1, 2)
    assert model(torch.full((1, 1200), 5), position_ids=windows).logits.shape == (1, 1200, 33)


# ---- no pooling layer


def test_a_pooling_layer_is_left_out_and_cannot_be_had(network, head, tmp_path):
    cls = model_class(network, head)
    small_model(network, head).save_pretrained(tmp_path)
    plain = cls.from_pretrained(tmp_path)
    for model in (
        cls.from_pretrained(tmp_path, add_pooling_layer=False),
        cls.from_pretrained(tmp_path, add_pooling_layer=False, config=plain.config),
    ):
        assert all(map(torch.equal, model.state_dict().values(), plain.state_dict().values()))
    control = cls.from_pretrained(tmp_path, add_pooling_layer=False, perturbation="reinit")
    assert control.config.perturbation.method == "reinit"
    cls(CONFIGS[network](), add_pooling_layer=False)
    if head == "Model":
        AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
        AutoModel.from_config(CONFIGS[network](), add_pooling_layer=False)
    with pytest.raises(
        hf_perturb.ModelInputError, match=r"add_pooling_layer: got True; allowed: False, .*take the mean"
    ):
        cls.from_pretrained(tmp_path, add_pooling_layer=True)
