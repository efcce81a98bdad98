"""Tensors of torch: made of those of a checkpoint, and read from files of `torch.save` without running them."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_perturb.checkpoints.tensors import OpenFile, Region, Tensor
from hf_perturb.errors import CheckpointError
from hf_perturb.perturbation.floats import DTYPES, Array, dtype_code

_BITS = {1: np.uint8, 2: np.int16}


def torch_dtype(code: str) -> torch.dtype:
    """Return the type that a safetensors header names.

    Raises:
        CheckpointError: if torch has no such type.
    """
    dtype: torch.dtype | None = getattr(torch, DTYPES.get(code, ""), None)
    if dtype is None:
        raise CheckpointError(f"tensors of type {code} are none that this torch has")
    return dtype


@torch.inference_mode(False)  # whoever is in that mode must be able to train what was loaded
def tensor_of(values: Array | torch.Tensor) -> torch.Tensor:
    """Return an array as a tensor of the same memory; a tensor stays what it is."""
    if isinstance(values, torch.Tensor):
        return values
    dtype = torch_dtype(dtype_code(values.dtype))
    # numpy has bfloat16 and the types of 8 bits from elsewhere
    plain = values.view(_BITS[dtype.itemsize]) if values.dtype.kind == "V" else values
    return torch.from_numpy(plain).view(dtype)


def mapped(tensors: Mapping[str, Tensor]) -> dict[str, torch.Tensor]:
    """Return the values of tensors, those in files mapped into memory rather than read."""
    files: dict[OpenFile, torch.UntypedStorage] = {}
    made: dict[str, torch.Tensor] = {}
    used: set[Region | int] = set()
    for name, tensor in tensors.items():
        region = tensor.region if tensor.nbytes else None
        with torch.inference_mode(False):
            if region is None:
                values = tensor_of(tensor.values() if isinstance(tensor.source, Region) else tensor.source)
            else:
                if region.file not in files:
                    files[region.file] = _storage_of(region.file)
                part = files[region.file][region.begin : region.begin + region.size]
                values = torch.empty(0, dtype=torch_dtype(tensor.dtype), device="cpu").set_(part).view(tensor.shape)
            # what goes by two names is two tensors: a model that shares them by accident could not be saved
            key = region or id(tensor.source)
            made[name] = values.clone() if key in used else values
        used.add(key)
    return made


def check_state(what: Any, state: Any) -> None:
    """Raise if something is no dict of tensors with values.

    Raises:
        CheckpointError: naming the tensors that are sparse, quantised or without values.
    """
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        nested = isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping)
        where = "; it has one inside, by the name 'state_dict': save that alone" if nested else ""
        raise CheckpointError(f"{what} is not a state_dict: a {type(state).__name__}, or not all of it tensors{where}")
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
        CheckpointError: if it is damaged, holds anything else, or is no such file.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    try:
        with warnings.catch_warnings(), torch.inference_mode(False), torch.serialization.safe_globals(list(allowed)):
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


def _storage_of(file: OpenFile) -> torch.UntypedStorage:
    """Map a file into memory, which keeps no descriptor open; what is written there stays private."""
    # the descriptor by its name: the path may be another file's by now
    name = Path(f"/dev/fd/{file.descriptor}")
    storage: Any = torch.UntypedStorage.from_file(str(name if name.exists() else file.path), False, file.size)
    return storage
