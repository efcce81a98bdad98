# Copyright 2026 The hf_perturb authors. MIT License: see the LICENSE file at the root of the repository.
"""What a network checks of its inputs before any kernel runs, and which positions are sequence."""

import difflib
import inspect
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.import_utils import is_tracing

from .record import ModelInputError, UnusedKeywordError

# what `forward` uses beside its named arguments
_USED = ("output_attentions", "output_hidden_states", "position_ids", "return_dict")


def is_transformed() -> bool:
    """Whether a tensor may stand for many, or for none: under `torch.func`, `make_fx` or a mode of fake tensors."""
    if torch.compiler.is_compiling():
        return False
    modes = torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FAKE
    return torch._C._are_functorch_transforms_active() or any(map(torch._C._get_dispatch_mode, modes))


def has_values(x: torch.Tensor) -> bool:
    """Whether Python may look at the values of a tensor: not in a graph that is traced, nor where it is transformed."""
    return not (x.is_meta or is_tracing(x) or is_transformed())


def check_keywords(model: Any, **given: Any) -> None:
    """Raise on a keyword of `forward` that the network would not use; `None` says nothing, so nothing is lost.

    Raises:
        TypeError: naming the keyword, those that are used, and the nearest of them.
    """
    lacks: dict[str, str] = model._unused_keywords
    used = (*_USED, "num_items_in_batch") if getattr(model, "accepts_loss_kwargs", True) else _USED
    is_said = {name: value is not None and not (name in lacks and value is False) for name, value in given.items()}
    unused = [name for name in given if is_said[name] and (name in lacks or name not in used)]
    if not unused:
        return
    if not lacks and (function := registered_attention(model.config)) is not None:
        # which may have arguments of its own
        unused = [name for name in unused if name not in inspect.signature(function).parameters]
    named = inspect.signature(type(model).forward).parameters.values()
    names = [each.name for each in named if each.kind is each.POSITIONAL_OR_KEYWORD and each.name != "self"]
    allowed = [name for name in dict.fromkeys((*names, *used)) if name not in lacks]
    for name in unused:
        nearest = difflib.get_close_matches(name, allowed, 1, cutoff=0)[0]
        meant = f"did you mean {nearest}? allowed: {', '.join(allowed)}"
        why = f"{lacks[name]}; leave it out" if name in lacks else meant
        raise UnusedKeywordError(f"{type(model).__name__}.forward: got {name}, which is not used: {why}")


def registered_attention(config: Any) -> Any:
    """Return the attention function that somebody registered and a network takes; `None` for one of Transformers."""
    function = ALL_ATTENTION_FUNCTIONS.get(config._attn_implementation)
    return None if function is None or is_code_of(function, ("transformers",)) else function


def is_code_of(function: Any, packages: tuple[str, ...]) -> bool:
    """Whether a function was written in one of some packages; what wraps it may have taken over its name alone."""
    code = getattr(function, "__func__", function)
    name = f"{getattr(code, '__globals__', {}).get('__name__', '')}."
    return any(name.startswith(f"{package}.") for package in packages)


def check_inputs(
    config: Any,
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    position_ids: torch.Tensor | None = None,
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
    if position_ids is not None:
        _check_positions(position_ids, shape, None if max_length is None else config.max_position_embeddings)
    elif max_length is not None and shape[1] > max_length:
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
    _check_range("input_ids: got ids", input_ids, vocab_size, "was the sequence tokenized for another model?")


def _check_positions(position_ids: Any, shape: torch.Size, rows: int | None) -> None:
    """Check positions of tokens, with `rows` in the table of those that are learned."""
    found: str | None = f"a {type(position_ids).__name__}"
    if isinstance(position_ids, torch.Tensor):
        found = f"shape {tuple(position_ids.shape)} of {position_ids.dtype}"
        if position_ids.dtype in (torch.int32, torch.int64) and position_ids.shape in (shape, (1, shape[1])):
            found = None
    if found is not None:
        raise ModelInputError(
            f"position_ids: got {found}; allowed: torch.int64 or torch.int32 of {tuple(shape)}, (batch, length), or"
            f" {(1, shape[1])}, the same for each sequence"
        )
    if rows is not None:
        _check_range("position_ids: got positions", position_ids, rows, "the first token of a sequence has 2")


def _check_range(what: str, indices: torch.Tensor, rows: int, remedy: str) -> None:
    """Check what the rows of a table are taken by, where that can be looked at; else the table itself complains."""
    if not has_values(indices):
        return
    if _asserts_later(indices.device):
        # to look here would wait for the device at every batch; as it stops, it prints this
        torch._assert_async(((indices >= 0) & (indices < rows)).all(), f"{what} other than 0 to {rows - 1}; {remedy}")
        return
    low, high = torch.aminmax(indices)
    if low < 0 or high >= rows:
        raise ModelInputError(f"{what} from {int(low)} to {int(high)}; allowed: 0 to {rows - 1}; {remedy}")


def _asserts_later(device: torch.device) -> bool:
    """Whether what is asserted on a device stops it without anybody waiting; ROCm is built without."""
    return device.type == "cuda" and torch.version.hip is None


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
