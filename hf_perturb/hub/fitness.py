"""What is asked of a folder before anything of it is sent."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from hf_perturb import demo
from hf_perturb.checkpoints.bases import find, read_config
from hf_perturb.checkpoints.checkpoint import auto_map
from hf_perturb.errors import CheckpointError
from hf_perturb.hub.staging import Stage, is_weights
from hf_perturb.networks.layouts import listed
from hf_perturb.networks.record import recorded_digest
from hf_perturb.networks.stock_esm import is_stock
from hf_perturb.variants.progress import Progress
from hf_perturb.variants.recipe import open_recipe, other_sizes
from hf_perturb.variants.verify import verify_variant

# what a config.json of ours may hold beside the fields of its class
_WRITTEN = {
    *("model_type", "auto_map", "torch_version", "torch_dtype", "transformers_version"),
    *("output_attentions", "use_cache"),
}


def refuse_unfit(
    folder: Path, staged: Stage, stored: dict[str, Any], config: Any, token: str | None, progress: Progress | None
) -> None:
    """Refuse a folder that is not as it says it is.

    Args:
        folder: what is to be published.
        staged: the files of it.
        stored: content of its `config.json`.
        config: what that says.
        token: of the Hub, for the base of a recipe.
        progress: called with the bytes that are verified and those in all.

    Raises:
        CheckpointError: if its card or its weights are not as they should be, or if nobody else could load it.
    """
    record = config.perturbation
    if not is_stock(stored):
        _refuse_configuration(folder, config, stored)
    _refuse_card(folder, staged)
    if not any(map(is_weights, staged.files)):
        _refuse_recipe(str(folder), token)
        return
    if record is not None and record.base is not None and Path(record.base.name or "").is_absolute():
        raise CheckpointError(
            f"{folder}: config.json names its base by a path of this machine, {record.base.name!r}; hf-perturb create"
            " writes a variant that does not"
        )
    found = verify_variant(folder, progress=progress)
    if found.problems:
        raise CheckpointError(f"{folder} is not as recorded, so nothing was sent: {'; '.join(found.problems)}")
    if found.nonfinite:
        raise CheckpointError(
            f"{folder} has NaN or infinite weights in {listed(found.nonfinite)}, so nothing was sent: what such a"
            " network computes is no number either"
        )


def refuse_unrecorded(folder: Path) -> None:
    """Refuse weights of which nobody could say later whether they are still the ones that were published.

    Raises:
        CheckpointError: with the remedy.
    """
    stored, _ = find(str(folder))
    if recorded_digest(read_config(str(folder), stored)[0]) is None:
        raise CheckpointError(
            f"{folder} records no digest (trained, or saved by something else?): hf-perturb convert {folder} OUT writes"
            " a folder that does"
        )


def _refuse_configuration(folder: Path, config: Any, stored: dict[str, Any]) -> None:
    if stored.get("auto_map") != auto_map(config.model_type):
        raise CheckpointError(
            f"{folder}: auto_map in config.json is {stored.get('auto_map')!r}, which does not name the code that is"
            f" published; hf-perturb convert {folder} OUT writes the right one"
        )
    # what somebody wrote there for himself is not for everybody
    if unknown := sorted(stored.keys() - {field.name for field in fields(config)} - _WRITTEN):
        raise CheckpointError(f"{folder}: config.json has {unknown[0]!r}, which no such network has; take it out")


def _refuse_card(folder: Path, staged: Stage) -> None:
    try:
        data = ModelCard(staged.text("README.md").decode(), ignore_metadata_errors=False).data.to_dict()
    except Exception as error:  # YAML's errors have no common base, and the card adds its own
        raise CheckpointError(f"{folder / 'README.md'}: its metadata cannot be read: {error}") from error
    if not data:
        raise CheckpointError(f"{folder / 'README.md'} has no metadata between two lines '---' at its beginning")


def _refuse_recipe(name: str, token: str | None) -> None:
    """Compare a recipe with its base as far as that takes no weights: those are compared whenever it is loaded."""
    recipe = open_recipe(name)
    base = recipe.base
    if base != demo.NAME and recipe.base_revision is None:
        raise CheckpointError(
            f"{name} is a recipe of {base!r}, which nobody else has; push the base, and make the recipe of its Hub id"
        )
    stored, _ = find(base, recipe.base_revision, token)
    if problems := other_sizes(recipe.config, read_config(base, stored)[0]):
        raise CheckpointError(f"{name} is not a recipe of {base!r} as it is: {'; '.join(problems)}")
