"""Digests of weights: independent of sharding, of the order inside files and of the device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from blake3 import blake3

from hf_perturb.perturbation.parallel import for_each

if TYPE_CHECKING:
    import torch

PREFIX = "blake3:"
# as long as a digest, for a header whose length must be known before there is one
NO_DIGEST = PREFIX + 64 * "0"
# the names that safetensors headers use, so that a file's digest needs no tensor
_CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
    "complex64": "C64",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
}
DTYPES = {code: name for name, code in _CODES.items()}


def dtype_code(dtype: torch.dtype | str) -> str:
    """Return how safetensors headers name a type, `F32` for `torch.float32`, `"torch.float32"` and `"float32"`."""
    name = str(dtype).removeprefix("torch.")
    return _CODES.get(name, name)


def torch_dtype(code: str) -> torch.dtype:
    """Return the type that a safetensors header names."""
    import torch

    dtype: torch.dtype = getattr(torch, DTYPES[code])
    return dtype


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Digest tensors by name.

    The BLAKE3 of the lines `name dtype shape blake3-of-the-bytes`, in the order of the names, with dtype and shape as
    in a safetensors header (`F32`, `[2, 3]`). A tensor that goes by several names counts once, under the first.

    Args:
        tensors: by document name, in the order of the original class.

    Returns:
        `"blake3:"` and 64 hexadecimal digits.
    """
    return digest_of_lines(lines_of(distinct(tensors)))


def lines_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
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


def tensor_digest(tensor: torch.Tensor) -> str:
    """Return `dtype shape blake3` of one tensor."""
    import torch

    values = tensor.detach()
    if hasattr(values, "full_tensor"):  # spread over devices
        values = values.full_tensor()
    data = values.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return digest_line(dtype_code(tensor.dtype), tensor.shape, blake3(data.data).hexdigest())


def digest_line(dtype: str, shape: Iterable[int], content: str) -> str:
    """Return `dtype shape blake3`, with the type as in a safetensors header and hexadecimal digits."""
    return f"{dtype} {[*shape]} {content}"


def distinct(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors without the later names of those that share their memory."""
    kept: dict[object, tuple[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        kept.setdefault(_memory(name, tensor), (name, tensor))
    return dict(kept.values())


def _memory(name: str, tensor: torch.Tensor) -> object:
    """Return what tells the memory of a tensor; one that has none is its own by its name."""
    if tensor.is_meta or not tensor.numel():
        return name
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
