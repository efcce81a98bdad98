"""How the stand-in for the Hub reads a request, lets it fail, and sends an answer."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs, urlsplit

from support import (
    hub_collections,  # noqa: F401
    hub_routes,  # noqa: F401
    hub_transfers,  # noqa: F401
)
from support.file_server import turned
from support.hub_calls import Answer, Call, Route, answer, refusal, routed
from support.hub_repos import HubError, User

if TYPE_CHECKING:
    from support.hub_server import HubServer

_OPEN = ("put", "part", "complete", "storage")  # to whoever has the address
_BAD_TOKEN = "Invalid credentials in Authorization header"


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request.

    Args:
        status: answer this, and do nothing.
        headers: send these with it.
        drop: do nothing, and close the connection.
        cut: close the connection after so many bytes of the body.
        flip: turn a bit of this byte of the file.
        lost: do what is asked, and close the connection.
        body: what the error page has, besides what it always has.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    cut: int | None = None
    flip: int | None = None
    lost: bool = False
    body: dict = field(default_factory=dict)


class Asked(NamedTuple):
    """One request; the names of its headers are in lower case, and `size` is of its body."""

    endpoint: str
    method: str
    path: str
    size: int
    headers: dict[str, str]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def _handle(self) -> None:
        self.close_connection = True
        body, address = self._body(), urlsplit(self.path)
        route, parts = routed(self.command, address.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(route.endpoint, self.command, self.path, len(body), headers)
        first, fault = self.server.take(asked)
        first()
        if fault.drop:
            return
        if fault.status is not None:
            page = {"error": "an error page", **fault.body}
            self._send(answer(page, fault.status, **fault.headers), fault)
            return
        query = {name: values[0] for name, values in parse_qs(address.query, keep_blank_values=True).items()}
        sent = self._answer(route, asked, parts, query, body)
        if not fault.lost:
            self._send(sent, fault)

    def _answer(self, route: Route, asked: Asked, parts: dict[str, str], query: dict[str, str], body: bytes) -> Answer:
        with self.server.store.lock:
            try:
                user = None if route.endpoint in _OPEN else self._user(asked.headers.get("authorization"))
                return route.act(Call(self.server, parts, query, body, user))
            except HubError as error:
                return refusal(error)

    def _user(self, header: str | None) -> User | None:
        if header is None:
            return None
        token = header.removeprefix("Bearer ")
        if token == self.server.EXPIRED:
            raise HubError(401, _BAD_TOKEN, error_description='User Access Token "tests" is expired')
        if token not in self.server.users:
            raise HubError(401, _BAD_TOKEN)
        return self.server.users[token]

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self._read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline() or b"0", 16):
            pieces.append(self._read(size))
            self.rfile.readline()
        if not self.rfile.readline():
            raise ConnectionAbortedError
        return b"".join(pieces)

    def _read(self, size: int) -> bytes:
        """Read so many bytes; a client that was killed has sent fewer."""
        content = self.rfile.read(size)
        if len(content) < size:
            raise ConnectionAbortedError
        return content

    def _send(self, sent: Answer, fault: Fault) -> None:
        body, status, headers = sent.body, sent.status, dict(sent.headers)
        if sent.ranged:
            body = body if fault.flip is None else turned(body, fault.flip)
            whole = len(body)
            headers["Accept-Ranges"] = "bytes"
            if found := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
                begin, end = _bounds(*found.groups(), whole)
                if begin >= end:
                    body, status, headers["Content-Range"] = b"", 416, f"bytes */{whole}"
                else:
                    body, status, headers["Content-Range"] = body[begin:end], 206, f"bytes {begin}-{end - 1}/{whole}"
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Connection": "close", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: fault.cut])

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


for _method in ("GET", "HEAD", "POST", "PUT", "DELETE"):
    setattr(Handler, f"do_{_method}", Handler._handle)


def _bounds(first: str, last: str, whole: int) -> tuple[int, int]:
    """Return where the bytes that a Range asks for begin and end."""
    if not first:
        return max(0, whole - int(last or 0)), whole
    return int(first), min(whole, int(last) + 1) if last else whole
