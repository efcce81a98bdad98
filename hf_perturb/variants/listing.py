"""What `hf-perturb list` shows: the catalogue, or the tensors of a base and what the rules do to each."""

from __future__ import annotations

import logging
from typing import Any

from hf_perturb.checkpoints.catalog import CATALOG, Entry
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.perturbation import Perturbation, Step, spec
from hf_perturb.perturbation.rules import rule_of
from hf_perturb.variants.blueprint import plan_for, steps_of

_LOG = logging.getLogger("hf_perturb")


def catalogue_rows(everything: bool) -> list[dict[str, Any]]:
    """Return a row a checkpoint of the catalogue, and one of the demo base.

    Args:
        everything: also what a table has no room for.
    """
    demo = {"base": "demo", **_row(CATALOG["carp_600k"]), "note": "shipped in the package, for demonstration"}
    return [*({"base": name, **_row(entry, everything)} for name, entry in CATALOG.items()), demo]


def _row(entry: Entry, everything: bool = False) -> dict[str, Any]:
    kept = ("url", "regression_url", "sha256", "licence", "citation", "documented") if everything else ()
    sizes = {"sizes": dict(entry.sizes)} if everything else {}
    return {
        "family": entry.family,
        "alphabet": entry.alphabet,
        "layers": entry.sizes["num_hidden_layers"],
        "hidden": entry.sizes["hidden_size"],
        "parameters": entry.parameters,
        "stock copy": entry.stock or "",
        "note": entry.errata,
        **sizes,
        **{key: getattr(entry, key) for key in kept},
    }


def tensor_rows(base: str, everything: bool) -> list[dict[str, Any]]:
    """Return a row a tensor of a base, in the order of the original class: what each method does to it by the rules.

    `also` is what a perturbation names it by that is to perturb it all the same, where the rules keep it. Of a variant,
    `done` is what its record says was done to it.

    Args:
        base: or a variant.
        everything: also the record of the whole, `None` for a base.

    Raises:
        CheckpointError: if the base cannot be used.
    """
    checkpoint = Checkpoint.open(base).check()
    network, record = checkpoint.network, checkpoint.record
    done = None
    if record is not None:
        _LOG.warning(
            "%s is %s; `done` tells what that did, the other columns what the rules do to a base", base, record
        )
        done = steps_of(network, plan_for(network, record))
    steps = {}
    for method in spec.METHODS:
        steps[method] = {step.name: step for step in plan_for(network, Perturbation(method)).steps}
    return [
        {
            "tensor": name,
            "shape": "x".join(map(str, shape)),
            **{method: _action(steps[method].get(name)) for method in spec.METHODS},
            "also": rule_of(network.family, name).part or "",
            **({} if done is None else {"done": _action(done.get(name))}),
            **({"perturbation": record and record.to_dict()} if everything else {}),
        }
        for name, shape in network.shapes.items()
    ]


def _action(step: Step | None) -> str:
    if step is None:
        return "keep"
    arguments = ", ".join(
        f"{key}={value:.6g}" if isinstance(value, float) else f"{value}" for key, value in step.arguments
    )
    return f"{step.kernel}({arguments})" if arguments else step.kernel
