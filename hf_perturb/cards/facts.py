"""What model cards say of weights: names, numbers and flags; the sentences are in the templates of `model_cards/`."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from hf_perturb import demo
from hf_perturb.checkpoints.catalog import CATALOG, LICENCES, YANG_2022, Entry, published
from hf_perturb.checkpoints.network import Network
from hf_perturb.checkpoints.shapes import AUTO_CLASSES, PREFIXES, is_parameter
from hf_perturb.perturbation import Perturbation, Step, scope_text
from hf_perturb.perturbation.rules import rows_of, rule_of

STUDY = (
    'Li, Amini, Yue, Yang and Lu 2024, "Feature reuse and scaling: understanding transfer learning with protein'
    ' language models", bioRxiv, doi:10.1101/2024.02.05.578959; repository https://github.com/microsoft/protein-transfer,'
    " whose scr/encoding/README.md is the document that cards speak of"
)
_PACKAGES = {"fair_esm": "fair-esm", "carp": "sequence-models"}
_DEMO_CITATION = f"the demo base that hf_perturb ships, for demonstration alone; its network is that of {YANG_2022}"
_DEMO_LICENCE = "CC BY 4.0, as UniProtKB, on which the demo base was trained (The UniProt Consortium)"
# of every licence, in the words of the Hub's metadata
HUB_LICENCES: dict[str, dict[str, Any]] = {**LICENCES, _DEMO_LICENCE: {"license": "cc-by-4.0"}}


def origin_of(network: Network, published_as: str | None, digest: str | None) -> Entry | None:
    """Return what is known of the checkpoint that weights come from, `None` for nothing.

    The name of a published checkpoint says it, or the digest of the demo base, whatever that is called.
    """
    if (entry := published(published_as, network)) is not None:
        return entry
    if digest is not None and digest == json.loads((demo.folder() / "config.json").read_text("utf-8"))["digest"]:
        # nobody publishes it by a name and at a place of its own
        return replace(CATALOG["carp_600k"], name="", url="", licence=_DEMO_LICENCE, citation=_DEMO_CITATION)
    return None


def stored_facts(network: Network, stock: bool) -> dict[str, Any]:
    """Return what a card says of how a network is stored, as one of our classes or of Transformers' own."""
    family, architecture = network.family, network.architecture
    head = architecture.removeprefix(PREFIXES[family])
    auto_class = next(auto for auto, name in AUTO_CLASSES.items() if name == head)
    return {
        "family": family,
        "version": network.version,
        "architecture": architecture.removeprefix("Fair") if stock else architecture,
        "auto_class": auto_class,
        "language": auto_class == "AutoModelForMaskedLM",
        "mask": network.alphabet.mask,
        "package": _PACKAGES[family],  # that names its tensors
        "contact_head": getattr(network.sizes, "contact_head", True),  # true where no network of its kind has one
        "stock": stock,
    }


def variant_facts(
    network: Network, record: Perturbation, steps: Mapping[str, Step | None], changed: Collection[str] | None
) -> dict[str, Any]:
    """Return what a card says of what was done to a variant; the arguments are those of `variant_card`."""
    family, shapes = network.family, network.shapes
    touched = {name for name, step in steps.items() if step is not None}
    counted = touched if changed is None else set(changed)
    # where the study's code left a tensor, its document may say otherwise
    asked = steps if record.rules == "published" else touched
    alike = Counter(re.sub(r"\blayers\.\d+\.", "layers.*.", name) for name in steps if name in touched - counted)
    return {
        "base": _base_name(record),
        "axis": next((dict(step.arguments).get("axis") for step in steps.values() if step is not None), None),
        "scopes": {name: scope_text(family, name) for name in record.scope},
        "parameters": sum(math.prod(shapes[name]) for name in steps if is_parameter(name)),
        "compared": changed is not None,
        "count": len(counted),
        "total": len(steps),
        "rows": _rule_rows(family, record, steps, counted),
        "alike": alike,
        "head_split_off": "lm_head.weight" in touched,
        "differing": [row for row in rows_of(family) if row.published != "same" and any(map(row.names, asked))],
    }


def _rule_rows(
    family: str, record: Perturbation, steps: Mapping[str, Step | None], counted: set[str]
) -> list[dict[str, Any]]:
    """Return a row for each rule that names a tensor: what was done to its tensors, and to how many of them."""
    rows = []
    for row in rows_of(family):
        if names := [name for name in steps if row.names(name)]:
            # that of a tensor which is tied to the head is drawn by the rule of the head
            step = next((step for name in names if (step := steps[name]) is not None), None)
            rule = row if step is None else rule_of(family, step.name)
            action = "keep" if step is None else rule.action(record.method, record.rules)
            head = None if step is None or rule is row else step.name
            count = sum(name in counted for name in names)
            rows.append({"rule": row, "action": action, "head": head, "count": count, "named": len(names)})
    return rows


def _base_name(record: Perturbation) -> str | None:
    name = record.base.name if record.base is not None else None
    # a recipe has to know whose disk its base is on, its readers have not
    return Path(name).name if name and Path(name).is_absolute() else name


def versions() -> str:
    """Return the libraries that wrote a card, with their versions."""
    # the top module is above this one, and torch says more than its package does
    ours = [f"{name} {import_module(name).__version__}" for name in ("hf_perturb", "torch")]
    return ", ".join([*ours, *(f"{name} {metadata.version(name)}" for name in ("transformers", "safetensors"))])
