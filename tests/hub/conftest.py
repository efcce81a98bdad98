"""What the tests of publishing start from: a Hub, folders to publish, and the command that does it."""

from __future__ import annotations

import pytest
from support.hub_server import serve
from support.pushing import Pusher, built_folders, connect

hub = pytest.fixture(serve)
naps = pytest.fixture(connect)
folders = pytest.fixture(built_folders, scope="session")


@pytest.fixture
def push(capsys):
    return Pusher(capsys)
