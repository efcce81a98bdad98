"""A plan: names and shapes plus a `Perturbation` give a list of steps, and the same steps run everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from threading import local
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_perturb.errors import PerturbationError
from hf_perturb.perturbation.floats import Array, cast, dtype_code, other_types
from hf_perturb.perturbation.kernels import KERNELS, READERS, bounds, check_moments, fill
from hf_perturb.perturbation.rules import Shape, Table, table_of
from hf_perturb.perturbation.scopes import in_scope
from hf_perturb.perturbation.spec import Perturbation
from hf_perturb.perturbation.streams import Stream, stream_key

if TYPE_CHECKING:
    from hf_perturb.perturbation.published import StudyGenerator

_CHUNK = 1 << 16  # entries that stay in the cache while they are hashed and written
_of_thread = local()
_NONE: Mapping[str, Shape] = MappingProxyType({})


@dataclass(frozen=True)
class Step:
    """What happens to one tensor: `kernel` is a name in `kernels.KERNELS`.

    `key` is that of the tensor's own stream, `None` where the plan has one generator for all, or where the network
    itself draws it: that is `drawn`, which may use the memory that it is given, of as many float32. Those of `before`,
    for tensors that the network lacks and the study's class has, are drawn with that one generator first, and dropped.
    """

    name: str
    shape: Shape
    kernel: str
    arguments: tuple[tuple[str, float | str], ...]
    key: int | None
    before: tuple[Step, ...] = ()
    drawn: Callable[[Array], Array] | None = field(default=None, compare=False, repr=False)

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
        if self.drawn is not None:
            return self._of_network(self.drawn, dtype)
        if self.key is None:
            if generator is None:
                raise PerturbationError(f"step {self.name!r} has no stream of its own; give the plan's generator")
            return iter([generator.run(self, dtype, *given)])
        with self._named():
            return KERNELS[self.kernel](self.shape, dtype, Stream(self.key), *given, **dict(self.arguments))

    def _of_network(self, draw: Callable[[Array], Array], dtype: np.dtype[Any]) -> Iterator[Array]:
        size = math.prod(self.shape)
        # taken while it is in use, so that who draws meanwhile has another; new memory costs as much as a draw
        memory = _of_thread.__dict__.pop("memory", None)
        if memory is None or memory.size < size:
            memory = np.empty(size, np.float32)
        try:
            drawn = draw(memory[:size]).reshape(-1)
            for start in range(0, size, _CHUNK):
                yield cast(drawn[start : start + _CHUNK], dtype)
        finally:
            _of_thread.memory = memory

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


def select(family: str | Table, names: Iterable[str], perturbation: Perturbation) -> set[str]:
    """Return the names that `include`, `exclude` and `scope` leave and that the rules and `also` perturb.

    Args:
        family: `"fair_esm"` or `"carp"`, or the table of another network.
        names: every tensor of the network, its language head's even where the model at hand has none: the same
            perturbation must work on a model with and without it.
        perturbation: what to do.

    Raises:
        PerturbationError: if a glob matches no tensor, if `include` names only tensors that the rules keep, if nothing
            of a part in `also` is left, or if a scope is not one of this network.
    """
    known, table = list(dict.fromkeys(names)), table_of(family)
    rows = {name: table.row(name) for name in known}
    perturbed = [name for name in known if not rows[name].is_kept(perturbation.also)]
    for key, candidates in (("include", perturbed), ("exclude", known)):
        for glob in getattr(perturbation, key):
            if any(_is_named(table, name, [glob]) for name in candidates):
                continue
            parts = {rows[name].part for name in known if _is_named(table, name, [glob])}
            problem = "matches only tensors that the rules keep" if parts else "matches no parameter"
            if more := ", ".join(repr(part) for part in sorted(filter(None, parts))):
                problem += f", which also: [{more}] would perturb"
            raise PerturbationError(
                f"perturbation {key}: glob {glob!r} {problem}; allowed: globs over names such as"
                f" {', '.join(map(repr, perturbed[:2] + perturbed[-1:]))}"
            )
    chosen = set(named(table, known, perturbation)) & set(perturbed)
    for name in named(table, known, perturbation):
        row = rows[name]
        if row.other is not None and len({row.part, row.other} & {*perturbation.also}) == 1:
            raise PerturbationError(
                f"perturbation also: got {list(perturbation.also)}, and {name!r} is of the {row.part} and of the"
                f" {row.other}, which are one tensor in this network; allowed: both, or exclude={[name]!r} to leave it"
            )
    for part in perturbation.also:
        # the rules perturb a head of the name `lm_head` by themselves
        named_so = {name for name in known if rows[name].part == part or (part == "head" and name[:8] == "lm_head.")}
        if named_so and not named_so & chosen:
            raise PerturbationError(
                f"perturbation also: got {part!r}, and scope, include or exclude leave none of its tensors"
                f" ({', '.join(sorted(named_so))}); allowed: tensors that these name as well"
            )
    return chosen


def named(family: str | Table, names: Iterable[str], perturbation: Perturbation) -> list[str]:
    """Return the names that `include`, `exclude` and `scope` leave, also of what the rules keep; see `select`."""
    known, table = list(dict.fromkeys(names)), table_of(family)
    scoped, left = in_scope(table, known, perturbation.scope), perturbation.exclude

    def asked(name: str) -> bool:
        included = not perturbation.include or _is_named(table, name, perturbation.include)
        return included and not _is_named(table, name, left)

    return [name for name in known if name in scoped and asked(name)]


def _is_named(table: Table, name: str, globs: Iterable[str]) -> bool:
    """Whether one of the globs matches a tensor, by what it is called here or is drawn by."""
    return any(fnmatchcase(each, glob) for each in {name, table.named(name)} for glob in globs)


def make_plan(
    family: str | Table, shapes: Mapping[str, Shape], perturbation: Perturbation, whole: Mapping[str, Shape] = _NONE
) -> Plan:
    """Plan a perturbation.

    Args:
        family: `"fair_esm"` or `"carp"`, or the table of another network.
        shapes: shape of every parameter and stored buffer under its document name, in the order of the original
            class's `state_dict`.
        perturbation: what to do.
        whole: the same of the network with all its heads, as `Network.whole` says for these rules: the model at hand
            may lack some, and the study drew them all the same.

    Raises:
        RuleError: if no row, or more than one, names a tensor.
        PerturbationError: if a glob matches nothing, a scope does not fit, the rules are those of other networks, or
            nothing is left to perturb.
    """
    every, table = {**whole, **shapes}, table_of(family)
    perturbation = Perturbation.parse(perturbation, table.rules[0])
    if perturbation.rules not in table.rules:
        allowed = " or ".join(map(repr, table.rules))
        raise PerturbationError(
            f"perturbation rules: got {perturbation.rules!r} for {table.family}; allowed: {allowed}"
        )
    table.check()
    chosen, shared = select(table, every, perturbation), perturbation.rules == "published"
    steps: list[Step] = []
    missing: list[Step] = []
    for name in every:
        if name in chosen and (step := _step(table, name, every, perturbation)) is not None:
            if name not in shapes:
                missing.append(step)
                continue
            steps.append(replace(step, before=tuple(missing)) if shared else step)
            missing.clear()
    if not any(step.can_change() for step in steps) and chosen <= shapes.keys():
        raise PerturbationError(
            f"perturbation: {perturbation} leaves nothing to perturb; widen include or scope (a tensor has to be in"
            " every scope that is named), narrow exclude, or take another axis"
        )
    return Plan(tuple(steps), perturbation.seed if shared else None)


def _step(table: Table, name: str, shapes: Mapping[str, Shape], asked: Perturbation) -> Step | None:
    """Return what is done to a tensor that is to be perturbed, `None` where the rules leave it all the same."""
    rules, shape = str(asked.rules), tuple(shapes[name])
    key = None if rules == "published" else stream_key(asked.seed, table.named(name))
    if asked.method == "gaussian":
        return Step(name, shape, "gaussian", (), key)
    if asked.method == "resample":
        axis = "all" if rules == "published" else asked.axis or table.axis
        return Step(name, shape, "shuffle", (("axis", axis),), key)
    initialiser = table.initialiser(name, rules)
    if initialiser is None:
        return None
    drawn = table.drawn(name, asked.seed)
    arguments = initialiser.for_shape(shape, shapes.get(name.removesuffix("bias") + "weight", shape))
    return Step(name, shape, initialiser.kernel, arguments, None if drawn else key, drawn=drawn)
