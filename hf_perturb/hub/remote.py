"""What a repository on the Hub holds, and what would change in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from hf_perturb.hub.staging import Stage, is_ours
from hf_perturb.networks.fetching import retried

MAIN = "main"


@dataclass(frozen=True)
class Remote:
    """The state of a branch, or of a commit on it.

    Args:
        exists: whether there is such a repository, as far as the token can see.
        has_branch: whether it has the branch; else the rest is that of `main`, which the branch will start from.
        is_new: whether the branch is one that has only just started from `main`, or is to.
        private: whether others cannot see it.
        head: the commit.
        sums: sha256 of large files, git's sha1 of the others, by path.
        tags: their commits by name.
    """

    exists: bool
    has_branch: bool = False
    is_new: bool = True
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


def look(api: HfApi, repo_id: str, branch: str, commit: str | None = None) -> Remote:
    """Look at a repository.

    Args:
        api: the client.
        repo_id: the repository.
        branch: of which the state is wanted.
        commit: which commit on it; `None` for its head.
    """
    try:
        info = retried(lambda: api.model_info(repo_id), connections=True)
    except RepositoryNotFoundError:
        return Remote(exists=False)
    refs = retried(lambda: api.list_repo_refs(repo_id), connections=True)
    branches = {ref.name: ref.target_commit for ref in refs.branches}
    head = commit or branches.get(branch, info.sha)
    entries = retried(lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=head)), connections=True)
    files = [entry for entry in entries if isinstance(entry, RepoFile)]
    sums = {file.path: file.lfs.sha256 if file.lfs is not None else file.blob_id for file in files}
    tags = {tag.name: tag.target_commit for tag in refs.tags}
    is_new = branch not in branches or (branch != MAIN and branches[branch] == branches.get(MAIN))
    return Remote(True, branch in branches, is_new, bool(info.private), head, sums, tags)


def changes(staged: Stage, remote: Remote) -> list[Change]:
    """Compare what is to be in a repository with what is; files that are not ours stay as they are."""
    made = []
    for path, file in staged.files.items():
        there = remote.sums.get(path)
        action = "add" if there is None else "keep" if there in staged.sums[path] else "replace"
        made.append(Change(path, action, file.upload_info.size))
    gone = sorted(path for path in remote.sums if is_ours(path) and path not in staged.files)
    return made + [Change(path, "delete", 0) for path in gone]


def recorded_there(api: HfApi, repo_id: str, remote: Remote) -> dict[str, Any]:
    """Return the `config.json` of a repository, `{}` where there is none that can be read."""
    if "config.json" not in remote.sums:
        return {}
    path = retried(lambda: api.hf_hub_download(repo_id, "config.json", revision=remote.head), connections=True)
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return {}
    return stored if isinstance(stored, dict) else {}


def commits_since(api: HfApi, repo_id: str, branch: str, start: str | None) -> dict[str, str]:
    """Return the titles of the commits on a branch since one of them, by their ids, the last first."""
    found: dict[str, str] = {}
    for commit in retried(lambda: api.list_repo_commits(repo_id, revision=branch), connections=True):
        if commit.commit_id == start:
            break
        found[commit.commit_id] = commit.title
    return found
