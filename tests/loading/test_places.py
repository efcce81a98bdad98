"""Where a checkpoint is: names as they are given, configurations that say little, and weights that none describes."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.models import model_class, small_model
from transformers import AutoModelForMaskedLM

import hf_perturb
from hf_perturb import demo
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.of_torch import mapped, tensor_of
from hf_perturb.checkpoints.tensors import OpenFile
from hf_perturb.perturbation import digest_of
from hf_perturb.variants.create import create_variant

NETWORKS = ("carp", "esm1b")


@pytest.fixture
def place(request, tmp_path):
    """Write a base of a network."""
    network = getattr(request, "param", "carp")
    small_model(network).save_pretrained(tmp_path / "place")
    return tmp_path / "place"


def edit(folder, **changes):
    """Change the `config.json` of a folder; what is `None` goes."""
    path = folder / "config.json"
    said = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in said.items() if value is not None}))


def weights_of(model):
    return digest_of(dict(model.state_dict()))


def test_a_folder_by_the_name_of_the_demo_is_loaded(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place.rename("demo")
    for cls in (model_class("carp"), AutoModelForMaskedLM):
        model = cls.from_pretrained("demo")
        assert model.name_or_path == "demo"
        assert weights_of(model) == weights_of(small_model("carp"))
    assert Checkpoint.open("demo").location != "demo"


def test_a_name_stays_as_it_was_given(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("place", "./place", str(place)):
        assert model_class("carp").from_pretrained(name).config.name_or_path == name


@pytest.mark.parametrize(("network", "place"), [(network, network) for network in NETWORKS], indirect=["place"])
def test_a_class_knows_the_family_of_a_configuration_that_names_none(network, place):
    edit(place, model_type=None)
    cls = model_class(network)
    assert weights_of(cls.from_pretrained(place)) == weights_of(small_model(network))
    assert weights_of(cls.from_pretrained(place, config=cls.config_class.from_pretrained(place)))
    edit(place, num_hidden_layers=1)
    with pytest.raises(OSError, match="is not what its config"):
        cls.from_pretrained(place)


@pytest.mark.parametrize(("network", "place"), [(network, network) for network in NETWORKS], indirect=["place"])
def test_weights_without_a_configuration_need_one(network, place):
    cls = model_class(network)
    config = cls.config_class.from_pretrained(place)
    (place / "config.json").unlink()
    assert weights_of(cls.from_pretrained(place, config=config)) == weights_of(small_model(network))
    perturbed = cls.from_pretrained(place, config=config, perturbation="reinit")
    assert weights_of(perturbed) == weights_of(small_model(network).perturb("reinit"))
    with pytest.raises(OSError, match=r"no config\.json in it"):
        cls.from_pretrained(place)
    os.truncate(place / "model.safetensors", 3)
    with pytest.raises(OSError, match=r"model\.safetensors is damaged"):
        cls.from_pretrained(place, config=config)


def test_what_was_opened_is_loaded_from_where_it_is(place):
    (place / "model.safetensors").rename(place / "model.half.safetensors")
    opened = Checkpoint.open(place, variant="half")
    for options in ({}, {"device_map": "cpu"}, {"verify": False, "dtype": torch.float64}):
        assert model_class("carp").from_pretrained(opened, **options).name_or_path == str(place)


def test_a_class_of_another_family_names_the_format_that_is_there(tmp_path):
    small_model("esm2").save_pretrained(tmp_path / "base")
    hf_perturb.export_checkpoint(tmp_path / "base", tmp_path / "stock", "transformers")
    with pytest.raises(OSError, match="model_type is 'esm', this class loads 'carp'"):
        model_class("carp").from_pretrained(tmp_path / "stock")


def test_other_weights_beside_a_checkpoint_are_refused(place):
    with pytest.raises(ValueError, match=r"gguf_file: got one beside the checkpoint"):
        model_class("carp").from_pretrained(place, gguf_file="model.gguf")


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("empty", [lambda path: save_file({}, path), lambda path: path.with_suffix(".bin")])
def test_a_file_of_no_tensors_is_no_network(empty, verify, tmp_path):
    hf_perturb.convert_checkpoint("demo", tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    path.unlink()
    if (other := empty(path)) is not None:
        torch.save({}, other.with_name("pytorch_model.bin"))
    with pytest.raises(OSError, match="missing tensors"):
        model_class("carp").from_pretrained(tmp_path / "base", verify=verify)


@pytest.mark.parametrize("options", [{}, {"verify": True}, {"device_map": "cpu"}], ids=str)
@pytest.mark.parametrize("place", ["esm1b"], indirect=True)
def test_a_head_that_is_not_the_one_it_is_tied_to_is_an_error(options, place, tmp_path):
    hf_perturb.convert_checkpoint(place, tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["embed_tokens.weight"].clone()
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata)
    assert model_class("esm1b").from_pretrained(tmp_path / "base", **options)
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, path, metadata)
    with pytest.raises(OSError, match=r"lm_head\.weight and embed_tokens\.weight differ"):
        model_class("esm1b").from_pretrained(tmp_path / "base", **options)


def test_two_files_with_one_tensor_are_an_error(place):
    small_model("carp").save_pretrained(place, max_shard_size=40_000)
    (place / "model.safetensors").unlink(missing_ok=True)
    first, last = (sorted(place.glob("model-*.safetensors"))[number] for number in (0, -1))
    assert model_class("carp").from_pretrained(place)
    name = next(iter(load_file(first)))
    save_file({**load_file(last), name: load_file(first)[name] + 1}, last, {"format": "pt"})
    with pytest.raises(OSError, match=f"{last.name} and a file before it both have {name}"):
        model_class("carp").from_pretrained(place)


def test_other_weights_are_saved_without_the_digest_of_these(place, tmp_path):
    create_variant(place, tmp_path / "control", "reinit")
    model = model_class("carp").from_pretrained(tmp_path / "control")
    other = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "other", True, other)
    record = json.loads((tmp_path / "other" / "config.json").read_text())["perturbation"]
    assert record["changed"] is True
    assert record["digest"] == json.loads((tmp_path / "control" / "config.json").read_text())["perturbation"]["digest"]


@pytest.mark.parametrize(
    "changes",
    [
        {"return_dict": True},
        {"num_labels": 2},
        {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}},
        {"problem_type": "regression"},
        {"hidden_act": None},
        {"classifier_dropout": None},
    ],
    ids=str,
)
def test_what_everyone_takes_for_granted_may_be_said_or_not(changes, place, tmp_path):
    create_variant(place, tmp_path / "control", "reinit")
    create_variant(place, tmp_path / "recipe", "reinit", recipe=True)
    shutil.copytree(tmp_path / "control", tmp_path / "said")
    edit(tmp_path / "said", **changes)
    assert hf_perturb.verify_variant(tmp_path / "said", base=place).problems == ()
    edit(place, **changes)
    assert hf_perturb.verify_variant(tmp_path / "control", base=place).problems == ()
    create_variant(tmp_path / "recipe", tmp_path / "made")


@pytest.mark.parametrize(
    "changes", [{"classifier_dropout": 0.5}, {"id2label": {"0": "a", "1": "b", "2": "c"}}], ids=str
)
def test_what_a_variant_says_otherwise_is_found(changes, place, tmp_path):
    create_variant(place, tmp_path / "control", "reinit")
    edit(tmp_path / "control", **changes)
    assert not hf_perturb.verify_variant(tmp_path / "control", base=place).ok


def test_files_are_read_where_the_system_cannot_read_at_an_offset(place, monkeypatch):
    before = Checkpoint.open(place).check().digest()
    monkeypatch.delattr(os, "preadv")
    assert Checkpoint.open(place).check().digest() == before
    file = OpenFile(place / "model.safetensors")
    whole = bytearray(file.size)
    file.read_into(memoryview(whole), 0)
    assert whole == (place / "model.safetensors").read_bytes()


def test_a_file_that_may_not_be_read_is_named(place, monkeypatch):
    def refusing(path, flags):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(OSError, match=r"model\.safetensors cannot be opened: .*Permission denied"):
        OpenFile(place / "model.safetensors")


def test_no_descriptor_stays_open_for_a_model_that_is_loaded(place):
    def open_files():
        return len(os.listdir("/proc/self/fd"))

    model_class("carp").from_pretrained(place)
    before = open_files()
    models = [model_class("carp").from_pretrained(place) for _ in range(5)]
    assert len(models) == 5
    assert open_files() <= before


def test_arguments_that_exclude_each_other_are_an_error_of_the_checkpoint():
    hub = {"force_download": True, "local_files_only": True}
    with pytest.raises(OSError, match="force_download"):
        Checkpoint.open("lab/nothing", hub=hub)


@pytest.mark.parametrize(
    "options", [{}, {"verify": True}, {"perturbation": "reinit"}, {"use_safetensors": False}], ids=str
)
def test_what_is_loaded_in_inference_mode_can_be_trained(options, tmp_path):
    hf_perturb.convert_checkpoint("demo", tmp_path / "base")
    if "use_safetensors" in options:
        torch.save(load_file(tmp_path / "base" / "model.safetensors"), tmp_path / "base" / "pytorch_model.bin")
    with torch.inference_mode():
        model = model_class("carp").from_pretrained(tmp_path / "base", **options)
    assert not any(tensor.is_inference() for tensor in model.state_dict().values())
    ids = torch.tensor([[5, 7, 20]])
    model(ids, labels=ids).loss.backward()


def test_a_recipe_that_is_made_in_inference_mode_can_be_trained(tmp_path):
    create_variant("demo", tmp_path / "recipe", "resample", recipe=True)
    with torch.inference_mode():
        model = model_class("carp").from_pretrained(tmp_path / "recipe")
    assert not any(tensor.is_inference() for tensor in model.state_dict().values())


def test_files_are_read_on_the_cpu_whatever_the_default_device(tmp_path):
    before = weights_of(model_class("carp").from_pretrained(demo.folder()))
    create_variant("demo", tmp_path / "control", "reinit")
    with torch.device("meta"):
        with pytest.raises(RuntimeError, match="meta device"):  # Transformers' own
            model_class("carp").from_pretrained(demo.folder())
        opened = Checkpoint.open("demo")
        assert {tensor_of(tensor.values()).device.type for tensor in opened.tensors.values()} == {"cpu"}
        assert {tensor.device.type for tensor in mapped(opened.tensors).values()} == {"cpu"}
        hf_perturb.export_checkpoint("demo", tmp_path / "demo.pt", "sequence-models")
        assert hf_perturb.compare_checkpoints("demo", tmp_path / "control").changed
    hf_perturb.convert_checkpoint(tmp_path / "demo.pt", tmp_path / "back")
    assert weights_of(model_class("carp").from_pretrained(tmp_path / "back")) == before


@pytest.mark.parametrize("name", ["", 3, b"place", ["place"], {"place"}], ids=str)
def test_what_is_no_name_is_refused(name, place, monkeypatch):
    monkeypatch.chdir(place)
    for call in (model_class("carp").from_pretrained, Checkpoint.open, hf_perturb.verify_variant):
        with pytest.raises((ValueError, OSError, TypeError)):
            call(name)


def test_messages_name_what_is_wrong(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load = model_class("carp").from_pretrained
    with pytest.raises(OSError, match=r"no config\.json in its subfolder 'nope'"):
        load("place", subfolder="nope")
    with pytest.raises(OSError, match=r"place/config\.json is one file of a folder"):
        load("place/config.json")
    with pytest.raises(ValueError, match="verify: got 'yes'; allowed: True, False"):
        load("place", verify="yes")
    with pytest.raises(OSError, match=r"hf_perturb\.demo\.folder\(\) loads"):
        load("demo", local_files_only=True)
