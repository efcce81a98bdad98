"""What the tests of the stand-in for the Hub share: files, and short ways to call the client."""

from __future__ import annotations

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from support.hub_client import connected

WEIGHTS = bytes(range(256)) * 10
LARGE = "a/b/model.safetensors"
FILES = {"config.json": b"{}", LARGE: WEIGHTS, "a/notes.txt": b"notes"}
CARD = b"---\nlicense: mit\n---\n# A model\n"


def logged_in(monkeypatch, hub, tmp_path) -> HfApi:
    """Return the client of `lab`, who may write; a fixture is `api = pytest.fixture(logged_in)`."""
    connected(monkeypatch, hub, tmp_path / "home", hub.WRITE)
    return HfApi()


def commit(api: HfApi, files: dict[str, bytes], repo_id: str = "lab/x", **options):
    """Commit files through the client."""
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(repo_id, operations, commit_message="files", **options)


def status_of(call, *arguments, **options) -> int:
    """Return the status with which a call is refused."""
    with pytest.raises(HfHubHTTPError) as caught:
        call(*arguments, **options)
    return caught.value.response.status_code
