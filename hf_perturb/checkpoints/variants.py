"""Variants on disk: built from a base, written whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from hf_perturb import demo
from hf_perturb.checkpoints.cards import variant_card
from hf_perturb.errors import CheckpointError, FolderExistsError, PerturbationError, StackedPerturbationError
from hf_perturb.models import modeling_carp, modeling_fair_esm
from hf_perturb.models.loading import stored_config
from hf_perturb.models.perturbable import PerturbablePreTrainedModel
from hf_perturb.models.record import base_location
from hf_perturb.perturbation import Base, Perturbation
from hf_perturb.perturbation.digest import digest_of_lines, tensor_digests
from hf_perturb.tokenizers import CARP, ESM1, ESM1B, build_tokenizer

_MODULES = {"fair_esm": modeling_fair_esm, "carp": modeling_carp}
_PREFIXES = {"fair_esm": "FairEsm", "carp": "Carp"}
_AUTO_CLASSES = {
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
    _refuse_out(out, Path(base_location(base)), force)
    model, revision = load_base(base, bases_only=True)
    before = tensor_digests(model.state_dict())
    model.perturb(asked)
    after = tensor_digests(model.state_dict())
    changed = sum(before.get(name) != digest for name, digest in after.items())
    if not changed:
        raise PerturbationError(f"{asked} changes no tensor of {base!r}; take another axis, or widen include")
    origin = Base(name=_recorded_name(base, recipe), revision=revision, digest=digest_of_lines(before))
    record = asked.with_record(origin, digest_of_lines(after))
    model.config.perturbation = record
    model.config.auto_map = auto_map(model.config.model_type)
    architecture = type(model).__name__
    card = variant_card(model.config.model_type, architecture, record, changed, len(after))
    tokenizer = tokenizer_of(base, model, revision)
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


def _refuse_out(out: Path, base: Path, force: bool) -> None:
    """Refuse a folder to write that holds, or lies in, the base, or holds what is not ours to replace."""
    if base.is_dir():
        one, other = out.resolve(), base.resolve()
        if one == other or one in other.parents or other in one.parents:
            raise CheckpointError(f"{out} and the base {base} are one inside the other; choose another folder to write")
    if not out.exists():
        return
    if not force:
        raise FolderExistsError(f"{out} exists already; choose another folder, or replace it with --force (force=True)")
    if not out.is_dir() or (any(out.iterdir()) and not _is_variant(out)):
        raise FolderExistsError(f"{out} is no variant, so --force does not replace it; remove it yourself, or choose")


def _is_variant(folder: Path) -> bool:
    try:
        return stored_config(folder, {})[0].get("perturbation") is not None
    except OSError:
        return False


def _recorded_name(base: str, recipe: bool) -> str:
    """Return what the record calls the base: a recipe needs its place, a variant need not tell whose disk it was on."""
    if base == demo.NAME or not Path(base).is_dir():
        return base
    return str(Path(base).resolve()) if recipe else Path(base).resolve().name


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
    allowed = [_PREFIXES[family] + head for head in _AUTO_CLASSES.values()]
    architectures = stored.get("architectures") or [_PREFIXES[family] + "ForMaskedLM"]
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
        fresh = Path(scratch) / "new"
        fresh.mkdir()
        yield fresh
        mode = (fresh / "config.json").stat().st_mode
        for file in fresh.iterdir():
            file.chmod(mode)  # safetensors writes files that only their owner can read
        # beside the scratch folder, which is removed whatever happens
        old = Path(scratch + ".old")
        try:
            if out.exists():
                out.rename(old)
            fresh.rename(out)
        except BaseException:
            if old.exists() and not out.exists():
                old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)
