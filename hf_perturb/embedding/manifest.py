"""The manifest of a folder of embeddings: what they are of, what decides them, and which shards there are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_perturb.errors import EmbeddingsError, FolderExistsError

MANIFEST = "_manifest.json"
FORMAT = "hf_perturb embeddings/1"
EMBEDDED = "embedded"  # column of how many residues of a record the network saw, where that may not be all
KEPT = "kept"  # column of how many residues of a record have vectors, where some are chosen
_SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True)
class Shard:
    """A run of records that one file holds."""

    number: int  # from 0 on, in the order of the input
    first: int  # number of its first record
    records: int
    residues: int
    bytes: int | None = None  # of the file, known when all are written

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"shard-{self.number:06d}.parquet"

    def to_dict(self) -> dict[str, Any]:
        """Return what the manifest says of it."""
        kept = {key: value for key, value in asdict(self).items() if key != "number" and value is not None}
        return {"file": self.file, **kept}


@dataclass(frozen=True)
class Schema:
    """The columns of a shard beside `id` and `length`, in order."""

    integers: tuple[str, ...] = ()  # names of further int32 columns
    # numbers of float32 in the one vector that each record, or each residue, has, by name of the column
    vectors: Mapping[str, int] = field(default_factory=dict)
    residues: Mapping[str, int] = field(default_factory=dict)
    # whether there may be records without vectors; then a vector a record is a list of any size, else of a fixed one
    nullable: bool = False

    @property
    def counts(self) -> str:
        """The column that says how many residues of a record have vectors."""
        return next((name for name in (KEPT, EMBEDDED) if name in self.integers), "length")


@dataclass(frozen=True)
class Manifest:
    """What `_manifest.json` says."""

    inputs: dict[str, Any]  # what decides the embeddings, as JSON
    described: dict[str, Any]  # what is only said of them, as JSON
    schema: Schema
    shards: tuple[Shard, ...]  # those planned
    complete: bool = False  # whether all are written
    report: dict[str, Any] = field(default_factory=dict)  # what the run that completed them says, as JSON

    @property
    def fingerprint(self) -> str:
        """The digest of the inputs."""
        return "sha256:" + hashlib.sha256(canonical(self.inputs).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return what the file says."""
        return {
            "format": FORMAT,
            "complete": self.complete,
            "fingerprint": self.fingerprint,
            "inputs": self.inputs,
            "described": self.described,
            "columns": asdict(self.schema),
            "shards": [shard.to_dict() for shard in self.shards],
            "report": self.report,
        }

    def differences(self, other: Manifest) -> list[str]:
        """Say where another manifest wants something else than this one, which is in the folder."""
        if self.fingerprint != other.fingerprint:
            return differences(self.inputs, other.inputs)
        return _differing(self._planned(), other._planned())

    def _planned(self) -> dict[str, str]:
        plan = [(shard.records, shard.residues) for shard in self.shards]
        return {"columns": canonical(asdict(self.schema)), "shards": f"{len(plan)} of {canonical(plan)}"}


def canonical(content: Any) -> str:
    """Write JSON in the one way that is digested.

    Raises:
        TypeError: if it is no JSON.
    """
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """Say where inputs that are asked for, as JSON, are others than those of a folder."""
    return _differing(dict(_leaves(here)), dict(_leaves(there)))


def _differing(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    return [
        f"{name}: {_short(here.get(name, 'nothing'))} in the folder, {_short(there.get(name, 'nothing'))} asked for"
        for name in {**here, **there}
        if here.get(name) != there.get(name)
    ]


def read_manifest(out: Path) -> Manifest:
    """Read the manifest of a folder.

    Raises:
        FolderExistsError: if something is there, and no embeddings.
        EmbeddingsError: if nothing is there, or the manifest is damaged or of a newer release.
    """
    path = out / MANIFEST
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        if not out.exists():
            raise EmbeddingsError(f"{out} does not exist; `hf-perturb embed` writes such a folder") from error
        raise FolderExistsError(f"{out} is no folder of embeddings: it holds no {MANIFEST}") from error
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    found = content.get("format") if isinstance(content, dict) else None
    if not str(found).startswith("hf_perturb embeddings/"):
        raise FolderExistsError(f"{out} is no folder of embeddings: the format of its {MANIFEST} is {found!r}")
    if found != FORMAT:
        raise EmbeddingsError(f"{path}: got format {found!r}; allowed: {FORMAT!r}; update hf-perturb")
    try:
        manifest = _parsed(content)
        stated = content["fingerprint"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, repr(error)) from error
    if manifest.fingerprint != stated:
        raise _damaged(path, f"its inputs have the fingerprint {manifest.fingerprint}, it says {stated}")
    return manifest


def _parsed(content: dict[str, Any]) -> Manifest:
    columns, entries = content["columns"], content["shards"]
    shards = tuple(
        Shard(number, int(entry["first"]), int(entry["records"]), int(entry["residues"]), entry.get("bytes"))
        for number, entry in enumerate(entries)
    )
    if [entry["file"] for entry in entries] != [shard.file for shard in shards]:
        raise ValueError("its shards are not in order")
    schema = Schema(**{**columns, "integers": tuple(columns["integers"])})
    inputs, described, report = (dict(content[key]) for key in ("inputs", "described", "report"))
    return Manifest(inputs, described, schema, shards, content["complete"] is True, report)


def _damaged(path: Path, why: str) -> EmbeddingsError:
    return EmbeddingsError(f"{path} is damaged: {why}; remove the folder and begin again, or choose another")


def _leaves(content: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(content, Mapping) and content:
        for key, value in content.items():
            yield from _leaves(value, f"{name}.{key}" if name else key)
    else:
        yield name, canonical(content)


def _short(text: str) -> str:
    # both ends: paths differ in one, digests in the other
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}...{text[-_SHOWN // 2 :]}"
