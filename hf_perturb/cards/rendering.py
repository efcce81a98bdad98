"""The metadata of model cards, and the templates that they are rendered from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_perturb.cards.facts import PACKAGES, STUDY, Origin, versions
from hf_perturb.checkpoints.tokenizers import CARP, ESM1B
from hf_perturb.networks.layouts import AUTO_CLASSES, PREFIXES
from hf_perturb.perturbation import Perturbation

_TASKS = {
    "AutoModel": "feature-extraction",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
}


def render(template: str, metadata: ModelCardData, **values: Any) -> str:
    """Render a card.

    Args:
        template: name of a file of `model_cards/`.
        metadata: its header.
        **values: what the template names; what comes from outside must be escaped.
    """
    card = ModelCard.from_template(metadata, template_path=str(_templates() / template), study=STUDY, **values)
    return f"{str(card).rstrip()}\n"


def _templates() -> Path:
    """Return the folder of the templates: inside the package, or in a checkout beside it."""
    package = Path(__file__).resolve().parent.parent
    return next(folder for folder in (package / "model_cards", package.parent / "model_cards") if folder.is_dir())


def metadata(config: Any, architecture: str, origin: Origin | None, record: Perturbation | None) -> ModelCardData:
    """Return the header of a card.

    Args:
        config: of the network.
        architecture: name of our model class.
        origin: what is known of the checkpoint that the weights come from.
        record: what was done to them, `None` for a base.
    """
    tags = ["hf-perturb", "protein", *(("control", record.method) if record is not None else ()), config.model_type]
    base = None if record is None else _base_model(origin, record)
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=_TASKS[auto_class(config, architecture)],
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


def auto_class(config: Any, architecture: str) -> str:
    """Return the Auto class that loads a model class of ours."""
    prefix = PREFIXES[config.model_type]
    return next(auto for auto, head in AUTO_CLASSES.items() if architecture == prefix + head)


def loading(config: Any, architecture: str, stock: bool) -> dict[str, Any]:
    """Return what the snippets of a template need."""
    return {
        "auto_class": auto_class(config, architecture),
        "language": architecture.endswith("ForMaskedLM"),
        "mask": CARP.mask if config.model_type == "carp" else ESM1B.mask,
        "package": PACKAGES[config.model_type],
        "stock": stock,
        "versions": versions(),
    }
