"""Variants on disk: built from a base, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hf_perturb import demo
from hf_perturb.checkpoints.bases import open_base
from hf_perturb.checkpoints.cards import variant_card
from hf_perturb.checkpoints.checkpoint import Checkpoint, auto_map
from hf_perturb.checkpoints.folders import refuse_out, whole_folder
from hf_perturb.errors import CheckpointError, DigestError, PerturbationError
from hf_perturb.models.record import base_location
from hf_perturb.perturbation import Base, Perturbation
from hf_perturb.perturbation.digest import digest_of_lines, tensor_digests
from hf_perturb.tokenizers import save_tokenizer


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
        base: a folder, a Hub id, an original `.pt` file, or `demo`.
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
    place = Path(base_location(base))
    refuse_out(out, place, force, "variant")
    checkpoint = open_base(base)
    if recipe:
        _refuse_recipe(checkpoint)
    model = checkpoint.model()
    before = tensor_digests(model.state_dict())
    if (stated := model.config.digest) not in (None, digest_of_lines(before)):
        raise DigestError(f"base {base!r} has digest {digest_of_lines(before)}, its config.json says {stated}")
    model.perturb(asked)
    after = tensor_digests(model.state_dict())
    changed = sum(before.get(name) != digest for name, digest in after.items())
    if not changed:
        raise PerturbationError(f"{asked} changes no tensor of {base!r}; take another axis, or widen include")
    origin = Base(name=_recorded_name(base, recipe), revision=checkpoint.revision, digest=digest_of_lines(before))
    record = asked.with_record(origin, digest_of_lines(after))
    model.config.perturbation = record
    model.config.auto_map = auto_map(model.config.model_type)
    architecture = type(model).__name__
    card = variant_card(model.config.model_type, architecture, record, changed, len(after))
    try:
        with whole_folder(out, lambda: refuse_out(out, place, force, "variant")) as folder:
            if recipe:
                model.config.architectures = [architecture]
                model.config.save_pretrained(folder)
            else:
                model.save_pretrained(folder)
            save_tokenizer(model.config, folder)
            (folder / "README.md").write_text(card, encoding="utf-8")
    except CheckpointError:
        raise
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{out}: nothing was written, because {error}") from error
    return record


def _recorded_name(base: str, recipe: bool) -> str:
    """Return what the record calls the base: a recipe needs its place, a variant need not tell whose disk it was on."""
    if base == demo.NAME or not Path(base).exists():
        return base
    return str(Path(base).resolve()) if recipe else Path(base).resolve().name


def _refuse_recipe(checkpoint: Checkpoint) -> None:
    """Refuse what `from_pretrained` could not load again as `create` has it."""
    if checkpoint.origin in ("fair-esm", "sequence-models"):
        raise CheckpointError(
            f"{checkpoint.what} is an original; a recipe needs a base that from_pretrained can load: make one"
            " of it (hf-perturb convert), or leave --recipe out"
        )
    kinds = {str(dtype) for name, dtype in checkpoint.dtypes().items() if not name.endswith("rot_emb.inv_freq")}
    if len(kinds) > 1:
        raise CheckpointError(
            f"{checkpoint.what} mixes {', '.join(sorted(kinds))}, which from_pretrained loads as one type, so a recipe"
            " would give other weights; leave --recipe out, or convert the base to one --dtype"
        )
