"""Checkpoints that something else has saved are read where it is certain how, else the message says what to do."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import model_class, small_model
from support.refusals import edited
from transformers import EsmForSequenceClassification, EsmForTokenClassification

import hf_perturb
from hf_perturb import CheckpointError
from parity.original_files import state_of
from parity.stock import LAYOUTS, stock_model

WRAPPED = [
    *(("esm1", "module."), ("esm1b", "_orig_mod."), ("esm2", "base_model.model."), ("carp", "model.")),
    *(("esm2", "model."), ("carp", "module._orig_mod."), ("esm1b", "net.esm.")),
]
NETWORKS = ("esm1", "esm1b", "esm2", "carp")


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def rename(folder, name_of):
    tensors = weights_of(folder)
    renamed = {name_of(name): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    return tensors


def assert_read(source, folder, expected):
    hf_perturb.convert_checkpoint(source, folder / "out")
    written = weights_of(folder / "out")
    assert written.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in written.items())
    hf_perturb.create_variant(source, folder / "control", "resample")
    assert hf_perturb.verify_variant(folder / "control", folder / "out").ok


@pytest.mark.parametrize(("network", "prefix"), WRAPPED)
def test_a_folder_of_ours_is_read_without_what_is_before_all_names(tmp_path, network, prefix):
    small_model(network).save_pretrained(tmp_path / "saved")
    expected = rename(tmp_path / "saved", lambda name: prefix + name)
    assert_read(tmp_path / "saved", tmp_path, expected)
    # its own class might hold the network by this name, so loading leaves the names as they are
    with pytest.raises(CheckpointError, match=rf"hf-perturb convert makes a base of it: it reads '{re.escape(prefix)}"):
        model_class(network).from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(("name", "prefix"), [each for each in WRAPPED if each[0] in ("esm1b", "esm2")])
def test_a_stock_folder_is_read_without_it(tmp_path, name, prefix):
    LAYOUTS["published"](stock_model(name), tmp_path / "stock")
    hf_perturb.convert_checkpoint(tmp_path / "stock", tmp_path / "expected")
    rename(tmp_path / "stock", lambda name: prefix + name)
    assert_read(tmp_path / "stock", tmp_path, weights_of(tmp_path / "expected"))
    loaded = hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights_of(tmp_path / "expected").items())


@pytest.mark.parametrize("contacts", ["inside", "beside"])
@pytest.mark.parametrize(("name", "prefix"), WRAPPED)
def test_an_original_is_read_without_it(tmp_path, name, contacts, prefix):
    def wrap(data):
        state = state_of(data)
        renamed = {prefix + key: state.pop(key) for key in list(state)}
        # the regression is a file of its own, which nobody trains
        state.update(
            {key[len(prefix) :] if "beside" in contacts and "contact" in key else key: x for key, x in renamed.items()}
        )

    path = edited(tmp_path, name, wrap, contacts=contacts)
    (tmp_path / "plain").mkdir()
    hf_perturb.convert_checkpoint(edited(tmp_path / "plain", name, contacts=contacts), tmp_path / "expected")
    assert_read(path, tmp_path, weights_of(tmp_path / "expected"))


def test_what_wrappers_of_torch_put_between_names_is_left_out(tmp_path):
    small_model("esm2").save_pretrained(tmp_path / "saved")
    words = {"layers.1.": "layers.1._orig_mod.", "layers.2.": "layers.2._checkpoint_wrapped_module."}

    def name_of(name):
        for plain, wrapped in words.items():
            name = name.replace(plain, wrapped)
        return f"_fsdp_wrapped_module.{name}"

    expected = rename(tmp_path / "saved", name_of)
    assert_read(tmp_path / "saved", tmp_path, expected)


@pytest.mark.parametrize("network", ["esm1b", "carp"])
def test_a_record_is_compared_all_the_same(tmp_path, network):
    small_model(network).save_pretrained(tmp_path / "saved")
    hf_perturb.create_variant(tmp_path / "saved", tmp_path / "control", "resample")
    rename(tmp_path / "control", lambda name: f"module.{name}")
    assert hf_perturb.verify_variant(tmp_path / "control", tmp_path / "saved").ok
    tensors = weights_of(tmp_path / "control")
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, tmp_path / "control" / "model.safetensors", {"format": "pt"})
    with pytest.raises(hf_perturb.DigestError):
        hf_perturb.convert_checkpoint(tmp_path / "control", tmp_path / "none")


@pytest.mark.parametrize("network", [*NETWORKS, "stock"])
def test_a_network_inside_a_larger_one_is_named(tmp_path, network):
    if network == "stock":
        LAYOUTS["published"](stock_model("esm2"), tmp_path / "saved")
    else:
        small_model(network).save_pretrained(tmp_path / "saved")
    tensors = {f"encoder.{name}": tensor for name, tensor in weights_of(tmp_path / "saved").items()}
    save_file({**tensors, "probe.weight": torch.zeros(2)}, tmp_path / "saved" / "model.safetensors", {"format": "pt"})
    for make in (hf_perturb.convert_checkpoint, lambda x, out: hf_perturb.create_variant(x, out, "reinit")):
        with pytest.raises(
            CheckpointError, match=r"part of what was saved, with 'encoder\.' before its names: save that"
        ):
            make(tmp_path / "saved", tmp_path / "out")
    assert os.listdir(tmp_path) == ["saved"]


@pytest.mark.parametrize("theirs", [EsmForSequenceClassification, EsmForTokenClassification])
def test_the_command_that_a_stock_classifier_needs_works(tmp_path, theirs, monkeypatch):
    stock_model("esm2", theirs).save_pretrained(tmp_path / "stock")
    with pytest.raises(CheckpointError, match="its trunk alone is one: ") as caught:
        hf_perturb.convert_checkpoint(tmp_path / "stock", tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    exec(str(caught.value).rpartition("is one: ")[2], {"hf_perturb": hf_perturb})
    assert hf_perturb.convert_checkpoint(tmp_path / "OUT", tmp_path / "base").architecture == "FairEsmModel"
    hf_perturb.create_variant(tmp_path / "base", tmp_path / "control", "reinit")


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification"])
@pytest.mark.parametrize("network", NETWORKS)
def test_classifiers_of_ours_are_bases(tmp_path, network, head):
    small_model(network, head, num_labels=3).save_pretrained(tmp_path / "saved")
    assert_read(tmp_path / "saved", tmp_path, weights_of(tmp_path / "saved"))


def test_a_checkpoint_of_lightning_says_what_to_do(tmp_path):
    state = {f"model.{name}": tensor for name, tensor in small_model("carp").state_dict().items()}
    stored = {"epoch": 1, "pytorch-lightning_version": "2.5.0", "state_dict": state, "hyper_parameters": {"lr": 1e-3}}
    torch.save(stored, tmp_path / "last.ckpt")
    message = r"last\.ckpt is .* PyTorch Lightning.*'model\.model\.embedder.*says no sizes; .*wrap"
    with pytest.raises(CheckpointError, match=message):
        hf_perturb.convert_checkpoint(tmp_path / "last.ckpt", tmp_path / "out")
    small_model("carp").save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "model.safetensors").unlink()
    shutil.copy(tmp_path / "last.ckpt", tmp_path / "saved" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is not a state_dict.* by the name 'state_dict'"):
        hf_perturb.convert_checkpoint(tmp_path / "saved", tmp_path / "out")
    # and what is saved as it says is read
    torch.save(state, tmp_path / "saved" / "pytorch_model.bin")
    hf_perturb.convert_checkpoint(tmp_path / "saved", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["CarpForMaskedLM"]
