# Copyright 2026 The hf_perturb authors. MIT License: see the LICENSE file at the root of the repository.
"""Batches without padding: the tokens of all sequences in one row, so that no layer works on what is not there."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from itertools import groupby
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from .inputs import has_values, is_code_of, registered_attention

States = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # queries, keys and values

# what the modules of our layers are made of, and called by
_OURS = __name__.rpartition(".")[0]
_CODE_OF_LAYERS = (_OURS, "torch.nn.modules.module", "transformers.activations", "transformers.modeling_layers")
# of torch's own modules only some treat each position by itself
_OF_EACH_POSITION = (nn.Linear, nn.LayerNorm, nn.ReLU, nn.Dropout, nn.Identity, nn.Sequential)
_FORWARDS = frozenset(kind.forward for kind in _OF_EACH_POSITION)
# hooks that collect what we take padding out of and put it back into, or that move weights alone
_WITHOUT_EYES = ("transformers.utils.output_capturing", "torch.distributed", "accelerate")


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a batch are, with and without its padding; all of it is worked out when it is first used.

    Only `known` waits for the device, so a batch waits once, however many layers it goes through.

    Args:
        mask: which positions are not padding, `(batch, length)`.
    """

    mask: torch.Tensor
    # what is worked out once for all layers
    _neighbours: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict, init=False, repr=False)
    _elsewhere: dict[torch.device, "Packing"] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def known(self) -> torch.Tensor:
        """The mask, in this process's memory."""
        return self.mask.cpu()

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence."""
        return tuple(self.known.sum(-1).tolist())

    @cached_property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """How many sequences of one length follow one another, and that length."""
        return tuple((len([*run]), length) for length, run in groupby(self.lengths))

    @cached_property
    def places(self) -> torch.Tensor:
        """Which positions of the flattened batch are not padding, `(tokens,)`."""
        return self.known.flatten().nonzero().squeeze(-1).to(self.mask.device, non_blocking=True)

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
        device = torch.device(device)
        if device not in self._elsewhere:
            mask = self.mask.to(device, **kwargs)
            if mask is self.mask:
                return self
            self._elsewhere[device] = moved = Packing(mask)
            # nobody has to wait twice
            places = self.places.to(device, **kwargs)
            moved.__dict__.update(known=self.known, lengths=self.lengths, places=places)
        return self._elsewhere[device]

    @cached_property
    def positions(self) -> torch.Tensor:
        """Column of each token in the padded batch, `(tokens,)`."""
        return self.places % self.mask.shape[1]

    @cached_property
    def bounds(self) -> torch.Tensor:
        """Where each sequence begins, and where the last ends, int32 `(batch + 1,)`."""
        return torch.nn.functional.pad(self.mask.sum(-1).cumsum(0), (1, 0)).int()

    @cached_property
    def with_extra(self) -> torch.Tensor:
        """Index that puts one more row, that after the last token, at the end of each sequence, `(tokens + batch,)`."""
        tokens = torch.arange(len(self.places), device=self.places.device)
        index = tokens.new_full((len(tokens) + len(self.mask),), len(tokens))
        # a token has one row more before it for each sequence that has ended
        return index.index_copy_(0, tokens + self.places // self.mask.shape[1], tokens)

    @cached_property
    def padded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Row of the token at each position, `(batch, length)`, and the mask as attention takes it.

        Where padding is, it is the row of a token of the same sequence: a number that is none would spread to another,
        since zero times it is none either.
        """
        after, first = self.mask.flatten().cumsum(0).view(self.mask.shape), self.bounds[:-1].long().unsqueeze(-1)
        # a row that is padding alone has no token, and what is worked out for it is not looked at
        rows = torch.maximum(after - 1, first).clamp(max=len(self.places) - 1)
        return rows, self.mask[:, None, None, :]

    @cached_property
    def padded_with_extra(self) -> tuple[torch.Tensor, torch.Tensor]:
        """As `padded`, of rows that have one more at the end of each sequence, `(batch, length + 1)`."""
        (rows, mask), ends = self.padded, self.bounds[1:].long().unsqueeze(-1)
        before = torch.arange(len(ends), device=ends.device).unsqueeze(-1)
        return torch.cat([rows, ends], dim=1) + before, torch.nn.functional.pad(mask, (0, 1), value=True)

    def neighbours(self, taps: int, dilation: int) -> torch.Tensor:
        """Rows that the taps of a dilated convolution see, `(tokens, taps)`; `tokens` where the sequence has ended."""
        if (taps, dilation) not in self._neighbours:
            rows, bounds = torch.arange(len(self.places)).unsqueeze(-1), self.bounds.cpu().long()
            first, after = (side.repeat_interleave(bounds.diff()).unsqueeze(-1) for side in (bounds[:-1], bounds[1:]))
            seen = rows + dilation * torch.arange(-(taps // 2), taps // 2 + 1)
            seen = seen.where((seen >= first) & (seen < after), len(rows))
            self._neighbours[taps, dilation] = seen.to(self.places.device)
        return self._neighbours[taps, dilation]


def can_pack(packing: Packing, config: Any, layers: Iterable[nn.Module | None], **kwargs: Any) -> bool:
    """Whether a batch gives the same to everybody without its padding; `kwargs` of `forward`."""
    if not config.packing:
        return False
    # a graph that is traced or exported must hold for other batches, and nothing of it has values
    if not has_values(packing.mask):
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
    # and somebody may have registered a function of their own by one of these names
    if registered_attention(config) is not None:
        return False
    if is_looked_into(*layers):
        return False
    # last: who asks for it waits for the device
    return any(packing.lengths)


def is_looked_into(*modules: nn.Module | None) -> bool:
    """Whether somebody sees what goes through these modules, or has put code of their own in the place of ours.

    To them a batch is `(batch, length, hidden_size)`. This looks at hooks of torch, for all modules or for one, at
    modules that are wrapped, compiled or exchanged (for torch's own too), and at methods that are replaced. What
    Transformers collects hidden states with, and what moves weights to where they are used, does not count.
    """
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return True
    waiting = [*modules]
    while waiting:
        module = waiting.pop()
        if module is None:
            continue
        state: dict[str, Any] = module.__dict__
        kind = type(module)
        if not (_is_of_layers(kind.forward) and _is_of_layers(kind.__call__)):
            return True
        if "forward" in state and not _is_moved(module):
            return True
        if state["_forward_hooks"] or state["_forward_pre_hooks"]:
            hooks = (*state["_forward_hooks"].values(), *state["_forward_pre_hooks"].values())
            if not all(is_code_of(hook, _WITHOUT_EYES) for hook in hooks):
                return True
        if state.get("_compiled_call_impl") is not None:
            return True
        waiting += state["_modules"].values()
    return False


@lru_cache(maxsize=1024)
def _is_of_layers(method: Any) -> bool:
    return method in _FORWARDS or is_code_of(method, _CODE_OF_LAYERS)


def _is_moved(module: Any) -> bool:
    """Whether accelerate alone has replaced the `forward` of a module, to bring weights and inputs together."""
    state = module.__dict__
    hook, before = state.get("_hf_hook"), state.get("_old_forward")
    hooks = getattr(hook, "hooks", (hook,))
    return (
        all(type(each).__module__.startswith("accelerate.") for each in hooks)
        # others may have replaced it before accelerate did, or after
        and _is_of_layers(getattr(before, "__func__", before))
        and is_code_of(getattr(state["forward"], "func", None), ("accelerate",))
    )


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
    run = _attention_one_by_one if query.device.type == "cpu" else _padded_attention
    return run(partial(interface, module, dropout=0.0, scaling=scaling), (query, key, value), packing, extra)


def _attention_one_by_one(attend: Callable[..., Any], states: States, packing: Packing, extra: bool) -> torch.Tensor:
    """Call a function for each sequence, without padding: the CPU loses nothing by that, and works on less."""
    query, key, value = states
    lengths = list(packing.lengths)
    key_lengths = [length + extra for length in lengths]
    parts = zip(query.split(lengths, 2), key.split(key_lengths, 2), value.split(key_lengths, 2), strict=True)
    # a row may be padding alone, and not every function takes nothing
    some = (part for part in parts if part[0].numel())
    return torch.cat([attend(*part, attention_mask=None)[0] for part in some], dim=1)


def _padded_attention(attend: Callable[..., Any], states: States, packing: Packing, extra: bool) -> torch.Tensor:
    """Put the padding back and call a function once: a device that is far away gets as many calls as one sequence."""
    packing = packing.to(states[0].device)
    (rows, _), (key_rows, mask) = packing.padded, packing.padded_with_extra if extra else packing.padded
    padded = (
        x.squeeze(0).transpose(0, 1).index_select(0, at.flatten()).unflatten(0, at.shape).transpose(1, 2)
        for x, at in zip(states, (rows, key_rows, key_rows), strict=True)
    )
    return packing.pack(attend(*padded, attention_mask=mask)[0])


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
