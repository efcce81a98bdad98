"""Embeddings as HDF5, as biotrainer and who works with it read them."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from hf_perturb.embedding.manifest import KEPT, read_manifest
from hf_perturb.embedding.read import iterate_embeddings
from hf_perturb.errors import EmbeddingsError, HfPerturbError, ModelInputError
from hf_perturb.storage.folders import whole_files


def write_h5(
    folder: str | Path, out: str | Path, column: str | None = None, *, sequences: Sequence[str] | None = None
) -> None:
    """Write one column of a folder of embeddings as HDF5, whole or not at all: a dataset a protein.

    A dataset is float32, `(residues, width)` without special tokens, or `(width,)` of a pooled column; its attribute
    `original_id` is the id of the record. A record without residues has none, and one that was cut off (`long`) has the
    vectors of its first residues.

    Args:
        folder: what `embed` wrote.
        out: the file.
        column: which; `None` if there is one.
        sequences: of the records, in order: datasets are called by the digest of the sequence, as biotrainer looks for
            them from 1.0 on, and identical ones share the first; if `None`, by the number of the record, from 0.

    Raises:
        FolderExistsError: if `out` exists, or `folder` is something else.
        ModelInputError: if there are more or fewer sequences than records.
        EmbeddingsError: if h5py is not installed, the folder is not complete or has the vectors of chosen residues
            alone, or the file cannot be written.
    """
    try:
        import h5py
    except ImportError as error:
        raise EmbeddingsError(f"HDF5 needs h5py ({error}): pip install 'hf-perturb[h5]'") from error
    folder, out = Path(folder), Path(out)
    manifest = read_manifest(folder)
    if KEPT in manifest.schema.integers and (column in manifest.schema.residues or not manifest.schema.vectors):
        raise EmbeddingsError(
            f"{folder} has the vectors of chosen residues alone, and HDF5 is of all; embed it without residues=..."
        )
    records = sum(shard.records for shard in manifest.shards)
    if sequences is not None and len(sequences) != records:
        raise ModelInputError(f"sequences: got {len(sequences):,}; allowed: those of the {records:,} records, in order")
    try:
        with whole_files(out) as [fresh], h5py.File(fresh, "w") as file:
            for number, (name, vectors) in enumerate(iterate_embeddings(folder, column)):
                key = str(number) if sequences is None else _digest_of(sequences[number])
                if vectors is not None and key not in file:
                    file.create_dataset(key, data=vectors).attrs["original_id"] = name
    except HfPerturbError:
        raise
    except (OSError, RuntimeError) as error:  # as h5py says that a disk is full
        raise EmbeddingsError(f"{out}: nothing was written, because {error}") from error


def _digest_of(sequence: str) -> str:
    """Return the key of a sequence, as `biotrainer.utilities.hashing` makes it."""
    return sha256(f"{sequence}_{len(sequence)}".encode()).hexdigest()
