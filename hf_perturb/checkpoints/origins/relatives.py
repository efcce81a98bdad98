"""What the readers of original checkpoints share: how a file is opened, and what else it may be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_perturb.checkpoints.integrity import damage
from hf_perturb.errors import CheckpointError
from hf_perturb.networks.weights import unpickle

ALLOWED = "allowed: ESM-1, ESM-1b, ESM-1v and ESM-2 as fair-esm has them, and CARP as sequence-models has it"
_OTHERS = {
    "msa_transformer": "an MSA Transformer (ESM-MSA-1), which reads alignments",
    "invariant_gvp": "ESM-IF1, which reads structures (inverse folding)",
    "bigcarp": "BiGCARP, which reads domains of gene clusters",
    "mif": "MIF or MIF-ST, which read structures (inverse folding)",
}


def read_pickle(path: Path, allowed: Sequence[type] = ()) -> Any:
    """Read a file of `torch.save` whose sums are right, without running anything in it; see `unpickle`.

    Raises:
        CheckpointError: if it is damaged, or holds code.
    """
    if problem := damage(path):
        raise CheckpointError(f"{path}: {problem}")
    return unpickle(path, allowed)


def refuse_others(path: Path, name: Any) -> None:
    """Refuse a relative of the networks that we have, and say what it is.

    Raises:
        CheckpointError: if the name that the file gives its network is that of a relative.
    """
    for part, what in _OTHERS.items():
        if part in str(name):
            raise CheckpointError(f"{path} is {what}; {ALLOWED}")
