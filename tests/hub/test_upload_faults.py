"""A Hub that fails: the branch is the old or the new one, the message says so, and running again completes."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

import pytest
from support import hub_repos
from support.hub_client import connected, environment, quiet_uploads
from support.pushing import REPO, copied

import hf_perturb
from hf_perturb import HubError

pytestmark = [quiet_uploads, pytest.mark.usefixtures("naps")]

# what a push asks, when there is a repository and when there is none
LOOKING = ("info", "tree", "refs")
SENDING = ("preupload", "batch", "put", "verify", "validate", "commit")
AROUND = ("create", "branch", "tag", "collection", "item")
EVERY = (*LOOKING, *SENDING, *AROUND)
FAULTS = {
    "429": {"status": 429, "headers": {"Retry-After": "2"}},
    "500": {"status": 500},
    "503": {"status": 503, "headers": {"Retry-After": "3"}},
    "dropped": {"drop": True},
    "answer lost": {"lost": True},
}
OLD = {"config.json": b'{"model_type": "carp"}', "notes.txt": b"old"}


@pytest.fixture
def once(folders):
    """Return a function that publishes with all that a push can do, to a branch that has to be made."""

    def run(**options):
        given = {"private": True, "revision": "dev", "tag": "v1", "collection": "Controls", **options}
        return hf_perturb.push_variant(folders / "carp", REPO, **given)

    return run


def files_on(hub, branch):
    """Return the files of a branch, none where there is no branch or repository yet."""
    with suppress(KeyError, hub_repos.HubError):
        return hub.files(REPO, branch)
    return {}


def is_new(hub, folders, branch="dev"):
    weights = files_on(hub, branch).get("model.safetensors")
    return weights == (folders / "carp" / "model.safetensors").read_bytes()


def is_old(hub, branch="dev"):
    """Whether nothing of the push is to be seen."""
    return not set(files_on(hub, branch)) - {".gitattributes"}


def complete(hub, folders):
    return (
        is_new(hub, folders)
        and hub.tags(REPO) == {"v1": hub.head(REPO, "dev")}
        and hub.titles(REPO, "dev").count(hub.titles(REPO, "dev")[0]) == 1
        and [item["id"] for item in hub.collections()[0].items] == [REPO]
        and len(hub.collections()) == 1
    )


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("endpoint", EVERY)
def test_a_fault_that_passes_is_not_noticed(endpoint, fault, hub, once, folders):
    hub.fail(endpoint, **FAULTS[fault])
    done = once()
    # a commit whose answer was lost is found by looking
    assert hub.asked(endpoint) > 1 or (endpoint, fault) == ("commit", "answer lost")
    assert complete(hub, folders)
    assert done.commit == hub.head(REPO, "dev")
    assert is_old(hub, "main")


STAYING = [
    (endpoint, fault) for endpoint in EVERY for fault in FAULTS if (endpoint, fault) != ("commit", "answer lost")
]


@pytest.mark.parametrize(("endpoint", "fault"), STAYING)
def test_a_fault_that_stays_is_told_and_running_again_completes(endpoint, fault, hub, once, folders, naps):
    hub.fail(endpoint, times=99, **FAULTS[fault])
    with pytest.raises(HubError) as caught:
        once()
    said = str(caught.value)
    assert "run the same command again" in said
    assert {"429": "too many requests", "500": "is not well", "503": "is not well"}.get(fault, "broke") in said
    assert hub.WRITE not in said
    assert sum(naps) < 200, "patience has an end"
    assert is_old(hub) or is_new(hub, folders)
    assert is_new(hub, folders) == (endpoint in ("tag", "collection", "item"))
    assert ("the files are there" in said) == (endpoint in ("tag", "collection", "item"))
    hub.mend()
    once()
    assert complete(hub, folders)


@pytest.mark.parametrize("endpoint", EVERY)
def test_a_token_that_expires_on_the_way(endpoint, hub, once, folders):
    hub.fail(endpoint, times=99, status=401, body={"error": "Invalid credentials in Authorization header"})
    with pytest.raises(HubError, match=r"does not know the token .* and run the same command again"):
        once()
    assert is_new(hub, folders) == (endpoint in ("tag", "collection", "item"))
    hub.mend()
    once()
    assert complete(hub, folders)


def test_retry_after_is_honoured(hub, once, naps):
    for endpoint, seconds in {"create": 11, "commit": 12, "tag": 13, "item": 14}.items():
        hub.fail(endpoint, status=429, headers={"Retry-After": str(seconds)})
    once()
    assert [nap for nap in naps if nap > 10] == [11, 12, 13, 14]


def test_the_hub_s_own_header_is_honoured(hub, once, naps):
    hub.fail("commit", status=429, headers={"ratelimit": '"api";r=0;t=41'})
    hub.fail("create", status=503, headers={"ratelimit": '"api";r=499;t=290'})
    once()
    assert naps.count(41) == 1
    assert 290 not in naps, "requests remain"


def test_who_is_told_to_wait_for_an_hour_is_told_so(hub, once, naps):
    hub.fail("commit", status=429, headers={"Retry-After": "3600"})
    with pytest.raises(HubError, match="the Hub asks to wait 3600 s"):
        once()
    assert max(naps, default=0) < 60
    assert is_old(hub)


def test_an_edit_after_a_commit_whose_answer_was_lost_is_told(hub, push, folders):
    hub.fail("commit", lost=True)
    hub.before("commit", lambda: hub.before("info", lambda: hub.put(REPO, {"README.md": b"edited"})))
    assert "somebody else changed main in between" in push.refused(folders / "carp")
    assert is_new(hub, folders, "main")
    push(folders / "carp", "--tag", "v1")
    assert hub.head(REPO) == hub.tags(REPO)["v1"]


def test_a_lost_answer_makes_no_second_commit(hub, push, folders):
    hub.fail("commit", lost=True)
    assert hub.WRITE not in push(folders / "carp")
    assert len(hub.titles(REPO)) == 2
    assert hub.asked("commit") == 1


def test_a_second_writer_in_between(hub, push, folders):
    hub.put(REPO, {"notes.txt": b"old"})
    hub.before("commit", lambda: hub.put(REPO, {"notes.txt": b"theirs"}))
    said = push.refused(folders / "carp")
    assert "somebody else changed main in between, and it does not hold what was sent" in said
    assert hub.files(REPO).keys() == {".gitattributes", "notes.txt"}
    assert hub.files(REPO)["notes.txt"] == b"theirs"
    hub.forget()
    push(folders / "carp")
    assert hub.files(REPO)["notes.txt"] == b"theirs"
    assert hub.asked("put") == 0, "the weights were there already"


@pytest.mark.parametrize("endpoint", ["preupload", "commit"])
def test_a_new_branch_beside_another_model_is_completed(endpoint, hub, push, folders):
    push(folders / "carp")
    hub.fail(endpoint, times=99, status=503)
    push.refused(folders / "other", "--revision", "dev", "--tag", "v1")
    hub.mend()
    push(folders / "other", "--revision", "dev", "--tag", "v1")
    assert hub.files(REPO, "dev")["model.safetensors"] == (folders / "other" / "model.safetensors").read_bytes()
    assert is_new(hub, folders, "main")


def test_somebody_edits_the_card_right_after(hub, folders):
    hub.put(REPO, {"notes.txt": b"old"})

    def wait_for_the_commit():
        # what is asked after it
        hub.before("info", lambda: hub.put(REPO, {"README.md": b"edited"}))

    hub.before("commit", wait_for_the_commit)
    done = hf_perturb.push_variant(folders / "carp", REPO, tag="v1")
    assert done.commit == hub.tags(REPO)["v1"] != hub.head(REPO)
    assert hub.files(REPO)["README.md"] == b"edited"
    assert hub.files(REPO, "v1")["README.md"] != b"edited"


def test_a_second_writer_of_the_same(hub, push, folders):
    def same():
        hf_perturb.push_variant(folders / "carp", REPO)

    hub.before("commit", same)
    push(folders / "carp")
    assert len(hub.titles(REPO)) == 2


def test_a_tag_that_somebody_else_sets_in_between(hub, push, folders):
    hub.before("tag", lambda: hub.store.repos[REPO].tags.update(v1=hub.put(REPO, {"notes.txt": b"theirs"})))
    assert "somebody else gave the tag v1 to " in push.refused(folders / "carp", "--tag", "v1")


def test_parts_of_a_large_file(hub, push, folders, naps):
    hub.chunk = 500_000
    hub.fail("part", status=503)
    hub.fail("part", drop=True)
    hub.fail("complete", status=500)
    push(folders / "carp")
    assert hub.asked("part") == 7
    assert is_new(hub, folders, "main")


@pytest.mark.parametrize("endpoint", ["part", "complete", "verify", "commit"])
def test_a_process_that_is_killed(endpoint, hub, push, folders, tmp_path):
    hub.put(REPO, OLD)
    hub.chunk = 500_000
    before = hub.head(REPO)
    words = [sys.executable, "-m", "hf_perturb", "push", str(folders / "carp"), REPO, "--force"]
    process = subprocess.Popen(words, env=environment(hub, tmp_path / "there", hub.WRITE), stdout=-1, stderr=-1)
    hub.before(endpoint, process.kill)
    process.communicate()
    assert process.returncode == -9
    if endpoint == "commit":
        assert hub.head(REPO) == before or is_new(hub, folders, "main")
    else:
        assert hub.head(REPO) == before
    push(folders / "carp", "--force")
    assert is_new(hub, folders, "main")
    assert hub.files(REPO)["notes.txt"] == b"old"


def test_a_hub_that_is_not_there(hub, push, folders, monkeypatch, tmp_path):
    hub.url = "http://127.0.0.1:9"
    connected(monkeypatch, hub, tmp_path / "home", hub.WRITE)
    said = push.refused(folders / "carp")
    assert "the Hub cannot be reached" in said
    assert "nothing was sent" in said


def test_signed_addresses_are_not_printed(hub, push, folders):
    hub.fail("put", times=99, status=403)
    said = push.refused(folders / "carp")
    assert hub.key not in said


def test_bad_metadata_is_the_hub_s_to_refuse(hub, push, folders, tmp_path):
    folder = copied(folders / "carp", tmp_path)
    card = folder / "README.md"
    card.write_text(card.read_text().replace("license: cc-by-4.0", "license: my-own"))
    hub.fail("validate", times=9, status=400, body={"errors": [{"message": "license: must be one of"}], "warnings": []})
    assert "license: must be one of" in push.refused(folder)
    assert is_old(hub, "main")
