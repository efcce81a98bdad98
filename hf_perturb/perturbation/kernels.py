"""Pure functions on one tensor with an explicit generator; nothing reads or changes global random state.

The initialisers are `torch.nn.init`'s own, drawn on the CPU in float32. The shuffles never look at values.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import init

Shape = tuple[int, ...]

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def constant(shape: Shape, generator: torch.Generator, *, value: float) -> torch.Tensor:
    """Return a tensor of one value; the generator is not used."""
    return torch.full(shape, value, dtype=torch.float32, device="cpu")


def uniform(shape: Shape, generator: torch.Generator, *, bound: float) -> torch.Tensor:
    """Draw from U(-bound, bound). Source: `torch.nn.Linear.reset_parameters`, for its bias."""
    return init.uniform_(_empty(shape), -bound, bound, generator=generator)


def normal(shape: Shape, generator: torch.Generator, *, zero_row: int | None = None) -> torch.Tensor:
    """Draw from N(0, 1), then zero one row. Source: `torch.nn.Embedding.reset_parameters`."""
    tensor = init.normal_(_empty(shape), generator=generator)
    if zero_row is not None:
        tensor[zero_row] = 0
    return tensor


def xavier_uniform(shape: Shape, generator: torch.Generator, *, gain: float) -> torch.Tensor:
    """Draw Glorot's uniform. Source: `esm.multihead_attention.MultiheadAttention.reset_parameters`."""
    return init.xavier_uniform_(_empty(shape), gain=gain, generator=generator)


def xavier_normal(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """Draw Glorot's normal. Source: `esm.multihead_attention.MultiheadAttention.reset_parameters`."""
    return init.xavier_normal_(_empty(shape), generator=generator)


def kaiming_uniform(shape: Shape, generator: torch.Generator, *, a: float) -> torch.Tensor:
    """Draw He's uniform. Source: `torch.nn.Linear.reset_parameters` and `torch.nn.Conv1d.reset_parameters`."""
    return init.kaiming_uniform_(_empty(shape), a=a, generator=generator)


def _empty(shape: Shape) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu")


INITIALISERS: dict[str, Callable[..., torch.Tensor]] = {
    kernel.__name__: kernel for kernel in (constant, uniform, normal, xavier_uniform, xavier_normal, kaiming_uniform)
}


def shuffle(tensor: torch.Tensor, generator: torch.Generator, *, axis: str) -> torch.Tensor:
    """Return a new tensor with the same entries, of any shape `(..., n)`, in another order.

    Axis `"embedding"` applies one permutation of the last dimension to every row, `"rows"` draws one for every row,
    `"all"` permutes all entries. For a vector the first and the last are the same.

    Source: the document, "shuffle all weights along non-zero or embedding dimension" and "along all dim".
    """
    if axis == "embedding":
        return tensor.index_select(-1, permutation(tensor.shape[-1], generator).to(tensor.device))
    if axis == "rows":
        # sorting random keys permutes every row at once; 63-bit keys make a tie as good as impossible
        keys = torch.empty(tensor.shape, dtype=torch.int64, device="cpu").random_(generator=generator)
        order = keys.argsort(dim=-1, stable=True).to(tensor.device)
        # as integers: gather takes half types through float32, which rewrites a NaN
        return as_integers(tensor).gather(-1, order).view(tensor.dtype)
    flat = tensor.reshape(-1)
    return flat.index_select(0, permutation(flat.numel(), generator).to(tensor.device)).view(tensor.shape)


def as_integers(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bits of every entry as an integer, without a copy."""
    return tensor.view(_BITS[tensor.element_size()])


def permutation(length: int, generator: torch.Generator) -> torch.Tensor:
    """Draw a permutation of `0 ... length - 1`."""
    # the same draws in either type (tested); the small one takes two thirds of the time
    dtype = torch.int32 if length < 2**31 else torch.int64
    return torch.randperm(length, generator=generator, dtype=dtype, device="cpu")
