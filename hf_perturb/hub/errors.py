"""What the Hub refuses, in words that say what to do; no token is ever among them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import HfHubHTTPError

from hf_perturb.checkpoints.source import answer_behind, asked_wait, is_broken_connection
from hf_perturb.errors import HfPerturbError, HubError

_SAID = {
    400: "the Hub takes it for wrong",
    401: "the Hub does not know the token (expired, revoked or mistyped): log in with `hf auth login`, or set HF_TOKEN,"
    " and run the same command again",
    403: "the token may not do that: it needs the role 'write', and its user a place in that namespace",
    404: "it is not there, or the token may not see it",
    409: "it is there already",
    412: "somebody else changed the branch in between",
}
_LASTING = (400, 401, 403, 404)


@contextmanager
def explained(doing: str, state: str, token: str = "") -> Iterator[None]:
    """Turn what the client raises into a `HubError` that says what happened, how things are now, and what to do.

    Args:
        doing: what was tried, such as `lab/x: the commit`.
        state: how things are now.
        token: what must not be said.
    """
    try:
        yield
    except HfPerturbError:
        raise
    except Exception as error:  # the client's errors are those of its HTTP library, of its helpers, and plain ones
        answer = answer_behind(error)
        remedy = "" if answer is not None and answer.status_code in _LASTING else ": run the same command again"
        raise HubError(f"{doing} failed: {redacted(reason(error), token)}; {state}{remedy}") from None


def reason(error: BaseException) -> str:
    """Say why the Hub did not do what it was asked."""
    answer = answer_behind(error)
    if answer is None:
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        return f"the connection broke ({said})" if is_broken_connection(error) else said
    status, said = answer.status_code, _message(error)
    if status == 429:
        seconds = asked_wait(answer.headers)
        return "too many requests" + (f"; the Hub asks to wait {seconds:.0f} s" if seconds is not None else "")
    if status >= 500:
        return f"the Hub is not well (status {status})"
    return _SAID.get(status, f"status {status}") + (f" (it says: {said})" if said else "")


def redacted(text: str, token: str = "") -> str:
    """Return a text without tokens, and without the signatures of addresses."""
    if token:
        text = text.replace(token, "***")
    text = re.sub(r"\bhf_\w{8,}", "hf_***", text)
    return re.sub(r"(https?://[^\s?]+)\?\S+", r"\1?***", text)


def _message(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    return " ".join(str(getattr(cause, "server_message", None) or error).split())
