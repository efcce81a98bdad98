"""A plan: names and shapes plus a `Perturbation` give a list of steps, and the same steps run everywhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_perturb.errors import PerturbationError
from hf_perturb.perturbation.floats import Array, dtype_code, other_types
from hf_perturb.perturbation.kernels import KERNELS, READERS, bounds, check_moments, fill
from hf_perturb.perturbation.rules import Shape, default_axis, rule_of
from hf_perturb.perturbation.scopes import in_scope
from hf_perturb.perturbation.spec import Perturbation
from hf_perturb.perturbation.streams import Stream, stream_key

if TYPE_CHECKING:
    from hf_perturb.perturbation.published import StudyGenerator

_NONE: Mapping[str, Shape] = MappingProxyType({})


@dataclass(frozen=True)
class Step:
    """What happens to one tensor: `kernel` is a name in `kernels.KERNELS`.

    `key` is that of the tensor's own stream, `None` where the plan has one generator for all. Those of `before`, for
    tensors that the network lacks and the study's class has, are drawn with that one first, and dropped.
    """

    name: str
    shape: Shape
    kernel: str
    arguments: tuple[tuple[str, float | str], ...]
    key: int | None
    before: tuple[Step, ...] = ()

    @property
    def reads(self) -> bool:
        """Whether the old values are needed."""
        return self.kernel in READERS

    def can_change(self) -> bool:
        """Whether there is anything to change: one entry, or a row of one, has only one order, and no deviation."""
        if not self.reads:
            return True
        axis = dict(self.arguments).get("axis", "all")
        lengths = {"all": math.prod(self.shape), "outputs": self.shape[0] if self.shape else 1}
        return lengths.get(str(axis), self.shape[-1] if self.shape else 1) > 1

    def blocks(
        self, values: Array | None, dtype: np.dtype[Any], generator: StudyGenerator | None = None
    ) -> Iterator[Array]:
        """Make the perturbed tensor, as vectors that follow each other; each is good until the next.

        Args:
            values: the old ones, of the step's shape; they may be left out unless it `reads` them.
            dtype: the type to make, which is that of old values.
            generator: what `Plan.generator` returned, for a step without a stream of its own.

        Raises:
            PerturbationError: if the generator is missing, or the values, or their type, cannot be drawn after.
        """
        check_types({self.name: dtype_code(dtype)})
        given = (values,) if self.reads else ()
        if self.key is None:
            if generator is None:
                raise PerturbationError(f"step {self.name!r} has no stream of its own; give the plan's generator")
            return iter([generator.run(self, dtype, *given)])
        with self._named():
            return KERNELS[self.kernel](self.shape, dtype, Stream(self.key), *given, **dict(self.arguments))

    def run(self, values: Array | None, dtype: np.dtype[Any], generator: StudyGenerator | None = None) -> Array:
        """Return the perturbed tensor whole; see `blocks`."""
        return fill(np.empty(self.shape, dtype), self.blocks(values, dtype, generator))

    def check(self, values: Array) -> bool:
        """Raise what `run` would of the values, and return whether they can change: a constant stays."""
        low, high = bounds(values)
        if self.kernel == "gaussian":
            with self._named():
                check_moments(values, low, high)
        return low != high

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except PerturbationError as error:
            raise PerturbationError(f"tensor {self.name!r}: {error}") from error


@dataclass(frozen=True)
class Plan:
    """The steps of a perturbation, one for every tensor that changes, in the order of the tensors.

    `seed` is that of the one generator that all steps share (rules `"published"`), or `None`.
    """

    steps: tuple[Step, ...]
    seed: int | None = None

    def generator(self) -> StudyGenerator | None:
        """Return the shared generator, `None` where every step has a stream of its own."""
        if self.seed is None:
            return None
        from hf_perturb.perturbation.published import StudyGenerator

        return StudyGenerator(self.seed)


def check_types(types: Mapping[str, str]) -> None:
    """Raise a `PerturbationError` if tensors, by name, are of types (`F8_E4M3`) that nothing is drawn in."""
    if said := other_types(types):
        raise PerturbationError(said)


def select(family: str, names: Iterable[str], perturbation: Perturbation) -> set[str]:
    """Return the names that `include`, `exclude` and `scope` leave and that the rules and `also` perturb.

    Args:
        family: `"fair_esm"` or `"carp"`.
        names: every tensor of the network, its language head's even where the model at hand has none: the same
            perturbation must work on a model with and without it.
        perturbation: what to do.

    Raises:
        PerturbationError: if a glob matches no tensor, if `include` names only tensors that the rules keep, if nothing
            of a part in `also` is left, or if a scope is not one of this network.
    """
    known = list(dict.fromkeys(names))
    rows = {name: rule_of(family, name) for name in known}
    perturbed = [name for name in known if not rows[name].is_kept(perturbation.also)]
    for key, candidates in (("include", perturbed), ("exclude", known)):
        for glob in getattr(perturbation, key):
            if any(fnmatchcase(name, glob) for name in candidates):
                continue
            parts = {rows[name].part for name in known if fnmatchcase(name, glob)}
            problem = "matches only tensors that the rules keep" if parts else "matches no parameter"
            if more := ", ".join(repr(part) for part in sorted(filter(None, parts))):
                problem += f", which also: [{more}] would perturb"
            raise PerturbationError(
                f"perturbation {key}: glob {glob!r} {problem}; allowed: globs over names such as"
                f" {', '.join(map(repr, perturbed[:2] + perturbed[-1:]))}"
            )
    chosen = set(named(family, known, perturbation)) & set(perturbed)
    for part in perturbation.also:
        # the rules perturb a head of the name `lm_head` by themselves
        named_so = {name for name in known if rows[name].part == part or (part == "head" and name[:8] == "lm_head.")}
        if named_so and not named_so & chosen:
            raise PerturbationError(
                f"perturbation also: got {part!r}, and scope, include or exclude leave none of its tensors"
                f" ({', '.join(sorted(named_so))}); allowed: tensors that these name as well"
            )
    return chosen


def named(family: str, names: Iterable[str], perturbation: Perturbation) -> list[str]:
    """Return the names that `include`, `exclude` and `scope` leave, also of what the rules keep; see `select`."""
    known = list(dict.fromkeys(names))
    scoped = in_scope(family, known, perturbation.scope)

    def asked(name: str) -> bool:
        included = not perturbation.include or any(fnmatchcase(name, glob) for glob in perturbation.include)
        return included and not any(fnmatchcase(name, glob) for glob in perturbation.exclude)

    return [name for name in known if name in scoped and asked(name)]


def make_plan(
    family: str, shapes: Mapping[str, Shape], perturbation: Perturbation, whole: Mapping[str, Shape] = _NONE
) -> Plan:
    """Plan a perturbation.

    Args:
        family: `"fair_esm"` or `"carp"`.
        shapes: shape of every parameter and stored buffer under its document name, in the order of the original
            class's `state_dict`.
        perturbation: what to do.
        whole: the same of the network with all its heads, as `Network.whole` says for these rules: the model at hand
            may lack some, and the study drew them all the same.

    Raises:
        RuleError: if no row, or more than one, names a tensor.
        PerturbationError: if a glob matches nothing, a scope does not fit, or nothing is left to perturb.
    """
    every = {**whole, **shapes}
    chosen = select(family, every, perturbation)
    documented = perturbation.rules == "documented"
    steps: list[Step] = []
    missing: list[Step] = []
    for name, shape in every.items():
        if name in chosen and (kernel := _kernel(family, name, every, perturbation)) is not None:
            step = Step(name, tuple(shape), *kernel, stream_key(perturbation.seed, name) if documented else None)
            if name not in shapes:
                missing.append(step)
                continue
            steps.append(step if documented else replace(step, before=tuple(missing)))
            missing.clear()
    if not any(step.can_change() for step in steps) and chosen <= shapes.keys():
        raise PerturbationError(
            f"perturbation: {perturbation} leaves nothing to perturb; widen include or scope (a tensor has to be in"
            " every scope that is named), narrow exclude, or take another axis"
        )
    return Plan(tuple(steps), None if documented else perturbation.seed)


def _kernel(
    family: str, name: str, shapes: Mapping[str, Shape], perturbation: Perturbation
) -> tuple[str, tuple[tuple[str, float | str], ...]] | None:
    if perturbation.method == "gaussian":
        return "gaussian", ()
    if perturbation.method == "resample":
        axis = "all" if perturbation.rules == "published" else perturbation.axis or default_axis(family)
        return "shuffle", (("axis", axis),)
    initialiser = rule_of(family, name).initialiser(perturbation.rules)
    if initialiser is None:
        return None
    weight = shapes.get(name.removesuffix("bias") + "weight", shapes[name])
    return initialiser.kernel, initialiser.for_shape(shapes[name], weight)
