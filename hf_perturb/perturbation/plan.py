"""A plan: names and shapes plus a `Perturbation` give a list of steps, and the same steps run everywhere."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import MappingProxyType

import torch

from hf_perturb.errors import PerturbationError
from hf_perturb.perturbation.kernels import INITIALISERS, Shape, constant, shuffle
from hf_perturb.perturbation.parallel import for_each
from hf_perturb.perturbation.rules import default_axis, rule_of
from hf_perturb.perturbation.scopes import in_scope
from hf_perturb.perturbation.spec import Perturbation

_NONE: Mapping[str, Shape] = MappingProxyType({})


@dataclass(frozen=True)
class Step:
    """What happens to one tensor: `kernel` is a name in `kernels.INITIALISERS`, or `"shuffle"`.

    `seed` is that of the tensor's own generator, `None` where the plan has one generator for all. Those of `before`,
    for tensors that the network lacks and the study's class has, are drawn with that one first, and dropped.
    """

    name: str
    shape: Shape
    kernel: str
    arguments: tuple[tuple[str, float | str], ...]
    seed: int | None
    before: tuple[Step, ...] = ()

    @property
    def shuffles(self) -> bool:
        """Whether the old values are needed; a draw needs none."""
        return self.kernel == "shuffle"

    def can_change(self) -> bool:
        """Whether there is anything to change: one entry, or a row of one, has only one order."""
        if not self.shuffles:
            return True
        return (math.prod(self.shape) if dict(self.arguments)["axis"] == "all" else self.shape[-1]) > 1

    def run(self, tensor: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Return the perturbed tensor, in the type and on the device of the old one, which only a shuffle reads.

        A step without a seed of its own needs the plan's generator.
        """
        if self.seed is not None:
            generator = torch.Generator("cpu").manual_seed(self.seed)
        elif generator is None:
            raise PerturbationError(f"step {self.name!r} has no seed of its own; give the plan's generator")
        for missing in self.before:
            missing.run(constant(missing.shape, generator, value=0), generator)
        arguments = dict(self.arguments)
        if self.shuffles:
            return shuffle(tensor, generator, **arguments)  # type: ignore[arg-type]
        return INITIALISERS[self.kernel](self.shape, generator, **arguments).to(tensor.device, tensor.dtype)


@dataclass(frozen=True)
class Plan:
    """The steps of a perturbation, one for every tensor that changes, in the order of the tensors.

    `seed` is that of the one generator that all steps share (rules `"published"`), or `None`.
    """

    steps: tuple[Step, ...]
    seed: int | None = None

    def generator(self) -> torch.Generator | None:
        """Return the shared generator, `None` where every step has its own."""
        return None if self.seed is None else torch.Generator("cpu").manual_seed(self.seed)


def select(family: str, names: Iterable[str], perturbation: Perturbation) -> set[str]:
    """Return the names that `include`, `exclude` and `scope` leave and that the rules do not keep.

    Args:
        family: `"fair_esm"` or `"carp"`.
        names: every tensor of the network, its language head's even where the model at hand has none: the same
            perturbation must work on a model with and without it.
        perturbation: what to do.

    Raises:
        PerturbationError: if a glob matches no tensor, if `include` names only tensors that the rules keep, or if a
            scope is not one of this network.
    """
    known = list(dict.fromkeys(names))
    perturbed = [name for name in known if rule_of(family, name).reinit is not None]
    for key, candidates in (("include", perturbed), ("exclude", known)):
        for glob in getattr(perturbation, key):
            if not any(fnmatchcase(name, glob) for name in candidates):
                kept = any(fnmatchcase(name, glob) for name in known)
                problem = "matches only tensors that the rules keep" if kept else "matches no parameter"
                raise PerturbationError(
                    f"perturbation {key}: glob {glob!r} {problem}; allowed: globs over names such as"
                    f" {', '.join(map(repr, perturbed[:2] + perturbed[-1:]))}"
                )
    return set(named(family, known, perturbation)) & set(perturbed)


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
            step = Step(name, tuple(shape), *kernel, tensor_seed(perturbation.seed, name) if documented else None)
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
    if perturbation.method == "resample":
        axis = "all" if perturbation.rules == "published" else perturbation.axis or default_axis(family)
        return "shuffle", (("axis", axis),)
    initialiser = rule_of(family, name).initialiser(perturbation.rules)
    if initialiser is None:
        return None
    if not initialiser.fan_in:
        return initialiser.kernel, initialiser.arguments
    weight = shapes[name.removesuffix("bias") + "weight"]
    return initialiser.kernel, (("bound", 1 / math.sqrt(math.prod(weight[1:]))),)


def tensor_seed(seed: int, name: str) -> int:
    """Return the seed of a tensor's own generator: no other tensor and no order can change its draw."""
    digest = hashlib.sha256(f"hf_perturb/1/{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") & (2**63 - 1)


def check_values(plan: Plan, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise a `PerturbationError` if a tensor of the plan has no values, being on the meta device."""
    for step in plan.steps:
        if tensors[step.name].is_meta:
            raise PerturbationError(
                f"tensor {step.name!r} has no values here (it is on the meta device, or offloaded to disk or CPU);"
                " build the variant first (hf-perturb create) and load that, or load the model whole on one device"
            )


def apply_plan(
    plan: Plan, tensors: Mapping[str, torch.Tensor], owners: Mapping[str, torch.nn.Parameter] | None = None
) -> None:
    """Run a plan on tensors, in place, on all processors where every step has a generator of its own.

    Args:
        plan: from `make_plan` over the same names.
        tensors: the tensors by document name; none on the meta device, which is an error before anything is changed.
        owners: parameters that may be given new memory, faster than changing mapped pages; none that others may hold.
    """
    check_values(plan, tensors)
    generator = plan.generator()

    @torch.no_grad()
    def run(step: Step) -> None:
        new = step.run(tensors[step.name], generator)
        owner = owners.get(step.name) if owners else None
        if owner is None:
            tensors[step.name].copy_(new)
        else:
            owner.data = new

    for_each(run, plan.steps, None if generator is None else 1)
