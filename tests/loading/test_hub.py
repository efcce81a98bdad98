"""Variants that are loaded from the Hub: by revision, with a token, from the cache, and when something is wrong."""

from __future__ import annotations

import json
import re

import pytest
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load, save
from support.hub_client import connected, quiet_uploads
from support.hub_server import serve
from support.pushing import REPO, built_folders, connect
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, pipeline

import hf_perturb
from hf_perturb import CarpForMaskedLM, CheckpointError, DigestError, HubError
from hf_perturb.checkpoints.source import ATTEMPTS
from hf_perturb.cli import main

pytestmark = quiet_uploads
hub = pytest.fixture(serve)
naps = pytest.fixture(connect, autouse=True)
folders = pytest.fixture(built_folders, scope="module")

SEQUENCE = "MKTAYIAKQR#ISFVKSHFSRQ"


@pytest.fixture
def published(hub, folders):
    """Publish a private variant, then another one over it; return their commits."""
    first = hf_perturb.push_variant(folders / "carp", REPO, private=True, tag="v1")
    second = hf_perturb.push_variant(folders / "other", REPO, force=True)
    hub.forget()
    return first.commit, second.commit


def seed_of(model):
    return model.config.perturbation.seed


def same(model, folder):
    ours = CarpForMaskedLM.from_pretrained(folder)
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), ours.parameters(), strict=True))


# ---- what is loaded


def test_a_revision_is_a_branch_a_tag_or_a_commit(published, hub, folders):
    first, second = published
    for revision, seed in {None: 0, "main": 0, "v1": 42, first: 42, second: 0}.items():
        options = {} if revision is None else {"revision": revision}
        for load_model in (CarpForMaskedLM.from_pretrained, AutoModelForMaskedLM.from_pretrained):
            assert seed_of(load_model(REPO, **options)) == seed, revision
    assert same(CarpForMaskedLM.from_pretrained(REPO, revision="v1"), folders / "carp")
    with pytest.raises(OSError, match="v9"):
        CarpForMaskedLM.from_pretrained(REPO, revision="v9")


def test_weights_are_fetched_once(published, hub):
    for load_model in (
        CarpForMaskedLM.from_pretrained,
        AutoModel.from_pretrained,
        AutoModelForMaskedLM.from_pretrained,
    ):
        load_model(REPO)
    assert hub.asked("storage") == 1


def test_pipelines(published, folders):
    fill = pipeline("fill-mask", model=REPO)
    expected = pipeline("fill-mask", model=str(folders / "other"))
    assert fill(SEQUENCE)[0] == expected(SEQUENCE)[0]
    features = pipeline("feature-extraction", model=REPO, revision="v1")
    assert len(features(SEQUENCE.replace("#", "A"))[0]) == 22
    assert AutoTokenizer.from_pretrained(REPO, revision="v1").mask_token == "#"


def test_a_private_repository_needs_a_token(published, hub, monkeypatch, tmp_path):
    for token in (None, hub.OTHER):
        connected(monkeypatch, hub, tmp_path / "stranger", token)
        with pytest.raises(OSError, match=REPO):
            CarpForMaskedLM.from_pretrained(REPO)
    assert seed_of(CarpForMaskedLM.from_pretrained(REPO, token=hub.READ)) == 0
    connected(monkeypatch, hub, tmp_path / "reader", hub.READ)
    assert seed_of(CarpForMaskedLM.from_pretrained(REPO)) == 0


def test_no_token_goes_to_the_second_host(published, hub):
    CarpForMaskedLM.from_pretrained(REPO)
    (asked,) = [asked for asked in hub.requests if asked.endpoint == "storage"]
    assert "authorization" not in asked.headers


def test_offline_from_the_cache(published, hub, monkeypatch, tmp_path):
    CarpForMaskedLM.from_pretrained(REPO)
    CarpForMaskedLM.from_pretrained(REPO, revision="v1")
    hub.forget()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert seed_of(CarpForMaskedLM.from_pretrained(REPO, verify=True)) == 0
    assert seed_of(AutoModel.from_pretrained(REPO, revision="v1")) == 42
    assert seed_of(CarpForMaskedLM.from_pretrained(REPO, local_files_only=True)) == 0
    assert hf_perturb.verify_variant(REPO).ok
    with pytest.raises(OSError, match="lab/never"):
        CarpForMaskedLM.from_pretrained("lab/never")
    assert not hub.requests


def test_a_recipe_from_the_hub(hub, folders, tmp_path, monkeypatch):
    hf_perturb.push_variant(folders / "base", "lab/base", private=True)
    hf_perturb.create_variant("lab/base", tmp_path / "recipe", "resample", recipe=True)
    hf_perturb.create_variant("lab/base", tmp_path / "whole", "resample")
    hf_perturb.push_variant(tmp_path / "recipe", REPO, private=True)
    hf_perturb.push_variant(tmp_path / "whole", "lab/whole", private=True)
    hub.put("lab/base", {"model.safetensors": None})  # its commit is named, so what comes later does not count
    connected(monkeypatch, hub, tmp_path / "elsewhere", hub.READ)
    model = CarpForMaskedLM.from_pretrained(REPO, verify=True)
    assert same(model, "lab/whole")
    assert main(["create", REPO, str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()
    connected(monkeypatch, hub, tmp_path / "offline", hub.READ)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=REPO):
        CarpForMaskedLM.from_pretrained(REPO)


def test_commands_take_hub_ids(published, folders, tmp_path, capsys):
    hf_perturb.push_variant(folders / "base", "lab/base")
    assert main(["create", "lab/base", str(tmp_path / "control"), "--method", "reinit"]) == 0
    record = json.loads((tmp_path / "control" / "config.json").read_text())["perturbation"]
    assert record["base"]["name"] == "lab/base"
    assert len(record["base"]["revision"]) == 40
    card = (tmp_path / "control" / "README.md").read_text()
    assert "base_model: lab/base" in card
    assert "base_model_relation: finetune" in card
    assert main(["verify", REPO]) == 0
    assert main(["verify", REPO, "--base", "lab/base"]) == 0
    assert main(["compare", "lab/base", REPO]) == 0
    assert main(["list", "lab/base"]) == 0
    capsys.readouterr()
    assert main(["create", "lab/nothing", str(tmp_path / "x"), "--method", "reinit"]) == 1
    assert "Traceback" not in capsys.readouterr().err


# ---- a Hub that fails


@pytest.mark.parametrize(
    "fault", [{"status": 503}, {"status": 429}, {"status": 500}, {"drop": True}, {"cut": 100}], ids=str
)
@pytest.mark.parametrize("endpoint", ["head", "get", "storage"])
def test_a_fault_that_passes_is_not_noticed(endpoint, fault, published, hub, folders):
    hub.fail(endpoint, **fault)
    assert same(CarpForMaskedLM.from_pretrained(REPO, revision="v1", verify=True), folders / "carp")


def test_retry_after_is_honoured(published, hub, naps):
    hub.fail("storage", status=503, headers={"Retry-After": "17"})
    CarpForMaskedLM.from_pretrained(REPO)
    assert 17 in naps


def test_a_gated_repository_is_to_be_asked_for(published, hub):
    hub.fail("head", times=9, status=403, headers={"X-Error-Code": "GatedRepo"})
    with pytest.raises(OSError, match=f"'{REPO}' is gated; ask for access on"):
        CarpForMaskedLM.from_pretrained(REPO)


@pytest.mark.parametrize("endpoint", ["get", "storage"])
def test_a_fault_that_stays_is_an_error(endpoint, published, hub, naps):
    hub.fail(endpoint, times=99, status=503)
    with pytest.raises(OSError, match="503"):
        CarpForMaskedLM.from_pretrained(REPO)
    assert hub.asked(endpoint) == ATTEMPTS
    assert sum(naps) < 60
    hub.mend()
    assert seed_of(CarpForMaskedLM.from_pretrained(REPO)) == 0


# ---- a Hub, or an author, that is not to be trusted


def test_a_flipped_bit_is_found_on_request(published, hub, monkeypatch, tmp_path):
    hub.fail("storage", flip=2_000_000)
    CarpForMaskedLM.from_pretrained(REPO)  # nobody notices
    for load_model in (CarpForMaskedLM.from_pretrained, AutoModelForMaskedLM.from_pretrained):
        with pytest.raises(DigestError, match="fetch it again"):
            load_model(REPO, verify=True)
    assert not hf_perturb.verify_variant(REPO).ok
    assert seed_of(CarpForMaskedLM.from_pretrained(REPO, verify=True, force_download=True)) == 0
    connected(monkeypatch, hub, tmp_path / "another", hub.WRITE)
    hub.fail("storage", flip=2_000_000)
    with pytest.raises(DigestError):
        CarpForMaskedLM.from_pretrained(REPO, verify=True)


def spoiled(hub, edit):
    """Publish a variant whose tensors were edited."""
    tensors = load(hub.files(REPO)["model.safetensors"])
    edit(tensors)
    hub.put(REPO, {"model.safetensors": save(tensors, {"format": "pt"})})


def test_missing_and_unexpected_tensors_are_errors(published, hub):
    spoiled(hub, lambda tensors: tensors.pop("model.last_norm.weight"))
    with pytest.raises(CheckpointError, match=r"missing tensors: model\.last_norm\.weight"):
        AutoModelForMaskedLM.from_pretrained(REPO)
    spoiled(hub, lambda tensors: tensors.update({"model.last_norm.weight": torch.ones(128), "extra": torch.ones(3)}))
    with pytest.raises(CheckpointError, match="tensors that this network does not have: extra"):
        AutoModelForMaskedLM.from_pretrained(REPO)


@pytest.mark.parametrize("shard", ["../../../x.safetensors", "/etc/passwd", "sub/x.safetensors", ".."])
def test_an_index_that_leaves_the_repository(shard, published, hub):
    weights = hub.files(REPO)["model.safetensors"]
    index = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(load(weights), shard)}).encode()
    files = {"model.safetensors": None, "model.safetensors.index.json": index, "sub/x.safetensors": weights}
    hub.put(REPO, files)
    for load_model in (CarpForMaskedLM.from_pretrained, AutoModel.from_pretrained, hf_perturb.verify_variant):
        with pytest.raises(CheckpointError, match=r"names .*; allowed: a file beside it"):
            load_model(REPO)


@pytest.mark.parametrize(
    "edit",
    [{"num_hidden_layers": 10**6}, {"hidden_size": -1}, {"num_labels": 10**30}, {"perturbation": {"method": "x"}}],
    ids=str,
)
def test_a_hostile_configuration(edit, published, hub):
    stored = json.loads(hub.files(REPO)["config.json"])
    hub.put(REPO, {"config.json": json.dumps({**stored, **edit}).encode()})
    for load_model in (CarpForMaskedLM.from_pretrained, AutoModel.from_pretrained, hf_perturb.verify_variant):
        with pytest.raises((OSError, ValueError)):
            load_model(REPO)
    assert hub.asked("storage") == 0, "refused before the weights are fetched"


def test_a_folder_of_the_same_name_wins(published, tmp_path, monkeypatch, folders):
    monkeypatch.chdir(tmp_path)
    hf_perturb.create_variant("demo", tmp_path / REPO, {"method": "reinit", "seed": 5})
    assert seed_of(CarpForMaskedLM.from_pretrained(REPO)) == 5


def test_a_name_that_is_none(published):
    for name in ("lab/../x", "a b", "lab/x/y/z", "./nowhere"):
        with pytest.raises(OSError, match=re.escape(name)):
            CarpForMaskedLM.from_pretrained(name)


# ---- what is in the cache already, and what is asked for again


@pytest.mark.parametrize("cls", [CarpForMaskedLM, AutoModelForMaskedLM])
def test_a_forced_download_is_one_download(cls, published, hub):
    cls.from_pretrained(REPO)
    hub.forget()
    cls.from_pretrained(REPO, force_download=True, verify=True)
    assert hub.asked("storage") == 1


@pytest.mark.parametrize("what", ["recipe", "shards", "whole", "pickle"])
def test_a_snapshot_is_enough_offline(what, hub, folders, tmp_path, monkeypatch):
    of = "base" if what == "pickle" else "carp"  # no record is believed beside a pickle
    if what == "recipe":
        hf_perturb.push_variant(folders / "recipe", REPO)
    else:
        model = CarpForMaskedLM.from_pretrained(folders / of)
        model.save_pretrained(tmp_path / what, max_shard_size="1MB" if what == "shards" else "5GB")
        files = {path.name: path.read_bytes() for path in (tmp_path / what).iterdir()}
        if what == "pickle":
            del files["model.safetensors"]
            torch.save(model.state_dict(), tmp_path / "weights")
            files["pytorch_model.bin"] = (tmp_path / "weights").read_bytes()
        hub.put(REPO, files)
    snapshot_download(REPO)
    hub.forget()
    monkeypatch.setenv("DISABLE_SAFETENSORS_CONVERSION", "1")  # Transformers would ask for somebody else's conversion
    assert same(CarpForMaskedLM.from_pretrained(REPO, local_files_only=True), folders / of)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert same(CarpForMaskedLM.from_pretrained(REPO), folders / of)
    assert not {asked.endpoint for asked in hub.requests} & {"head", "get", "storage"}


def test_a_configuration_of_another_repository(published, hub, folders):
    hf_perturb.push_variant(folders / "base", "lab/base")
    assert CarpForMaskedLM.from_pretrained("lab/base", config="lab/base").config.perturbation is None
    # its perturbation counts as asked for
    assert CarpForMaskedLM.from_pretrained("lab/base", config=REPO).config.perturbation.method == "reinit"
    with pytest.raises(OSError, match="lab/nothing"):
        CarpForMaskedLM.from_pretrained(REPO, config="lab/nothing")


# ---- records and recipes of others


def test_a_record_that_was_edited_on_the_hub(published, hub, capsys):
    stored = json.loads(hub.files(REPO)["config.json"])
    stored["perturbation"]["seed"] = 7
    hub.put(REPO, {"config.json": json.dumps(stored).encode()})
    assert main(["verify", REPO]) == 1
    assert "model.safetensors says of itself {'seed': 0}, config.json {'seed': 7}" in capsys.readouterr().out
    for verify in (False, True):
        with pytest.raises(DigestError, match=r"says of itself \{'seed': 0\}"):
            AutoModel.from_pretrained(REPO, verify=verify)


def test_another_alphabet_on_the_hub(published, hub):
    hub.put(REPO, {"tokenizer.json": b'{"model": {"vocab": {"A": 0}}}'})
    for open_it in (hf_perturb.verify_variant, CarpForMaskedLM.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(CheckpointError, match=r"tokenizer\.json is not the alphabet of this network"):
            open_it(REPO)
    assert hub.asked("storage") == 0, "refused before the weights are fetched"


def test_a_vocabulary_is_asked_for_once(published, hub):
    CarpForMaskedLM.from_pretrained(REPO)
    names = [asked.path.rpartition("/")[2] for asked in hub.requests if asked.endpoint in ("head", "get")]
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "added_tokens.json"):
        assert 1 <= names.count(file) <= 2, file  # whether it is there, and if so what is in it
    hub.forget()
    CarpForMaskedLM.from_pretrained(REPO)
    AutoTokenizer.from_pretrained(REPO)
    assert not any("vocab" in asked.path or "added_tokens" in asked.path for asked in hub.requests)


def test_verify_a_revision(published, hub, capsys):
    assert main(["verify", REPO, "--revision", "v1"]) == 0
    assert json.loads(hub.files(REPO, "v1")["config.json"])["perturbation"]["digest"] in capsys.readouterr().out
    assert main(["verify", REPO, "--revision", "v9"]) == 1


@pytest.mark.parametrize("base", ["/etc", "../../../../etc", "somebody/base", "/home/alice/base"])
def test_a_recipe_that_names_a_place_on_a_disk(base, hub, folders, tmp_path, capsys):
    files = {path.name: path.read_bytes() for path in (folders / "recipe").iterdir()}
    stored = json.loads(files["config.json"])
    stored["perturbation"]["base"] = {"name": base}
    hub.put(REPO, {**files, "config.json": json.dumps(stored).encode()})
    with pytest.raises(CheckpointError, match="ask the author to publish the base"):
        CarpForMaskedLM.from_pretrained(REPO)
    assert main(["create", REPO, str(tmp_path / "out")]) == 1
    assert main(["verify", REPO]) == 1
    assert "ask the author" in capsys.readouterr().err


@pytest.mark.parametrize("endpoint", ["head", "get"])
def test_a_connection_that_stays_broken_is_no_traceback(endpoint, published, hub, capsys):
    hub.fail(endpoint, times=99, drop=True)
    assert main(["verify", REPO]) == 1
    assert capsys.readouterr().err.startswith("hf-perturb verify: ")


# ---- nobody there


def close_hub(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("demoo", "(did you mean 'demo'?)"),
        ("my-contrl", "(did you mean 'my-control'?)"),
        ("controls/reinit-sed0", "(did you mean 'controls/reinit-seed0'?)"),
        ("esm1b_t33_650M_UR50", "(did you mean 'esm1b_t33_650M_UR50S'?)"),
        ("nosuch", ""),
    ],
)
def test_a_mistyped_name_is_answered_at_once(name, meant, monkeypatch, tmp_path, capsys, naps):
    (tmp_path / "my-control").mkdir()
    (tmp_path / "controls" / "reinit-seed0").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    close_hub(monkeypatch)
    for words in (["create", name, "OUT", "--method", "reinit"], ["verify", name], ["list", name]):
        assert main(words) == 1
        said = capsys.readouterr().err
        assert f"{name!r}: no such file or folder" in said
        assert "the Hub cannot be reached ([Errno" in said
        assert meant in said
        assert ("did you mean" in said) == bool(meant)
    assert not any(naps)
    with pytest.raises(HubError, match=r"no such file or folder.*the Hub cannot be reached"):
        CarpForMaskedLM.from_pretrained(name)


def test_what_is_in_the_cache_is_loaded_while_nobody_is_there(published, monkeypatch, folders, naps):
    CarpForMaskedLM.from_pretrained(REPO)
    AutoTokenizer.from_pretrained(REPO)
    close_hub(monkeypatch)
    assert same(CarpForMaskedLM.from_pretrained(REPO), folders / "other")
    assert main(["verify", REPO]) == 0
    assert not any(naps)


def test_a_path_that_is_not_there_says_what_is_near(tmp_path, capsys):
    (tmp_path / "my-control").mkdir()
    assert main(["verify", str(tmp_path / "my-controll")]) == 1
    assert f"(did you mean {str(tmp_path / 'my-control')!r}?)" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_named(published, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    assert main(["verify", REPO]) == 1
    assert f"config.json cannot be kept in the cache, {tmp_path / 'file' / 'hub'}: [Errno" in capsys.readouterr().err


def test_a_folder_that_may_not_be_entered_is_named(tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(tmp_path), "is_file", lambda path: refused(path) if path.suffix == ".json" else False)
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read: .*Permission denied"):
        hf_perturb.verify_variant(tmp_path)
