"""The stand-in for the Hub answers the real client as the Hub does: users, repositories, references, collections."""

from __future__ import annotations

import pytest
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from support.hub_client import quiet_uploads
from support.hub_examples import FILES, commit, logged_in, status_of
from support.hub_repos import HubError
from support.hub_server import HubServer, serve

pytestmark = quiet_uploads
hub = pytest.fixture(serve)
api = pytest.fixture(logged_in)


def test_tokens_have_the_length_of_real_ones(hub):
    tokens = {hub.WRITE, hub.READ, hub.OTHER, hub.EXPIRED}
    assert [(len(token), token[:3]) for token in tokens] == [(37, "hf_")] * 4


def test_whoami_names_the_user_the_organisations_and_the_role(hub, api):
    user = api.whoami()
    assert (user["name"], [one["name"] for one in user["orgs"]]) == ("lab", ["lab-org"])
    assert user["auth"]["accessToken"]["role"] == "write"
    assert api.whoami(hub.READ)["auth"]["accessToken"]["role"] == "read"
    assert api.whoami(hub.OTHER)["name"] == "stranger"


@pytest.mark.parametrize("token", [HubServer.EXPIRED, "hf_" + "x" * 34])
def test_tokens_that_are_no_good_are_refused_even_where_none_is_needed(hub, api, token):
    hub.put("lab/x", FILES)
    assert status_of(api.whoami, token) == 401
    with pytest.raises(HfHubHTTPError, match="Invalid credentials in Authorization header") as caught:
        api.model_info("lab/x", token=token)
    assert not isinstance(caught.value, RepositoryNotFoundError)


def test_a_new_repository_has_one_commit(hub, api):
    url = api.create_repo("lab/x", private=True)
    assert (url.repo_id, str(url)) == ("lab/x", f"{hub.url}/lab/x")
    assert list(hub.files("lab/x")) == [".gitattributes"]
    assert [one.title for one in api.list_repo_commits("lab/x")] == ["initial commit"]
    assert hub.is_private("lab/x")
    assert api.create_repo("lab-org/x").repo_id == "lab-org/x"
    assert api.create_repo("plain").repo_id == "lab/plain"


def test_a_repository_is_made_once(hub, api):
    api.create_repo("lab/x")
    assert status_of(api.create_repo, "lab/x") == 409
    assert api.create_repo("lab/x", exist_ok=True, private=True).repo_id == "lab/x"
    assert not hub.is_private("lab/x")


def test_the_client_takes_no_rights_for_a_repository_that_exists(hub, api):
    hub.put("lab/x", FILES)
    assert api.create_repo("lab/x", exist_ok=True, token=hub.OTHER).repo_id == "lab/x"
    assert status_of(api.create_repo, "lab/y", exist_ok=True, token=hub.OTHER) == 403


@pytest.mark.parametrize("token", [HubServer.READ, HubServer.OTHER])
def test_only_the_owner_makes_and_changes_a_repository(hub, api, token):
    assert status_of(api.create_repo, "lab/y", token=token) == 403
    hub.put("lab/x", FILES)
    for call, arguments in {
        api.update_repo_settings: {"private": True},
        api.create_tag: {"tag": "v1"},
        api.create_branch: {"branch": "b"},
        api.delete_repo: {},
        api.upload_file: {"path_or_fileobj": b"1", "path_in_repo": "one"},
    }.items():
        assert status_of(call, repo_id="lab/x", token=token, **arguments) == 403
    assert hub.titles("lab/x") == ["put", "initial commit"]


def test_private_repositories_are_there_for_their_owner_only(hub, api):
    hub.put("lab/x", FILES, private=True)
    assert api.model_info("lab/x", token=hub.READ).private
    for token, status in {hub.OTHER: 404, False: 401}.items():
        for call in (api.model_info, api.list_repo_files, api.list_repo_refs, api.delete_repo):
            with pytest.raises(RepositoryNotFoundError) as caught:
                call("lab/x", token=token)
            assert caught.value.response.status_code == status
        with pytest.raises(RepositoryNotFoundError):
            api.hf_hub_download("lab/x", "config.json", token=token)
    api.update_repo_settings("lab/x", private=False)
    assert not hub.is_private("lab/x")
    assert not api.model_info("lab/x", token=False).private


def test_names_that_no_repository_has(hub, api):
    for name in ("x", "lab/x/y", "lab/.x", "lab/a--b"):
        with pytest.raises(HubError):
            hub.put(name, FILES)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("x")


def test_a_deleted_repository_is_gone(hub, api):
    hub.put("lab/x", FILES)
    api.delete_repo("lab/x")
    assert not hub.exists("lab/x")
    assert not api.repo_exists("lab/x")


@pytest.mark.parametrize("page", [1, 2, 1000])
def test_listings_come_in_pages(hub, api, page):
    hub.page = page
    hub.put("lab/x", FILES)
    paths = [entry.path for entry in api.list_repo_tree("lab/x", recursive=True)]
    assert paths == [".gitattributes", "a", "a/b", "a/b/model.safetensors", "a/notes.txt", "config.json"]
    assert [entry.path for entry in api.list_repo_tree("lab/x")] == [".gitattributes", "a", "config.json"]
    assert [entry.path for entry in api.list_repo_tree("lab/x", "a")] == ["a/b", "a/notes.txt"]
    assert len(api.list_repo_commits("lab/x")) == 2
    assert hub.asked("commits") == -(-2 // page)


def test_what_is_known_of_a_file(hub, api):
    hub.put("lab/x", FILES)
    weights, missing = api.get_paths_info("lab/x", ["a/b/model.safetensors", "no"]), api.file_exists("lab/x", "no")
    (listed,) = [one for one in api.model_info("lab/x", files_metadata=True).siblings if one.lfs]
    assert (weights[0].lfs.sha256, weights[0].blob_id) == (listed.lfs.sha256, listed.blob_id)
    assert not missing
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree("lab/x", "no"))


def test_tags_and_branches(hub, api):
    first = hub.put("lab/x", FILES)
    api.create_tag("lab/x", tag="v1/rc")
    api.create_branch("lab/x", branch="next/one", revision="v1/rc")
    commit(api, {"new": b"1"}, revision="next/one")
    assert (hub.tags("lab/x"), hub.head("lab/x")) == ({"v1/rc": first}, first)
    assert "new" in hub.files("lab/x", "next/one")
    assert status_of(api.create_tag, "lab/x", tag="v1/rc", revision="next/one") == 409
    assert status_of(api.create_branch, "lab/x", branch="main") == 409
    api.create_branch("lab/x", branch="main", exist_ok=True)
    refs = api.list_repo_refs("lab/x")
    assert [[one.name for one in refs.branches], [one.ref for one in refs.tags]] == [
        ["main", "next/one"],
        ["refs/tags/v1/rc"],
    ]
    api.delete_tag("lab/x", tag="v1/rc")
    api.delete_branch("lab/x", branch="next/one")
    assert (hub.tags("lab/x"), api.list_repo_refs("lab/x").tags) == ({}, [])
    with pytest.raises(RevisionNotFoundError):
        api.model_info("lab/x", revision="v1/rc")
    with pytest.raises(RevisionNotFoundError):
        commit(api, {"new": b"1"}, revision="no")


def test_collections(hub, api):
    hub.put("lab/x", FILES)
    hub.put("lab/secret", FILES, private=True)
    made = api.create_collection("Controls, all of them", namespace="lab-org")
    assert made.slug.startswith("lab-org/controls-all-of-them-")
    assert status_of(api.create_collection, "Controls, all of them", namespace="lab-org") == 409
    assert api.create_collection("Controls, all of them", namespace="lab-org", exists_ok=True).slug == made.slug
    api.add_collection_item(made.slug, "lab/secret", "model")
    full = api.add_collection_item(made.slug, "lab/x", "model", note="first")
    assert [(item.item_id, item.note) for item in full.items] == [("lab/secret", None), ("lab/x", "first")]
    assert [item.item_id for item in api.get_collection(made.slug, token=hub.OTHER).items] == ["lab/x"]
    assert status_of(api.add_collection_item, made.slug, "lab/x", "model") == 409
    assert len(api.add_collection_item(made.slug, "lab/x", "model", exists_ok=True).items) == 2
    assert status_of(api.add_collection_item, made.slug, "lab/no", "model") == 404
    assert status_of(api.add_collection_item, made.slug, "lab/x", "model", token=hub.OTHER) == 403
    assert [one.slug for one in api.list_collections(owner="lab-org")] == [made.slug]
    assert [(one.title, one.private, len(one.items)) for one in hub.collections()] == [(made.title, False, 2)]
    hidden = api.create_collection("Hidden", namespace="lab", private=True)
    assert status_of(api.get_collection, hidden.slug, token=hub.OTHER) == 404
