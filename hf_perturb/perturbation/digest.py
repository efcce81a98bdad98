"""Digests of weights: independent of sharding, of the order inside files and of the device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from blake3 import blake3

from hf_perturb.perturbation.floats import Array, array_of, dtype_code
from hf_perturb.perturbation.parallel import for_each

if TYPE_CHECKING:
    import torch

Values = TypeVar("Values", bound="Array | torch.Tensor")

PREFIX = "blake3:"
# as long as a digest, for a header whose length must be known before there is one
NO_DIGEST = PREFIX + 64 * "0"


def digest_of(tensors: Mapping[str, Values]) -> str:
    """Digest tensors by name, arrays of numpy or tensors of torch.

    The BLAKE3 of the lines `name dtype shape blake3-of-the-bytes`, in the order of the names, with dtype and shape as
    in a safetensors header (`F32`, `[2, 3]`). A tensor that goes by several names counts once, under the first.

    Args:
        tensors: by document name, in the order of the original class.

    Returns:
        `"blake3:"` and 64 hexadecimal digits.
    """
    return digest_of_lines(lines_of(distinct(tensors)))


def lines_of(tensors: Mapping[str, Values]) -> dict[str, str]:
    """Return what `tensor_digest` says of every tensor; what goes by several names is read once."""
    first: dict[object, str] = {}
    same = {name: first.setdefault(_memory(name, tensor), name) for name, tensor in tensors.items()}
    lines = dict.fromkeys(first.values(), "")

    def read(name: str) -> None:
        lines[name] = tensor_digest(tensors[name])

    for_each(read, lines)
    return {name: lines[source] for name, source in same.items()}


def digest_of_lines(lines: Mapping[str, str]) -> str:
    """Digest what `tensor_digest` returns, by name; see `digest_of`."""
    text = "".join(f"{name} {line}\n" for name, line in sorted(lines.items()))
    return PREFIX + blake3(text.encode()).hexdigest()


def tensor_digest(values: Array | torch.Tensor) -> str:
    """Return `dtype shape blake3` of one tensor."""
    whole = values.full_tensor() if hasattr(values, "full_tensor") else values  # spread over devices
    content = blake3(bytes_of_values(array_of(whole))).hexdigest()
    return digest_line(dtype_code(values.dtype), values.shape, content)


def digest_line(dtype: str, shape: Iterable[int], content: str) -> str:
    """Return `dtype shape blake3`, with the type as in a safetensors header and hexadecimal digits."""
    return f"{dtype} {[*shape]} {content}"


def bytes_of_values(values: Array) -> memoryview:
    """Return the bytes of an array, those of a contiguous one without a copy."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def distinct(tensors: Mapping[str, Values]) -> dict[str, Values]:
    """Return the tensors without the later names of those that share their memory."""
    kept: dict[object, tuple[str, Values]] = {}
    for name, tensor in tensors.items():
        kept.setdefault(_memory(name, tensor), (name, tensor))
    return dict(kept.values())


def _memory(name: str, values: Array | torch.Tensor) -> object:
    """Return what tells the memory of a tensor; one that has none is its own by its name."""
    if isinstance(values, np.ndarray):
        return (values.ctypes.data, values.dtype, values.shape, values.strides) if values.size else name
    if values.is_meta or not values.numel():
        return name
    return values.device, values.data_ptr(), values.dtype, values.shape, values.stride()
