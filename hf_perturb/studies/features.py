"""What probes are trained on: the representations of networks, and plain baselines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_perturb.embedding.manifest import Manifest, read_manifest
from hf_perturb.embedding.read import read_embeddings, read_lengths
from hf_perturb.errors import StudyError
from hf_perturb.perturbation import Perturbation
from hf_perturb.storage.folders import nothing_written, replaced_file
from hf_perturb.studies.dataset import Dataset
from hf_perturb.studies.rows import Numbers, Rows

Features = NDArray[np.float32]

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
GUESS, SHUFFLED = "guess", "shuffled labels"
# columns of a one-hot encoding that a baseline may have
_WIDEST = 20_000


@dataclass(frozen=True)
class Source:
    """Something that probes are trained on.

    Args:
        name: of a network that of its folder, `base` or `reinit-seed0`; or what a baseline is.
        kind: `base`, `control` or `baseline`.
        layers: the representations; `(None,)` of a baseline.
        features: called with a layer, and gives `(rows, width)`.
        record: what was done to the weights of a control, with their digest.
        digest: of the weights.
        shuffled: seeds of the order into which the labels to train on are brought, if they are.
    """

    name: str
    kind: str
    layers: tuple[int | None, ...]
    features: Callable[[int | None], Features]
    record: Perturbation | None = None
    digest: str | None = None
    shuffled: tuple[int, int] | None = None

    @property
    def group(self) -> str:
        """The name without the seed, which all controls of one perturbation share, and all orders of labels."""
        of_seeds = self.kind == "control" or self.shuffled is not None
        return self.name.rpartition("-seed")[0] if of_seeds else self.name


# ---- the sequences that are embedded


@dataclass(frozen=True)
class Unique:
    """The different sequences of a study: each is embedded once.

    Args:
        ids: of the first protein of each.
        sequences: the sequences.
        number: of each protein, that of its sequence.
        residues: of each sequence, residues whose vectors are wanted, ascending; `None`: one vector a protein.
    """

    ids: tuple[str, ...]
    sequences: tuple[str, ...]
    number: Numbers
    residues: tuple[Numbers, ...] | None

    @classmethod
    def of(cls, dataset: Dataset, rows: Rows) -> Unique:
        """Find the different sequences, and the residues of each that are rows of the study."""
        first: dict[str, int] = {}
        number = np.array([first.setdefault(sequence, len(first)) for sequence in dataset.sequences], np.int64)
        _, places = np.unique(number, return_index=True)
        ids = tuple(dataset.ids[place] for place in places)
        if rows.residue is None:
            return cls(ids, tuple(first), number, None)
        of, kept = number[rows.protein], []
        order = np.argsort(of, kind="stable")
        bounds = np.searchsorted(of[order], np.arange(len(first) + 1))
        for begin, end in pairwise(bounds.tolist()):
            kept.append(np.unique(rows.residue[order[begin:end]]))
        return cls(ids, tuple(first), number, tuple(kept))

    def write(self, fasta: Path) -> None:
        """Write a FASTA of them."""
        text = "".join(f">{name}\n{sequence}\n" for name, sequence in zip(self.ids, self.sequences, strict=True))
        with nothing_written(fasta), replaced_file(fasta) as file:
            file.write(text.encode())


class Embedded:
    """The representations of a network in a folder, as the rows of a study want them."""

    def __init__(self, folder: Path, pool: str, unique: Unique, rows: Rows, whole: bool, own: bool):
        """Find where the rows are.

        Args:
            folder: as `embed` writes it.
            pool: which vector of a protein.
            unique: the sequences.
            rows: of the study.
            whole: whether the folder has the vectors of all residues, and not of those alone that are wanted.
            own: whether it was made of these very sequences, in their order.

        Raises:
            StudyError: if the folder lacks a protein of the study.
        """
        self._folder, self._pool, self._unique, self._rows = folder, pool, unique, rows
        self._whole, self._own = whole, own
        self._place: Numbers | None = None

    def __call__(self, layer: int | None) -> Features:
        """Return the vectors of the rows in a layer, `(rows, width)`."""
        ids, vectors = read_embeddings(self._folder, f"{'residues' if self._by_residue else self._pool}_{layer}")
        if self._by_residue:
            lengths = np.array([len(each) for each in vectors], np.int64)
            # a copy of what is needed; the whole of a layer may be more than memory holds twice
            return np.concatenate(vectors)[self._places(ids, lengths)]
        found = np.asarray(vectors)[self._places(ids, None)]
        if np.isnan(found).any():
            raise StudyError(f"{self._folder}: a protein has no vector in layer {layer}: its sequence is empty there")
        return found

    @property
    def _by_residue(self) -> bool:
        return self._rows.residue is not None

    def _places(self, ids: list[str], lengths: Numbers | None) -> Numbers:
        """Return the row of the folder, or the residue among all that it has, for each row of the study."""
        if self._place is None:
            # what the study wrote itself is in its order
            there = dict(zip(self._unique.ids if self._own else ids, range(len(ids)), strict=True))
            if missing := [name for name in self._unique.ids if name not in there]:
                raise StudyError(
                    f"{self._folder} has no {missing[0]!r}, and {len(missing) - 1:,} more of the study's proteins are"
                    " not there; allowed: embeddings of all, by the same ids"
                )
            order = np.array([there[name] for name in self._unique.ids], np.int64)
            if not self._own:
                self._refuse_others(ids, order)
            of = self._unique.number[self._rows.protein]
            self._place = order[of] if lengths is None else self._residues(order, of, lengths)
        return self._place

    def _refuse_others(self, ids: list[str], order: Numbers) -> None:
        """Raise if an id of the study is there twice, or of a sequence that is longer or shorter."""
        counts = Counter(ids)
        if twice := next((name for name in self._unique.ids if counts[name] > 1), None):
            raise StudyError(f"{self._folder} has {twice!r} {counts[twice]} times; allowed: once")
        lengths = read_lengths(self._folder)[order]
        for name, sequence, length in zip(self._unique.ids, self._unique.sequences, lengths, strict=True):
            if length != len(sequence):
                raise StudyError(
                    f"{self._folder}: {name!r} has {length:,} residues, in the data {len(sequence):,}; allowed:"
                    " embeddings of the same sequences"
                )

    def _residues(self, order: Numbers, of: Numbers, lengths: Numbers) -> Numbers:
        begin = (np.cumsum(lengths) - lengths)[order][of]
        residue = self._rows.residue
        assert residue is not None
        assert self._unique.residues is not None
        if self._whole:
            for number, place in enumerate(order):
                if lengths[place] != (length := len(self._unique.sequences[number])):
                    raise StudyError(
                        f"{self._folder}: {self._unique.ids[number]!r} has vectors of {lengths[place]:,} residues of"
                        f" {length:,}; allowed: of all"
                    )
            return begin + residue
        within = np.empty(len(residue), np.int64)
        for number in np.unique(of):
            rows = np.flatnonzero(of == number)
            within[rows] = np.searchsorted(self._unique.residues[number], residue[rows])
        return begin + within


def manifests(folders: Mapping[str, Path]) -> dict[str, Manifest]:
    """Read what folders of embeddings say, which have to agree in all but the network.

    Raises:
        StudyError: naming what differs between two of them: sequences, type, pooling, tokens or layers.
    """
    found = {name: read_manifest(folder) for name, folder in folders.items()}
    [(first, wanted), *others] = [(name, _shared(manifest)) for name, manifest in found.items()]
    for name, shared in others:
        if differ := [key for key in {**wanted, **shared} if wanted.get(key) != shared.get(key)]:
            key = differ[0]
            raise StudyError(
                f"{folders[name]}: {key} is {shared.get(key)!r}, and of {first} it is {wanted.get(key)!r}; allowed:"
                " embeddings of base and controls that were made alike"
            )
    return found


def _shared(manifest: Manifest) -> dict[str, Any]:
    return {key: value for key, value in manifest.inputs.items() if key != "model"}


# ---- baselines


def baselines(
    dataset: Dataset, rows: Rows, zero: Callable[[int | None], Features] | None
) -> tuple[list[Source], list[str]]:
    """Return the baselines that need no network, and what is to be said of those that are left out.

    Args:
        dataset: the data.
        rows: of the study.
        zero: the features of representation 0 of the base.
    """
    made: dict[str, Callable[[], Features]] = {
        GUESS: lambda: np.zeros((len(rows.truth), 1), np.float32),
        "length": lambda: _lengths(dataset)[rows.protein],
        "composition": lambda: _compositions(dataset)[rows.protein],
    }
    said = []
    if rows.residue is not None:
        made["one-hot"] = lambda: _one_hot_residues(dataset, rows)
    elif len({*map(len, dataset.sequences)}) > 1:
        said.append("baseline one-hot: left out, as sequences are of several lengths")
    elif (width := len(_seen(_letters(dataset)))) > _WIDEST:
        said.append(f"baseline one-hot: left out, as it would have {width:,} columns; at most {_WIDEST:,} are probed")
    else:
        made["one-hot"] = lambda: _one_hot(dataset)
    found = [_baseline(name, make) for name, make in made.items()]
    if zero is not None:
        found.append(_baseline("representation 0", lambda: zero(0)))
    else:
        said.append("baseline representation 0: left out, as the embeddings that are there are without it")
    return found, said


def _baseline(name: str, make: Callable[[], Features]) -> Source:
    return Source(name, "baseline", (None,), lambda layer: make())


def _lengths(dataset: Dataset) -> Features:
    return np.array([[len(sequence)] for sequence in dataset.sequences], np.float32)


def _compositions(dataset: Dataset) -> Features:
    """Return the shares of the 20 amino acids, and of all other letters together, `(proteins, 21)`."""
    counts = [Counter(sequence) for sequence in dataset.sequences]
    known = np.array([[count[letter] for letter in RESIDUES] for count in counts])
    total = np.array([count.total() for count in counts])
    # counted, for what is left of 1 would be rounding, which a probe takes for a letter
    return (np.column_stack([known, total - known.sum(1)]) / total[:, None]).astype(np.float32)


def _letters(dataset: Dataset) -> NDArray[np.uint8]:
    """Return sequences of one length as codes, `(proteins, length)`."""
    return np.frombuffer("".join(dataset.sequences).encode("ascii"), np.uint8).reshape(len(dataset.sequences), -1)


def _seen(codes: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Return the places where sequences differ, with each of the letters there."""
    places = np.flatnonzero((codes != codes[0]).any(0))
    return [(place, letter) for place in places.tolist() for letter in np.unique(codes[:, place]).tolist()]


def _one_hot(dataset: Dataset) -> Features:
    """Return which letter each place has, for places where sequences differ, `(proteins, places x letters)`."""
    codes = _letters(dataset)
    seen = _seen(codes)
    hot = np.zeros((len(codes), max(len(seen), 1)), np.float32)
    for column, (place, letter) in enumerate(seen):
        hot[:, column] = codes[:, place] == letter
    return hot


def _one_hot_residues(dataset: Dataset, rows: Rows) -> Features:
    """Return which letter each residue is, `(rows, 21)`; the last column is for all others."""
    assert rows.residue is not None
    begin = np.cumsum([0, *map(len, dataset.sequences)])[rows.protein]
    codes = np.frombuffer("".join(dataset.sequences).encode("ascii"), np.uint8)[begin + rows.residue]
    hot = codes[:, None] == np.frombuffer(RESIDUES.encode(), np.uint8)
    return np.column_stack([hot, ~hot.any(1)]).astype(np.float32)
