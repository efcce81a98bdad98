"""Floating-point types as numpy has them, and casts between them that give the same bits everywhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]

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
# the types that weights are drawn and shuffled in
FLOATS = ("F64", "F32", "F16", "BF16")
_NAMED = 8  # tensors that a message names
_CHUNK = 1 << 16  # entries whose copies stay in the cache


def dtype_code(dtype: object) -> str:
    """Return how safetensors headers name a type of numpy or torch, `F32` for `torch.float32` and `"float32"`."""
    name = str(dtype).removeprefix("torch.")
    return _CODES.get(name, name)


def numpy_dtype(code: str) -> np.dtype[Any]:
    """Return the type that a safetensors header names; those that numpy lacks are `ml_dtypes`'.

    Raises:
        KeyError: if there is no such type, of less than a byte among them.
    """
    name = DTYPES[code]
    if code.startswith(("BF", "F8")):
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
    return np.dtype(name)


def other_types(types: Mapping[str, str]) -> str:
    """Say which tensors, by name, are of types (`F8_E4M3`) that nothing is drawn in; nothing if none is."""
    odd = [f"{name} {code}" for name, code in types.items() if code not in FLOATS]
    more = f" and {len(odd) - _NAMED} more" if len(odd) > _NAMED else ""
    said = f"tensors of types that are not perturbed: {', '.join(odd[:_NAMED])}{more}; allowed: {', '.join(FLOATS)}"
    return said if odd else ""


def as_integers(values: Array) -> Array:
    """Return the bits of every entry as an unsigned integer, without a copy."""
    return values.view(np.dtype(f"u{values.dtype.itemsize}"))


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether a type is bfloat16, without importing what defines it."""
    return dtype.name == "bfloat16"


def cast(values: Array, dtype: np.dtype[Any]) -> Array:
    """Return values in another type, rounded to nearest even; the array itself if it is of that type.

    Float64 becomes a half type by way of float32, as in torch. The casts of bfloat16 are integer arithmetic, 20 times
    as fast as those of the library that defines it.
    """
    if values.dtype == dtype:
        return values
    plain = widened(values)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if dtype.itemsize == 2 and plain.dtype == np.float64:
            plain = plain.astype(np.float32)
        if not is_bfloat16(dtype):
            return plain.astype(dtype, copy=False)
        out = np.empty(values.shape, dtype)
        flat, bits = np.ascontiguousarray(plain).reshape(-1), as_integers(out.reshape(-1))
        for start in range(0, flat.size, _CHUNK):
            part = slice(start, start + _CHUNK)
            bits[part] = _rounded(flat[part].astype(np.float32, copy=False))
    return out


def widened(values: Array) -> Array:
    """Return bfloat16 values as float32, which holds each of them; other values as they are."""
    if not is_bfloat16(values.dtype):
        return values
    out = np.empty(values.shape, np.uint32)
    np.left_shift(as_integers(values), np.uint32(16), out=out, dtype=np.uint32)
    return out.view(np.float32)


def _rounded(values: Array) -> Array:
    """Return the bits of float32 values as bfloat16; every NaN is one."""
    bits = values.view(np.uint32)
    up = (bits >> np.uint32(16)) & np.uint32(1)
    up += np.uint32(0x7FFF)
    up += bits
    up >>= np.uint32(16)
    if (odd := np.isnan(values)).any():
        up[odd] = 0x7FC0
    return up.astype(np.uint16)


def array_of(values: Array | torch.Tensor) -> Array:
    """Return a tensor's values as an array: its memory where it is on the CPU, a copy of it elsewhere.

    Where numpy has no such type it is that of the same bits.
    """
    if isinstance(values, np.ndarray):
        return values
    torch: Any = sys.modules["torch"]  # which made the tensor
    here: Any = values.detach().cpu()
    try:
        array: Array = here.numpy()
    except TypeError:  # numpy has no such type of its own
        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[here.element_size()]
        array = here.view(bits).numpy()
    code = dtype_code(here.dtype)
    return array.view(numpy_dtype(code)) if code in DTYPES else array
