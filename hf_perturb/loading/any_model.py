"""Any `PreTrainedModel` in memory: perturbed in place, with the record as plain JSON in its configuration."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import nn
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import PreTrainedModel, remove_tied_weights_from_state_dict

from hf_perturb.checkpoints.any_network import AnyNetwork, DerivedTable
from hf_perturb.checkpoints.recipe import with_versions
from hf_perturb.checkpoints.request import Record, decide
from hf_perturb.checkpoints.shapes import listed
from hf_perturb.checkpoints.skeleton import Skeleton
from hf_perturb.errors import PerturbationError, StackedPerturbationError, UnsupportedModuleError
from hf_perturb.loading.degenerate import warn_of_constant_output
from hf_perturb.loading.perturb import apply_plan, check_values, quantised
from hf_perturb.networks.perturbable import PerturbablePreTrainedModel
from hf_perturb.networks.seal import is_plain, refuse_adapters
from hf_perturb.perturbation import Base, Perturbation, make_plan
from hf_perturb.perturbation.digest import digest_of
from hf_perturb.perturbation.floats import dtype_code

Model = TypeVar("Model", bound=PreTrainedModel)

_HERE: Mapping[str, tuple[Skeleton, str]] = MappingProxyType({})
_COMMIT = re.compile(r"transformers_modules\.(?:.+\.)?([0-9a-f]{40})\.")


def perturb(model: Model, perturbation: Any, *, fresh: bool = False) -> Model:
    """Perturb any model of Transformers in place, and return it.

    A model of this package is perturbed by the rules of its family, any other by those of its own classes
    (`"transformers"`). What was done is then in `model.config.perturbation`: a `Perturbation` there, and plain JSON in
    a configuration of Transformers, which `save_pretrained` writes. A second call with the same perturbation does
    nothing.

    Args:
        model: with values in memory.
        perturbation: a `Perturbation`, its dict, or a method name.
        fresh: say that the weights are those of a base, of a model of this package that was built without values or
            that another model owns, or of any other whose configuration has a record of weights that it was not built
            with.

    Raises:
        ValueError: if the perturbation is not valid here, if the weights are quantised or have no values, if another
            perturbation was applied before, or if they have changed since. They are then as they were.
        TypeError: if it is no `PreTrainedModel`, has adapters, or has weights that its loss alone uses.
    """
    if isinstance(model, PerturbablePreTrainedModel):
        model.perturb(perturbation, fresh=fresh)
        return model
    return perturb_any(model, perturbation, fresh=fresh)


@torch.inference_mode(False)  # what is built here is written to by other threads
@torch.no_grad()
def perturb_any(
    model: Model,
    perturbation: object,
    *,
    shared: bool = True,
    fresh: bool = False,
    places: Mapping[str, tuple[Skeleton, str]] = _HERE,
) -> Model:
    """Perturb a model that is none of ours; see `perturb`.

    Args:
        model: with values in memory.
        perturbation: a `Perturbation`, its dict, or a method name.
        shared: whether somebody else may hold the tensors; those that were just loaded may be given new memory.
        fresh: whether a record in its configuration is not that of its weights.
        places: of tensors, by stored name, that are drawn as those of another network, of which this is a part.
    """
    _refuse_unfit(model)
    _refuse_odd_tensors(model)
    network = LiveNetwork.of_model(model, places)
    asked = with_versions(perturbation, network)
    if not fresh and _is_done(model, asked):
        return model
    state = model.state_dict()
    tensors = {name: state[name] for name in network.shapes}
    plan = make_plan(network.table(), network.shapes, asked)
    check_values(plan, tensors, asked, {})
    stored_tensors(model)  # raises what would be raised of the digest
    network.tell_what_is_kept([asked])
    record = asked.with_record(_base_of(model), None)
    _own_configuration(model)
    write_record(model, replace(record, changed=True))  # should it be cut short
    apply_plan(plan, tensors, {} if shared else dict(model.named_parameters(remove_duplicate=False)))
    write_record(model, replace(record, digest=digest_in_memory(model)))
    warn_of_constant_output(model)
    return model


@dataclass(frozen=True)
class LiveNetwork(AnyNetwork):
    """The network of a model in memory, by the names of its own `state_dict`, a tied tensor once.

    Args:
        live: the rules that the modules at hand give.
        code: the commit of the code of its class, `None` where that is no repository's.
    """

    live: DerivedTable = field(default_factory=lambda: DerivedTable("", ()))
    code: str | None = None

    @classmethod
    def of_model(cls, model: PreTrainedModel, places: Mapping[str, tuple[Skeleton, str]] = _HERE) -> LiveNetwork:
        """Return the network of a model, which is left as it is; for `places` see `perturb_any`."""
        skeleton = Skeleton.of(model)
        kind, found = str(model.config.model_type), _COMMIT.match(f"{type(model).__module__}.")
        shapes = {skeleton.stored(name): shape for name, shape in skeleton.shapes.items() if name not in skeleton.tied}
        return cls(
            architecture=type(model).__name__,
            written={"model_type": kind},
            name=model.name_or_path or type(model).__name__,
            found=shapes,
            live=DerivedTable(kind, (), skeletons=(skeleton,), stored=places),
            code=None if found is None else found[1],
        )

    def table(self, rules: str | None = None) -> DerivedTable:
        """Return the rules that its modules give, whatever set is asked for."""
        return self.live

    @property
    def code_revision(self) -> str | None:
        """The commit of the code of its class, where that is not Transformers' own."""
        return self.code


def _is_done(model: PreTrainedModel, asked: Perturbation) -> bool:
    """Whether a perturbation is what was done to a model.

    Raises:
        StackedPerturbationError: if another was, to all of it or to a part, or if its weights have changed since.
    """
    said = _said_of(model)
    if decide(Record("this model", str(model.config.model_type), said), asked) == "apply":
        _refuse_part_that_is_perturbed(model)
        return False
    if (record := record_of(model)) is not None and record.changed:
        raise StackedPerturbationError(
            f"this model is {said} by its configuration, and its weights have another digest: they were trained,"
            " edited or cast since, are a part of those that were perturbed, or were never they; start from the base,"
            " or say fresh=True of the weights of one"
        )
    return True


def record_of(model: PreTrainedModel) -> Perturbation | None:
    """Return what its configuration says was done to a model's weights, marked where the digest is not theirs."""
    record = _said_of(model)
    # the digest of a documented control of a stock ESM is by the names that it has here
    if record is None or record.changed or record.digest is None or record.rules != "transformers":
        return record
    return record if record.digest == digest_in_memory(model) else replace(record, changed=True)


def _said_of(model: PreTrainedModel) -> Perturbation | None:
    said = getattr(model.config, "perturbation", None)
    return None if said is None else Perturbation.parse(said, "transformers")


def write_record(model: PreTrainedModel, record: Perturbation | None) -> None:
    """Say in the configuration of a model what was done to its weights, or, with `None`, nothing."""
    config: Any = model.config
    if record is not None:
        config.perturbation = record.to_dict()
        return
    for module in model.modules():  # parts may have copies of it
        vars(getattr(module, "config", config)).pop("perturbation", None)


def digest_in_memory(model: PreTrainedModel) -> str:
    """Return the digest of the weights as `save_pretrained` of Transformers would write them."""
    return digest_of(stored_tensors(model))


def stored_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the tensors that `save_pretrained` of Transformers would write, by their names in the file.

    Raises:
        PerturbationError: if it would write none.
    """
    left = model._keys_to_ignore_on_save or ()
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in left}
    stored: dict[str, torch.Tensor]
    try:
        stored = revert_weight_conversion(model, remove_tied_weights_from_state_dict(state, model))
    except RuntimeError as error:
        raise PerturbationError(
            f"perturb: Transformers could not save this {type(model).__name__}, so no digest tells of its weights:"
            f" {' '.join(str(error).split())}; give tensors that are one in memory, and not by the class, memory of"
            " their own (clone them)"
        ) from error
    return stored


def _base_of(model: PreTrainedModel) -> Base | None:
    """Return where the weights were loaded from, `None` for those that were not: a configuration has a name as well."""
    if not hasattr(model, "_weight_conversions") or not (name := model.name_or_path):
        return None
    place = Path(name)
    # whose disk it is on is nobody's business
    if place.is_absolute() or place.exists():
        return Base(place.resolve().name)
    return Base(name, getattr(model.config, "_commit_hash", None))


def _own_configuration(model: PreTrainedModel) -> None:
    """Give a model a configuration of its own: another may have been built with the same one, and has other weights."""
    shared = model.config
    own: Any = copy.copy(shared)
    for module in model.modules():
        if getattr(module, "config", None) is shared:
            module.config = own


def _refuse_unfit(model: Any) -> None:
    """Raise if an object is no model whose weights can be perturbed in memory."""
    refuse_adapters("perturb", model)
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    ours = [name for name, each in modules.items() if isinstance(each, PerturbablePreTrainedModel)]
    if ours or not isinstance(model, PreTrainedModel):
        held = ours or [name for name, each in modules.items() if isinstance(each, PreTrainedModel)]
        raise UnsupportedModuleError(
            f"perturb: got a {type(model).__name__}; allowed: a PreTrainedModel of Transformers"
            + (f", such as that which it holds, model.{held[0]}" if held else "")
            + "; an original fair-esm or sequence-models module becomes one with hf_perturb.wrap(module)"
        )


def _refuse_part_that_is_perturbed(model: PreTrainedModel) -> None:
    """Raise if a model without a record holds one that has one."""
    for each in model.modules():
        if isinstance(each, PreTrainedModel) and (said := getattr(each.config, "perturbation", None)) is not None:
            raise StackedPerturbationError(
                f"perturb: this {type(model).__name__} holds a {type(each).__name__} that is perturbed already, by"
                f" {Perturbation.parse(said)}; perturbations do not stack: start from the base"
            )


def _refuse_odd_tensors(model: PreTrainedModel) -> None:
    """Raise if tensors of a model are quantised, have no values, or are in parts."""
    state: dict[str, Any] = model.state_dict(keep_vars=True)
    odd = [name for name, each in state.items() if not is_plain(each) or _is_narrow(each)]
    if odd or getattr(model, "is_quantized", False):
        kinds = [f"{name} {dtype_code(getattr(state[name], 'dtype', type(state[name]).__name__))}" for name in odd]
        raise quantised(kinds)
    if absent := [name for name, each in state.items() if each.is_meta]:
        raise PerturbationError(
            f"perturb: tensors without values here, on the meta device or offloaded to disk or CPU: {listed(absent)};"
            " load the model whole on one device, or build the variant first (hf-perturb create) and load that"
        )
    if parts := [name for name, each in state.items() if hasattr(each, "full_tensor")]:
        raise PerturbationError(
            f"perturb: tensors that are spread over processes: {listed(parts)}; perturb the model before it is sharded"
        )


def _is_narrow(tensor: torch.Tensor) -> bool:
    """Whether a parameter is of a type that quantisers use; buffers may be of any."""
    return isinstance(tensor, nn.Parameter) and tensor.dtype.itemsize == 1 and tensor.dtype is not torch.bool
