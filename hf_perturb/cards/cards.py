"""The model cards of bases and variants, rendered from the templates of `model_cards/`."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from hf_perturb.cards import facts as says
from hf_perturb.cards.rendering import loading, metadata, render
from hf_perturb.checkpoints.catalog import Entry
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.networks.layouts import PREFIXES, is_parameter, language_head, layout, tied
from hf_perturb.perturbation import Perturbation, default_axis, make_plan, scope_text
from hf_perturb.perturbation.rules import rows_of
from hf_perturb.variants.blueprint import Blueprint, make_blueprint

_NETWORKS = {
    "fair_esm": "A transformer, trained to fill in masked residues of protein sequences",
    "carp": "A convolutional network (CARP), trained to fill in masked residues of protein sequences",
}


def variant_card(
    blueprint: Blueprint, architecture: str, changed: Collection[str] | None, recipe: bool = False, stock: bool = False
) -> str:
    """Render the card of a variant.

    Args:
        blueprint: how it was made; its configuration holds the record.
        architecture: name of the stored model class.
        changed: names of the tensors that are not those of the base, `None` where the base is not at hand.
        recipe: whether it is one without weights.
        stock: whether it is stored for Transformers' own ESM.
    """
    config, outputs, record = blueprint.config, blueprint.outputs, blueprint.config.perturbation
    family = config.model_type
    origin = says.origin_of(config, record.base.digest if record.base is not None else None)
    touched = {name for name, output in outputs.items() if output.step is not None}
    counted = touched if changed is None else set(changed)
    parameters = sum(math.prod(shape) for name, (_, shape) in blueprint.shapes.items() if is_parameter(name))
    facts = {
        **_base_facts(record, origin),
        "network": _network(config, architecture, stock),
        "parameters": f"{parameters:,}",
        **_record_facts(family, record),
        f"tensors {'perturbed' if changed is None else 'changed'}": f"{len(counted)} of {len(outputs)}",
        "digest of the weights": record.digest,
    }
    return render(
        "variant.md",
        metadata(config, architecture, origin, record),
        **loading(config, architecture, stock),
        facts=_given(facts),
        base=says.base_name(record),
        record=record,
        count=len(counted),
        total=len(outputs),
        counted="perturbed / all" if changed is None else "changed / all",
        rows=says.rule_rows(family, outputs, record, counted),
        alike=says.by_layer(name for name in outputs if name in touched and name not in counted),
        errata=says.variant_errata(config, outputs, origin, stock),
        origin=origin,
        recipe=recipe,
    )


def _base_facts(record: Perturbation, origin: says.Origin | None) -> dict[str, Any]:
    base = record.base
    return {
        "base": says.base_name(record),
        "base revision": says.code(base.revision) if base is not None and base.revision else None,
        "published as": f"{origin.name}, at {origin.url}" if origin is not None and origin.name else None,
        "base digest": base.digest if base is not None else None,
    }


def _record_facts(family: str, record: Perturbation) -> dict[str, Any]:
    axis = says.axis_of(family, record)
    scopes = (f"{says.code(name)} ({scope_text(family, name)})" for name in record.scope)
    return {
        "method": record.method,
        "seed": record.seed,
        "rules": record.rules,
        "axis": f"{axis} ({says.AXES[axis]})" if axis is not None else None,
        "include": ", ".join(map(says.code, record.include)) or None,
        "exclude": ", ".join(map(says.code, record.exclude)) or None,
        "scope": " and ".join(scopes) or None,
    }


def base_card(checkpoint: Checkpoint, stock: bool = False) -> str:
    """Render the card of what `convert` wrote, a base or a variant.

    Args:
        checkpoint: what was converted, its configuration as it is stored: with the digest of the weights.
        stock: whether it is stored for Transformers' own ESM.
    """
    config, architecture = checkpoint.config, checkpoint.architecture
    if config.perturbation is not None:
        return variant_card(make_blueprint(checkpoint, config.perturbation), architecture, None, stock=stock)
    origin = says.origin_of(config, config.digest)
    facts = {
        "converted from": f"{_source(checkpoint)} ({checkpoint.origin})",
        **(_origin_facts(origin) if origin is not None else {}),
        "network": _network(config, architecture, stock),
        "parameters": f"{checkpoint.parameters:,}",
        "contact head": says.no_contacts(config, stock),
        f"digest of the weights{' under the names of fair-esm' if stock else ''}": config.digest,
    }
    name = origin.name if origin is not None and origin.name else Path(checkpoint.what).name.removesuffix(".pt")
    values = {"name": says.code(name), "facts": _given(facts), "origin": origin}
    header = metadata(config, architecture, origin, None)
    return render("base.md", header, **loading(config, architecture, stock), **values)


def stock_card(checkpoint: Checkpoint) -> str:
    """Render the card of a folder for Transformers' own ESM, of a base or a variant."""
    return base_card(checkpoint, stock=True)


def published_card(entry: Entry) -> str:
    """Render the card of a checkpoint of the catalogue, which nobody needs to have for that."""
    config, family = entry.config(), entry.family
    architecture = f"{PREFIXES[family]}ForMaskedLM"
    shapes = layout(config, architecture)
    asked = (Perturbation("reinit"), Perturbation("reinit", rules="published"))
    counts = [len(make_plan(family, shapes, each, language_head(config)).steps) for each in asked]
    rows = []
    for row in rows_of(family):
        if named := sum(map(row.names, shapes)):
            other = "the same" if row.published == "same" else row.action("reinit", "published")
            for head in (head for head, source in tied(config).items() if row.names(source)):
                other = f"as `{head}`, which is the same tensor"
            actions = {"reinit": row.action("reinit"), "resample": row.action("resample"), "published": other}
            rows.append({"tensors": says.code(row.pattern), "named": named, **actions})
    origin = says.origin_of(entry.config(published_as=entry.name), None)
    return render(
        "published.md",
        metadata(config, architecture, origin, None),
        entry=entry,
        facts=_given(_entry_facts(entry, config)),
        family_text=_NETWORKS[family],
        rows=rows,
        count=counts[0],
        published_count=counts[1],
        total=len(shapes),
        axis=default_axis(family),
        axis_text=says.AXES[default_axis(family)],
        tied=bool(tied(config)),
        package=says.PACKAGES[family],
    )


def _network(config: Any, architecture: str, stock: bool) -> str:
    version = f" ({config.model_version})" if config.model_type == "fair_esm" else ""
    return f"{config.model_type}{version}, stored as {architecture.removeprefix('Fair') if stock else architecture}"


def _origin_facts(origin: says.Origin) -> dict[str, Any]:
    return {
        "published as": origin.name,
        "published at": origin.url,
        "licence": origin.licence,
        "citation": origin.citation,
        "errata": origin.errata,
        "copy for Transformers' own ESM": f"`{origin.stock}`" if origin.stock else None,
    }


def _entry_facts(entry: Entry, config: Any) -> dict[str, Any]:
    sizes = {key: value for key, value in entry.sizes.items() if key != "model_version"}
    return {
        "network": f"`{entry.family}`" + (f", {config.model_version}" if entry.family == "fair_esm" else ""),
        "sizes": ", ".join(f"`{key}` {value}" for key, value in sizes.items()),
        "parameters": f"{entry.parameters:,}",
        "alphabet": f"that of {entry.alphabet}, {config.vocab_size} tokens",
        "longest sequence": f"{config.max_tokens:,} tokens" if getattr(config, "max_tokens", None) else None,
        "published at": entry.url,
        "contact regression": entry.regression_url,
        "sha256": f"`{entry.sha256}`, as the MultiMolecule project keeps it" if entry.sha256 else "none is published",
        "copy for Transformers' own ESM": f"`{entry.stock}`" if entry.stock else None,
        "licence": entry.licence,
        "errata": entry.errata,
    }


def _source(checkpoint: Checkpoint) -> str:
    """Return where a checkpoint came from: of what is on disk its name alone, of the Hub its id and commit."""
    if checkpoint.revision is not None:
        return f"{says.code(checkpoint.what)} at {says.code(checkpoint.revision)}"
    return says.code(Path(checkpoint.what).name)


def _given(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: fact for name, fact in facts.items() if fact not in (None, "")}
