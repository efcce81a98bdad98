"""Bases and variants in the formats of fair-esm and sequence-models, as their loaders read them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from hf_perturb.checkpoints.checkpoint import CONTACTS, Checkpoint
from hf_perturb.checkpoints.origins.fair_esm import REGRESSION
from hf_perturb.checkpoints.origins.original import RECORD_KEY
from hf_perturb.errors import CheckpointError
from hf_perturb.storage.folders import whole_files

# what the original classes have built in, and a configuration of ours could have otherwise
_BUILT_IN = {
    "fair_esm": ("vocab_size", "pad_token_id", "mask_token_id", "bos_token_id", "eos_token_id", "layer_norm_eps"),
    "carp": ("vocab_size", "pad_token_id", "mask_token_id"),
}


def to_fair_esm(checkpoint: Checkpoint, out: Path) -> tuple[Path, ...]:
    """Write what `esm.pretrained.load_model_and_alphabet_local` reads, the contact regression beside it.

    Raises:
        CheckpointError: if its classes have no such network, or its loader would take the name for another one.
    """
    config, tensors = checkpoint.config, dict(checkpoint.tensors)
    refuse_architecture(checkpoint, "fair-esm", "FairEsmForMaskedLM")
    version = config.model_version
    if version != "ESM-1" and not config.tie_word_embeddings:
        raise cannot(
            checkpoint,
            "fair-esm",
            "its class has one tensor for lm_head.weight and embed_tokens.weight, and here they differ; a variant with"
            " exclude=['lm_head.weight'] keeps them together",
        )
    _refuse_constants(checkpoint, "fair-esm")
    _refuse_suffix(out)
    _refuse_name(checkpoint, out)
    if version == "ESM-2" and config.intermediate_size != 4 * config.hidden_size:
        raise cannot(checkpoint, "fair-esm", "its ESM-2 has feed-forward layers of four times the width")
    contacts = {name: tensors.pop(name) for name in CONTACTS if name in tensors}
    beside = contacts and _is_looked_for(out)
    if not beside:
        tensors.update(contacts)
    if version != "ESM-1":
        # by itself: the loader zeroes the mask's row of the embedding, and the head, loaded last, restores it
        tensors["lm_head.weight"] = tensors["embed_tokens.weight"].clone()
    regression = out.with_name(out.stem + REGRESSION)
    with whole_files(out, regression) as (file, second):
        _save({**_loader_arguments(config), "model": tensors}, config.perturbation, file)
        if beside:
            _save({"model": contacts}, None, second)
    return (out, regression) if beside else (out,)


def _loader_arguments(config: Any) -> dict[str, Any]:
    """Return what the loader builds the network from. Source: `esm.pretrained`, both of its cores."""
    sizes = {
        "layers": config.num_hidden_layers,
        "embed_dim": config.hidden_size,
        "attention_heads": config.num_attention_heads,
    }
    if config.model_version == "ESM-2":
        encoder = {f"encoder_{key}": value for key, value in sizes.items()}
        return {"cfg": {"model": Namespace(**encoder, token_dropout=config.token_dropout)}}
    return {
        "args": Namespace(
            arch="protein_bert_base" if config.model_version == "ESM-1" else "roberta_large",
            ffn_embed_dim=config.intermediate_size,
            max_positions=config.max_position_embeddings - 2,
            token_dropout=config.token_dropout,
            final_bias=config.final_bias,
            **sizes,
        )
    }


def _refuse_constants(checkpoint: Checkpoint, package: str) -> None:
    """Refuse a network that differs from the original in what the original cannot be told."""
    config = checkpoint.config
    fixed = {"model_version": config.model_version} if config.model_type == "fair_esm" else {}
    original = type(config)(**fixed)
    for key in _BUILT_IN[config.model_type]:
        given, known = getattr(config, key), getattr(original, key)
        if given != known:
            raise cannot(checkpoint, package, f"its {key} is {given!r}; the class there has {known!r} built in")


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


def to_sequence_models(checkpoint: Checkpoint, out: Path) -> tuple[Path, ...]:
    """Write what `sequence_models.pretrained.load_model_and_alphabet` reads.

    Raises:
        CheckpointError: if its class has no such network.
    """
    config = checkpoint.config
    if config.model_type != "carp":
        raise cannot(checkpoint, "sequence-models", "it has no ESM; allowed: CARP")
    refuse_architecture(checkpoint, "sequence-models", "CarpForMaskedLM")
    _refuse_constants(checkpoint, "sequence-models")
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


def refuse_architecture(checkpoint: Checkpoint, package: str, *architectures: str) -> None:
    """Refuse a checkpoint that is stored as another class than a format has.

    Raises:
        CheckpointError: naming what is allowed.
    """
    if checkpoint.architecture not in architectures:
        allowed = " or ".join(architectures)
        raise cannot(checkpoint, package, f"it is stored as {checkpoint.architecture}; allowed: {allowed}")


def cannot(checkpoint: Checkpoint, package: str, why: str) -> CheckpointError:
    """Return the error for what a format cannot hold."""
    return CheckpointError(f"{checkpoint.what} cannot be written for {package}: {why}")
