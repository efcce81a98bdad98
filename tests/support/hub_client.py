"""The real client of the Hub, pointed at the stand-in on this machine."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

import pytest
import transformers
from huggingface_hub import _tree_cache, close_session, constants, hf_api
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import _cache_manager, _detect_agent

from support.hub_server import HubServer

_HOSTS = "127.0.0.1,localhost"
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE")
_ELSEWHERE = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_XET_CACHE", "HF_ASSETS_CACHE", "HF_TOKEN_PATH")
_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_IMPLICIT_TOKEN")


#: The HTTP library that the client is built on, which differs between its releases.
http = import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0])
#: For modules whose tests upload large files: the client says `data` where newer HTTP libraries want `content`.
quiet_uploads = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


class _AtTheEnd(dict):
    """Calls what is in it when it is taken out: `monkeypatch` does that with what it has put into a dictionary."""

    def __delitem__(self, function) -> None:
        super().__delitem__(function)
        function()


def connected(monkeypatch, hub: HubServer, home: Path, token: str | None = None) -> None:
    """Point the client inside this process at a Hub, until the test ends.

    The client and Transformers read the environment when they are imported, so what they made of it is set. A test may
    call this again, to go on with another token or from another machine, which is another `home`.

    Args:
        monkeypatch: pytest's.
        hub: where to.
        home: the folder of caches and tokens.
        token: what is in `HF_TOKEN`; none, and the user is not logged in.
    """
    close_session()
    monkeypatch.setitem(_AtTheEnd(), close_session, None)
    values = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": False,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_ASSETS_CACHE": str(home / "assets"),
        "HF_XET_CACHE": str(home / "xet"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "AGENT_HARNESSES_PATH": str(home / ".agent_harnesses.json"),
    }
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value, raising=False)
    for module, name, value in (
        (_cache_manager, "HF_HUB_CACHE", values["HF_HUB_CACHE"]),
        (hf_api.api, "endpoint", hub.url),  # that of `huggingface_hub.create_repo` and the like
        (hf_api.api, "_whoami_cache", {}),
        (transformers.utils.hub, "_hf_api", None),  # made when it is first asked for
        (_tree_cache, "_IN_MEMORY_TREE_CACHE", {}),
        (_detect_agent, "_registry", {"standardEnvVars": [], "harnesses": {}}),  # or it asks the Hub
    ):
        monkeypatch.setattr(module, name, value, raising=False)  # older clients lack some
    for name in _TOKENS:
        monkeypatch.delenv(name, raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, _HOSTS)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)


def environment(hub: HubServer, home: Path, token: str | None = None) -> dict[str, str]:
    """Return the environment of a process whose client is to call a Hub; the arguments are those of `connected`."""
    left = {name: value for name, value in os.environ.items() if name not in (*_TOKENS, *_ELSEWHERE, *_SWITCHES)}
    there = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": _HOSTS,
        "no_proxy": _HOSTS,
    }
    return left | there | ({} if token is None else {"HF_TOKEN": token})
