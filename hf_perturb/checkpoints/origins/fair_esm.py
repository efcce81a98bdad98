"""Original checkpoints of fair-esm: ESM-1, ESM-1b, ESM-1v and ESM-2. Source: `esm.pretrained` (fair-esm 2.0.0)."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any, Literal

import torch

from hf_perturb.checkpoints.checkpoint import Checkpoint, same_values
from hf_perturb.checkpoints.origins.relatives import ALLOWED, read_pickle, refuse_others
from hf_perturb.errors import CheckpointError
from hf_perturb.networks.configuration_fair_esm import FairEsmConfig
from hf_perturb.networks.weights import is_finite, refuse_what_is_no_state

# beside the weights, where fair-esm expects the regression that predicts contacts
REGRESSION = "-contact-regression.pt"
_WITHOUT_MEANING = "embed_positions._float_tensor"
_VERSIONS: dict[str, Literal["ESM-1", "ESM-1b"]] = {"protein_bert_base": "ESM-1", "roberta_large": "ESM-1b"}
# of the wrappers that the networks were trained in
_PREFIXES = {
    "ESM-1": ("decoder.",),
    "ESM-1b": ("sentence_encoder.", "encoder."),
    "ESM-2": ("sentence_encoder.", "encoder."),
}


def read_esm_1(path: Path, data: dict[str, Any]) -> Checkpoint:
    """ESM-1, ESM-1b and ESM-1v. Source: `esm.pretrained._load_model_and_alphabet_core_v1`."""
    given = _fields(data["args"])
    refuse_others(path, given["arch"])
    if given["arch"] not in _VERSIONS:
        raise CheckpointError(f"{path}: its architecture is {given['arch']!r}; {ALLOWED}")
    version = _VERSIONS[given["arch"]]
    prefix = "decoder_" if version == "ESM-1" else "encoder_"
    arguments = {_without(key, prefix): value for key, value in given.items()}
    tensors = _tensors(path, data["model"], version)
    contacts = _add_regression(path, tensors)
    config: dict[str, Any] = {"token_dropout": bool(arguments.get("token_dropout", False))}
    if version == "ESM-1":
        config["final_bias"] = bool(arguments.get("final_bias", "embed_out_bias" in tensors))
        # a buffer without meaning, which fair-esm leaves as it finds the memory: perhaps with what no type can hold
        if not is_finite(tensors.get(_WITHOUT_MEANING, torch.tensor(torch.nan)).half()):
            tensors[_WITHOUT_MEANING] = torch.zeros(1)
    else:
        config["emb_layer_norm_before"] = any(name.startswith("emb_layer_norm_before") for name in tensors)
        config["max_position_embeddings"] = arguments["max_positions"] + 2
    sizes = FairEsmConfig(
        model_version=version,
        hidden_size=arguments["embed_dim"],
        num_hidden_layers=arguments["layers"],
        num_attention_heads=arguments["attention_heads"],
        intermediate_size=arguments["ffn_embed_dim"],
        contact_head=contacts,
        **config,
    )
    if version == "ESM-1b":
        # as the original loader does ("for token drop"); a head that shares the memory changes with it
        mask: int = sizes.mask_token_id  # type: ignore[assignment]
        tensors.get("embed_tokens.weight", torch.empty(0))[mask : mask + 1].zero_()
        _tie(path, tensors, mask)
    return _fair_esm(path, sizes, tensors)


def read_esm_2(path: Path, data: dict[str, Any]) -> Checkpoint:
    """ESM-2. Source: `esm.pretrained._load_model_and_alphabet_core_v2`."""
    arguments = _fields(_fields(data["cfg"])["model"])
    tensors = _tensors(path, data["model"], "ESM-2")
    contacts = _add_regression(path, tensors)
    sizes = FairEsmConfig(
        model_version="ESM-2",
        hidden_size=arguments["encoder_embed_dim"],
        num_hidden_layers=arguments["encoder_layers"],
        num_attention_heads=arguments["encoder_attention_heads"],
        intermediate_size=4 * arguments["encoder_embed_dim"],
        token_dropout=bool(arguments["token_dropout"]),
        contact_head=contacts,
    )
    _tie(path, tensors, None)
    return _fair_esm(path, sizes, tensors)


def _fair_esm(path: Path, config: FairEsmConfig, tensors: dict[str, torch.Tensor]) -> Checkpoint:
    missing = f"no {path.stem}{REGRESSION} beside it: converted without the head that predicts contacts"
    notes = [] if config.contact_head else [missing]
    return Checkpoint(str(path), "fair-esm", config, "FairEsmForMaskedLM", tensors, torch.float32, notes=notes)


def _fields(arguments: Any) -> dict[str, Any]:
    return vars(arguments) if isinstance(arguments, Namespace) else dict(arguments)


def _without(name: str, *parts: str) -> str:
    """Return what follows the first of some parts in a name."""
    for part in parts:
        name = name.partition(part)[2] or name
    return name


def _tensors(path: Path, state: Any, version: str) -> dict[str, torch.Tensor]:
    """Name the tensors of a state_dict as the class does."""
    refuse_what_is_no_state(f"{path}: its 'model'", state)
    named = {_without(name, *_PREFIXES[version]): tensor.detach() for name, tensor in state.items()}
    if len(named) != len(state):
        raise CheckpointError(f"{path}: two of its tensors have the same name once their prefixes are gone")
    return named


def _add_regression(path: Path, tensors: dict[str, torch.Tensor]) -> bool:
    """Add the contact regression from the file beside the weights; return whether there is one."""
    beside = path.with_name(path.stem + REGRESSION)
    if beside.exists():
        data = read_pickle(beside)
        state = data.get("model") if isinstance(data, dict) else None
        tensors.update(_tensors(beside, state, "ESM-1b"))
    return "contact_head.regression.weight" in tensors


def _tie(path: Path, tensors: dict[str, torch.Tensor], mask: int | None) -> None:
    """Make one tensor of embedding and head: in the original it is the head, loaded last, that stays.

    Args:
        path: for messages.
        tensors: changed in place.
        mask: the row in which the two may differ, because the loader has set one of them to 0.
    """
    head, embedding = tensors.pop("lm_head.weight", None), tensors.get("embed_tokens.weight")
    if head is None or embedding is None:
        return
    rest = [row for row in range(len(embedding)) if row != mask]
    if head.shape != embedding.shape or not same_values(head[rest], embedding[rest]):
        raise CheckpointError(
            f"{path}: lm_head.weight and embed_tokens.weight differ, and fair-esm has one tensor for both, so it could"
            " not load this file as it is"
        )
    tensors["embed_tokens.weight"] = head
