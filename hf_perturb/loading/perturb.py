"""Perturbing models in memory, and what a model says of its weights when it is saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.network import Network
from hf_perturb.checkpoints.request import Record, decide
from hf_perturb.checkpoints.tensors import mapped
from hf_perturb.errors import PerturbationError
from hf_perturb.loading.auto import import_models
from hf_perturb.perturbation import Perturbation, apply_plan, check_values, digest_of, make_plan, select
from hf_perturb.perturbation.digest import torch_dtype

if TYPE_CHECKING:
    from hf_perturb.networks.perturbable import PerturbablePreTrainedModel


def network_of(model: PerturbablePreTrainedModel) -> Network:
    """Return the network of a live model."""
    return Network(model.config, type(model).__name__, model.config.num_labels or 0)


@torch.no_grad()
def perturb_model(
    model: PerturbablePreTrainedModel, perturbation: object, *, shared: bool = True
) -> PerturbablePreTrainedModel:
    """Perturb the weights of a model, in place; see `PerturbablePreTrainedModel.perturb`.

    Args:
        model: with values in memory.
        perturbation: a `Perturbation`, its dict, or a method name.
        shared: whether somebody else may hold the tensors; those that were just loaded may be given new memory.
    """
    if perturbation is None:
        raise PerturbationError("perturbation: got None; allowed: a method name, a dict or a Perturbation")
    asked, network = Perturbation.parse(perturbation), network_of(model)
    model.refuse_torn()
    if decide(Record("this model", network.family, model.config.perturbation), asked) == "keep" and not model._pending:
        return model
    if getattr(model, "is_quantized", False):
        raise quantised()
    tensors, head = model.document_tensors(asked.rules), network.language_head
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    plan = make_plan(network.family, shapes, asked, head)
    check_values(plan, tensors)
    model._torn = True
    if asked.rules == "documented":
        model.untie(select(network.family, [*tensors, *head], asked))
    owners = None if shared else dict(model.named_parameters(remove_duplicate=False))
    apply_plan(plan, model.document_tensors(asked.rules), owners)
    # provenance that came along is that of other weights
    model.config.perturbation, model.config.digest = asked.with_record(None, None), None
    model._torn, model._pending, model._applied = False, False, True
    return model


def describe_weights(model: PerturbablePreTrainedModel, state: Mapping[str, torch.Tensor] | None) -> None:
    """Let a configuration say nothing of the weights that is not so, and not whose disk the base is on.

    Args:
        model: about to be saved.
        state: the tensors that are saved, `None` for the model's own.
    """
    config, record = model.config, model.config.perturbation
    if record is not None and record.base is not None and Path(record.base.name or "").is_absolute():
        record = replace(record, base=replace(record.base, name=Path(record.base.name).name))
    claimed = {config.digest, None if record is None else record.digest} - {None}
    # the weights may have been cast, trained or cut to another head since they were loaded
    if claimed and _digest_now(state or model.state_dict()) not in claimed:
        config.digest, record = None, None if record is None else replace(record, digest=None)
    config.perturbation = record


def _digest_now(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Return the digest of tensors, `None` where some have no values here."""
    return None if any(tensor.is_meta for tensor in tensors.values()) else digest_of(tensors)


def quantised() -> PerturbationError:
    """Return the error for quantised weights."""
    return PerturbationError(
        "perturbation: quantised weights cannot be perturbed; build the variant first (hf-perturb create) and load"
        " that with the quantization_config"
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
    return model.eval()
