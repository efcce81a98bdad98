"""Where the files of a checkpoint are: a folder, or a repository at a commit; with patience for a busy Hub."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from difflib import get_close_matches
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from huggingface_hub import _CACHED_NO_EXIST, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session, parse_ratelimit_headers

from hf_perturb import demo
from hf_perturb.checkpoints.catalog import CATALOG
from hf_perturb.demo import located
from hf_perturb.errors import CheckpointError, HubError, ModelInputError

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")

ATTEMPTS = 5
LONGEST_WAIT = 60.0  # seconds; whoever is told to wait for longer is told so
_BUSY = (408, 429, 500, 502, 503, 504)
# of the HTTP library that the client is built on, which differs between its releases
_TRANSPORT_ERROR: Any = HfHubHTTPError.__bases__[0]
_HTTP: Any = sys.modules[_TRANSPORT_ERROR.__module__.partition(".")[0]]
# nobody there, as against somebody who is busy; asked again, it is so for half a minute
_NOBODY = (_HTTP.ConnectError, _HTTP.ConnectTimeout, _HTTP.ProxyError, _HTTP.UnsupportedProtocol, _HTTP.InvalidURL)
_reached: set[str] = set()  # the addresses that answered in this process: from then on a break may pass
# what ends like a file is not asked for on the Hub
_FILES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
KINDS = f"allowed: a folder of a model, a Hub id, an original .pt file, or {demo.NAME!r}"
_GGUF = "whose weights are quantised and of another format: use what they were made from"
_COMMIT = re.compile(r"snapshots/([0-9a-f]{40})/")
# in the order that Transformers looks for them
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Place:
    """A folder, or a repository on the Hub.

    Args:
        name: as it was given.
        location: the folder or Hub id that it stands for.
        hub: what finds a file on the Hub, some of `HUB_ARGUMENTS`.
        variant: Transformers' `variant=`, a part of the name of a file of weights.
        use_safetensors: Transformers' `use_safetensors=`; false for pickles alone.
        seen: the files that were found here, and what tells whether one is still the same.
        is_local: whether it is a folder; one that is away for a moment does not become a Hub id.
    """

    name: str
    location: str
    hub: Mapping[str, Any] = field(default_factory=dict)
    variant: str | None = None
    use_safetensors: bool | None = None
    seen: dict[Path, tuple[int, ...] | None] = field(default_factory=dict, compare=False)
    is_local: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_local", Path(self.location).is_dir())

    @property
    def arguments(self) -> dict[str, Any]:
        """What finds its files when Transformers looks for them."""
        files = {"variant": self.variant, "use_safetensors": self.use_safetensors}
        return {**self.hub, **{key: value for key, value in files.items() if value is not None}}

    @property
    def commit(self) -> str | None:
        """The commit that its files are of, `None` for a folder."""
        revision = None if self.is_local else self.hub.get("revision")
        return revision if revision is not None and constants.REGEX_COMMIT_OID.fullmatch(revision) else None

    def find(self, file: str) -> Path | None:
        """Return a file, fetched from the Hub if it is there; `None` where it is known that there is none.

        Raises:
            CheckpointError: if the repository is not there, or cannot be asked.
        """
        if problem := strange_token(self.hub.get("token")):
            raise ModelInputError(problem)
        if not self.is_local:
            return _fetched(self.location, file, self.hub)
        path = Path(self.location, self.hub.get("subfolder") or "", file)
        self.seen[path] = identity(path)
        try:
            return path if path.is_file() else None
        except OSError as error:  # a folder that may not be entered
            raise CheckpointError(f"{path} cannot be read: {error}") from error

    def is_as_found(self) -> bool:
        """Whether every file that was looked for is still the same; a commit on the Hub always is."""
        return all(identity(path) == before for path, before in self.seen.items())

    def configuration(self) -> tuple[dict[str, Any], Place]:
        """Read the `config.json`.

        Returns:
            Its content, and the same place at the commit that it came from.

        Raises:
            UndescribedError: if it is known that there is none.
            CheckpointError: if it cannot be fetched, or is no JSON object.
        """
        _refuse_what_is_no_place(self.name, self.location)
        absent = "no such file or folder, and not to be had from the Hub"
        if self.is_local:
            subfolder = self.hub.get("subfolder")
            absent = f"no config.json in its subfolder {subfolder!r}" if subfolder else "no config.json in it"
        kinds = KINDS
        if located(self.name) != self.location:
            kinds = f"{self.name!r} means the small base of the package to tools alone: hf_perturb.demo.folder() loads"
        try:
            path = self.find("config.json")
        except CheckpointError as error:
            kind = UnreachedError if isinstance(error, UnreachedError) else CheckpointError
            raise kind(f"{self.name!r}: {absent}{_meant(self.name)}; {kinds} ({error})") from error
        if path is None:
            meant = self.other_kind() if self.is_local else _meant(self.name)
            raise UndescribedError(f"{self.name!r}: {absent}{meant}; {kinds}", self)
        found = None if self.is_local else _COMMIT.search(path.as_posix())
        return read_json(path), replace(self, hub={**self.hub, "revision": found[1]}) if found else self

    def other_kind(self) -> str:
        """Say what a folder holds that is no model by itself, and what to do with it; nothing where there is none."""
        if self.find("adapter_config.json") is not None:
            return (
                ", but an adapter (adapter_config.json): put it into its base (merge_and_unload() of PEFT) and save"
                " that, or perturb the base"
            )
        if found := sorted(Path(self.location, self.hub.get("subfolder") or "").glob("*.gguf")):
            return f", but {found[0].name}, {_GGUF}"
        return ""

    @property
    def weight_names(self) -> list[str]:
        """The names that weights may go by, in the order that they are looked for."""
        safe = self.use_safetensors
        files = [file for file in WEIGHTS if safe is None or safe == ("safetensors" in file)]
        return [of_variant(file, self.variant) for file in files]

    def weights(self) -> list[Path]:
        """Return the files with the weights of a Transformers checkpoint; none where there are none.

        Raises:
            CheckpointError: if an index names a file that is not beside it.
        """
        for file in self.weight_names:
            if (path := self.find(file)) is None:
                continue
            if ".index." not in file:
                return [path]
            shards = {shard: self.find(shard) for shard in shards_of(path)}
            if absent := [shard for shard, found in shards.items() if found is None]:
                raise CheckpointError(f"{path} names {absent[0]!r}, which is not beside it")
            return [found for found in shards.values() if found is not None]
        return []


def of_variant(file: str, variant: str | None) -> str:
    """Return the name of a file of weights under Transformers' `variant=`, which goes before its last suffix."""
    stem, _, suffix = file.rpartition(".")
    return file if variant is None else f"{stem}.{variant}.{suffix}"


class UndescribedError(CheckpointError):
    """There is no `config.json`.

    Args:
        message: says so.
        place: where it was looked for.
    """

    def __init__(self, message: str, place: Place):
        super().__init__(message)
        self.place = place


class UnreachedError(HubError):
    """The Hub cannot be reached, or must not be asked: nobody knows what is there."""


def identity(path: Path) -> tuple[int, ...] | None:
    """Return what tells whether a file is still the one that it was, `None` where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: if the file holds anything else.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path}: got a JSON {type(stored).__name__}; allowed: an object")
    return stored


def shards_of(index: Path) -> list[str]:
    """Return the files that an index names.

    Raises:
        CheckpointError: if it is no index, or names what is not beside it.
    """
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is no index of shards: {error}") from error
    for shard in shards:
        if not isinstance(shard, str) or PurePosixPath(shard).name != shard or shard == "..":
            raise CheckpointError(f"{index}: names {shard!r}; allowed: a file beside it")
    return shards


def _refuse_what_is_no_place(name: str, location: str) -> None:
    """Raise if a name looks like a path that does not exist, or is that of a file."""
    path = Path(location)
    if path.is_file():
        raise CheckpointError(f"{name} is a file; allowed: a folder or a Hub id")
    if path.exists():
        return
    if path.suffix in _FILES:
        raise CheckpointError(f"{name}: no such file{_meant(name)}")
    if location.startswith(("/", ".", "~")) or location.count("/") > 1:
        raise CheckpointError(f"{name}: no such file or folder; was it moved?{_meant(name)}")


def _meant(name: str) -> str:
    """Ask whether a name that lies close was meant: what is beside it on the disk, or what the package knows."""
    path, known = Path(name), {name: name for name in (demo.NAME, *CATALOG)}
    with suppress(OSError):
        known |= {beside.name: str(path.with_name(beside.name)) for beside in path.parent.iterdir()}
    known.pop(path.name, None)
    close = get_close_matches(path.name, known, n=1, cutoff=0.75)
    return f" (did you mean {known[close[0]]!r}?)" if close else ""


def _fetched(name: str, file: str, hub: Mapping[str, Any]) -> Path | None:
    """Fetch a file from the Hub, again while the Hub is busy: the client does not."""
    given = {key: value for key, value in hub.items() if value not in (None, "")}
    revision, cache = given.get("revision") or "", given.get("cache_dir")
    whole = str(PurePosixPath(given.get("subfolder") or "", file))
    try:
        if constants.REGEX_COMMIT_OID.fullmatch(revision) and not given.get("force_download"):
            # a commit does not change, so what is known of it needs no asking
            known = try_to_load_from_cache(name, whole, cache_dir=cache, revision=revision)
            if known is not None:
                return None if known is _CACHED_NO_EXIST else Path(str(known))
        if not isinstance(try_to_load_from_cache(name, whole, cache_dir=cache, revision=revision or None), str):
            reach_hub(given)
        return Path(retried(lambda: hf_hub_download(name, file, **given), connections=True))
    except GatedRepoError as error:
        ask = f"ask for access on https://huggingface.co/{name}, and give the token of that account (hf auth login)"
        raise CheckpointError(f"{name!r} is gated; {ask}") from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        reason = str(error).strip().partition("\n")[0]
        what = f"no revision {revision!r} of it" if isinstance(error, RevisionNotFoundError) else "no such repository"
        private = "; a private one needs a token (hf auth login, or token=)"
        raise CheckpointError(f"{name!r}: {what} on the Hub ({reason}){private}") from error
    except EntryNotFoundError as error:
        if not isinstance(error, LocalEntryNotFoundError) or _known_missing(name, file, given):
            return None
        # a file that could not be asked for is not one that is known to be missing
        raise UnreachedError(f"{name!r}: {file} is not in the cache, and the Hub was not reached ({error})") from error
    except UnreachedError as error:
        if _known_missing(name, file, given):
            return None
        raise UnreachedError(f"{name!r}: {file} is not in the cache, and {error}") from error
    except (OSError, ValueError, _TRANSPORT_ERROR) as error:  # arguments that exclude each other are a ValueError
        if _known_missing(name, file, given):
            return None
        is_of_the_system = getattr(error, "errno", None) is not None
        where = f"{file} cannot be kept in the cache, {cache or constants.HF_HUB_CACHE}: " if is_of_the_system else ""
        raise CheckpointError(f"{name!r}: {where}{error}") from error


def reach_hub(hub: Mapping[str, Any] | None = None) -> None:
    """Raise if the Hub cannot be reached at all; the client would try for half a minute, for a mistyped name too.

    Args:
        hub: what finds a file; who wants local files alone is left to the client.

    Raises:
        UnreachedError: saying why.
    """
    endpoint = constants.ENDPOINT
    if (hub or {}).get("local_files_only"):
        return
    if constants.HF_HUB_OFFLINE:
        raise UnreachedError("the Hub must not be asked (HF_HUB_OFFLINE)")
    if endpoint in _reached:
        return
    try:
        get_session().head(endpoint, follow_redirects=False, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except _NOBODY as error:
        raise UnreachedError(f"the Hub cannot be reached ({str(error) or type(error).__name__})") from error
    except _TRANSPORT_ERROR:
        pass  # somebody is there
    _reached.add(endpoint)


def _known_missing(name: str, file: str, hub: Mapping[str, Any]) -> bool:
    places: dict[str, Any] = {"repo_id": name, "cache_dir": hub.get("cache_dir"), "revision": hub.get("revision")}
    whole = str(PurePosixPath(hub.get("subfolder") or "", file))
    if try_to_load_from_cache(filename=whole, **places) is _CACHED_NO_EXIST:
        return True
    # who is offline has what somebody fetched, and beside a configuration what is not there is not there
    offline = constants.HF_HUB_OFFLINE or hub.get("local_files_only")
    beside = str(PurePosixPath(whole).with_name("config.json"))
    return bool(offline) and isinstance(try_to_load_from_cache(filename=beside, **places), str)


def strange_token(token: Any) -> str | None:
    """Say that a token cannot be one, without saying it: the HTTP libraries would; `None` for one that may be."""
    if re.fullmatch(r"[\x21-\x7e]*", str(token or "")):
        return None
    return "token: it holds blanks, line ends or letters that none has; was it read from a file?"


def retried(call: Callable[[], Result], connections: bool = False) -> Result:
    """Call what asks the Hub, and again after a pause while it answers that it is busy; `Retry-After` is honoured.

    Args:
        call: may be called `ATTEMPTS` times.
        connections: also call again when the connection broke, so that nobody knows what became of the call.

    Raises:
        Exception: that of the last call, at once if it is of another kind or asks for more than `LONGEST_WAIT` seconds.
    """
    for attempt in range(1, ATTEMPTS):
        try:
            return call()
        except Exception as error:  # what is raised from an answer of the Hub differs between the libraries
            seconds = pause_after(error, attempt, connections)
            if seconds is None:
                raise
            time.sleep(seconds)
    return call()


def pause_after(error: BaseException, attempt: int, connections: bool) -> float | None:
    """Return the seconds to wait before the next call, `None` if there is to be none; see `retried`.

    Args:
        error: of the last call.
        attempt: which it was, counted from 1.
        connections: see there.
    """
    if any(isinstance(cause, LocalEntryNotFoundError) for cause in _causes(error)):
        return None  # the client has tried again already, or was told to stay offline
    patience = 2.0 ** (attempt - 1)
    answer = answer_behind(error)
    if answer is None:
        return patience if connections and is_broken_connection(error) else None
    if answer.status_code not in _BUSY:
        return None
    seconds = asked_wait(answer.headers)
    return patience if seconds is None else seconds if seconds <= LONGEST_WAIT else None


def answer_behind(error: BaseException) -> Any:
    """Return the answer of the Hub that an error comes from, `None` if it comes from something else."""
    return next((cause.response for cause in _causes(error) if isinstance(cause, HfHubHTTPError)), None)


def is_broken_connection(error: BaseException) -> bool:
    """Whether an error comes from a connection that broke, or an answer that was cut short."""
    return any(isinstance(cause, (_TRANSPORT_ERROR, json.JSONDecodeError)) for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that an answer asks to wait. Source: RFC 9110, 10.2.3; the Hub's `ratelimit` header."""
    said = headers.get("Retry-After", "").strip()
    if said.isdecimal():
        return float(said)
    # that header may come with any answer; as long as requests remain it asks for no patience
    if (limit := parse_ratelimit_headers(headers)) is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    try:
        return max(0.0, (parsedate_to_datetime(said) - datetime.now(timezone.utc)).total_seconds())
    except (TypeError, ValueError):
        return None
