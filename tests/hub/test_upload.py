"""`hf-perturb push` through the real client: what it replaces, what it refuses, and what is there afterwards."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from support.hub_client import connected, quiet_uploads
from support.models import small_model
from support.pushing import REPO, copied

import hf_perturb

pytestmark = [quiet_uploads, pytest.mark.usefixtures("naps")]
ALWAYS = {"config.json", "README.md", "tokenizer.json", "tokenizer_config.json"}
READING = {"other", "info", "tree", "refs", "head", "get", "paths"}


def endpoints(hub):
    return {asked.endpoint for asked in hub.requests}


def test_the_same_bytes_are_not_sent_again(hub, push, folders):
    push(folders / "carp", "--tag", "v1")
    head = hub.head(REPO)
    hub.forget()
    assert "nothing to send" in push(folders / "carp", "--tag", "v1")
    assert endpoints(hub) <= READING
    assert hub.sent() == 0
    assert hub.head(REPO) == head


def test_another_model_is_replaced_on_request_only(hub, push, folders):
    push(folders / "carp")
    before = hub.files(REPO), hub.head(REPO)
    said = push.refused(folders / "other")
    assert "has another model on main, carp, reinit (seed 42), blake3:" in said
    assert "--force" in said
    assert (hub.files(REPO), hub.head(REPO)) == before
    push(folders / "other", "--force")
    assert hub.files(REPO)["model.safetensors"] == (folders / "other" / "model.safetensors").read_bytes()


def test_another_package_s_model_is_not_replaced(hub, push, folders):
    hub.put(REPO, {"config.json": b'{"model_type": "bert"}', "pytorch_model.bin": b"weights"})
    assert "has another model on main, bert" in push.refused(folders / "carp")
    push(folders / "carp", "--force")
    assert "pytorch_model.bin" not in hub.files(REPO)


def test_somebody_s_weights_are_not_replaced(hub, push, folders):
    push(folders / "carp")
    hub.put(REPO, {"model.safetensors": b"trained"})
    assert "has other weights on main than its config.json says" in push.refused(folders / "carp")
    push(folders / "carp", "--force")


def test_a_tag_on_the_commit_that_a_branch_starts_from(hub, push, folders):
    push(folders / "carp", "--tag", "v1")
    push(folders / "carp", "--tag", "v1", "--revision", "dev")
    assert hub.head(REPO, "dev") == hub.tags(REPO)["v1"]


def test_somebody_s_files_without_a_model_are_not_replaced(hub, push, folders):
    hub.put(REPO, {"README.md": b"mine", "inputs.py": b"mine", "pytorch_model.bin": b"weights"})
    before = hub.head(REPO)
    assert "has a README.md on main that is not of such a model" in push.refused(folders / "carp")
    assert hub.head(REPO) == before
    push(folders / "carp", "--force")


def test_an_adapter_would_change_what_is_loaded(hub, push, folders):
    hub.put(REPO, {"adapter_config.json": b"{}"})
    assert "has an adapter on main" in push.refused(folders / "carp", "--force")


def test_another_model_on_a_branch_of_its_own(hub, push, folders):
    push(folders / "carp")
    before = hub.head(REPO)
    push(folders / "other", "--revision", "seed0")
    assert hub.head(REPO) == before
    assert hub.files(REPO, "seed0")["model.safetensors"] == (folders / "other" / "model.safetensors").read_bytes()


def test_a_folder_with_the_name_of_the_repository(hub, push, folders, tmp_path, monkeypatch):
    push(folders / "carp")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab").mkdir()
    copied(folders / "other", tmp_path).rename(tmp_path / REPO)
    assert "has another model" in push.refused(Path(REPO))


def test_a_dry_run_touches_nothing(hub, push, folders, monkeypatch, tmp_path):
    said = push(folders / "carp", "--dry-run", "--private", "--tag", "v1", "--collection", "Controls")
    assert endpoints(hub) <= READING
    assert not hub.exists(REPO)
    sizes = {name: f"{(folders / name / 'model.safetensors').stat().st_size:,}" for name in ("carp", "other")}
    assert re.search(rf"add +{sizes['carp']} +model\.safetensors", said)
    assert "so it would be made; nothing was touched" in said
    push(folders / "carp")
    hub.forget()
    said = push(folders / "other", "--dry-run", "--force")
    assert endpoints(hub) <= READING
    assert re.search(rf"replace +{sizes['other']} +model\.safetensors", said)
    assert re.search(r"keep +[\d,]+ +modeling_carp\.py", said)
    connected(monkeypatch, hub, tmp_path / "elsewhere")
    push(folders / "carp", "--dry-run", repo_id="lab/new")  # needs no token


def test_a_dry_run_without_the_hub_lists_what_would_be_sent(hub, push, folders, monkeypatch, tmp_path, naps):
    hub.put("lab/base", {path.name: path.read_bytes() for path in (folders / "base").iterdir()})
    hf_perturb.create_variant("lab/base", tmp_path / "recipe", "reinit", recipe=True)
    for problem, why in ((_nobody, "the Hub cannot be reached"), (_offline, "the Hub must not be asked")):
        with monkeypatch.context() as patch:
            connected(patch, hub, tmp_path / problem.__name__)  # without a token, and with nothing in the cache
            problem(patch)
            for folder, unknown in ((folders / "carp", 1), (tmp_path / "recipe", 2)):
                code, out, err = push.run(folder, "--dry-run", "--tag", "v1")
                assert (code, err.count("could not look up"), err.count(why)) == (0, unknown, unknown), err
                assert re.search(r"send +[\d,]+ +config\.json", out)
                assert "would be sent to main, but for those that are there; nothing was touched" in out
                assert len(json.loads(push(folder, "--dry-run", "--json"))["unknown"]) == unknown
            assert "no config.json" in push.refused(tmp_path, "--dry-run")
            patch.setenv("HF_TOKEN", hub.WRITE)
            assert why in push.refused(folders / "carp")
    assert not any(naps), "nobody waits for a Hub that is not there"


def _nobody(patch) -> None:
    patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    patch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")


def _offline(patch) -> None:
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_the_result_as_json(hub, push, folders):
    done = json.loads(push(folders / "carp", "--json", "--tag", "v1"))
    assert done["commit"] == hub.head(REPO)
    assert done["tag"] == "v1"
    assert {file["path"]: file["action"] for file in done["files"]}["config.json"] == "add"
    assert done["dry_run"] is False


def test_branches_and_tags(hub, push, folders):
    push(folders / "carp", "--tag", "v1")
    push(folders / "other", "--revision", "seed/0", "--force", "--tag", "v2")
    assert hub.tags(REPO) == {"v1": hub.head(REPO), "v2": hub.head(REPO, "seed/0")}
    assert hub.head(REPO) != hub.head(REPO, "seed/0")
    before = hub.head(REPO)
    assert "the tag v1 names another commit" in push.refused(folders / "other", "--force", "--tag", "v1")
    assert hub.head(REPO) == before, "refused before anything was sent"
    assert "a commit cannot be pushed to" in push.refused(folders / "carp", "--revision", before)
    assert "v1 is a tag" in push.refused(folders / "carp", "--revision", "v1")


def test_private_is_never_public(hub, push, folders):
    push(folders / "carp")
    assert "is public already" in push.refused(folders / "carp", "--private")
    hub.put("lab/hidden", {}, private=True)
    push(folders / "carp", "--private", repo_id="lab/hidden")
    push(folders / "carp", repo_id="lab/hidden")
    assert hub.is_private("lab/hidden")


def test_somebody_who_makes_the_repository_first(hub, push, folders):
    hub.before("create", lambda: hub.put(REPO, {}, private=False))
    assert "is public already" in push.refused(folders / "carp", "--private")
    assert "model.safetensors" not in hub.files(REPO), "what was to be private was published"


def test_collections(hub, push, folders):
    push(folders / "carp", "--collection", "Controls", "--private")
    (collection,) = hub.collections()
    assert (collection.title, collection.namespace, collection.private) == ("Controls", "lab", True)
    push(folders / "other", "--collection", collection.slug, repo_id="lab/other")
    push(folders / "other", "--collection", "Controls", repo_id="lab/other")
    (collection,) = hub.collections()
    assert [item["id"] for item in collection.items] == [REPO, "lab/other"]


def test_a_collection_of_private_models_is_private(hub, push, folders):
    hub.put("lab/hidden", {}, private=True)
    push(folders / "carp", "--collection", "Controls", repo_id="lab/hidden")
    assert hub.collections()[0].private


def test_a_recipe_does_not_take_weights_away(hub, push, folders):
    push(folders / "carp")
    assert "has the same model in another format or without weights" in push.refused(folders / "recipe")
    push(folders / "recipe", "--force")
    assert "model.safetensors" not in hub.files(REPO)


def test_a_recipe_of_a_private_base(hub, push, folders, tmp_path, monkeypatch):
    push(folders / "base", "--private", repo_id="lab/base")
    hf_perturb.create_variant("lab/base", tmp_path / "recipe", "reinit", recipe=True)
    assert "a public recipe of the private lab/base" in push.refused(tmp_path / "recipe")
    connected(monkeypatch, hub, tmp_path / "elsewhere")
    hf_perturb.push_variant(tmp_path / "recipe", REPO, private=True, token=hub.WRITE)
    assert hub.is_private(REPO)


def test_a_recipe_of_a_published_base(hub, push, folders, tmp_path):
    push(folders / "esm2-base", repo_id="lab/base")
    hf_perturb.create_variant("lab/base", tmp_path / "recipe", "reinit", recipe=True)
    push(tmp_path / "recipe")
    record = json.loads(hub.files(REPO)["config.json"])["perturbation"]
    assert record["base"]["name"] == "lab/base"
    assert record["base"]["revision"] == hub.head("lab/base")
    model = hf_perturb.FairEsmForMaskedLM.from_pretrained(REPO)
    assert model.config.perturbation.digest == record["digest"]
    path = tmp_path / "recipe" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 4}))
    assert "num_hidden_layers is 4, the base has 3" in push.refused(tmp_path / "recipe", "--force")


@pytest.mark.parametrize("network", ["esm1b", "esm2", "esm1b-base", "esm2-base"])
def test_stock_format(network, hub, push, folders):
    from transformers import AutoModelForMaskedLM, EsmForMaskedLM

    push(folders / network, "--format", "transformers")
    there = hub.files(REPO)
    assert there.keys() == {*ALWAYS, "model.safetensors", ".gitattributes"}
    assert f'from_pretrained("{REPO}")' in there["README.md"].decode()
    model = AutoModelForMaskedLM.from_pretrained(REPO).eval()
    assert isinstance(model, EsmForMaskedLM)
    ours = hf_perturb.FairEsmForMaskedLM.from_pretrained(folders / network).eval()
    ids = torch.tensor([[0, 5, 7, 20, 4, 32, 9, 2]])
    assert torch.allclose(model(ids).logits, ours(ids).logits, atol=1e-5)
    hub.forget()
    assert "nothing to send" in push(folders / network, "--format", "transformers")
    what = "another model" if network.endswith("base") else "the same model in another format"
    assert f"has {what}" in push.refused(folders / network)


def test_another_base_in_stock_format_is_another_model(hub, push, folders, tmp_path):
    push(folders / "esm2-base", "--format", "transformers")
    small_model("esm2", seed=1).save_pretrained(tmp_path / "raw")
    hf_perturb.convert_checkpoint(tmp_path / "raw", tmp_path / "other")
    assert "has another model" in push.refused(tmp_path / "other", "--format", "transformers")


def test_a_token_that_is_passed(hub, folders, monkeypatch, tmp_path):
    connected(monkeypatch, hub, tmp_path / "home")
    done = hf_perturb.push_variant(folders / "carp", REPO, token=hub.WRITE, private=True)
    assert done.commit == hub.head(REPO)
    assert hub.is_private(REPO)
