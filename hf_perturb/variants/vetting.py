"""What is asked of a checkpoint before it is written anew: that its weights are numbers, and those that it records."""

from __future__ import annotations

from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.errors import CheckpointError, DigestError
from hf_perturb.networks.layouts import listed
from hf_perturb.networks.record import recorded_digest
from hf_perturb.networks.weights import is_finite
from hf_perturb.perturbation.digest import digest_of


def vet(checkpoint: Checkpoint, allow_nonfinite: bool) -> None:
    """Refuse weights that are not numbers, or not the ones that the checkpoint says they are.

    Raises:
        CheckpointError: naming the tensors with NaN or infinite values.
        DigestError: naming both digests.
    """
    if not allow_nonfinite:
        refuse_nonfinite(checkpoint, [name for name, tensor in checkpoint.tensors.items() if not is_finite(tensor)])
    vet_digest(checkpoint)


def vet_digest(checkpoint: Checkpoint, found: str | None = None) -> None:
    """Refuse weights that are not the ones that the checkpoint says they are.

    Stock Transformers keeps our record when it saves a model that it has trained; there, a digest that is no longer
    true is dropped, with a note.

    Args:
        checkpoint: what was opened.
        found: digest of its tensors as they are stored, if it is known already.

    Raises:
        DigestError: naming both digests.
    """
    config, record = checkpoint.config, checkpoint.config.perturbation
    stated = recorded_digest(config)
    if stated is None or stated == (found := found or digest_of(checkpoint.tensors)):
        return
    problem = f"has weights with digest {found}, its config.json says {stated}"
    if checkpoint.origin != "transformers":
        raise DigestError(f"{checkpoint.what} {problem}: they have changed, or are damaged")
    checkpoint.notes.append(f"{problem}: trained since then? the digest is dropped")
    config.digest = None
    config.perturbation = None if record is None else record.with_record(record.base, None)


def refuse_nonfinite(checkpoint: Checkpoint, names: list[str]) -> None:
    """Refuse tensors with NaN or infinite values.

    Raises:
        CheckpointError: naming them.
    """
    if names:
        raise CheckpointError(
            f"{checkpoint.what}: NaN or infinite weights in {listed(names)}; a damaged or diverged network, or a type"
            " too narrow for it; to have it all the same: --allow-nonfinite (allow_nonfinite=True)"
        )
