"""A stand-in for the Hub on this machine, with users, faults, and a record of what it was asked.

The client calls it as it calls the Hub (`hub_client.connected`). Large files come and go through a second host name,
to which no token should be sent. Every request has an endpoint, and faults are for endpoints:

- `whoami`, `validate` (the card), `create`, `settings`, `delete`: users and repositories
- `info`, `tree`, `paths`, `refs`, `commits`: what is in a repository
- `preupload`, `batch`, `put`, `part`, `complete`, `verify`, `commit`: an upload, in this order
- `tag`, `branch`, `collection`, `item`: to make, to show, or to take away
- `head`, `get`, `storage` (the second host): a download
- `other`: what is nowhere
"""

from __future__ import annotations

import secrets
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import ThreadingHTTPServer

from support.hub_calls import ROUTES
from support.hub_handler import Asked, Fault, Handler
from support.hub_repos import Collection, Repositories, Stored, User, is_large

ENDPOINTS = {known.endpoint for known in ROUTES} | {"other"}


class HubServer(ThreadingHTTPServer):
    """A Hub with two users: `lab`, who is in the organisation `lab-org`, and `stranger`.

    Attributes:
        requests: in the order that they came in.
        page: how many entries a listing has at most.
        chunk: the size of the parts that larger files are sent in; none, and they are sent whole.
        limit: the size up to which a file is a regular one, unless its name says otherwise.
        url: where it is.
        storage_url: the same under the second name.
    """

    WRITE = "hf_" + "labWrites".ljust(34, "W")
    READ = "hf_" + "labReads".ljust(34, "R")
    OTHER = "hf_" + "strangerWrites".ljust(34, "S")
    EXPIRED = "hf_" + "labWrote".ljust(34, "E")

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.store = Repositories()
        self.users = {
            self.WRITE: User("lab", "write", ("lab-org",)),
            self.READ: User("lab", "read", ("lab-org",)),
            self.OTHER: User("stranger"),
        }
        self.requests: list[Asked] = []
        self.page = 1000
        self.chunk: int | None = None
        self.limit = 10_000_000
        self.key = secrets.token_hex(8)  # in the addresses that need no token
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.errors: list[BaseException] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.storage_url = f"http://localhost:{self.server_port}"
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self._before: dict[str, deque[Callable[[], object]]] = defaultdict(deque)

    def __enter__(self) -> HubServer:
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *arguments: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
        if self.errors and kind is None:
            raise self.errors[0]  # a mistake in the stand-in, which the client may have taken for a lost connection

    def handle_error(self, *arguments: object) -> None:
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, ConnectionError):
            self.errors.append(error)

    def fail(self, endpoint: str, times: int = 1, **fault) -> None:
        """Make the next requests to an endpoint fail; the keywords are the fields of `Fault`."""
        assert endpoint in ENDPOINTS
        self._faults[endpoint].extend([Fault(**fault)] * times)

    def mend(self) -> None:
        """Forget the faults that have not happened yet."""
        self._faults.clear()

    def before(self, endpoint: str, function: Callable[[], object]) -> None:
        """Call a function, once, before the next request to an endpoint is answered."""
        assert endpoint in ENDPOINTS
        self._before[endpoint].append(function)

    def asked(self, endpoint: str) -> int:
        """Return how many requests there were to an endpoint."""
        assert endpoint in ENDPOINTS
        return sum(asked.endpoint == endpoint for asked in list(self.requests))

    def sent(self) -> int:
        """Return how many bytes of files were uploaded, as large files or in commits."""
        return sum(asked.size for asked in list(self.requests) if asked.endpoint in ("put", "part", "commit"))

    def forget(self) -> None:
        """Empty the record."""
        self.requests.clear()

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        with self.store.lock:
            tree = self.store.repos[repo_id].at(revision).files
        return {path: file.content for path, file in tree.items()}

    def head(self, repo_id: str, revision: str = "main") -> str:
        """Return the id of a commit."""
        with self.store.lock:
            return self.store.repos[repo_id].at(revision).id

    def put(self, repo_id: str, files: dict[str, bytes | None], private: bool = False, revision: str = "main") -> str:
        """Commit files, without the client; `None` takes one away. The repository is made if it is not there."""
        with self.store.lock:
            repo = self.store.repos.get(repo_id) or self.store.create(repo_id, private)
            tree = dict(repo.at(revision).files)
            for path, content in files.items():
                tree.pop(path, None)
                if content is not None:
                    tree[path] = Stored(content, is_large(path, len(content), self.limit))
            return repo.commit(revision, tree, "put").id

    def exists(self, repo_id: str) -> bool:
        return repo_id in self.store.repos

    def tags(self, repo_id: str) -> dict[str, str]:
        """Return the ids of commits by the tags on them."""
        return dict(self.store.repos[repo_id].tags)

    def titles(self, repo_id: str, revision: str = "main") -> list[str]:
        """Return the titles of the commits, the last of them first."""
        with self.store.lock:
            return [commit.title for commit in self.store.repos[repo_id].history(revision)]

    def is_private(self, repo_id: str) -> bool:
        return self.store.repos[repo_id].private

    def collections(self) -> list[Collection]:
        with self.store.lock:
            return [replace(one, items=list(one.items)) for one in self.store.collections.values()]

    def take(self, asked: Asked) -> tuple[Callable[[], object], Fault]:
        """Write a request down; return what is to be called first, and what goes wrong."""
        with self.store.lock:
            self.requests.append(asked)
            functions, faults = self._before[asked.endpoint], self._faults[asked.endpoint]
            return functions.popleft() if functions else _nothing, faults.popleft() if faults else Fault()


def _nothing() -> None:
    """What is called before most requests."""


def serve() -> Iterator[HubServer]:
    """Run a Hub; a fixture is `hub = pytest.fixture(serve)`."""
    with HubServer() as hub:
        yield hub
