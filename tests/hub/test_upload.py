"""`hf-perturb push` through the real client: what is sent, what is refused, and what is there afterwards."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from support.hub_client import connected, quiet_uploads
from support.hub_server import serve
from support.models import small_model
from support.pushing import REPO, Pusher, built_folders, connect, copied

import hf_perturb
from hf_perturb.hub.errors import explained
from hf_perturb.hub.files import travelling_code

pytestmark = quiet_uploads
hub = pytest.fixture(serve)
naps = pytest.fixture(connect, autouse=True)
folders = pytest.fixture(built_folders, scope="module")

ALWAYS = {"config.json", "README.md", "tokenizer.json", "tokenizer_config.json"}
READING = {"info", "tree", "refs", "head", "get", "paths"}


@pytest.fixture
def push(capsys):
    return Pusher(capsys)


def endpoints(hub):
    return {asked.endpoint for asked in hub.requests}


# ---- what is sent


@pytest.mark.parametrize("name", ["carp", "esm1", "esm1b", "esm2", "base", "esm2-base"])
def test_a_repository_holds_the_folder_and_the_code(name, hub, push, folders):
    said = push(folders / name, "--private")
    there = hub.files(REPO)
    family = json.loads(there["config.json"])["model_type"]
    code = {name: path.read_bytes() for name, path in travelling_code(family).items()}
    assert there.keys() == {*ALWAYS, "model.safetensors", ".gitattributes", *code}
    assert {name: there[name] for name in code} == code, "the code is the package's, unchanged"
    for file in (*ALWAYS - {"README.md"}, "model.safetensors"):
        assert there[file] == (folders / name / file).read_bytes()
    assert hub.is_private(REPO)
    assert hub.head(REPO) in said
    assert len(hub.titles(REPO)) == 2


def test_the_card_calls_the_repository_by_its_name(hub, push, folders):
    push(folders / "carp")
    card = hub.files(REPO)["README.md"].decode()
    assert f'from_pretrained("{REPO}")' in card
    assert "this-folder" not in card
    assert ModelCard(card).data.license == "cc-by-4.0"
    assert '"this-folder"' in (folders / "carp" / "README.md").read_text()


def test_shards_are_sent_and_replace_what_was_there(hub, push, folders, tmp_path):
    folder = copied(folders / "carp", tmp_path)
    push(folder)
    model = hf_perturb.CarpForMaskedLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="1MB")
    push(folder)
    there = hub.files(REPO)
    shards = [name for name in there if re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", name)]
    assert len(shards) > 1
    assert "model.safetensors.index.json" in there
    assert "model.safetensors" not in there, "it would be loaded in place of the shards"


def test_nothing_else_of_the_folder_is_sent(hub, push, folders, tmp_path):
    folder = copied(folders / "carp", tmp_path)
    (tmp_path / "secret").write_text("my secret")
    for name in (".env", "notes.txt", "optimizer.pt", "id_rsa", "modeling_other.py", ".git-credentials"):
        (folder / name).write_text("my secret")
    (folder / "link.json").symlink_to(tmp_path / "secret")
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "model.safetensors").write_text("my secret")
    said = push(folder, "--dry-run")
    push(folder)
    assert re.search(r"stays here +\.env$", said, re.MULTILINE)
    there = hub.files(REPO)
    assert there.keys() == {*ALWAYS, "model.safetensors", ".gitattributes", *travelling_code("carp")}
    assert not any(b"my secret" in content for content in there.values())


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md"])
def test_a_link_is_no_file_of_the_folder(name, hub, push, folders, tmp_path):
    folder = copied(folders / "carp", tmp_path)
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    assert f"{folder / name} is a link" in push.refused(folder)
    assert not hub.requests


@pytest.mark.parametrize("name", ["config.json", "README.md", "tokenizer_config.json"])
def test_a_token_in_a_file_is_not_published(name, hub, push, folders, tmp_path):
    folder = copied(folders / "carp", tmp_path)
    text = (folder / name).read_text()
    secret = f"HF_TOKEN={hub.OTHER}"
    (folder / name).write_text(json.dumps({**json.loads(text), "x": secret}) if name.endswith("n") else text + secret)
    said = push.refused(folder)
    assert "looks like a token" in said
    assert hub.OTHER not in said
    assert not hub.requests


# ---- a second time


def test_the_same_bytes_are_not_sent_again(hub, push, folders):
    push(folders / "carp", "--tag", "v1")
    head = hub.head(REPO)
    hub.forget()
    assert "nothing to send" in push(folders / "carp", "--tag", "v1")
    assert endpoints(hub) <= READING
    assert hub.sent() == 0
    assert hub.head(REPO) == head


def test_only_what_changed_is_sent(hub, push, folders, tmp_path):
    folder = copied(folders / "carp", tmp_path)
    push(folder)
    hub.forget()
    with (folder / "README.md").open("a") as card:
        card.write("\nOne more sentence.\n")
    assert "1 of " in push(folder)
    assert hub.asked("put") == 0
    assert hub.asked("commit") == 1
    assert hub.files(REPO)["README.md"].endswith(b"One more sentence.\n")


def test_files_that_are_not_ours_stay(hub, push, folders):
    hub.put(REPO, {"results/table.csv": b"1,2", "LICENSE": b"mine"})
    push(folders / "carp")
    assert hub.files(REPO)["results/table.csv"] == b"1,2"
    assert hub.files(REPO)["LICENSE"] == b"mine"


def test_another_model_is_replaced_on_request_only(hub, push, folders):
    push(folders / "carp")
    before = hub.files(REPO), hub.head(REPO)
    said = push.refused(folders / "other")
    assert "has another model on main, carp, reinit, seed 42, sha256:" in said
    assert "--force" in said
    assert (hub.files(REPO), hub.head(REPO)) == before
    push(folders / "other", "--force")
    assert hub.files(REPO)["model.safetensors"] == (folders / "other" / "model.safetensors").read_bytes()


def test_another_package_s_model_is_not_replaced(hub, push, folders):
    hub.put(REPO, {"config.json": b'{"model_type": "bert"}', "pytorch_model.bin": b"weights"})
    assert "has another model on main, bert" in push.refused(folders / "carp")
    push(folders / "carp", "--force")
    assert "pytorch_model.bin" not in hub.files(REPO)


def test_somebody_s_alphabet_is_not_put_on_top_of_ours(hub, push, folders):
    push(folders / "esm2")
    hub.put(REPO, {"added_tokens.json": b'{"MKT": 33}', "special_tokens_map.json": b'{"mask_token": "A"}'})
    push(folders / "esm2")
    assert not {"added_tokens.json", "special_tokens_map.json"} & set(hub.files(REPO))


def test_somebody_s_weights_are_not_replaced(hub, push, folders):
    push(folders / "carp")
    hub.put(REPO, {"model.safetensors": b"trained"})
    assert "has other weights on main than its config.json says" in push.refused(folders / "carp")
    push(folders / "carp", "--force")


def test_a_tag_on_the_commit_that_a_branch_starts_from(hub, push, folders):
    push(folders / "carp", "--tag", "v1")
    push(folders / "carp", "--tag", "v1", "--revision", "dev")
    assert hub.head(REPO, "dev") == hub.tags(REPO)["v1"]


def test_a_token_in_place_of_a_name_is_not_said(hub, push, folders):
    for words, repo_id in ((["--tag", hub.WRITE + "!"], REPO), ([], hub.WRITE)):
        assert hub.WRITE not in push.refused(folders / "carp", *words, repo_id=repo_id)


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


# ---- options


def test_a_dry_run_touches_nothing(hub, push, folders, monkeypatch, tmp_path):
    said = push(folders / "carp", "--dry-run", "--private", "--tag", "v1", "--collection", "Controls")
    assert endpoints(hub) <= READING
    assert not hub.exists(REPO)
    assert re.search(r"add +2,452,184 +model\.safetensors", said)
    assert "so it would be made; nothing was touched" in said
    push(folders / "carp")
    hub.forget()
    said = push(folders / "other", "--dry-run", "--force")
    assert endpoints(hub) <= READING
    assert re.search(r"replace +2,452,184 +model\.safetensors", said)
    assert re.search(r"keep +[\d,]+ +modeling_carp\.py", said)
    connected(monkeypatch, hub, tmp_path / "elsewhere")
    push(folders / "carp", "--dry-run", repo_id="lab/new")  # needs no token


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


@pytest.mark.parametrize("name", ["my tag", "a..b", "-x", "x/", "x.lock", "ä", "a//b", "/x", "x~1"])
def test_names_that_git_refuses(name, hub, push, folders):
    for option in ("--tag", "--revision"):
        assert f"got {name!r}; allowed: letters" in push.refused(folders / "carp", f"{option}={name}")
    assert not hub.requests


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


@pytest.mark.parametrize("repo_id", ["control", "a/b/c", "lab/", "/x", "lab/a b", "../x", "lab/" + 100 * "x"])
def test_names_that_no_repository_has(repo_id, hub, push, folders):
    assert "allowed: NAMESPACE/NAME" in push.refused(folders / "carp", repo_id=repo_id)
    assert not hub.requests


# ---- recipes, and the other format


def test_a_recipe_is_pushed_without_weights(hub, push, folders):
    push(folders / "recipe")
    assert hub.asked("put") == 0
    assert hub.files(REPO).keys() == {*ALWAYS, ".gitattributes", *travelling_code("carp")}


def test_a_recipe_does_not_take_weights_away(hub, push, folders):
    push(folders / "carp")
    assert "has the same model in another format or without weights" in push.refused(folders / "recipe")
    push(folders / "recipe", "--force")
    assert "model.safetensors" not in hub.files(REPO)


def test_a_recipe_of_a_local_base_is_for_nobody_else(hub, push, folders, tmp_path):
    hf_perturb.create_variant(folders / "esm2-base", tmp_path / "recipe", "reinit", recipe=True)
    said = push.refused(tmp_path / "recipe")
    assert "which nobody else has; push the base, and make the recipe of its Hub id" in said
    assert not hub.requests


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


@pytest.mark.parametrize("network", ["esm1", "carp"])
def test_what_has_no_stock_counterpart(network, hub, push, folders):
    assert "allowed: ESM-1b, ESM-1v, ESM-2" in push.refused(folders / network, "--format", "transformers")
    assert not hub.requests


# ---- folders that are not fit


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
    "another family": (say(model_type="bert"), "model_type is 'bert'"),
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


@pytest.mark.parametrize("moment", ["info", "batch"])
def test_a_folder_that_is_replaced_meanwhile(moment, hub, push, folders, tmp_path):
    folder = copied(folders / "carp", tmp_path)
    hub.put(REPO, {"notes.txt": b"old"})
    before = hub.head(REPO)

    def replace():
        folder.rename(tmp_path / "moved")
        copied(folders / "other", tmp_path).rename(folder)

    hub.before(moment, replace)
    said = push.refused(folder)
    assert "changed meanwhile, so nothing was published" in said or "sum" in said
    assert hub.head(REPO) == before
    push(folder)
    assert hub.files(REPO)["model.safetensors"] == (folders / "other" / "model.safetensors").read_bytes()


def test_a_link_that_is_put_there_meanwhile_is_not_followed(hub, push, folders, tmp_path):
    folder = copied(folders / "carp", tmp_path)
    (tmp_path / "secret").write_text("my secret")

    def replace():
        (folder / "tokenizer_config.json").unlink()
        (folder / "tokenizer_config.json").symlink_to(tmp_path / "secret")

    hub.before("preupload", replace)
    push.refused(folder)
    assert "tokenizer_config.json" not in hub.files(REPO)


def test_what_is_no_folder(hub, push, folders, tmp_path):
    assert "no such folder" in push.refused(tmp_path / "nowhere")
    assert "no such folder" in push.refused(folders / "carp" / "config.json")
    assert "no such folder" in push.refused(Path("lab/somewhere"))
    assert not hub.requests


# ---- who may


def test_tokens(hub, push, folders, monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    expected = {
        None: "to push needs a token of the Hub: log in with `hf auth login`, or set HF_TOKEN",
        hub.EXPIRED: "the Hub does not know the token",
        "hf_" + "unknown".ljust(34, "U"): "the Hub does not know the token",
        hub.READ: "the token may not do that: it needs the role 'write'",
        hub.OTHER: "the token may not do that",
    }
    for token, message in expected.items():
        connected(monkeypatch, hub, tmp_path / "home", token)
        assert message in push.refused(folders / "carp")
        assert not hub.exists(REPO)
    hub.put("lab/there", {"notes.txt": b"old"}, private=True)
    before = hub.head("lab/there")
    for token in (hub.EXPIRED, hub.READ, hub.OTHER):
        connected(monkeypatch, hub, tmp_path / "home", token)
        push.refused(folders / "carp", repo_id="lab/there")
        assert hub.head("lab/there") == before
    assert hub.sent() == 0
    for token in filter(None, expected):
        assert token not in push.everything + caplog.text


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


def test_whatever_the_client_raises_is_explained():
    secret = "api_org_SECRET"
    with (
        pytest.raises(hf_perturb.HubError) as caught,
        explained("lab/x: to send the files", "main is as it was", secret),
    ):
        raise RuntimeError(f"CAS: https://x.y/z?sig=abc {secret} hf_{34 * 'a'}\nmore")
    said = str(caught.value)
    assert said.startswith("lab/x: to send the files failed: CAS: https://x.y/z?*** ")
    assert said.endswith("; main is as it was: run the same command again")
    assert not {secret, "sig=abc", "hf_aaa"} & set(said.split())
    assert secret not in said


def test_a_token_that_is_passed(hub, folders, monkeypatch, tmp_path):
    connected(monkeypatch, hub, tmp_path / "home")
    done = hf_perturb.push_variant(folders / "carp", REPO, token=hub.WRITE, private=True)
    assert done.commit == hub.head(REPO)
    assert hub.is_private(REPO)
