"""How Transformers calls and stacks the tensors of files when it loads them, and back: by its own mapping.

It imports torch and Transformers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from hf_perturb.checkpoints.of_torch import tensor_of, torch_dtype
from hf_perturb.checkpoints.shapes import Shape, listed
from hf_perturb.checkpoints.tensors import Tensor
from hf_perturb.errors import CheckpointError
from hf_perturb.perturbation.floats import Array, array_of, as_integers, numpy_dtype

if TYPE_CHECKING:
    from hf_perturb.checkpoints.skeleton import Skeleton
    from hf_perturb.perturbation import Step

_Values = Mapping[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Stack:
    """Tensors that are stored one by one and held as others, such as the experts of a layer.

    Args:
        skeleton: whose tensors are held.
        converter: of Transformers, that makes the latter of the former.
        key: what it calls them by.
        patterns: by the names of what is stored, what it takes each for.
        transforms: of Transformers, all that were used for these files; reverted when they are saved.
        shapes: of the tensors that are held, by canonical name.
    """

    skeleton: Skeleton
    converter: WeightConverter
    key: str
    patterns: dict[str, str] = field(default_factory=dict)
    transforms: list[WeightTransform] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)

    def load(self, stored: _Values) -> dict[str, torch.Tensor]:
        """Return the tensors that are held, by canonical name, of those that are stored."""
        converter, model = copy.deepcopy(self.converter), self.skeleton.model
        for name, pattern in self.patterns.items():
            converter.add_tensor(self.key, name, pattern, cast(Any, stored[name]))  # a tensor will do
        made = converter.convert(self.key, model=model, config=model.config)
        return {self.skeleton.canonical(name): _first(value) for name, value in made.items()}

    def save(self, held: _Values) -> dict[str, torch.Tensor]:
        """Return the tensors to store, by the names that they came by, of those that are held."""
        model = copy.copy(self.skeleton.model)  # which shares all but the note of how it was loaded
        model.__dict__["_weight_conversions"] = self.transforms
        made = revert_weight_conversion(model, {self.skeleton.stored(name): value for name, value in held.items()})
        return {self._came_as(name): value for name, value in made.items()}

    def _came_as(self, name: str) -> str:
        prefix = f"{self.skeleton.model.base_model_prefix}."
        return next((each for each in (name, name.removeprefix(prefix), prefix + name) if each in self.patterns), name)

    def measure(self, stored: Mapping[str, Shape]) -> None:
        """Note the shapes of the tensors that are held, given those of all that are stored.

        Raises:
            CheckpointError: if they would not come back as they are stored.
        """
        files = {name: torch.empty(stored[name], device="meta") for name in self.patterns}
        try:
            made = self.load(files)
            back = {name: value.shape for name, value in self.save(made).items()}
        except Exception as error:  # any of the operators' own
            raise self._one_way(str(error)) from error
        if back != {name: value.shape for name, value in files.items()}:
            raise self._one_way(f"they come back as {listed(back)}")
        self.shapes.update({name: tuple(value.shape) for name, value in made.items()})

    def perturbed(self, steps: Mapping[str, Step | None], tensors: Mapping[str, Tensor]) -> Restacked:
        """Return what makes the tensors to store where those that are held are perturbed; see `Restacked`."""
        return Restacked(self, steps, tensors)

    def _one_way(self, why: str) -> CheckpointError:
        model = type(self.skeleton.model).__name__
        return CheckpointError(
            f"{listed(self.patterns)}: transformers holds them as {self.key}, and cannot give them back as they are"
            f" stored ({why}); load the model, save it by itself, and take that ({model}.from_pretrained(...)"
            ".save_pretrained(...))"
        )


def _first(value: Any) -> torch.Tensor:
    tensor: torch.Tensor = value[0] if isinstance(value, list) else value
    return tensor


@dataclass(frozen=True)
class Conversions:
    """What becomes of the tensors of files when a class loads them.

    Args:
        names: the canonical name that each is held by; of a stack, that of the first tensor that it becomes.
        stacks: tensors that become others.
    """

    names: dict[str, str]
    stacks: tuple[Stack, ...]


def conversions_of(skeleton: Skeleton, stored: Mapping[str, Shape]) -> Conversions:
    """Return what becomes of stored tensors, as `from_pretrained` of the class of a skeleton names them.

    Source: `transformers.core_model_loading.convert_and_load_state_dict_in_model`.
    """
    model = skeleton.model
    transforms = get_model_conversion_mapping(model)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    state: Any = {skeleton.stored(name): True for name in skeleton.shapes}
    names: dict[str, str] = {}
    stacks: dict[str, Stack] = {}
    taken: set[str] = set()
    for name in sorted(stored, key=dot_natural_key):
        key, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if key not in state and name in state:
            key, pattern = name, None
        if key not in state or (pattern is None and key in taken):
            continue
        taken.add(key)
        names[name] = skeleton.canonical(key)
        if pattern is not None:
            stack = stacks.setdefault(key, Stack(skeleton, by_pattern[pattern], key))
            stack.patterns[name] = pattern
    used = [each for each in transforms if each.was_used()]
    for stack in stacks.values():
        stack.transforms.extend(used)
        stack.measure(stored)
    return Conversions(names, tuple(stacks.values()))


class Restacked:
    """The tensors to store of a stack that is perturbed as what it is held as: made together, when one is asked for.

    Args:
        stack: that they are.
        steps: what is done to each tensor that is held, by canonical name, `None` to keep it.
        tensors: that are stored.
    """

    def __init__(self, stack: Stack, steps: Mapping[str, Step | None], tensors: Mapping[str, Tensor]):
        self._stack, self._steps, self._tensors = stack, steps, tensors
        self._made: dict[str, Array] = {}
        self._lock = Lock()

    def part(self, name: str, memory: Array | None = None) -> Array:
        """Return a tensor to store; several threads may ask, each for another. Memory that is given is not used."""
        with self._lock:
            if name not in self._made:
                self._made = self._make()
            return self._made.pop(name)

    @cached_property
    def _dtype(self) -> str:
        kinds = {self._tensors[name].dtype for name in self._stack.patterns}
        if len(kinds) > 1:
            raise CheckpointError(
                f"{listed(self._stack.patterns)} are {' and '.join(sorted(kinds))}, and one tensor for Transformers;"
                " save the model in one dtype"
            )
        return kinds.pop()

    @torch.no_grad()
    def _make(self) -> dict[str, Array]:
        kind = numpy_dtype(self._dtype)
        held: _Values = {}
        if any(step is None or step.reads for step in self._steps.values()):
            held = self._stack.load({name: tensor_of(self._tensors[name].values()) for name in self._stack.patterns})
        made = {
            name: held[name]
            if step is None
            else tensor_of(step.run(array_of(held[name].contiguous()) if step.reads else None, kind))
            for name, step in self._steps.items()
        }
        files = {
            name: value.to(torch_dtype(self._dtype)).contiguous() for name, value in self._stack.save(made).items()
        }
        loaded = self._stack.load(files)
        if not all(_same_bits(loaded[name], value) for name, value in made.items()):
            raise CheckpointError(
                f"{listed(self._stack.patterns)}: what transformers would load of them is not what was made"
            )
        return {name: array_of(value) for name, value in files.items()}


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    a, b = (as_integers(array_of(tensor.contiguous())) for tensor in (one, other))
    return a.shape == b.shape and bool((a == b).all())
