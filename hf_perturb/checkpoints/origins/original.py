"""What the readers and writers of original checkpoints (`.pt`) share; nothing in such a file is ever run."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_perturb.checkpoints.network import Network
from hf_perturb.checkpoints.shapes import listed
from hf_perturb.checkpoints.tensors import Tensor
from hf_perturb.errors import CheckpointError
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


@dataclass
class Original:
    """What a file of another package holds, or is to hold: what its reader returns, and its writer takes.

    Args:
        name: how messages call it.
        network: what its weights are of.
        tensors: by document name.
        record: what was done to them.
        notes: what a user should know about how it was read.
    """

    name: str
    network: Network
    tensors: dict[str, Tensor]
    record: Perturbation | None = None
    notes: list[str] = field(default_factory=list)


def kind_of(data: Any) -> str:
    """Say what a file holds that is no checkpoint of a kind that we know."""
    if not isinstance(data, dict):
        return f"it holds a {type(data).__name__}"
    if data and all(hasattr(value, "untyped_storage") for value in data.values()):
        return (
            "it is a bare state_dict, which does not say its sizes; load it into the original class, wrap that"
            " (hf_perturb.wrap) and save_pretrained"
        )
    if isinstance(data.get("state_dict"), dict):
        first = next(iter(data["state_dict"]), "")
        return (
            f"it is a checkpoint of PyTorch Lightning, or built like one: its state_dict ({first!r} ...) says no"
            " sizes; load that into the original class, without what is before its names, wrap it (hf_perturb.wrap) and"
            " save_pretrained"
        )
    return f"it holds {listed(map(str, data))}" if data else "it is empty"


def read_pickle(path: Path, allowed: Sequence[type] = ()) -> Any:
    """Read a file of `torch.save` whose sums are right, without running anything in it; see `unpickle`.

    Raises:
        CheckpointError: if it is damaged, or holds code.
    """
    if problem := damage(path):
        raise CheckpointError(f"{path}: {problem}")
    from hf_perturb.checkpoints.of_torch import unpickle  # of which only who opens such a file has need

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
    import torch

    key = "model_state_dict" if "model_state_dict" in data else "model"
    data[key] = {name: tensor.clone() if _is_part(tensor) else tensor for name, tensor in data[key].items()}
    if record is not None:
        data[RECORD_KEY] = record.to_dict()
    with path.open("wb") as file:
        try:
            torch.save(data, file)
        except RuntimeError as error:  # all that torch says of a full disk is where it is in the file
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _is_part(tensor: Any) -> bool:
    return bool(tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size())


def check_suffix(out: Path) -> None:
    """Raise if the original loaders would take a name for something to download."""
    if out.suffix != ".pt":
        raise CheckpointError(f"{out}: the original loaders download what does not end in .pt; allowed: NAME.pt")


def check_constants(original: Original, package: str, names: Sequence[str]) -> None:
    """Raise if a network differs from the original in what the original cannot be told.

    Args:
        original: to be written.
        package: to be written for.
        names: of the sizes that the original class has built in.

    Raises:
        CheckpointError: naming the size.
    """
    network = original.network
    fixed = {} if network.version is None else {"model_version": network.version}
    known_to = Network.of(network.family, **fixed)
    for name in names:
        given, known = getattr(network.sizes, name), getattr(known_to.sizes, name)
        if given != known:
            raise cannot(original, package, f"its {name} is {given!r}; the class there has {known!r} built in")


def check_class(original: Original, package: str, *architectures: str) -> None:
    """Raise if a checkpoint is stored as another class than a format has.

    Raises:
        CheckpointError: naming what is allowed.
    """
    if original.network.architecture not in architectures:
        allowed = " or ".join(architectures)
        raise cannot(original, package, f"it is stored as {original.network.architecture}; allowed: {allowed}")


def cannot(original: Original, package: str, why: str) -> CheckpointError:
    """Return the error for what a format cannot hold."""
    return CheckpointError(f"{original.name} cannot be written for {package}: {why}")
