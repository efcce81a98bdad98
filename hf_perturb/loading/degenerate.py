"""Whether what a network puts out depends on what it is given: by some initialisations it does not."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_utils import PreTrainedModel

from hf_perturb.checkpoints.constructed import with_generator
from hf_perturb.errors import PerturbationError

_LOG = logging.getLogger("hf_perturb")
_LENGTH = 8  # tokens
_SAMPLES = 4000  # of sound, a quarter of a second


@torch.no_grad()
def warn_of_constant_output(model: PreTrainedModel) -> None:
    """Warn if a model answers two small inputs with the same output; where none can be made nothing is known.

    The model runs twice as in evaluation, and its modes are as before; no random number of the process is used.
    """
    if any(_hooks_of(module) for module in model.modules()):
        return  # somebody looks inside, who did not ask for this
    with _as_in_evaluation(model):
        for inputs in _inputs(model):
            try:
                first, second = (_output(model, one) for one in inputs)
            except Exception as error:  # of a network that wants other inputs than can be guessed
                _LOG.debug("%s: its output on a small input is not known: %s", type(model).__name__, error)
                continue
            if torch.equal(first.nan_to_num(), second.nan_to_num()):
                _LOG.warning(
                    "this %s answers two different inputs with the same output, to the last bit: it is a control that"
                    " tells nothing of what it is given",
                    type(model).__name__,
                )
            return


def _hooks_of(module: nn.Module) -> list[Callable[..., Any]]:
    """Return the hooks on a module that are not Transformers' own."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return [hook for hook in hooks if not str(getattr(hook, "__module__", "")).startswith("transformers.")]


@contextmanager
def _as_in_evaluation(model: PreTrainedModel) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _output(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the first tensor that a model puts out; one that draws at random draws the same each time."""
    given: dict[str, Any] = {name: value.to(model.device) for name, value in inputs.items()}
    if "use_cache" in inspect.signature(model.forward).parameters:
        given["use_cache"] = False
    with _OwnGenerator():
        found = model.forward(**given)
    return next(value for value in _tensors(found) if value.is_floating_point())


class _OwnGenerator(TorchDispatchMode):
    """Gives a generator of its own to every random operator of this thread that takes one."""

    def __init__(self) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            with suppress(PerturbationError):  # of attention, which draws nothing in evaluation
                func, kwargs = with_generator(func, kwargs, self._generator)
        return func(*args, **kwargs)


def _tensors(found: Any) -> Iterator[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, Mapping | list | tuple):
        for value in found.values() if isinstance(found, Mapping) else found:
            yield from _tensors(value)


def _inputs(model: PreTrainedModel) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """Yield pairs of small inputs: what the network is mainly given, then all that it could be given."""
    taken = inspect.signature(model.forward).parameters
    made: dict[str, _Pair | None] = {}
    for name, make in _MAKERS.items():
        with suppress(Exception):  # of a configuration that does not say, or not of which part, what it takes
            made[name] = make(model) if name in taken else None
    known = {name: pair for name, pair in made.items() if pair is not None}
    first = {name: pair for name, pair in known.items() if name in (model.main_input_name, "decoder_input_ids")}
    for chosen in (first, known):
        if chosen:
            one, other = ({name: pair[number] for name, pair in chosen.items()} for number in (0, 1))
            yield one, other


_Pair = tuple[torch.Tensor, torch.Tensor]


def _tokens(model: PreTrainedModel) -> _Pair | None:
    config: Any = model.config.get_text_config()
    size = getattr(config, "vocab_size", None)
    if not isinstance(size, int) or size < 2:
        return None
    ids = (torch.arange(_LENGTH)[None] * 7 + size // 2) % size
    return ids, (ids + 1) % size


def _answer(model: PreTrainedModel) -> _Pair | None:
    """Return what a decoder is given, the same both times: its output is to depend on what the encoder is given."""
    if not getattr(model.config, "is_encoder_decoder", False):
        return None
    start = getattr(model.config, "decoder_start_token_id", None) or 0
    ids = torch.full((1, 2), int(start))
    return ids, ids


def _pixels(model: PreTrainedModel) -> _Pair | None:
    config: Any = getattr(model.config, "vision_config", model.config)
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    if not isinstance(height, int) or not isinstance(width, int) or not isinstance(channels, int):
        return None
    return _waves((1, channels, height, width), model.dtype)


def _sound(model: PreTrainedModel) -> _Pair:
    return _waves((1, _SAMPLES), model.dtype)


def _waves(shape: tuple[int, ...], dtype: torch.dtype) -> _Pair:
    steps = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    return torch.sin(steps * 0.37).to(dtype), torch.cos(steps * 0.61).to(dtype)


_MAKERS: dict[str, Callable[[PreTrainedModel], _Pair | None]] = {
    "input_ids": _tokens,
    "decoder_input_ids": _answer,
    "pixel_values": _pixels,
    "input_values": _sound,
}
