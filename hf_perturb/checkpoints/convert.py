"""`convert`: a checkpoint of any origin becomes a base folder, with the digest of its weights recorded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from hf_perturb.checkpoints.bases import open_checkpoint, tokenizer_of
from hf_perturb.checkpoints.cards import base_card
from hf_perturb.checkpoints.catalog import CATALOG, Entry
from hf_perturb.checkpoints.checkpoint import Checkpoint, auto_map, listed
from hf_perturb.checkpoints.downloads import download
from hf_perturb.checkpoints.folders import refuse_out, whole_folder
from hf_perturb.checkpoints.stream import Written, write_weights
from hf_perturb.errors import CheckpointError, DigestError
from hf_perturb.models.record import base_location
from hf_perturb.perturbation.digest import digest_of, digest_of_lines

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


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
        force: replace the folder if it is a base that this function wrote.

    Raises:
        FolderExistsError: if `out` exists and may not be replaced.
        CheckpointError: if the source is missing, damaged, of another family, lacks tensors, or has weights that are
            not numbers, or if the folder cannot be written.
        DigestError: if the source records another digest than its weights have.
    """
    source, out = str(source), Path(out)
    if dtype is not None and dtype not in DTYPES:
        raise CheckpointError(f"dtype: got {dtype!r}; allowed: {', '.join(DTYPES)}")
    refuse_out(out, Path(base_location(source)), force, "base")
    checkpoint = open_source(source).check()
    asked = DTYPES[dtype] if dtype else None
    tokenizer = tokenizer_of(checkpoint)
    try:
        with whole_folder(out) as folder:
            dtypes = checkpoint.dtypes(asked)
            written = write_weights(folder, checkpoint.tensors, dtypes)
            _refuse_nonfinite(checkpoint, written, allow_nonfinite)
            digest = digest_of_lines(written.digests)
            cast = any(dtypes[name] != tensor.dtype for name, tensor in checkpoint.tensors.items())
            _describe(checkpoint, digest, cast)
            checkpoint.config.dtype = next(iter(dtypes.values()))
            checkpoint.config.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            card = base_card(checkpoint, catalogued(checkpoint), digest)
            (folder / "README.md").write_text(card, encoding="utf-8")
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


def catalogued(checkpoint: Checkpoint) -> Entry | None:
    """Return what the catalogue says of a checkpoint that goes by one of its names and has its sizes."""
    entry = CATALOG.get(Path(checkpoint.what).stem)
    if entry is None:
        return None
    config = entry.config()
    same = all(getattr(config, key) == getattr(checkpoint.config, key, None) for key in entry.sizes)
    return entry if same else None


def _refuse_nonfinite(checkpoint: Checkpoint, written: Written, allowed: bool) -> None:
    if written.nonfinite and not allowed:
        raise CheckpointError(
            f"{checkpoint.what}: NaN or infinite weights in {listed(written.nonfinite)}; a damaged or diverged network,"
            " or a type too narrow for it; to have it all the same: --allow-nonfinite (allow_nonfinite=True)"
        )


def _describe(checkpoint: Checkpoint, digest: str, cast: bool) -> None:
    """Record the digest: a base's in its configuration, a variant's in the record that came along."""
    config, record = checkpoint.config, checkpoint.config.perturbation
    stated = config.digest if record is None else record.digest
    if stated is not None and stated != (found := digest_of(checkpoint.tensors) if cast else digest):
        raise DigestError(f"{checkpoint.what} has weights with digest {found}, its config.json says {stated}")
    if record is None:
        config.digest = digest
    elif cast:
        # no longer what create made of the base
        config.perturbation = record.with_record(record.base, None)
    config.architectures = [checkpoint.architecture]
    config.auto_map = auto_map(config.model_type)
