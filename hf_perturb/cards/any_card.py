"""The card of a variant of a network that is none of ours: all that it says comes from its own classes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from hf_perturb.cards.templates import base_name, card_data, rule_rows, templates, versions
from hf_perturb.checkpoints.any_network import AnyNetwork
from hf_perturb.perturbation import Perturbation, Step, scope_text

# what the Hub calls what a head is for, by the end of the name of its class
_TASKS = {
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForImageClassification": "image-classification",
    "EncoderModel": "feature-extraction",
    "Model": "feature-extraction",
}


def any_card(
    network: AnyNetwork,
    record: Perturbation,
    steps: Mapping[str, Step | None],
    alike: Collection[str],
    recipe: bool,
) -> str:
    """Render the card of a variant of a network that is none of ours; see `variant_card`."""
    table, shapes = network.table(), network.shapes
    touched = {name for name, step in steps.items() if step is not None}
    kept: dict[str, dict[str, None]] = {"embeddings": {}, "head": {}}
    constant: dict[str, None] = {}
    for name, step in steps.items():
        row = table.row(name)
        for part in filter(None, (row.part, row.other)):
            kept[part][row.pattern] = None
        if step is not None and step.drawn is not None and len(shapes[name]) > 1 and table.is_constant(name):
            constant[row.pattern] = None
    task = next((task for end, task in _TASKS.items() if network.architecture.endswith(end)), None)
    rows, drawn = rule_rows(table, record, steps, touched), record.method == "reinit"
    facts: dict[str, Any] = {
        "card_data": card_data(record, task, network.family).to_yaml(),
        "record": record,
        "network": network,
        "classes": [network.architecture or network.classes[0].__name__],
        "base": base_name(record),
        "axis": next((dict(step.arguments).get("axis") for step in steps.values() if step is not None), None),
        "scope": " and ".join(f"`{name}` ({scope_text(table, name)})" for name in record.scope),
        "parameters": sum(math.prod(shapes[name]) for name in steps if table.row(name).reinit is not None),
        "count": len(touched),
        "total": len(steps),
        "rows": [{**row, "source": table.source(row["first"]) if row["count"] and drawn else ""} for row in rows],
        "held": sorted({table.row(name).pattern for name in steps if name not in network.found}),
        "kept": {part: list(patterns) for part, patterns in kept.items()},
        "alike": sorted({table.row(name).pattern for name in alike} - {*constant}),
        "constant": list(constant),
        "recipe": recipe,
        # of a class of its own, AutoModel may be another one with tensors that are not stored
        "loader": "AutoModel" if network.source or not network.architecture else network.architecture,
        "remote": bool(network.source),
        "versions": versions(record, "transformers"),
    }
    return templates().get_template("any_variant.md").render(facts).rstrip() + "\n"
