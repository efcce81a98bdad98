"""What becomes of a request for a perturbation, next to what a checkpoint records of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hf_perturb.errors import StackedPerturbationError
from hf_perturb.perturbation.spec import Perturbation

Decision = Literal["keep", "apply", "rebuild"]


@dataclass(frozen=True)
class Record:
    """What a checkpoint, or a model, says that its weights are.

    Args:
        what: how messages call it.
        family: `model_type` of its network, which decides an axis that is not spelled out.
        perturbation: what was done to its weights, `None` for nothing.
        has_weights: false for a recipe.
    """

    what: str
    family: str
    perturbation: Perturbation | None
    has_weights: bool = True


def decide(record: Record, asked: Perturbation | None) -> Decision:
    """Say whether weights are kept, perturbed or made again, given what is recorded of them and what is asked for.

    Args:
        record: what it says of itself.
        asked: the perturbation that is wanted of it, `None` for what is there.

    Returns:
        `"keep"` to load the weights as they are, `"apply"` to perturb them, `"rebuild"` to make those of a recipe from
        its base.

    Raises:
        StackedPerturbationError: if another perturbation is asked for than the one that is recorded, or if the weights
            have changed since.
    """
    done = record.perturbation
    if done is None:
        return "keep" if asked is None else "apply"
    if asked is not None and done.changed:
        raise StackedPerturbationError(
            f"{record.what} is {done}: trained or edited, so it is no control any more; got {asked}: start from the"
            " base for that, or leave perturbation out to have it as it is"
        )
    if asked is not None and done.spelt_out(record.family) != asked.spelt_out(record.family):
        raise StackedPerturbationError(
            f"{record.what} is perturbed already, by {done}; got {asked} on top; perturbations do not stack: start from"
            " the base"
        )
    return "keep" if record.has_weights else "rebuild"
