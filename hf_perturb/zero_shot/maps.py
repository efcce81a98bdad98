"""A folder of contact maps: a `.npy` a protein that is whole or absent, and an index that tells what they are."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_perturb.embedding.manifest import canonical, differences
from hf_perturb.errors import EmbeddingsError, FolderExistsError
from hf_perturb.storage.folders import scratch_folder, sync

INDEX = "index.json"
FORMAT = "hf_perturb contacts/1"
PLOTS = "plots"  # the folder of pictures, beside those of the networks
_OURS = re.compile(r"\d{6,}\.(npy|png)")


@dataclass(frozen=True)
class Protein:
    """A record of the FASTA, whose map is in a file named by its number, for an id may be anything."""

    number: int  # from 1 on, in the order of the FASTA
    id: str
    length: int

    @property
    def file(self) -> str:
        """The name of the file of its map."""
        return f"{self.number:06d}.npy"

    def to_dict(self) -> dict[str, Any]:
        """Return what the index says of it."""
        return {"file": self.file, "id": self.id, "length": self.length}


@dataclass(frozen=True)
class Maps:
    """A folder of contact maps that is being written, and what is in it, or is to be.

    Args:
        out: the folder.
        scratch: where files are written before they get their names.
        inputs: what decides the maps, as JSON.
        described: what is only said of them, as JSON.
        proteins: all that have a map.
    """

    out: Path
    scratch: Path
    inputs: Mapping[str, Any]
    described: Mapping[str, Any]
    proteins: Sequence[Protein] = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """The digest of the inputs."""
        return _fingerprint(self.inputs)

    def missing(self) -> list[Protein]:
        """List the proteins without a whole map."""
        return [protein for protein in self.proteins if not _is_whole(self.out / protein.file, protein.length)]

    def write(self, protein: Protein, contacts: NDArray[np.float32]) -> None:
        """Write the map of a protein, whole or not at all.

        Raises:
            EmbeddingsError: if it cannot be written.
        """
        with self._placed(protein.file) as path:
            np.save(path, np.ascontiguousarray(contacts, np.float32), allow_pickle=False)

    def state(self, complete: bool, **report: Any) -> None:
        """Write the index: what the folder is to hold, and whether it does."""
        said = {"format": FORMAT, "complete": complete, "fingerprint": self.fingerprint}
        said |= {"inputs": self.inputs, "described": self.described, **report}
        content = {**said, "maps": [protein.to_dict() for protein in self.proteins]}
        with self._placed(INDEX) as path:
            path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @contextmanager
    def _placed(self, name: str) -> Iterator[Path]:
        fresh = self.scratch / name
        with _told(self.out / name):
            yield fresh
            sync(fresh)
            os.replace(fresh, self.out / name)


@contextmanager
def open_maps(
    out: Path,
    inputs: Mapping[str, Any],
    described: Mapping[str, Any],
    proteins: Sequence[Protein],
    force: bool = False,
) -> Iterator[Maps]:
    """Begin a folder of contact maps, or continue with one, which no other process may write meanwhile.

    What is in the folder and of other `inputs` is removed if `force`, and so are the pictures that show it.

    Raises:
        FolderExistsError: if there is something else by its name, or in it.
        FolderLockedError: if another process writes it.
        EmbeddingsError: if it is of other inputs, or damaged.
    """
    with scratch_folder(out) as scratch:
        maps = Maps(out, scratch, json.loads(canonical(dict(inputs))), described, proteins)
        found = refuse_foreign(out)
        if found is not None and _fingerprint(found["inputs"]) != maps.fingerprint:
            if not force:
                raise EmbeddingsError(
                    f"{out} holds other contact maps: {'; '.join(differences(found['inputs'], maps.inputs))}; choose"
                    " another folder, or replace them with --force"
                )
            # the index goes last: who is killed here leaves a folder that is still ours
            for path in [*(out.parent / PLOTS).glob("*.png"), *out.iterdir()]:
                if _OURS.fullmatch(path.name):
                    path.unlink()
            found = None
        if found is None:
            with _told(out):
                out.mkdir(exist_ok=True)
            maps.state(complete=False)
        yield maps


def refuse_foreign(out: Path) -> dict[str, Any] | None:
    """Return the index of a folder, `None` where there is nothing yet; raise if there is something else.

    Raises:
        FolderExistsError: naming what is there.
        EmbeddingsError: if the index is damaged, or of a newer release.
    """
    if not os.path.lexists(out):
        return None
    if not out.is_dir():
        raise FolderExistsError(f"{out} is no folder; choose another name for the folder of contact maps")
    if (out / INDEX).exists():
        return _read_index(out)
    if names := sorted(os.listdir(out)):
        raise FolderExistsError(
            f"{out} holds {names[0]} and is no folder of contact maps, so nothing in it is replaced; choose another"
        )
    return None


def read_contacts(out: str | Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Read a folder of contact maps, a protein at a time, in the order of the FASTA.

    Args:
        out: the folder of one network, such as `OUT/base`.

    Yields:
        The id, and the probabilities, `(length, length)`.

    Raises:
        FolderExistsError: if it is another folder.
        EmbeddingsError: if there is none, it is not complete, or it is damaged.
    """
    out = Path(out)
    index = refuse_foreign(out)
    if index is None:
        raise EmbeddingsError(f"{out} holds no contact maps; `hf-perturb contacts` writes such a folder")
    if not index["complete"]:
        raise EmbeddingsError(f"{out} is not complete; run the same `hf-perturb contacts` again to continue")
    for entry in index["maps"]:
        yield entry["id"], read_map(out / entry["file"])


def read_map(path: Path) -> NDArray[np.float32]:
    """Read one map.

    Raises:
        EmbeddingsError: if it is missing or damaged.
    """
    try:
        contacts: NDArray[np.float32] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise EmbeddingsError(f"{path} is damaged: {error}; run the same `hf-perturb contacts` again") from error
    return contacts


def _read_index(out: Path) -> dict[str, Any]:
    path = out / INDEX
    try:
        content = json.loads(path.read_bytes())
        found = content.get("format")
        if not str(found).startswith(FORMAT.partition("/")[0]):
            raise FolderExistsError(f"{out} is no folder of contact maps: the format of its {INDEX} is {found!r}")
        if found != FORMAT:
            raise EmbeddingsError(f"{path}: got format {found!r}; allowed: {FORMAT!r}; update hf-perturb")
        if _fingerprint(content["inputs"]) != content["fingerprint"]:
            raise ValueError(f"its inputs do not have the fingerprint {content['fingerprint']}")
    except (EmbeddingsError, FolderExistsError):
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EmbeddingsError(f"{path} is damaged: {error}; remove the folder, or choose another") from error
    return dict(content)


def _fingerprint(inputs: Mapping[str, Any]) -> str:
    return "sha256:" + hashlib.sha256(canonical(dict(inputs)).encode()).hexdigest()


def _is_whole(path: Path, length: int) -> bool:
    """Whether a file is a map of so many residues; what is in it is not looked at."""
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, kind = np.lib.format.read_array_header_1_0(file)
            size = file.tell() + 4 * length * length
        return (shape, kind, path.stat().st_size) == ((length, length), np.dtype(np.float32), size)
    except (OSError, ValueError):
        return False


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say of an error of the system what could not be written, and that the rest stays."""
    try:
        yield
    except OSError as error:
        raise EmbeddingsError(
            f"{path} cannot be written: {error}; the maps that are written stay: mend that, and run the same command"
            " again to continue"
        ) from error
