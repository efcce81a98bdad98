"""Model cards: names, numbers and flags of a checkpoint, filled into the templates of `model_cards/`."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_perturb import demo
from hf_perturb.cards.any_card import any_card
from hf_perturb.cards.templates import base_name, card_data, rule_rows, templates, versions
from hf_perturb.checkpoints.any_network import AnyNetwork
from hf_perturb.checkpoints.catalog import CATALOG, LICENCES, YANG_2022, Entry, published
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.network import Network
from hf_perturb.checkpoints.shapes import AUTO_CLASSES, PREFIXES, is_parameter
from hf_perturb.perturbation import Perturbation, Step, scope_text

STUDY = (
    'Li, Amini, Yue, Yang and Lu 2024, "Feature reuse and scaling: understanding transfer learning with protein'
    ' language models", bioRxiv, doi:10.1101/2024.02.05.578959; repository https://github.com/microsoft/protein-transfer,'
    " whose scr/encoding/README.md is the document that cards speak of"
)
# one tensor as published, where they are two here
_TIE = ("lm_head.weight", "embed_tokens.weight")
_PACKAGES = {"fair_esm": "fair-esm", "carp": "sequence-models"}
_DEMO_CITATION = f"the demo base that hf_perturb ships, for demonstration alone; its network is that of {YANG_2022}"
_DEMO_LICENCE = "CC BY 4.0, as UniProtKB, on which the demo base was trained (The UniProt Consortium)"
# of every licence, in the words of the Hub's metadata
_HUB_LICENCES: dict[str, dict[str, Any]] = {**LICENCES, _DEMO_LICENCE: {"license": "cc-by-4.0"}}
_TASKS = {
    "AutoModel": "feature-extraction",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
}


# ---- cards


def variant_card(
    network: Network,
    record: Perturbation,
    steps: Mapping[str, Step | None],
    published_as: str | None,
    alike: Collection[str] = (),
    recipe: bool = False,
    stock: bool = False,
) -> str:
    """Render the card of a variant.

    Args:
        network: of the variant; its head is untied if the perturbation unties it.
        record: what was done to its weights.
        steps: the same for every tensor that is stored, `None` for one that is kept.
        published_as: name of the published checkpoint that the base is, if it is known.
        alike: names of the tensors that were perturbed and came out as they were, where the base is at hand.
        recipe: whether it has no weights.
        stock: whether it is stored for Transformers' own ESM.
    """
    if isinstance(network, AnyNetwork):
        return any_card(network, record, steps, alike, recipe)
    origin = origin_of(network, published_as, record.base.digest if record.base is not None else None)
    facts = _variant_facts(network, record, steps, alike)
    return render("variant.md", network, origin, record, stock, recipe=recipe, **facts)


def base_card(checkpoint: Checkpoint, digest: str | None, published_as: str | None, stock: bool = False) -> str:
    """Render the card of a base that was converted from a checkpoint; digest and name are those of its weights."""
    network = checkpoint.network
    origin, file = origin_of(network, published_as, digest), Path(checkpoint.name).name
    return render(
        "base.md",
        network,
        origin,
        stock=stock,
        name=origin.name if origin is not None and origin.name else file.removesuffix(".pt"),
        # of what is on disk its name alone, of the Hub its id and commit
        source=file if checkpoint.revision is None else checkpoint.name,
        revision=checkpoint.revision,
        format=checkpoint.origin,
        parameters=checkpoint.parameters,
        digest=digest,
    )


def render(
    template: str,
    network: Network,
    origin: Entry | None,
    record: Perturbation | None = None,
    stock: bool = False,
    **facts: Any,
) -> str:
    """Fill a template of `model_cards/` with what every card says, and with the facts that this one names besides."""
    stored = _stored_facts(network, stock)
    known = {"copy": origin.stock, **_HUB_LICENCES[origin.licence]} if origin is not None else {}
    data = card_data(record, _TASKS[stored["auto_class"]], stored["family"], about=("protein",), **known)
    common = {"network": stored, "origin": origin, "record": record, "study": STUDY, "versions": versions(record)}
    return templates().get_template(template).render({**facts, **common, "card_data": data.to_yaml()}).rstrip() + "\n"


# ---- what they say


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


def _stored_facts(network: Network, stock: bool) -> dict[str, Any]:
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


def _variant_facts(
    network: Network, record: Perturbation, steps: Mapping[str, Step | None], alike: Collection[str]
) -> dict[str, Any]:
    """Return what a card says of what was done to a variant; the arguments are those of `variant_card`."""
    table, shapes = network.table(record.rules), network.shapes
    if record.method == "gaussian":
        # such a tensor has no deviation; of one element it is also where no base is at hand
        alike = {name for name, step in steps.items() if step and (name in alike or math.prod(shapes[name]) == 1)}
        steps = {name: None if name in alike else step for name, step in steps.items()}
    touched = {name for name, step in steps.items() if step is not None}
    # where the study's code left a tensor, its document may say otherwise
    asked = steps if record.rules == "published" else touched
    return {
        "base": base_name(record),
        "axis": next((dict(step.arguments).get("axis") for step in steps.values() if step is not None), None),
        "named_and_kept": network.named_and_kept(record),
        "scopes": {name: scope_text(table, name) for name in record.scope},
        "parameters": sum(math.prod(shapes[name]) for name in steps if is_parameter(name)),
        # of what a record says was done, so that a count needs no base and is the same in every format
        "count": len(touched),
        "total": len(steps),
        "rows": rule_rows(table, record, steps, touched),
        "alike": Counter(re.sub(r"\blayers\.\d+\.", "layers.*.", name) for name in steps if name in alike),
        "also": [part for part in record.also if any(table.row(name).part == part for name in touched)],
        "tie": [name for name in _TIE if name in touched] if _TIE[0] in steps else [],
        "silent": record.method == "reinit" and "embed_out" in touched,
        "differing": [row for row in table.rows if row.published != "same" and any(map(row.names, asked))],
    }
