"""What `hf-perturb list` shows: the catalogue, or the tensors of a base and what the rules do to each."""

from __future__ import annotations

from typing import Any

from hf_perturb.checkpoints.catalog import CATALOG, Entry
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.perturbation import Perturbation, make_plan, spec


def catalogue_rows(everything: bool) -> list[dict[str, Any]]:
    """Return a row a checkpoint of the catalogue, and one of the demo base.

    Args:
        everything: also what a table has no room for.
    """
    demo = {"base": "demo", **_row(CATALOG["carp_600k"]), "note": "shipped in the package, for demonstration"}
    rows = [{"base": entry.name, **_row(entry)} for entry in CATALOG.values()]
    if not everything:
        return [*rows, demo]
    return [*({**row, **_facts(CATALOG[row["base"]])} for row in rows), demo]


def _row(entry: Entry) -> dict[str, Any]:
    return {
        "family": entry.family,
        "alphabet": entry.alphabet,
        "layers": entry.sizes["num_hidden_layers"],
        "hidden": entry.sizes["hidden_size"],
        "parameters": entry.parameters,
        "stock copy": entry.stock or "",
        "note": entry.errata,
    }


def _facts(entry: Entry) -> dict[str, Any]:
    kept = ("url", "regression_url", "sha256", "licence", "citation", "documented")
    return {"sizes": dict(entry.sizes), **{key: getattr(entry, key) for key in kept}}


def tensor_rows(base: str) -> list[dict[str, Any]]:
    """Return a row a tensor of a base, in the order of the original class.

    Raises:
        CheckpointError: if the base cannot be used.
    """
    network = Checkpoint.open(base).check().network
    shapes, family, head = network.shapes, network.family, network.language_head
    plans = {method: make_plan(family, shapes, Perturbation(method), head) for method in spec.METHODS}
    steps = {method: {step.name: step for step in plan.steps} for method, plan in plans.items()}
    return [
        {
            "tensor": name,
            "shape": "x".join(map(str, shape)),
            **{method: _action(steps[method].get(name)) for method in spec.METHODS},
        }
        for name, shape in shapes.items()
    ]


def _action(step: Any) -> str:
    if step is None:
        return "keep"
    arguments = ", ".join(
        f"{key}={value:.6g}" if isinstance(value, float) else f"{value}" for key, value in step.arguments
    )
    return f"{step.kernel}({arguments})"
