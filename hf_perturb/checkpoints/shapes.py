"""What tensors a network has, from its sizes alone.

Names and shapes in the order of the class's `state_dict`, without building the class: to import Transformers' models
takes longer than to shuffle a network. A test compares every layout with its class.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

Shape = tuple[int, ...]
Value = TypeVar("Value")

# how the classes of each family begin, and what each head is called by Transformers and by us
PREFIXES = {"fair_esm": "FairEsm", "carp": "Carp"}
AUTO_CLASSES = {
    "AutoModel": "Model",
    "AutoModelForMaskedLM": "ForMaskedLM",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
    "AutoModelForTokenClassification": "ForTokenClassification",
}
_BUFFERS = (".inv_freq", "._float_tensor")
# what torch's own wrappers put between the names of modules: `torch.compile`, FSDP, activation checkpointing
_WRAPPERS = r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
_NAMED = 8  # how many tensors a message names


def layout(config: Any, architecture: str, labels: int) -> dict[str, Shape]:
    """Return the shape of every parameter and stored buffer by document name.

    Args:
        config: the sizes, a `FairEsmSizes` or `CarpSizes`.
        architecture: the class, such as `FairEsmForMaskedLM`; a tied head is named as well.
        labels: classes or targets of a downstream head.
    """
    language = architecture.endswith("ForMaskedLM")
    if config.family == "carp":
        tensors = dict(_carp(config))
        head = _carp_head(config) if language else {}
    else:
        tensors = dict(_fair_esm(config))
        head = _fair_esm_head(config) if language else {}
    if not architecture.endswith("Classification"):
        # ESM-1's projection belongs to the network itself, so it comes before its modules
        return {**head, **tensors} if "embed_out" in head else {**tensors, **head}
    dense = architecture.endswith("SequenceClassification")
    classifier = dict(_linear("classifier.dense", config.hidden_size, config.hidden_size)) if dense else {}
    return {**tensors, **classifier, **dict(_linear("classifier.out_proj", config.hidden_size, labels))}


def language_head(config: Any) -> tuple[str, ...]:
    """Return the names of the language head's tensors."""
    return tuple(_carp_head(config) if config.family == "carp" else _fair_esm_head(config))


def is_parameter(name: str) -> bool:
    """Whether a tensor is a parameter, not a buffer."""
    return not name.endswith(_BUFFERS)


def without_prefix(tensors: Mapping[str, Value], *anchors: str) -> tuple[dict[str, Value], str]:
    """Name tensors without what is before all of their names, such as the `module.` of a module that held the network.

    Args:
        tensors: by name.
        anchors: what the network calls one of its tensors, one name after the other.

    Returns:
        The tensors, and what is before the names of the network's; they keep it where others lack it.
    """
    bare = {re.sub(_WRAPPERS, "", name): tensor for name, tensor in tensors.items()}
    bare = bare if len(bare) == len(tensors) else dict(tensors)
    found = (name for anchor in anchors for name in bare if name == anchor or name.endswith(f".{anchor}"))
    anchored = next(found, "")
    prefix = next((anchored.removesuffix(anchor) for anchor in anchors if anchored.endswith(anchor)), "")
    if not all(name.startswith(prefix) for name in bare):
        return bare, prefix
    return {name.removeprefix(prefix): tensor for name, tensor in bare.items()}, prefix


def part_of_another(prefix: str) -> str:
    """Say that a network is a part of what was saved, by what is before its names."""
    return f"the network is a part of what was saved, with {prefix!r} before its names: save that part alone"


def listed(names: Iterable[str]) -> str:
    """Join names for a message, the first few of many."""
    every = list(names)
    more = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return ", ".join(every[:_NAMED]) + more


def _linear(name: str, inputs: int, outputs: int, *taps: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs, *taps)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _fair_esm(config: Any) -> Iterator[tuple[str, Shape]]:
    """Source: `esm.model.esm1.ProteinBertModel`, `esm.model.esm2.ESM2` (fair-esm 2.0.0)."""
    width, version = config.hidden_size, config.model_version
    yield "embed_tokens.weight", (config.vocab_size, width)
    for number in range(config.num_hidden_layers):
        layer = f"layers.{number}"
        if version == "ESM-1":
            yield f"{layer}.self_attn.bias_k", (1, 1, width)
            yield f"{layer}.self_attn.bias_v", (1, 1, width)
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from _linear(f"{layer}.self_attn.{projection}", width, width)
        if version == "ESM-2":
            yield f"{layer}.self_attn.rot_emb.inv_freq", (width // config.num_attention_heads // 2,)
        yield from _norm(f"{layer}.self_attn_layer_norm", width)
        yield from _linear(f"{layer}.fc1", width, config.intermediate_size)
        yield from _linear(f"{layer}.fc2", config.intermediate_size, width)
        yield from _norm(f"{layer}.final_layer_norm", width)
    if config.contact_head:
        yield from _linear("contact_head.regression", config.num_hidden_layers * config.num_attention_heads, 1)
    if version == "ESM-1":
        yield "embed_positions._float_tensor", (1,)
        return
    if version == "ESM-1b":
        yield "embed_positions.weight", (config.max_position_embeddings, width)
    if config.emb_layer_norm_before:
        yield from _norm("emb_layer_norm_before", width)
    yield from _norm("emb_layer_norm_after", width)


def _fair_esm_head(config: Any) -> dict[str, Shape]:
    width, tokens = config.hidden_size, config.vocab_size
    if config.model_version == "ESM-1":
        bias = {"embed_out_bias": (tokens,)} if config.final_bias else {}
        return {"embed_out": (tokens, width), **bias}
    head = {"lm_head.weight": (tokens, width), "lm_head.bias": (tokens,)}
    return {**head, **dict(_linear("lm_head.dense", width, width)), **dict(_norm("lm_head.layer_norm", width))}


def _carp(config: Any) -> Iterator[tuple[str, Shape]]:
    """Source: `sequence_models.convolutional.ByteNet` (sequence-models 1.8.0)."""
    width, block = config.hidden_size, config.block_size
    yield "model.embedder.embedder.weight", (config.vocab_size, config.embedding_size)
    yield from _linear("model.embedder.up_embedder.conv", config.embedding_size, width, 1)
    for number in range(config.num_hidden_layers):
        layer = f"model.embedder.layers.{number}"
        yield from _linear(f"{layer}.conv", block, block, config.kernel_size)
        yield from _norm(f"{layer}.sequence1.0", width)
        yield from _linear(f"{layer}.sequence1.2.conv", width, block, 1)
        yield from _norm(f"{layer}.sequence1.3", block)
        yield from _norm(f"{layer}.sequence2.0", block)
        yield from _linear(f"{layer}.sequence2.2.conv", block, width, 1)


def _carp_head(config: Any) -> dict[str, Shape]:
    decoder = dict(_linear("model.decoder.conv", config.hidden_size, config.vocab_size, 1))
    return {**decoder, **dict(_norm("model.last_norm", config.hidden_size))}
