"""Original checkpoints from their publishers: resumed, checked, and kept where the original packages keep them."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

from filelock import FileLock
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get

from hf_perturb.checkpoints.catalog import Entry
from hf_perturb.checkpoints.origins.original import damage, strange
from hf_perturb.errors import CheckpointError

_CHUNK = 1 << 24  # bytes
_AGAIN = "delete it and run the same command again"


def download(entry: Entry) -> Path:
    """Fetch a checkpoint of the catalogue, and its contact regression beside it.

    The files go where torch, and so fair-esm and sequence-models, keep theirs: what one of them has fetched before is
    found, and the other way round.

    Args:
        entry: the checkpoint.

    Returns:
        The path of its weights.

    Raises:
        CheckpointError: if a file cannot be had, or is not what its publisher or the catalogue says. What came of it is
            kept, and the next call goes on from there.
    """
    folder = _folder()
    if entry.regression_url is not None:
        _fetch(entry.regression_url, folder, None)
    return _fetch(entry.url, folder, entry.sha256)


def _folder() -> Path:
    """Return where torch keeps checkpoints. Source: `torch.hub.get_dir`, which is asked where torch is there."""
    if (torch := sys.modules.get("torch")) is not None:
        return Path(torch.hub.get_dir(), "checkpoints")
    cache = os.getenv("XDG_CACHE_HOME", "~/.cache")
    return Path(os.getenv("TORCH_HOME", os.path.join(cache, "torch")), "hub", "checkpoints").expanduser()


def _fetch(url: str, folder: Path, sha256: str | None) -> Path:
    path = folder / PurePosixPath(urlparse(url).path).name
    partial, lock = path.with_name(path.name + ".incomplete"), path.with_name(path.name + ".lock")
    if path.exists():
        print(f"{path}: here already", file=sys.stderr)
        _check(path, sha256, url)
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # another process that wants the same file waits for this one, and finds it
        with FileLock(lock):
            if not path.exists():
                _receive(url, partial)
                _check(partial, sha256, url)
                partial.replace(path)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from error
    return path


def _receive(url: str, partial: Path) -> None:
    """Append to a file until it is whole: the client retries, shows its progress and compares the size."""
    try:
        with partial.open("ab") as file:
            # unpacked on the way, a file would not have the size that was announced
            headers = {"Accept-Encoding": "identity"}
            http_get(url, file, resume_size=file.tell(), headers=headers, displayed_filename=partial.stem)
    except HfHubHTTPError as error:
        # nothing is left to send: what was received before is all there is, and nobody had checked it yet
        if error.response.headers.get("Content-Range") == f"bytes */{partial.stat().st_size}":
            return
        if error.response.status_code == 416:
            raise CheckpointError(f"{partial} is longer than what {url} has; {_AGAIN}") from error
        raise CheckpointError(f"{url}: {_first_line(error)}") from error
    except Exception as error:  # the client's errors are those of its HTTP library, which differ between its releases
        size = partial.stat().st_size
        kept = f"{size:,} bytes are kept, run the same command again to go on" if size else "nothing was received"
        raise CheckpointError(f"{url}: {_first_line(error)}; {kept}") from error


def _check(path: Path, sha256: str | None, url: str) -> None:
    """Raise if a file is not what was published; the sum of a zip's entries tells where there is no checksum."""
    if sha256 is not None:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        problem = "" if digest.hexdigest() == sha256 else f"its sha256 is {digest.hexdigest()}, published is {sha256}"
    else:
        problem = damage(path) or strange(path)
    if problem:
        raise CheckpointError(f"{path} is not what {url} has: {problem}; {_AGAIN}")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
