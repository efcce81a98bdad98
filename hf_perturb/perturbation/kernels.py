"""Pure functions on one tensor with an explicit generator; nothing reads or changes global random state.

The initialisers draw the bits of `torch.nn.init`, on the CPU in float32. The shuffles never look at values.
Whoever builds models without initialising them replaces functions of `torch.nn.init`, methods of `torch.Tensor`, or
constructors of tensors; so what is drawn with here are torch's operators themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

Shape = tuple[int, ...]

# looked up by the dispatcher, so that they are torch's own wherever this file is imported
_ATEN: Any = torch.ops.aten
_EMPTY, _FULL, _RANDPERM = _ATEN.empty.memory_format, _ATEN.full.default, _ATEN.randperm.generator
_UNIFORM, _NORMAL, _RANDOM = _ATEN.uniform_.default, _ATEN.normal_.default, _ATEN.random_.default
_CPU = torch.device("cpu")
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def constant(shape: Shape, generator: torch.Generator, *, value: float) -> torch.Tensor:
    """Return a tensor of one value; the generator is not used."""
    made: torch.Tensor = _FULL(shape, value, dtype=torch.float32, device=_CPU)
    return made


def uniform(shape: Shape, generator: torch.Generator, *, bound: float) -> torch.Tensor:
    """Draw from U(-bound, bound). Source: `torch.nn.Linear.reset_parameters`, for its bias."""
    drawn: torch.Tensor = _UNIFORM(_empty(shape), -bound, bound, generator=generator)
    return drawn


def normal(shape: Shape, generator: torch.Generator, *, zero_row: int | None = None) -> torch.Tensor:
    """Draw from N(0, 1), then zero one row. Source: `torch.nn.Embedding.reset_parameters`."""
    tensor = _normal(shape, generator, 1.0)
    if zero_row is not None:
        tensor[zero_row] = 0
    return tensor


def xavier_uniform(shape: Shape, generator: torch.Generator, *, gain: float) -> torch.Tensor:
    """Draw Glorot's uniform. Source: `esm.multihead_attention.MultiheadAttention.reset_parameters`."""
    return uniform(shape, generator, bound=math.sqrt(3.0) * (gain * math.sqrt(2.0 / sum(_fans(shape)))))


def xavier_normal(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """Draw Glorot's normal. Source: `esm.multihead_attention.MultiheadAttention.reset_parameters`."""
    return _normal(shape, generator, math.sqrt(2.0 / sum(_fans(shape))))


def kaiming_uniform(shape: Shape, generator: torch.Generator, *, a: float) -> torch.Tensor:
    """Draw He's uniform. Source: `torch.nn.Linear.reset_parameters` and `torch.nn.Conv1d.reset_parameters`."""
    std = math.sqrt(2.0 / (1 + a**2)) / math.sqrt(_fans(shape)[0])
    return uniform(shape, generator, bound=math.sqrt(3.0) * std)


def _normal(shape: Shape, generator: torch.Generator, std: float) -> torch.Tensor:
    drawn: torch.Tensor = _NORMAL(_empty(shape), 0.0, std, generator=generator)
    return drawn


def _fans(shape: Shape) -> tuple[int, int]:
    """Return fan-in and fan-out of a weight. Source: `torch.nn.init`, which works bounds out in the same order."""
    taps = math.prod(shape[2:])
    return shape[1] * taps, shape[0] * taps


def _empty(shape: Shape, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    made: torch.Tensor = _EMPTY(shape, dtype=dtype, device=_CPU)
    return made


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
        keys = _RANDOM(_empty(tuple(tensor.shape), torch.int64), generator=generator)
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
    drawn: torch.Tensor = _RANDPERM(length, generator=generator, dtype=dtype, device=_CPU)
    return drawn
