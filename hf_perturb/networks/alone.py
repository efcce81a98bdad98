# Copyright 2026 The hf_perturb authors. MIT License: see the LICENSE file at the root of the repository.
"""Loading and saving where hf_perturb is not installed: a record is compared with what the weights say, or refused.

Nobody can compute a digest there, but the headers of the files can be read, and a seal tells whether weights changed.
"""

import copy
import json
import os
import re
from collections.abc import Callable, Mapping
from threading import get_ident
from typing import Any

import torch
from safetensors import safe_open
from transformers import modeling_utils
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils.hub import cached_file

from .record import CheckpointError, require
from .seal import altered, fingerprints, is_changed, judged, readable_metadata, refuse_incomplete, refuse_misshapen
from .sizes import places_of
from .threads import LOCK

# keywords that find a file; hf_perturb's own list of them does not travel
_PLACES = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")
_CLASSES = re.compile(r"(FairEsm|Carp)(Model|For(MaskedLM|SequenceClassification|TokenClassification))")
_INDEX = "model.safetensors.index.json"


def save_alone(model: Any, run: Callable[[], Any], state: Mapping[str, torch.Tensor] | None) -> Any:
    """Save a model, with its record in the header of every file of weights.

    Args:
        model: of this package's classes.
        run: Transformers' own way to save it.
        state: the tensors that are saved, `None` for its own.
    """
    network, found = model.recorded, fingerprints(model.recorded_tensors(state))
    record, before = judged(network, found), network._record
    if record is not None and not is_changed(record) and found != network._seal:
        record = altered(record, digest=None)  # a digest is of all tensors, those of a head too
    # of a base, nobody here knows whether its digest is still true
    model.config.set_record(record)
    write, mine = modeling_utils.safe_save_file, get_ident()

    def told(tensors: Any, filename: Any, metadata: Any = None) -> Any:
        said = {"perturbation": json.dumps(record)} if get_ident() == mine else {}
        return write(tensors, filename, metadata={**readable_metadata(metadata or {}), **said})

    with LOCK:  # Transformers has no other way to write into the header of a file
        modeling_utils.safe_save_file = told
        try:
            return run()
        finally:
            modeling_utils.safe_save_file = write
            model.config.set_record(before if state is not None else record)
            network._record = model.config.perturbation


def load_alone(cls: Any, name: Any, model_args: tuple[Any, ...], config: Any, kwargs: dict[str, Any]) -> Any:
    """Load what is stored; see `PerturbablePreTrainedModel.from_pretrained`."""
    asked = kwargs.pop("perturbation", None)
    places = {key: kwargs[key] for key in _PLACES if key in kwargs}
    if isinstance(config, str | os.PathLike):
        config = cls.config_class.from_pretrained(config, **places)
    try:
        own = config if name is None else cls.config_class.from_pretrained(name, **places)
    except OSError:  # an adapter alone, or weights that a configuration is passed for
        own = None
    record = getattr(own, "perturbation", None)
    if isinstance(config, PreTrainedConfig):  # that of another copy of these files, perhaps
        if config.perturbation != record:
            asked = config.perturbation  # the Auto classes have folded the keyword into it
        config = copy.deepcopy(config)
        config.set_record(record, getattr(own, "digest", None), of_model=False)
    if asked is not None:
        require("perturbation=, also to compare it with the record (perturbations do not stack),")
    if kwargs.pop("verify", False):
        require("verify=True")
    prefix = ""
    if own is not None and name is not None:
        headers, stored = _headers(name, places)
        record = _compared(name, record, headers, kwargs)
        prefix = places_of(cls.config_class.family, stored)[0]
    others = kwargs.get("ignore_mismatched_sizes", False)
    try:
        # Transformers' own error would not name the tensors
        more = {**kwargs, "ignore_mismatched_sizes": True}
        model, info = cls.read_weights(name, model_args, config, more, prefix)
    except OSError as error:
        if record is None or "file named" not in str(error):
            raise
        problem = f"{str(name)!r} is a recipe without weights; to make them needs the package that defines the rules"
        raise ImportError(f"{problem}: pip install hf-perturb") from error
    refuse_misshapen(name, info, others)
    is_ours = all(map(_CLASSES.fullmatch, getattr(own, "architectures", None) or [cls.__name__]))
    may_lack = model.is_of_language_head if record is None else lambda tensor: False
    refuse_incomplete(model, info, name, None, may_lack, is_ours)
    _tell(model, info, own, record)
    return model, info


def _tell(model: Any, info: Mapping[str, Any], own: Any, record: Any) -> None:
    """Record what the weights are that were just loaded, without a digest where they are not all that was stored."""
    is_other = getattr(model, "is_quantized", False) or model.dtype != getattr(own, "dtype", None)
    if model.is_ours():
        is_other |= bool(info["missing_keys"] or info["unexpected_keys"])
    else:  # what counts there, only the class that wrote it knows
        is_other |= getattr(own, "architectures", None) != [type(model).__name__]
    if record is not None and is_other and not is_changed(record):
        record = altered(record, digest=None)
    is_sealed = record is not None and not is_changed(record)
    model.recorded.told(record, fingerprints(model.recorded_tensors()) if is_sealed else None)


def _headers(name: Any, places: Mapping[str, Any]) -> tuple[list[dict[str, str]], list[str]]:
    """Return what the headers of the files of weights say, and the names of tensors; nothing for pickles.

    The files are those that Transformers would take.
    """
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    files = [cached_file(name, "model.safetensors", **places, **quiet)]
    if files == [None] and (index := cached_file(name, _INDEX, **places, **quiet)) is not None:
        with open(index, encoding="utf-8") as stream:
            shards = sorted(set(json.load(stream)["weight_map"].values()))
        files = [cached_file(name, shard, **places, **quiet) for shard in shards]
    found, names = [], []
    for file in filter(None, files):
        with safe_open(file, "pt") as opened:
            found.append(opened.metadata() or {})
            names += opened.keys()
    return found, names


def _compared(name: Any, record: Any, headers: list[dict[str, str]], kwargs: Mapping[str, Any]) -> Any:
    """Return the record, without a digest where the weights say nothing of themselves; raise if they say another."""
    is_pickle = not headers or kwargs.get("use_safetensors") is False or kwargs.get("variant") is not None
    said = [] if is_pickle else [json.loads(each["perturbation"]) for each in headers if "perturbation" in each]
    if any(each != record for each in said):
        raise CheckpointError(
            f"{str(name)!r}: config.json does not belong to these weights: they say {said[0]}, it says {record};"
            " get the files again, or save the model again"
        )
    if kwargs.get("key_mapping") and record is not None:
        raise CheckpointError("key_mapping: cannot be used with a control, because its record goes by tensor names")
    is_stated = headers and len(said) == len(headers)
    return record if record is None or is_stated or is_changed(record) else altered(record, digest=None)
