# Copyright 2026 The hf_perturb authors. MIT License: see the LICENSE file at the root of the repository.
"""The parts of ESM-1, ESM-1b and ESM-2.

Source: `esm.modules`, `esm.multihead_attention` and `esm.rotary_embedding` (fair-esm 2.0.0).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_fair_esm import FairEsmConfig
from .packing import Packing, packed_attention


class FairEsmSinusoidalPositions(nn.Module):
    """Sines and cosines of the position. Source: `esm.modules.SinusoidalPositionalEmbedding`."""

    def __init__(self, config: FairEsmConfig):
        super().__init__()
        self.padding_idx, self.hidden_size = config.pad_token_id, config.hidden_size
        # without meaning, but the original stores it, so strict loading wants it
        self._float_tensor = nn.Buffer(torch.zeros(1))

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
        # of the type that the network is built in, where that is not too coarse
        wide = torch.promote_types(torch.empty(0).dtype, torch.float32)
        self.inv_freq = nn.Buffer(self.frequencies().to(wide))

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
        """Turn `(batch, heads, length, width)` by positions, or by 0, 1, 2; only differences matter.

        Positions are `(length,)`, or of each sequence, `(batch, length)`.
        """
        rates = self.inv_freq.to(torch.promote_types(query.dtype, torch.float32))
        if positions is None:
            positions = torch.arange(query.shape[2], device=query.device)
        angles = (positions.to(rates.device, rates.dtype).unsqueeze(-1) * rates).unsqueeze(-3)
        cos, sin = (torch.cat([x, x], dim=-1) for x in (angles.cos(), angles.sin()))

        def turn(x: torch.Tensor) -> torch.Tensor:
            first, second = x.chunk(2, dim=-1)
            return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)

        return turn(query), turn(key)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    padding_mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend, and return the weights; one of Transformers' attention functions, without dropout as the originals.

    Queries are `(batch, heads, length, head)`, keys and values `(batch, heads, keys, head)`, the mask is
    `(batch, 1, length, keys)`, bool or additive, or `None`. With a `padding_mask`, `(batch, length)`, the weights are
    those that the original shows: without an extra key, and nothing from or to padding.
    """
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    # in float32 at least: the least half plus a negative score would be minus infinity, and its row NaN
    exact = torch.promote_types(scores.dtype, torch.float32)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores.to(exact) + attention_mask
    weights = used = nn.functional.softmax(scores, dim=-1, dtype=exact).to(query.dtype)
    if padding_mask is not None:
        both = padding_mask[:, None, None, :] & padding_mask[:, None, :, None]
        length = padding_mask.shape[-1]
        weights = used[..., :length] * both
        if used.requires_grad:
            # the values are those of before, but the output depends on what is shown, which so has a gradient
            seen = weights.where(both, used[..., :length])
            used = seen if seen.shape == used.shape else torch.cat([seen, used[..., length:]], dim=-1)
    return torch.matmul(used, value).transpose(1, 2), weights


def projection(config: FairEsmConfig, kind: str) -> nn.Linear:
    """Make a layer "to" or "from" the heads: plain, because quantisers look for no subclass, and it says how it starts.

    See `_init_weights`, which is called with one module at a time and not with what owns it.
    """
    layer = nn.Linear(config.hidden_size, config.hidden_size)
    layer.projection = kind  # type: ignore[assignment]
    return layer


class FairEsmAttention(nn.Module):
    """Self-attention. Source: `esm.multihead_attention.MultiheadAttention`."""

    def __init__(self, config: FairEsmConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        # CODEPATH: ESM-1 has one more key and value, the same for every sequence; ESM-1b has none.
        if config.model_version == "ESM-1":
            self.bias_k = nn.Parameter(torch.empty(1, 1, config.hidden_size))
            self.bias_v = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        else:
            self.bias_k = self.bias_v = None  # type: ignore[assignment]
        self.k_proj, self.v_proj, self.q_proj = (projection(config, "to") for _ in range(3))
        self.out_proj = projection(config, "from")
        # CODEPATH: ESM-2 has rotary positions; the others add theirs to the embedding.
        self.rot_emb = FairEsmRotaryPositions(config) if config.model_version == "ESM-2" else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        padding_mask: torch.Tensor,
        packing: Packing | None = None,
        positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        length, hidden_size = hidden_states.shape[1:]
        query, key, value = (proj(hidden_states) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if self.bias_k is not None:
            key, value = self._with_extra(key, self.bias_k, packing), self._with_extra(value, self.bias_v, packing)
        query, key, value = (x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for x in (query, key, value))
        if self.rot_emb is not None:
            query, key = self.rot_emb(query, key, positions)
        want_weights = kwargs.get("output_attentions", self.config.output_attentions)
        # only the eager path has weights to return
        interface: Callable[..., Any] = partial(eager_attention_forward, padding_mask=padding_mask)
        if not want_weights:
            interface = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        if packing is not None:
            output = packed_attention(self, query, key, value, packing, interface, self.scaling)
            return self.out_proj(output.flatten(2)), None
        output, weights = interface(
            self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs
        )
        return self.out_proj(output.reshape(-1, length, hidden_size)), weights if want_weights else None

    @staticmethod
    def _with_extra(x: torch.Tensor, extra: torch.Tensor, packing: Packing | None) -> torch.Tensor:
        """Put ESM-1's extra key or value, `(1, 1, hidden_size)`, at the end of every sequence."""
        # under autocast the parameter has another type than what the projection gives
        x = torch.cat([x, extra.to(x.dtype).expand(x.shape[0], -1, -1)], dim=1)
        return x if packing is None else x.index_select(1, packing.with_extra.to(x.device))


class FairEsmLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer. Source: `esm.modules.TransformerLayer`."""

    def __init__(self, config: FairEsmConfig):
        super().__init__()
        self.self_attn = FairEsmAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation = ACT2FN["gelu"]

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        padding_mask: torch.Tensor,
        packing: Packing | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        normed = self.self_attn_layer_norm(hidden_states)
        attended, _ = self.self_attn(normed, attention_mask, padding_mask, packing, **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.fc2(self.activation(self.fc1(self.final_layer_norm(hidden_states))))


def without_ends(config: FairEsmConfig) -> slice:
    """Return which tokens of a batch a contact map is of, as a slice of its length."""
    # the first token begins every sequence; the last ends the longest one, where sequences have an end
    return slice(1, -1 if config.eos_token_id is not None else None)


class FairEsmContactHead(nn.Module):
    """Logistic regression on symmetrised, corrected attentions. Source: `esm.modules.ContactPredictionHead`."""

    def __init__(self, config: FairEsmConfig):
        super().__init__()
        self.config = config
        self.regression = nn.Linear(config.num_hidden_layers * config.num_attention_heads, 1)

    def forward(self, attentions: torch.Tensor, residues: torch.Tensor) -> torch.Tensor:
        """Return probabilities, `(batch, length without the special tokens, the same)`.

        Args:
            attentions: `(batch, layers * heads, length, length)`.
            residues: which positions are residues, `(batch, length)`.
        """
        residues = residues.to(attentions.dtype)
        attentions = attentions * residues[:, None, None, :] * residues[:, None, :, None]
        inside = without_ends(self.config)
        attentions = attentions[..., inside, inside]
        attentions = attentions + attentions.transpose(-1, -2)
        rows, columns = attentions.sum(-1, keepdim=True), attentions.sum(-2, keepdim=True)
        attentions = attentions - rows * columns / attentions.sum((-1, -2), keepdim=True)
        return self.regression(attentions.permute(0, 2, 3, 1)).squeeze(-1).sigmoid()


class FairEsmLMHead(nn.Module):
    """Output head of ESM-1b. Source: `esm.modules.RobertaLMHead`."""

    def __init__(self, config: FairEsmConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(config.vocab_size))
        self.activation = ACT2FN["gelu"]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.layer_norm(self.activation(self.dense(hidden_states)))
        return nn.functional.linear(hidden_states, self.weight, self.bias)
