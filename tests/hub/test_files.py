"""What is sent of a folder, and what becomes of what is there: the list, the code, and nothing else."""

from __future__ import annotations

import json
import re

import pytest
from huggingface_hub import ModelCard
from support.hub_client import quiet_uploads
from support.pushing import REPO, copied

import hf_perturb
from hf_perturb.hub.files import travelling_code

pytestmark = [quiet_uploads, pytest.mark.usefixtures("naps")]
ALWAYS = {"config.json", "README.md", "tokenizer.json", "tokenizer_config.json"}


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


def test_somebody_s_alphabet_is_not_put_on_top_of_ours(hub, push, folders):
    push(folders / "esm2")
    hub.put(REPO, {"added_tokens.json": b'{"MKT": 33}', "special_tokens_map.json": b'{"mask_token": "A"}'})
    push(folders / "esm2")
    assert not {"added_tokens.json", "special_tokens_map.json"} & set(hub.files(REPO))


def test_a_recipe_is_pushed_without_weights(hub, push, folders):
    push(folders / "recipe")
    assert hub.asked("put") == 0
    assert hub.files(REPO).keys() == {*ALWAYS, ".gitattributes", *travelling_code("carp")}


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
