"""Controls of any Transformers model on the Hub: of a base there, published as they are, loaded by stock code."""

from __future__ import annotations

import json

import pytest
import torch
from support.any_folders import stored
from support.hub_client import connected, quiet_uploads
from support.pushing import REPO, copied
from transformers import AutoModelForMaskedLM, BertForMaskedLM

import hf_perturb
from hf_perturb.cli import main

pytestmark = [quiet_uploads, pytest.mark.usefixtures("naps")]
BASE = "lab/bert"
# what belongs to a network, and what lies beside one
BESIDE = {
    "vocab.txt": b"[PAD]\n[UNK]\n",
    "tokenizer_config.json": b'{"do_lower_case": false}',
    "special_tokens_map.json": b"{}",
    "spm.model": b"\x00\x01",
}
OTHERS = {"training_args.bin": b"", "README.md": b"theirs", "train_results.json": b"{}", "log.txt": b"", "x.py": b""}


@pytest.fixture(scope="module")
def variants(tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    stored("bert", folder / "base")
    for name, content in {**BESIDE, **OTHERS}.items():
        (folder / "base" / name).write_bytes(content)
    hf_perturb.create_variant(folder / "base", folder / "variant", "resample")
    return folder


def test_a_variant_is_published_as_it_is(hub, push, variants):
    push(variants / "variant")
    there = hub.files(REPO)
    assert there.keys() - {".gitattributes"} == {"config.json", "model.safetensors", "README.md", *BESIDE}
    assert {name: there[name] for name in BESIDE} == BESIDE
    loaded = AutoModelForMaskedLM.from_pretrained(REPO).state_dict()
    here = BertForMaskedLM.from_pretrained(variants / "variant").state_dict()
    assert all(torch.equal(here[name], loaded[name]) for name in here)
    assert hf_perturb.verify_variant(REPO).ok
    assert "nothing to send" in push(variants / "variant")


def test_a_base_of_the_hub_is_made_a_control_of_with_all_that_is_beside_it(hub, variants, tmp_path, monkeypatch):
    """Its files are those of one commit, and once they are here nobody needs the Hub."""
    files = {path.name: path.read_bytes() for path in (variants / "base").iterdir()}
    commit = hub.put(BASE, files)
    record = hf_perturb.create_variant(BASE, tmp_path / "one", "resample")
    assert (record.base.name, record.base.revision) == (BASE, commit)
    assert record.digest == json.loads((variants / "variant" / "config.json").read_text())["perturbation"]["digest"]
    hub.put(BASE, {"vocab.txt": b"another"})
    connected(monkeypatch, hub, tmp_path / "home", hub.WRITE)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.forget()
    again = hf_perturb.create_variants(BASE, {tmp_path / "two": "resample"})[tmp_path / "two"]
    assert again.to_dict() == record.to_dict()
    assert not hub.requests
    for name, content in BESIDE.items():
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() == content
    assert not any((tmp_path / "two" / name).exists() for name in {*OTHERS} - {"README.md"})


def test_a_recipe_is_published_without_weights_and_made_again(hub, push, variants, tmp_path):
    hub.put(BASE, {path.name: path.read_bytes() for path in (variants / "base").iterdir()})
    made = hf_perturb.create_variant(BASE, tmp_path / "recipe", {"method": "reinit", "seed": 5}, recipe=True)
    push(tmp_path / "recipe")
    assert not any(name.endswith(".safetensors") for name in hub.files(REPO))
    assert hf_perturb.verify_variant(REPO).ok
    assert hf_perturb.create_variant(REPO, tmp_path / "made").to_dict() == made.to_dict()


def test_what_was_trained_since_is_published_with_a_card_that_says_so(hub, push, variants, tmp_path):
    model = BertForMaskedLM.from_pretrained(variants / "variant")
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.bias.add_(1)
    folder = copied(variants / "variant", tmp_path)
    model.save_pretrained(folder)
    assert "does not say 'Trained further from a control'" in push.refused(folder)
    assert main(["convert", str(folder), str(tmp_path / "told")]) == 0
    push(tmp_path / "told")
    said = json.loads(hub.files(REPO)["config.json"])["perturbation"]
    assert said["changed"] is True
    title = hub.files(REPO)["README.md"].decode().partition("\n# ")[2]
    assert title.startswith("Trained further from a control")
    assert {*BESIDE} <= {*hub.files(REPO)}


def test_what_is_no_control_is_not_published(push, variants):
    assert "push_to_hub publishes a bert; hf-perturb create makes a control" in push.refused(variants / "base")
    said = push.refused(variants / "variant", "--format", "transformers")
    assert "is a bert, which Transformers loads as it is" in said


def test_a_variant_that_lacks_a_weight_or_was_edited_is_not_published(hub, push, variants, tmp_path):
    folder = copied(variants / "variant", tmp_path)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    assert "is not as recorded, so nothing was sent" in push.refused(folder)
    (folder / "README.md").unlink()
    assert "README.md is missing" in push.refused(folder)
