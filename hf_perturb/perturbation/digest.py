"""Digests of weights: independent of sharding, of the order inside files and of the device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from blake3 import blake3

from hf_perturb.perturbation.floats import DTYPES as DTYPES, dtype_code as dtype_code
from hf_perturb.perturbation.parallel import for_each

if TYPE_CHECKING:
    import torch

PREFIX = "blake3:"
# as long as a digest, for a header whose length must be known before there is one
NO_DIGEST = PREFIX + 64 * "0"


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
