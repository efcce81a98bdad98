"""What is asked of a folder before anything of it is sent."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard

from hf_perturb import demo
from hf_perturb.checkpoints.bases import find, read_config
from hf_perturb.checkpoints.progress import Progress
from hf_perturb.checkpoints.recipes import open_recipe, other_sizes
from hf_perturb.checkpoints.verification import verify_variant
from hf_perturb.errors import CheckpointError
from hf_perturb.hub.staging import Stage, is_weights
from hf_perturb.models.layouts import listed


def refuse_unfit(folder: Path, staged: Stage, progress: Progress | None) -> None:
    """Refuse a folder that is not as it says it is.

    Args:
        folder: what is to be published.
        staged: the files of it.
        progress: called with the bytes that are verified and those in all.

    Raises:
        CheckpointError: if its card or its weights are not as they should be, or if nobody else could load it.
    """
    _refuse_card(folder, staged)
    if not any(map(is_weights, staged.files)):
        _refuse_recipe(str(folder))
        return
    found = verify_variant(folder, progress=progress)
    if found.problems:
        raise CheckpointError(f"{folder} is not as recorded, so nothing was sent: {'; '.join(found.problems)}")
    if found.nonfinite:
        raise CheckpointError(
            f"{folder} has NaN or infinite weights in {listed(found.nonfinite)}, so nothing was sent: what such a"
            " network computes is no number either"
        )


def _refuse_card(folder: Path, staged: Stage) -> None:
    with staged.files["README.md"].as_file() as file:
        text = file.read().decode()
    try:
        data = ModelCard(text, ignore_metadata_errors=False).data.to_dict()
    except Exception as error:  # YAML's errors have no common base, and the card adds its own
        raise CheckpointError(f"{folder / 'README.md'}: its metadata cannot be read: {error}") from error
    if not data:
        raise CheckpointError(f"{folder / 'README.md'} has no metadata between two lines '---' at its beginning")


def _refuse_recipe(name: str) -> None:
    """Compare a recipe with its base as far as that takes no weights: those are compared whenever it is loaded."""
    recipe = open_recipe(name)
    base, revision = recipe.base, recipe.record.base.revision if recipe.record.base is not None else None
    if recipe.record.digest is None:
        raise CheckpointError(f"{name} records no digest; build it with hf-perturb create --recipe")
    if base != demo.NAME and revision is None:
        raise CheckpointError(
            f"{name} is a recipe of {base!r}, which nobody else has; push the base, and make the recipe of its Hub id"
        )
    if problems := other_sizes(recipe.config, read_config(base, find(base, revision)[0])[0]):
        raise CheckpointError(f"{name} is not a recipe of {base!r} as it is: {'; '.join(problems)}")
