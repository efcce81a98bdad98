"""Variants on disk: built from a base, written whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from hf_perturb import demo
from hf_perturb.checkpoints.cards import variant_card
from hf_perturb.errors import CheckpointError, FolderExistsError, StackedPerturbationError
from hf_perturb.models import modeling_carp, modeling_fair_esm
from hf_perturb.models.loading import stored_config
from hf_perturb.models.perturbable import PerturbablePreTrainedModel
from hf_perturb.models.record import base_location
from hf_perturb.perturbation import Base, Perturbation, digest_of, make_plan
from hf_perturb.perturbation.digest import distinct
from hf_perturb.tokenizers import CARP, ESM1, ESM1B, build_tokenizer

_MODULES = {"fair_esm": modeling_fair_esm, "carp": modeling_carp}
_PREFIXES = {"fair_esm": "FairEsm", "carp": "Carp"}
_AUTO_CLASSES = {
    "AutoModel": "Model",
    "AutoModelForMaskedLM": "ForMaskedLM",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
    "AutoModelForTokenClassification": "ForTokenClassification",
}


def create_variant(
    base: str | Path,
    out: str | Path,
    perturbation: Perturbation | dict[str, Any] | str,
    *,
    recipe: bool = False,
    force: bool = False,
) -> Perturbation:
    """Build a variant of a base and write it to a folder, whole or not at all.

    Args:
        base: a folder, a Hub id, or `demo`.
        out: the folder to write: config, weights, tokenizer and card.
        perturbation: what to do; a dict or a method name will do.
        recipe: leave the weights out; `from_pretrained` rebuilds them from the base and checks their digest.
        force: replace the folder if it exists.

    Returns:
        The record that the variant's configuration holds: the perturbation with base and digests.

    Raises:
        FolderExistsError: if `out` exists and `force` is not set.
        CheckpointError: if the base is missing, is no base of a known family, or lacks tensors, or if the folder
            cannot be written.
        PerturbationError: if the perturbation is not valid, or the base is a variant itself.
    """
    base, out, asked = str(base), Path(out), Perturbation.parse(perturbation)
    if out.exists() and not force:
        raise FolderExistsError(f"{out} exists already; choose another folder, or replace it with --force (force=True)")
    model, revision = load_base(base)
    tensors = model.state_dict()
    origin = Base(name=base, revision=revision, digest=digest_of(tensors))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.document_tensors(asked.rules).items()}
    changed = len(make_plan(model.config.model_type, shapes, asked).steps)
    model.perturb(asked)
    tensors = model.state_dict()
    record = asked.with_record(origin, digest_of(tensors))
    model.config.perturbation = record
    model.config.auto_map = auto_map(model.config.model_type)
    architecture = type(model).__name__
    card = variant_card(model.config.model_type, architecture, record, changed, len(distinct(tensors)))
    tokenizer = tokenizer_of(base, model)
    try:
        with whole_folder(out) as folder:
            if recipe:
                model.config.architectures = [architecture]
                model.config.save_pretrained(folder)
            else:
                model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            (folder / "README.md").write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{out}: nothing was written, because {error}") from error
    return record


def load_base(base: str) -> tuple[PerturbablePreTrainedModel, str | None]:
    """Load a base in the type that it is stored in, as the class that it is stored as.

    Args:
        base: a folder, a Hub id, or `demo`.

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
    try:
        stored, revision = stored_config(location, {})
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{absent} ({error})") from error
    if not stored:
        raise CheckpointError(absent)
    family = stored.get("model_type")
    if family not in _MODULES:
        raise CheckpointError(f"base {base!r}: model_type is {family!r}; allowed: {', '.join(_MODULES)}")
    if stored.get("perturbation") is not None:
        record = Perturbation.parse(stored["perturbation"])
        raise StackedPerturbationError(f"base {base!r} is a variant already, by {record}; start from its base")
    architecture = (stored.get("architectures") or [_PREFIXES[family] + "ForMaskedLM"])[0]
    model_class = getattr(_MODULES[family], architecture, None)
    if model_class is None:
        raise CheckpointError(f"base {base!r}: architecture {architecture!r} is not one of the family {family!r}")
    arguments = {} if revision is None else {"revision": revision}
    try:
        model, info = model_class.from_pretrained(location, output_loading_info=True, **arguments)
    except (OSError, ValueError, SafetensorError, StrictDataclassError) as error:
        raise CheckpointError(f"base {base!r}: its config.json or model.safetensors cannot be used: {error}") from error
    for problem in ("missing_keys", "unexpected_keys"):
        if info[problem]:
            names = sorted(info[problem])
            raise CheckpointError(f"base {base!r}: {problem.replace('_keys', '')} tensors: {', '.join(names)}")
    return model, revision


def tokenizer_of(base: str, model: PerturbablePreTrainedModel) -> PreTrainedTokenizerBase:
    """Return the base's own tokenizer, or that of its network's alphabet where it has none."""
    location = base_location(base)
    if cached_file(location, "tokenizer.json", _raise_exceptions_for_missing_entries=False) is not None:
        return AutoTokenizer.from_pretrained(location)
    config = model.config
    if config.model_type == "carp":
        return build_tokenizer(CARP)
    return build_tokenizer(ESM1 if config.model_version == "ESM-1" else ESM1B)


def auto_map(family: str) -> dict[str, str]:
    """Return the `auto_map` with every head: Transformers alone would record only the class that was saved."""
    prefix = _PREFIXES[family]
    heads = {auto: f"modeling_{family}.{prefix}{head}" for auto, head in _AUTO_CLASSES.items()}
    return {"AutoConfig": f"configuration_{family}.{prefix}Config", **heads}


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Give a folder to fill that becomes `out` when the block ends well, and is gone when it does not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent, ignore_cleanup_errors=True) as scratch:
        fresh, old = Path(scratch) / "new", Path(scratch) / "old"
        fresh.mkdir()
        yield fresh
        if out.exists():
            out.rename(old)
        try:
            fresh.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)
