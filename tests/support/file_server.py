"""A file server on this machine that misbehaves on request: what the downloads are tested against."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_PIECES = 20  # that a paced body is sent in


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer.

    Args:
        status: answer this, with an error page.
        headers: send these with it.
        cut: close the connection after so many bytes of the body.
        short: leave out so many bytes at the end, and announce a body without them.
        flip: turn a bit of this byte of the file.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    short: int = 0
    flip: int | None = None


@dataclass(frozen=True)
class Asked:
    """One request; the names of its headers are in lower case."""

    path: str
    headers: dict[str, str]

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


class FileServer(ThreadingHTTPServer):
    """Serves bytes by path, whole or from an offset on, and keeps every request.

    Attributes:
        files: content by path, query included.
        redirects: path by path.
        faults: what the next answers have, the first of it first; answers after that are right.
        requests: in the order that they came in.
        ranges: whether it knows what a Range is.
        seconds: how long it takes to send a body.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.faults: deque[Fault] = deque()
        self.requests: list[Asked] = []
        self.ranges = True
        self.seconds = 0.0
        self.lock = threading.Lock()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def publish(self, path: str, content: bytes) -> str:
        """Serve a file; return its address."""
        self.files[path] = content
        return self.url(path)

    def fail(self, times: int = 1, **fault) -> None:
        """Make the next answers wrong; the keywords are the fields of `Fault`."""
        self.faults.extend([Fault(**fault)] * times)

    def ranges_asked(self) -> list[str | None]:
        return [asked.range for asked in self.requests]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer

    def do_GET(self) -> None:
        self.close_connection = True
        server = self.server
        with server.lock:
            headers = {name.lower(): value for name, value in self.headers.items()}
            server.requests.append(Asked(self.path, headers))
            fault = server.faults.popleft() if server.faults else Fault()
        content = server.files.get(self.path)
        if fault.status is not None:
            self._answer(fault.status, b"an error page", fault.headers)
        elif self.path in server.redirects:
            self._answer(302, b"", {"Location": server.redirects[self.path]})
        elif content is None:
            self._answer(404, b"no such file", {})
        else:
            self._send_file(content, headers.get("range"), fault)

    def _send_file(self, content: bytes, asked: str | None, fault: Fault) -> None:
        if fault.flip is not None:
            content = turned(content, fault.flip)
        whole, begin, status, headers = len(content), 0, 200, {}
        if asked is not None and self.server.ranges:
            begin = int(re.fullmatch(r"bytes=(\d+)-", asked).group(1))
            if begin >= whole:
                self._answer(416, b"", {"Content-Range": f"bytes */{whole}"})
                return
            status, headers = 206, {"Content-Range": f"bytes {begin}-{whole - 1}/{whole}"}
        self._answer(status, content[begin : whole - fault.short], headers, fault.cut)

    def _answer(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Connection": "close", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        body = body[:cut]
        pause, size = self.server.seconds / _PIECES, max(1, -(-len(body) // _PIECES))
        try:
            for begin in range(0, len(body), size):
                self.wfile.write(body[begin : begin + size])
                if pause:
                    time.sleep(pause)
        except ConnectionError:
            pass  # whoever asked has gone

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def turned(content: bytes, place: int) -> bytes:
    """Return the content with one bit of the byte at `place` turned."""
    changed = bytearray(content)
    changed[place] ^= 1
    return bytes(changed)


def serve() -> Iterator[FileServer]:
    """Run a server; a fixture is `server = pytest.fixture(serve)`."""
    with FileServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
