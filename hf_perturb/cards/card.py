"""Model cards: their metadata, and the templates of `model_cards/` with the facts filled in."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_perturb.cards.facts import STUDY, Origin, Stored, origin_of, variant_facts, versions
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.network import Network
from hf_perturb.perturbation import Perturbation

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
    published_as: str | None,
    changed: Collection[str] | None,
    recipe: bool = False,
    stock: bool = False,
) -> str:
    """Render the card of a variant.

    Args:
        network: of the variant; its head is untied if the perturbation unties it.
        record: what was done to its weights.
        published_as: name of the published checkpoint that the base is, if it is known.
        changed: names of the tensors that are not those of the base, `None` where the base is not at hand.
        recipe: whether it is one without weights.
        stock: whether it is stored for Transformers' own ESM.
    """
    origin = origin_of(network, published_as, record.base.digest if record.base is not None else None)
    facts = variant_facts(network, record, changed)
    return render("variant.md", Stored.of(network, stock), origin, record, recipe=recipe, **facts)


def base_card(
    checkpoint: Checkpoint,
    record: Perturbation | None,
    digest: str | None,
    published_as: str | None,
    stock: bool = False,
) -> str:
    """Render the card of what `convert` wrote, a base or a variant.

    Args:
        checkpoint: what was converted.
        record: of the variant that was written, `None` for a base.
        digest: of the base that was written.
        published_as: name of the published checkpoint that the weights are, if it is known.
        stock: whether it is stored for Transformers' own ESM.
    """
    network = checkpoint.network
    if record is not None:
        return variant_card(network, record, published_as, None, stock=stock)
    origin, file = origin_of(network, published_as, digest), Path(checkpoint.name).name
    return render(
        "base.md",
        Stored.of(network, stock),
        origin,
        name=origin.name if origin is not None and origin.name else file.removesuffix(".pt"),
        # of what is on disk its name alone, of the Hub its id and commit
        source=file if checkpoint.revision is None else checkpoint.name,
        revision=checkpoint.revision,
        format=checkpoint.origin,
        parameters=checkpoint.parameters,
        digest=digest,
    )


def render(
    template: str, network: Stored, origin: Origin | None, record: Perturbation | None = None, **facts: Any
) -> str:
    """Render a card.

    Args:
        template: name of a file of `model_cards/`.
        network: what is stored.
        origin: what is known of the checkpoint that the weights come from.
        record: what was done to them, `None` for a base.
        **facts: what else the template names.
    """
    card_data = metadata(network, origin, record).to_yaml()
    common = {"network": network, "origin": origin, "record": record, "study": STUDY, "versions": versions()}
    return _templates().get_template(template).render({**facts, **common, "card_data": card_data}).rstrip() + "\n"


@cache
def _templates() -> Environment:
    # only who writes a card pays for the import
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # inside the package, or in a checkout beside it
    folders = FileSystemLoader([_PACKAGE / "model_cards", _PACKAGE.parent / "model_cards"])
    templates = Environment(loader=folders, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    templates.filters["code"] = code
    return templates


def code(value: str) -> str:
    """Return a text that comes from outside as code on one line, which nothing in it can end, nor a cell around it."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in value).split()) or "?"
    if not set(line) & set("`|\\"):
        return f"`{line}`"
    # no span of Markdown holds a backslash before a bar in a table, so these are spelled as HTML
    letters = (letter if letter.isalnum() or letter in " -./" else f"&#{ord(letter)};" for letter in line)
    return f"<code>{''.join(letters)}</code>"


def metadata(network: Stored, origin: Origin | None, record: Perturbation | None) -> ModelCardData:
    """Return the header of a card; the arguments are those of `render`."""
    tags = ["hf-perturb", "protein", *(("control", record.method) if record is not None else ()), network.family]
    base = None if record is None else _base_model(origin, record)
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=_TASKS[network.auto_class],
        tags=tags,
        base_model=base,
        # the Hub knows adapter, finetune, merge and quantized; a control is the same network with other weights
        base_model_relation=None if base is None else "finetune",
        **(origin.metadata if origin is not None else {}),
    )


def _base_model(origin: Origin | None, record: Perturbation) -> str | None:
    """Return the Hub id of a variant's base: where it came from, or the copy of it that others know."""
    if record.base is not None and record.base.name and record.base.revision:
        try:
            validate_repo_id(record.base.name)
            return record.base.name
        except HFValidationError:
            pass
    return origin.stock if origin is not None else None
