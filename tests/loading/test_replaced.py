"""A folder that is replaced while it is loaded: the old variant whole, the new one whole, or an error; none mixed."""

from __future__ import annotations

import json
import os
import shutil
import sys

import pytest
import torch
from support.models import model_class, small_model
from transformers import AutoConfig, AutoModelForMaskedLM

from hf_perturb.checkpoints import source
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.perturbation import digest_of
from hf_perturb.variants.create import create_variant

WAYS = {
    "plain": lambda folder: model_class("carp").from_pretrained(folder),
    "verified": lambda folder: model_class("carp").from_pretrained(folder, verify=True),
    "trunk": lambda folder: model_class("carp", "Model").from_pretrained(folder),
    "auto": lambda folder: AutoModelForMaskedLM.from_pretrained(folder),
    "auto verified": lambda folder: AutoModelForMaskedLM.from_pretrained(folder, verify=True),
    "asked": lambda folder: model_class("carp").from_pretrained(folder, perturbation="reinit"),
}
_steps = {"left": None, "do": None, "folder": ""}


def step(path):
    """Count down, and replace the folder when it is time."""
    if _steps["left"] is None or not str(path).startswith(_steps["folder"]):
        return
    _steps["left"] -= 1
    if _steps["left"] < 0:
        _steps["left"] = None
        _steps["do"]()


def on_audit(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        step(arguments[0])


sys.addaudithook(on_audit)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Write a base, and variants of it that differ in weights, record, and what no shape of a tensor shows."""
    parent = tmp_path_factory.mktemp("folders")
    small_model("carp", num_hidden_layers=2).save_pretrained(parent / "base")
    for seed, act in ((1, "gelu"), (2, "relu")):
        create_variant(parent / "base", parent / str(seed), {"method": "reinit", "seed": seed})
        config = parent / str(seed) / "config.json"
        config.write_text(
            json.dumps({**json.loads(config.read_text()), "hidden_act": act, "classifier_dropout": seed / 8})
        )
    return parent


def described(model):
    """Return all that tells one folder from the other, as a model says it."""
    config = model.config
    weights = {name: x for name, x in model.state_dict().items() if "decoder" not in name and "last_norm" not in name}
    record = config.perturbation
    said = None if record is None else (record.method, record.seed, record.digest)
    return digest_of(weights), said, config.hidden_act, config.classifier_dropout, config.digest


@pytest.mark.parametrize(("old", "new"), [("1", "2"), ("1", "base"), ("base", "2")])
@pytest.mark.parametrize("way", WAYS)
def test_no_load_mixes_two_folders(way, old, new, folders, tmp_path, monkeypatch):
    load, place = WAYS[way], tmp_path / "place"
    whole = {}
    for name in (old, new):
        try:
            whole[name] = described(load(str(folders / name)))
        except (OSError, ValueError) as error:  # a base has no digest, and one perturbation is not another
            whole[name] = type(error)
    identity = source.identity

    def stepping(path):
        step(path)
        return identity(path)

    monkeypatch.setattr(source, "identity", stepping)
    seen, number, done = set(), 0, False
    while not done:
        shutil.rmtree(tmp_path)
        shutil.copytree(folders / old, place)
        shutil.copytree(folders / new, tmp_path / "fresh")

        def replace():
            os.rename(place, tmp_path / "gone")
            os.rename(tmp_path / "fresh", place)

        _steps.update(left=number, do=replace, folder=str(place))
        try:
            found = described(load(str(place)))
        except (OSError, ValueError) as error:
            found = type(error)
        done, _steps["left"] = _steps["left"] is not None, None
        assert found in whole.values() or isinstance(found, type), (number, found, whole)
        seen.add(found)
        number += 1
    assert number > 5, "every step was tried"
    assert whole[old] in seen


def test_opening_reads_configuration_and_headers_once(folders):
    opened = []
    _steps.update(left=None)

    def note(event, arguments):
        if event == "open" and isinstance(arguments[0], str | os.PathLike):
            opened.append(os.path.basename(os.fspath(arguments[0])))

    sys.addaudithook(note)
    Checkpoint.open(folders / "1").check()
    assert opened.count("config.json") == 1
    assert opened.count("model.safetensors") == 1
    opened.clear()
    model_class("carp").from_pretrained(folders / "1", verify=True)
    assert opened.count("config.json") == 1
    assert opened.count("model.safetensors") == 1


def test_a_folder_that_never_stays_the_same_is_an_error(folders, tmp_path, monkeypatch):
    shutil.copytree(folders / "1", tmp_path / "place")
    read = source.read_json

    def touching(path):
        stored = read(path)
        os.utime(path, ns=(0, os.stat(path).st_mtime_ns + 1))
        return stored

    monkeypatch.setattr(source, "read_json", touching)
    with pytest.raises(OSError, match="its files change while they are read"):
        Checkpoint.open(tmp_path / "place")


def test_a_live_model_keeps_what_it_loaded(folders, tmp_path):
    shutil.copytree(folders / "1", tmp_path / "place")
    model = model_class("carp").from_pretrained(tmp_path / "place", verify=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shutil.rmtree(tmp_path / "place")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_file_that_is_written_into_is_an_error(folders, tmp_path, monkeypatch):
    place = shutil.copytree(folders / "1", tmp_path / "place")
    raw = (folders / "2" / "model.safetensors").read_bytes()
    cls = model_class("carp")
    read = cls.read_weights.__func__

    def writing(*arguments):
        (place / "model.safetensors").write_bytes(raw)
        return read(*arguments)

    opened = Checkpoint.open(place)
    monkeypatch.setattr(cls, "read_weights", classmethod(writing))
    with pytest.raises(OSError, match="was replaced while it was loaded"):
        cls.from_pretrained(place)
    with pytest.raises(OSError, match=r"model\.safetensors was written into while it was read"):
        opened.digest()


def test_no_variant_is_made_of_a_file_that_is_written_into(folders, tmp_path, monkeypatch):
    place = shutil.copytree(folders / "base", tmp_path / "place")
    check = Checkpoint.check

    def writing(self):
        path = place / "model.safetensors"
        raw = path.read_bytes()
        path.write_bytes(raw[:-4] + b"\0\0\0\0")
        return check(self)

    monkeypatch.setattr(Checkpoint, "check", writing)
    with pytest.raises(OSError, match="was written into while it was read"):
        create_variant(place, tmp_path / "variant", "resample")
    assert not (tmp_path / "variant").exists()


def test_a_configuration_of_another_folder_is_not_that_of_this_one(folders, tmp_path):
    place = shutil.copytree(folders / "1", tmp_path / "place")
    config = AutoConfig.from_pretrained(place)
    shutil.rmtree(place)
    shutil.copytree(folders / "2", place)
    with pytest.raises(OSError, match="was replaced; read it again, or leave it out"):
        model_class("carp").from_pretrained(place, config=config)
