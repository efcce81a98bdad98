"""What the Hub answers about users, repositories, their trees and their references."""

from __future__ import annotations

from pathlib import PurePosixPath
from urllib.parse import parse_qs, urlencode

from support.hub_calls import Answer, Call, answer, route
from support.hub_repos import Commit, HubError, Stored


@route("GET", "/api/whoami-v2", "whoami")
def whoami(call: Call) -> Answer:
    user = call.signed_in()
    organisations = [{"name": name, "type": "org", "roleInOrg": "write"} for name in user.organisations]
    token = {"displayName": "tests", "role": user.role}
    access = {"type": "access_token", "accessToken": token}
    return answer({"name": user.name, "type": "user", "orgs": organisations, "auth": access})


@route("POST", "/api/validate-yaml", "validate")
def validate(call: Call) -> Answer:
    bare = not call.data["content"].startswith("---\n")
    warnings = [{"message": "empty or missing yaml metadata in repo card"}] if bare else []
    return answer({"errors": [], "warnings": warnings})


@route("POST", "/api/repos/create", "create")
def create(call: Call) -> Answer:
    data, user = call.data, call.signed_in()
    if data.get("type") not in (None, "model"):
        raise HubError(400, "There are only models here")
    namespace = data.get("organization") or user.name
    call.owner(namespace)
    repo_id = f"{namespace}/{data['name']}"
    url = f"{call.hub.url}/{repo_id}"
    try:
        private = data.get("visibility") == "private" or data.get("private") is True  # as older clients say it
        call.hub.store.create(repo_id, private, user.name)
    except HubError as error:
        error.extra["url"] = url
        raise
    return answer({"url": url, "name": repo_id})


@route("DELETE", "/api/repos/delete", "delete")
def delete(call: Call) -> Answer:
    namespace = call.data.get("organization") or call.signed_in().name
    call.parts["id"] = f"{namespace}/{call.data['name']}"
    del call.hub.store.repos[call.writable().id]
    return answer({})


@route("PUT", "/api/models/{id}/settings", "settings")
def settings(call: Call) -> Answer:
    repo = call.writable()
    if "visibility" in call.data:
        repo.private = call.data["visibility"] == "private"
    return answer({"private": repo.private})


@route("GET", "/api/models/{id}/revision/{rev}", "info")
@route("GET", "/api/models/{id}", "info")
def info(call: Call) -> Answer:
    repo = call.readable()
    commit = repo.at(call.parts.get("rev", "main"))
    siblings = [_sibling(path, file, "blobs" in call.query) for path, file in sorted(commit.files.items())]
    return answer(
        {
            "id": repo.id,
            "modelId": repo.id,
            "author": repo.owner,
            "sha": commit.id,
            "lastModified": commit.date,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "tags": [],
            "siblings": siblings,
        }
    )


def _sibling(path: str, file: Stored, whole: bool) -> dict:
    if not whole:
        return {"rfilename": path}
    large = {"sha256": file.sha256, "size": len(file.content), "pointerSize": len(file.pointer)}
    return {"rfilename": path, "size": len(file.content), "blobId": file.blob} | ({"lfs": large} if file.large else {})


def _entries(commit: Commit, folder: str, recursive: bool) -> list[dict]:
    """List what is in a folder; `""` is the root."""
    inside = PurePosixPath(folder)
    entries: dict[str, dict] = {}
    for path, file in sorted(commit.files.items()):
        parents = [parent for parent in PurePosixPath(path).parents if parent != inside and inside in parent.parents]
        for parent in reversed(parents):
            if recursive or parent.parent == inside:
                entries[str(parent)] = {"type": "directory", "path": str(parent), "oid": "0" * 40, "size": 0}
        direct = PurePosixPath(path).parent == inside
        if direct or (recursive and inside in PurePosixPath(path).parents):
            entries[path] = _entry(path, file)
    if folder and not entries:
        raise HubError(404, f"{folder} does not exist on {commit.id}", "EntryNotFound")
    return list(entries.values())


def _entry(path: str, file: Stored) -> dict:
    entry: dict = {"type": "file", "path": path, "oid": file.blob, "size": len(file.content)}
    if file.large:
        entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": len(file.pointer)}
    return entry


def _page(call: Call, path: str, entries: list) -> Answer:
    """Answer a page; the address of the next one is in a header."""
    begin = int(call.query.get("cursor", 0))
    end = begin + call.hub.page
    query = urlencode({**call.query, "cursor": end})
    more = {"Link": f'<{call.hub.url}{path}?{query}>; rel="next"'} if end < len(entries) else {}
    return answer(entries[begin:end], **more)


@route("GET", "/api/models/{id}/tree/{rev}/{path}", "tree")
@route("GET", "/api/models/{id}/tree/{rev}", "tree")
def tree(call: Call) -> Answer:
    repo, folder = call.readable(), call.parts.get("path", "")
    commit = repo.at(call.parts["rev"])
    recursive = call.query.get("recursive", "").lower() in ("true", "1")
    address = f"/api/models/{repo.id}/tree/{commit.id}" + (f"/{folder}" if folder else "")
    return _page(call, address, _entries(commit, folder, recursive))


@route("POST", "/api/models/{id}/paths-info/{rev}", "paths")
def paths(call: Call) -> Answer:
    commit = call.readable().at(call.parts["rev"])
    asked = parse_qs(call.body.decode()).get("paths", [])
    return answer([entry for entry in _entries(commit, "", recursive=True) if entry["path"] in asked])


@route("GET", "/api/models/{id}/commits/{rev}", "commits")
def commits(call: Call) -> Answer:
    repo = call.readable()
    listed = [
        {
            "id": commit.id,
            "title": commit.title,
            "message": commit.message,
            "authors": [{"user": commit.author}],
            "date": commit.date,
        }
        for commit in repo.history(call.parts["rev"])
    ]
    return _page(call, f"/api/models/{repo.id}/commits/{repo.at(call.parts['rev']).id}", listed)


@route("GET", "/api/models/{id}/refs", "refs")
def refs(call: Call) -> Answer:
    repo = call.readable()

    def listed(names: dict[str, str], where: str) -> list[dict]:
        return [{"name": name, "ref": f"refs/{where}/{name}", "targetCommit": to} for name, to in names.items()]

    found = {"branches": listed(repo.branches, "heads"), "tags": listed(repo.tags, "tags"), "converts": []}
    return answer(found | ({"pullRequests": []} if "include_prs" in call.query else {}))


@route("POST", "/api/models/{id}/tag/{rev}", "tag")
def tag(call: Call) -> Answer:
    call.writable().point("tag", call.data["tag"], call.parts["rev"])
    return answer({})


@route("POST", "/api/models/{id}/branch/{rev}", "branch")
def branch(call: Call) -> Answer:
    call.writable().point("branch", call.parts["rev"], call.data.get("startingPoint", "main"))
    return answer({})


@route("DELETE", "/api/models/{id}/tag/{rev}", "tag")
def untag(call: Call) -> Answer:
    call.writable().drop("tag", call.parts["rev"])
    return answer({})


@route("DELETE", "/api/models/{id}/branch/{rev}", "branch")
def unbranch(call: Call) -> Answer:
    call.writable().drop("branch", call.parts["rev"])
    return answer({})
