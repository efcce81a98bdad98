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

from .record import CheckpointError, ShapeError, UnsupportedModuleError, lines_of, parse_perturbation
from .sizes import FIRST, NAMES

Value = TypeVar("Value")
_NAMED = 8  # how many tensors a message names
# what a configuration says of weights and where they were read, which those of the network decide
_SAID_OF_WEIGHTS = ("perturbation", "digest", "tie_word_embeddings", "_name_or_path", "torch_version", "architectures")
_WRAPPERS = re.compile(r"_(fsdp|checkpoint)_wrapped_module\.")
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


def refuse_adapters(what: str, module: Any) -> None:
    """Raise a `TypeError` if PEFT has put adapters into a model, or if it is a model of PEFT's."""
    named = module.named_modules() if isinstance(module, torch.nn.Module) else ()
    is_wrapped = any(_WRAPPED.search(f".{name}") for name, _ in named)
    if is_wrapped or type(module).__module__.partition(".")[0] == "peft":
        raise UnsupportedModuleError(
            f"{what}: got a {type(module).__name__} with adapters of PEFT; allowed: one without; {what} first, then add"
            " adapters; or merge them (merge_and_unload), or take them out (unload)"
        )


def altered(record: Any, **changes: Any) -> Any:
    """Return a record with other provenance; a key that is given as `None` is left out."""
    said = {**(record if isinstance(record, dict) else record.to_dict()), **changes}
    return parse_perturbation({key: value for key, value in said.items() if value is not None})


def is_changed(record: Any) -> bool:
    """Whether a record says that the weights are no longer what was made."""
    return bool(record.get("changed") if isinstance(record, dict) else record.changed)


def judged(model: Any, found: Mapping[str, str]) -> Any:
    """Return the record of weights, marked where they are no longer what it says; a head on top may be any.

    Args:
        model: the network, which knows what its weights were.
        found: fingerprints of the tensors that are looked at, by document name.
    """
    record, seal = model._record, model._seal
    if record is None or seal is None or is_changed(record):
        return record
    here = plainly(found)
    elsewhere = {name for name, tensor in plainly(model.state_dict()).items() if is_plain(tensor) and tensor.is_meta}
    watched = {name: line for name, line in seal.items() if name in model._sealed and name not in elsewhere}
    return record if watched.items() <= here.items() else altered(record, changed=True)


def record_now(model: Any) -> Any:
    """Return what was done to the weights of a model, marked where they are no longer what that made of them."""
    network = model.recorded
    if network._record is None or network._seal is None:
        return network._record
    state = plainly(network.state_dict())
    record = judged(network, fingerprints({name: state[name] for name in network._sealed if name in state}))
    if record is not network._record:
        network.told(record)
    return record


@torch.no_grad()
def cast(model: Any, run: Callable[[], Any]) -> Any:
    """Cast a control: what comes out is no longer the recorded weights, and what was changed before stays so."""
    record = record_now(model)
    done = run()
    if not is_changed(record):
        model.told(altered(record, digest=None), fingerprints(model.state_dict()))
    return done


def the_network(model: Any, held: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the network among the models of this package that a model is or holds; see `placed`."""
    held = {name: each for name, each in held.items() if "modules_to_save" not in name}  # copies that PEFT trains
    place = max(held, key=len)
    for name, each in held.items():
        is_owner = not name or f"{place}.".startswith(f"{name}.")
        if name != place and (not is_owner or FIRST[each.config.family] in dict(each.named_parameters())):
            raise UnsupportedModuleError(
                f"{type(model).__name__}: holds two networks ({name or 'itself'}, {place}), and its config.json tells"
                " of one; allowed: one; a class derived from PreTrainedModel, with a configuration of its own, may hold"
                " several"
            )
    # what wraps a module for training in parts has no place in the names of tensors
    return _WRAPPERS.sub("", f"{place}.") if place else "", held[place]


def share_config(model: Any, network: Any) -> None:
    """Give a model and the network that it holds one configuration: both say the same of its weights."""
    own, theirs = model.config.to_dict(), network.config.to_dict()
    other = sorted(key for key in {*own, *theirs} - {*_SAID_OF_WEIGHTS} if own.get(key) != theirs.get(key))
    if type(model.config) is not type(network.config) or other:
        name = type(network).__name__
        raise UnsupportedModuleError(
            f"{type(model).__name__}: the {name} that it holds was built with another configuration than its own, which"
            f" is what its config.json tells of ({listed(other) or type(network.config).__name__}); allowed:"
            f" {name}(self.config)"
        )
    model.config = network.config


def unread(network: Any, prefix: str) -> set[str]:
    """Return patterns of what a model that holds a network leaves in a checkpoint, as it is named there and here."""
    patterns = network._keys_to_ignore_on_load_unexpected or ()
    return {each.replace("^", place) for each in patterns for place in ("^", f"^{re.escape(prefix)}")}


def of_network(model: Any, info: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return what Transformers says of the tensors that it loaded, of the network's alone, by document name.

    What else a model has, or a checkpoint, is a head on top or somebody's own, and may be any.
    """
    prefix, network = model.placed()
    ours = {here: name for name, here in model.document_names().items()}
    known = re.compile(re.escape(prefix) + f"({NAMES[network.config.family]})")
    return {
        "missing_keys": sorted(ours[key] for key in info["missing_keys"] if key in ours),
        "unexpected_keys": sorted(key.removeprefix(prefix) for key in info["unexpected_keys"] if known.fullmatch(key)),
        "other_keys": sorted(key for key in info["unexpected_keys"] if not known.fullmatch(key)),
        "mismatched_keys": [(ours[key], *rest) for key, *rest in info["mismatched_keys"] if key in ours],
    }


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
    is_ours: bool,
) -> None:
    """Raise if a model is not the whole network that its checkpoint describes; its heads may be others.

    Transformers drops what a network has no place for, and draws what a checkpoint lacks from the global random state;
    the record would still claim all of it.

    Args:
        model: what was loaded.
        info: what Transformers says of its tensors.
        name: of the checkpoint.
        perturbed: what was done to the weights, or is about to be; `None` for nothing.
        may_lack: whether a tensor may be missing; a head on top always may.
        is_ours: whether a class of this package stored it, which has a classifier on top and nothing else.
    """
    what = "which this network has" if perturbed is None else f"which {perturbed} perturbs"
    info = of_network(model, info)
    if shapes := [*_other_shapes(info).values()]:
        raise ShapeError(
            f"the checkpoint {str(name)!r} has tensors of another shape: {listed(shapes)}; a control has the sizes that"
            " it is stored with, and only a head on top may be another one"
        )
    if lost := [key for key in info["missing_keys"] if not may_lack(key)]:
        raise CheckpointError(
            f"the checkpoint {str(name)!r} lacks {listed(lost)}, {what}; build the variant from a base with that head"
        )
    unused = [key for key in info["unexpected_keys"] if not model.is_of_language_head(key)]
    if is_ours:
        unused += [key for key in info["other_keys"] if not key.startswith("classifier.")]
    if unused:
        raise CheckpointError(
            f"the checkpoint {str(name)!r} has {listed(unused)}, for which this network has no place, so its record"
            " would not describe it; load it with the sizes that it is stored with"
        )


def listed(names: Sequence[str]) -> str:
    """Name the first of many names, and count the others."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
