"""What only a constructor sets: done again for one tensor alone.

`_init_weights` does not reach every tensor: scales, tokens and positions that are parameters of their own, and weights
in two parts (`weight_norm`), are as the constructor made them. In an ordinary initialisation they stay so, and nothing
else says what they are. So the operators of the constructor are noted while it builds the network without values, and
those that lead to one tensor are run again, random ones with the generator of that tensor.
"""

from __future__ import annotations

import copy
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from types import FrameType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only
from transformers.modeling_utils import PreTrainedModel

from hf_perturb.checkpoints.shapes import Shape
from hf_perturb.errors import PerturbationError

# `torch.device` as a context notes the device that was current for the whole process, and puts it back
BUILDING = Lock()
# the types that were the process's default, one for each thread that goes by another
_DEFAULT, _replaced = Lock(), list[torch.dtype]()
# what they write does not depend on what was there
OVERWRITING = frozenset(("normal_", "uniform_", "fill_", "zero_", "copy_"))
# what makes numbers of the type that is the process's default, which somebody else may have changed at the moment
_OF_DEFAULT_TYPE = frozenset(("empty", "zeros", "ones", "full", "linspace", "rand", "randn", "normal"))
_ADDING = re.compile(r"linalg_\w+|_weight_norm\w*|norm|mm|mv|bmm|addmm|dot|sum|mean|prod|std|var|cumsum|cumprod")
_ALONE = Lock()
_IS_META: Any = torch.Tensor.is_meta.__get__  # type: ignore[attr-defined]


@torch.inference_mode(False)
def construct(model_class: type[PreTrainedModel], config: Any) -> tuple[PreTrainedModel, Construction]:
    """Build a network on the meta device, where Transformers initialises nothing and ties what is tied.

    Returns:
        The network, and what was done to its tensors.
    """
    construction = Construction()
    with BUILDING, of_float32(), torch.device("meta"), _Numbers(), Functions(construction.skipped), construction:
        model = model_class(copy.deepcopy(config))
    for name, tensor in model.state_dict(keep_vars=True).items():
        construction.tensors[name] = construction.memory(tensor)
    return model, construction


@contextmanager
def of_float32() -> Iterator[None]:
    """Let numbers that say no type be float32, as in an ordinary process; where they are, nothing is changed.

    The default is the process's: as long as one thread is in here, it is that for all.
    """
    with _DEFAULT:
        held = bool(_replaced) or torch.get_default_dtype() != torch.float32
        if held:
            _replaced.append(torch.get_default_dtype() if not _replaced else _replaced[0])
            torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        with _DEFAULT:
            if held and (before := _replaced.pop()) and not _replaced:
                torch.set_default_dtype(before)


def with_generator(func: Any, kwargs: dict[str, Any], generator: torch.Generator) -> tuple[Any, dict[str, Any]]:
    """Return an operator and its keywords, with a generator where it is random, and a type where it lacks one."""
    if isinstance(func, FunctionType):
        return func, ({**kwargs, "generator": generator} if "generator" in kwargs else kwargs)
    named = {argument.name for argument in func._schema.arguments}
    if "dtype" in named and kwargs.get("dtype") is None and name_of(func) in _OF_DEFAULT_TYPE:
        kwargs = {**kwargs, "dtype": torch.float32}
    if "generator" in named:
        return func, {**kwargs, "generator": generator}
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return func, kwargs
    packet = func.overloadpacket
    for each in map(packet.__getattr__, packet.overloads()):
        if {argument.name for argument in each._schema.arguments} == named | {"generator"}:
            return each, {**kwargs, "generator": generator}
    raise PerturbationError(f"the initialisation uses {func}, which takes no generator of its own")


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator; one that adds numbers up, in one thread, for how many share in that decides how it rounds."""
    if isinstance(func, FunctionType) or not _ADDING.fullmatch(name_of(func)):
        return func(*args, **kwargs)
    with _ALONE:  # a library of linear algebra has one number of threads for the process
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return func(*args, **kwargs)
        finally:
            torch.set_num_threads(threads)


def described(name: str, given: Iterable[Any]) -> str:
    """Return an operator with the numbers that it was given, as tables name it."""
    numbers = ", ".join(f"{each:g}" for each in given if isinstance(each, int | float) and not isinstance(each, bool))
    return f"`{name}({numbers})`"


def name_of(func: Any) -> str:
    """Return what an operator, or a function of `torch.nn.init`, is called by."""
    return str(
        func.__name__.removeprefix("_no_grad_") if isinstance(func, FunctionType) else func.overloadpacket.__name__
    )


@dataclass(frozen=True)
class _Memory:
    """A tensor by the memory that it is in, for another memory of that size."""

    key: int
    items: int
    dtype: torch.dtype
    layout: tuple[Any, ...]

    @property
    def shape(self) -> Shape:
        return tuple(self.layout[0])

    @property
    def is_whole(self) -> bool:
        return math.prod(self.shape) == self.items

    def of(self, memory: torch.UntypedStorage) -> torch.Tensor:
        """Return the tensor in a memory."""
        size, stride, offset = self.layout
        return torch.empty(0, dtype=self.dtype, device="cpu").set_(memory, offset, size, stride)


@dataclass(frozen=True)
class _Step:
    """An operator that ran in a constructor, what it was given, and the memories that it reads, writes and makes."""

    func: Any
    given: tuple[Any, dict[str, Any]]
    reads: frozenset[int]
    writes: tuple[_Memory, ...]
    makes: tuple[_Memory | None, ...]
    constructor: str

    @property
    def text(self) -> str:
        """How tables name it."""
        args, kwargs = self.given
        return described(self.name, (*args, *kwargs.values()))

    @property
    def name(self) -> str:
        return name_of(self.func)

    @property
    def is_random(self) -> bool:
        return isinstance(self.func, FunctionType) or torch.Tag.nondeterministic_seeded in self.func.tags

    def changes(self, needed: set[int]) -> bool:
        """Whether memories that are needed are written or made; they become those that are needed before."""
        changed = {each.key for each in (*self.writes, *self.makes) if each is not None}
        if not changed & needed:
            return False
        needed.difference_update(changed)
        needed.update(self.reads)
        return True


class Functions(TorchFunctionMode):
    """Tells of functions of `torch.nn.init` that ask first of all whether a tensor has values, and skip those without.

    Args:
        tell: given the frame of the function.
    """

    def __init__(self, tell: Callable[[FrameType], None]):
        super().__init__()
        self._tell = tell

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == _IS_META and (asks := sys._getframe(1)).f_globals is vars(torch.nn.init):
            self._tell(asks)
        return func(*args, **(kwargs or {}))


class _Numbers(TorchFunctionMode):
    """Keeps the values of what is made of numbers, which the meta device would drop before an operator sees them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.linspace) and torch.device(kwargs.get("device") or "meta").type == "meta":
            made = func(*args, **{**kwargs, "device": "cpu"})
            # rates of the layers are read from it, while the network is built
            return made if func is torch.linspace else made.to("meta")
        return func(*args, **kwargs)


def arguments_of(frame: FrameType) -> dict[str, Any]:
    """Return what the function that a frame runs was called with, at its beginning."""
    code = frame.f_code
    return {name: frame.f_locals[name] for name in code.co_varnames[: code.co_argcount]}


class Construction(TorchDispatchMode):
    """Notes every operator that runs in this thread while a network is built without values.

    `tensors` are those of the network, by stored name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[str, _Memory] = {}
        self._steps: list[_Step] = []
        # kept, because a memory that is let go of may be given out again by the same key
        self._seen: dict[int, torch.UntypedStorage] = {}
        self._given: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in (each for each in tree_iter((args, kwargs)) if isinstance(each, torch.Tensor)):
            if x.device.type == "cpu" and x.untyped_storage()._cdata not in self._seen:
                self._given[x.untyped_storage()._cdata] = x.untyped_storage().clone()
        given = tree_map_only(torch.Tensor, self.memory, (args, dict(kwargs or {})))
        # some constructors draw on the CPU whatever the device
        operator, keywords = with_generator(func, dict(kwargs or {}), torch.Generator())
        result = operator(*args, **keywords)
        inputs = {each.key for each in tree_iter(given) if isinstance(each, _Memory)}
        writes = tuple(
            value
            for value, argument in zip(given[0], func._schema.arguments, strict=False)
            if isinstance(value, _Memory) and argument.alias_info is not None and argument.alias_info.is_write
        )
        made = [self.memory(x) if isinstance(x, torch.Tensor) else None for x in tree_iter(result)]
        makes = tuple(None if each is None or each.key in inputs else each for each in made)
        # what is written whole is not read, but for the source of a copy
        lost = {each.key for each in writes if each.is_whole and name_of(func) in OVERWRITING}
        reads = frozenset(inputs - lost)
        # `set_` gives a tensor another memory, and changes none
        if (writes or any(makes)) and name_of(func) != "set_":
            self._steps.append(_Step(func, given, reads, writes, makes, _constructor()))
        return result

    def skipped(self, frame: FrameType) -> None:
        """Note a function that does nothing to a tensor without values."""
        given = tree_map_only(torch.Tensor, self.memory, arguments_of(frame))
        writes = tuple(each for each in given.values() if isinstance(each, _Memory))
        func = frame.f_globals[frame.f_code.co_name]
        self._steps.append(_Step(func, ((), given), frozenset(), writes, (None,), _constructor()))

    def memory(self, tensor: torch.Tensor) -> _Memory:
        """Return where a tensor is."""
        storage = tensor.untyped_storage()
        self._seen[storage._cdata] = storage
        layout = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset())
        return _Memory(storage._cdata, storage.nbytes() // tensor.itemsize, tensor.dtype, layout)

    def steps(self, name: str) -> list[_Step]:
        """Return the steps that lead to a tensor of the network, in their order."""
        needed = {self.tensors[name].key}
        return [step for step in reversed(self._steps) if step.changes(needed)][::-1]

    def draws(self, name: str) -> set[int]:
        """Return which random steps lead to a tensor of the network."""
        return {id(step) for step in self.steps(name) if step.is_random}

    def value(self, name: str, generator: torch.Generator) -> torch.Tensor:
        """Return a tensor of the network as the constructor leaves it, NaN where that writes nothing."""
        memories: dict[int, torch.UntypedStorage] = {}

        def real(noted: _Memory) -> torch.Tensor:
            if noted.key not in memories:
                given = self._given.get(noted.key)
                made = given.clone() if given is not None else _unwritten(torch.empty(noted.items, dtype=noted.dtype))
                memories[noted.key] = made if isinstance(made, torch.UntypedStorage) else made.untyped_storage()
            return noted.of(memories[noted.key])

        for step in self.steps(name):
            args, kwargs = tree_map_only(_Memory, real, step.given)
            if kwargs.get("device") is not None:
                kwargs["device"] = torch.device("cpu")
            func, kwargs = with_generator(step.func, kwargs, generator)
            for noted, made in zip(step.makes, tree_iter(run(func, args, kwargs)), strict=True):
                if noted is not None:
                    memories[noted.key] = (_unwritten(made) if "empty" in step.name else made).untyped_storage()
        return real(self.tensors[name])


def _constructor() -> str:
    """Return the class of the module whose constructor runs."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        module = frame.f_locals.get("self") if frame.f_code.co_name == "__init__" else None
        if isinstance(module, nn.Module):
            return f"{type(module).__name__}.__init__"
        frame = frame.f_back
    return "a constructor"


def _unwritten(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor.zero_()
