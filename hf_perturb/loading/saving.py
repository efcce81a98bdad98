"""What `save_pretrained` writes beside the weights: a record that is true, in the header of their files too."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import wrapt
from huggingface_hub import ModelCard, ModelCardData
from transformers import modeling_utils

from hf_perturb.checkpoints.headers import header_metadata
from hf_perturb.checkpoints.source import WEIGHTS, of_variant
from hf_perturb.loading.perturb import counted, quantised_weights, refuse_untied
from hf_perturb.networks.seal import fingerprints, judged, readable_metadata, record_now
from hf_perturb.perturbation import Perturbation
from hf_perturb.perturbation.digest import digest_of_lines, lines_of

if TYPE_CHECKING:
    from hf_perturb.networks.perturbable import PerturbablePreTrainedModel


@dataclass
class _Saving:
    """A model that is being saved: its record or digest, what tells its tensors, and the files that were written."""

    record: Perturbation | None
    digest: str | None
    lines: dict[str, str]
    whole: str | None
    written: list[str] = field(default_factory=list)


_saving: ContextVar[_Saving | None] = ContextVar("saving", default=None)


def save_model(
    model: PerturbablePreTrainedModel, run: Callable[..., Any], directory: str | Path, *args: Any, **kwargs: Any
) -> Any:
    """Save a model as Transformers does; see `PerturbablePreTrainedModel.save_pretrained`.

    Args:
        model: which knows what its weights are.
        run: Transformers' `save_pretrained` of it.
        directory: where to.
        *args: for `run`.
        **kwargs: for `run`.
    """
    given, network = signature(run).bind(directory, *args, **kwargs).arguments, model.recorded
    if model._hf_peft_config_loaded:  # an adapter alone is saved
        done = run(directory, *args, **kwargs)
        if given.get("is_main_process", True):
            _write_adapter_card(model, Path(directory, "README.md"))
        return done
    state, digest = given.get("state_dict"), model.config.digest
    saving = _described(model, state)
    if state is None:
        digest = saving.digest
        network.told(saving.record, network._seal, saving.digest)
    # what is written may be other weights than the model's own
    model.config.set_record(saving.record, saving.digest)
    token = _saving.set(saving)
    try:
        with _without_absent_code(model, Path(directory)):
            done = run(directory, *args, **kwargs)
    finally:
        _saving.reset(token)
        model.config.set_record(network._record, digest)
    if saving.written:
        _remove_others(Path(directory), given.get("variant"), saving.written)
    return done


@contextmanager
def _without_absent_code(model: PerturbablePreTrainedModel, folder: Path) -> Iterator[None]:
    """Leave out an `auto_map` that names code which is not there; a folder that has one is sent with the code."""
    config: Any = model.config
    named, there = getattr(config, "auto_map", None) or {}, folder / "config.json"
    is_elsewhere = any("--" in str(each) for each in named.values()) or model._auto_class is not None
    if not named or is_elsewhere or (there.exists() and "auto_map" in there.read_text("utf-8", "replace")):
        yield
        return
    del config.auto_map
    try:
        yield
    finally:
        config.auto_map = named


def _described(model: PerturbablePreTrainedModel, state: Mapping[str, torch.Tensor] | None) -> _Saving:
    """Return what is true of the tensors that are saved, those of the model if there are no others."""
    prefix, network = model.placed()
    stored = model.state_dict() if state is None else state
    # what is kept on a disk came from the checkpoint, and nobody can train it
    sealed = {prefix + name: line for name, line in (network._seal or {}).items()}
    said = {**{name: line for name, line in sealed.items() if name in stored}, **fingerprints(stored)}
    tensors = model.recorded_tensors(stored)
    here = dict(zip(tensors, tensors, strict=True)) if model.is_ours() else model.document_names()
    lines = {name: said[here[name]] for name in tensors if here[name] in said}
    record, digest = judged(network, lines), model.config.digest
    if record is not None and record.base is not None and Path(record.base.name or "").is_absolute():
        # whose disk the base is on is nobody's business
        record = replace(record, base=replace(record.base, name=Path(record.base.name or "").name))
    if quantised_weights(model):
        return _Saving(record, None, {}, None)
    refuse_untied("save", network, tensors)
    whole = digest_of_lines(counted(network, tensors, lines))
    if record is not None and record.digest is not None and not record.changed:
        # that of the whole control, where this is its trunk, or has a head that was trained
        record = replace(record, digest=whole)
    return _Saving(record, digest if digest == whole else None, said, whole)


def _write_adapter_card(model: PerturbablePreTrainedModel, path: Path) -> None:
    """Say in the card of an adapter on which control it was trained, as PEFT does where it writes the adapter."""
    if (record := record_now(model)) is None:
        return
    if path.exists():
        card = ModelCard.load(path)
    else:
        data = ModelCardData(base_model=model.name_or_path or None, library_name="peft")
        name = f"`{model.name_or_path}`, " if model.name_or_path else ""
        card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n# Adapter\n\nTrained on {name}a control: {record}.\n")
    card.data.tags = sorted({*(card.data.tags or ()), *model.model_tags})
    card.save(path)


def _save_file(wrapped: Callable[..., Any], instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Write a file of weights, with the record of the model that is being saved in its header."""
    saving = _saving.get()
    if saving is None:
        return wrapped(*args, **kwargs)
    given = signature(wrapped).bind(*args, **kwargs).arguments
    tensors: Mapping[str, torch.Tensor] = given["tensors"]
    lines = {name: saving.lines[name] for name in tensors if name in saving.lines}
    if saving.whole is not None:
        lines |= lines_of({name: tensor for name, tensor in tensors.items() if name not in lines})
    saving.written.append(Path(given["filename"]).name)
    metadata = {**readable_metadata(given.get("metadata") or {}), **header_metadata(saving.record, lines, saving.whole)}
    return wrapped(tensors, given["filename"], metadata=metadata)


# Transformers has no other way to write into the header of a file
wrapt.wrap_function_wrapper(modeling_utils, "safe_save_file", _save_file)


def _remove_others(folder: Path, variant: str | None, written: list[str]) -> None:
    """Remove weights of another layout, which would be found before those that were written, or in their place."""
    whole, index, pickle, _ = (of_variant(file, variant) for file in WEIGHTS)
    names = {of_variant(file, variant) for file in WEIGHTS} - {*written}
    if whole not in written:
        names.remove(index)
    shard = re.compile(rf"{re.escape(pickle.removesuffix('.bin'))}-\d{{5}}-of-\d{{5}}\.bin")
    for file in folder.iterdir():
        if file.name in names or shard.fullmatch(file.name):
            file.unlink()
