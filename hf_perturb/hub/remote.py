"""What a repository on the Hub holds, and what would change in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from hf_perturb.hub.staging import is_ours
from hf_perturb.models.fetching import cached, retried

MAIN = "main"


@dataclass(frozen=True)
class Remote:
    """The state of a branch.

    Args:
        exists: whether there is such a repository, as far as the token can see.
        has_branch: whether it has the branch; else the rest is that of `main`, which the branch will start from.
        private: whether others can see it.
        head: the commit.
        sums: sha256 of large files, git's sha1 of the others, by path.
        tags: their commits by name.
    """

    exists: bool
    has_branch: bool = False
    private: bool = False
    head: str | None = None
    sums: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """What becomes of a file.

    Args:
        path: in the repository.
        action: `add`, `replace`, `delete` or `keep`.
        size: in bytes, 0 for what is deleted.
    """

    path: str
    action: str
    size: int


def look(api: HfApi, repo_id: str, branch: str) -> Remote:
    """Look at a repository."""
    try:
        info, has_branch = retried(lambda: api.model_info(repo_id, revision=branch), connections=True), True
    except RepositoryNotFoundError:
        return Remote(exists=False)
    except RevisionNotFoundError:
        info, has_branch = retried(lambda: api.model_info(repo_id), connections=True), False
    entries = retried(lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=info.sha)), connections=True)
    sums = {
        entry.path: entry.lfs.sha256 if entry.lfs is not None else entry.blob_id
        for entry in entries
        if isinstance(entry, RepoFile)
    }
    return Remote(True, has_branch, bool(info.private), info.sha, sums, tags_of(api, repo_id))


def tags_of(api: HfApi, repo_id: str) -> dict[str, str]:
    """Return the commits that the tags of a repository name."""
    refs = retried(lambda: api.list_repo_refs(repo_id), connections=True)
    return {tag.name: tag.target_commit for tag in refs.tags}


def changes(files: Mapping[str, CommitOperationAdd], remote: Remote) -> list[Change]:
    """Compare what is to be in a repository with what is; files that are not ours stay as they are."""
    made = []
    for path, file in files.items():
        there = remote.sums.get(path)
        same = there in (file.upload_info.sha256.hex(), _git_sum(file))
        action = "add" if there is None else "keep" if same else "replace"
        made.append(Change(path, action, file.upload_info.size))
    gone = sorted(path for path in remote.sums if is_ours(path) and path not in files)
    return made + [Change(path, "delete", 0) for path in gone]


def recorded_there(api: HfApi, repo_id: str, remote: Remote) -> dict[str, Any]:
    """Return the `config.json` of a repository, `{}` where there is none that can be read."""
    if "config.json" not in remote.sums:
        return {}
    path = cached(repo_id, "config.json", {"revision": remote.head, "token": api.token})
    try:
        stored = {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return stored if isinstance(stored, dict) else {}


def _git_sum(file: CommitOperationAdd) -> str | None:
    """Return git's sum of a small file; a large one has its sha256 on the Hub. Source: git's blob objects."""
    size = file.upload_info.size
    if size > 10 * 2**20:
        return None
    with file.as_file() as opened:
        return hashlib.sha1(b"blob %d\0" % size + opened.read(), usedforsecurity=False).hexdigest()
