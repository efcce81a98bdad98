"""Folders of Transformers' own ESM that are no network of ours, or not to be trusted, are refused by name."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
from transformers import EsmConfig, EsmForMaskedLM, EsmForSequenceClassification, EsmForTokenClassification

import hf_perturb
from parity.stock import LAYOUTS, STOCKS, stock_config, stock_model, write_config

NETWORKS = {
    "a folding model": ({"is_folding_model": True}, "is_folding_model is True; ESMFold has no counterpart"),
    "a decoder": ({"is_decoder": True}, "is_decoder is True; a decoder has no counterpart"),
    "cross-attention": ({"add_cross_attention": True}, "add_cross_attention is True; a network with cross-attention"),
    "relative positions": (
        {"position_embedding_type": "relative_key_query"},
        "position_embedding_type is 'relative_key_query'; allowed: 'absolute' or 'rotary'",
    ),
}


@pytest.mark.parametrize(("changes", "message"), NETWORKS.values(), ids=NETWORKS)
def test_another_network_is_refused(changes, message, tmp_path):
    LAYOUTS["published"](stock_model("esm2"), tmp_path / "stock")
    write_config(tmp_path / "stock", stock_config("esm2"), **changes)
    for load in (
        lambda: hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock"),
        lambda: hf_perturb.FairEsmConfig.from_pretrained(tmp_path / "stock"),
        lambda: hf_perturb.create_variant(tmp_path / "stock", tmp_path / "out", "reinit"),
        lambda: hf_perturb.convert_checkpoint(tmp_path / "stock", tmp_path / "out"),
    ):
        with pytest.raises(OSError, match=message) as caught:
            load()
        assert isinstance(caught.value, hf_perturb.CheckpointError)
    assert os.listdir(tmp_path) == ["stock"]


def test_a_passed_configuration_of_another_network_is_refused(tmp_path):
    LAYOUTS["published"](stock_model("esm2"), tmp_path / "stock")
    with pytest.raises(hf_perturb.CheckpointError, match="a decoder has no counterpart"):
        hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock", config=stock_config("esm2", is_decoder=True))


@pytest.mark.parametrize("theirs", [EsmForSequenceClassification, EsmForTokenClassification])
@pytest.mark.parametrize("ours", ["FairEsmForSequenceClassification", "FairEsmForTokenClassification"])
def test_a_stock_classifier_is_refused(theirs, ours, tmp_path):
    stock = stock_model("esm2", theirs)
    stock.save_pretrained(tmp_path / "stock")
    with pytest.raises(hf_perturb.CheckpointError, match=f"{ours}: the checkpoint has a classifier of Transformers'"):
        getattr(hf_perturb, ours).from_pretrained(tmp_path / "stock")
    # what the message proposes
    trunk, info = hf_perturb.FairEsmModel.from_pretrained(tmp_path / "stock", output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(trunk.layers[1].fc1.weight, stock.esm.encoder.layer[1].intermediate.dense.weight)
    with pytest.raises(hf_perturb.CheckpointError, match=r"architectures is .* allowed: one of EsmForMaskedLM, EsmMod"):
        hf_perturb.create_variant(tmp_path / "stock", tmp_path / "out", "reinit")


@pytest.mark.parametrize("place", ["../outside.safetensors", "/outside.safetensors", "inner/x.safetensors", 7])
def test_an_index_names_files_beside_it(place, tmp_path):
    LAYOUTS["published"](stock_model("esm2"), tmp_path / "stock")
    (tmp_path / "stock" / "model.safetensors").rename(tmp_path / "outside.safetensors")
    place = str(tmp_path / "outside.safetensors") if place == "/outside.safetensors" else place
    index = {"metadata": {}, "weight_map": {"lm_head.bias": place}}
    (tmp_path / "stock" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(hf_perturb.CheckpointError, match=r"index\.json: names .*; allowed: a file beside it"):
        hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock")
    with pytest.raises(hf_perturb.CheckpointError, match=r"index\.json: names .*; allowed: a file beside it"):
        hf_perturb.create_variant(tmp_path / "stock", tmp_path / "out", "reinit")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 1}', '{"weight_map": {"lm_head.bias": ["x"]}}'])
def test_an_index_that_is_none(text, tmp_path):
    write_config(tmp_path / "stock", stock_config("esm2"))
    (tmp_path / "stock" / "model.safetensors.index.json").write_text(text)
    with pytest.raises(hf_perturb.CheckpointError, match=r"model\.safetensors\.index\.json is no index of shards"):
        hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock")


def test_a_missing_shard_is_named(tmp_path):
    LAYOUTS["sharded"](stock_model("esm2"), tmp_path / "stock")
    (tmp_path / "stock" / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(OSError, match=r"model-00002-of-00003\.safetensors"):
        hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock")
    with pytest.raises(hf_perturb.CheckpointError, match=r"model-00002-of-00003\.safetensors"):
        hf_perturb.create_variant(tmp_path / "stock", tmp_path / "out", "reinit")


@pytest.mark.parametrize("kept", [0, 4, 300, -1], ids=lambda kept: f"{kept} bytes")
@pytest.mark.parametrize(
    ("layout", "file"),
    [
        ("published", "model.safetensors"),
        ("sharded", "model-00002-of-00003.safetensors"),
        ("pickled", "pytorch_model.bin"),
    ],
)
def test_a_truncated_file_is_named(layout, file, kept, tmp_path):
    LAYOUTS[layout](stock_model("esm2"), tmp_path / "stock")
    path = tmp_path / "stock" / file
    path.write_bytes(path.read_bytes()[:kept])
    for load in (
        lambda: hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock"),
        lambda: hf_perturb.create_variant(tmp_path / "stock", tmp_path / "out", "reinit"),
    ):
        with pytest.raises(hf_perturb.CheckpointError, match=rf"{file} is damaged"):
            load()
    assert os.listdir(tmp_path) == ["stock"]


class Malice:
    def __reduce__(self):
        return os.mkdir, ("was-run",)


@pytest.mark.parametrize("save", [torch.save, lambda data, path: path.write_bytes(pickle.dumps(data))])
def test_a_pickle_runs_nothing(save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "stock", stock_config("esm2"))
    save({"lm_head.bias": Malice()}, tmp_path / "stock" / "pytorch_model.bin")
    with pytest.raises(hf_perturb.CheckpointError, match=r"pytorch_model\.bin"):
        hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock")
    assert os.listdir(tmp_path) == ["stock"]


def test_a_pickle_of_something_else(tmp_path):
    write_config(tmp_path / "stock", stock_config("esm2"))
    torch.save({"model": {"lm_head.bias": torch.zeros(33)}}, tmp_path / "stock" / "pytorch_model.bin")
    with pytest.raises(hf_perturb.CheckpointError, match=r"pytorch_model\.bin is not a state_dict"):
        hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock")


@pytest.mark.parametrize("name", STOCKS)
def test_a_folder_without_weights_is_no_model(name, tmp_path):
    stock_config(name).save_pretrained(tmp_path / "stock")
    with pytest.raises(hf_perturb.CheckpointError, match=r"has no weights; looked for model\.safetensors"):
        hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock")


@pytest.mark.parametrize("tied", [True, False])
def test_a_tie_is_the_checkpoint_s_to_decide(tied, tmp_path):
    stock = stock_model("esm1b", tie_word_embeddings=tied)
    assert (stock.lm_head.decoder.weight is stock.esm.embeddings.word_embeddings.weight) is tied
    stock.save_pretrained(tmp_path / "stock")
    with pytest.raises(ValueError, match="tie_word_embeddings: got"):
        hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock", tie_word_embeddings=not tied)
    other = EsmConfig(**{**stock.config.to_dict(), "tie_word_embeddings": not tied})
    for keywords in ({}, {"tie_word_embeddings": tied}, {"config": other}):
        model = hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock", **keywords)
        assert (model.lm_head.weight is model.embed_tokens.weight) is model.config.tie_word_embeddings is tied
        assert torch.equal(model.lm_head.weight, stock.lm_head.decoder.weight)


def test_tensors_from_two_places_are_refused(tmp_path):
    """As Transformers does: one of the two would be ignored."""
    stock = stock_model("esm2")
    stock.save_pretrained(tmp_path / "stock")
    state = hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock").state_dict()
    with pytest.raises(ValueError, match="`state_dict` cannot be passed together with a model name"):
        EsmForMaskedLM.from_pretrained(tmp_path / "stock", state_dict=stock.state_dict())
    with pytest.raises(ValueError, match="state_dict"):
        hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock", state_dict=state)


@pytest.mark.parametrize("other", [{"vocab_size": 40}, {"vocab_size": 4105, "mask_token_id": 2}, {"mask_token_id": 4}])
def test_another_alphabet_is_refused(tmp_path, other):
    """Nucleotide models have the same `model_type`."""
    LAYOUTS["published"](stock_model("esm2"), tmp_path / "stock")
    write_config(tmp_path / "stock", stock_config("esm2", **other))
    for load in (hf_perturb.FairEsmForMaskedLM.from_pretrained, lambda x: hf_perturb.convert_checkpoint(x, "unused")):
        with pytest.raises(hf_perturb.CheckpointError, match="that of ESM's protein alphabet"):
            load(tmp_path / "stock")
