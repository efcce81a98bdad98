"""`scripts/push_variants.py`: a matrix of variants, as it is built, on the Hub."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support.hub_client import quiet_uploads
from support.hub_server import serve
from support.pushing import connect

import hf_perturb
from hf_perturb.variants.matrix import folders, matrix

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts"))
import push_variants

pytestmark = quiet_uploads
hub = pytest.fixture(serve)
naps = pytest.fixture(connect, autouse=True)

NAMES = ["reinit-seed0", "reinit-seed42", "resample-seed0", "resample-seed42"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return a folder as scripts/build_variants.py leaves it."""
    parent = tmp_path_factory.mktemp("variants")
    hf_perturb.convert_checkpoint("demo", parent / "bases" / "carp")
    asked = matrix(["reinit", "resample"], [42, 0])
    hf_perturb.create_variants(parent / "bases" / "carp", folders(parent / "carp", asked))
    return parent


@pytest.fixture
def push(capsys):
    def run(parent, *words, code=0):
        assert push_variants.main([str(parent), "--namespace", "lab", *words]) == code
        return capsys.readouterr()

    return run


def test_every_variant_has_a_repository(built, hub, push):
    said = push(built, "--private", "--tag", "v1", "--collection", "Controls")
    assert said.out == "4 of 4 repositories are there, in lab\n"
    for name in NAMES:
        repo_id = f"lab/carp-{name}"
        there = hub.files(repo_id)
        assert there["model.safetensors"] == (built / "carp" / name / "model.safetensors").read_bytes()
        assert hub.tags(repo_id) == {"v1": hub.head(repo_id)}
        assert hub.is_private(repo_id)
        assert f"{repo_id}: pushed, " in said.err
    (collection,) = hub.collections()
    assert [item["id"] for item in collection.items] == [f"lab/carp-{name}" for name in NAMES]
    hub.forget()
    said = push(built, "--private", "--tag", "v1", "--collection", "Controls")
    assert said.err.count("there already") == 4
    assert hub.sent() == 0


def test_a_dry_run(built, hub, push):
    said = push(built, "--dry-run", "--bases")
    assert said.out == "5 of 5 repositories would be there; nothing was touched, in lab\n"
    assert not hub.exists("lab/carp")
    assert {asked.endpoint for asked in hub.requests} == {"other", "info"}


def test_bases_and_a_choice(built, hub, push):
    push(built, "--bases", "--only", "bases/*", "--only", "carp/*seed0")
    assert hub.exists("lab/carp")
    assert hub.exists("lab/carp-reinit-seed0")
    assert not hub.exists("lab/carp-reinit-seed42")


def test_one_that_fails_does_not_stop_the_others(built, hub, push, tmp_path):
    hub.put("lab/carp-reinit-seed42", {"config.json": b'{"model_type": "bert"}'})
    said = push(built, "--json", code=1)
    results = {row["repo_id"]: row["status"] for row in json.loads(said.out)}
    assert results.pop("lab/carp-reinit-seed42").startswith("failed: lab/carp-reinit-seed42 has another model")
    assert set(results.values()) == {"pushed"}
    said = push(built, "--force")
    assert said.err.count("there already") == 3


def test_an_interrupted_run_goes_on(built, hub, push):
    def interrupt():
        raise KeyboardInterrupt

    asked = []

    def second(function=push_variants.hf_perturb.push_variant):
        def run(folder, repo_id, **options):
            asked.append(repo_id)
            return interrupt() if len(asked) == 2 else function(folder, repo_id, **options)

        return run

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(push_variants.hf_perturb, "push_variant", second())
        assert "the next run goes on from there" in push(built, code=130).err
    said = push(built)
    assert said.err.count("there already") == 1
    assert said.err.count(": pushed") == 3


def test_two_folders_are_not_one_repository(tmp_path, capsys):
    for folder in ("esm/b-reinit", "esm-b/reinit"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")
    with pytest.raises(SystemExit):
        push_variants.main([str(tmp_path), "--namespace", "lab"])
    assert "would both be lab/esm-b-reinit; rename one of them" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--only", "nothing*"]])
def test_nothing_to_push(words, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        push_variants.main([str(tmp_path), "--namespace", "lab", *words])
    assert caught.value.code == 2
    assert "there is no variant" in capsys.readouterr().err
