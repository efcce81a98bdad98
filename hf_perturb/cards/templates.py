"""What all cards share: the templates, and what they say of a base and of who made them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_perturb.checkpoints.recipe import torch_version
from hf_perturb.perturbation import Perturbation, Step
from hf_perturb.perturbation.rules import Table

if TYPE_CHECKING:
    from jinja2 import Environment

_FOLDER = Path(__file__).resolve().parent.parent


@cache
def templates() -> Environment:
    """Return the templates of `model_cards/`."""
    # only who writes a card pays for the import
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # inside the package, or in a checkout beside it
    folders = FileSystemLoader([_FOLDER / "model_cards", _FOLDER.parent / "model_cards"])
    made = Environment(loader=folders, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters["code"] = _code
    return made


def _code(value: str) -> str:
    """Return a text that comes from outside as code on one line, which nothing in it can end, nor a cell around it."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in value).split()) or "?"
    if not set(line) & set("`|\\"):
        return f"`{line}`"
    # no span of Markdown holds a backslash before a bar in a table, so these are spelled as HTML
    letters = (letter if letter.isalnum() or letter in " -./" else f"&#{ord(letter)};" for letter in line)
    return f"<code>{''.join(letters)}</code>"


def card_data(
    record: Perturbation | None,
    task: str | None,
    family: str,
    *,
    about: Sequence[str] = (),
    copy: str | None = None,
    **licence: Any,
) -> ModelCardData:
    """Return the header of a card.

    Args:
        record: of a variant.
        task: what the Hub calls what the network is for.
        family: `model_type` of the network.
        about: tags that say what it is about.
        copy: Hub id of a copy of the base that others know.
        **licence: in the words of the Hub's metadata.
    """
    kind = () if record is None else ("from-a-control" if record.changed else "control", record.method)
    base = None if record is None else _base_model(record, copy)
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=task,
        tags=["hf-perturb", *about, *kind, family],
        base_model=base,
        # the Hub knows adapter, finetune, merge and quantized; a control is the same network with other weights
        base_model_relation=None if base is None else "finetune",
        **licence,
    )


def _base_model(record: Perturbation, copy: str | None) -> str | None:
    """Return the Hub id of a variant's base: where it came from, or the copy of it that others know."""
    if record.base is not None and record.base.name and record.base.revision:
        with suppress(HFValidationError):
            validate_repo_id(record.base.name)
            return record.base.name
    return copy


def base_name(record: Perturbation) -> str | None:
    """Return what cards call the base of a variant."""
    name = record.base.name if record.base is not None else None
    # a recipe has to know whose disk its base is on, its readers have not
    return Path(name).name if name and Path(name).is_absolute() else name


def versions(record: Perturbation | None, *more: str) -> str:
    """Return the libraries that made what a card tells of, with their versions."""
    libraries = ["numpy"] if record is None or torch_version(record) is None else ["numpy", "torch"]
    # the top module is above this one
    ours = import_module("hf_perturb").__version__
    return ", ".join([f"hf_perturb {ours}", *(f"{name} {metadata.version(name)}" for name in [*libraries, *more])])


def rule_rows(
    table: Table, record: Perturbation, steps: Mapping[str, Step | None], touched: Collection[str]
) -> list[dict[str, Any]]:
    """Return a row for each rule that names a tensor: what was done to its tensors, and to how many of them."""
    groups: dict[str, list[str]] = {row.pattern: [] for row in table.rows}
    for name in steps:
        groups.setdefault(table.row(name).pattern, []).append(name)
    rows = []
    for names in filter(None, groups.values()):
        row = table.row(names[0])
        # that of a tensor which is tied to the head is drawn by the rule of the head
        step = next((step for name in names if (step := steps[name]) is not None), None)
        rule = row if step is None else table.row(step.name)
        action = "keep" if step is None else rule.action(record.method, str(record.rules), record.also)
        if step is not None and step.drawn is not None and (drawn := table.initialiser(step.name, "")) is not None:
            action = drawn.text
        head = None if step is None or rule.pattern == row.pattern else step.name
        count = sum(name in touched for name in names)
        rows.append(
            {"rule": row, "action": action, "head": head, "count": count, "named": len(names), "first": names[0]}
        )
    return rows
