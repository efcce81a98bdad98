"""A stock ESM-2 whose files leave its rotary frequencies out has those that its configuration states, everywhere."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import small_model
from transformers import EsmForMaskedLM

import hf_perturb
from hf_perturb import CheckpointError, DigestError
from hf_perturb.checkpoints.catalog import CATALOG
from hf_perturb.checkpoints.network import Network
from hf_perturb.checkpoints.origins import stock_esm
from hf_perturb.checkpoints.origins.stock_esm import ROTARY_WIDTHS
from hf_perturb.networks import record
from parity.stock import (
    assert_same_outputs,
    frequencies_of,
    published_tensors,
    stock_config,
    stock_model,
    without_head,
    write_config,
)

pytestmark = pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")  # by stock
FREQUENCIES = "layers.{}.self_attn.rot_emb.inv_freq"


def write(folder, left_out=("0", "1"), **changes):
    """Write a stock ESM-2 without the frequencies of some layers, and return what stock makes of the folder."""
    stock = stock_model("esm2")
    tensors = without_head(published_tensors(stock, _1=torch.linspace(1, 0.1, 8)))
    for layer in left_out:
        del tensors[f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"]
    write_config(folder, stock.config, **changes)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def stock_of(folder):
    return EsmForMaskedLM.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.mark.parametrize("width", ROTARY_WIDTHS)
def test_those_without_torch_are_those_of_torch(width, monkeypatch):
    """Of the processors on which torch rounds differently, this one is tested here; the others were by hand."""
    sizes = {"hidden_size": 4 * width, "num_attention_heads": 4}
    network = Network.of("fair_esm", model_version="ESM-2", **sizes)
    theirs = frequencies_of(EsmForMaskedLM(stock_config("esm2", **sizes)))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)  # to import it is an error
        made = stock_esm._frequencies(10_000.0, network)
    assert torch.equal(torch.from_numpy(made.values()), theirs), "bit for bit"


def test_those_of_every_published_network_need_no_torch():
    networks = [entry.network() for entry in CATALOG.values()]
    widths = {x.sizes.hidden_size // x.sizes.num_attention_heads for x in networks if x.version == "ESM-2"}
    assert widths <= {*ROTARY_WIDTHS}


def test_a_control_of_such_a_folder_is_made_without_torch(tmp_path):
    write(tmp_path / "stock")
    done = subprocess.run([sys.executable, "-c", _CONTROL, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


_CONTROL = """
import os, sys
from hf_perturb.cli.main import main
os.chdir(sys.argv[1])
for line in ("create stock control --method reinit", "verify control --base stock", "convert stock base",
             "convert base again --to transformers"):
    assert main(line.split()) == 0, line
    assert not {"torch", "transformers"} & set(sys.modules), line
"""


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_theta": None},
        {"rope_theta": 500.0},
        {"rope_theta": 500.0, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"rope_scaling": {"type": "default"}, "rope_theta": 1e6},
    ],
    ids=str,
)
def test_they_are_computed_from_the_base_that_is_stated(tmp_path, changes):
    write(tmp_path / "stock", **changes)
    stock = stock_of(tmp_path / "stock")
    if changes.get("rope_theta") and stock.config.rope_theta != changes["rope_theta"]:
        pytest.skip("this release of Transformers has one base alone")
    loaded = hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock", attn_implementation="eager")
    assert_same_outputs(loaded, stock)
    done = hf_perturb.convert_checkpoint(tmp_path / "stock", tmp_path / "base")
    assert any("rotary frequencies are not stored: computed from rope_theta" in note for note in done.notes)
    hf_perturb.create_variant(tmp_path / "stock", tmp_path / "control", "resample")
    expected = frequencies_of(stock)
    states = [loaded.state_dict(), *(load_file(tmp_path / out / "model.safetensors") for out in ("base", "control"))]
    for state in states:
        for layer in (0, 1):
            assert torch.equal(state[FREQUENCIES.format(layer)], expected), "bit for bit"
    assert hf_perturb.verify_variant(tmp_path / "control", tmp_path / "stock").ok
    # what is asked for while it loads is what `create` makes
    asked = hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock", perturbation="resample")
    control = hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "control")
    assert asked.config.perturbation.digest == control.config.perturbation.digest


def test_the_base_of_the_original_is_ours(tmp_path):
    write(tmp_path / "stock")
    model = hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock")
    fresh = hf_perturb.FairEsmForMaskedLM(model.config)
    for layer in (0, 1):
        assert torch.equal(model.state_dict()[FREQUENCIES.format(layer)], fresh.state_dict()[FREQUENCIES.format(layer)])


def test_a_base_that_was_used_is_not_said_to_be_left_out(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(record.logger, "warning_once", said.append)
    write(tmp_path / "stock", rope_theta=500.0)
    hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock")
    assert said == []


def test_a_passed_configuration_with_another_base_is_refused(tmp_path):
    write(tmp_path / "stock", rope_theta=500.0)
    load = hf_perturb.FairEsmForMaskedLM.from_pretrained
    assert load(tmp_path / "stock", config=stock_config("esm2", rope_theta=500.0)).config.model_version == "ESM-2"
    if not hasattr(stock_config("esm2"), "rope_theta"):
        pytest.skip("this release of Transformers has one base alone")
    with pytest.raises(CheckpointError, match=r"config: got rope_theta 10000\.0; that of the checkpoint is 500\.0"):
        load(tmp_path / "stock", config=stock_config("esm2"))
    write(tmp_path / "stored", left_out=())
    load(tmp_path / "stored", config=stock_config("esm2", rope_theta=500.0))  # what is stored is what counts


def test_what_is_stored_goes_before_what_is_stated(tmp_path):
    """In stock too, whatever is asked for beside."""
    write(tmp_path / "stock", left_out=("1",), rope_theta=500.0, rope_scaling={"rope_type": "linear", "factor": 2.0})
    stock = stock_of(tmp_path / "stock")
    loaded = hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock", attn_implementation="eager")
    assert torch.equal(loaded.layers[1].self_attn.rot_emb.inv_freq, frequencies_of(stock))
    assert torch.equal(loaded.layers[1].self_attn.rot_emb.inv_freq, frequencies_of(stock_model("esm2")))
    assert_same_outputs(loaded, stock)
    hf_perturb.convert_checkpoint(tmp_path / "stock", tmp_path / "base")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_theta": 0.5}, "rope_theta is 0.5; allowed: a number greater than 1"),
        ({"rope_theta": "500"}, "rope_theta is '500'; allowed"),
        ({"rope_theta": True}, "rope_theta is True; allowed"),
        ({"rope_theta": float("nan")}, "rope_theta is nan; allowed"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
            "rope_parameters is .*500.*goes by rope_the",
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
            "rope_parameters is .*'linear'.* goes by rope_theta",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling is .*'dynamic'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 10000.0}}}, "rope_parameters is .*'full_attention'"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
    ],
    ids=str,
)
def test_what_cannot_be_computed_is_refused(tmp_path, changes, message):
    write(tmp_path / "stock", **changes)
    for open_it in (
        hf_perturb.FairEsmForMaskedLM.from_pretrained,
        hf_perturb.FairEsmModel.from_pretrained,
        lambda x: hf_perturb.convert_checkpoint(x, tmp_path / "out"),
        lambda x: hf_perturb.create_variant(x, tmp_path / "out", "reinit"),
    ):
        with pytest.raises(CheckpointError, match=rf"config\.json: {message}"):
            open_it(tmp_path / "stock")
    assert os.listdir(tmp_path) == ["stock"]


@pytest.mark.parametrize("base", ["computed", "rounded"])
def test_beside_a_record_the_digest_tells(tmp_path, base):
    """A control whose frequencies were left out is one if those that follow from its sizes are those that it had."""
    model = small_model("esm2")
    for layer in model.layers if base == "rounded" else ():
        layer.self_attn.rot_emb.inv_freq.copy_(layer.self_attn.rot_emb.inv_freq.half())
    model.save_pretrained(tmp_path / "base")
    hf_perturb.create_variant(tmp_path / "base", tmp_path / "control", "resample")
    hf_perturb.export_checkpoint(tmp_path / "control", tmp_path / "stock", "transformers")
    tensors = load_file(tmp_path / "stock" / "model.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("inv_freq")}
    save_file(tensors, tmp_path / "stock" / "model.safetensors", {"format": "pt"})
    load = hf_perturb.FairEsmForMaskedLM.from_pretrained
    assert hf_perturb.verify_variant(tmp_path / "stock").ok is (base == "computed")
    if base == "computed":
        assert load(tmp_path / "stock", verify=True).config.perturbation.method == "resample"
        hf_perturb.convert_checkpoint(tmp_path / "stock", tmp_path / "out")
        assert hf_perturb.verify_variant(tmp_path / "out", tmp_path / "base").ok
        return
    for keywords in ({}, {"verify": True}):
        with pytest.raises(DigestError, match="the weights have digest"):
            load(tmp_path / "stock", **keywords)
    done = hf_perturb.convert_checkpoint(tmp_path / "stock", tmp_path / "out")
    assert any("marked as changed" in note for note in done.notes)


def test_wrap_and_a_stock_network_of_another_base_agree(tmp_path):
    stock = EsmForMaskedLM(stock_config("esm2", rope_theta=500.0, attn_implementation="eager")).eval()
    assert torch.equal(hf_perturb.wrap(stock).layers[1].self_attn.rot_emb.inv_freq, frequencies_of(stock))
