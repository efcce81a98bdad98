"""What the Hub refuses, in words that say what to do; no token is ever among them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import HfHubHTTPError

from hf_perturb.errors import HfPerturbError, HubError
from hf_perturb.models.fetching import answer_behind, asked_wait, is_broken_connection

_SAID = {
    401: "the Hub does not know the token (expired, revoked or mistyped): log in with `hf auth login`, or set HF_TOKEN",
    403: "the token may not do that: it needs the role 'write', and its user a place in that namespace",
    404: "there is no such repository or revision, or the token may not see it",
    409: "it is there already",
    412: "somebody else changed the branch in between",
}


@contextmanager
def explained(doing: str, state: str) -> Iterator[None]:
    """Turn what the client raises into an error that says what happened, how things are now, and what to do.

    Args:
        doing: what was tried, such as `lab/x: the commit`.
        state: how things are now, and the remedy.

    Raises:
        HubError: in place of the client's own errors.
    """
    try:
        yield
    except HfPerturbError:
        raise
    except Exception as error:  # the client's errors are those of its HTTP library, and plain ones on top
        if answer_behind(error) is None and not is_broken_connection(error):
            raise
        raise HubError(f"{doing} failed: {reason(error)}; {state}") from None


def reason(error: BaseException) -> str:
    """Say why the Hub did not do what it was asked."""
    answer = answer_behind(error)
    if answer is None:
        return f"the connection broke ({redacted(str(error).strip().partition(chr(10))[0] or type(error).__name__)})"
    status, said = answer.status_code, redacted(_message(error))
    if status == 429:
        seconds = asked_wait(answer.headers)
        return "too many requests" + (f"; the Hub asks to wait {seconds:.0f} s" if seconds is not None else "")
    if status >= 500:
        return f"the Hub is not well (status {status})"
    return _SAID.get(status, f"status {status}") + (f" (it says: {said})" if said else "")


def redacted(text: str) -> str:
    """Return a text without tokens, and without the signatures of addresses."""
    text = re.sub(r"\bhf_\w{8,}", "hf_***", text)
    return re.sub(r"(https?://[^\s?]+)\?\S+", r"\1?***", text)


def _message(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    return " ".join(str(getattr(cause, "server_message", None) or error).split())
