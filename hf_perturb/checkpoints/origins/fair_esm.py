"""The format of fair-esm: ESM-1, ESM-1b, ESM-1v and ESM-2, read and written. Source: `esm.pretrained` (2.0.0)."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any, Literal

import torch

from hf_perturb.checkpoints.network import Network
from hf_perturb.checkpoints.of_torch import check_state, mapped
from hf_perturb.checkpoints.origins.original import (
    ALLOWED,
    Original,
    cannot,
    check_class,
    check_constants,
    check_relative,
    check_suffix,
    read_pickle,
    write_pickle,
)
from hf_perturb.checkpoints.shapes import without_prefix
from hf_perturb.checkpoints.tensors import Tensor, same_values
from hf_perturb.errors import CheckpointError
from hf_perturb.storage.folders import whole_files

CONTACTS = ("contact_head.regression.weight", "contact_head.regression.bias")
# what the original class has built in, and a configuration of ours could have otherwise
_BUILT_IN = ("vocab_size", "pad_token_id", "mask_token_id", "bos_token_id", "eos_token_id", "layer_norm_eps")
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
# what its files call the tensor that every network has; whatever is before that is somebody else's
_ANCHORS = [
    f"{before}embed_tokens.weight" for before in ("encoder.sentence_encoder.", "sentence_encoder.", "decoder.", "")
]


def read_esm_1(path: Path, data: dict[str, Any]) -> Original:
    """ESM-1, ESM-1b and ESM-1v. Source: `esm.pretrained._load_model_and_alphabet_core_v1`."""
    given = _fields(data["args"])
    check_relative(path, given["arch"])
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
        if not tensors.get(_WITHOUT_MEANING, torch.tensor(torch.nan, device="cpu")).half().isfinite().all():
            tensors[_WITHOUT_MEANING] = torch.zeros(1, device="cpu")
    else:
        config["emb_layer_norm_before"] = any(name.startswith("emb_layer_norm_before") for name in tensors)
        config["max_position_embeddings"] = arguments["max_positions"] + 2
    network = Network.of(
        "fair_esm",
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
        mask: int = network.sizes.mask_token_id
        tensors.get("embed_tokens.weight", torch.empty(0, device="cpu"))[mask : mask + 1].zero_()
        _tie(path, tensors, mask)
    return _fair_esm(path, network, tensors)


def read_esm_2(path: Path, data: dict[str, Any]) -> Original:
    """ESM-2. Source: `esm.pretrained._load_model_and_alphabet_core_v2`."""
    arguments = _fields(_fields(data["cfg"])["model"])
    tensors = _tensors(path, data["model"], "ESM-2")
    contacts = _add_regression(path, tensors)
    network = Network.of(
        "fair_esm",
        model_version="ESM-2",
        hidden_size=arguments["encoder_embed_dim"],
        num_hidden_layers=arguments["encoder_layers"],
        num_attention_heads=arguments["encoder_attention_heads"],
        intermediate_size=4 * arguments["encoder_embed_dim"],
        token_dropout=bool(arguments["token_dropout"]),
        contact_head=contacts,
    )
    _tie(path, tensors, None)
    return _fair_esm(path, network, tensors)


def _fair_esm(path: Path, network: Network, tensors: dict[str, torch.Tensor]) -> Original:
    missing = f"no {path.stem}{REGRESSION} beside it: converted without the head that predicts contacts"
    found = {name: Tensor.of(tensor) for name, tensor in tensors.items()}
    return Original(str(path), network, found, notes=[] if network.sizes.contact_head else [missing])


def _fields(arguments: Any) -> dict[str, Any]:
    return vars(arguments) if isinstance(arguments, Namespace) else dict(arguments)


def _without(name: str, *parts: str) -> str:
    """Return what follows the first of some parts in a name."""
    for part in parts:
        name = name.partition(part)[2] or name
    return name


def _tensors(path: Path, state: Any, version: str) -> dict[str, torch.Tensor]:
    """Name the tensors of a state_dict as the class does."""
    check_state(f"{path}: its 'model'", state)
    bare, _ = without_prefix(state, *_ANCHORS)
    named = {_without(name, *_PREFIXES[version]): tensor.detach() for name, tensor in bare.items()}
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
    if head.shape != embedding.shape or not same_values(Tensor.of(head[rest]), Tensor.of(embedding[rest])):
        raise CheckpointError(
            f"{path}: lm_head.weight and embed_tokens.weight differ, and fair-esm has one tensor for both, so it could"
            " not load this file as it is"
        )
    tensors["embed_tokens.weight"] = head


def write_fair_esm(original: Original, out: Path) -> tuple[Path, ...]:
    """Write what `esm.pretrained.load_model_and_alphabet_local` reads, the contact regression beside it.

    Raises:
        CheckpointError: if its classes have no such network, or its loader would take the name for another one.
    """
    check_class(original, "fair-esm", "FairEsmForMaskedLM")
    network, sizes = original.network, original.network.sizes
    version = network.version
    if version != "ESM-1" and not sizes.tie_word_embeddings:
        raise cannot(
            original,
            "fair-esm",
            "its class has one tensor for lm_head.weight and embed_tokens.weight, and here they differ; a variant with"
            " exclude=['lm_head.weight'], and embeddings that are not perturbed also, keeps them together",
        )
    check_constants(original, "fair-esm", _BUILT_IN)
    check_suffix(out)
    _check_name(original, out)
    if version == "ESM-2" and sizes.intermediate_size != 4 * sizes.hidden_size:
        raise cannot(original, "fair-esm", "its ESM-2 has feed-forward layers of four times the width")
    tensors = mapped(original.tensors)
    contacts = {name: tensors.pop(name) for name in CONTACTS if name in tensors}
    beside = contacts and _is_looked_for(out)
    if not beside:
        tensors.update(contacts)
    if version != "ESM-1":
        # by itself: the loader zeroes the mask's row of the embedding, and the head, loaded last, restores it
        tensors["lm_head.weight"] = tensors["embed_tokens.weight"].clone()
    regression = out.with_name(out.stem + REGRESSION)
    with whole_files(out, regression) as (file, second):
        write_pickle({**_loader_arguments(network), "model": tensors}, original.record, file)
        if beside:
            write_pickle({"model": contacts}, None, second)
    return (out, regression) if beside else (out,)


def _loader_arguments(network: Network) -> dict[str, Any]:
    """Return what the loader builds the network from. Source: `esm.pretrained`, both of its cores."""
    config: Any = network.sizes
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


def _check_name(original: Original, out: Path) -> None:
    """Raise if a name makes fair-esm take the file for another network; its loader goes by the name."""
    is_esm2 = original.network.version == "ESM-2"
    if out.name.startswith("esm2") != is_esm2:
        rule = "must begin with 'esm2'" if is_esm2 else "must not begin with 'esm2'"
        raise CheckpointError(f"{out}: fair-esm tells networks by the names of their files; this one {rule}")
    if not original.network.sizes.contact_head and _is_looked_for(out):
        raise CheckpointError(
            f"{out}: {original.name} has no contact head, and fair-esm takes a file without {REGRESSION} beside it"
            " only if its name holds 'esm1v'; allowed: such a name"
        )


def _is_looked_for(out: Path) -> bool:
    """Whether fair-esm wants a contact regression beside. Source: `esm.pretrained._has_regression_weights`."""
    return not ("esm1v" in out.stem or "esm_if" in out.stem)
