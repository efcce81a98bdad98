"""`convert --to`: a base or a variant in the formats of Transformers' own ESM, fair-esm and sequence-models."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hf_perturb.checkpoints.bases import open_checkpoint
from hf_perturb.checkpoints.cards import stock_card
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.folders import refuse_out, whole_files, whole_folder
from hf_perturb.checkpoints.originals import RECORD_KEY
from hf_perturb.checkpoints.originals_esm import REGRESSION
from hf_perturb.checkpoints.stream import write_weights
from hf_perturb.errors import CheckpointError
from hf_perturb.models.record import base_location
from hf_perturb.models.stock_esm import config_to_stock, stock_names
from hf_perturb.tokenizers import build_tokenizer_of

_CONTACTS = ("contact_head.regression.weight", "contact_head.regression.bias")


def export_checkpoint(source: str | Path, out: str | Path, to: str) -> tuple[Path, ...]:
    """Write a base or a variant in another package's format, whole or not at all.

    Args:
        source: as for `convert_checkpoint`, but for the catalogue.
        out: a folder for `"transformers"`, a `.pt` file for the others; neither may exist.
        to: `"transformers"` (ESM-1b, ESM-1v, ESM-2), `"fair-esm"` or `"sequence-models"`.

    Returns:
        The folder, or the files; fair-esm's contact regression is one of its own.

    Raises:
        FolderExistsError: if `out` exists.
        CheckpointError: if the format cannot hold this network, or the source cannot be used.
    """
    if to not in FORMATS:
        raise CheckpointError(f"to: got {to!r}; allowed: {', '.join(FORMATS)}")
    checkpoint = open_checkpoint(str(source)).check()
    try:
        return FORMATS[to](checkpoint, Path(out))
    except CheckpointError:
        raise
    except (OSError, RuntimeError) as error:  # torch.save gives a full disk as a RuntimeError
        raise CheckpointError(f"{out}: nothing was written, because {error}") from error


def _to_transformers(checkpoint: Checkpoint, out: Path) -> tuple[Path, ...]:
    config = checkpoint.config
    if config.model_type != "fair_esm" or config.model_version == "ESM-1":
        which = "CARP" if config.model_type == "carp" else "ESM-1"
        raise _cannot(checkpoint, "Transformers", f"its ESM has no {which}; allowed: ESM-1b, ESM-1v, ESM-2")
    _only(checkpoint, "Transformers", "FairEsmForMaskedLM", "FairEsmModel")
    refuse_out(out, Path(base_location(checkpoint.what)), False, "base")
    tensors, dtypes = dict(checkpoint.tensors), checkpoint.dtypes()
    if not config.contact_head:
        # a head cannot be left out there; zeros predict 0.5 everywhere, drawn weights would look like a prediction
        kind = dtypes["embed_tokens.weight"]
        width = config.num_hidden_layers * config.num_attention_heads
        for name, shape in zip(_CONTACTS, [(1, width), (1,)], strict=True):
            tensors[name], dtypes[name] = torch.zeros(shape), kind
    names = stock_names(tensors)
    if checkpoint.architecture == "FairEsmModel":
        names = {ours: theirs.removeprefix("esm.") for ours, theirs in names.items()}
    config.dtype = dtypes["embed_tokens.weight"]
    with whole_folder(out) as folder:
        stored = {names[name]: tensor for name, tensor in tensors.items()}
        write_weights(folder, stored, {names[name]: dtype for name, dtype in dtypes.items()})
        text = json.dumps(config_to_stock(config, checkpoint.architecture), indent=2, sort_keys=True)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        build_tokenizer_of(config).save_pretrained(folder)
        (folder / "README.md").write_text(stock_card(checkpoint), encoding="utf-8")
    return (out,)


def _to_fair_esm(checkpoint: Checkpoint, out: Path) -> tuple[Path, ...]:
    config, tensors = checkpoint.config, dict(checkpoint.tensors)
    _only(checkpoint, "fair-esm", "FairEsmForMaskedLM")
    version = config.model_version
    if version != "ESM-1" and not config.tie_word_embeddings:
        raise _cannot(
            checkpoint,
            "fair-esm",
            "its class has one tensor for lm_head.weight and embed_tokens.weight, and here they differ; a variant with"
            " exclude=['lm_head.weight'] keeps them together",
        )
    _refuse_suffix(out)
    _refuse_name(checkpoint, out)
    if version == "ESM-2" and config.intermediate_size != 4 * config.hidden_size:
        raise _cannot(checkpoint, "fair-esm", "its ESM-2 has feed-forward layers of four times the width")
    contacts = {name: tensors.pop(name) for name in _CONTACTS if name in tensors}
    beside = contacts and _is_looked_for(out)
    if not beside:
        tensors.update(contacts)
    if version != "ESM-1":
        # by itself: the loader zeroes the mask's row of the embedding, and the head, loaded last, restores it
        tensors["lm_head.weight"] = tensors["embed_tokens.weight"].clone()
    sizes = {
        "layers": config.num_hidden_layers,
        "embed_dim": config.hidden_size,
        "attention_heads": config.num_attention_heads,
    }
    if version == "ESM-2":
        sizes = {f"encoder_{key}": value for key, value in sizes.items()}
        described: dict[str, Any] = {"cfg": {"model": Namespace(**sizes, token_dropout=config.token_dropout)}}
    else:
        described = {
            "args": Namespace(
                arch="protein_bert_base" if version == "ESM-1" else "roberta_large",
                ffn_embed_dim=config.intermediate_size,
                max_positions=config.max_position_embeddings - 2,
                token_dropout=config.token_dropout,
                final_bias=config.final_bias,
                **sizes,
            )
        }
    regression = out.with_name(out.stem + REGRESSION)
    with whole_files(out, regression) as (file, second):
        _save({**described, "model": tensors}, config.perturbation, file)
        if beside:
            _save({"model": contacts}, None, second)
    return (out, regression) if beside else (out,)


def _refuse_suffix(out: Path) -> None:
    if out.suffix != ".pt":
        raise CheckpointError(f"{out}: the original loaders download what does not end in .pt; allowed: NAME.pt")


def _refuse_name(checkpoint: Checkpoint, out: Path) -> None:
    """Refuse a name that makes fair-esm take the file for another network; its loader goes by the name."""
    is_esm2 = checkpoint.config.model_version == "ESM-2"
    if out.name.startswith("esm2") != is_esm2:
        rule = "must begin with 'esm2'" if is_esm2 else "must not begin with 'esm2'"
        raise CheckpointError(f"{out}: fair-esm tells networks by the names of their files; this one {rule}")
    if not checkpoint.config.contact_head and _is_looked_for(out):
        raise CheckpointError(
            f"{out}: {checkpoint.what} has no contact head, and fair-esm takes a file without {REGRESSION} beside it"
            " only if its name holds 'esm1v'; allowed: such a name"
        )


def _is_looked_for(out: Path) -> bool:
    """Whether fair-esm wants a contact regression beside. Source: `esm.pretrained._has_regression_weights`."""
    return not ("esm1v" in out.stem or "esm_if" in out.stem)


def _to_sequence_models(checkpoint: Checkpoint, out: Path) -> tuple[Path, ...]:
    config = checkpoint.config
    if config.model_type != "carp":
        raise _cannot(checkpoint, "sequence-models", "it has no ESM; allowed: CARP")
    _only(checkpoint, "sequence-models", "CarpForMaskedLM")
    _refuse_suffix(out)
    described = {
        "model": "carp",
        "d_embed": config.embedding_size,
        "d_model": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "kernel_size": config.kernel_size,
        "activation": config.hidden_act,
        "slim": config.slim,
        "r": config.max_dilation,
    }
    state = {name.removeprefix("model."): tensor for name, tensor in checkpoint.tensors.items()}
    with whole_files(out) as (file,):
        _save({**described, "model_state_dict": state}, config.perturbation, file)
    return (out,)


def _save(data: dict[str, Any], record: Any, path: Path) -> None:
    """Save in torch's zip format; a part of a larger memory would otherwise bring all of it along."""
    key = "model_state_dict" if "model_state_dict" in data else "model"
    data[key] = {name: tensor.clone() if _is_part(tensor) else tensor for name, tensor in data[key].items()}
    if record is not None:
        data[RECORD_KEY] = record.to_dict()
    torch.save(data, path)


def _is_part(tensor: torch.Tensor) -> bool:
    return tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()


def _only(checkpoint: Checkpoint, package: str, *architectures: str) -> None:
    if checkpoint.architecture not in architectures:
        allowed = " or ".join(architectures)
        raise _cannot(checkpoint, package, f"it is stored as {checkpoint.architecture}; allowed: {allowed}")


def _cannot(checkpoint: Checkpoint, package: str, why: str) -> CheckpointError:
    return CheckpointError(f"{checkpoint.what} cannot be written for {package}: {why}")


FORMATS: dict[str, Callable[[Checkpoint, Path], tuple[Path, ...]]] = {
    "transformers": _to_transformers,
    "fair-esm": _to_fair_esm,
    "sequence-models": _to_sequence_models,
}
