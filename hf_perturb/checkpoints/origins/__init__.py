"""The formats of other packages, each with its reader and its writer side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hf_perturb.errors import CheckpointError, PerturbationError

if TYPE_CHECKING:
    from hf_perturb.checkpoints.origins.original import Original


def read_original(path: Path) -> Original:
    """Read an original checkpoint.

    Args:
        path: a `.pt` file of fair-esm (its contact regression is looked for beside it) or of sequence-models, released
            or from training.

    Raises:
        CheckpointError: if it is damaged, holds code, or is the checkpoint of something else.
    """
    # only who opens such a file pays for torch
    from argparse import Namespace

    from huggingface_hub.errors import StrictDataclassError

    from hf_perturb.checkpoints.origins.fair_esm import read_esm_1, read_esm_2
    from hf_perturb.checkpoints.origins.original import ALLOWED, RECORD_KEY, kind_of, read_pickle
    from hf_perturb.checkpoints.origins.sequence_models import read_carp
    from hf_perturb.perturbation.spec import Perturbation

    data = read_pickle(path, [Namespace])
    # training leaves "args": None beside a "cfg"
    keys = {key for key, value in data.items() if value is not None} if isinstance(data, dict) else set()
    try:
        if {"model", "args"} <= keys:
            found = read_esm_1(path, data)
        elif {"model", "cfg"} <= keys:
            found = read_esm_2(path, data)
        elif "model_state_dict" in keys:
            found = read_carp(path, data)
        else:
            raise CheckpointError(f"{path} is no checkpoint of a kind that we know: {kind_of(data)}; {ALLOWED}")
        record = data.get(RECORD_KEY)
        found.record = None if record is None else Perturbation.parse(record, "documented")
    except PerturbationError as error:
        raise CheckpointError(f"{path}: its record cannot be read: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, StrictDataclassError) as error:
        why = f"its sizes are missing, or not those of a network that we know: {error!r}"
        raise CheckpointError(f"{path}: {why}") from error
    return found
