"""The draws of the rules `published`: the study's one generator, torch's, which is only as lasting as torch.

Whoever builds models without initialising them replaces functions of `torch.nn.init`, methods of `torch.Tensor`, or
constructors of tensors; so what is drawn with here are torch's operators themselves.
Source: `scr/encoding/encoding_classes.py` of microsoft/protein-transfer at commit 8aed408.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_perturb.perturbation.floats import Array, as_integers, cast

if TYPE_CHECKING:
    from hf_perturb.perturbation.plan import Step

# looked up by the dispatcher, so that they are torch's own wherever this file is imported
_ATEN: Any = torch.ops.aten
_EMPTY, _RANDPERM = _ATEN.empty.memory_format, _ATEN.randperm.generator
_UNIFORM, _NORMAL = _ATEN.uniform_.default, _ATEN.normal_.default
_CPU = torch.device("cpu")


class StudyGenerator:
    """The generator that the study seeded once, and that all tensors were drawn with in their order.

    Args:
        seed: of it.
    """

    def __init__(self, seed: int):
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def run(self, step: Step, dtype: np.dtype[Any], values: Array | None = None) -> Array:
        """Return what the study made of a tensor, a vector, after what it drew for those that are missing here."""
        for missing in step.before:
            self._draw(missing)
        drawn = self._draw(step)
        if values is None:
            return cast(drawn, dtype).reshape(-1)
        entries = as_integers(np.ascontiguousarray(values)).reshape(-1)
        return entries.take(drawn, mode="wrap").view(dtype)

    def _draw(self, step: Step) -> Array:
        """Return the values of a tensor, or the order of its entries."""
        made: torch.Tensor
        arguments: dict[str, Any] = dict(step.arguments)
        if step.kernel == "shuffle":
            # the same draws in either type (tested); the small one takes two thirds of the time
            count = math.prod(step.shape)
            kind = torch.int32 if count < 2**31 else torch.int64
            made = _RANDPERM(count, generator=self._generator, dtype=kind, device=_CPU)
            return made.numpy()
        if step.kernel == "constant":
            return np.full(step.shape, arguments["value"], np.float32)
        made = _EMPTY(step.shape, dtype=torch.float32, device=_CPU)
        if step.kernel == "uniform":
            _UNIFORM(made, -arguments["bound"], arguments["bound"], generator=self._generator)
        else:
            _NORMAL(made, 0.0, arguments.get("std", 1.0), generator=self._generator)
        return made.numpy()
