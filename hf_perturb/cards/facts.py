"""What model cards say of weights: names, numbers and flags; the sentences are in the templates of `model_cards/`."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from hf_perturb import demo
from hf_perturb.checkpoints.catalog import LICENCES, YANG_2022, published
from hf_perturb.checkpoints.network import Network
from hf_perturb.checkpoints.shapes import AUTO_CLASSES, PREFIXES, is_parameter
from hf_perturb.perturbation import Perturbation, default_axis, make_plan, scope_text
from hf_perturb.perturbation.rules import rows_of, rule_of

STUDY = (
    'Li, Amini, Yue, Yang and Lu 2024, "Feature reuse and scaling: understanding transfer learning with protein'
    ' language models", bioRxiv, doi:10.1101/2024.02.05.578959; repository https://github.com/microsoft/protein-transfer,'
    " whose scr/encoding/README.md is the document that cards speak of"
)
PACKAGES = {"fair_esm": "fair-esm", "carp": "sequence-models"}


@dataclass(frozen=True)
class Origin:
    """What is known of the checkpoint that weights come from.

    Args:
        licence: in words.
        metadata: the same as the Hub has it.
        citation: what to cite.
        name: in the catalogue.
        url: where it is published.
        stock: Hub id of a copy for Transformers' own ESM.
        errata: what is known to be wrong about it.
    """

    licence: str
    metadata: Mapping[str, Any]
    citation: str
    name: str | None = None
    url: str | None = None
    stock: str | None = None
    errata: str = ""


def origin_of(network: Network, published_as: str | None, digest: str | None) -> Origin | None:
    """Return what is known of the checkpoint that weights come from, `None` for nothing.

    Args:
        network: that they are of.
        published_as: name of the published checkpoint that they are said to be, if any.
        digest: of the base; that of the demo base tells it from all others, whatever it is called.
    """
    if (entry := published(published_as, network)) is not None:
        found = (entry.licence, LICENCES[entry.licence], entry.citation)
        return Origin(*found, entry.name, entry.url, entry.stock, entry.errata)
    if digest is not None and digest == json.loads((demo.folder() / "config.json").read_text("utf-8"))["digest"]:
        licence = "CC BY 4.0, as UniProtKB, on which the demo base was trained (The UniProt Consortium)"
        citation = f"the demo base that hf_perturb ships, for demonstration alone; its network is that of {YANG_2022}"
        return Origin(licence, {"license": "cc-by-4.0"}, citation)
    return None


@dataclass(frozen=True)
class Stored:
    """How a network is stored, and what loads it.

    Args:
        family: `model_type` of the network.
        version: which ESM it is, `None` for CARP.
        architecture: the class that it is stored as.
        auto_class: the class of Transformers that loads it.
        mask: the token that hides a residue.
        contact_head: whether it has one; true where no network of its kind has.
        stock: whether it is stored for Transformers' own ESM.
    """

    family: str
    version: str | None
    architecture: str
    auto_class: str
    mask: str
    contact_head: bool
    stock: bool

    @classmethod
    def of(cls, network: Network, stock: bool = False) -> Stored:
        """Describe a network that is stored as one of our classes, or with `stock` as Transformers' class for it."""
        head = network.architecture.removeprefix(PREFIXES[network.family])
        return cls(
            network.family,
            network.version,
            network.architecture.removeprefix("Fair") if stock else network.architecture,
            next(auto for auto, name in AUTO_CLASSES.items() if name == head),
            network.alphabet.mask,
            getattr(network.sizes, "contact_head", True),
            stock,
        )

    @property
    def language(self) -> bool:
        """Whether it has a language head."""
        return self.auto_class == "AutoModelForMaskedLM"

    @property
    def package(self) -> str:
        """The package that names its tensors."""
        return PACKAGES[self.family]


def variant_facts(network: Network, record: Perturbation, changed: Collection[str] | None) -> dict[str, Any]:
    """Return what a card says of what was done to a variant, by the names that its template has for it.

    Args:
        network: of the variant; its head is untied if the perturbation unties it.
        record: what was done to its weights.
        changed: names of the tensors that are not those of the base, `None` where the base is not at hand.
    """
    family, shapes, drawn_as = network.family, network.shapes, _drawn_as(network, record)
    touched = {name for name, step in drawn_as.items() if step is not None}
    counted = touched if changed is None else set(changed)
    # where the study's code left a tensor, its document may say otherwise
    asked = drawn_as if record.rules == "published" else touched
    alike = Counter(re.sub(r"\blayers\.\d+\.", "layers.*.", name) for name in drawn_as if name in touched - counted)
    return {
        "base": _base_name(record),
        "axis": _axis(family, record),
        "scopes": {name: scope_text(family, name) for name in record.scope},
        "parameters": sum(math.prod(shapes[name]) for name in drawn_as if is_parameter(name)),
        "compared": changed is not None,
        "count": len(counted),
        "total": len(drawn_as),
        "rows": _rule_rows(family, record, drawn_as, counted),
        "alike": alike,
        "head_split_off": "lm_head.weight" in touched,
        "differing": [row for row in rows_of(family) if row.published != "same" and any(map(row.names, asked))],
    }


def _drawn_as(network: Network, record: Perturbation) -> dict[str, str | None]:
    """Return for every stored tensor of a variant the name that it was perturbed as, `None` for one that was kept.

    That is its own name, but for a tensor that is tied to the head: the study's rules draw it as the head.
    """
    ties, shapes = network.tied, network.shapes
    # the study drew a tied head also where the class at hand has none
    drawn = {**shapes, **{name: shapes[source] for name, source in ties.items() if record.rules == "published"}}
    names = {step.name for step in make_plan(network.family, drawn, record, network.language_head).steps}
    stored = {name: name if name in names else None for name in shapes if name not in ties}
    return stored | {source: name for name, source in ties.items() if name in names}


def _rule_rows(
    family: str, record: Perturbation, drawn_as: Mapping[str, str | None], counted: set[str]
) -> list[dict[str, Any]]:
    """Return a row for each rule that names a tensor: what was done to its tensors, and to how many of them."""
    rows = []
    for row in rows_of(family):
        if names := [name for name in drawn_as if row.names(name)]:
            done = next(filter(None, map(drawn_as.get, names)), None)
            rule = row if done is None else rule_of(family, done)
            action = "keep" if done is None else rule.action(record.method, record.rules)
            head, count = None if rule is row else done, sum(name in counted for name in names)
            rows.append({"rule": row, "action": action, "head": head, "count": count, "named": len(names)})
    return rows


def _base_name(record: Perturbation) -> str | None:
    name = record.base.name if record.base is not None else None
    # a recipe has to know whose disk its base is on, its readers have not
    return Path(name).name if name and Path(name).is_absolute() else name


def _axis(family: str, record: Perturbation) -> str | None:
    if record.method != "resample":
        return None
    return "all" if record.rules == "published" else record.axis or default_axis(family)


def versions() -> str:
    """Return the libraries that wrote a card, with their versions."""
    # the top module is above this one, and torch says more than its package does
    ours = [f"{name} {import_module(name).__version__}" for name in ("hf_perturb", "torch")]
    return ", ".join([*ours, *(f"{name} {metadata.version(name)}" for name in ("transformers", "safetensors"))])
