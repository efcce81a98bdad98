"""`convert --to`: a base or a variant in the formats of Transformers' own ESM, fair-esm and sequence-models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from hf_perturb.cards.cards import stock_card
from hf_perturb.checkpoints.bases import open_checkpoint
from hf_perturb.checkpoints.checkpoint import CONTACTS, Checkpoint
from hf_perturb.checkpoints.formats import FORMATS
from hf_perturb.checkpoints.tokenizers import save_tokenizer
from hf_perturb.errors import CheckpointError
from hf_perturb.networks.stock_esm import config_to_stock, stock_names
from hf_perturb.perturbation.digest import digest_of_lines, tensor_digest
from hf_perturb.storage.folders import refuse_existing, whole_folder
from hf_perturb.variants.exports_original import cannot, refuse_architecture, to_fair_esm, to_sequence_models
from hf_perturb.variants.stream import write_weights
from hf_perturb.variants.vetting import vet


def export_checkpoint(
    source: str | Path,
    out: str | Path,
    to: str,
    *,
    allow_nonfinite: bool = False,
    on_note: Callable[[str], None] = lambda note: None,
) -> tuple[Path, ...]:
    """Write a base or a variant in another package's format, whole or not at all.

    Args:
        source: as for `convert_checkpoint`, but for the catalogue.
        out: a folder for `"transformers"`, a `.pt` file for the others; neither may exist.
        to: `"transformers"` (ESM-1b, ESM-1v, ESM-2), `"fair-esm"` or `"sequence-models"`.
        allow_nonfinite: write NaN and infinite weights too.
        on_note: called with what a user should know about how the source was read.

    Returns:
        The folder, or the files; fair-esm's contact regression is one of its own.

    Raises:
        FolderExistsError: if `out` exists.
        CheckpointError: if the format cannot hold this network, or the source cannot be used, or has weights that are
            not numbers.
        DigestError: if the source records another digest than its weights have.
    """
    if to not in FORMATS:
        raise CheckpointError(f"to: got {to!r}; allowed: {', '.join(FORMATS)}")
    refuse_existing(Path(out))
    checkpoint = open_checkpoint(str(source)).check()
    vet(checkpoint, allow_nonfinite)
    for note in checkpoint.notes:
        on_note(note)
    try:
        return _WRITERS[to](checkpoint, Path(out))
    except CheckpointError:
        raise
    except (OSError, RuntimeError) as error:  # torch.save gives a full disk as a RuntimeError
        raise CheckpointError(f"{out}: nothing was written, because {error}") from error


def _to_transformers(checkpoint: Checkpoint, out: Path) -> tuple[Path, ...]:
    config = checkpoint.config
    if config.model_type != "fair_esm" or config.model_version == "ESM-1":
        which = "CARP" if config.model_type == "carp" else "ESM-1"
        raise cannot(checkpoint, "Transformers", f"its ESM has no {which}; allowed: ESM-1b, ESM-1v, ESM-2")
    refuse_architecture(checkpoint, "Transformers", "FairEsmForMaskedLM", "FairEsmModel")
    tensors, dtypes = dict(checkpoint.tensors), checkpoint.dtypes()
    if not config.contact_head:
        # a head cannot be left out there; zeros predict 0.5 everywhere, drawn weights would look like a prediction
        kind = dtypes["embed_tokens.weight"]
        width = config.num_hidden_layers * config.num_attention_heads
        for name, shape in zip(CONTACTS, [(1, width), (1,)], strict=True):
            tensors[name], dtypes[name] = torch.zeros(shape), kind
    names = stock_names(tensors)
    if checkpoint.architecture == "FairEsmModel":
        names = {ours: theirs.removeprefix("esm.") for ours, theirs in names.items()}
    config.dtype = dtypes["embed_tokens.weight"]
    if (record := config.perturbation) is not None and record.digest is not None:
        # originals are cast as their package does, and so are other bits than the record names
        cast = {name: tensor_digest(tensor.to(dtypes[name])) for name, tensor in checkpoint.tensors.items()}
        config.perturbation = record.with_record(record.base, digest_of_lines(cast))
    with whole_folder(out, lambda: refuse_existing(out)) as folder:
        stored = {names[name]: tensor for name, tensor in tensors.items()}
        write_weights(folder, stored, {names[name]: dtype for name, dtype in dtypes.items()})
        text = json.dumps(config_to_stock(config, checkpoint.architecture), indent=2, sort_keys=True)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        save_tokenizer(config, folder)
        (folder / "README.md").write_text(stock_card(checkpoint), encoding="utf-8")
    return (out,)


_WRITERS: dict[str, Callable[[Checkpoint, Path], tuple[Path, ...]]] = dict(
    zip(FORMATS, (_to_transformers, to_fair_esm, to_sequence_models), strict=True)
)
