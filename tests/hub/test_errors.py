"""What the Hub refuses, in words that say what to do, and without a token in them."""

from __future__ import annotations

import logging

import pytest
from support.hub_client import connected, quiet_uploads
from support.pushing import REPO

import hf_perturb
from hf_perturb.hub.errors import explained

pytestmark = [quiet_uploads, pytest.mark.usefixtures("naps")]


def test_tokens(hub, push, folders, monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    expected = {
        None: "to push needs a token of the Hub: log in with `hf auth login`, or set HF_TOKEN",
        hub.EXPIRED: "the Hub does not know the token",
        "hf_" + "unknown".ljust(34, "U"): "the Hub does not know the token",
        hub.READ: "the token may not do that: it needs the role 'write'",
        hub.OTHER: "the token may not do that",
    }
    for token, message in expected.items():
        connected(monkeypatch, hub, tmp_path / "home", token)
        assert message in push.refused(folders / "carp")
        assert not hub.exists(REPO)
    hub.put("lab/there", {"notes.txt": b"old"}, private=True)
    before = hub.head("lab/there")
    for token in (hub.EXPIRED, hub.READ, hub.OTHER):
        connected(monkeypatch, hub, tmp_path / "home", token)
        push.refused(folders / "carp", repo_id="lab/there")
        assert hub.head("lab/there") == before
    assert hub.sent() == 0
    for token in filter(None, expected):
        assert token not in push.everything + caplog.text


def test_whatever_the_client_raises_is_explained():
    secret = "api_org_SECRET"
    with (
        pytest.raises(hf_perturb.HubError) as caught,
        explained("lab/x: to send the files", "main is as it was", secret),
    ):
        raise RuntimeError(f"CAS: https://x.y/z?sig=abc {secret} hf_{34 * 'a'}\nmore")
    said = str(caught.value)
    assert said.startswith("lab/x: to send the files failed: CAS: https://x.y/z?*** ")
    assert said.endswith("; main is as it was: run the same command again")
    assert not {secret, "sig=abc", "hf_aaa"} & set(said.split())
    assert secret not in said
