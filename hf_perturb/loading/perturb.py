"""Perturbing models in memory, and what a model says of its weights when it is saved."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.autograd.graph import increment_version

from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.network import Network
from hf_perturb.checkpoints.of_torch import mapped, tensor_of, torch_dtype
from hf_perturb.checkpoints.recipe import with_versions
from hf_perturb.checkpoints.request import Record, decide
from hf_perturb.checkpoints.shapes import PREFIXES, listed
from hf_perturb.errors import DigestError, PerturbationError
from hf_perturb.loading.auto import import_models
from hf_perturb.networks.seal import fingerprints, is_plain, plainly, record_now as record_now, refuse_adapters
from hf_perturb.networks.sizes import is_of_network
from hf_perturb.perturbation import Perturbation, Plan, Step, make_plan, select
from hf_perturb.perturbation.digest import digest_line, digest_of_lines, distinct, lines_of
from hf_perturb.perturbation.floats import FLOATS, array_of, dtype_code, numpy_dtype
from hf_perturb.perturbation.kernels import fill
from hf_perturb.perturbation.parallel import for_each

if TYPE_CHECKING:
    from hf_perturb.networks.perturbable import PerturbablePreTrainedModel

_LOG = logging.getLogger("hf_perturb")


def network_of(model: PerturbablePreTrainedModel) -> Network:
    """Return the network of a live model; a class that somebody derived from ours has that with the same tensors."""
    config: Any = model.config
    if model.is_ours():
        return Network(config, type(model).__name__, config.num_labels or 0)
    return Network(config, f"{PREFIXES[config.family]}Model").among(model.document_names(), "")[0]


@torch.no_grad()
def perturb_model(
    model: PerturbablePreTrainedModel, perturbation: object, *, shared: bool = True, fresh: bool = False
) -> PerturbablePreTrainedModel:
    """Perturb the weights of a model, in place; see `PerturbablePreTrainedModel.perturb`.

    Args:
        model: with values in memory.
        perturbation: a `Perturbation`, its dict, or a method name.
        shared: whether somebody else may hold the tensors; those that were just loaded may be given new memory.
        fresh: whether a model that was built without values has those of a base now.
    """
    replaced = quantised_weights(model)
    is_quantised = getattr(model, "is_quantized", False) or bool(replaced)
    owner, model = model, model.recorded
    network = network_of(model)
    asked = with_versions(perturbation, network)
    model.refuse_unknown("perturb", empty=False)
    if not (fresh and model._is_empty):
        if decide(Record("this model", network.family, record_now(model)), asked) == "keep":
            return model
        model.refuse_unknown("perturb")
    if is_quantised:
        state = model.state_dict()
        raise quantised([f"{name} {dtype_code(state[name].dtype)}" if name in state else name for name in replaced])
    refuse_adapters("perturb", model)
    refuse_untied("perturb", model, model.recorded_tensors())
    rules = str(asked.rules)
    table, tensors, head = network.table(rules), model.document_tensors(rules), network.language_head
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    plan = make_plan(table, shapes, asked, network.whole(rules))
    check_values(plan, tensors, asked, network.tied)
    network.tell_what_is_kept([asked])
    model._is_torn = True
    if rules == "documented":
        owner.untie(select(table, [*tensors, *head], asked))
    own = model.document_names()
    owners = {} if shared else {name: x for name, x in model.named_parameters(remove_duplicate=False) if name in own}
    apply_plan(plan, model.document_tensors(rules), owners)
    _tell(model, asked.with_record(None, None))
    return model


def check_values(plan: Plan, tensors: Mapping[str, torch.Tensor], asked: Perturbation, tied: Mapping[str, str]) -> None:
    """Raise a `PerturbationError` if a plan cannot be run on tensors, so that nothing is changed before.

    Args:
        plan: what is to be run.
        tensors: by document name.
        asked: what the plan was made of.
        tied: names of tensors that are to be another one, and its name.
    """
    places: dict[object, str] = {}
    for step in plan.steps:
        name, tensor = step.name, tensors[step.name]
        if tensor.is_meta:
            raise PerturbationError(
                f"tensor {name!r} has no values here (it is on the meta device, or offloaded to disk or CPU);"
                " build the variant first (hf-perturb create) and load that, or load the model whole on one device"
            )
        other = places.setdefault((tensor.device, tensor.data_ptr()), name) if tensor.numel() else name
        is_repeated = any(size > 1 and not stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if is_repeated or (name not in (other, tied.get(other)) and other != tied.get(name)):
            what = "is of entries that are one in memory" if is_repeated else f"is {other!r} in memory"
            raise PerturbationError(
                f"tensor {name!r} {what}, and each would be drawn on its own; give it memory of its own (clone it)"
            )
    checks = (step.check(array_of(tensors[step.name])) for step in plan.steps if step.reads)
    # the first that can change says enough of a shuffle, which has nothing else to raise
    if any(step.reads for step in plan.steps) and not any([*checks] if asked.method == "gaussian" else checks):
        raise PerturbationError(f"{asked} changes no tensor of this model, each of which is constant; take its base")


@torch.no_grad()
def apply_plan(
    plan: Plan, tensors: Mapping[str, torch.Tensor], owners: Mapping[str, torch.nn.Parameter] | None = None
) -> None:
    """Run a plan on tensors, in place, on all processors where every step has a stream of its own.

    Args:
        plan: from `make_plan` over the same names.
        tensors: the tensors by document name; see `check_values`.
        owners: parameters that may be given new memory, faster than changing mapped pages; none that others may hold.
    """
    generator = plan.generator()

    @torch.no_grad()
    def run(step: Step) -> None:
        tensor, owner = tensors[step.name], owners.get(step.name) if owners else None
        kind = numpy_dtype(dtype_code(tensor.dtype))
        blocks = step.blocks(array_of(tensor) if step.reads else None, kind, generator)
        in_place = owner is None and not step.reads and tensor.device.type == "cpu" and tensor.is_contiguous()
        made = fill(array_of(tensor) if in_place else np.empty(step.shape, kind), blocks)
        # a mode is that of its thread
        with torch.inference_mode(tensor.is_inference()):
            if owner is not None:
                owner.data = tensor_of(made).to(tensor.device)
            elif not in_place:
                tensor.copy_(tensor_of(made))
            elif not tensor.is_inference():
                increment_version(tensor)  # or a graph that was made before would be believed

    for_each(run, plan.steps, None if generator is None else 1)


def refuse_untied(what: str, model: PerturbablePreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise if tensors that are one by the configuration hold different values, which no file could keep apart."""
    for name, source in network_of(model).tied.items():
        one, other = tensors.get(name), tensors.get(source)
        if one is None or other is None or one.is_meta or other.is_meta or one.data_ptr() == other.data_ptr():
            continue
        if one.shape != other.shape or not torch.equal(one.to(other.device), other):
            raise PerturbationError(
                f"{what}: {name} and {source} hold other values, and the configuration has them as one tensor; call"
                " model.tie_weights(), or load the weights into a model whose tie_word_embeddings is false"
            )


def record_as(model: PerturbablePreTrainedModel, perturbation: object) -> PerturbablePreTrainedModel:
    """Say what the weights of a model are that was built without values; see `PerturbablePreTrainedModel.record_as`."""
    model = model.recorded
    record, asked = None if perturbation is None else Perturbation.parse(perturbation), model._asked
    if not model._is_empty:
        known = "those of a base" if model._record is None else str(model._record)
        raise PerturbationError(
            f"record_as: got {record}; this {type(model).__name__} knows its weights, {known}; record_as is for models"
            " that were built empty"
        )
    tensors = model.state_dict()
    if absent := sorted(name for name, tensor in tensors.items() if tensor.is_meta):
        raise PerturbationError(
            f"record_as: tensors without values: {listed(absent)}; fill the model first (load_state_dict(...,"
            " assign=True))"
        )
    lines, found = lines_and_digest(model)
    if record is None and asked is not None and asked.digest == found:
        raise DigestError(f"record_as: got None; the weights are those of {asked}, by their digest {found}")
    if record is not None and record.digest is None and asked is not None and asked != record:
        raise PerturbationError(
            f"record_as: got {record}, without a digest; the model was built with a configuration that says {asked}"
        )
    if record is not None and not record.changed:
        if record.digest not in (None, found):
            raise DigestError(f"record_as: the weights have digest {found}, the record says {record.digest}")
        record = replace(record, digest=found)
    model.told(record, None if record is None or record.changed else lines)
    return model


def _tell(model: PerturbablePreTrainedModel, record: Perturbation) -> None:
    """Record a perturbation that was just applied, with the digest of what it made."""
    lines, digest = lines_and_digest(model)
    model.told(replace(record, digest=digest), lines)


def lines_and_digest(model: PerturbablePreTrainedModel) -> tuple[dict[str, str], str]:
    """Return what a digest says of each tensor of a model that has values, and the digest of them all."""
    tensors = model.recorded_tensors()
    lines = lines_of(tensors)
    return lines, digest_of_lines(counted(model, tensors, lines))


def counted(
    model: PerturbablePreTrainedModel, tensors: Mapping[str, torch.Tensor], lines: Mapping[str, str]
) -> dict[str, str]:
    """Return what counts in the digest of tensors: one that is tied once, also where a copy gave it memory of its own.

    Args:
        model: whose network they are of.
        tensors: by name.
        lines: what a digest says of each; who has none does not count.
    """
    tied = network_of(model).tied
    return {
        name: lines[name]
        for name in distinct(tensors)
        if name in lines and lines.get(tied.get(name, "")) != lines[name]
    }


def seal_loaded(
    model: PerturbablePreTrainedModel,
    record: Perturbation | None,
    types: Mapping[str, str],
    stored: Mapping[str, str],
) -> None:
    """Record what the weights are that were just loaded; a cast is not what was recorded, so it claims no digest.

    Args:
        model: what was loaded.
        record: of the checkpoint.
        types: that its tensors were stored in.
        stored: what a digest says of each of them, where that is known without reading it.
    """
    loaded = model.recorded
    network, state = network_of(loaded), plainly(loaded.state_dict())
    replaced = quantised_weights(model)
    if getattr(model, "is_quantized", False) and not any(is_of_network(network.family, name) for name in replaced):
        _tell_of_no_quantisation(model)
    if record is None or record.changed:
        kinds = {name: dtype_code(tensor.dtype) for name, tensor in state.items()}
        is_cast = bool(replaced) or any(kinds.get(name, kind) != kind for name, kind in types.items())
        loaded.told(record, None, None if is_cast else model.config.digest)
        loaded._is_empty = _lacks_values(model)
        return
    own = network.shapes.keys() - {*replaced}
    tensors = {name: tensor for name, tensor in state.items() if name in own}
    known = {name: stored[name] for name, tensor in tensors.items() if _is_as_stored(tensor, stored.get(name))}
    known |= {name: known[source] for name, source in network.tied.items() if source in known and name in tensors}
    unknown = {name: tensor for name, tensor in tensors.items() if name not in known}
    lines = {**known, **fingerprints(unknown)}
    kinds = {name: dtype_code(tensor.dtype) for name, tensor in tensors.items()}
    is_cast = any(types.get(name, kind) != kind for name, kind in kinds.items()) or not lines.keys() >= kinds.keys()
    loaded.told(replace(record, digest=None) if is_cast or replaced else record, lines)
    loaded._is_empty = _lacks_values(model)


def quantised_weights(model: PerturbablePreTrainedModel) -> list[str]:
    """Return the names of the weights that a quantiser has put something else in the place of."""
    network = model.recorded
    tensors = plainly(network.state_dict())
    # those of a byte may be a quantiser's that Transformers does not know of
    usual = all(is_plain(tensor) and tensor.dtype.itemsize > 1 for tensor in tensors.values())
    if usual and not getattr(model, "is_quantized", False):
        return []

    def is_replaced(name: str) -> bool:
        if name in tensors:
            return not is_plain(tensors[name]) or dtype_code(tensors[name].dtype) not in FLOATS
        owner = f"{name.rpartition('.')[0]}."
        return any(other.startswith(owner) for other in tensors)

    return [name for name in network_of(network).shapes if is_replaced(name)]


def _tell_of_no_quantisation(model: PerturbablePreTrainedModel) -> None:
    """Warn that a load that asked for quantised weights has none."""
    method: Any = model.config.quantization_config
    method = method.get("quant_method") if isinstance(method, dict) else method.quant_method
    _LOG.warning(
        "quantization_config: %s found nothing to quantise in the trunk of this %s, which is as large as before"
        " (quantisers replace linear layers, and a CARP has convolutions); dtype=torch.bfloat16 halves it",
        getattr(method, "value", method),
        type(model).__name__,
    )


def _lacks_values(model: PerturbablePreTrainedModel) -> bool:
    """Whether somebody has yet to fill a model; what accelerate keeps elsewhere is fetched when it is used."""
    return not hasattr(model, "hf_device_map") and any(tensor.is_meta for tensor in model.state_dict().values())


def _is_as_stored(tensor: torch.Tensor, line: str | None) -> bool:
    return line is not None and line.startswith(digest_line(dtype_code(tensor.dtype), tensor.shape, ""))


def quantised(weights: Sequence[str] = ()) -> PerturbationError:
    """Return the error for quantised weights, some of which it names."""
    return PerturbationError(
        f"perturbation: quantised weights{f' ({listed(weights)})' if weights else ''} cannot be perturbed, but those of"
        f" {', '.join(FLOATS)}; build the variant first (hf-perturb create) and load that with the quantization_config"
    )


def model_class(network: Network) -> type[PerturbablePreTrainedModel]:
    """Return the class that a network is stored as."""
    import_models()
    module = import_module(f"hf_perturb.networks.modeling_{network.family}")
    cls: type[PerturbablePreTrainedModel] = getattr(module, network.architecture)
    return cls


def model_of(checkpoint: Checkpoint) -> PerturbablePreTrainedModel:
    """Return the model of a checked checkpoint; what needs no cast stays in the files until it is used."""
    network, dtypes = checkpoint.network, checkpoint.dtypes()
    cls = model_class(network)
    config_class: Any = cls.config_class
    config = config_class.from_dict({**checkpoint.stored, **network.to_dict(), "auto_map": None})
    model = cls.without_weights(config)
    state = {name: tensor.to(torch_dtype(dtypes[name])) for name, tensor in mapped(checkpoint.tensors).items()}
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    model.told(checkpoint.record)
    return model.eval()
