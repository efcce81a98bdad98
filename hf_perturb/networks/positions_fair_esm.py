# Copyright 2026 The hf_perturb authors. All rights reserved.
#
# Licensed under the MIT License: see the LICENSE file at the root of the repository.
"""How ESM-1 and ESM-2 count positions. Source: `esm.modules` and `esm.rotary_embedding` (fair-esm 2.0.0)."""

import math
from collections.abc import Callable

import torch
from torch import nn

from .configuration_fair_esm import FairEsmConfig


class FairEsmSinusoidalPositions(nn.Module):
    """Sines and cosines of the position. Source: `esm.modules.SinusoidalPositionalEmbedding`."""

    def __init__(self, config: FairEsmConfig):
        super().__init__()
        self.padding_idx, self.hidden_size = config.pad_token_id, config.hidden_size
        # without meaning, but the original stores it, so strict loading wants it
        self._float_tensor = nn.Buffer(torch.empty(1))

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        half = self.hidden_size // 2
        step = math.log(10000) / (half - 1)
        rates = torch.exp(torch.arange(half, dtype=torch.float32, device=positions.device) * -step)
        angles = positions.unsqueeze(-1).to(torch.float32) * rates
        table = torch.cat([angles.sin(), angles.cos()], dim=-1)
        table = nn.functional.pad(table, (0, self.hidden_size % 2))
        return table * (positions != self.padding_idx).unsqueeze(-1)


class FairEsmRotaryPositions(nn.Module):
    """Turns queries and keys by their position. Source: `esm.rotary_embedding.RotaryEmbedding`."""

    def __init__(self, config: FairEsmConfig):
        super().__init__()
        self.width = config.hidden_size // config.num_attention_heads
        self.inv_freq = nn.Buffer(torch.empty(self.width // 2))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        # at least float32: rounded to bfloat16, the angle of position 1000 is off by more than a radian
        exact = self.inv_freq
        super()._apply(fn, recurse)
        if self.inv_freq.dtype in (torch.float16, torch.bfloat16):
            self.inv_freq = nn.Buffer(exact.to(self.inv_freq.device))
        return self

    def frequencies(self) -> torch.Tensor:
        """Return the radians per position that the original computes, `(width / 2,)`."""
        return 1.0 / (10000 ** (torch.arange(0, self.width, 2, dtype=torch.float32) / self.width))

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, positions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn `(batch, heads, length, width)` by its position in the batch; only differences of positions matter.

        Args:
            query: `(batch, heads, length, width)`.
            key: the same.
            positions: `(length,)`; `None` where they are 0, 1, 2 and so on.
        """
        rates = self.inv_freq.to(torch.promote_types(self.inv_freq.dtype, torch.float32))
        if positions is None:
            positions = torch.arange(query.shape[2], device=query.device)
        angles = torch.outer(positions.to(rates.device, rates.dtype), rates).repeat(1, 2)
        cos, sin = angles.cos(), angles.sin()
        return self._turn(query, cos, sin), self._turn(key, cos, sin)

    @staticmethod
    def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)
