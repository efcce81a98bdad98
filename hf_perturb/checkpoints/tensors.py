"""Files of tensors, opened once: what their headers say, and their bytes on request, as arrays of numpy."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock, local
from typing import TYPE_CHECKING, Any

import numpy as np
from blake3 import blake3

from hf_perturb.checkpoints.shapes import Shape
from hf_perturb.errors import CheckpointError
from hf_perturb.perturbation.digest import bytes_of_values, digest_line, tensor_digest
from hf_perturb.perturbation.floats import Array, array_of, as_integers, cast, dtype_code, numpy_dtype

if TYPE_CHECKING:
    import torch

# bits of an element, by the names of safetensors headers; the types of quantised weights among them
BITS = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "I64": 64,
    "I32": 32,
    "I16": 16,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
    "U64": 64,
    "U32": 32,
    "U16": 16,
    "C64": 64,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
}
# infinity of each, as an integer of the same bits
_INFINITY = {"F64": 0x7FF << 52, "F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
_CHUNK = 1 << 18  # bytes, which stay in the cache while they are hashed and looked at; a multiple of every width
_LOOK = 1 << 16  # entries
_of_thread = local()


class OpenFile:
    """A file that stays the one that was opened, whatever becomes of its name.

    Args:
        path: where it is.

    Raises:
        CheckpointError: if it cannot be opened.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise CheckpointError(f"{path} cannot be opened: {error}") from error
        weakref.finalize(self, os.close, self.descriptor)
        self._lock = Lock()
        self._seen = os.fstat(self.descriptor)
        self.size = self._seen.st_size

    def is_intact(self) -> bool:
        """Whether nobody has written into it since it was opened."""
        now = os.fstat(self.descriptor)
        return (now.st_size, now.st_mtime_ns) == (self.size, self._seen.st_mtime_ns)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer from an offset on; may be called by several threads.

        Raises:
            CheckpointError: if somebody has written into the file since it was opened.
        """
        done = 0
        while done < len(buffer):
            read = self._read(buffer[done:], offset + done)
            done += read
            if not read or not self.is_intact():
                raise CheckpointError(f"{self.path} was written into while it was read; try again when it is whole")

    def _read(self, buffer: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self.descriptor, [buffer], offset)
        with self._lock, open(self.descriptor, "rb", buffering=0, closefd=False) as file:
            file.seek(offset)
            return file.readinto(buffer)


@dataclass(frozen=True)
class Region:
    """Where the bytes of a tensor are.

    Args:
        file: that holds them.
        begin: of the first byte.
        size: in bytes.
    """

    file: OpenFile
    begin: int
    size: int

    def part(self, offset: int, size: int) -> Region:
        """Return a part of it, by its offset and size in bytes."""
        return replace(self, begin=self.begin + offset, size=size)

    def chunks(self) -> Iterator[memoryview]:
        """Read the bytes as they pass; a chunk is good until the next one.

        Raises:
            CheckpointError: if somebody has written into the file since it was opened.
        """
        # the thread's own, which it keeps; who asks while it is in use has another
        buffer = _of_thread.__dict__.pop("buffer", None) or memoryview(bytearray(_CHUNK))
        try:
            for done in range(0, self.size, _CHUNK):
                chunk = buffer[: min(_CHUNK, self.size - done)]
                self.file.read_into(chunk, self.begin + done)
                yield chunk
        finally:
            _of_thread.buffer = buffer

    def read(self) -> Array:
        """Read the bytes into memory, `(size,)` of uint8.

        Raises:
            CheckpointError: if somebody has written into the file since it was opened.
        """
        values = np.empty(self.size, np.uint8)
        self.file.read_into(values.data, self.begin)
        return values


@dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint: what is said of it, and where its values are.

    Args:
        dtype: of its elements, as in a safetensors header (`F32`).
        shape: of it.
        source: its bytes in a file of safetensors, or itself: an array, or a tensor of torch, mapped by it perhaps.
        stated: what the header of its file says that the BLAKE3 of its bytes is, `None` where it says nothing.
    """

    dtype: str
    shape: Shape
    source: Region | Array | torch.Tensor = field(repr=False)
    stated: str | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, values: Array | torch.Tensor) -> Tensor:
        """Describe a tensor that is at hand, of numpy or torch; its memory is not copied."""
        values = values if isinstance(values, np.ndarray) else values.detach()
        return cls(dtype_code(values.dtype), tuple(values.shape), values)

    @property
    def region(self) -> Region | None:
        """Where the bytes are in a file, `None` for a tensor that is at hand."""
        return self.source if isinstance(self.source, Region) else None

    @property
    def elements(self) -> int:
        """Number of its elements."""
        return elements_of(self.shape)

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return bytes_of(self.dtype, self.shape)

    def values(self) -> Array:
        """Return the values; those in a file are read, so that its pages stay out of memory.

        Raises:
            CheckpointError: if somebody has written into the file since it was opened, or if numpy has no such type.
        """
        if not isinstance(self.source, Region):
            return array_of(self.source)
        return self.source.read().view(self.numpy_dtype).reshape(self.shape)

    def chunks(self) -> Iterator[memoryview]:
        """Return the bytes, as they are read; a chunk is good until the next one."""
        if isinstance(self.source, Region):
            return self.source.chunks()
        return iter([bytes_of_values(array_of(self.source))])

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """Its type, as numpy has it.

        Raises:
            CheckpointError: if numpy has no such type.
        """
        try:
            return numpy_dtype(self.dtype)
        except KeyError as error:
            raise CheckpointError(f"tensors of type {self.dtype} are none that numpy has") from error

    @property
    def stated_line(self) -> str | None:
        """What `digest` returns if the header of its file tells the truth, `None` where that says nothing."""
        return None if self.stated is None else digest_line(self.dtype, self.shape, self.stated)

    def digest(self) -> str:
        """Return `dtype shape blake3`, what a digest says of one tensor; see `digest_of`."""
        return self.examine()[0]

    def examine(self, look: bool = False) -> tuple[str, bool]:
        """Return its digest, and whether no entry is NaN or infinite; bytes in a file are read once, as they pass.

        Args:
            look: false to take the entries for finite.
        """
        if not isinstance(self.source, Region):
            return tensor_digest(self.source), not look or is_finite(self.values())
        content, dtype, finite = blake3(), self.numpy_dtype if look else None, True
        for chunk in self.source.chunks():
            content.update(chunk)
            finite = finite and (dtype is None or is_finite(np.frombuffer(chunk, dtype)))
        return digest_line(self.dtype, self.shape, content.hexdigest()), finite


def elements_of(shape: Shape) -> int:
    """Return the number of elements of a shape."""
    return math.prod(shape)


def bytes_of(dtype: str, shape: Shape) -> int:
    """Return the size in bytes of a tensor of a type and shape."""
    return elements_of(shape) * BITS[dtype] // 8


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers, NaN for NaN, in whatever types."""
    if one.shape != other.shape:
        return False
    a, b, double = one.values().reshape(-1), other.values().reshape(-1), np.dtype(np.float64)
    parts = [slice(start, start + _LOOK) for start in range(0, one.elements, _LOOK)]
    return all(np.array_equal(cast(a[part], double), cast(b[part], double), equal_nan=True) for part in parts)


def is_finite(values: Array) -> bool:
    """Whether no entry is NaN or infinite.

    Read as integers, such entries are the largest of their sign; to look for the largest takes no memory, and is as
    fast in the types that numpy works out through others.
    """
    limit = _INFINITY.get(dtype_code(values.dtype))
    if limit is None:  # a type of whole numbers, or one that nobody draws in
        return bool(np.isfinite(values).all())
    bits = as_integers(np.ascontiguousarray(values).reshape(-1))
    signed, sign = bits.view(f"i{bits.itemsize}"), 1 << 8 * bits.itemsize - 1
    return all(
        signed[start : start + _LOOK].max() < limit and bits[start : start + _LOOK].max() < sign + limit
        for start in range(0, bits.size, _LOOK)
    )
