"""What a Hub holds: repositories, their commits and large files, and collections. Nothing here knows of HTTP."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property

_LARGE = (".safetensors", ".bin", ".pt")
_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?", re.ASCII)
_REF = re.compile(r"(?!.*(\.\.|//|@\{))[A-Za-z0-9_](?:[\w./+-]*[\w+-])?", re.ASCII)
_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in _LARGE).encode()


class HubError(Exception):
    """What the Hub does not do.

    Args:
        status: how bad it is, as a status of HTTP.
        message: what it says.
        code: the word that the client looks for.
        extra: what else is in the answer.
    """

    def __init__(self, status: int, message: str, code: str | None = None, **extra: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.extra = status, message, code, extra


@dataclass(frozen=True)
class User:
    """Whoever sent a token, and what it is good for."""

    name: str
    role: str = "write"
    organisations: tuple[str, ...] = ()

    def owns(self, namespace: str) -> bool:
        return namespace in (self.name, *self.organisations)


@dataclass(frozen=True)
class Stored:
    """A file of a commit. What git holds of a large one is a pointer."""

    content: bytes
    large: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()
        )

    @cached_property
    def blob(self) -> str:
        """The name that git has for it."""
        content = self.pointer if self.large else self.content
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def oid(self) -> str:
        """The sum by which the client sees that a file is there already."""
        return self.sha256 if self.large else self.blob


@dataclass(frozen=True)
class Commit:
    """A tree that never changes, and where it came from."""

    id: str
    parent: str | None
    files: Mapping[str, Stored]
    title: str
    message: str
    author: str
    date: str


@dataclass
class Repo:
    """A repository. Its large files stay, whether a commit has them or not."""

    id: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    def at(self, revision: str) -> Commit:
        """Return the commit that a branch, a tag or an id names."""
        name = self.branches.get(revision) or self.tags.get(revision) or revision
        if name not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[name]

    def history(self, revision: str) -> list[Commit]:
        commits = [self.at(revision)]
        while commits[-1].parent is not None:
            commits.append(self.commits[commits[-1].parent])
        return commits

    def commit(
        self,
        branch: str,
        files: Mapping[str, Stored],
        title: str = "commit",
        message: str = "",
        author: str = "lab",
    ) -> Commit:
        """Put a tree on a branch; the first commit makes the branch."""
        parent = self.branches.get(branch)
        names = sorted((path, file.blob) for path, file in files.items())
        text = repr((self.id, parent, len(self.commits), title, names)).encode()
        date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        commit = Commit(hashlib.sha1(text).hexdigest(), parent, dict(files), title, message, author, date)
        self.objects.update({file.sha256: file.content for file in files.values() if file.large})
        self.commits[commit.id] = commit
        self.branches[branch] = commit.id
        return commit

    def point(self, kind: str, name: str, revision: str) -> None:
        """Make a tag or a branch."""
        refs = self.branches if kind == "branch" else self.tags
        if _REF.fullmatch(name) is None:
            raise HubError(400, f"Invalid reference name: {name}")
        commit = self.at(revision)
        if name in refs:
            raise HubError(409, f"Reference exists already: {name}")
        refs[name] = commit.id

    def drop(self, kind: str, name: str) -> None:
        """Take a tag or a branch away."""
        if kind == "branch" and name == "main":
            raise HubError(403, "The branch main stays")
        if (self.branches if kind == "branch" else self.tags).pop(name, None) is None:
            raise HubError(404, f"Reference does not exist: {name}", "RevisionNotFound")


@dataclass
class Collection:
    """A list of repositories with a title; an item is `{"id": ..., "type": ..., "note": ...}`."""

    slug: str
    title: str
    namespace: str
    private: bool
    items: list[dict] = field(default_factory=list)


class Repositories:
    """All that is on a Hub. Whoever reads or changes it holds the lock."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.repos: dict[str, Repo] = {}
        self.collections: dict[str, Collection] = {}

    def create(self, repo_id: str, private: bool = False, author: str = "lab") -> Repo:
        """Make a repository, with the one commit that a new one has."""
        names = repo_id.split("/")
        if len(names) != 2 or not all(_NAME.fullmatch(name) for name in names) or "--" in repo_id or ".." in repo_id:
            raise HubError(400, f"Invalid repo id: {repo_id}")
        with self.lock:
            if repo_id in self.repos:
                raise HubError(409, "You already created this model repo")
            self.repos[repo_id] = repo = Repo(repo_id, private)
            repo.commit("main", {".gitattributes": Stored(_ATTRIBUTES, False)}, "initial commit", author=author)
        return repo

    def collect(self, namespace: str, title: str, private: bool = False) -> Collection:
        """Make a collection. Its slug has a number at the end, as if drawn by chance."""
        if not title:
            raise HubError(400, "A collection has a title")
        with self.lock:
            for other in self.collections.values():
                if (other.namespace, other.title) == (namespace, title):
                    raise HubError(409, "You already created this collection", slug=other.slug)
            word = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
            number = hashlib.sha1(f"{namespace}/{title}".encode()).hexdigest()[:24]
            collection = Collection(f"{namespace}/{word}-{number}", title, namespace, private)
            self.collections[collection.slug] = collection
        return collection


def is_large(path: str, size: int, limit: int) -> bool:
    """Say whether a file goes to the store of large files. An empty one never does."""
    return size > 0 and (path.endswith(_LARGE) or size > limit)
