"""Bases: found, checked and loaded as they are stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from hf_perturb import demo
from hf_perturb.checkpoints.catalog import CATALOG
from hf_perturb.errors import CheckpointError, StackedPerturbationError
from hf_perturb.models import modeling_carp, modeling_fair_esm
from hf_perturb.models.loading import stored_config
from hf_perturb.models.perturbable import PerturbablePreTrainedModel
from hf_perturb.models.record import base_location
from hf_perturb.perturbation import Perturbation
from hf_perturb.tokenizers import CARP, ESM1, ESM1B, build_tokenizer

_MODULES = {"fair_esm": modeling_fair_esm, "carp": modeling_carp}
PREFIXES = {"fair_esm": "FairEsm", "carp": "Carp"}
AUTO_CLASSES = {
    "AutoModel": "Model",
    "AutoModelForMaskedLM": "ForMaskedLM",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
    "AutoModelForTokenClassification": "ForTokenClassification",
}
# whatever a config.json or a weights file edited by hand makes Transformers trip over
_UNUSABLE = (
    OSError,
    ValueError,
    RuntimeError,
    TypeError,
    AttributeError,
    AssertionError,
    SafetensorError,
    StrictDataclassError,
)


def load_base(base: str, bases_only: bool = False) -> tuple[PerturbablePreTrainedModel, str | None]:
    """Load a base in the type that it is stored in, as the class that it is stored as.

    Args:
        base: a folder, a Hub id, or `demo`.
        bases_only: whether to refuse a variant.

    Returns:
        The model, and the commit that it came from (`None` for a folder).

    Raises:
        CheckpointError: if the base is missing, is no base of a known family, or lacks tensors.
        StackedPerturbationError: if it is a variant.
    """
    location = base_location(base)
    if Path(location).is_file():
        raise CheckpointError(
            f"{base} is a file; allowed: a folder that save_pretrained wrote, a Hub id, or {demo.NAME!r};"
            " load an original checkpoint with its own package, wrap it (hf_perturb.wrap) and save that"
        )
    absent = "no config.json in it" if Path(location).is_dir() else "no such folder, and not to be had from the Hub"
    absent = f"base {base!r}: {absent}; allowed: a folder of a model, a Hub id, or {demo.NAME!r}"
    if base in CATALOG and not Path(base).exists():
        raise CheckpointError(
            f"base {base!r} is published for its own package: load it there, hf_perturb.wrap(...) it, save_pretrained"
            " it to a folder, and give that folder"
        )
    try:
        stored, revision = stored_config(location, {})
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{absent} ({error})") from error
    if not stored:
        raise CheckpointError(absent)
    family = stored.get("model_type")
    if not isinstance(family, str) or family not in _MODULES:
        raise CheckpointError(f"base {base!r}: model_type is {family!r}; allowed: {', '.join(_MODULES)}")
    if bases_only and stored.get("perturbation") is not None:
        record = Perturbation.parse(stored["perturbation"])
        raise StackedPerturbationError(f"base {base!r} is a variant already, by {record}; start from its base")
    allowed = [PREFIXES[family] + head for head in AUTO_CLASSES.values()]
    architectures = stored.get("architectures") or [PREFIXES[family] + "ForMaskedLM"]
    if not isinstance(architectures, list) or architectures[0] not in allowed:
        raise CheckpointError(
            f"base {base!r}: architectures is {architectures!r}; allowed: one of {', '.join(allowed)}"
        )
    model_class = getattr(_MODULES[family], architectures[0])
    arguments = {} if revision is None else {"revision": revision}
    try:
        model, info = model_class.from_pretrained(location, output_loading_info=True, **arguments)
    except _UNUSABLE as error:
        raise CheckpointError(f"base {base!r}: its config.json or model.safetensors cannot be used: {error}") from error
    for problem in ("missing_keys", "unexpected_keys"):
        if info[problem]:
            names = sorted(info[problem])
            raise CheckpointError(f"base {base!r}: {problem.replace('_keys', '')} tensors: {', '.join(names)}")
    return model, revision


def tokenizer_of(base: str, model: PerturbablePreTrainedModel, revision: str | None) -> PreTrainedTokenizerBase:
    """Return the base's own tokenizer, or that of its network's alphabet where it has none.

    Raises:
        CheckpointError: if the base has one that cannot be read.
    """
    location, place = base_location(base), {} if revision is None else {"revision": revision}
    if cached_file(location, "tokenizer.json", _raise_exceptions_for_missing_entries=False, **place) is not None:
        try:
            return AutoTokenizer.from_pretrained(location, **place)
        except Exception as error:  # the library raises bare Exceptions
            raise CheckpointError(f"base {base!r}: its tokenizer.json cannot be used: {error}") from error
    config = model.config
    if config.model_type == "carp":
        return build_tokenizer(CARP)
    return build_tokenizer(ESM1 if config.model_version == "ESM-1" else replace(ESM1B, max_length=config.max_tokens))
