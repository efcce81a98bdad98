"""`wrap` makes a model of ours over the memory of a live `EsmForMaskedLM`."""

from __future__ import annotations

import pytest
import torch
from support.models import small_model
from torch import nn
from transformers import (
    EsmForMaskedLM,
    EsmForSequenceClassification,
    EsmForTokenClassification,
    EsmModel,
    PreTrainedModel,
)

import hf_perturb
from hf_perturb import FairEsmForMaskedLM, Perturbation
from parity.originals import assert_close
from parity.stock import LAYOUTS, STOCKS, assert_same_outputs, padded_batch, stock_config, stock_model


@pytest.fixture(params=STOCKS)
def name(request) -> str:
    return request.param


@pytest.fixture
def stock(name) -> PreTrainedModel:
    return stock_model(name)


def copies(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_every_parameter_is_the_same_object(stock):
    wrapped = hf_perturb.wrap(stock)
    assert type(wrapped) is FairEsmForMaskedLM
    theirs = {id(parameter) for parameter in stock.parameters()}
    assert {id(parameter) for parameter in wrapped.parameters()} == theirs
    assert wrapped.lm_head.weight is wrapped.embed_tokens.weight is stock.lm_head.decoder.weight
    assert_same_outputs(wrapped, stock)


def test_the_model_is_that_of_the_folder(stock, tmp_path):
    """Wrapped or stored and loaded: the same tensors by the same names, the same configuration."""
    LAYOUTS["published"](stock, tmp_path / "stock")
    wrapped, loaded = hf_perturb.wrap(stock), FairEsmForMaskedLM.from_pretrained(tmp_path / "stock")
    assert list(wrapped.state_dict()) == list(loaded.state_dict())
    for key, tensor in loaded.state_dict().items():
        assert torch.equal(wrapped.state_dict()[key], tensor), key
    one, other = wrapped.config.to_dict(), loaded.config.to_dict()
    for config in (one, other):
        for key in ("dtype", "architectures", "_name_or_path"):  # of what is stored
            config.pop(key, None)
    assert one == other


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad])
def test_positions_that_are_given_are_those_of_stock(stock, context):
    """Rows of a table, or turns; also where our batch is packed."""
    input_ids, mask = padded_batch()
    positions = torch.randint(0, 1026, input_ids.shape, generator=torch.Generator().manual_seed(0))
    inside = mask.bool()
    ours = hf_perturb.wrap(stock)
    for given in (positions, positions[:1]):
        if stock.config.position_embedding_type == "rotary" and context is torch.no_grad:
            given = 40 * given
        with context():
            one, other = (each(input_ids, attention_mask=mask, position_ids=given).logits for each in (ours, stock))
            counted = ours(input_ids, attention_mask=mask).logits
            if torch.equal(other, stock(input_ids, attention_mask=mask).logits):
                pytest.skip("the rotary ESM of older Transformers does not look at them")
        assert_close(one[inside], other[inside], "logits")
        assert (one - counted)[inside].abs().max() > 0.1


@torch.no_grad()
def test_editing_one_edits_the_other(stock):
    wrapped = hf_perturb.wrap(stock)
    input_ids, mask = padded_batch()
    before = stock(input_ids, attention_mask=mask).logits
    for edited in (stock, wrapped):
        for parameter in edited.parameters():
            parameter.mul_(1.02)
        assert_same_outputs(wrapped, stock)
    assert not torch.allclose(stock(input_ids, attention_mask=mask).logits, before, atol=1e-3)


def test_training_one_trains_the_other(stock):
    wrapped = hf_perturb.wrap(stock)
    before = copies(stock)
    input_ids, mask = padded_batch()
    optimiser = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    wrapped(input_ids, mask, labels=input_ids).loss.backward()
    assert stock.esm.encoder.layer[0].output.dense.weight.grad is not None
    optimiser.step()
    key = "esm.encoder.layer.0.output.dense.weight"
    assert not torch.equal(stock.state_dict()[key], before[key])
    assert_same_outputs(wrapped, stock)


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_frozen_parameters_stay(stock, training):
    stock.esm.embeddings.requires_grad_(False)
    stock.esm.encoder.layer[1].requires_grad_(False)
    wrapped = hf_perturb.wrap(stock.train(training))
    assert {module.training for module in wrapped.modules()} == {training}
    assert not any(parameter.requires_grad for parameter in wrapped.layers[1].parameters())
    assert not wrapped.embed_tokens.weight.requires_grad
    assert all(parameter.requires_grad for parameter in wrapped.layers[0].parameters())


@pytest.mark.parametrize(
    "asked",
    [
        Perturbation("reinit", exclude=["lm_head.weight"]),
        Perturbation("resample", exclude=["lm_head.weight"]),
        Perturbation("resample", rules="published"),
    ],
    ids=str,
)
def test_perturbing_one_perturbs_the_other(stock, asked, tmp_path):
    LAYOUTS["published"](stock, tmp_path / "stock")
    expected = FairEsmForMaskedLM.from_pretrained(tmp_path / "stock", perturbation=asked)
    before = copies(stock)
    wrapped = hf_perturb.wrap(stock)
    assert hf_perturb.perturb(wrapped, asked) is wrapped
    for key, tensor in expected.state_dict().items():
        assert torch.equal(wrapped.state_dict()[key], tensor), key
    assert not torch.equal(stock.state_dict()["lm_head.dense.weight"], before["lm_head.dense.weight"])
    assert stock.lm_head.decoder.weight is stock.esm.embeddings.word_embeddings.weight
    assert_same_outputs(wrapped, stock, distinct=False)


def test_a_perturbed_head_leaves_the_tie_of_the_other(stock):
    before = copies(stock)
    wrapped = hf_perturb.perturb(hf_perturb.wrap(stock), "reinit")
    assert wrapped.config.tie_word_embeddings is False
    assert wrapped.lm_head.weight is not wrapped.embed_tokens.weight
    # the document keeps the embedding, so the tied head of the other, which is the embedding, is kept as well
    assert stock.lm_head.decoder.weight is stock.esm.embeddings.word_embeddings.weight is wrapped.embed_tokens.weight
    assert torch.equal(stock.lm_head.decoder.weight, before["lm_head.decoder.weight"])
    for i, layer in enumerate(stock.esm.encoder.layer):
        key = f"esm.encoder.layer.{i}.attention.self.query.weight"
        assert not torch.equal(layer.attention.self.query.weight, before[key])


@pytest.mark.parametrize("asked", [None, "reinit"])
def test_a_wrapped_model_is_saved_and_loaded(stock, asked, tmp_path):
    wrapped = hf_perturb.wrap(stock)
    if asked is not None:
        wrapped.perturb(asked)
    wrapped.save_pretrained(tmp_path / "out")
    loaded, info = FairEsmForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for key, tensor in wrapped.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    assert loaded.config.architectures == ["FairEsmForMaskedLM"]
    assert loaded.config.perturbation == wrapped.config.perturbation


def test_an_untied_head_stays_so(name):
    stock = stock_model(name, tie_word_embeddings=False)
    wrapped = hf_perturb.wrap(stock)
    assert wrapped.config.tie_word_embeddings is False
    wrapped.tie_weights()
    assert wrapped.lm_head.weight is stock.lm_head.decoder.weight is not wrapped.embed_tokens.weight
    assert_same_outputs(wrapped, stock)


def test_a_head_that_was_untied_by_hand(stock):
    stock.lm_head.decoder.weight = nn.Parameter(0.2 * torch.randn(33, 32))
    wrapped = hf_perturb.wrap(stock)
    assert wrapped.config.tie_word_embeddings is False
    assert_same_outputs(wrapped, stock)


@pytest.mark.parametrize(
    "options", [{"token_dropout": False}, {"layer_norm_eps": 1e-12}, {"rope_theta": 500.0}, {"num_hidden_layers": 11}]
)
def test_options_that_no_published_model_has(name, options):
    stock = stock_model(name, **options)
    assert_same_outputs(hf_perturb.wrap(stock), stock)


def test_the_record_of_a_control_comes_along(name):
    """What was perturbed before it was wrapped is not perturbed again: the record is never an order."""
    stock = stock_model(name, perturbation={"method": "resample", "seed": 5})
    before = copies(stock)
    wrapped = hf_perturb.wrap(stock)
    assert wrapped.config.perturbation == Perturbation("resample", seed=5)
    with pytest.raises(hf_perturb.StackedPerturbationError, match="do not stack"):
        hf_perturb.perturb(wrapped, "reinit")
    hf_perturb.perturb(wrapped, Perturbation("resample", seed=5))
    for key, tensor in stock.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    with pytest.raises(hf_perturb.PerturbationError, match="record_as"):  # nothing shows that it is so
        wrapped.save_pretrained("nowhere")


@pytest.mark.parametrize("how", ["as it is", "trained", "half"])
def test_an_exported_control_is_one_as_long_as_its_digest_says_so(how, tmp_path):
    small_model("esm1b").save_pretrained(tmp_path / "base")
    hf_perturb.create_variant(tmp_path / "base", tmp_path / "control", "resample")
    hf_perturb.export_checkpoint(tmp_path / "control", tmp_path / "stock", "transformers")
    stock = EsmForMaskedLM.from_pretrained(tmp_path / "stock")
    if how == "trained":
        with torch.no_grad():
            stock.lm_head.bias.add_(1)
    wrapped = hf_perturb.wrap(stock.half() if how == "half" else stock)
    if how == "as it is":
        wrapped.save_pretrained(tmp_path / "out")
        assert hf_perturb.verify_variant(tmp_path / "out", tmp_path / "base").ok
        return
    with pytest.raises(hf_perturb.PerturbationError, match="record_as"):
        wrapped.save_pretrained(tmp_path / "out")


def test_a_configuration_is_left_as_it_is(stock):
    before = stock.config.to_dict()
    hf_perturb.perturb(hf_perturb.wrap(stock), "reinit")
    assert stock.config.to_dict() == before


def test_a_subclass_is_recognised(stock):
    stock.__class__ = type("Own", (EsmForMaskedLM,), {"__module__": "own_package.networks"})
    assert_same_outputs(hf_perturb.wrap(stock), stock)


@pytest.mark.parametrize("head", [EsmModel, EsmForSequenceClassification, EsmForTokenClassification])
def test_other_heads_are_refused(name, head):
    with pytest.raises(hf_perturb.UnsupportedModuleError, match=rf"got a .*\.{head.__name__}; .*EsmForMaskedLM"):
        hf_perturb.wrap(head(stock_config(name)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_decoder": True}, "a decoder has no counterpart"),
        ({"is_decoder": True, "add_cross_attention": True}, "has no counterpart"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"pad_token_id": 0}, "pad_token_id is 0; allowed: 1"),
        ({"emb_layer_norm_before": True}, "ESM-2 does not norm its embeddings"),
    ],
)
def test_another_network_is_refused(changes, message):
    with pytest.raises(hf_perturb.UnsupportedModuleError, match=f"(?s)not built like an original.*{message}"):
        hf_perturb.wrap(EsmForMaskedLM(stock_config("esm2", **changes)))


def test_a_network_of_another_build_is_refused(name):
    stock = stock_model(name)
    stock.esm.encoder.layer[0].intermediate.dense = nn.Linear(32, 64)
    with pytest.raises(hf_perturb.UnsupportedModuleError, match=r"2 tensors differ, first 'layers\.0\.fc1\.bias'"):
        hf_perturb.wrap(stock)
