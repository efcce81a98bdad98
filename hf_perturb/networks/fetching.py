# Copyright 2026 The hf_perturb authors. All rights reserved.
#
# Licensed under the MIT License: see the LICENSE file at the root of the repository.
"""Files of a folder or a repository, and patience with a Hub that is busy."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from huggingface_hub import _CACHED_NO_EXIST, constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import parse_ratelimit_headers
from transformers.utils.hub import cached_file

from .record import ModelInputError

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")

ATTEMPTS = 5
LONGEST_WAIT = 60.0  # seconds; whoever is told to wait for longer is told so
_BUSY = (408, 429, 500, 502, 503, 504)
# of the HTTP library that the client is built on, which differs between its releases
_TRANSPORT_ERROR: Any = HfHubHTTPError.__bases__[0]

Result = TypeVar("Result")


def cached(name: Any, file: str, hub: Mapping[str, Any]) -> str | None:
    """Find a file in a folder, or fetch it from the Hub, again while the Hub is busy: the client does not.

    Args:
        name: a folder or a Hub id.
        file: its path there.
        hub: what `from_pretrained` takes to find a file on the Hub, some of `HUB_ARGUMENTS`.

    Returns:
        Its path on this machine, `None` where it is known that there is none.

    Raises:
        OSError: if the repository is not there, or cannot be asked.
    """
    if problem := strange_token(hub.get("token")):
        raise ModelInputError(problem)
    try:
        path: str | None = retried(lambda: cached_file(name, file, **hub), connections=True)
    except (OSError, _TRANSPORT_ERROR) as error:
        if Path(name).is_dir() or _known_missing(name, file, hub):
            return None
        # a file that could not be asked for is not one that is known to be missing
        raise OSError(f"{str(name)!r}: {error}") from error
    return path


def strange_token(token: Any) -> str | None:
    """Say that a token cannot be one, without saying it: the HTTP libraries would; `None` for one that may be."""
    if re.fullmatch(r"[\x21-\x7e]*", str(token or "")):
        return None
    return "token: it holds blanks, line ends or letters that none has; was it read from a file?"


def _known_missing(name: Any, file: str, hub: Mapping[str, Any]) -> bool:
    places = {"repo_id": name, "cache_dir": hub.get("cache_dir"), "revision": hub.get("revision")}
    whole = str(PurePosixPath(hub.get("subfolder") or "", file))
    try:
        if try_to_load_from_cache(filename=whole, **places) is _CACHED_NO_EXIST:
            return True
        # who is offline has what somebody fetched, and beside a configuration what is not there is not there
        offline = constants.HF_HUB_OFFLINE or hub.get("local_files_only")
        beside = str(PurePosixPath(whole).with_name("config.json"))
        return bool(offline) and isinstance(try_to_load_from_cache(filename=beside, **places), str)
    except HFValidationError:  # a name that no repository can have
        return False


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
