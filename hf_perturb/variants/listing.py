"""What `hf-perturb list` shows: the catalogue, or the tensors of a base and what the rules do to each."""

from __future__ import annotations

import logging
from typing import Any

from hf_perturb.checkpoints.any_network import DerivedTable
from hf_perturb.checkpoints.catalog import CATALOG, Entry
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.network import Network
from hf_perturb.errors import PerturbationError
from hf_perturb.perturbation import Perturbation, Step, spec
from hf_perturb.perturbation.rules import Table
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


def tensor_rows(
    base: str, everything: bool, rules: str | None = None, trust_remote_code: bool = False
) -> list[dict[str, Any]]:
    """Return a row a tensor of a base, in the order of the original class: what each method does to it by the rules.

    `also` is what a perturbation names it by that is to perturb it all the same, where the rules keep it. Of a variant,
    `done` is what its record says was done to it.

    Args:
        base: or a variant.
        everything: also the record of the whole, `None` for a base.
        rules: that the columns are of; the network's own if `None`.
        trust_remote_code: run the code that comes with a network that Transformers does not have.

    Raises:
        CheckpointError: if the base cannot be used.
    """
    checkpoint = Checkpoint.open(base, rules=rules, trust_remote_code=trust_remote_code).check()
    network, record = checkpoint.network, checkpoint.record
    table = network.table(rules)
    done = None
    if record is not None:
        _LOG.warning(
            "%s is %s; `done` tells what that did, the other columns what the rules do to a base", base, record
        )
        done = steps_of(network, plan_for(network, record))
    checkpoint.tell()
    actions = {method: _actions(network, table, Perturbation(method, rules=rules)) for method in spec.METHODS}
    return [
        {
            "tensor": name,
            "shape": "x".join(map(str, shape)),
            **{method: said[name] for method, said in actions.items()},
            "also": table.row(name).part or "",
            **({} if done is None else {"done": _action(done.get(name), table)}),
            **({"perturbation": record and record.to_dict()} if everything else {}),
        }
        for name, shape in network.shapes.items()
    ]


def _actions(network: Network, table: Table, asked: Perturbation) -> dict[str, str]:
    """Return what a perturbation does to each tensor; where nobody knows how one is drawn, that is said of it alone."""
    try:
        steps = {step.name: step for step in plan_for(network, asked).steps}
    except PerturbationError:
        if not isinstance(table, DerivedTable):
            raise
        return {name: "keep" if table.row(name).is_kept() else _drawn(name, table) for name in network.shapes}
    return {name: _action(steps.get(name), table) for name in network.shapes}


def _action(step: Step | None, table: Table) -> str:
    if step is None:
        return "keep"
    if step.drawn is not None:
        return _drawn(step.name, table)
    arguments = ", ".join(
        f"{key}={value:.6g}" if isinstance(value, float) else f"{value}" for key, value in step.arguments
    )
    return f"{step.kernel}({arguments})" if arguments else step.kernel


def _drawn(name: str, table: Table) -> str:
    try:
        initialiser = table.initialiser(name, table.rules[0])
    except PerturbationError:
        return "unknown: exclude it"
    return "keep" if initialiser is None else initialiser.text.replace("`", "")
