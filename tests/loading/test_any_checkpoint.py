"""`hf_perturb.from_pretrained`: bases, controls and recipes of any network, by any Auto class."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.any_models import any_model, noised
from support.models import small_model
from support.quantiser import RoundingConfig
from support.spec_table import copied, differing
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertModel,
    CLIPTextModel,
    CLIPVisionModel,
    EsmConfig,
    EsmForMaskedLM,
    EsmModel,
    T5EncoderModel,
)

import hf_perturb
from hf_perturb import CheckpointError, DigestError, ModelInputError, PerturbationError, StackedPerturbationError
from hf_perturb.cli import main

METHODS = ("reinit", "resample", "gaussian")
MLM = {"auto_class": AutoModelForMaskedLM}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Return a folder with a base, a control of it and a recipe of it."""
    folder = tmp_path_factory.mktemp("folders")
    any_model("bert", head=True, change=noised).save_pretrained(folder / "base")
    hf_perturb.create_variant(folder / "base", folder / "control", "reinit")
    for method in METHODS:
        hf_perturb.create_variant(folder / "base", folder / f"{method}-recipe", method, recipe=True)
    return folder


def trained_by_transformers(control: Path, out: Path) -> Path:
    """Train a control a little and save it, as somebody does who has nothing of ours."""
    shutil.copytree(control, out)
    tensors = load_file(out / "model.safetensors")
    tensors["bert.encoder.layer.0.output.dense.weight"] += 1
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def test_a_base_is_loaded_as_it_is_and_a_control_too(folders):
    base = hf_perturb.from_pretrained(folders / "base", **MLM)
    assert isinstance(base, BertForMaskedLM)
    assert getattr(base.config, "perturbation", None) is None
    for asked in (None, "reinit", {"method": "reinit", "rules": "transformers"}):
        model = hf_perturb.from_pretrained(folders / "control", **MLM, perturbation=asked, verify=True)
        assert not differing(copied(model), copied(AutoModelForMaskedLM.from_pretrained(folders / "control")))
        stored = json.loads((folders / "control" / "config.json").read_text(encoding="utf-8"))
        assert model.config.perturbation == stored["perturbation"]


@pytest.mark.parametrize("method", METHODS)
def test_a_base_is_perturbed_in_one_line_with_the_bits_of_create(folders, method, tmp_path):
    model, info = hf_perturb.from_pretrained(
        folders / "base", **MLM, perturbation={"method": method, "seed": 3}, output_loading_info=True
    )
    record = hf_perturb.create_variant(folders / "base", tmp_path / "v", {"method": method, "seed": 3})
    assert model.config.perturbation == record.to_dict() | {"base": {"name": "base"}}
    assert not info["missing_keys"]
    model.save_pretrained(tmp_path / "saved")
    assert hf_perturb.verify_variant(tmp_path / "saved").ok


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_recipe_is_made_again(folders, method, dtype, tmp_path):
    hf_perturb.create_variant(folders / f"{method}-recipe", tmp_path / "made")
    for given in ({**MLM}, {"auto_class": AutoModel, "add_pooling_layer": False}):
        model = hf_perturb.from_pretrained(folders / f"{method}-recipe", **given, dtype=dtype, perturbation=method)
        kept = {key: value for key, value in given.items() if key != "auto_class"}
        stored = given["auto_class"].from_pretrained(tmp_path / "made", dtype=dtype, **kept)
        assert not differing(copied(model), copied(stored))
        assert not model.training
        assert model.config.perturbation["base"]["digest"]
        model.save_pretrained(tmp_path / "saved")
        assert hf_perturb.verify_variant(tmp_path / "saved").ok


@pytest.mark.parametrize(
    ("kind", "cls"),
    [("clip", CLIPTextModel), ("clip", CLIPVisionModel), ("t5", T5EncoderModel), ("qwen3_moe", AutoModel)],
)
def test_a_part_of_a_network_is_drawn_as_in_the_whole(kind, cls, tmp_path):
    any_model(kind, head=kind != "clip", change=noised).save_pretrained(tmp_path / "base")
    hf_perturb.create_variant(tmp_path / "base", tmp_path / "control", "reinit")
    hf_perturb.create_variant(tmp_path / "base", tmp_path / "recipe", "reinit", recipe=True)
    expected = copied(cls.from_pretrained(tmp_path / "control"))
    for name, asked in (("base", "reinit"), ("recipe", None)):
        model = hf_perturb.from_pretrained(tmp_path / name, auto_class=cls, perturbation=asked)
        assert not differing(copied(model), expected)
        model.save_pretrained(tmp_path / "saved")
        assert hf_perturb.verify_variant(tmp_path / "saved").ok


def test_a_recipe_of_a_base_that_changed_is_refused(folders, tmp_path):
    shutil.copytree(folders / "base", tmp_path / "base")
    hf_perturb.create_variant(tmp_path / "base", tmp_path / "recipe", "resample", recipe=True)
    any_model("bert", head=True).save_pretrained(tmp_path / "base")
    with pytest.raises(DigestError, match="it has changed"):
        hf_perturb.from_pretrained(tmp_path / "recipe", **MLM)


def test_a_recipe_for_another_network_than_its_base_is_refused(folders, tmp_path):
    edited = shutil.copytree(folders / "resample-recipe", tmp_path / "edited")
    stored = json.loads((edited / "config.json").read_text(encoding="utf-8"))
    (edited / "config.json").write_text(json.dumps(stored | {"num_hidden_layers": 3}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"for another network than its base: .*num_hidden_layers is 3"):
        hf_perturb.from_pretrained(edited, **MLM)


def test_a_folder_that_is_replaced_while_it_is_loaded_is_refused(folders, tmp_path):
    moving = shutil.copytree(folders / "control", tmp_path / "moving")

    class Slow(BertForMaskedLM):
        @classmethod
        def from_pretrained(cls, *args, **kwargs):
            loaded = super().from_pretrained(*args, **kwargs)
            shutil.copyfile(folders / "base" / "model.safetensors", moving / "model.safetensors")
            return loaded

    with pytest.raises(CheckpointError, match="was replaced while it was loaded"):
        hf_perturb.from_pretrained(moving, auto_class=Slow)


def test_another_perturbation_on_top_is_refused(folders):
    for name in ("control", "reinit-recipe"):
        with pytest.raises(StackedPerturbationError, match="start from the base"):
            hf_perturb.from_pretrained(folders / name, **MLM, perturbation="resample")
    config = AutoModel.from_pretrained(folders / "base").config
    config.perturbation = {"method": "resample"}
    with pytest.raises(StackedPerturbationError, match="start from the base"):
        hf_perturb.from_pretrained(folders / "control", **MLM, config=config)
    model = hf_perturb.from_pretrained(folders / "base", **MLM, config=config)
    assert model.config.perturbation["method"] == "resample"
    assert model.config.perturbation["digest"]


def test_weights_that_changed_since_say_so_everywhere(folders, tmp_path, caplog, capsys):
    trained = trained_by_transformers(folders / "control", tmp_path / "trained")
    with caplog.at_level(logging.WARNING, "hf_perturb"):
        model = hf_perturb.from_pretrained(trained, **MLM)
    assert "changed since: trained, or edited; it is loaded as it is" in caplog.text
    assert model.config.perturbation["changed"] is True
    with pytest.raises(DigestError, match="trained or edited"):
        hf_perturb.from_pretrained(trained, **MLM, verify=True)
    with pytest.raises(StackedPerturbationError, match="trained or edited"):
        hf_perturb.from_pretrained(trained, **MLM, perturbation="reinit")
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text(encoding="utf-8"))["perturbation"]["changed"]
    assert main(["list", str(trained)]) == 0
    assert "changed since" in capsys.readouterr().err
    assert main(["verify", str(trained)]) == 1


def test_a_flipped_bit_is_found_by_verify_alone(folders, tmp_path):
    damaged = shutil.copytree(folders / "control", tmp_path / "damaged")
    path = damaged / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    hf_perturb.from_pretrained(damaged, **MLM)
    with pytest.raises(DigestError, match="fetch it again"):
        hf_perturb.from_pretrained(damaged, **MLM, verify=True)
    with pytest.raises(CheckpointError, match="records no digest"):
        hf_perturb.from_pretrained(folders / "base", **MLM, verify=True)


def test_a_record_of_other_weights_is_refused(folders, tmp_path):
    mixed = shutil.copytree(folders / "control", tmp_path / "mixed")
    stored = json.loads((mixed / "config.json").read_text(encoding="utf-8"))
    stored["perturbation"]["seed"] = 5
    (mixed / "config.json").write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(DigestError, match="says of itself"):
        hf_perturb.from_pretrained(mixed, **MLM)
    del stored["perturbation"]
    (mixed / "config.json").write_text(json.dumps(stored), encoding="utf-8")
    for asked in (None, "resample"):
        with pytest.raises(DigestError, match=r"config\.json nothing"):
            hf_perturb.from_pretrained(mixed, **MLM, perturbation=asked)


@pytest.mark.parametrize("method", METHODS)
def test_a_head_that_the_class_adds_is_drawn_by_the_seed(folders, method, tmp_path, caplog):
    given = {"auto_class": "AutoModelForSequenceClassification", "num_labels": 5, "perturbation": method}
    with caplog.at_level(logging.WARNING, "hf_perturb"):
        model = hf_perturb.from_pretrained(folders / "base", **given)
    assert "a head to be trained; its own `_init_weights` drew them by seed 42" in caplog.text
    for name in ("base", f"{method}-recipe"):
        torch.manual_seed(1)
        again = hf_perturb.from_pretrained(folders / name, **given)
        assert not differing(copied(model), copied(again))
        assert model.config.perturbation["digest"] == again.config.perturbation["digest"]
    model.save_pretrained(tmp_path)
    assert hf_perturb.verify_variant(tmp_path).ok
    mlm = hf_perturb.from_pretrained(folders / "base", **MLM, perturbation=method)
    shared = {name: x for name, x in copied(model).items() if name in copied(mlm)}
    assert not differing(shared, {name: x for name, x in copied(mlm).items() if name in shared})


def test_a_head_on_a_control_leaves_it_that_control(folders, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "hf_perturb"):
        model = hf_perturb.from_pretrained(folders / "control", auto_class=AutoModelForSequenceClassification)
    assert "from the global random state" in caplog.text
    assert model.config.perturbation["method"] == "reinit"
    model.save_pretrained(tmp_path)
    assert hf_perturb.verify_variant(tmp_path).ok


def test_a_cast_control_is_saved_as_one(folders, tmp_path):
    model = hf_perturb.from_pretrained(folders / "control", **MLM, dtype=torch.float16)
    model.save_pretrained(tmp_path)
    assert hf_perturb.verify_variant(tmp_path).ok


def test_the_sizes_are_those_that_it_is_stored_with(folders, tmp_path):
    for name, asked in (("control", None), ("base", "reinit")):
        with pytest.raises(CheckpointError, match=r"has encoder\.layer\.1\..*for which this network has no place"):
            hf_perturb.from_pretrained(folders / name, **MLM, perturbation=asked, num_hidden_layers=1)
        with pytest.raises(CheckpointError, match=r"lacks encoder\.layer\.2\."):
            hf_perturb.from_pretrained(folders / name, **MLM, perturbation=asked, num_hidden_layers=3)
        given = {"vocab_size": 54, "ignore_mismatched_sizes": True}
        with pytest.raises(CheckpointError, match=r"word_embeddings\.weight \(50, 32\) instead of \(54, 32\)"):
            hf_perturb.from_pretrained(folders / name, **MLM, perturbation=asked, **given)


@pytest.mark.parametrize("name", ["encoder.layer.1.output.dense.weight", "embeddings.LayerNorm.bias"])
def test_a_base_that_lacks_a_tensor_is_refused(name, folders, tmp_path):
    lacking = shutil.copytree(folders / "base", tmp_path / "lacking")
    tensors = load_file(lacking / "model.safetensors")
    del tensors[f"bert.{name}"]
    save_file(tensors, lacking / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"lacks {re.escape(name)}"):
        hf_perturb.from_pretrained(lacking, **MLM, perturbation="reinit")
    assert hf_perturb.from_pretrained(lacking, **MLM)  # as Transformers does, with nothing claimed


def test_what_would_leave_no_plain_weights_is_refused(folders):
    for given, said in (
        ({"quantization_config": RoundingConfig()}, "quantised weights.*hf-perturb create"),
        ({"device_map": {"": "disk"}}, "offloaded to disk"),
        ({"gguf_file": "model.gguf"}, "gguf_file: got one"),
        ({"key_mapping": {"a": "b"}}, "key_mapping"),
        ({"state_dict": {}}, "state_dict: got one"),
    ):
        with pytest.raises(ValueError, match=said):
            hf_perturb.from_pretrained(folders / "base", **MLM, perturbation="reinit", **given)
    model = hf_perturb.from_pretrained(folders / "control", **MLM, quantization_config=RoundingConfig())
    assert model.config.perturbation["method"] == "reinit"
    assert "digest" not in model.config.perturbation


def test_a_class_is_a_class_or_its_name(folders):
    assert isinstance(hf_perturb.from_pretrained(folders / "base", auto_class="AutoModelForMaskedLM"), BertForMaskedLM)
    assert isinstance(hf_perturb.from_pretrained(folders / "base", auto_class=BertModel), BertModel)
    for odd in ("AutoTokenizer", "NoSuchClass", int, None):
        with pytest.raises(ModelInputError, match="auto_class: got"):
            hf_perturb.from_pretrained(folders / "base", auto_class=odd)
    with pytest.raises(ModelInputError, match="verify: got 'yes'"):
        hf_perturb.from_pretrained(folders / "base", verify="yes")


def test_our_families_are_loaded_as_our_classes(tmp_path):
    small_model("carp").save_pretrained(tmp_path / "carp")
    model = hf_perturb.from_pretrained(tmp_path / "carp", **MLM, perturbation="resample")
    assert isinstance(model, hf_perturb.CarpForMaskedLM)
    assert model.config.perturbation.rules == "documented"
    asked = {"method": "reinit", "rules": "transformers"}
    assert hf_perturb.from_pretrained(tmp_path / "carp", perturbation=asked).config.perturbation.rules == "transformers"
    assert isinstance(
        hf_perturb.from_pretrained(tmp_path / "carp", auto_class=hf_perturb.CarpModel), hf_perturb.CarpModel
    )
    with pytest.raises(ModelInputError, match="got AutoModelForCausalLM for"):
        hf_perturb.from_pretrained(tmp_path / "carp", auto_class="AutoModelForCausalLM")


def test_a_stock_esm_is_ours_unless_the_rules_are_those_of_transformers(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    tokens = {"pad_token_id": 1, "mask_token_id": 32, "vocab_size": 33, "token_dropout": True}
    rotary = {"position_embedding_type": "rotary", "emb_layer_norm_before": False}
    torch.manual_seed(0)
    EsmForMaskedLM(EsmConfig(**sizes, **tokens, **rotary)).save_pretrained(tmp_path / "esm")
    ours = hf_perturb.from_pretrained(tmp_path / "esm", **MLM, perturbation="reinit")
    assert isinstance(ours, hf_perturb.FairEsmForMaskedLM)
    theirs = hf_perturb.from_pretrained(
        tmp_path / "esm", **MLM, perturbation={"method": "reinit", "rules": "transformers"}
    )
    assert isinstance(theirs, EsmForMaskedLM)
    assert theirs.config.perturbation["rules"] == "transformers"
    theirs.save_pretrained(tmp_path / "control")
    assert isinstance(hf_perturb.from_pretrained(tmp_path / "control", **MLM, verify=True), EsmForMaskedLM)
    by_class = hf_perturb.from_pretrained(tmp_path / "esm", auto_class=EsmModel, perturbation="resample")
    assert isinstance(by_class, EsmModel)
    with pytest.raises(PerturbationError, match="allowed: 'transformers'"):
        hf_perturb.from_pretrained(
            tmp_path / "esm", auto_class=EsmModel, perturbation={"method": "reinit", "rules": "documented"}
        )


TOY_CONFIG = """
from transformers import PreTrainedConfig


class ToyConfig(PreTrainedConfig):
    model_type = "toy_of_tests"

    def __init__(self, width=8, vocab_size=20, depth=2, **kwargs):
        self.width, self.vocab_size, self.depth = width, vocab_size, depth
        super().__init__(**kwargs)
"""
TOY_MODEL = """
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .configuration_toy import ToyConfig


class ToyModel(PreTrainedModel):
    config_class = ToyConfig
    base_model_prefix = "toy"

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList([nn.Linear(config.width, config.width) for _ in range(config.depth)])
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(std=0.5)
            module.bias.data.zero_()

    def forward(self, input_ids, **kwargs):
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        return BaseModelOutput(last_hidden_state=hidden)
"""


@pytest.fixture
def toy(tmp_path) -> Path:
    """Return a folder of a network that comes with its code."""
    code = tmp_path / "toy"
    code.mkdir()
    (code / "configuration_toy.py").write_text(TOY_CONFIG, encoding="utf-8")
    (code / "modeling_toy.py").write_text(TOY_MODEL, encoding="utf-8")
    named = {"AutoConfig": "configuration_toy.ToyConfig", "AutoModel": "modeling_toy.ToyModel"}
    config = {
        "model_type": "toy_of_tests",
        "architectures": ["ToyModel"],
        "auto_map": named,
        "width": 8,
        "vocab_size": 20,
    }
    (code / "config.json").write_text(json.dumps(config | {"depth": 2, "dtype": "float32"}), encoding="utf-8")
    shapes = {"embed.weight": (20, 8), **{f"layers.{i}.weight": (8, 8) for i in (0, 1)}}
    torch.manual_seed(0)
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    tensors |= {f"layers.{i}.bias": torch.randn(8) for i in (0, 1)}
    save_file(tensors, code / "model.safetensors", {"format": "pt"})
    return code


def test_code_that_comes_along_is_run_where_that_is_said(toy, tmp_path):
    with pytest.raises(CheckpointError, match=r"trust.remote.code"):
        hf_perturb.create_variant(toy, tmp_path / "refused", "reinit")
    with pytest.raises((ValueError, OSError), match=r"trust.remote.code"):
        hf_perturb.from_pretrained(toy, perturbation="reinit")
    trusted = {"trust_remote_code": True}
    model = hf_perturb.from_pretrained(toy, perturbation="reinit", **trusted)
    record = hf_perturb.create_variant(toy, tmp_path / "control", "reinit", **trusted)
    assert model.config.perturbation["digest"] == record.digest
    assert abs(model.layers[0].weight.std().item() - 0.5) < 0.1
    assert not model.layers[0].bias.any()
    assert hf_perturb.verify_variant(tmp_path / "control", toy, **trusted).ok
    assert hf_perturb.verify_variant(tmp_path / "control").ok  # a digest takes no code
    control = hf_perturb.from_pretrained(tmp_path / "control", verify=True, **trusted)
    assert not differing(copied(control), copied(model))
    model.save_pretrained(tmp_path / "saved")
    assert hf_perturb.verify_variant(tmp_path / "saved").ok
    assert main(["verify", str(tmp_path / "control"), "--base", str(toy), "--trust-remote-code"]) == 0
