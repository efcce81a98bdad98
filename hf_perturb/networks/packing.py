# Copyright 2026 The hf_perturb authors. MIT License: see the LICENSE file at the root of the repository.
"""Batches without padding: the tokens of all sequences in one row, so that no layer works on what is not there."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from .inputs import has_values

# what the modules of our layers are made of
_CODE_OF_LAYERS = (__name__.rpartition(".")[0], "torch.nn", "transformers")
# hooks that collect what we take padding out of and put it back into, or that move weights alone
_WITHOUT_EYES = ("transformers.utils.output_capturing", "torch.distributed", "accelerate")


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a batch are, with and without its padding.

    Args:
        mask: which positions are not padding, `(batch, length)`.
        places: those positions in the flattened batch, `(tokens,)`.
        lengths: tokens of each sequence; `sum(lengths)` is `tokens`.
    """

    mask: torch.Tensor
    places: torch.Tensor
    lengths: tuple[int, ...]
    # what is worked out once for all layers
    _neighbours: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict, init=False, repr=False)
    _elsewhere: dict[torch.device, "Packing"] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, mask: torch.Tensor) -> "Packing":
        """Find the tokens of a mask; waits for the device."""
        return cls(mask, mask.flatten().nonzero().squeeze(-1), tuple(mask.sum(-1).tolist()))

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """Take the padding out: `(batch, length, ...)` to `(1, tokens, ...)`."""
        return x.flatten(0, 1).index_select(0, self.places.to(x.device)).unsqueeze(0)

    def unpack(self, x: torch.Tensor) -> torch.Tensor:
        """Put zeros where the padding was: `(1, tokens, ...)` to `(batch, length, ...)`."""
        padded = x.new_zeros(self.mask.numel(), *x.shape[2:])
        padded.index_copy_(0, self.places.to(x.device), x.squeeze(0))
        return padded.unflatten(0, self.mask.shape)

    def to(self, device: Any, **kwargs: Any) -> "Packing":
        """Move to another device; what spreads a network over devices calls this between its layers."""
        places = self.places.to(device, **kwargs)
        if places is self.places:
            return self
        if places.device not in self._elsewhere:
            self._elsewhere[places.device] = replace(self, mask=self.mask.to(device, **kwargs), places=places)
        return self._elsewhere[places.device]

    @cached_property
    def positions(self) -> torch.Tensor:
        """Column of each token in the padded batch, `(tokens,)`."""
        return self.places % self.mask.shape[1]

    @cached_property
    def bounds(self) -> torch.Tensor:
        """Where each sequence begins, and where the last ends, int32 `(batch + 1,)`."""
        return torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32, device=self.places.device)

    @cached_property
    def with_extra(self) -> torch.Tensor:
        """Index that puts one more row, that after the last token, at the end of each sequence, `(tokens + batch,)`."""
        rows = torch.arange(len(self.places), device=self.places.device)
        extra = rows.new_full((1,), len(rows))
        return torch.cat([part for sequence in rows.split(self.lengths) for part in (sequence, extra)])

    def neighbours(self, taps: int, dilation: int) -> torch.Tensor:
        """Rows that the taps of a dilated convolution see, `(tokens, taps)`; `tokens` where the sequence has ended."""
        if (taps, dilation) not in self._neighbours:
            rows, bounds = torch.arange(len(self.places)).unsqueeze(-1), self.bounds.cpu().long()
            first, after = (side.repeat_interleave(bounds.diff()).unsqueeze(-1) for side in (bounds[:-1], bounds[1:]))
            seen = rows + dilation * torch.arange(-(taps // 2), taps // 2 + 1)
            seen = seen.where((seen >= first) & (seen < after), len(rows))
            self._neighbours[taps, dilation] = seen.to(self.places.device)
        return self._neighbours[taps, dilation]


def can_pack(mask: torch.Tensor, config: Any, **kwargs: Any) -> bool:
    """Whether a batch with this mask, `(batch, length)`, gives the same without its padding; `kwargs` of `forward`."""
    # a graph that is traced or exported must hold for other batches, and nothing of it has values
    if not has_values(mask):
        return False
    # in the originals padding has gradients too, for whoever lets it into the loss
    if torch.is_grad_enabled():
        return False
    # the weights of all positions are asked for
    if kwargs.get("output_attentions", config.output_attentions):
        return False
    # others want a mask of their own kind
    if config._attn_implementation not in (None, "eager", "sdpa"):
        return False
    return bool(mask.any())


def is_looked_into(*modules: nn.Module | None) -> bool:
    """Whether somebody sees what goes through these modules, or has put code of their own in the place of ours.

    To them a batch is `(batch, length, hidden_size)`. This looks at hooks of torch, for all modules or for one, at
    modules that are wrapped, exchanged or compiled, and at methods that are replaced. What Transformers collects hidden
    states with, and what moves weights to where they are used, does not count.
    """
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return True
    if nn.Module.__call__ is not nn.Module._wrapped_call_impl:
        return True
    waiting = [*modules]
    while waiting:
        module = waiting.pop()
        if module is None:
            continue
        state: dict[str, Any] = module.__dict__
        if not _is_of_layers(type(module).forward) or ("forward" in state and not _is_moved(module)):
            return True
        if state["_forward_hooks"] or state["_forward_pre_hooks"]:
            hooks = (*state["_forward_hooks"].values(), *state["_forward_pre_hooks"].values())
            if not all(_is_code_of(hook, _WITHOUT_EYES) for hook in hooks):
                return True
        if state.get("_compiled_call_impl") is not None:
            return True
        waiting += state["_modules"].values()
    return False


@lru_cache(maxsize=1024)
def _is_of_layers(forward: Any) -> bool:
    return _is_code_of(forward, _CODE_OF_LAYERS)


def _is_code_of(function: Any, packages: tuple[str, ...]) -> bool:
    """Whether a function was written in one of some packages; what wraps it may have taken over its name alone."""
    code = getattr(function, "__func__", function)
    name = f"{getattr(code, '__globals__', {}).get('__name__', '')}."
    return any(name.startswith(f"{package}.") for package in packages)


def _is_moved(module: Any) -> bool:
    """Whether accelerate has replaced the `forward` of a module, to bring weights and inputs together."""
    hook = module.__dict__.get("_hf_hook")
    hooks = getattr(hook, "hooks", (hook,))
    return all(type(each).__module__.startswith("accelerate.") for each in hooks)


def in_one_piece(mask: torch.Tensor) -> bool:
    """Whether every sequence is without gaps, `(batch, length)`."""
    begins = mask[:, 0].long() + (mask[:, 1:] & ~mask[:, :-1]).sum(-1)
    return bool((begins <= 1).all())


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: Packing,
    interface: Callable[..., Any],
    scaling: float,
) -> torch.Tensor:
    """Attend within each sequence, by one of Transformers' attention functions; returns `(1, tokens, heads, head)`.

    Queries are `(1, heads, tokens, head)`; keys and values the same, or with one more at the end of each sequence,
    `(1, heads, tokens + batch, head)`.
    """
    extra = key.shape[2] != query.shape[2]
    config: Any = module.config
    if config._attn_implementation == "sdpa" and _has_varlen(query):
        return _varlen_attention(query, key, value, packing, extra)
    lengths = list(packing.lengths)
    key_lengths = [length + extra for length in lengths]
    parts = zip(query.split(lengths, 2), key.split(key_lengths, 2), value.split(key_lengths, 2), strict=True)
    # a row may be padding alone, and not every function takes nothing
    some = (part for part in parts if part[0].numel())
    return torch.cat([interface(module, *part, None, dropout=0.0, scaling=scaling)[0] for part in some], dim=1)


def _has_varlen(query: torch.Tensor) -> bool:
    """Whether flash attention over sequences of different lengths takes these queries."""
    return (
        query.is_cuda
        and torch.version.hip is None
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
        and torch.backends.cuda.flash_sdp_enabled()
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _varlen_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, extra: bool
) -> torch.Tensor:
    # imported here: what it registers costs time, and only a GPU needs it
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))  # (tokens, heads, head)
    bounds, longest = packing.bounds.to(query.device), max(packing.lengths)
    key_bounds = bounds + torch.arange(len(bounds), dtype=bounds.dtype, device=bounds.device) if extra else bounds
    # the kernel scales by 1 / sqrt(head) by itself; torch 2.10 has no argument for it
    output: Any = varlen_attn(query, key, value, bounds, key_bounds, longest, longest + extra)
    return output.unsqueeze(0)
