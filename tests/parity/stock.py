"""Transformers' own ESM: small models of it, and folders in every layout that its weights are found in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from support.models import build_tokenizer
from torch import nn
from transformers import EsmConfig, EsmForMaskedLM, PreTrainedModel

from hf_perturb.checkpoints.network import ESM1B
from parity.originals import assert_close, draw_sequences

# by the names of `originals.FAIR_ESM`, and of the same sizes
STOCKS: dict[str, dict[str, Any]] = {
    "esm1b": {"position_embedding_type": "absolute", "emb_layer_norm_before": True},
    "esm1v": {"position_embedding_type": "absolute", "emb_layer_norm_before": False},
    "esm2": {"position_embedding_type": "rotary", "emb_layer_norm_before": False},
}
_PER_LAYER = "esm.encoder.layer.{}.attention.self.rotary_embeddings.inv_freq"
_PER_MODEL = "esm.rotary_embeddings.inv_freq"
_HEAD = "lm_head.decoder.weight"

# so that logits, attentions and contacts are of the order that the tolerance is meant for
_SCALES = {"word_embeddings.weight": 10, "query.weight": 15, "key.weight": 5, "contact_head.regression.weight": 300}


def stock_config(name: str, **options: Any) -> EsmConfig:
    """Return the configuration of a small network, by default with what every published one has."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    alphabet = {"vocab_size": 33, "mask_token_id": 32, "pad_token_id": 1}
    published = {"layer_norm_eps": 1e-5, "token_dropout": True, "max_position_embeddings": 1026}
    published |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return EsmConfig(**{**alphabet, **sizes, **published, **STOCKS[name], **options})


def stock_model(name: str, head: type[PreTrainedModel] = EsmForMaskedLM, **options: Any) -> PreTrainedModel:
    """Build a small network, every weight a draw of its own; eager, since no other attention returns its weights.

    Rotary frequencies are rounded to half precision and back, as in the published files, so that computing them anew
    gives other outputs.
    """
    torch.manual_seed(0)
    model = head(stock_config(name, attn_implementation="eager", **options)).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            for ending, scale in _SCALES.items():
                parameter.mul_(scale if parameter_name.endswith(ending) else 1)
            parameter.add_(0.1 * torch.randn(parameter.shape))
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("inv_freq"):
                buffer.copy_(buffer.half().float())
    return model


def frequencies_of(model: PreTrainedModel) -> torch.Tensor | None:
    """Return the rotary frequencies; all layers share them, in one buffer or, in old releases, one for each."""
    return next((buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq")), None)


def published_tensors(model: PreTrainedModel, **frequencies: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the tensors of a masked language model as the published repositories name them.

    Args:
        model: the network.
        **frequencies: rotary frequencies of layers by their number (`_0=...`), in place of the model's.
    """
    positions = torch.arange(model.config.max_position_embeddings)[None]
    tensors = {"esm.embeddings.position_ids": positions, **_without_frequencies(model)}
    if (shared := frequencies_of(model)) is not None:
        tensors["esm.embeddings.position_embeddings.weight"] = torch.randn(positions.shape[1], model.config.hidden_size)
        for layer in range(model.config.num_hidden_layers):
            tensors[_PER_LAYER.format(layer)] = frequencies.get(f"_{layer}", shared).clone()
    return tensors


def _without_frequencies(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("inv_freq")}


def without_head(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Leave a tied head out: a safetensors file holds no tensor twice."""
    return {name: tensor.contiguous() for name, tensor in tensors.items() if name != _HEAD}


def write_config(folder: Path, config: EsmConfig, **changes: Any) -> None:
    """Write the `config.json` of a masked language model; a change to `None` takes a key away."""
    stored = {**config.to_dict(), "architectures": ["EsmForMaskedLM"], "dtype": "float32", **changes}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({key: value for key, value in stored.items() if value is not None}))


def _as_saved(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder)


def _published(model: PreTrainedModel, folder: Path) -> None:
    write_config(folder, model.config)
    save_file(without_head(published_tensors(model)), folder / "model.safetensors", {"format": "pt"})


def _sharded(model: PreTrainedModel, folder: Path) -> None:
    write_config(folder, model.config)
    tensors = without_head(published_tensors(model))
    where = {name: f"model-{1 + i % 3:05d}-of-00003.safetensors" for i, name in enumerate(tensors)}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in tensors if where[name] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def _pickled(model: PreTrainedModel, folder: Path) -> None:
    write_config(folder, model.config)
    torch.save(published_tensors(model), folder / "pytorch_model.bin")


def _with_shared_frequencies(model: PreTrainedModel, name: str) -> dict[str, torch.Tensor]:
    frequencies = frequencies_of(model)
    return without_head(_without_frequencies(model) | ({} if frequencies is None else {name: frequencies}))


def _shared_frequencies(model: PreTrainedModel, folder: Path) -> None:
    write_config(folder, model.config)
    save_file(_with_shared_frequencies(model, _PER_MODEL), folder / "model.safetensors", {"format": "pt"})


def _renamed(model: PreTrainedModel, folder: Path) -> None:
    """As Transformers 5.23 saves: the star is part of the name, and the norms of layers are named as TensorFlow's."""
    write_config(folder, model.config)
    tensors = {
        re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", name)): tensor
        for name, tensor in _with_shared_frequencies(model, _PER_LAYER.format("*")).items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


LAYOUTS: dict[str, Callable[[PreTrainedModel, Path], None]] = {
    "as saved": _as_saved,
    "published": _published,
    "sharded": _sharded,
    "pickled": _pickled,
    "shared frequencies": _shared_frequencies,
    "renamed": _renamed,
}
# read by releases whose layers share the buffer of frequencies
RECENT = ("shared frequencies", "renamed")


def padded_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Return masked sequences of several lengths, and which positions are not padding."""
    batch = build_tokenizer(ESM1B)(draw_sequences((40, 1, 13), "<mask>"), padding=True, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]


@torch.no_grad()
def assert_same_outputs(ours: nn.Module, theirs: nn.Module, *, distinct: bool = True) -> None:
    """Compare logits, hidden states, attentions and contacts where there is no padding.

    Args:
        ours: our model.
        theirs: the stock one.
        distinct: whether outputs should be far from uniform, as they are unless weights were drawn anew.
    """
    input_ids, mask = padded_batch()
    inside, lengths = mask.bool(), (mask.sum(-1) - 2).tolist()
    wanted = {"attention_mask": mask, "output_hidden_states": True, "output_attentions": True}
    our, their = ours(input_ids, **wanted), theirs(input_ids, **wanted)
    assert not distinct or 0.1 < their.logits[inside].std() < 10
    assert_close(our.logits[inside], their.logits[inside], "logits")
    for i, (one, other) in enumerate(zip(our.hidden_states, their.hidden_states, strict=True)):
        assert_close(one[inside], other[inside], f"hidden state {i}")
    both = inside[:, None, :, None] & inside[:, None, None, :]
    for i, (one, other) in enumerate(zip(our.attentions, their.attentions, strict=True)):
        assert not distinct or other[0].std() > 0.01
        assert_close(one * both, other * both, f"attentions of layer {i}")
    contacts = theirs.predict_contacts(input_ids, mask)
    assert not distinct or contacts[0].std() > 0.05
    for one, other, n in zip(ours.predict_contacts(input_ids, mask), contacts, lengths, strict=True):
        assert_close(one[:n, :n], other[:n, :n], f"contacts of {n} residues")
