"""What a class of the same trunk has saved is compared with the whole base, by what a tensor is called in the trunk."""

from __future__ import annotations

import pytest
import torch
from support.any_folders import stored
from transformers import AutoModel, BertConfig, BertModel, T5EncoderModel

import hf_perturb
from hf_perturb import compare_checkpoints, create_variant, verify_variant
from hf_perturb.errors import CheckpointError


@pytest.mark.parametrize("method", ["reinit", "resample", "gaussian"])
def test_a_trunk_of_a_control_is_verified_and_compared_with_the_whole_base(tmp_path, method):
    stored("bert", tmp_path / "base")
    control = hf_perturb.from_pretrained(tmp_path / "base", perturbation=method)
    control.save_pretrained(tmp_path / "trunk")
    found = verify_variant(tmp_path / "trunk", tmp_path / "base")
    assert (found.ok, found.problems) == (True, ())
    compared = compare_checkpoints(tmp_path / "base", tmp_path / "trunk")
    whole = compare_checkpoints(tmp_path / "base", tmp_path / "base")
    both = [row for row in compared.tensors if row.dtype_a and row.dtype_b]
    assert len(both) >= len(control.state_dict()) - 2  # the pooler, which the base lacks
    assert {row.name for row in both} <= {row.name for row in whole.tensors}
    assert 0 < compared.total.changed_tensors <= compared.total.tensors
    with torch.no_grad():
        control.encoder.layer[0].output.dense.weight[0, 0] += 1
    control.save_pretrained(tmp_path / "edited")
    assert verify_variant(tmp_path / "edited", tmp_path / "base").changed is not None


def test_an_encoder_alone_is_a_part_of_its_base(tmp_path):
    stored("t5", tmp_path / "base")
    control = hf_perturb.from_pretrained(tmp_path / "base", auto_class=T5EncoderModel, perturbation="resample")
    control.save_pretrained(tmp_path / "encoder")
    found = verify_variant(tmp_path / "encoder", tmp_path / "base")
    assert (found.ok, found.problems) == (True, ())


def test_a_trunk_without_its_pooler_is_a_base(tmp_path, caplog):
    """`add_pooling_layer` is no matter of the configuration."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    BertModel(BertConfig(**sizes, vocab_size=30), add_pooling_layer=False).save_pretrained(tmp_path / "base")
    create_variant(tmp_path / "base", tmp_path / "out", "reinit")
    assert "pooler.dense.weight" in caplog.text
    assert verify_variant(tmp_path / "out", tmp_path / "base").ok
    control = hf_perturb.from_pretrained(tmp_path / "base", perturbation="reinit")
    stock = AutoModel.from_pretrained(tmp_path / "out")
    for name, tensor in stock.state_dict().items():
        if "pooler" not in name:
            assert torch.equal(tensor, control.state_dict()[name]), name


@pytest.mark.parametrize("name", ["encoder.layer.1.output.dense.weight", "embeddings.word_embeddings.weight"])
def test_what_no_network_is_without_is_missed(tmp_path, name):
    from support.any_folders import restored

    stored("bert", tmp_path / "base")
    restored(tmp_path / "base", lambda tensors: {key: x for key, x in tensors.items() if not key.endswith(name)})
    with pytest.raises(CheckpointError, match=f"missing tensors: bert.{name}"):
        create_variant(tmp_path / "base", tmp_path / "out", "reinit")
