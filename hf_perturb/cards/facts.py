"""What model cards say of weights: where they come from, and what was done to which tensors."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers

from hf_perturb import demo
from hf_perturb.checkpoints.catalog import LICENCES, YANG_2022, published
from hf_perturb.perturbation import Perturbation, default_axis
from hf_perturb.perturbation.rules import Row, rows_of
from hf_perturb.perturbation.selection import rule_of
from hf_perturb.variants.stream import Output

STUDY = (
    'Li, Amini, Yue, Yang and Lu 2024, "Feature reuse and scaling: understanding transfer learning with protein'
    ' language models", bioRxiv, doi:10.1101/2024.02.05.578959; repository https://github.com/microsoft/protein-transfer,'
    " whose scr/encoding/README.md is the document that cards speak of"
)
PACKAGES = {"fair_esm": "fair-esm", "carp": "sequence-models"}
AXES = {
    "embedding": "one permutation of the last dimension, for every row",
    "rows": "every row permuted on its own",
    "all": "all entries of a tensor permuted",
}


def code(value: str) -> str:
    """Return a text that comes from outside as code on one line, which nothing in it can end, nor a cell around it."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in value).split()) or "?"
    if not set(line) & set("`|\\"):
        return f"`{line}`"
    # no span of Markdown holds a backslash before a bar in a table, so these are spelled as HTML
    letters = (letter if letter.isalnum() or letter in " -./" else f"&#{ord(letter)};" for letter in line)
    return f"<code>{''.join(letters)}</code>"


def base_name(record: Perturbation) -> str:
    """Return what a card calls the base of a variant."""
    name = (record.base.name if record.base is not None else None) or "a base without a name"
    # a recipe has to know whose disk its base is on, its readers have not
    return code(Path(name).name if Path(name).is_absolute() else name)


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


def origin_of(config: Any, digest: str | None) -> Origin | None:
    """Return what is known of the checkpoint that weights come from, `None` for nothing.

    Args:
        config: of the weights; it may name a published checkpoint.
        digest: of the base; that of the demo base tells it from all others, whatever it is called.
    """
    if (entry := published(config)) is not None:
        found = (entry.licence, LICENCES[entry.licence], entry.citation)
        return Origin(*found, entry.name, entry.url, entry.stock, entry.errata)
    if digest is not None and digest == _demo_digest():
        licence = "CC BY 4.0, as UniProtKB, on which the demo base was trained (The UniProt Consortium)"
        citation = f"the demo base that hf_perturb ships, for demonstration alone; its network is that of {YANG_2022}"
        return Origin(licence, {"license": "cc-by-4.0"}, citation)
    return None


def _demo_digest() -> Any:
    return json.loads((demo.folder() / "config.json").read_text(encoding="utf-8"))["digest"]


def rule_rows(
    family: str, outputs: Mapping[str, Output], record: Perturbation, changed: Collection[str]
) -> list[dict[str, Any]]:
    """Return a row for each rule that names a tensor of a network: its tensors, what was done, and to how many.

    Args:
        family: `model_type` of the network.
        outputs: its tensors, with the step that each went through.
        record: what was done.
        changed: the tensors to count.
    """
    rows = []
    for row in rows_of(family):
        if names := [name for name in outputs if row.names(name)]:
            action = _action(family, row, [outputs[name] for name in names], record)
            count = sum(name in changed for name in names)
            rows.append({"tensors": code(row.pattern), "action": action, "count": count, "named": len(names)})
    return rows


def _action(family: str, row: Row, outputs: Iterable[Output], record: Perturbation) -> str:
    done = next((output.step for output in outputs if output.step is not None), None)
    if done is None:
        return "keep"
    rule = rule_of(family, done.name)
    text = rule.action(record.method, record.rules)
    # under the study's rules a tied tensor is drawn as the head
    return text if rule is row else f"{text}, as `{done.name}`, which is the same tensor"


def by_layer(names: Iterable[str]) -> str:
    """Return names as a list for readers, those that differ in the number of the layer as one with their count."""
    counts = Counter(re.sub(r"\blayers\.\d+\.", "layers.*.", name) for name in names)
    return ", ".join(code(name) + (f" ({count} tensors)" if count > 1 else "") for name, count in counts.items())


def no_contacts(config: Any, stock: bool) -> str | None:
    """Say that a network lacks its contact head, `None` for one that has it, or whose kind has none."""
    if getattr(config, "contact_head", True):
        return None
    return "absent: " + ("its weights are zeros, which predict 0.5 everywhere" if stock else "it came without weights")


def axis_of(family: str, record: Perturbation) -> str | None:
    """Return the axis that a variant was shuffled along, `None` for one that was not."""
    if record.method != "resample":
        return None
    return "all" if record.rules == "published" else record.axis or default_axis(family)


def variant_errata(config: Any, outputs: Mapping[str, Output], origin: Origin | None, stock: bool) -> list[str]:
    """Return what a reader of a variant's card should know of its base, and of how the study did it."""
    family, record, lines = config.model_type, config.perturbation, []
    if origin is not None and origin.errata:
        lines.append(f"Of {origin.name}: {origin.errata}.")
    if (absent := no_contacts(config, stock)) is not None:
        lines.append(f"The contact head is {absent}.")
    head = outputs.get("lm_head.weight")
    if head is not None and head.step is not None and config.model_version != "ESM-1":
        lines.append(
            "As published, `lm_head.weight` and `embed_tokens.weight` are one tensor in this network. Here the first is"
            " perturbed and the second is kept, so they are two (`tie_word_embeddings` is false)."
        )
    if record.method == "reinit":
        names = [name for name in outputs if outputs[name].step is not None or record.rules == "published"]
        lines += _other_draws(family, names, record.rules)
    elif record.rules == "documented" and axis_of(family, record) != "all":
        lines.append("The study's own code shuffled all entries of a tensor (the rules `published`).")
    return lines


def _other_draws(family: str, names: list[str], rules: str) -> list[str]:
    """Say where the study's code draws otherwise than its document, for tensors that this makes a difference to."""
    differs = [row for row in rows_of(family) if row.published != "same" and any(map(row.names, names))]
    if not differs:
        return []
    if rules == "published":
        said = ", ".join(f"{code(row.pattern)} ({row.action('reinit')})" for row in differs)
        return [f"The rules are those of the study's own code. Its document draws these too, or otherwise: {said}."]
    kept = ", ".join(code(row.pattern) for row in differs if row.published is None)
    drawn = [f"{code(row.pattern)} is {row.action('reinit', 'published')} there" for row in differs if row.published]
    left = [f"left these as trained: {kept}"] if kept else []
    return [
        "The study's own code (the rules `published`) differs from its document, which this control follows: it "
        + "; ".join([*left, *drawn] if left else [f"draws otherwise: {drawn[0]}"])
        + "."
    ]


def versions() -> str:
    """Return the libraries that wrote a card, with their versions."""
    # the top module is above this one
    ours = import_module("hf_perturb").__version__
    theirs = (torch, transformers, safetensors)
    return ", ".join([f"hf_perturb {ours}", *(f"{module.__name__} {module.__version__}" for module in theirs)])
