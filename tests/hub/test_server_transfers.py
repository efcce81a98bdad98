"""Files go to the stand-in for the Hub, and come from it, through the real client."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationCopy, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError, RepositoryNotFoundError
from support.downloading import count_naps
from support.hub_client import connected, environment, http, quiet_uploads
from support.hub_examples import CARD, FILES, LARGE, WEIGHTS, commit, logged_in, status_of
from support.hub_server import HubServer, serve

import hf_perturb

pytestmark = quiet_uploads
hub = pytest.fixture(serve)
api = pytest.fixture(logged_in)


def test_files_go_regularly_or_as_large_ones(hub, api):
    api.create_repo("lab/x")
    made = commit(api, FILES)
    assert {path: hub.files("lab/x")[path] for path in FILES} == FILES
    assert made.oid == hub.head("lab/x")
    assert (hub.asked("batch"), hub.asked("put"), hub.asked("verify"), hub.asked("part")) == (1, 1, 1, 0)
    (put,) = (asked for asked in hub.requests if asked.endpoint == "put")
    assert put.size == len(WEIGHTS)
    assert "authorization" not in put.headers
    hub.limit = 3
    commit(api, {"long.txt": b"long", "empty.bin": b""})
    large = {file.rfilename for file in api.model_info("lab/x", files_metadata=True).siblings if file.lfs}
    assert large == {"a/b/model.safetensors", "long.txt"}


def test_large_files_go_in_parts(hub, api):
    hub.chunk = 1000
    api.create_repo("lab/x")
    commit(api, FILES)
    assert hub.files("lab/x")["a/b/model.safetensors"] == WEIGHTS
    assert [asked.size for asked in hub.requests if asked.endpoint == "part"] == [1000, 1000, 560]
    assert (hub.asked("put"), hub.asked("complete")) == (0, 1)


@pytest.mark.parametrize("chunk", [None, 1000])
def test_a_folder_that_is_there_already_is_not_sent_again(hub, api, tmp_path, chunk):
    hub.chunk = chunk
    for path, content in FILES.items():
        (tmp_path / "folder" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / path).write_bytes(content)
    api.create_repo("lab/x")
    first = api.upload_folder(repo_id="lab/x", folder_path=tmp_path / "folder")
    assert hub.sent() > len(WEIGHTS)
    hub.forget()
    assert api.upload_folder(repo_id="lab/x", folder_path=tmp_path / "folder").oid == first.oid
    assert (hub.sent(), hub.asked("put"), hub.asked("part"), hub.asked("commit")) == (0, 0, 0, 0)


def test_files_are_copied_and_deleted(hub, api):
    hub.put("lab/x", FILES)
    copies = [CommitOperationCopy("a/b/model.safetensors", "m.safetensors"), CommitOperationCopy("a/notes.txt", "n")]
    api.create_commit("lab/x", [*copies, CommitOperationDelete("a/")], commit_message="move")
    assert hub.files("lab/x").keys() == {".gitattributes", "config.json", "m.safetensors", "n"}
    with pytest.raises(RemoteEntryNotFoundError):
        api.delete_file("nothing", "lab/x")


def test_a_commit_on_a_stale_parent_is_refused(hub, api):
    parent = hub.put("lab/x", FILES)
    hub.before("commit", lambda: hub.put("lab/x", {"second": b"2"}))
    assert status_of(commit, api, {"first": b"1"}, parent_commit=parent) == 412
    assert "first" not in hub.files("lab/x")
    commit(api, {"first": b"1"}, parent_commit=hub.head("lab/x"))
    commit(api, {"third": b"3"})
    assert {"first", "second", "third"} <= hub.files("lab/x").keys()
    assert hub.files("lab/x", parent).keys() == {".gitattributes", *FILES}


def test_a_card_is_looked_at(hub, api):
    api.create_repo("lab/x")
    commit(api, {"README.md": CARD})
    with pytest.warns(UserWarning, match="empty or missing yaml"):
        commit(api, {"README.md": b"no header"})
    hub.fail("validate", status=400, body={"errors": [{"message": "no such license"}]})
    with pytest.raises(ValueError, match="no such license"):
        commit(api, {"README.md": CARD + b"more"})
    assert hub.asked("validate") == 3


def test_downloads_keep_the_token_from_the_second_host(hub, api, tmp_path):
    hub.put("lab/x", FILES, private=True)
    folder = Path(api.snapshot_download("lab/x"))
    assert folder.is_relative_to(tmp_path / "home" / "hub")
    assert {path: (folder / path).read_bytes() for path in FILES} == FILES
    (storage,) = (asked for asked in hub.requests if asked.endpoint == "storage")
    assert storage.headers["host"].startswith("localhost:")
    assert "authorization" not in storage.headers
    assert all("authorization" in asked.headers for asked in hub.requests if asked.endpoint in ("head", "info"))


def test_files_in_the_cache_are_there_when_the_hub_is_not(monkeypatch, hub, api):
    hub.put("lab/x", FILES, private=True)
    path = api.hf_hub_download("lab/x", LARGE)
    api.snapshot_download("lab/x")
    hub.forget()
    hub.fail("head", status=503)
    assert api.hf_hub_download("lab/x", LARGE) == path
    assert (hub.asked("head"), hub.asked("get"), hub.asked("storage")) == (1, 0, 0)
    hub.fail("info", status=503)
    assert Path(api.snapshot_download("lab/x")) in Path(path).parents
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.forget()
    assert Path(api.snapshot_download("lab/x")) in Path(path).parents
    assert hub.requests == []


def test_the_functions_of_the_client_and_of_transformers_call_it_too(monkeypatch, hub, api, tmp_path):
    hub.put("lab/x", FILES, private=True)
    huggingface_hub.create_repo("lab/config")
    hf_perturb.CarpConfig(hidden_size=12).push_to_hub("lab/config")
    assert hf_perturb.CarpConfig.from_pretrained("lab/config").hidden_size == 12
    connected(monkeypatch, hub, tmp_path / "another", hub.OTHER)
    assert huggingface_hub.whoami()["name"] == "stranger"
    assert hf_perturb.CarpConfig.from_pretrained("lab/config").hidden_size == 12
    assert (tmp_path / "another" / "hub").is_dir()
    with pytest.raises(RepositoryNotFoundError):
        huggingface_hub.snapshot_download("lab/x")


@pytest.mark.parametrize("token", ["WRITE", None])
def test_another_process_calls_it(hub, tmp_path, token):
    hub.put("lab/x", FILES, private=True)
    code = "import huggingface_hub as h; print(h.model_info('lab/x').sha); h.hf_hub_download('lab/x', 'config.json')"
    env = environment(hub, tmp_path, token and hub.WRITE)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip() == hub.head("lab/x")) == (token is not None), done.stderr
    assert ("RepositoryNotFoundError" in done.stderr) == (token is None)
    assert (tmp_path / "hub" / "models--lab--x").is_dir() == (token is not None)


def test_parts_of_a_file(hub, api):
    hub.put("lab/x", FILES, private=True)
    client = http.Client(trust_env=False, headers={"Authorization": f"Bearer {hub.WRITE}"})
    with client:
        for asked, status, content in [
            ("bytes=10-19", 206, WEIGHTS[10:20]),
            ("bytes=-5", 206, WEIGHTS[-5:]),
            (f"bytes={len(WEIGHTS)}-", 416, b""),
        ]:
            url = f"{hub.url}/lab/x/resolve/main/{LARGE}"
            answer = client.get(url, headers={"Range": asked}, follow_redirects=True)
            assert (answer.status_code, answer.content) == (status, content)
        signed = f"{hub.storage_url}/storage/{hub.key}/lab/x/{'0' * 64}"
        assert client.get(signed).status_code == 404
        unsigned = f"{hub.storage_url}/storage/guess/lab/x/{'0' * 64}"
        assert (client.get(unsigned).status_code, client.get(f"{hub.url}/nowhere").status_code) == (403, 404)
    assert hub.asked("other") == 1


def test_after_a_test_the_client_is_as_it_was(hub, tmp_path):
    was = dict(vars(constants)), huggingface_hub.hf_api.api.endpoint
    with pytest.MonkeyPatch.context() as patch:
        connected(patch, hub, tmp_path, hub.READ)
        assert huggingface_hub.whoami()["auth"]["accessToken"]["role"] == "read"
        assert huggingface_hub.utils._http._GLOBAL_CLIENT is not None
    assert huggingface_hub.utils._http._GLOBAL_CLIENT is None
    assert (dict(vars(constants)), huggingface_hub.hf_api.api.endpoint) == was
    with pytest.raises(huggingface_hub.errors.OfflineModeIsEnabled):
        huggingface_hub.whoami(hub.READ)


def test_a_hub_that_has_gone_leaves_the_cache(monkeypatch, tmp_path):
    naps = count_naps(monkeypatch)
    with HubServer() as hub:
        api = logged_in(monkeypatch, hub, tmp_path)
        hub.put("lab/x", FILES)
        path = api.hf_hub_download("lab/x", LARGE)
    assert api.hf_hub_download("lab/x", LARGE) == path
    with pytest.raises(LocalEntryNotFoundError):
        api.hf_hub_download("lab/x", "config.json")
    assert naps == [1, 2, 4, 8, 8]


def test_two_writers_at_once_both_write(hub, api):
    hub.put("lab/x", FILES)
    hub.before("commit", lambda: commit(HfApi(), {"second.bin": b"2"}))
    commit(api, {"first.bin": b"1"})
    assert hub.titles("lab/x")[:2] == ["files", "files"]
    assert {"first.bin", "second.bin"} <= hub.files("lab/x").keys()


@pytest.mark.parametrize("length", ["Content-Length: 50", "Transfer-Encoding: chunked"])
def test_a_client_that_is_killed_changes_nothing(hub, length):
    before = hub.put("lab/x", FILES)
    with socket.create_connection(("127.0.0.1", hub.server_port)) as client:
        client.sendall(f"POST /api/models/lab/x/commit/main HTTP/1.1\r\n{length}\r\n\r\n5\r\n".encode() + b"{}\n")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert (hub.requests, hub.head("lab/x")) == ([], before)


def ask_where_a_mistake_is() -> None:
    with HubServer() as hub, http.Client(trust_env=False) as client:
        hub.before("other", lambda: 1 / 0)
        with pytest.raises(http.RemoteProtocolError):
            client.get(hub.url)


def test_a_mistake_in_the_stand_in_comes_out_at_the_end():
    with pytest.raises(ZeroDivisionError):
        ask_where_a_mistake_is()
