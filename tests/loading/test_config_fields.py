"""What a `config.json` may say: a list of fields, each of its kind; the rest is left out."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass

import pytest
from support.fuzzing import REFUSED, WORKS, fuzz
from support.models import CONFIGS, HEADS, model_class, small_model
from transformers import AutoConfig, AutoModel

import hf_perturb
from hf_perturb import CheckpointError
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.networks.sizes import read_fields

WRONG = {
    "dtype": (5, "got 5; allowed: one of float64"),
    "torch_dtype": ("nn", "got 'nn'; allowed: one of float64"),
    "architectures": ("CarpModel", "allowed: a list of strings"),
    "auto_map": ({"AutoModel": 5}, "allowed: an object of strings"),
    "id2label": ({"one": "a"}, "allowed: an object of strings by number"),
    "label2id": ([], "allowed: an object of integers or strings"),
    "num_labels": (True, "allowed: an integer"),
    "problem_type": ("guessing", "allowed: one of regression"),
    "output_attentions": (1, "allowed: true, false"),
    "return_dict": ("yes", "allowed: true, false"),
    "quantization_config": ({"quant_method": []}, "an object whose quant_method is a string"),
    "digest": (5, "allowed: a string"),
    "transformers_version": (5, "allowed: a string"),
    "hidden_act": (json.loads(300 * "[" + 300 * "]"), "allowed: at most 20 levels of lists and objects"),
    "classifier_dropout": (float("nan"), "got nan; allowed: a number from 0 to 1"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a folder with a small CARP, which nobody may change."""
    folder = tmp_path_factory.mktemp("saved")
    small_model("carp", num_hidden_layers=1).save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    """Return a function that copies the folder and edits its `config.json`."""

    def copy(**edit):
        shutil.copytree(saved, tmp_path / "model")
        path = tmp_path / "model" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **edit}))
        return str(tmp_path / "model")

    return copy


@pytest.mark.parametrize("key", WRONG)
def test_a_value_of_the_wrong_kind_is_refused_by_name(key, copied):
    value, message = WRONG[key]
    path = copied(**{key: value})
    for load in (Checkpoint.open, hf_perturb.CarpModel.from_pretrained):
        with pytest.raises(CheckpointError, match=f"config.json cannot be used: .*CarpConfig.{key}: ") as caught:
            load(path)
        assert repr(path) in str(caught.value)
        assert message in str(caught.value)
    for load in (AutoConfig.from_pretrained, hf_perturb.CarpConfig.from_pretrained, AutoModel.from_pretrained):
        if key == "auto_map" and load != hf_perturb.CarpConfig.from_pretrained:
            continue  # the Auto classes use it before they ask a class of ours
        with pytest.raises(ValueError, match=f"config.json cannot be used: .*CarpConfig.{key}: ") as caught:
            load(path)
        assert repr(path) in str(caught.value)
        assert message in str(caught.value)


THEIRS = {
    "fusion_config": 5,
    "base_model_tp_plan": 5,
    "distributed_config": {"tp_size": 8},
    "_attn_implementation": "somebody/kernels",
    "transformers_weights": "other.safetensors",
    "sub_configs": 5,
    "my_note": {"a": 1},
}


def test_what_no_such_network_has_reaches_nobody(copied):
    path = copied(**THEIRS)
    opened = Checkpoint.open(path).check()
    assert opened.others == THEIRS
    assert not opened.stored.keys() & THEIRS.keys()
    for load in (hf_perturb.CarpModel.from_pretrained, AutoModel.from_pretrained):
        assert not vars(load(path).config).keys() & THEIRS.keys() - {"_attn_implementation"}
    done = hf_perturb.convert_checkpoint(path, f"{path}-base")
    assert any("left out of config.json, for no such network has it: 'fusion_config'" in note for note in done.notes)
    assert not Checkpoint.open(f"{path}-base").others


def test_a_keyword_is_no_file(copied):
    path = copied(my_note="of the file")
    assert not hasattr(hf_perturb.CarpConfig.from_pretrained(path), "my_note")
    assert hf_perturb.CarpConfig(my_note=1).my_note == 1
    assert hf_perturb.CarpModel.from_pretrained(path, classifier_dropout=0.5).config.classifier_dropout == 0.5


def test_a_derived_class_keeps_its_own_fields(tmp_path):
    @dataclass
    class MyConfig(hf_perturb.CarpConfig):
        my_width: int = 3

    class MyCarp(hf_perturb.CarpModel):
        config_class = MyConfig

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "my_width": 7}
    MyCarp(MyConfig(**sizes)).save_pretrained(tmp_path)
    assert MyCarp.from_pretrained(tmp_path).config.my_width == 7
    assert MyConfig.from_pretrained(tmp_path).my_width == 7
    assert not hasattr(hf_perturb.CarpModel.from_pretrained(tmp_path).config, "my_width")


def test_a_derived_class_with_a_constructor_keeps_what_it_takes(tmp_path):
    class MyConfig(hf_perturb.CarpConfig):
        def __init__(self, my_width=3, **kwargs):
            super().__init__(**kwargs)
            self.my_width = my_width

    class MyCarp(hf_perturb.CarpModel):
        config_class = MyConfig

    MyCarp(MyConfig(hidden_size=8, num_hidden_layers=1, my_width=7)).save_pretrained(tmp_path)
    for config in (MyCarp.from_pretrained(tmp_path).config, MyConfig.from_pretrained(tmp_path)):
        assert (config.my_width, config.hidden_size) == (7, 8)
    assert MyConfig.read_fields({"self": 1, "kwargs": 2, "args": 3})[0] == {}


@pytest.mark.parametrize("network", CONFIGS)
@pytest.mark.parametrize("head", HEADS)
def test_all_that_is_saved_is_read(network, head, tmp_path):
    said = {"output_hidden_states": True, "return_dict": False, "num_labels": 3}
    model = small_model(network, head, **said, problem_type="regression", num_hidden_layers=1)
    model.config.use_cache = False  # as Trainer sets it
    model.save_pretrained(tmp_path)
    opened = Checkpoint.open(tmp_path).check()
    assert not opened.others
    again = model_class(network, head).from_pretrained(tmp_path).config
    for key in (*said, "problem_type", "id2label", "label2id"):
        assert getattr(again, key) == getattr(model.config, key)


def test_null_is_as_if_it_were_not_there():
    known, others = read_fields("C", {"dtype": None, "auto_map": None, "size": None, "x": None}, ["size"])
    assert (known, others) == ({"size": None}, {"x": None})


@pytest.mark.parametrize("value", [0, "x", {}, [0]])
def test_a_configuration_of_another_origin_is_read_by_a_list_too(value, tmp_path):
    stored = {"model_type": "esm", "position_embedding_type": value or []}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    for load in (Checkpoint.open, hf_perturb.FairEsmModel.from_pretrained):
        with pytest.raises(CheckpointError, match=r"position_embedding_type is .*; allowed: 'absolute' or 'rotary'"):
            load(str(tmp_path))
    stored = {"model_type": "esm", "dtype": 5, "fusion_config": 5}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match=r"EsmConfig\.dtype: got 5"):
        Checkpoint.open(str(tmp_path))


def test_whatever_is_written_it_works_or_says_why_not(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found, examples = fuzz(tmp_path, 300, seed=0)
    theirs = {name for name in examples if ": before us: " in name}
    assert not {name: examples[name] for name in examples.keys() - theirs}
    assert {name.rpartition(": ")[2] for name in found.keys() - theirs} == {WORKS, REFUSED}
