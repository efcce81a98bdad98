"""What the tests of downloads share: files to serve, a cache of their own, and what is in it."""

from __future__ import annotations

import hashlib
import io
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import close_session, constants

import hf_perturb
from hf_perturb.checkpoints.catalog import CATALOG, Entry
from hf_perturb.checkpoints.downloads import download
from support.file_server import FileServer

PIECE = 1000  # bytes that the client takes at a time


def saved(seed: int = 0, **options) -> bytes:
    """Return a file of torch with 5,000 random bytes in it."""
    file = io.BytesIO()
    bits = torch.randint(0, 256, (5000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    torch.save({"model": {"tensor": bits}}, file, **options)
    return file.getvalue()


CONTENT = saved()
LEGACY = saved(_use_new_zipfile_serialization=False)
REGRESSION = saved(1)
BITS = CONTENT.index(torch.load(io.BytesIO(CONTENT), weights_only=True)["model"]["tensor"].numpy().tobytes())


def sum_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def online(monkeypatch, cache: Path) -> None:
    """Let the client reach this machine, and keep its files, and torch's, in a folder of the test."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", PIECE)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TORCH_HOME", str(cache))


def count_naps(monkeypatch) -> list[float]:
    """Return how long the client would have slept between attempts."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


def cache_folder(monkeypatch, tmp_path, naps):
    """Return the folder that downloads come to."""
    close_session()  # it was opened under another environment, perhaps
    online(monkeypatch, tmp_path / "cache")
    yield tmp_path / "cache" / "hub" / "checkpoints"
    close_session()


def published(server: FileServer, content: bytes = CONTENT, checksum: str | None = None) -> Entry:
    """Publish a file, and return an entry with its address and no contact regression."""
    url = server.publish("/files/tiny.pt?download=1", content)
    return replace(CATALOG["carp_600k"], url=url, sha256=checksum)


def files_in(folder: Path) -> list[str]:
    """List a folder; locks may stay."""
    return sorted(file.name for file in folder.glob("*") if file.suffix != ".lock")


def left(folder: Path, content: bytes) -> Path:
    """Leave what an interrupted download leaves."""
    folder.mkdir(parents=True)
    partial = folder / "tiny.pt.incomplete"
    partial.write_bytes(content)
    return partial


def refused(entry: Entry) -> str:
    """Return how a download is refused."""
    with pytest.raises(hf_perturb.CheckpointError) as caught:
        download(entry)
    return str(caught.value)
