"""Controls of folders of Transformers' own ESM: while loading, in memory, as variants and as recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import EsmModel, PreTrainedModel

import hf_perturb
from hf_perturb import FairEsmForMaskedLM, Perturbation
from hf_perturb.perturbation import digest_of
from parity.originals import small_pair
from parity.stock import LAYOUTS, STOCKS, stock_model, write_config

PERTURBATIONS = {
    "reinit": Perturbation("reinit", seed=3),
    "resample": Perturbation("resample", axis="rows"),
    "tied": Perturbation("resample", exclude=["lm_head.weight"]),
    "published": Perturbation("resample", rules="published"),
}


@pytest.fixture(params=STOCKS)
def name(request) -> str:
    return request.param


@pytest.fixture(params=PERTURBATIONS.values(), ids=PERTURBATIONS)
def asked(request) -> Perturbation:
    return request.param


@pytest.fixture
def folder(name, tmp_path) -> Path:
    LAYOUTS["published"](stock_model(name), tmp_path / "stock")
    return tmp_path / "stock"


def assert_same(one: PreTrainedModel, other: PreTrainedModel) -> None:
    ones, others = one.state_dict(), other.state_dict()
    assert list(ones) == list(others)
    for tensor_name, tensor in ones.items():
        assert tensor.dtype == others[tensor_name].dtype, tensor_name
        assert torch.equal(tensor, others[tensor_name]), tensor_name
    assert one.config.perturbation == other.config.perturbation
    assert one.config.tie_word_embeddings == other.config.tie_word_embeddings


def test_while_loading_is_as_in_memory(folder, asked):
    base = FairEsmForMaskedLM.from_pretrained(folder)
    before = digest_of(base.state_dict())
    model, info = FairEsmForMaskedLM.from_pretrained(folder, perturbation=asked, output_loading_info=True)
    assert not info["missing_keys"]
    assert model.config.perturbation == asked
    assert digest_of(model.state_dict()) != before
    assert_same(model, hf_perturb.perturb(base, asked))


def test_the_control_is_that_of_the_original(name, folder, asked):
    """The same weights give the same control, whichever package stored them."""
    base = FairEsmForMaskedLM.from_pretrained(folder)
    original = small_pair(name).original
    original.load_state_dict(base.state_dict(), strict=True)
    assert_same(
        FairEsmForMaskedLM.from_pretrained(folder, perturbation=asked), hf_perturb.wrap(original).perturb(asked)
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_files_are_left_as_they_are(layout, tmp_path):
    LAYOUTS[layout](stock_model("esm2"), tmp_path / "stock")
    before = {file.name: file.read_bytes() for file in (tmp_path / "stock").iterdir()}
    model = FairEsmForMaskedLM.from_pretrained(tmp_path / "stock", perturbation="resample")
    for tensor in FairEsmForMaskedLM.from_pretrained(tmp_path / "stock").state_dict().values():
        tensor.zero_()
    again = FairEsmForMaskedLM.from_pretrained(tmp_path / "stock", perturbation="resample")
    assert_same(model, again)
    assert {file.name: file.read_bytes() for file in (tmp_path / "stock").iterdir()} == before


@pytest.mark.parametrize("method", ["reinit", "resample"])
def test_trunk_and_classifier_get_the_same_control(folder, method):
    whole = FairEsmForMaskedLM.from_pretrained(folder, perturbation=method).state_dict()
    for head in ("Model", "ForSequenceClassification", "ForTokenClassification"):
        model = getattr(hf_perturb, f"FairEsm{head}").from_pretrained(folder, perturbation=method)
        assert model.config.perturbation == Perturbation(method)
        for tensor_name, tensor in model.state_dict().items():
            assert tensor_name.startswith("classifier.") or torch.equal(tensor, whole[tensor_name]), tensor_name


def test_a_recorded_control_is_loaded_as_it_is(name, tmp_path):
    stock = stock_model(name)
    LAYOUTS["published"](stock, tmp_path / "stock")
    base = FairEsmForMaskedLM.from_pretrained(tmp_path / "stock")
    record = {"method": "resample", "seed": 5, "base": {"name": "some/base"}}
    write_config(tmp_path / "stock", stock.config, perturbation=record)
    for keywords in ({}, {"perturbation": {"method": "resample", "seed": 5}}, {"config": stock.config}):
        model = FairEsmForMaskedLM.from_pretrained(tmp_path / "stock", **keywords)
        assert model.config.perturbation == Perturbation("resample", seed=5)
        assert model.config.perturbation.base.name == "some/base"
        assert all(torch.equal(tensor, base.state_dict()[key]) for key, tensor in model.state_dict().items())
    for another in ("resample", {"method": "reinit", "seed": 5}):
        with pytest.raises(
            hf_perturb.StackedPerturbationError, match=r"perturbed already, by resample \(seed 5.*stack"
        ):
            FairEsmForMaskedLM.from_pretrained(tmp_path / "stock", perturbation=another)
    with pytest.raises(hf_perturb.StackedPerturbationError, match="do not stack"):
        hf_perturb.perturb(model, "reinit")
    with pytest.raises(hf_perturb.StackedPerturbationError, match="is a variant already"):
        hf_perturb.create_variant(tmp_path / "stock", tmp_path / "out", "reinit")


def test_a_variant(name, folder, asked, tmp_path):
    record = hf_perturb.create_variant(folder, tmp_path / "out", asked)
    stored = FairEsmForMaskedLM.from_pretrained(tmp_path / "out")
    assert_same(stored, FairEsmForMaskedLM.from_pretrained(folder, perturbation=asked))
    assert record.digest == digest_of(stored.state_dict())
    assert record.base.digest == digest_of(FairEsmForMaskedLM.from_pretrained(folder).state_dict())
    assert record.base.name == "stock"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("fair_esm", ["FairEsmForMaskedLM"])


def test_a_recipe(name, folder, asked, tmp_path):
    record = hf_perturb.create_variant(folder, tmp_path / "recipe", asked, recipe=True)
    assert not list((tmp_path / "recipe").glob("*.safetensors"))
    model = FairEsmForMaskedLM.from_pretrained(tmp_path / "recipe")
    assert digest_of(model.state_dict()) == record.digest
    assert model.config.perturbation.to_dict() == record.to_dict()
    assert_same(model, FairEsmForMaskedLM.from_pretrained(folder, perturbation=asked))


@pytest.mark.parametrize("recipe", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_variants_of_narrow_types(name, dtype, recipe, tmp_path):
    stock_model(name).to(dtype).save_pretrained(tmp_path / "stock")
    record = hf_perturb.create_variant(tmp_path / "stock", tmp_path / "out", "resample", recipe=recipe)
    model = FairEsmForMaskedLM.from_pretrained(tmp_path / "out")
    assert model.dtype == dtype
    assert digest_of(model.state_dict()) == record.digest
    assert_same(model, FairEsmForMaskedLM.from_pretrained(tmp_path / "stock", perturbation="resample"))


@pytest.mark.parametrize("recipe", [False, True])
def test_variants_of_a_trunk(name, recipe, tmp_path):
    stock_model(name, EsmModel).save_pretrained(tmp_path / "stock")
    record = hf_perturb.create_variant(tmp_path / "stock", tmp_path / "out", "resample", recipe=recipe)
    model = hf_perturb.FairEsmModel.from_pretrained(tmp_path / "out")
    assert model.config.architectures == ["FairEsmModel"]
    assert digest_of(model.state_dict()) == record.digest


def test_a_recipe_notices_another_base(name, folder, tmp_path):
    hf_perturb.create_variant(folder, tmp_path / "recipe", "resample", recipe=True)
    other = stock_model(name)
    with torch.no_grad():
        other.esm.encoder.layer[1].output.dense.bias.add_(1)
    LAYOUTS["published"](other, folder)
    with pytest.raises(hf_perturb.DigestError, match=r"the recipe .* gives weights with digest"):
        FairEsmForMaskedLM.from_pretrained(tmp_path / "recipe")
