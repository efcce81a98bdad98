"""`convert`: a checkpoint of any origin becomes a base folder, with the digest of its weights recorded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from hf_perturb.cards.cards import base_card
from hf_perturb.checkpoints.bases import open_checkpoint
from hf_perturb.checkpoints.catalog import CATALOG, note_origin
from hf_perturb.checkpoints.checkpoint import Checkpoint, auto_map
from hf_perturb.checkpoints.downloads import download
from hf_perturb.checkpoints.formats import DTYPES
from hf_perturb.checkpoints.tokenizers import save_tokenizer
from hf_perturb.errors import CheckpointError
from hf_perturb.networks.record import base_location
from hf_perturb.storage.folders import refuse_out, whole_folder
from hf_perturb.variants.stream import write_weights
from hf_perturb.variants.vetting import refuse_nonfinite, vet_digest

_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPES}


@dataclass(frozen=True)
class Conversion:
    """What `convert_checkpoint` wrote.

    Args:
        origin: the format that the source came in.
        architecture: the class that the base is stored as.
        parameters: of the network; a tied one counts once.
        digest: of its weights.
        notes: what a user should know about how it was read.
    """

    origin: str
    architecture: str
    parameters: int
    digest: str
    notes: tuple[str, ...]


def convert_checkpoint(
    source: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    allow_nonfinite: bool = False,
    force: bool = False,
) -> Conversion:
    """Make a base folder of a checkpoint: configuration, safetensors, tokenizer and card, whole or not at all.

    Args:
        source: an original `.pt` file of fair-esm or sequence-models, a name of the catalogue (which is downloaded), a
            folder or Hub id of Transformers' own ESM, or one of ours.
        out: the folder to write.
        dtype: `"float32"`, `"float16"`, `"bfloat16"` or `"float64"`; `None` for the type in which the source's own
            package loads it: float32 for originals, the stored one for the others.
        allow_nonfinite: write NaN and infinite weights too.
        force: replace the folder if it is a base that this function wrote (for a variant: a variant).

    Raises:
        FolderExistsError: if `out` exists and may not be replaced.
        CheckpointError: if the source is missing, damaged, of another family, lacks tensors, or has weights that are
            not numbers, or if the folder cannot be written.
        DigestError: if the source records another digest than its weights have.
    """
    source, out = str(source), Path(out)
    if dtype is not None and dtype not in DTYPES:
        raise CheckpointError(f"dtype: got {dtype!r}; allowed: {', '.join(DTYPES)}")
    place = Path(base_location(source))
    if source in CATALOG or not force:
        refuse_out(out, place, force, "base")  # before anything is fetched
    checkpoint = open_source(source).check()
    kind = "base" if checkpoint.config.perturbation is None else "variant"
    refuse_out(out, place, force, kind)
    asked = _DTYPES[dtype] if dtype else None
    try:
        with whole_folder(out, lambda: refuse_out(out, place, force, kind)) as folder:
            dtypes = checkpoint.dtypes(asked)
            written = write_weights(folder, checkpoint.tensors, dtypes)
            if not allow_nonfinite:
                refuse_nonfinite(checkpoint, written.nonfinite)
            digest = written.digest()
            cast = any(dtypes[name] != tensor.dtype for name, tensor in checkpoint.tensors.items())
            vet_digest(checkpoint, None if cast else digest)
            _describe(checkpoint, digest)
            note_origin(source, checkpoint)
            checkpoint.config.dtype = next(iter(dtypes.values()))
            checkpoint.config.save_pretrained(folder)
            save_tokenizer(checkpoint.config, folder)
            (folder / "README.md").write_text(base_card(checkpoint), encoding="utf-8")
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{out}: nothing was written, because {error}") from error
    notes = tuple(checkpoint.notes)
    return Conversion(checkpoint.origin, checkpoint.architecture, checkpoint.parameters, digest, notes)


def open_source(source: str) -> Checkpoint:
    """Open a checkpoint, and fetch it first if it is a name of the catalogue."""
    if source in CATALOG and not Path(source).exists():
        return open_checkpoint(str(download(CATALOG[source])))
    return open_checkpoint(source)


def _describe(checkpoint: Checkpoint, digest: str) -> None:
    """Record the digest, a base's in its configuration and a variant's in its record, and how to load the folder."""
    config, record = checkpoint.config, checkpoint.config.perturbation
    if record is None:
        config.digest = digest
    else:
        config.perturbation = record.with_record(record.base, digest)
    config.architectures = [checkpoint.architecture]
    config.auto_map = auto_map(config.model_type)
