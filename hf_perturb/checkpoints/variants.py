"""Variants on disk: built from a base, written whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hf_perturb import demo
from hf_perturb.checkpoints.bases import AUTO_CLASSES, PREFIXES, load_base, tokenizer_of
from hf_perturb.checkpoints.cards import variant_card
from hf_perturb.errors import CheckpointError, FolderExistsError, PerturbationError
from hf_perturb.models.loading import stored_config
from hf_perturb.models.record import base_location
from hf_perturb.perturbation import Base, Perturbation
from hf_perturb.perturbation.digest import digest_of_lines, tensor_digests

# what a variant's folder may hold
_FILES = ("config.json", "model*.safetensors", "model.safetensors.index.json", "tokenizer*.json", "README.md")


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
    """Refuse a folder to write that is or holds the base, or that holds what is not ours to replace."""
    if base.is_dir():
        one, other = out.resolve(), base.resolve()
        if one == other or one in other.parents:
            raise CheckpointError(f"{out} is, or holds, the base {base}; choose another folder to write")
    if not out.exists():
        return
    if not force:
        raise FolderExistsError(f"{out} exists already; choose another folder, or replace it with --force (force=True)")
    if out.is_symlink() or not out.is_dir():
        raise FolderExistsError(f"{out} is no folder, so --force does not replace it; choose another")
    others = sorted(file.name for file in out.iterdir() if not any(file.match(glob) for glob in _FILES))
    if others:
        raise FolderExistsError(
            f"{out} holds {others[0]}, which is not ours to replace; move it, or choose another folder"
        )
    if any(out.iterdir()) and not _is_variant(out):
        raise FolderExistsError(f"{out} is no variant, so --force does not replace it; choose another folder")


def _is_variant(folder: Path) -> bool:
    """Whether a folder is as `create_variant` left it: a model that was trained on has no digest any more."""
    try:
        record = stored_config(folder, {})[0].get("perturbation")
    except OSError:
        return False
    return isinstance(record, dict) and record.get("digest") is not None


def _recorded_name(base: str, recipe: bool) -> str:
    """Return what the record calls the base: a recipe needs its place, a variant need not tell whose disk it was on."""
    if base == demo.NAME or not Path(base).is_dir():
        return base
    return str(Path(base).resolve()) if recipe else Path(base).resolve().name


def auto_map(family: str) -> dict[str, str]:
    """Return the `auto_map` with every head: Transformers alone would record only the class that was saved."""
    prefix = PREFIXES[family]
    heads = {auto: f"modeling_{family}.{prefix}{head}" for auto, head in AUTO_CLASSES.items()}
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
