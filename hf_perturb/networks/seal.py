# Copyright 2026 The hf_perturb authors. MIT License: see the LICENSE file at the root of the repository.
"""Whether the weights of a live model are what its record says: all from its checkpoint, and none changed since.

A model keeps a fingerprint of every tensor from the moment that its record was true: its seal. Where hf_perturb is
installed that is what a digest is made of, elsewhere a checksum, which tells as well whether anything changed.
"""

import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from .record import CheckpointError, ShapeError, lines_of, parse_perturbation

Value = TypeVar("Value")
_NAMED = 8  # how many tensors a message names
_WRAPPED = re.compile(r"\.(base_layer|original_module)\b")  # by PEFT


def is_plain(value: Any) -> bool:
    """Whether what a `state_dict` holds is a tensor with its own numbers, which what a quantiser makes need not be."""
    if not isinstance(value, torch.Tensor) or type(value).__module__.partition(".")[0] != "torch":
        return False
    # one of torch's own that wraps others is spread over devices, or pruned
    return hasattr(value, "full_tensor") or not hasattr(value, "__tensor_flatten__")


def fingerprints(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return what tells a tensor from any other, for those that have values here; accelerate keeps others on a disk."""
    here = {name: tensor for name, tensor in tensors.items() if is_plain(tensor) and not tensor.is_meta}
    if lines_of is not None:
        return lines_of(here)
    return {name: _checksum(tensor) for name, tensor in here.items()}


def _checksum(tensor: torch.Tensor) -> str:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return f"{tensor.dtype} {tuple(tensor.shape)} {zlib.crc32(data)}"


def readable_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return what a quantiser says in the header of a file, without what it could not read again.

    Of names without a dot, such as ESM-1's `embed_out`, torchao tells that they are plain, and fails over them.
    """
    names = json.loads(metadata.get("tensor_names", "[]"))
    dotless = {name for name in names if "." not in name}
    if not dotless:
        return {**metadata}
    kept = {key: value for key, value in metadata.items() if key not in dotless}
    return {**kept, "tensor_names": json.dumps([name for name in names if name not in dotless])}


def plainly(named: Mapping[str, Value]) -> dict[str, Value]:
    """Return what is named by tensors under the names that these have where PEFT has wrapped nothing."""
    return {_WRAPPED.sub("", name): value for name, value in named.items()}


def altered(record: Any, **changes: Any) -> Any:
    """Return a record with other provenance; a key that is given as `None` is left out."""
    said = {**(record if isinstance(record, dict) else record.to_dict()), **changes}
    return parse_perturbation({key: value for key, value in said.items() if value is not None})


def is_changed(record: Any) -> bool:
    """Whether a record says that the weights are no longer what was made."""
    return bool(record.get("changed") if isinstance(record, dict) else record.changed)


def judged(model: Any, found: Mapping[str, str]) -> Any:
    """Return the record of weights, marked where they are no longer what it says; a downstream head may be any.

    Args:
        model: of this package's classes, which knows what its weights were.
        found: fingerprints of the tensors that are looked at.
    """
    record, seal = model._record, model._seal
    if record is None or seal is None or is_changed(record):
        return record
    here = plainly(found)
    elsewhere = {name for name, tensor in plainly(model.state_dict()).items() if is_plain(tensor) and tensor.is_meta}
    watched = {name: line for name, line in seal.items() if name not in elsewhere and not _is_downstream(name)}
    return record if watched.items() <= here.items() else altered(record, changed=True)


def record_now(model: Any) -> Any:
    """Return what was done to the weights of a model, marked where they are no longer what that made of them."""
    if model._record is None or model._seal is None:
        return model._record
    record = judged(model, fingerprints(model.state_dict()))
    if record is not model._record:
        model.told(record)
    return record


@torch.no_grad()
def cast(model: Any, run: Callable[[], Any]) -> Any:
    """Cast a control: what comes out is no longer the recorded weights, and what was changed before stays so."""
    record = record_now(model)
    done = run()
    if not is_changed(record):
        model.told(altered(record, digest=None), fingerprints(model.state_dict()))
    return done


def _is_downstream(name: str) -> bool:
    return name.startswith("classifier.")


def refuse_misshapen(name: Any, info: Mapping[str, Any], allowed: bool) -> None:
    """Raise if tensors of a checkpoint are of another shape than the network's, and that is not asked for.

    Args:
        name: of the checkpoint.
        info: what Transformers says of its tensors; its own error would not name them.
        allowed: Transformers' `ignore_mismatched_sizes=`.
    """
    if not allowed and (shapes := [*_other_shapes(info).values()]):
        raise ShapeError(f"the checkpoint {str(name)!r} has tensors of another shape: {listed(shapes)}")


def _other_shapes(info: Mapping[str, Any]) -> dict[str, str]:
    """Return how each tensor is named whose shape in a checkpoint is not that of the network."""
    return {key: f"{key} {tuple(found)} instead of {tuple(own)}" for key, found, own in info["mismatched_keys"]}


def refuse_incomplete(
    model: Any,
    info: Mapping[str, Any],
    name: Any,
    perturbed: Any,
    may_lack: Callable[[str], bool],
) -> None:
    """Raise if a model is not the whole network that its checkpoint describes; its heads may be others.

    Transformers drops what a network has no place for, and draws what a checkpoint lacks from the global random state;
    the record would still claim all of it.

    Args:
        model: what was loaded.
        info: what Transformers says of its tensors.
        name: of the checkpoint.
        perturbed: what was done to the weights, or is about to be; `None` for nothing.
        may_lack: whether a tensor may be missing; a downstream head always may.
    """
    what = "which this network has" if perturbed is None else f"which {perturbed} perturbs"
    if shapes := [said for key, said in _other_shapes(info).items() if not _is_downstream(key)]:
        raise ShapeError(
            f"the checkpoint {str(name)!r} has tensors of another shape: {listed(shapes)}; a control has the sizes that"
            " it is stored with, and only a classifier may be another one"
        )
    if lost := sorted(key for key in info["missing_keys"] if not (_is_downstream(key) or may_lack(key))):
        raise CheckpointError(
            f"the checkpoint {str(name)!r} lacks {listed(lost)}, {what}; build the variant from a base with that head"
        )
    extra = (key for key in info["unexpected_keys"] if not _is_downstream(key))
    if unused := sorted(key for key in extra if not model.is_of_language_head(key)):
        raise CheckpointError(
            f"the checkpoint {str(name)!r} has {listed(unused)}, for which this network has no place, so its record"
            " would not describe it; load it with the sizes that it is stored with"
        )


def listed(names: Sequence[str]) -> str:
    """Name the first of many names, and count the others."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
