"""Model cards: their metadata, and the templates of `model_cards/` with the facts filled in."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_perturb.cards.facts import HUB_LICENCES, STUDY, origin_of, stored_facts, variant_facts, versions
from hf_perturb.checkpoints.catalog import Entry
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.network import Network
from hf_perturb.perturbation import Perturbation, Step

if TYPE_CHECKING:
    from jinja2 import Environment

_PACKAGE = Path(__file__).resolve().parent.parent
_TASKS = {
    "AutoModel": "feature-extraction",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
}


def variant_card(
    network: Network,
    record: Perturbation,
    steps: Mapping[str, Step | None],
    published_as: str | None,
    changed: Collection[str] | None,
    recipe: bool = False,
    stock: bool = False,
) -> str:
    """Render the card of a variant.

    Args:
        network: of the variant; its head is untied if the perturbation unties it.
        record: what was done to its weights.
        steps: the same for every tensor that is stored, `None` for one that is kept.
        published_as: name of the published checkpoint that the base is, if it is known.
        changed: names of the tensors that are not those of the base, `None` where the base is not at hand.
        recipe: whether it has no weights.
        stock: whether it is stored for Transformers' own ESM.
    """
    origin = origin_of(network, published_as, record.base.digest if record.base is not None else None)
    facts = variant_facts(network, record, steps, changed)
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
    stored = stored_facts(network, stock)
    card_data = _metadata(stored, origin, record).to_yaml()
    common = {"network": stored, "origin": origin, "record": record, "study": STUDY, "versions": versions()}
    return _templates().get_template(template).render({**facts, **common, "card_data": card_data}).rstrip() + "\n"


@cache
def _templates() -> Environment:
    # only who writes a card pays for the import
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # inside the package, or in a checkout beside it
    folders = FileSystemLoader([_PACKAGE / "model_cards", _PACKAGE.parent / "model_cards"])
    templates = Environment(loader=folders, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    templates.filters["code"] = _code
    return templates


def _code(value: str) -> str:
    """Return a text that comes from outside as code on one line, which nothing in it can end, nor a cell around it."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in value).split()) or "?"
    if not set(line) & set("`|\\"):
        return f"`{line}`"
    # no span of Markdown holds a backslash before a bar in a table, so these are spelled as HTML
    letters = (letter if letter.isalnum() or letter in " -./" else f"&#{ord(letter)};" for letter in line)
    return f"<code>{''.join(letters)}</code>"


def _metadata(stored: Mapping[str, Any], origin: Entry | None, record: Perturbation | None) -> ModelCardData:
    """Return the header of a card."""
    tags = ["hf-perturb", "protein", *(("control", record.method) if record is not None else ()), stored["family"]]
    base = None if record is None else _base_model(origin, record)
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=_TASKS[stored["auto_class"]],
        tags=tags,
        base_model=base,
        # the Hub knows adapter, finetune, merge and quantized; a control is the same network with other weights
        base_model_relation=None if base is None else "finetune",
        **(HUB_LICENCES[origin.licence] if origin is not None else {}),
    )


def _base_model(origin: Entry | None, record: Perturbation) -> str | None:
    """Return the Hub id of a variant's base: where it came from, or the copy of it that others know."""
    if record.base is not None and record.base.name and record.base.revision:
        with suppress(HFValidationError):
            validate_repo_id(record.base.name)
            return record.base.name
    return origin.stock if origin is not None else None
