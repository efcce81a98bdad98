"""The folder of a study: whose it is, what it is of, and who works in it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hf_perturb.embedding.manifest import canonical, differences
from hf_perturb.errors import FolderExistsError
from hf_perturb.storage.folders import LOCK, folders_made, lock, nothing_written, replaced_file, temporary
from hf_perturb.studies.networks import FASTA
from hf_perturb.studies.tables import REPORT

STATE, PROBED, H5, PREDICTIONS = "study.json", "probes", "h5", "predictions.parquet"
FORMAT = "hf_perturb study/1"
WRITTEN = ("layers.svg", "layers.png", "methods.md", "summary.csv", REPORT, "scores.parquet", PREDICTIONS)
_TEMPORARY = re.compile(temporary())
_SHOWN = 5  # differences that a message names


@contextmanager
def held(out: Path, inputs: Mapping[str, Any], force: bool) -> Iterator[str]:
    """Hold the folder of a study, and give the digest of what decides it.

    Raises:
        FolderLockedError: if another process holds it.
        FolderExistsError: if it holds something else, or another study and not `force`.
        CheckpointError: if it cannot be written.
    """
    key = _key(inputs)
    _state_of(out)
    with ExitStack() as stack:
        stack.enter_context(folders_made(out))
        if stack.enter_context(lock(out, out / LOCK)):  # else it may be another's, who is at it
            for path in out.iterdir():
                if _is_left(path) and path.name != LOCK:
                    path.unlink(missing_ok=True)
        there = _state_of(out)
        if there is not None and there["fingerprint"] != key:
            if not force:
                said = _differences(there["inputs"], inputs)
                raise FolderExistsError(
                    f"{out} holds another study: {said}; choose another folder, or replace it with --force"
                )
            for name in (PROBED, H5):
                shutil.rmtree(out / name, ignore_errors=True)
            for name in WRITTEN:
                (out / name).unlink(missing_ok=True)
        if there is None or there["fingerprint"] != key:
            content = {"format": FORMAT, "fingerprint": key, "inputs": inputs}
            with nothing_written(out / STATE), replaced_file(out / STATE) as file:
                file.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
        try:
            yield key
        except BaseException:
            # nothing was done, as of a layer that is not there: the right command is not to be refused for it
            if there is None and {path.name for path in out.iterdir()} <= {STATE, FASTA, LOCK}:
                for name in (STATE, FASTA):
                    (out / name).unlink(missing_ok=True)
            raise


def _differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Say which of what decides a study differs from what is asked for."""
    said = differences(*(_in_short(inputs) for inputs in (there, asked)))
    more = len(said) - _SHOWN
    return "; ".join(said[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _in_short(inputs: Mapping[str, Any]) -> dict[str, Any]:
    # the digest of a network says what its record does
    return {**inputs, "networks": {name: each["digest"] for name, each in inputs["networks"].items()}}


def _state_of(out: Path) -> dict[str, Any] | None:
    """Read what a folder is a study of; `None` if there is nothing in it, or no such folder.

    Raises:
        FolderExistsError: if it holds something, and no study, or one that this release cannot continue.
    """
    if out.exists() and not out.is_dir():
        raise FolderExistsError(f"{out} is no folder; choose another name for the folder of the study")
    # leftovers of killed runs are nobody's
    names = sorted(path.name for path in out.iterdir() if not _is_left(path)) if out.exists() else []
    if STATE not in names:
        if names:
            raise FolderExistsError(
                f"{out} holds {names[0]} and is no study, so nothing in it is replaced; choose another"
            )
        return None
    try:
        found: dict[str, Any] = json.loads((out / STATE).read_text(encoding="utf-8"))
        if found["format"] == FORMAT and found["fingerprint"] == _key(found["inputs"]):
            return found
        why = f"the format is {found['format']!r}, not {FORMAT!r}" if found["format"] != FORMAT else "it was edited"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"
    raise FolderExistsError(f"{out / STATE} is not that of a study, or damaged ({why}); choose another folder")


def _is_left(path: Path) -> bool:
    return path.name == LOCK or _TEMPORARY.fullmatch(path.name) is not None


def _key(inputs: Mapping[str, Any]) -> str:
    return "sha256:" + hashlib.sha256(canonical(inputs).encode()).hexdigest()
