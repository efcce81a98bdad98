"""`from_pretrained` reads folders of Transformers' own ESM, in every layout that they are found in."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForMaskedLM, EsmForMaskedLM, EsmModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

import hf_perturb
from parity.originals import assert_close, small_pair
from parity.stock import (
    LAYOUTS,
    RECENT,
    STOCKS,
    assert_same_outputs,
    frequencies_of,
    padded_batch,
    published_tensors,
    stock_config,
    stock_model,
    without_head,
    write_config,
)

FREQUENCIES = "layers.{}.self_attn.rot_emb.inv_freq"


@pytest.fixture(params=STOCKS)
def name(request) -> str:
    return request.param


@pytest.fixture
def quiet(caplog) -> Iterator[None]:
    """Fail a test in which Transformers warns of anything."""
    transformers_logging.enable_propagation()
    yield
    transformers_logging.disable_propagation()
    assert [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.WARNING] == []


def assert_whole(info: dict) -> None:
    """Nothing missing, nothing unexpected, nothing of another shape."""
    assert {key: sorted(value) for key, value in info.items() if value} == {}


def write(name: str, folder: Path, layout: str = "published", **options) -> PreTrainedModel:
    model = stock_model(name, **options)
    LAYOUTS[layout](model, folder)
    return model


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("quiet")
def test_every_layout_is_read(name, layout, tmp_path):
    stock = write(name, tmp_path / "stock", layout)
    model, info = hf_perturb.FairEsmForMaskedLM.from_pretrained(
        tmp_path / "stock", attn_implementation="eager", output_loading_info=True
    )
    assert_whole(info)
    assert not model.training
    assert model.lm_head.weight is model.embed_tokens.weight
    assert_same_outputs(model, stock)
    by_sdpa = hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock", attn_implementation="sdpa")
    input_ids, mask = padded_batch()
    logits = stock(input_ids, attention_mask=mask).logits
    assert_close(by_sdpa(input_ids, attention_mask=mask).logits[mask.bool()], logits[mask.bool()], "sdpa logits")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layouts_are_those_that_transformers_reads(name, layout, tmp_path):
    """The files of these tests are true to life, and stock classes still read them with our package imported."""
    stock = write(name, tmp_path / "stock", layout)
    if layout in RECENT and not hasattr(stock.esm, "rotary_embeddings"):
        pytest.skip("a layout that this release of Transformers does not know yet")
    read, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "stock", output_loading_info=True)
    assert type(read) is EsmForMaskedLM
    assert not info["missing_keys"]
    expected = stock.state_dict()
    for tensor_name, tensor in read.state_dict().items():
        assert torch.equal(tensor, expected[tensor_name]), tensor_name


def test_names_shapes_and_order_are_those_of_fair_esm(name, tmp_path):
    stock = write(name, tmp_path / "stock")
    ours = hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock").state_dict()
    pair = small_pair(name)
    theirs = pair.original.state_dict()
    assert [(key, value.shape) for key, value in ours.items()] == [(key, value.shape) for key, value in theirs.items()]
    # the original class computes what the stock one does
    pair.original.load_state_dict(ours, strict=True)
    input_ids, mask = padded_batch()
    logits = stock(input_ids, attention_mask=mask).logits
    assert_close(pair.outputs(input_ids)[1][mask.bool()], logits[mask.bool()], "logits")


def test_layers_are_counted_beyond_nine(name, tmp_path):
    stock = write(name, tmp_path / "stock", num_hidden_layers=12)
    model, info = hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock", output_loading_info=True)
    assert_whole(info)
    for i, layer in enumerate(stock.esm.encoder.layer):
        ours = model.layers[i]
        assert torch.equal(ours.self_attn.q_proj.weight, layer.attention.self.query.weight)
        assert torch.equal(ours.self_attn.k_proj.bias, layer.attention.self.key.bias)
        assert torch.equal(ours.self_attn.v_proj.weight, layer.attention.self.value.weight)
        assert torch.equal(ours.self_attn.out_proj.bias, layer.attention.output.dense.bias)
        assert torch.equal(ours.self_attn_layer_norm.weight, layer.attention.LayerNorm.weight)
        assert torch.equal(ours.final_layer_norm.bias, layer.LayerNorm.bias)
        assert torch.equal(ours.fc1.weight, layer.intermediate.dense.weight)
        assert torch.equal(ours.fc2.weight, layer.output.dense.weight)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rotary_frequencies_are_those_of_the_file(layout, tmp_path):
    stock = write("esm2", tmp_path / "stock", layout)
    model = hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock")
    rounded = frequencies_of(stock)
    for layer in model.layers:
        assert torch.equal(layer.self_attn.rot_emb.inv_freq, rounded)
        assert not torch.equal(layer.self_attn.rot_emb.frequencies(), rounded)


def test_layers_may_have_frequencies_of_their_own(tmp_path):
    """As fair-esm's do; no published checkpoint makes use of it."""
    stock = stock_model("esm2")
    own = torch.linspace(1, 0.1, 8)
    write_config(tmp_path / "stock", stock.config)
    tensors = without_head(published_tensors(stock, _1=own))
    save_file(tensors, tmp_path / "stock" / "model.safetensors", {"format": "pt"})
    state = hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock").state_dict()
    assert torch.equal(state[FREQUENCIES.format(0)], frequencies_of(stock))
    assert torch.equal(state[FREQUENCIES.format(1)], own)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype", None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_type_is_that_of_the_checkpoint(name, dtype, key, tmp_path):
    stock = stock_model(name).to(dtype)
    write_config(tmp_path / "stock", stock.config, dtype=None)
    if key is not None:
        write_config(tmp_path / "stock", stock.config, **{"dtype": None, key: str(dtype).removeprefix("torch.")})
    save_file(without_head(published_tensors(stock)), tmp_path / "stock" / "model.safetensors", {"format": "pt"})
    expected = EsmForMaskedLM.from_pretrained(tmp_path / "stock")
    model = hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock")
    assert model.dtype == expected.dtype == dtype
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert torch.equal(model.layers[1].fc2.weight, stock.esm.encoder.layer[1].output.dense.weight)
    if name == "esm2":
        frequencies = model.state_dict()[FREQUENCIES.format(1)]
        assert frequencies.dtype == torch.float32
        assert torch.equal(frequencies, frequencies_of(stock).float())


def test_another_type_on_request(name, tmp_path):
    stock = write(name, tmp_path / "stock")
    for dtype in (torch.bfloat16, "float16"):
        model = hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock", dtype=dtype)
        assert str(model.dtype).endswith(str(dtype).removeprefix("torch."))
        assert torch.equal(model.embed_tokens.weight, stock.esm.embeddings.word_embeddings.weight.to(model.dtype))
        if name == "esm2":
            # rounded to half precision in the file, and not once more to bfloat16
            assert torch.equal(model.layers[0].self_attn.rot_emb.inv_freq, frequencies_of(stock))


@pytest.mark.usefixtures("quiet")
@torch.no_grad()
def test_trunk_of_a_masked_language_model(name, tmp_path):
    stock = write(name, tmp_path / "stock")
    model, info = hf_perturb.FairEsmModel.from_pretrained(tmp_path / "stock", output_loading_info=True)
    assert_whole(info)
    input_ids, mask = padded_batch()
    theirs = stock.esm(input_ids, attention_mask=mask).last_hidden_state
    assert_close(model(input_ids, mask).last_hidden_state[mask.bool()], theirs[mask.bool()], "representation")


@pytest.mark.usefixtures("quiet")
@torch.no_grad()
def test_stock_trunk(name, tmp_path):
    """Its tensors have no `esm.` in front, and its pooler has no counterpart."""
    stock = stock_model(name, EsmModel)
    stock.save_pretrained(tmp_path / "stock")
    model, info = hf_perturb.FairEsmModel.from_pretrained(tmp_path / "stock", output_loading_info=True)
    assert_whole(info)
    input_ids, mask = padded_batch()
    theirs = stock(input_ids, attention_mask=mask).last_hidden_state
    assert_close(model(input_ids, mask).last_hidden_state[mask.bool()], theirs[mask.bool()], "representation")


@pytest.mark.parametrize("head", ["SequenceClassification", "TokenClassification"])
def test_only_the_classifier_is_new(name, head, tmp_path):
    stock = write(name, tmp_path / "stock")
    model, info = getattr(hf_perturb, f"FairEsmFor{head}").from_pretrained(
        tmp_path / "stock", num_labels=3, output_loading_info=True
    )
    assert set(info["missing_keys"]) == {key for key in model.state_dict() if key.startswith("classifier.")}
    assert model.classifier.out_proj.out_features == 3
    assert torch.equal(model.layers[1].fc1.weight, stock.esm.encoder.layer[1].intermediate.dense.weight)


@pytest.mark.usefixtures("quiet")
def test_configuration_of_a_stock_folder(name, tmp_path):
    write_config(tmp_path / "stock", stock_config(name, max_position_embeddings=514, token_dropout=False))
    read = hf_perturb.FairEsmConfig.from_pretrained(tmp_path / "stock")
    assert read.model_type == "fair_esm"
    assert read.model_version == ("ESM-2" if name == "esm2" else "ESM-1b")
    assert read.emb_layer_norm_before is (name == "esm1b")
    sizes = (read.vocab_size, read.hidden_size, read.num_hidden_layers, read.num_attention_heads)
    assert (*sizes, read.intermediate_size, read.max_position_embeddings) == (33, 32, 2, 2, 128, 514)
    tokens = (read.pad_token_id, read.mask_token_id, read.bos_token_id, read.eos_token_id)
    assert tokens == (1, 32, 0, 2)
    assert (read.layer_norm_eps, read.token_dropout, read.tie_word_embeddings) == (1e-5, False, True)
    assert (read.contact_head, read.perturbation, read.digest) == (True, None, None)
    assert read.architectures == ["FairEsmForMaskedLM"]


def test_what_a_configuration_leaves_out_is_what_transformers_takes(tmp_path):
    """Old files have no key for what had a default, and `null` for what was not given."""
    left_out = {"layer_norm_eps": None, "token_dropout": None, "emb_layer_norm_before": None}
    left_out |= {"position_embedding_type": None, "tie_word_embeddings": None}
    stock = stock_model("esm1v", layer_norm_eps=1e-12, token_dropout=False)
    write_config(tmp_path / "stock", stock.config, **left_out)
    save_file(without_head(published_tensors(stock)), tmp_path / "stock" / "model.safetensors", {"format": "pt"})
    model = hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock", attn_implementation="eager")
    assert model.config.layer_norm_eps == 1e-12
    assert_same_outputs(model, stock)


@pytest.mark.usefixtures("quiet")
def test_a_stock_configuration_may_be_passed(name, tmp_path):
    stock = write(name, tmp_path / "stock")
    for config in (stock.config, str(tmp_path / "stock"), hf_perturb.FairEsmConfig.from_pretrained(tmp_path / "stock")):
        model, info = hf_perturb.FairEsmForMaskedLM.from_pretrained(
            tmp_path / "stock", config=config, attn_implementation="eager", output_loading_info=True
        )
        assert_whole(info)
        assert isinstance(model.config, hf_perturb.FairEsmConfig)
        assert_same_outputs(model, stock)


def test_what_a_stock_configuration_asks_for(name, tmp_path):
    write(name, tmp_path / "stock")
    labelled = stock_config(name, num_labels=5, perturbation={"method": "reinit"})
    classifier = hf_perturb.FairEsmForTokenClassification.from_pretrained(tmp_path / "stock", config=labelled)
    assert classifier.classifier.out_proj.out_features == 5
    assert classifier.config.perturbation == hf_perturb.Perturbation("reinit")


def test_settings_of_a_stock_configuration_are_kept(tmp_path):
    """As those of a configuration of ours are: they say how to run the network, not what it is."""
    write("esm2", tmp_path / "stock")
    settings = {"attn_implementation": "eager", "output_hidden_states": True}
    ours = hf_perturb.FairEsmConfig.from_pretrained(tmp_path / "stock", **settings)
    for config in (ours, stock_config("esm2", **settings)):
        model = hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock", config=config)
        assert (model.config._attn_implementation, model.config.output_hidden_states) == ("eager", True)


def test_files_by_other_names_and_in_other_places(name, tmp_path):
    stock = stock_model(name)
    stock.save_pretrained(tmp_path / "stock" / "inner", variant="fp16")
    with pytest.raises(hf_perturb.CheckpointError, match=r"has no weights; looked for model\.safetensors"):
        hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock", subfolder="inner")
    model = hf_perturb.FairEsmForMaskedLM.from_pretrained(
        tmp_path / "stock", subfolder="inner", variant="fp16", attn_implementation="eager"
    )
    assert_same_outputs(model, stock)


@pytest.mark.parametrize("size", ["1GB", "40KB"], ids=["whole", "sharded"])
def test_a_variant_of_a_file_is_found(tmp_path, size):
    """Transformers writes its `variant=` before the last suffix, also into the name of the index."""
    stock_model("esm2").save_pretrained(tmp_path, variant="fp16", max_shard_size=size)
    _, info = hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path, variant="fp16", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
