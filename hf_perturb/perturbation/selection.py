"""Which tensors a perturbation is about: the rules, the globs and the scopes together."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from hf_perturb.errors import PerturbationError, RuleError
from hf_perturb.perturbation.rules import Row, rows_of
from hf_perturb.perturbation.scopes import in_scope
from hf_perturb.perturbation.spec import Perturbation


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
    perturbed = [name for name in known if rule_of(family, name).resample]
    for key, candidates in (("include", perturbed), ("exclude", known)):
        for glob in getattr(perturbation, key):
            if not any(fnmatchcase(name, glob) for name in candidates):
                kept = any(fnmatchcase(name, glob) for name in known)
                problem = "matches only tensors that the rules keep" if kept else "matches no parameter"
                raise PerturbationError(
                    f"perturbation {key}: glob {glob!r} {problem}; allowed: globs over names such as"
                    f" {', '.join(map(repr, perturbed[:2] + perturbed[-1:]))}"
                )
    scoped = in_scope(family, known, perturbation.scope)
    return {
        name
        for name in perturbed
        if name in scoped
        and (not perturbation.include or _any(name, perturbation.include))
        and not _any(name, perturbation.exclude)
    }


def _any(name: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def rule_of(family: str, name: str) -> Row:
    """Return the one row that names a tensor.

    Raises:
        RuleError: if no row does, or more than one.
    """
    rows = [row for row in rows_of(family) if row.names(name)]
    if len(rows) != 1:
        found = "no rule names it" if not rows else "rules " + " and ".join(repr(r.pattern) for r in rows) + " name it"
        raise RuleError(
            f"tensor {name!r} of family {family!r}: {found}; every tensor needs exactly one row in"
            " hf_perturb/perturbation/rules.py"
        )
    return rows[0]
