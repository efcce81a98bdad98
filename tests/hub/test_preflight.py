"""Folders, names and tokens that are not fit to publish: refused before anything is asked of the Hub."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.hub_client import connected, quiet_uploads
from support.models import model_class
from support.pushing import REPO, copied

import hf_perturb
from hf_perturb.variants.matrix import models_in

pytestmark = [quiet_uploads, pytest.mark.usefixtures("naps")]


def test_a_token_in_place_of_a_name_is_not_said(hub, push, folders):
    for words, repo_id in ((["--tag", hub.WRITE + "!"], REPO), ([], hub.WRITE)):
        assert hub.WRITE not in push.refused(folders / "carp", *words, repo_id=repo_id)


@pytest.mark.parametrize("name", ["my tag", "a..b", "-x", "x/", "x.lock", "ä", "a//b", "/x", "x~1"])
def test_names_that_git_refuses(name, hub, push, folders):
    for option in ("--tag", "--revision"):
        assert f"got {name!r}; allowed: letters" in push.refused(folders / "carp", f"{option}={name}")
    assert not hub.requests


@pytest.mark.parametrize("repo_id", ["control", "a/b/c", "lab/", "/x", "lab/a b", "../x", "lab/" + 100 * "x"])
def test_names_that_no_repository_has(repo_id, hub, push, folders):
    assert "allowed: NAMESPACE/NAME" in push.refused(folders / "carp", repo_id=repo_id)
    assert not hub.requests


def test_a_recipe_of_a_local_base_is_for_nobody_else(hub, push, folders, tmp_path):
    hf_perturb.create_variant(folders / "esm2-base", tmp_path / "recipe", "reinit", recipe=True)
    said = push.refused(tmp_path / "recipe")
    assert "which nobody else has; push the base, and make the recipe of its Hub id" in said
    assert not hub.requests


@pytest.mark.parametrize("network", ["esm1", "carp"])
def test_what_has_no_stock_counterpart(network, hub, push, folders):
    assert "allowed: ESM-1b, ESM-1v, ESM-2" in push.refused(folders / network, "--format", "transformers")
    assert not hub.requests


def flip(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def say(**edit):
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **edit}))

    return change


def put(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def not_numbers(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    stored = json.loads((folder / "config.json").read_text())
    stored["perturbation"]["digest"] = hf_perturb.perturbation.digest_of(tensors)
    (folder / "config.json").write_text(json.dumps(stored))


UNFIT = {
    "a flipped bit": (flip, "is not as recorded, so nothing was sent: the weights have digest"),
    "another seed": (say(perturbation={"method": "reinit", "seed": 7}), "records no digest"),
    "other sizes": (say(num_hidden_layers=15), "tensors that this network does not have"),
    "not numbers": (not_numbers, "NaN or infinite weights in model"),
    "no card": (remove("README.md"), "README.md is missing"),
    "no tokenizer": (remove("tokenizer.json"), "tokenizer.json is missing"),
    "no configuration": (remove("config.json"), "has no config.json, so it is no variant"),
    "another alphabet": (put("tokenizer.json", '{"model": {"vocab": {"A": 0}}}'), "not the alphabet of this network"),
    "a card without metadata": (put("README.md", "# A card"), "has no metadata"),
    "a card that is no YAML": (put("README.md", "---\na: [1\n---\n# A card"), "metadata cannot be read"),
    "another family": (say(model_type="bert"), "rules: got 'documented' of a 'bert'"),
    "no record": (lambda folder: say(perturbation=None)(folder), "records no digest"),
    "other code": (say(auto_map={"AutoModel": "evil.Model"}), "which does not name the code that is published"),
    "no code named": (say(auto_map=None), "which does not name the code that is published"),
    "a key of somebody's own": (say(wandb_api_key="secret"), "config.json has 'wandb_api_key'"),
    "a place on a disk": (say(_name_or_path="/home/alice"), "config.json has '_name_or_path'"),
    "a card that is no text": (lambda folder: (folder / "README.md").write_bytes(b"\xff\xfe"), "cannot be read"),
    "truncated": (lambda folder: os.truncate(folder / "model.safetensors", 4000), "model.safetensors"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_an_unfit_folder_is_refused_before_anything_is_asked(case, hub, push, folders, tmp_path):
    spoil, message = UNFIT[case]
    folder = copied(folders / "carp", tmp_path)
    spoil(folder)
    assert message in push.refused(folder)
    assert not hub.requests


def test_a_base_by_its_path_is_not_published(hub, push, folders, tmp_path):
    folder = copied(folders / "carp", tmp_path)
    stored = json.loads((folder / "config.json").read_text())
    stored["perturbation"]["base"]["name"] = "/home/alice/base"
    (folder / "config.json").write_text(json.dumps(stored))
    assert "names its base by a path of this machine" in push.refused(folder)
    assert not hub.requests


@pytest.mark.parametrize("shard", ["weights.bin", "evil.safetensors", "README.md"])
def test_an_index_of_other_files(shard, hub, push, folders, tmp_path):
    folder = copied(folders / "carp", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "weights.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"names {shard!r}; allowed: model-00001-of-00002.safetensors" in push.refused(folder)
    assert not hub.requests


def test_a_folder_of_many_names_what_it_holds(hub, push, folders):
    said = push.refused(folders)
    assert (
        f"has no config.json, so it is no variant, recipe or base; it holds {len(models_in(folders))}, such as" in said
    )
    assert (
        f"{models_in(folders)[0]}: push each of them; a folder of folders of many is for scripts/push_variants.py"
        in said
    )
    assert not hub.requests


def test_what_is_no_folder(hub, push, folders, tmp_path):
    assert "no such folder" in push.refused(tmp_path / "nowhere")
    assert "no such folder" in push.refused(folders / "carp" / "config.json")
    assert "no such folder" in push.refused(Path("lab/somewhere"))
    assert not hub.requests


def test_tokens_that_are_none(hub, folders, monkeypatch, tmp_path):
    connected(monkeypatch, hub, tmp_path / "home")
    for token in (hub.WRITE + "\n", "hf_ä", "two words"):
        with pytest.raises(hf_perturb.HubError, match="token: it holds blanks") as caught:
            hf_perturb.push_variant(folders / "carp", REPO, token=token)
        assert token.strip() not in str(caught.value)
        with pytest.raises(ValueError, match="token: it holds blanks") as caught:
            hf_perturb.CarpModel.from_pretrained(REPO, token=token)
        assert token.strip() not in str(caught.value)
    assert not hub.requests


@pytest.mark.parametrize("form", ["hf-perturb", "transformers"])
def test_what_was_trained_further_is_published_as_what_it_is(form, hub, push, folders, tmp_path):
    network = "carp" if form == "hf-perturb" else "esm1b"
    trained = copied(folders / network, tmp_path)
    model = model_class(network).from_pretrained(trained)
    next(model.parameters()).data.add_(1)
    model.save_pretrained(trained)  # beside the card of the control
    if form == "hf-perturb":
        assert "does not say 'Trained further from a control'" in push.refused(trained)
        assert not hub.exists(REPO)
    hf_perturb.convert_checkpoint(trained, tmp_path / "told")
    push(tmp_path / "told", "--format", form)
    card = hub.files(REPO)["README.md"].decode()
    assert "\n# Trained further from a control: " in card
    assert "**Trained further from a control: no control itself.**" in card
    assert json.loads(hub.files(REPO)["config.json"])["perturbation"]["changed"] is True


def test_a_card_of_other_weights_is_refused(hub, push, folders, tmp_path):
    folder = copied(folders / "carp", tmp_path)
    hf_perturb.CarpForMaskedLM.from_pretrained(folders / "other").save_pretrained(folder)
    assert "README.md tells of weights of digest blake3:" in push.refused(folder)
    assert not hub.requests
