"""Tensors that are built again, compared with those that are stored."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hf_perturb.networks.weights import Region, read_region, read_values
from hf_perturb.perturbation.digest import tensor_digest
from hf_perturb.perturbation.kernels import as_integers


@dataclass(frozen=True)
class Difference:
    """A tensor that is not what the base and the record give.

    Args:
        name: of the tensor.
        elements: that differ, by their bits.
        largest: difference between two of them; `None` where one is not a number.
    """

    name: str
    elements: int
    largest: float | None


class Stored:
    """A sink that compares what is built with what is stored."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        self.tensors = tensors
        self.digests: dict[str, str] = {}
        self.differences: dict[str, Difference] = {}

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Compare a tensor that was built."""
        stored = read_values(self.tensors[name])
        self.digests[name] = tensor_digest(stored)
        if stored.dtype != tensor.dtype:
            self.differences[name] = Difference(name, tensor.numel(), None)
            return
        differs = as_integers(stored) != as_integers(tensor)
        if count := int(differs.sum()):
            largest = (stored[differs].double() - tensor[differs].double()).abs().max().item()
            self.differences[name] = Difference(name, count, largest if math.isfinite(largest) else None)

    def copy(self, name: str, region: Region, dtype: torch.dtype) -> None:
        """Compare a tensor that was kept."""
        self.write(name, read_region(region).view(dtype).view(self.tensors[name].shape))
