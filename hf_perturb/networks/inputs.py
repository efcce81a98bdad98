# Copyright 2026 The hf_perturb authors. MIT License: see the LICENSE file at the root of the repository.
"""What a network checks of its inputs before any kernel runs, and which positions are sequence."""

from typing import Any

import torch

from .record import ModelInputError


def check_inputs(
    config: Any,
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
) -> None:
    """Raise on inputs of `forward` that would fail deep inside a kernel, or worse, would not fail.

    Raises:
        ValueError: naming the argument, what it got, what is allowed and the remedy.
    """
    # only CARP embeds in another width, and only ESM-1b has a limit
    embedding_size = getattr(config, "embedding_size", config.hidden_size)
    max_length = getattr(config, "max_tokens", None)
    if (input_ids is None) == (inputs_embeds is None):
        raise ModelInputError("give exactly one of input_ids and inputs_embeds")
    if input_ids is not None:
        _check_ids(input_ids, config.vocab_size)
        shape = input_ids.shape
    elif inputs_embeds is not None:
        if inputs_embeds.dim() != 3 or inputs_embeds.shape[-1] != embedding_size:
            raise ModelInputError(
                f"inputs_embeds: got shape {tuple(inputs_embeds.shape)}; allowed: (batch, length, {embedding_size})"
            )
        shape = inputs_embeds.shape[:2]
        if shape.numel() == 0:
            raise ModelInputError(f"inputs_embeds: got shape {tuple(inputs_embeds.shape)}; allowed: at least one token")
    if attention_mask is not None and attention_mask.shape != shape:
        raise ModelInputError(
            f"attention_mask: got shape {tuple(attention_mask.shape)}; allowed: {tuple(shape)}, (batch, length)"
        )
    if max_length is not None and shape[1] > max_length:
        raise ModelInputError(
            f"input: got {shape[1]} tokens; allowed: at most {max_length}, special tokens included, because positions"
            " are learned; truncate (tokenizer(..., truncation=True)) or cut the sequence into windows"
        )


def _check_ids(input_ids: torch.Tensor, vocab_size: int) -> None:
    if not isinstance(input_ids, torch.Tensor):
        raise ModelInputError(
            f"input_ids: got a {type(input_ids).__name__}; allowed: a tensor (tokenizer(..., return_tensors='pt'))"
        )
    if input_ids.dim() != 2:
        raise ModelInputError(f"input_ids: got shape {tuple(input_ids.shape)}; allowed: (batch, length)")
    if input_ids.dtype not in (torch.int32, torch.int64):
        raise ModelInputError(f"input_ids: got {input_ids.dtype}; allowed: torch.int64 or torch.int32")
    if input_ids.numel() == 0:
        raise ModelInputError(f"input_ids: got shape {tuple(input_ids.shape)}; allowed: at least one token")
    # a compiled or meta graph has no values to look at
    if torch.compiler.is_compiling() or input_ids.is_meta:
        return
    low, high = torch.aminmax(input_ids)
    if low < 0 or high >= vocab_size:
        raise ModelInputError(
            f"input_ids: got ids from {int(low)} to {int(high)}; allowed: 0 to {vocab_size - 1};"
            " was the sequence tokenized for another model?"
        )


def sequence_mask(
    config: Any,
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
) -> torch.Tensor:
    """Return which positions are not padding, bool `(batch, length)`.

    The originals know padding by its id alone; `attention_mask` can only take more positions away.
    """
    if inputs_embeds is None or input_ids is not None:
        mask = input_ids != config.pad_token_id
    else:
        mask = torch.ones(inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device)
    return mask if attention_mask is None else mask & attention_mask.to(mask.device, torch.bool)


def residue_mask(
    config: Any,
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    hidden_states: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return which positions are residues: as `sequence_mask`, without the tokens that begin and end a sequence."""
    mask = sequence_mask(config, input_ids, attention_mask, hidden_states)
    for name in ("bos_token_id", "eos_token_id"):
        token = getattr(config, name, None)
        if token is not None and input_ids is not None:
            mask = mask & (input_ids != token)
    return mask
