"""A network of Transformers without values: what its tensors are, and how the installed Transformers draws each.

A tensor is drawn alone: it alone has values, NaN until `_init_weights` writes them, and every random operator is given
the generator of that tensor. So neither order nor company nor the global random state can change a draw.
"""

from __future__ import annotations

import copy
import hashlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_utils import PreTrainedModel

from hf_perturb.checkpoints.shapes import Shape
from hf_perturb.errors import PerturbationError
from hf_perturb.perturbation.floats import Array
from hf_perturb.perturbation.rules import Initialiser

# `torch.device` as a context notes the device that was current for the whole process, and puts it back
_BUILDING = Lock()
_VIEWS = (
    "detach",
    "alias",
    "view",
    "select",
    "slice",
    "t",
    "transpose",
    "unsqueeze",
    "squeeze",
    "expand",
    "as_strided",
)


@dataclass(frozen=True)
class Told:
    """What is known of a draw before it is asked for.

    Args:
        initialiser: what is drawn, as tables name it.
        source: the method that writes the tensor, and the class of the module that it is called for.
        constant: whether all entries are equal after the draw.
    """

    initialiser: Initialiser
    source: str
    constant: bool


class Skeleton:
    """The tensors of a `PreTrainedModel`, and how each is drawn.

    *Stored* names are those of the class at hand. *Canonical* names lack its `base_model_prefix`, so that the class
    with a head and the one without agree; a tensor's draw goes by that.

    Args:
        model: on the meta device; it belongs to the skeleton from now on.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self._free: list[_Slots] = []

    @classmethod
    def build(cls, model_class: type[PreTrainedModel], config: Any) -> Skeleton:
        """Return the skeleton of a class with a configuration; nothing is drawn."""
        # Transformers initialises nothing on this device, and ties what is tied
        with _BUILDING, torch.device("meta"):
            return cls(model_class(copy.deepcopy(config)))

    @classmethod
    def of(cls, model: PreTrainedModel) -> Skeleton:
        """Return the skeleton of a model, which is left as it is."""
        memo: dict[int, Any] = {}
        for module in model.modules():
            for held in (module._parameters, module._buffers, vars(module)):
                for tensor in held.values():
                    if isinstance(tensor, torch.Tensor):
                        memo.setdefault(id(tensor), _twin(tensor))
        return cls(copy.deepcopy(model, memo))

    @cached_property
    def _state(self) -> dict[str, torch.Tensor]:
        return {self.canonical(name): tensor for name, tensor in self.model.state_dict(keep_vars=True).items()}

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Shape of every tensor of `state_dict()` by canonical name, in its order."""
        return {name: tuple(tensor.shape) for name, tensor in self._state.items()}

    @cached_property
    def parameters(self) -> frozenset[str]:
        """Canonical names of the floating-point parameters."""
        return frozenset(
            name for name, x in self._state.items() if isinstance(x, nn.Parameter) and x.is_floating_point()
        )

    @cached_property
    def tied(self) -> dict[str, str]:
        """The tensor that another one is, by canonical names."""
        targets = {self.canonical(name) for name in _tied_keys(self.model)}
        first: dict[int, str] = {}
        for name, tensor in sorted(self._state.items(), key=lambda item: item[0] in targets):
            first.setdefault(id(tensor), name)
        return {name: first[id(x)] for name, x in self._state.items() if first[id(x)] != name}

    @cached_property
    def parts(self) -> dict[str, str]:
        """`"embeddings"` or `"head"` of the tensors of the input embedding and the output head, by canonical name."""
        named: dict[int, str] = {}
        models = [module for module in self.model.modules() if isinstance(module, PreTrainedModel)]
        for part, method in (("embeddings", "get_input_embeddings"), ("head", "get_output_embeddings")):
            for model in models:
                for tensor in _tensors_of(_asked(model, method)):
                    named.setdefault(id(tensor), part)
        return {name: named[id(tensor)] for name, tensor in self._state.items() if id(tensor) in named}

    @cached_property
    def stacks(self) -> dict[str, int]:
        """The number of blocks of each stack of equal ones, by the canonical path of its `ModuleList`."""
        found: dict[str, dict[str, int]] = defaultdict(dict)
        lists: list[str] = []
        holders = [name for name, each in self.model.named_modules() if isinstance(each, PreTrainedModel)]
        for path, module in self.model.named_modules():
            if not isinstance(module, nn.ModuleList) or any(path.startswith(f"{each}.") for each in lists):
                continue
            lists.append(path)
            if len({type(block) for block in module}) == 1 and any(True for _ in module.parameters()):
                above = max((name for name in holders if not name or path.startswith(f"{name}.")), key=len)
                found[above][self.canonical(path)] = len(module)
        return {
            path: blocks for each in found.values() for path, blocks in each.items() if blocks == max(each.values())
        }

    @cached_property
    def _prefix(self) -> str:
        """What canonical names lack; nothing where two tensors would then have one name."""
        attribute = getattr(self.model, "base_model_prefix", "")
        if not attribute or not isinstance(getattr(self.model, attribute, None), nn.Module):
            return ""
        names = [name.removeprefix(f"{attribute}.") for name in self.model.state_dict(keep_vars=True)]
        return f"{attribute}." if len(set(names)) == len(names) else ""

    @cached_property
    def _stored(self) -> dict[str, str]:
        return {self.canonical(name): name for name in self.model.state_dict(keep_vars=True)}

    def canonical(self, stored: str) -> str:
        """Return the canonical name of a tensor by its stored one."""
        return stored.removeprefix(self._prefix)

    def stored(self, name: str) -> str:
        """Return the stored name of a tensor by its canonical one."""
        return self._stored[name]

    def draw(self, name: str, seed: int) -> Array:
        """Draw a tensor as `_init_weights` does, whatever became of others; several threads may at once.

        Args:
            name: canonical.
            seed: that of the perturbation.

        Returns:
            float32, of the tensor's shape.

        Raises:
            PerturbationError: if it is no floating-point parameter, or `_init_weights` leaves some of it as it is.
        """
        return self._drawn(name, seed, None).numpy()

    def told(self, name: str) -> Told:
        """Return what `draw` does to a tensor; it is drawn once to see it."""
        seen: list[_Call] = []
        low, high = (bound.item() for bound in torch.aminmax(self._drawn(name, 0, seen)))
        call = next(call for call in reversed(seen) if call.writes)
        text = f"{low:g}" if low == high else call.text
        return Told(Initialiser("init_weights", text), call.source, low == high)

    def _drawn(self, name: str, seed: int, seen: list[_Call] | None) -> torch.Tensor:
        name = self.tied.get(name, name)
        if name not in self.parameters:
            raise PerturbationError(
                f"tensor {name!r}: `_init_weights` draws floating-point parameters; got"
                f" {'a buffer or integers' if name in self.shapes else 'a name that the network lacks'}"
            )
        with self._slots() as slots, torch.inference_mode(False), torch.no_grad():
            drawn = slots.draw(self.stored(name), generator_seed(seed, name), seen)
        if drawn.numel() and torch.aminmax(drawn)[0].isnan():
            raise PerturbationError(
                f"tensor {name!r}: `_init_weights` of {type(self.model).__name__} leaves it, or a part of it, as it is,"
                " so there is no initialisation to draw it by; exclude it"
            )
        return drawn

    @contextmanager
    def _slots(self) -> Iterator[_Slots]:
        """Lend a network of one's own: while a tensor is drawn it has values there."""
        try:
            slots = self._free.pop()
        except IndexError:
            with _BUILDING:  # nobody copies what another copies
                slots = _Slots(copy.deepcopy(self.model))
        try:
            yield slots
        finally:
            self._free.append(slots)


def generator_seed(seed: int, name: str) -> int:
    """Return what torch's generator of a tensor is seeded with: no other tensor and no order can change its draws."""
    words = hashlib.sha256(f"hf_perturb/2/{seed}/{name}".encode()).digest()[:8]
    return int.from_bytes(words, "big") & (2**63 - 1)


class _Slots:
    """Where the tensors of a network are held, and which modules' initialisation reaches each, the last one last."""

    def __init__(self, model: PreTrainedModel):
        self._order = {id(module): (module, holder) for module, holder in _in_order(model, model)}
        rank = {key: number for number, key in enumerate(self._order)}
        tied = set(_tied_keys(model))
        reached: dict[str, set[int]] = defaultdict(set)
        self._places: dict[str, list[tuple[nn.Module, str]]] = {}
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

    def draw(self, name: str, seed: int, seen: list[_Call] | None) -> torch.Tensor:
        """Return a tensor as its initialisation leaves it; NaN where that writes nothing."""
        places, calls = self._places[name], self._calls[name]
        kept = [(module, dict(module._parameters), dict(module._buffers)) for module, _ in calls]
        held = places[0][0]._parameters[places[0][1]]
        assert held is not None
        real = nn.Parameter(torch.full(held.shape, torch.nan, dtype=torch.float32, device="cpu"), requires_grad=False)
        try:
            for module, leaf in places:
                module._parameters[leaf] = real
            for module, holder in calls:
                call = _Call(module, holder, real) if seen is not None else None
                with _Draws(torch.Generator().manual_seed(seed), call):
                    _initialise(holder, module)
                if seen is not None and call is not None:
                    seen.append(call)
            now = (module._parameters[leaf] for module, leaf in reversed(places))
            return next((tensor for tensor in now if tensor is not None and tensor is not real), real).detach()
        finally:
            for module, parameters, buffers in kept:
                module._parameters.update(parameters)
                module._buffers.update(buffers)


def _initialise(holder: PreTrainedModel, module: nn.Module) -> None:
    # ours does what the original package of the family does
    ours = type(holder)._init_weights.__module__.startswith("hf_perturb.")
    (PreTrainedModel._init_weights if ours else type(holder)._init_weights)(holder, module)


def _in_order(module: nn.Module, holder: PreTrainedModel) -> Iterator[tuple[nn.Module, PreTrainedModel]]:
    """Yield modules, and whose `_init_weights` is called with each, as `initialize_weights` does: parts come first."""
    for child in module.children():
        yield from _in_order(child, child if isinstance(child, PreTrainedModel) else holder)
    yield module, holder


def _twin(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor without values of the same kind."""
    twin = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(twin, requires_grad=tensor.requires_grad)
    return twin


def _tied_keys(model: PreTrainedModel) -> dict[str, str]:
    return getattr(model, "all_tied_weights_keys", None) or {}


def _asked(model: PreTrainedModel, method: str) -> Any:
    """Return what a model says of its embeddings: `None` where it has none."""
    try:
        return getattr(model, method)()
    except (NotImplementedError, AttributeError):
        return None


def _tensors_of(held: Any) -> Iterator[torch.Tensor]:
    """Yield the parameters of a module, or of several: some models have an embedding a code book."""
    if isinstance(held, torch.Tensor):
        yield held
    elif isinstance(held, nn.Module):
        yield from held.parameters()
    elif isinstance(held, dict | list | tuple):
        for each in held.values() if isinstance(held, dict) else held:
            yield from _tensors_of(each)


class _Call:
    """What one call of `_init_weights` does to a tensor."""

    def __init__(self, module: nn.Module, holder: PreTrainedModel, tensor: torch.Tensor):
        self.source = f"{type(holder)._init_weights.__qualname__}, {type(module).__name__}"
        self.writes: list[str] = []
        self._tensor, self._others = tensor, list[str]()

    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note an operator, before it runs."""
        name = func.overloadpacket.__name__
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if first is None or not func._schema.is_mutable:
            if name not in _VIEWS:
                self._others.append(name)
        elif first.is_meta:
            self._others.clear()  # what came before was for another tensor
        elif first.untyped_storage().data_ptr() == self._tensor.untyped_storage().data_ptr():
            if first.numel() == self._tensor.numel() and name in ("normal_", "uniform_", "fill_", "zero_", "copy_"):
                self.writes.clear()
            given = [f"{each:g}" for each in (*args[1:], *kwargs.values()) if isinstance(each, int | float)]
            made = f" of {', '.join(dict.fromkeys(self._others))}" if name == "copy_" else ""
            part = "" if first.numel() == self._tensor.numel() else " in a part"
            self.writes.append(f"`{name}({', '.join(given)})`{made}{part}")
            self._others.clear()

    @property
    def text(self) -> str:
        return ", then ".join(self.writes)


class _Draws(TorchDispatchMode):
    """Gives a generator to every random operator of this thread."""

    def __init__(self, generator: torch.Generator, call: _Call | None):
        super().__init__()
        self._generator, self._call = generator, call

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if self._call is not None:
            self._call.note(func, args, kwargs)
        if _takes_generator(func):
            kwargs["generator"] = self._generator
        elif torch.Tag.nondeterministic_seeded in func.tags:
            func, kwargs = _with_generator(func), {**kwargs, "generator": self._generator}
        return func(*args, **kwargs)


def _takes_generator(func: Any) -> bool:
    return any(argument.name == "generator" for argument in func._schema.arguments)


def _with_generator(func: Any) -> Any:
    """Return the overload of a random operator that takes a generator."""
    packet = func.overloadpacket
    named = {argument.name for argument in func._schema.arguments} | {"generator"}
    for each in map(packet.__getattr__, packet.overloads()):
        if {argument.name for argument in each._schema.arguments} == named:
            return each
    raise PerturbationError(f"`_init_weights` uses {func}, which takes no generator of its own")
