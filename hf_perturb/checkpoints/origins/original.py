"""Original checkpoints (`.pt`): read without running anything in them, and written as their packages read them."""

from __future__ import annotations

import zipfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.network import Network
from hf_perturb.checkpoints.shapes import listed
from hf_perturb.checkpoints.tensors import Tensor, unpickle
from hf_perturb.errors import CheckpointError, PerturbationError
from hf_perturb.perturbation.spec import Perturbation

ALLOWED = "allowed: ESM-1, ESM-1b, ESM-1v and ESM-2 as fair-esm has them, and CARP as sequence-models has it"
# a key of ours, which the original loaders do not look at: what was done to exported weights
RECORD_KEY = "hf_perturb"
_OTHERS = {
    "msa_transformer": "an MSA Transformer (ESM-MSA-1), which reads alignments",
    "invariant_gvp": "ESM-IF1, which reads structures (inverse folding)",
    "bigcarp": "BiGCARP, which reads domains of gene clusters",
    "mif": "MIF or MIF-ST, which read structures (inverse folding)",
}
_LEGACY = b"\x80\x02"  # how torch's older format begins: a pickle of protocol 2


def read_original(path: Path) -> Checkpoint:
    """Read an original checkpoint.

    Args:
        path: a `.pt` file of fair-esm (its contact regression is looked for beside it) or of sequence-models, released
            or from training.

    Raises:
        CheckpointError: if it is damaged, holds code, or is the checkpoint of something else.
    """
    # each reader has what they share from here
    from hf_perturb.checkpoints.origins.fair_esm import read_esm_1, read_esm_2
    from hf_perturb.checkpoints.origins.sequence_models import read_carp

    data = read_pickle(path, [Namespace])
    # training leaves "args": None beside a "cfg"
    keys = {key for key, value in data.items() if value is not None} if isinstance(data, dict) else set()
    try:
        if {"model", "args"} <= keys:
            checkpoint = read_esm_1(path, data)
        elif {"model", "cfg"} <= keys:
            checkpoint = read_esm_2(path, data)
        elif "model_state_dict" in keys:
            checkpoint = read_carp(path, data)
        else:
            raise CheckpointError(f"{path} is no checkpoint of a kind that we know: {_kind(data)}; {ALLOWED}")
        record = data.get(RECORD_KEY)
        checkpoint.record = None if record is None else Perturbation.parse(record)
    except PerturbationError as error:
        raise CheckpointError(f"{path}: its record cannot be read: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, StrictDataclassError) as error:
        why = f"its sizes are missing, or not those of a network that we know: {error!r}"
        raise CheckpointError(f"{path}: {why}") from error
    return checkpoint


def described(
    path: Path, origin: str, network: Network, tensors: Mapping[str, torch.Tensor], notes: Sequence[str]
) -> Checkpoint:
    """Return the checkpoint that an original file is; its own package loads it in float32."""
    found = {name: Tensor.of(tensor) for name, tensor in tensors.items()}
    return Checkpoint(str(path), origin, network, found, dtype="F32", notes=list(notes))


def _kind(data: Any) -> str:
    if not isinstance(data, dict):
        return f"it holds a {type(data).__name__}"
    if data and all(isinstance(value, torch.Tensor) for value in data.values()):
        return (
            "it is a bare state_dict, which does not say its sizes; load it into the original class, wrap that"
            " (hf_perturb.wrap) and save_pretrained"
        )
    return f"it holds {listed(map(str, data))}" if data else "it is empty"


def read_pickle(path: Path, allowed: Sequence[type] = ()) -> Any:
    """Read a file of `torch.save` whose sums are right, without running anything in it; see `unpickle`.

    Raises:
        CheckpointError: if it is damaged, or holds code.
    """
    if problem := damage(path):
        raise CheckpointError(f"{path}: {problem}")
    return unpickle(path, allowed)


def check_relative(path: Path, name: Any) -> None:
    """Raise if a file is the checkpoint of a relative of the networks that we have, and say of which.

    Raises:
        CheckpointError: if the name that the file gives its network is that of a relative.
    """
    for part, what in _OTHERS.items():
        if part in str(name):
            raise CheckpointError(f"{path} is {what}; {ALLOWED}")


def damage(path: Path) -> str:
    """Say what is wrong with a zip, nothing for any other file; reading one maps it, and looks at no sum.

    Args:
        path: an existing file.
    """
    if not path.is_file() or not zipfile.is_zipfile(path):
        return ""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as error:  # a damaged archive can provoke any
        return f"it is damaged ({str(error).strip() or type(error).__name__})"
    return "" if broken is None else f"it is damaged (the sum of {broken} in it is wrong)"


def strange(path: Path) -> str:
    """Say so if a file does not begin like one of torch's, or lacks its end."""
    if zipfile.is_zipfile(path):
        return ""
    with path.open("rb") as file:
        known = file.read(len(_LEGACY)) == _LEGACY
    return "" if known else "it is no file that torch saved, or its end is missing"


def write_pickle(data: dict[str, Any], record: Perturbation | None, path: Path) -> None:
    """Save in torch's zip format, with the record; a part of a larger memory would otherwise bring all of it along."""
    key = "model_state_dict" if "model_state_dict" in data else "model"
    data[key] = {name: tensor.clone() if _is_part(tensor) else tensor for name, tensor in data[key].items()}
    if record is not None:
        data[RECORD_KEY] = record.to_dict()
    torch.save(data, path)


def _is_part(tensor: torch.Tensor) -> bool:
    return tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()


def check_suffix(out: Path) -> None:
    """Raise if the original loaders would take a name for something to download."""
    if out.suffix != ".pt":
        raise CheckpointError(f"{out}: the original loaders download what does not end in .pt; allowed: NAME.pt")


def check_constants(checkpoint: Checkpoint, package: str, names: Sequence[str]) -> None:
    """Raise if a network differs from the original in what the original cannot be told.

    Args:
        checkpoint: to be written.
        package: to be written for.
        names: of the sizes that the original class has built in.

    Raises:
        CheckpointError: naming the size.
    """
    network = checkpoint.network
    fixed = {} if network.version is None else {"model_version": network.version}
    original = Network.of(network.family, **fixed)
    for name in names:
        given, known = getattr(network.sizes, name), getattr(original.sizes, name)
        if given != known:
            raise cannot(checkpoint, package, f"its {name} is {given!r}; the class there has {known!r} built in")


def check_class(checkpoint: Checkpoint, package: str, *architectures: str) -> None:
    """Raise if a checkpoint is stored as another class than a format has.

    Raises:
        CheckpointError: naming what is allowed.
    """
    if checkpoint.network.architecture not in architectures:
        allowed = " or ".join(architectures)
        raise cannot(checkpoint, package, f"it is stored as {checkpoint.network.architecture}; allowed: {allowed}")


def cannot(checkpoint: Checkpoint, package: str, why: str) -> CheckpointError:
    """Return the error for what a format cannot hold."""
    return CheckpointError(f"{checkpoint.name} cannot be written for {package}: {why}")
