"""Transformers' own ESM (`model_type` `esm`): its names and its configuration, read as ours and written from ours.

Source: `transformers.models.esm` (5.4 to 5.23). It has ESM-1b, ESM-1v and ESM-2, but no ESM-1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from reprlib import repr as shown
from typing import Any, TypeVar

import numpy as np

from hf_perturb.checkpoints.network import Network
from hf_perturb.checkpoints.shapes import part_of_another, without_prefix
from hf_perturb.checkpoints.tensors import Tensor
from hf_perturb.errors import CheckpointError
from hf_perturb.networks.sizes import read_fields

Value = TypeVar("Value")

# ours, and theirs inside `EsmForMaskedLM`; `*` is the number of a layer
_NAMES = {
    "embed_tokens": "esm.embeddings.word_embeddings",
    "embed_positions": "esm.embeddings.position_embeddings",
    "emb_layer_norm_before": "esm.embeddings.layer_norm",
    "emb_layer_norm_after": "esm.encoder.emb_layer_norm_after",
    "contact_head.regression": "esm.contact_head.regression",
    "lm_head.dense": "lm_head.dense",
    "lm_head.layer_norm": "lm_head.layer_norm",
    "layers.*.self_attn.q_proj": "esm.encoder.layer.*.attention.self.query",
    "layers.*.self_attn.k_proj": "esm.encoder.layer.*.attention.self.key",
    "layers.*.self_attn.v_proj": "esm.encoder.layer.*.attention.self.value",
    "layers.*.self_attn.out_proj": "esm.encoder.layer.*.attention.output.dense",
    "layers.*.self_attn.rot_emb": "esm.encoder.layer.*.attention.self.rotary_embeddings",
    "layers.*.self_attn_layer_norm": "esm.encoder.layer.*.attention.LayerNorm",
    "layers.*.fc1": "esm.encoder.layer.*.intermediate.dense",
    "layers.*.fc2": "esm.encoder.layer.*.output.dense",
    "layers.*.final_layer_norm": "esm.encoder.layer.*.LayerNorm",
}
_LEAVES = {"lm_head.weight": "lm_head.decoder.weight", "lm_head.bias": "lm_head.bias"}
_ROTARY = "layers.{}.self_attn.rot_emb.inv_freq"
# rotary frequencies of all layers at once: as Transformers 5.23 holds them, and (star and all) as it saves them
_SHARED_ROTARY = ("esm.rotary_embeddings.inv_freq", "esm.encoder.layer.*.attention.self.rotary_embeddings.inv_freq")
_ROTARY_BASE = 10_000.0
# of a head, those of all published ESM-2 among them: there, torch gives the nearest float32 on every processor (tested)
ROTARY_WIDTHS = (*range(2, 38, 2), 64, 128)
# a norm's weights as Transformers 5.23 saves them
_NORM_LEAVES = {"gamma": "weight", "beta": "bias"}
# a buffer that old releases stored, and a layer that the masked LM does not have
_WITHOUT_MEANING = ("esm.embeddings.position_ids", "esm.pooler.dense.weight", "esm.pooler.dense.bias")

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "layer_norm_eps",
    "emb_layer_norm_before",
    "token_dropout",
    "pad_token_id",
    "mask_token_id",
    "tie_word_embeddings",
)
# what means the same in every Transformers configuration, and what is ours and they only carry
_CARRIED = (
    *("dtype", "torch_dtype", "id2label", "label2id", "problem_type", "quantization_config"),
    *("output_hidden_states", "output_attentions", "return_dict"),
    *("perturbation", "contact_head", "published_as"),
)
_ALPHABET = {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32}
_VERSIONS = {"absolute": "ESM-1b", "rotary": "ESM-2"}


# the two that have nothing but a trunk and the language head
STOCK_CLASSES = ("EsmForMaskedLM", "EsmModel")
# what each of them calls the tensor that every network has
_ANCHORS = ("esm.embeddings.word_embeddings.weight", "embeddings.word_embeddings.weight")


def is_stock(stored: Mapping[str, Any]) -> bool:
    """Whether the content of a `config.json` is that of a stock ESM."""
    return stored.get("model_type") == "esm"


def config_from_stock(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the content of a stock `config.json` to the keywords of `FairEsmConfig`.

    Dropout is left out: fair-esm's networks have none, and the published copies state 0.

    Raises:
        OSError: if the network is one that fair-esm's classes do not have.
        ValueError: if a field has a value of the wrong kind.
    """
    refused = {
        "is_folding_model": "ESMFold",
        "is_decoder": "a decoder",
        "add_cross_attention": "a network with cross-attention",
    }
    stored, _ = read_fields("EsmConfig", stored, (*_SIZES, *_CARRIED, *refused, "position_embedding_type"))
    positions = stored.get("position_embedding_type", "absolute")
    for key, what in refused.items():
        if stored.get(key):
            raise CheckpointError(f"config.json: {key} is {stored[key]!r}; {what} has no counterpart in fair_esm")
    if not isinstance(positions, str) or positions not in _VERSIONS:
        allowed = " or ".join(map(repr, _VERSIONS))
        raise CheckpointError(f"config.json: position_embedding_type is {positions!r}; allowed: {allowed}")
    for key, value in _ALPHABET.items():
        if stored.get(key, value) != value:
            raise CheckpointError(
                f"config.json: {key} is {stored[key]!r}; allowed: {value}, that of ESM's protein alphabet; this network"
                " reads another one"
            )
    kept = {key: stored[key] for key in (*_SIZES, *_CARRIED) if stored.get(key) is not None}
    # what a stock config leaves out has these values there
    kept.setdefault("token_dropout", False)
    kept.setdefault("emb_layer_norm_before", False)
    kept.setdefault("layer_norm_eps", 1e-12)
    heads = {name: f"Fair{name}" for name in STOCK_CLASSES}
    named = [heads[name] for name in stored.get("architectures") or [] if name in heads]
    return {"model_type": "fair_esm", "model_version": _VERSIONS[positions], "architectures": named or None, **kept}


def config_to_stock(ours: Mapping[str, Any], network: Network) -> dict[str, Any]:
    """Translate the content of a `config.json` of ours to that of a stock ESM.

    Args:
        ours: the content.
        network: that it describes, an ESM-1b, ESM-1v or ESM-2; the masked language model or the base model.
    """
    positions = {version: kind for kind, version in _VERSIONS.items()}[str(network.version)]
    kept = {key: ours[key] for key in (*_SIZES, *_CARRIED) if ours.get(key) is not None}
    return {
        "architectures": [network.architecture.removeprefix("Fair")],
        "model_type": "esm",
        "position_embedding_type": positions,
        "bos_token_id": ours["bos_token_id"],
        "eos_token_id": ours["eos_token_id"],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "is_folding_model": False,
        **kept,
    }


def read_stock(
    name: str, tensors: Mapping[str, Tensor], network: Network, stored: Mapping[str, Any]
) -> tuple[dict[str, Tensor], Network, float | None]:
    """Read the tensors of a stock folder: name them as fair-esm does, and add rotary frequencies that are not stored.

    Args:
        name: of the folder or Hub id, for messages.
        tensors: by their stock names; none, where only its configuration is read.
        network: as the configuration describes it.
        stored: the content of its `config.json`.

    Returns:
        The tensors, the network, and the `rope_theta` that frequencies were computed from, if they were.

    Raises:
        CheckpointError: if the network is a part of what was saved, or if the configuration does not say what its
            frequencies are.
    """
    bare, prefix = without_prefix(tensors, *_ANCHORS)
    if prefix and not bare.keys() & {*_ANCHORS}:
        raise CheckpointError(f"{name!r}: {part_of_another(prefix)}")
    named, network = tensors_from_stock(bare, network)
    layers = [_ROTARY.format(layer) for layer in range(network.sizes.num_hidden_layers)]
    missing = [layer for layer in layers if layer not in named]
    if network.version != "ESM-2" or not missing or not named:
        return named, network, None
    if told := [named[layer] for layer in layers if layer in named]:  # those of one layer are those of all
        return {**named, **dict.fromkeys(missing, told[0])}, network, None
    base = _rotary_base(name, stored)
    return {**named, **dict.fromkeys(missing, _frequencies(base, network))}, network, base


def _frequencies(base: float, network: Network) -> Tensor:
    """Source: `EsmRotaryEmbedding`, bit for bit."""
    width = network.sizes.hidden_size // network.sizes.num_attention_heads
    if base == _ROTARY_BASE and width in ROTARY_WIDTHS:
        steps = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
        return Tensor.of(np.float32(1) / (base ** steps.astype(np.float64)).astype(np.float32))
    import torch  # which rounds others in its own way, on each kind of processor in another

    with torch.inference_mode(False):
        steps = torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width
        return Tensor.of(1.0 / (base**steps))


def tensors_from_stock(tensors: Mapping[str, Value], network: Network) -> tuple[dict[str, Value], Network]:
    """Name the tensors of a stock ESM as fair-esm does; a tensor that it does not know keeps its name.

    By hand, because Transformers' own renaming (`key_mapping=` of `from_pretrained`) gives each stored tensor one name,
    and the one rotary table that Transformers 5.23 stores is that of every layer.

    Args:
        tensors: by their stock names, with or without `esm.` in front.
        network: as the configuration describes it.

    Returns:
        The tensors, and the network, without a contact head where the tensors lack one.
    """
    # a network with rotary positions may hold a table of positions without meaning
    rotary = network.version == "ESM-2"
    unused = (*_WITHOUT_MEANING, "esm.embeddings.position_embeddings.weight") if rotary else _WITHOUT_MEANING
    named = {}
    for name, tensor in tensors.items():
        whole = name if name.startswith(("esm.", "lm_head.", "classifier.")) else f"esm.{name}"
        if whole in _SHARED_ROTARY:
            named.update({_ROTARY.format(layer): tensor for layer in range(network.sizes.num_hidden_layers)})
        elif whole not in unused:
            named[our_name(whole) or name] = tensor
    if "contact_head.regression.weight" not in named:
        network = network.with_sizes(contact_head=False)
    # CODEPATH: stock Transformers cannot leave the head out; an export of ESM-1v marks it as absent.
    if not network.sizes.contact_head:
        named = {name: tensor for name, tensor in named.items() if not name.startswith("contact_head.")}
    return named, network


def _rotary_base(name: str, stored: Mapping[str, Any]) -> float:
    base = stored.get("rope_theta")
    base = _ROTARY_BASE if base is None else base
    if isinstance(base, bool) or not isinstance(base, int | float) or not 1 < base < 1e30:
        raise CheckpointError(f"{name!r}: config.json: rope_theta is {shown(base)}; allowed: a number greater than 1")
    for key in ("rope_parameters", "rope_scaling"):
        asked = stored.get(key) or {}
        plain = {"rope_type": "default", "type": "default", "rope_theta": base}
        if not isinstance(asked, Mapping) or any(value != plain.get(name) for name, value in asked.items()):
            raise CheckpointError(
                f"{name!r}: config.json: {key} is {shown(asked)}, rope_theta {base}, and no frequencies are stored;"
                " Transformers' own ESM goes by rope_theta alone: say the same in both, or store them (inv_freq)"
            )
    return float(base)


def our_name(stock: str) -> str | None:
    """Return our name of a stock tensor, `None` if there is none."""
    for ours, theirs in _LEAVES.items():
        if stock == theirs:
            return ours
    module, _, leaf = stock.rpartition(".")
    for ours, theirs in _NAMES.items():
        found = re.fullmatch(re.escape(theirs).replace(r"\*", r"(\d+)"), module)
        if found:
            return f"{ours.replace('*', ''.join(found.groups()))}.{_NORM_LEAVES.get(leaf, leaf)}"
    return None


def stock_names(ours: Iterable[str]) -> dict[str, str]:
    """Return the stock name of each of our names.

    Raises:
        OSError: for a tensor that a stock ESM does not have.
    """
    return {name: _stock_name(name) for name in ours}


def _stock_name(name: str) -> str:
    if name in _LEAVES:
        return _LEAVES[name]
    module, _, leaf = name.rpartition(".")
    layer = re.search(r"\d+", module)
    theirs = _NAMES.get(re.sub(r"\d+", "*", module, count=1))
    if theirs is None:
        raise CheckpointError(f"tensor {name!r} has no counterpart in Transformers' own ESM")
    return f"{theirs.replace('*', layer.group() if layer else '*')}.{leaf}"
