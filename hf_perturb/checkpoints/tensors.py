"""Files of tensors, opened once: what their headers say, and their bytes on request. Needs torch only for values."""

from __future__ import annotations

import os
import re
import warnings
import weakref
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from hf_perturb.checkpoints.shapes import Shape
from hf_perturb.errors import CheckpointError
from hf_perturb.perturbation.digest import digest_line, dtype_code, tensor_digest, torch_dtype

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
FLOATS = ("F64", "F32", "F16", "BF16")
_CHUNK = 1 << 20


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

    def mapped(self) -> torch.UntypedStorage:
        """Map the file into memory, which keeps no descriptor open; what is written there stays private."""
        import torch

        # the descriptor by its name: the path may be another file's by now
        name = Path(f"/dev/fd/{self.descriptor}")
        storage: Any = torch.UntypedStorage.from_file(str(name if name.exists() else self.path), False, self.size)
        return storage


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
        buffer = memoryview(bytearray(min(_CHUNK, self.size)))
        for done in range(0, self.size, _CHUNK):
            chunk = buffer[: min(_CHUNK, self.size - done)]
            self.file.read_into(chunk, self.begin + done)
            yield chunk

    def read(self) -> torch.Tensor:
        """Read the bytes into memory, `(size,)`.

        Raises:
            CheckpointError: if somebody has written into the file since it was opened.
        """
        import torch

        with torch.inference_mode(False):  # whoever is in that mode must be able to train what was loaded
            values = torch.empty(self.size, dtype=torch.uint8, device="cpu")
        self.file.read_into(values.numpy().data, self.begin)
        return values


@dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint: what is said of it, and where its values are.

    Args:
        dtype: of its elements, as in a safetensors header (`F32`).
        shape: of it.
        source: its bytes in a file of safetensors, or itself, in memory or mapped by torch.
        stated: what the header of its file says that the BLAKE3 of its bytes is, `None` where it says nothing.
    """

    dtype: str
    shape: Shape
    source: Region | torch.Tensor = field(repr=False)
    stated: str | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Tensor:
        """Describe a tensor that is at hand."""
        return cls(dtype_code(tensor.dtype), tuple(tensor.shape), tensor.detach())

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

    def values(self) -> torch.Tensor:
        """Return the values; those in a file are read, so that its pages stay out of memory.

        Raises:
            CheckpointError: if somebody has written into the file since it was opened.
        """
        if not isinstance(self.source, Region):
            return self.source
        import torch

        values = self.source.read()
        with torch.inference_mode(False):
            return values.view(self.torch_dtype).view(self.shape)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Its type, as torch has it.

        Raises:
            CheckpointError: if torch has no such type.
        """
        try:
            return torch_dtype(self.dtype)
        except (KeyError, AttributeError) as error:
            raise CheckpointError(f"tensors of type {self.dtype} are none that this torch has") from error

    @property
    def stated_line(self) -> str | None:
        """What `digest` returns if the header of its file tells the truth, `None` where that says nothing."""
        return None if self.stated is None else digest_line(self.dtype, self.shape, self.stated)

    def digest(self) -> str:
        """Return `dtype shape blake3`, what a digest says of one tensor; see `digest_of`."""
        if not isinstance(self.source, Region):
            return tensor_digest(self.source)
        content = blake3()
        for chunk in self.source.chunks():
            content.update(chunk)
        return digest_line(self.dtype, self.shape, content.hexdigest())


def elements_of(shape: Shape) -> int:
    """Return the number of elements of a shape."""
    count = 1
    for size in shape:
        count *= size
    return count


def bytes_of(dtype: str, shape: Shape) -> int:
    """Return the size in bytes of a tensor of a type and shape."""
    return elements_of(shape) * BITS[dtype] // 8


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers, NaN for NaN, in whatever types."""
    import torch

    if one.shape != other.shape:
        return False
    return torch.allclose(one.values().double(), other.values().double(), rtol=0, atol=0, equal_nan=True)


def mapped(tensors: Mapping[str, Tensor]) -> dict[str, torch.Tensor]:
    """Return the values of tensors, those in files mapped into memory rather than read."""
    import torch

    files: dict[OpenFile, torch.UntypedStorage] = {}
    made: dict[str, torch.Tensor] = {}
    used: set[Region | int] = set()
    for name, tensor in tensors.items():
        region = tensor.region if tensor.nbytes else None
        with torch.inference_mode(False):
            if region is None:
                values = tensor.values()
            else:
                if region.file not in files:
                    files[region.file] = region.file.mapped()
                part = files[region.file][region.begin : region.begin + region.size]
                values = torch.empty(0, dtype=tensor.torch_dtype, device="cpu").set_(part).view(tensor.shape)
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
    import torch

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
    import torch

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


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no entry is NaN or infinite; its bounds tell, 30 times as fast as looking at every entry."""
    import torch

    return tensor.numel() == 0 or all(bool(bound.isfinite()) for bound in torch.aminmax(tensor))
