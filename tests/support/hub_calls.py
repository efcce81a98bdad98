"""What the routes of the Hub share: what was asked, what is answered, and who may see and change what."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote

from support.hub_repos import HubError, Repo, User

if TYPE_CHECKING:
    from support.hub_server import HubServer

_PLACES = {
    "id": r"(?P<id>[^/]+/[^/]+?)",
    "slug": r"(?P<slug>[^/]+/[^/]+)",
    "rev": r"(?P<rev>[^/]+)",
    "path": r"(?P<path>.+)",
    "key": r"(?P<key>[^/]+)",
    "sum": r"(?P<sum>[0-9a-f]{64})",
    "number": r"(?P<number>\d+)",
}
NO_TOKEN = "Invalid username or password."


@dataclass(frozen=True)
class Answer:
    """What goes back.

    Args:
        body: all of it; the file, where one is served.
        status: of HTTP.
        headers: besides the length.
        ranged: whether a part of the body may be asked for.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    ranged: bool = False


@dataclass(frozen=True)
class Call:
    """What was asked, and by whom; `parts` are the places in the path, without any quoting."""

    hub: HubServer
    parts: dict[str, str]
    query: dict[str, str]
    body: bytes
    user: User | None

    @property
    def data(self) -> dict:
        """The body, read as JSON."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise HubError(400, "The body is no JSON") from error

    def signed_in(self) -> User:
        if self.user is None:
            raise HubError(401, NO_TOKEN)
        return self.user

    def owner(self, namespace: str) -> User:
        """Return the user, who may write in the namespace."""
        user = self.signed_in()
        if user.role != "write":
            raise HubError(403, "This token cannot write")
        if not user.owns(namespace):
            raise HubError(403, f"You have no rights in the namespace {namespace}")
        return user

    def readable(self) -> Repo:
        """Return the repository of the path, if the user may know of it."""
        repo = self.hub.store.repos.get(self.parts["id"])
        if repo is None or (repo.private and not (self.user is not None and self.user.owns(repo.owner))):
            raise self.unknown()
        return repo

    def writable(self) -> Repo:
        """Return the repository of the path, if the user may change it."""
        repo = self.readable()
        if self.user is None:
            raise self.unknown()
        self.owner(repo.owner)
        return repo

    def unknown(self) -> HubError:
        """Say that there is no such repository. Who has no token hears that one is needed."""
        if self.user is None:
            return HubError(401, NO_TOKEN, "RepoNotFound")
        return HubError(404, "Repository not found", "RepoNotFound")

    def signed(self) -> Repo:
        """Return the repository of an address that the Hub has given out; it needs no token."""
        if self.parts["key"] != self.hub.key:
            raise HubError(403, "The address is not signed")
        if self.parts["id"] not in self.hub.store.repos:
            raise HubError(404, "The repository has gone")
        return self.hub.store.repos[self.parts["id"]]


@dataclass(frozen=True)
class Route:
    method: str
    pattern: re.Pattern[str]
    endpoint: str
    act: Callable[[Call], Answer]


ROUTES: list[Route] = []


def route(method: str, path: str, endpoint: str) -> Callable:
    """Answer what is asked at a path; its places are those in `_PLACES`."""

    def add(act: Callable[[Call], Answer]) -> Callable[[Call], Answer]:
        ROUTES.append(Route(method, re.compile(path.format(**_PLACES)), endpoint, act))
        return act

    return add


def routed(method: str, path: str) -> tuple[Route, dict[str, str]]:
    """Return the route of a request and what stands at its places."""
    for known in ROUTES:
        found = known.pattern.fullmatch(path)
        if known.method == method and found is not None:
            return known, {name: unquote(part) for name, part in found.groupdict().items()}
    return Route(method, re.compile(""), "other", _nowhere), {}


def _nowhere(call: Call) -> Answer:
    raise call.unknown()


def answer(data: object, status: int = 200, **headers: str) -> Answer:
    return Answer(json.dumps(data).encode(), status, {"Content-Type": "application/json", **headers})


def refusal(error: HubError) -> Answer:
    """Say why not, in the two places where the client looks."""
    headers = {"X-Error-Message": error.message}
    if error.code is not None:
        headers["X-Error-Code"] = error.code
    extra = dict(error.extra)
    headers.update({name: extra.pop(name) for name in list(extra) if name.startswith("X-")})
    return answer({"error": error.message, **extra}, error.status, **headers)
