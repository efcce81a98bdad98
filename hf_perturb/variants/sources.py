"""The tensors of a checkpoint as they are read: from files or memory, once, and hashed as they pass."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from hf_perturb.errors import CheckpointError
from hf_perturb.networks.weights import Region, read_values, region_of
from hf_perturb.perturbation.digest import digest_of_lines

_CHUNK = 1 << 20


@dataclass
class Sources:
    """The tensors to read.

    Args:
        tensors: by name, in the order of the network; each is read once.
        dtypes: the type that each is cast to before anything else.
        digests: `dtype shape sha256` of every tensor, cast; filled in while they are read.
        nonfinite: names of tensors with NaN or infinite values; filled in if `look` is set.
        look: whether to look for such values.
    """

    tensors: Mapping[str, torch.Tensor]
    dtypes: Mapping[str, torch.dtype]
    digests: dict[str, str] = field(default_factory=dict)
    nonfinite: list[str] = field(default_factory=list)
    look: bool = False

    def digest(self) -> str:
        """Return the digest of what was read."""
        return digest_of_lines(self.digests)

    def size(self, name: str) -> int:
        """Return the bytes of a tensor, cast."""
        return self.tensors[name].numel() * self.dtypes[name].itemsize

    def values(self, name: str) -> torch.Tensor:
        """Return a tensor in memory, cast."""
        return read_values(self.tensors[name]).to(self.dtypes[name])

    def region(self, name: str) -> Region | None:
        """Return where a tensor is stored as it is to be read, `None` if it is not."""
        tensor = self.tensors[name]
        return region_of(tensor) if tensor.dtype == self.dtypes[name] else None


def sha256_of(region: Region) -> str:
    """Hash bytes of a file as they pass.

    Raises:
        CheckpointError: if the file has become shorter.
    """
    sha256 = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    with region.path.open("rb", buffering=0) as file:
        file.seek(region.begin)
        left = region.size
        while left:
            read = file.readinto(buffer[: min(left, _CHUNK)])
            if not read:
                raise CheckpointError(f"{region.path} became shorter while it was read")
            sha256.update(buffer[:read])
            left -= read
    return sha256.hexdigest()
