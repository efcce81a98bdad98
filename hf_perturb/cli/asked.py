"""Which perturbations a command line asks for, the same for every command that makes controls."""

from __future__ import annotations

import argparse

import hf_perturb
from hf_perturb.perturbation.spec import DEFAULT_SEED, Perturbation
from hf_perturb.variants.matrix import matrix


class UsageError(Exception):
    """Words of the command line that do not go together."""


def asked_of(options: argparse.Namespace, base: str, revision: str | None = None) -> list[Perturbation]:
    """Return the perturbations that options ask for, of a base at a revision."""
    scopes = [options.scope]
    if options.cascade:
        from hf_perturb.checkpoints.checkpoint import Checkpoint
        from hf_perturb.perturbation.scopes import cascade, depth_of

        if layers := [scope for scope in options.scope if ":" in scope]:
            raise UsageError(f"argument --cascade: not with --scope {layers[0]}; a cascade chooses the layers itself")
        code = {"trust_remote_code": options.trust_remote_code}
        opened = Checkpoint.open(base, revision, rules=options.rules, **code).base()
        depth = depth_of(opened.tensors, opened.network.table(options.rules), options.cascade)
        scopes = [[*options.scope, scope] for scope in cascade(depth, options.cascade)]
    try:
        return matrix(
            options.method,
            options.seed or [DEFAULT_SEED],
            options.axis,
            scopes,
            rules=options.rules,
            include=options.include,
            exclude=options.exclude,
            also=options.also,
        )
    except hf_perturb.PerturbationError as error:
        raise UsageError(str(error)) from error


def refuse_without_method(options: argparse.Namespace, why: str) -> None:
    """Raise if an option of a perturbation is given and no method is."""
    for name in ("seed", "rules", "axis", "include", "exclude", "scope", "also", "cascade", "recipe"):
        if getattr(options, name, None):
            raise UsageError(f"argument --{name}: needs --method; without one, {why}")
