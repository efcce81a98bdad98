"""A tensor drawn alone, as `_init_weights` of the installed Transformers does.

It alone has values, NaN until they are written, and every random operator is given the generator of that tensor. So
neither order nor company nor the global random state can change a draw.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_utils import PreTrainedModel

from hf_perturb.checkpoints.constructed import (
    OVERWRITING,
    Functions,
    arguments_of,
    described,
    name_of,
    run,
    with_generator,
)

# what Transformers notes that a module is initialised by
_FLAG = "_is_hf_initialized"
# operators that make nothing of what they are given
_VIEWS = ("detach", "alias", "view", "select", "slice", "t", "transpose", "unsqueeze", "squeeze", "expand")
_COPIES = frozenset((*_VIEWS, "as_strided", "clone", "lift_fresh", "_to_copy"))


# a module, and what it calls a parameter of its own
Slot = tuple[nn.Module, str]


class Slots:
    """Where the tensors of a network are held, and which modules' initialisation reaches each, the last one last."""

    def __init__(self, model: PreTrainedModel):
        for module in model.modules():
            vars(module)[_FLAG] = True
        self._order = {id(module): (module, holder) for module, holder in _in_order(model, model)}
        rank = {key: number for number, key in enumerate(self._order)}
        tied = set(tied_keys(model))
        reached: dict[str, set[int]] = defaultdict(set)
        self._places: dict[str, list[Slot]] = {}
        names: dict[int, str] = {}
        above: dict[str, tuple[int, ...]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            above[path] = (*above[path.rpartition(".")[0]], id(module)) if path else (id(module),)
            for leaf, tensor in module._parameters.items():
                stored = f"{path}.{leaf}" if path else leaf
                # tying comes after the initialisation, and drops what that made of the target
                if tensor is None or stored in tied:
                    continue
                first = names.setdefault(id(tensor), stored)
                self._places.setdefault(stored, self._places.setdefault(first, []))
                self._places[first].append((module, leaf))
                reached[first] |= set(above[path])
        # by the place, which the names of one tensor share
        calls = {
            id(self._places[name]): [self._order[key] for key in sorted(keys, key=rank.__getitem__)]
            for name, keys in reached.items()
        }
        self._calls = {name: calls[id(places)] for name, places in self._places.items()}

    def draw(
        self,
        name: str,
        seed: int,
        seen: Seen | None,
        begun: torch.Tensor | None = None,
        memory: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return a tensor as its initialisation leaves it.

        Args:
            name: stored.
            seed: of torch's generator.
            seen: is told what is done.
            begun: its values before that; NaN without.
            memory: of it, that may be used where nothing is begun with.
        """
        try:
            return self._draw(name, seed, seen, self._begun(name, begun, memory), False)
        except Exception:
            # it works on others of these modules, or makes something where they are
            return self._draw(name, seed, seen, self._begun(name, begun, memory), True)

    def _begun(self, name: str, begun: torch.Tensor | None, memory: torch.Tensor | None) -> nn.Parameter:
        shape = _held(*self._places[name][0]).shape
        if begun is not None:
            memory = begun.clone()
        elif memory is not None:
            # by numpy: threads of torch's own would wait for each other beside those that draw
            memory.numpy().fill(torch.nan)
            memory = memory.view(shape)
        return _empty(shape) if memory is None else nn.Parameter(memory, requires_grad=False)

    def _draw(self, name: str, seed: int, seen: Seen | None, real: nn.Parameter, beside: bool) -> torch.Tensor:
        places, calls = self._places[name], self._calls[name]
        kept = [(module, dict(module._parameters), dict(module._buffers)) for module, _ in calls]
        try:
            for module, _ in calls if beside else ():
                floats = {key: x for key, x in module._parameters.items() if x is not None and x.is_floating_point()}
                module._parameters.update({key: _empty(x.shape) for key, x in floats.items()})
            for module, leaf in places:
                module._parameters[leaf] = real
            if seen is not None:
                seen.begin(real)
            for module, holder, cls in ((*call, cls) for call in calls for cls in _classes(call[1])):
                generator = torch.Generator().manual_seed(seed)
                # some look whether they, or their parts, are initialised
                vars(module)[_FLAG] = False
                with _Draws(generator, seen), nullcontext() if seen is None else seen.call(module, cls, places):
                    cls._init_weights(holder, module)
                vars(module)[_FLAG] = True
            now = [_held(*place) for place in places]
            return next((tensor for tensor in reversed(now) if tensor is not real), real).detach()
        finally:
            for module, parameters, buffers in kept:
                module._parameters.update(parameters)
                module._buffers.update(buffers)
                vars(module)[_FLAG] = True


class Seen:
    """What the initialisation of a tensor does to it, as tables name it, and each time what decides it.

    `before` is what the constructor did.
    """

    def __init__(self) -> None:
        self.before: list[tuple[str, str]] = []
        self.writes: list[tuple[str, str]] = []
        self._tensor, self._source = torch.empty(0), ""
        self._function: FrameType | None = None
        self._made: dict[str, None] = {}

    def begin(self, tensor: torch.Tensor) -> None:
        """Begin with a tensor that nothing is done to yet."""
        self._tensor, self.writes = tensor, list(self.before)

    @contextmanager
    def call(self, module: nn.Module, cls: type[PreTrainedModel], places: list[Slot]) -> Iterator[None]:
        """Look at one call of `_init_weights`."""
        self._source, self._made = f"{cls._init_weights.__qualname__}, {type(module).__name__}", {}
        before = {_memory(_held(*place)) for place in places}
        with Functions(self._begin_function):
            yield
        for tensor in (_held(*place) for place in places):
            if _memory(tensor) not in before:
                self._tensor, self.writes = tensor, [("another tensor", self._source)]

    def operator(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note an operator, before it runs."""
        first, name = args[0] if args else None, name_of(func)
        if not isinstance(first, torch.Tensor) or not func._schema.is_mutable:
            if name not in _COPIES:
                self._made[name] = None
        elif first.is_meta or _memory(first) != _memory(self._tensor):
            self._made.clear()  # what came before was for another tensor
        elif not self._is_in_function():
            made = f" of {', '.join(self._made)}" if name == "copy_" else ""
            self._write(first, described(name, (*args[1:], *kwargs.values())) + made, name in OVERWRITING)
            self._made.clear()

    def _begin_function(self, frame: FrameType) -> None:
        given = arguments_of(frame)
        for tensor in given.values():
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta and _memory(tensor) == _memory(self._tensor):
                self._write(tensor, described(name_of(frame.f_globals[frame.f_code.co_name]), given.values()), True)
                self._function = frame

    def _is_in_function(self) -> bool:
        frame: FrameType | None = sys._getframe(1)
        while self._function is not None and frame is not None:
            if frame is self._function:
                return True
            frame = frame.f_back
        self._function = None
        return False

    def _write(self, tensor: torch.Tensor, text: str, overwrites: bool) -> None:
        whole = tensor.numel() == self._tensor.numel()
        if whole and overwrites:
            self.writes.clear()
        self.writes.append((text if whole else f"{text} in a part", self._source))


class _Draws(TorchDispatchMode):
    """Gives a generator to every random operator of this thread."""

    def __init__(self, generator: torch.Generator, seen: Seen | None):
        super().__init__()
        self._generator, self._seen = generator, seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if self._seen is not None:
            self._seen.operator(func, args, kwargs)
        if args and isinstance(args[0], torch.Tensor) and args[0].is_meta and name_of(func) in OVERWRITING:
            return args[0]  # without values nothing comes of it, slowly
        func, kwargs = with_generator(func, kwargs, self._generator)
        return run(func, args, kwargs)


def _classes(holder: PreTrainedModel) -> list[type[PreTrainedModel]]:
    """Return the classes whose `_init_weights` is called, the last of which wins."""
    cls = type(holder)
    # ours does what the original package does, which stays for what Transformers does not reach
    return [cls, PreTrainedModel] if cls._init_weights.__module__.startswith("hf_perturb.") else [cls]


def _in_order(module: nn.Module, holder: PreTrainedModel) -> Iterator[tuple[nn.Module, PreTrainedModel]]:
    """Yield modules, and whose `_init_weights` is called with each, as `initialize_weights` does: parts come first."""
    for child in module.children():
        yield from _in_order(child, child if isinstance(child, PreTrainedModel) else holder)
    yield module, holder


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _held(module: nn.Module, leaf: str) -> torch.Tensor:
    tensor = module._parameters[leaf]
    assert tensor is not None
    return tensor


def _empty(shape: torch.Size) -> nn.Parameter:
    """Return a parameter of NaN."""
    values = torch.full(shape, torch.nan, dtype=torch.float32, device="cpu")
    return nn.Parameter(values, requires_grad=False)


def has_nan(tensor: torch.Tensor) -> bool:
    """Whether a tensor lacks a value."""
    with np.errstate(invalid="ignore"):
        return tensor.numel() > 0 and bool(np.isnan(tensor.numpy().min()))


def tied_keys(model: PreTrainedModel) -> dict[str, str]:
    """Return what Transformers ties after the initialisation, to what, by stored names."""
    return getattr(model, "all_tied_weights_keys", None) or {}
