"""How files come to the Hub and leave it."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from urllib.parse import quote

from support.hub_calls import Answer, Call, answer, route
from support.hub_repos import HubError, Repo, Stored, is_large


@route("POST", "/api/models/{id}/preupload/{rev}", "preupload")
def preupload(call: Call) -> Answer:
    there = _branch(call.writable(), call).files
    files = []
    for file in call.data["files"]:
        mode = "lfs" if is_large(file["path"], file["size"], call.hub.limit) else "regular"
        told = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
        files.append(told | ({"oid": there[file["path"]].oid} if file["path"] in there else {}))
    if len(files) > 256:
        raise HubError(413, "Too many files at once")
    return answer({"files": files})


def _branch(repo: Repo, call: Call):
    """Return the last commit of the branch of the path; nothing else can be written to."""
    if call.parts["rev"] not in repo.branches:
        raise HubError(404, f"Invalid rev id: {call.parts['rev']}", "RevisionNotFound")
    return repo.at(call.parts["rev"])


@route("POST", "/{id}.git/info/lfs/objects/batch", "batch")
def batch(call: Call) -> Answer:
    repo = call.writable()
    objects = []
    for asked in call.data["objects"]:
        told = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] not in repo.objects:
            told["actions"] = _actions(call, repo, asked["oid"], asked["size"])
        objects.append(told)
    return answer({"transfer": "basic" if call.hub.chunk is None else "multipart", "objects": objects})


def _actions(call: Call, repo: Repo, oid: str, size: int) -> dict:
    """Say where to send a large file: whole, or in parts."""
    hub, where = call.hub, f"{call.hub.key}/{repo.id}/{oid}"
    verify = {"href": f"{hub.url}/api/models/{repo.id}/lfs/verify"}
    if hub.chunk is None or size <= hub.chunk:
        return {"upload": {"href": f"{hub.storage_url}/upload/{where}"}, "verify": verify}
    upload = secrets.token_hex(8)
    hub.uploads[upload] = {}
    address = f"{hub.storage_url}/part/{where}"
    header = {str(n): f"{address}/{n}?upload={upload}" for n in range(1, -(-size // hub.chunk) + 1)}
    complete = f"{hub.url}/complete/{where}?upload={upload}"
    return {"upload": {"href": complete, "header": {"chunk_size": str(hub.chunk), **header}}, "verify": verify}


def _keep(call: Call, content: bytes) -> None:
    """Keep a large file, if it is the one that was announced."""
    repo, oid = call.signed(), call.parts["sum"]
    if hashlib.sha256(content).hexdigest() != oid:
        raise HubError(400, "The content is not what its sum says")
    repo.objects[oid] = content


def _parts(call: Call) -> dict[int, bytes]:
    """Return the parts that an upload has so far."""
    call.signed()
    if call.query.get("upload") not in call.hub.uploads:
        raise HubError(404, "There is no such upload")
    return call.hub.uploads[call.query["upload"]]


@route("PUT", "/upload/{key}/{id}/{sum}", "put")
def put(call: Call) -> Answer:
    _keep(call, call.body)
    return Answer()


@route("PUT", "/part/{key}/{id}/{sum}/{number}", "part")
def part(call: Call) -> Answer:
    _parts(call)[int(call.parts["number"])] = call.body
    return Answer(headers={"ETag": _etag(call.body)})


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


@route("POST", "/complete/{key}/{id}/{sum}", "complete")
def complete(call: Call) -> Answer:
    parts, told = _parts(call), call.data["parts"]
    if [(one["partNumber"], one["etag"]) for one in told] != [(n, _etag(parts[n])) for n in sorted(parts)]:
        raise HubError(400, "The parts are not those that were sent")
    _keep(call, b"".join(parts[n] for n in sorted(parts)))  # the parts stay: it may be asked again
    return answer({})


@route("POST", "/api/models/{id}/lfs/verify", "verify")
def verify(call: Call) -> Answer:
    content = call.writable().objects.get(call.data["oid"])
    if content is None or len(content) != call.data["size"]:
        raise HubError(404, "The large file has not arrived")
    return answer({})


@route("POST", "/api/models/{id}/commit/{rev}", "commit")
def commit(call: Call) -> Answer:
    repo = call.writable()
    head = _branch(repo, call)
    if "create_pr" in call.query:
        raise HubError(400, "There are no pull requests here")
    header, files = {}, dict(head.files)
    for line in call.body.splitlines():
        operation = json.loads(line)
        if operation["key"] == "header":
            header = operation["value"]
        else:
            _apply(repo, files, operation["key"], operation["value"])
    if header.get("parentCommit", head.id) != head.id:
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    author = call.signed_in().name
    made = repo.commit(call.parts["rev"], files, header["summary"], header.get("description", ""), author)
    return answer({"success": True, "commitOid": made.id, "commitUrl": f"{call.hub.url}/{repo.id}/commit/{made.id}"})


def _apply(repo: Repo, files: dict[str, Stored], key: str, value: dict) -> None:
    """Change a tree by one operation of a commit."""
    path = value["path"]
    if any(part in ("", ".", "..", ".git") for part in path.rstrip("/").split("/")):
        raise HubError(400, f"Invalid path: {path}")
    if key == "file":
        files[path] = Stored(base64.b64decode(value["content"]), large=False)
    elif key == "lfsFile":
        if value["oid"] not in repo.objects:
            raise HubError(400, f"The pointer of {path} is to a large file that is not here")
        files[path] = Stored(repo.objects[value["oid"]], large=True)
    elif key in ("deletedFile", "deletedFolder"):
        gone = [path] if key == "deletedFile" else [name for name in files if name.startswith(path.rstrip("/") + "/")]
        if not gone or any(name not in files for name in gone):
            raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        for name in gone:
            del files[name]
    else:
        raise HubError(400, f"Unknown operation: {key}")


@route("HEAD", "/{id}/resolve/{rev}/{path}", "head")
@route("GET", "/{id}/resolve/{rev}/{path}", "get")
def resolve(call: Call) -> Answer:
    repo, path = call.readable(), call.parts["path"]
    commit = repo.at(call.parts["rev"])
    headers = {"X-Repo-Commit": commit.id}
    if path not in commit.files:
        raise HubError(404, "Entry not found", "EntryNotFound", **headers)
    file = commit.files[path]
    headers["ETag"] = f'"{file.oid}"'
    if not file.large:
        return Answer(file.content, 200, headers, ranged=True)
    headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
    headers["Location"] = f"{call.hub.storage_url}/storage/{call.hub.key}/{quote(repo.id)}/{file.sha256}"
    return Answer(b"Found", 302, headers)


@route("HEAD", "/storage/{key}/{id}/{sum}", "storage")
@route("GET", "/storage/{key}/{id}/{sum}", "storage")
def storage(call: Call) -> Answer:
    content = call.signed().objects.get(call.parts["sum"])
    if content is None:
        raise HubError(404, "There is no such file")
    return Answer(content, 200, {"ETag": f'"{call.parts["sum"]}"'}, ranged=True)
