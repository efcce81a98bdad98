"""What the real client makes of the faults of the stand-in for the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
)
from support.downloading import count_naps
from support.file_server import turned
from support.hub_client import connected, http, quiet_uploads
from support.hub_examples import CARD, FILES, LARGE, WEIGHTS, commit, status_of
from support.hub_server import serve

pytestmark = quiet_uploads
hub = pytest.fixture(serve)


@pytest.fixture
def naps(monkeypatch) -> list[float]:
    """Return how long the client would have waited."""
    return count_naps(monkeypatch)


@pytest.fixture
def api(monkeypatch, hub, tmp_path, naps) -> HfApi:
    """Return the client of `lab`, and a repository with files for it."""
    connected(monkeypatch, hub, tmp_path / "home", hub.WRITE)
    hub.put("lab/x", FILES, private=True)
    return HfApi()


@pytest.mark.parametrize("path", ["config.json", LARGE])
def test_a_turned_bit_is_not_noticed(hub, api, path):
    hub.fail("storage" if path == LARGE else "get", flip=1)
    assert Path(api.hf_hub_download("lab/x", path)).read_bytes() == turned(FILES[path], 1)


def test_a_download_that_breaks_off_goes_on_where_it_was(monkeypatch, hub, api, naps):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    hub.fail("storage", cut=1000)
    assert Path(api.hf_hub_download("lab/x", LARGE)).read_bytes() == WEIGHTS
    assert [asked.headers.get("range") for asked in hub.requests if asked.endpoint == "storage"] == [
        None,
        "bytes=1000-",
    ]
    assert naps == [1]


def upload(api: HfApi) -> None:
    commit(api, {"new.bin": b"new" * 1000, "README.md": CARD})


def collect(api: HfApi) -> None:
    api.add_collection_item(api.create_collection("all", namespace="lab").slug, "lab/x", "model")


def info_of_paths(api: HfApi) -> None:
    api.get_paths_info("lab/x", ["config.json"])


AGAIN = {
    **dict.fromkeys(["preupload", "batch", "put", "part", "complete", "verify"], upload),
    "tree": lambda api: api.list_repo_files("lab/x"),
    "commits": lambda api: api.list_repo_commits("lab/x"),
}
ONCE = {
    **dict.fromkeys(["validate", "commit"], upload),
    **dict.fromkeys(["collection", "item"], collect),
    "paths": info_of_paths,
    "whoami": lambda api: api.whoami(),
    "create": lambda api: api.create_repo("lab/y"),
    "settings": lambda api: api.update_repo_settings("lab/x", private=False),
    "delete": lambda api: api.delete_repo("lab/x"),
    "tag": lambda api: api.create_tag("lab/x", tag="v1"),
    "branch": lambda api: api.create_branch("lab/x", branch="b"),
    "info": lambda api: api.model_info("lab/x"),
    "refs": lambda api: api.list_repo_refs("lab/x"),
}


@pytest.mark.parametrize("fault", [{"status": 503}, {"drop": True}, {"lost": True}], ids=str)
@pytest.mark.parametrize("endpoint", AGAIN)
def test_what_the_client_tries_again(hub, api, naps, endpoint, fault):
    hub.chunk = 3000 if endpoint not in ("part", "complete") else 1500
    hub.fail(endpoint, 2, **fault)
    AGAIN[endpoint](api)
    assert (naps, hub.asked(endpoint)) == ([1, 2], 4 if endpoint == "part" else 3)
    assert ("new.bin" in hub.files("lab/x")) == (AGAIN[endpoint] is upload)


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 429}, {"drop": True}, {"lost": True}], ids=str)
@pytest.mark.parametrize("endpoint", ONCE)
def test_what_the_client_tries_once(hub, api, naps, endpoint, fault):
    hub.fail(endpoint, **fault)
    with pytest.raises(HfHubHTTPError if "status" in fault else http.RemoteProtocolError):
        ONCE[endpoint](api)
    assert (naps, hub.asked(endpoint)) == ([], 1)


@pytest.mark.parametrize(
    ("endpoint", "fault", "waited"),
    [
        ("head", {"status": 503}, []),  # asks again at once, as nothing is in the cache
        ("head", {"status": 503, "times": 3}, [1, 2]),
        ("head", {"drop": True}, None),
        ("get", {"status": 503}, None),
        ("get", {"status": 429}, [1]),
        ("get", {"drop": True}, [1]),
        ("get", {"cut": 1}, [1]),
        ("storage", {"status": 503}, None),
        ("storage", {"status": 429, "headers": {"Retry-After": "30"}}, [31]),
        ("storage", {"drop": True}, [1]),
    ],
    ids=str,
)
def test_what_the_client_tries_again_in_a_download(hub, api, naps, endpoint, fault, waited):
    hub.fail(endpoint, **fault)
    path = LARGE if endpoint == "storage" else "config.json"
    if waited is None:
        with pytest.raises((HfHubHTTPError, http.RemoteProtocolError)):
            api.hf_hub_download("lab/x", path)
        assert (naps, hub.asked(endpoint)) == ([], 1)
    else:
        assert Path(api.hf_hub_download("lab/x", path)).read_bytes() == FILES[path]
        assert naps == waited


def test_a_connection_dropped_at_the_first_question_is_an_error_even_with_a_cache(hub, api):
    api.snapshot_download("lab/x")
    hub.fail("head", drop=True)
    with pytest.raises(http.RemoteProtocolError):
        api.hf_hub_download("lab/x", LARGE)
    hub.fail("info", drop=True)
    with pytest.raises(http.RemoteProtocolError):
        api.snapshot_download("lab/x")


def test_a_file_that_cannot_be_asked_for_is_not_found(hub, api, naps):
    hub.fail("head", 7, status=503)
    with pytest.raises(LocalEntryNotFoundError):
        api.hf_hub_download("lab/x", LARGE)
    assert (naps, hub.asked("head"), hub.asked("storage")) == ([1, 2, 4, 8, 8], 7, 0)


@pytest.mark.parametrize("endpoint", ["preupload", "batch", "put", "verify"])
def test_an_upload_that_fails_for_good_changes_nothing(hub, api, naps, endpoint):
    before = hub.head("lab/x")
    hub.fail(endpoint, 6, status=500, headers={"Retry-After": "3"})
    with pytest.raises((HfHubHTTPError, RuntimeError)):
        upload(api)
    assert (naps, hub.asked(endpoint), hub.head("lab/x")) == ([4] * 5, 6, before)
    hub.forget()
    upload(api)
    assert (hub.asked("put"), hub.asked("commit")) == (endpoint != "verify", 1)


def test_a_commit_whose_answer_is_lost_is_made(hub, api):
    hub.fail("commit", lost=True)
    with pytest.raises(http.RemoteProtocolError):
        upload(api)
    assert "new.bin" in hub.files("lab/x")
    assert hub.titles("lab/x") == ["files", "put", "initial commit"]
    hub.forget()
    upload(api)
    assert (hub.sent(), len(hub.titles("lab/x"))) == (0, 3)


def test_a_repository_and_a_tag_whose_answers_are_lost_are_made(hub, api):
    for endpoint in ("create", "tag", "collection"):
        hub.fail(endpoint, lost=True)
    for call in (ONCE["create"], ONCE["tag"], collect):
        with pytest.raises(http.RemoteProtocolError):
            call(api)
    assert hub.exists("lab/y")
    assert hub.tags("lab/x") == {"v1": hub.head("lab/x")}
    assert [one.title for one in hub.collections()] == ["all"]


def test_parts_that_were_not_completed_are_sent_again(hub, api):
    hub.chunk = 1000
    hub.fail("complete", status=400)
    with pytest.raises(RuntimeError):
        upload(api)
    upload(api)
    assert (hub.asked("part"), hub.asked("complete")) == (6, 2)


def test_faults_are_forgotten(hub, api):
    hub.fail("info", 5, status=500)
    hub.mend()
    assert status_of(api.model_info, "lab/no") == 404
