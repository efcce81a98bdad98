"""What `from_pretrained` does around Transformers': one reading of a checkpoint, and what is asked of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import is_peft_available

from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.evidence import check_record, differences
from hf_perturb.checkpoints.headers import read_files
from hf_perturb.checkpoints.network import Network
from hf_perturb.checkpoints.of_torch import mapped, tensor_of
from hf_perturb.checkpoints.origins.stock_esm import config_from_stock as config_from_stock
from hf_perturb.checkpoints.recipe import Recipe
from hf_perturb.checkpoints.request import Record, decide
from hf_perturb.checkpoints.shapes import PREFIXES, is_parameter
from hf_perturb.checkpoints.source import HUB_ARGUMENTS, Place, UndescribedError, read_json
from hf_perturb.checkpoints.tensors import Tensor, elements_of
from hf_perturb.errors import CheckpointError, DigestError, ModelInputError, PerturbationError
from hf_perturb.loading.configuration import described, families_of, family_of, given_config, of_the_hub
from hf_perturb.loading.perturb import model_of, network_of, perturb_model, quantised, seal_loaded
from hf_perturb.networks.record import same_record
from hf_perturb.networks.seal import of_network, refuse_incomplete, refuse_misshapen
from hf_perturb.perturbation import Perturbation
from hf_perturb.perturbation.digest import distinct, tensor_digest
from hf_perturb.perturbation.floats import dtype_code
from hf_perturb.perturbation.parallel import for_each
from hf_perturb.perturbation.plan import check_types

if TYPE_CHECKING:
    from hf_perturb.networks.perturbable import PerturbablePreTrainedModel

# keywords that name other weights than those that `Checkpoint.open` looks at
OTHER_WEIGHTS = ("state_dict", "gguf_file", "transformers_weights")
# keywords with which Transformers works on files
_FROM_FILES = (
    "device_map",
    "disable_mmap",
    "distributed_config",
    "device_mesh",
    "tp_plan",
    "tp_size",
    "quantization_config",
)


@dataclass(frozen=True)
class _Weights:
    """Where Transformers takes weights from.

    Args:
        source: a place that it reads them from, `None` for a `state_dict`.
        state: the tensors, where it is to read no files.
        types: that each is stored in.
        lines: what a digest says of each, where that is known without reading it.
    """

    source: Any = None
    state: dict[str, torch.Tensor] | None = None
    types: Mapping[str, str] = field(default_factory=dict)
    lines: Mapping[str, str] = field(default_factory=dict)

    def keywords(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the keywords that load them: no files are looked for where the tensors are at hand."""
        if self.state is None:
            return kwargs
        places = (*HUB_ARGUMENTS, "variant", "use_safetensors")
        return {**{key: value for key, value in kwargs.items() if key not in places}, "state_dict": self.state}


def load_model(
    cls: type[PerturbablePreTrainedModel], name: Any, model_args: tuple[Any, ...], config: Any, kwargs: dict[str, Any]
) -> tuple[PerturbablePreTrainedModel, dict[str, Any]]:
    """Load a checkpoint, and perturb it if that is asked for; see `PerturbablePreTrainedModel.from_pretrained`.

    Args:
        cls: the class that is loaded.
        name: a folder, a Hub id, a checkpoint that is opened, or `None` with a `state_dict` among the keywords.
        model_args: as in `PreTrainedModel.from_pretrained`.
        config: a configuration, where to load one from, or `None`.
        kwargs: the other keywords.

    Returns:
        The model, and what Transformers says of its tensors.

    Raises:
        ValueError: for a perturbation on top of another, or one that could not be applied while loading.
        OSError: if the checkpoint is not what its configuration says.
    """
    if not isinstance(verify := kwargs.pop("verify", False), bool):
        raise ModelInputError(f"verify: got {verify!r}; allowed: True, False")
    elsewhere = of_the_hub(kwargs)  # where another configuration is
    opened = None if name is None else _open(cls, name, config, kwargs)
    if opened is not None:
        name = opened.location
    hub = of_the_hub(kwargs)
    if verify:
        refuse_unverifiable(name, opened)
    same = isinstance(config, str | os.PathLike) and str(config) == str(name)
    config = given_config(cls, config, hub if same else elsewhere, opened)
    record, asked = _recorded_and_asked(opened, config, kwargs)
    has_weights = opened is None or not opened.is_recipe
    decision = decide(Record(f"the checkpoint {str(name)!r}", family_of(cls), record, has_weights), asked)
    is_strict = decision == "apply" or record is not None or verify
    if is_strict:
        refuse_other_sources(kwargs, record if name is None else None)
    if decision == "apply":
        _prepare_values(opened, kwargs)
    others = kwargs.pop("ignore_mismatched_sizes", False)
    weights = _Weights(name)
    if opened is not None:
        config, kwargs = described(cls, opened, config, kwargs)
        rebuild = decision == "rebuild"
        weights = _rebuilt(opened, config, hub) if rebuild else _checked_weights(cls, opened, config, verify, kwargs)
        config.name_or_path = str(name)  # while it is built, messages name it
        kwargs = weights.keywords(kwargs)
    model, info = _read(cls, weights.source, model_args, config, {**kwargs, "ignore_mismatched_sizes": True}, opened)
    if name is not None:
        # what was loaded from memory has no name of its own
        model.name_or_path = model.config.name_or_path = str(name)
    refuse_misshapen(name, info, others)
    if is_strict:
        is_ours = cls.is_ours() and not (opened is not None and opened.owner)
        refuse_incomplete(model, info, name, asked or record, lambda tensor: not is_parameter(tensor), is_ours)
    seal_loaded(model, record, weights.types, weights.lines)
    if decision == "apply":
        perturb_model(model, asked, shared=False)
    return model, info


def _recorded_and_asked(
    opened: Checkpoint | None, config: Any, kwargs: dict[str, Any]
) -> tuple[Perturbation | None, Perturbation | None]:
    """Return what was done to the weights, and what is wanted of them."""
    asked = getattr(config, "perturbation", None)
    # with a state_dict in place of a checkpoint, the config is all that describes the weights
    record = asked if opened is None else opened.record
    if same_record(asked, record):  # that of the checkpoint itself, as the Auto classes have read it
        asked = None
    if "perturbation" in kwargs:
        wanted = kwargs.pop("perturbation")
        asked = None if wanted is None else Perturbation.parse(wanted)
    return record, asked


def refuse_unverifiable(name: Any, opened: Checkpoint | None) -> None:
    """Raise if there is nothing that weights could be verified by."""
    if opened is not None and opened.has_changed:
        raise DigestError(
            f"verify: {opened.name!r} is {opened.record}: trained or edited, so no digest tells of its weights; leave"
            " verify=True out to load it"
        )
    if opened is None or (opened.stated_digest is None and (opened.record is None or not opened.stated_lines)):
        raise CheckpointError(
            f"verify: {str(name)!r} records no digest, so there is nothing to compare its weights with"
        )


def refuse_other_sources(kwargs: Mapping[str, Any], record: Perturbation | None) -> None:
    """Raise if keywords give tensors of a control, or of what becomes one, values that nothing is known of.

    Args:
        kwargs: the keywords.
        record: of a `state_dict` that is loaded in place of a checkpoint, which has a digest or is not believed.
    """
    if kwargs.get("key_mapping"):
        raise ModelInputError(
            "key_mapping: got one together with a control, perturbation= or verify=True; allowed: none there, since"
            " records go by the names of tensors; convert the checkpoint first (hf-perturb convert)"
        )
    if record is not None:
        tensors = {key: Tensor.of(tensor) for key, tensor in distinct(kwargs.get("state_dict") or {}).items()}
        check_record(Checkpoint("the state_dict", "hf_perturb", None, tensors, record=record))


def _open(cls: type[PerturbablePreTrainedModel], name: Any, config: Any, kwargs: dict[str, Any]) -> Checkpoint | None:
    """Open a checkpoint for a class, and leave in the keywords where its other files are.

    Returns:
        The checkpoint, that of its base for an adapter alone; `None` for weights without a configuration, for which
        one is passed.
    """
    for key in OTHER_WEIGHTS:
        if kwargs.get(key) is not None:
            raise ModelInputError(f"{key}: got one beside the checkpoint {str(name)!r}; allowed: one of the two")
    try:
        opened = name if isinstance(name, Checkpoint) else _opened(cls, name, config, kwargs)
    except UndescribedError as error:
        files = error.place.weights() if isinstance(config, PreTrainedConfig) else []
        if not files and (adapter := _adapter(error.place)) is not None:
            base = read_json(adapter).get("base_model_name_or_path")
            kwargs["adapter_kwargs"] = {**(kwargs.get("adapter_kwargs") or {}), "_adapter_model_path": str(name)}
            return _open(cls, base, config, kwargs)
        if not files:
            raise
        tensors, headers = read_files(files)
        record = getattr(config, "perturbation", None)
        found = Checkpoint(str(name), "hf_perturb", None, tensors, record=record, place=error.place, headers=headers)
        check_record(found)
        return None
    _refuse_other_classes(cls, opened)
    if opened.place is not None:
        kwargs.update(opened.place.arguments)
    kwargs.pop("force_download", None)  # that is done
    return opened


def _opened(cls: type[PerturbablePreTrainedModel], name: Any, config: Any, kwargs: dict[str, Any]) -> Checkpoint:
    read_as, commit = getattr(config, "_read_as", None), getattr(config, "_commit_hash", None)
    hub = of_the_hub(kwargs)
    if read_as is not None and read_as[0] == str(name) and commit and not hub.get("revision"):
        hub["revision"] = commit  # the Auto classes have looked there a moment ago
    files: dict[str, Any] = {key: kwargs.get(key) for key in ("variant", "use_safetensors")}
    return Checkpoint.open(name, hub=hub, **files, location=str(name), family=family_of(cls))


def _adapter(place: Place) -> Path | None:
    """Return what describes an adapter, `None` where there is none that could be loaded."""
    return place.find("adapter_config.json") if is_peft_available() else None


def _refuse_other_classes(cls: type[PerturbablePreTrainedModel], opened: Checkpoint) -> None:
    """Raise if a class does not load what was opened; one that somebody derived from ours loads what ours loads."""
    families, found = families_of(cls), opened.stored.get("model_type")
    if opened.origin in ("fair-esm", "sequence-models"):
        raise CheckpointError(
            f"{opened.name!r} is an original; make a base of it first: hf-perturb convert {opened.name} OUT"
        )
    if found not in families:
        found = "esm" if opened.origin == "transformers" else found
        raise CheckpointError(
            f"{opened.name!r}: model_type is {found!r}, this class loads {families[0]!r}; AutoModel finds the right"
            " class"
        )


def _checked_weights(
    cls: type[PerturbablePreTrainedModel],
    opened: Checkpoint,
    config: Any,
    verify: bool,
    kwargs: Mapping[str, Any],
) -> _Weights:
    """Look at what is stored before a network is built, and say where Transformers is to take it from.

    Raises:
        CheckpointError: if tensors are missing, unexpected, or misshapen.
        DigestError: if the weights are not those that are recorded.
    """
    foreign = opened.origin == "transformers"
    if (
        foreign
        and cls.__name__.endswith("Classification")
        and any(name.startswith("classifier.") for name in opened.tensors)
    ):
        raise CheckpointError(
            f"{cls.__name__}: the checkpoint has a classifier of Transformers' own ESM, which is built differently;"
            " load the trunk (FairEsmModel), or a masked language model and train a new classifier"
        )
    if opened.described is not None:
        opened.drop_tied()
        _refuse_other_tensors(opened, foreign, quantised=getattr(config, "quantization_config", None) is not None)
    if not opened.is_recipe:
        check_record(opened)
    # by name, as Transformers takes them: the type of the first one is that of a network whose type nobody says
    tensors = dict(sorted(opened.tensors.items()))
    own = {} if cls.is_ours() else mapped(opened.own)
    types, stated = {name: tensor.dtype for name, tensor in tensors.items()}, opened.stated_lines
    if not verify:
        if not foreign and _needs_files(opened, config, kwargs):
            return _Weights(opened.location, None, types, stated)
        return _Weights(None, own | _as_stored(opened, mapped(tensors)), types, stated)
    # what was looked at is what is loaded, whatever is written into the file
    state, lines = dict.fromkeys(tensors, torch.empty(0)), dict.fromkeys(tensors, "")

    def read(key: str) -> None:
        values = tensors[key].values()
        state[key], lines[key] = tensor_of(values), tensor_digest(values)

    for_each(read, tensors)
    tied = opened.network.tied if opened.described is not None else {}
    if problems := differences(opened, {name: line for name, line in lines.items() if name not in tied}):
        raise DigestError(
            f"{opened.name!r}: {'; '.join(problems)}; if they were damaged on the way, fetch it again"
            " (force_download=True), or ask who gave it to you"
        )
    return _Weights(None, own | _as_stored(opened, state), types, lines)


def _as_stored(opened: Checkpoint, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a network by the names that they have in the files."""
    return {opened.prefix + name: tensor for name, tensor in state.items()}


def _needs_files(opened: Checkpoint, config: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether Transformers is to read the files itself: it offloads from them, cuts them up, or adds an adapter."""
    if any(kwargs.get(key) is not None for key in _FROM_FILES) or getattr(config, "quantization_config", None):
        return True
    adapter = (kwargs.get("adapter_kwargs") or {}).get("_adapter_model_path")
    return bool(adapter or (opened.place is not None and _adapter(opened.place)))


def _refuse_other_tensors(opened: Checkpoint, foreign: bool, quantised: bool) -> None:
    network, tensors = opened.network, opened.tensors
    if quantised:  # the names of such weights are their package's own
        weights = sum(map(elements_of, network.shapes.values()))
        bits = 8 * sum(tensor.nbytes for tensor in tensors.values())
        said = f"a network of {weights:,} weights, in {bits:,} bits" if weights > bits else ""
    elif foreign or opened.unusable:
        trunk = Network(network.sizes, f"{PREFIXES[network.family]}Model")
        said = trunk.differences({key: x for key, x in opened.shapes.items() if key in trunk.shapes})
    else:
        said = network.differences(opened.shapes)
    if said:
        raise CheckpointError(f"{opened.name!r} is not what its config.json says: {said}")


@torch.inference_mode(False)
def _rebuilt(opened: Checkpoint, config: Any, hub: Mapping[str, Any]) -> _Weights:
    """Make the weights of a recipe again, and hold them against its record."""
    recipe = Recipe.of(opened)
    places = {key: value for key, value in hub.items() if key not in ("revision", "subfolder")}
    base = recipe.open_base(places)
    whole = perturb_model(model_of(base), recipe.record.with_record(None, None), shared=False)
    state = dict(whole.state_dict())
    # opened anew: the tensors of a pickle are those that were perturbed
    recipe.check(whole.config.perturbation.digest, lambda: recipe.open_base(places).digest())
    if said := opened.network.differences({name: tuple(tensor.shape) for name, tensor in state.items()}):
        raise CheckpointError(f"{opened.name!r} is not what its config.json says: {said}")
    config.tie_word_embeddings = whole.config.tie_word_embeddings
    types = {name: dtype_code(tensor.dtype) for name, tensor in state.items()}
    return _Weights(None, state, types, whole._seal or {})


def _prepare_values(opened: Checkpoint | None, kwargs: dict[str, Any]) -> None:
    """Raise if what is to be perturbed will have no plain values in memory, and copy those that are the caller's."""
    refuse_unperturbable(opened, kwargs)
    if opened is not None:
        own = opened.network.shapes
        check_types({name: each.dtype for name, each in opened.tensors.items() if name in own and is_parameter(name)})
    if kwargs.get("state_dict") is not None:
        # Transformers takes a state_dict's tensors for its own, and these are about to change
        kwargs["state_dict"] = {key: tensor.clone() for key, tensor in kwargs["state_dict"].items()}


def refuse_unperturbable(opened: Checkpoint | None, kwargs: Mapping[str, Any]) -> None:
    """Raise if a load is asked for that leaves weights quantised, on a disk, or with adapters that were trained."""
    if (kwargs.get("adapter_kwargs") or {}).get("_adapter_model_path") is not None:
        raise PerturbationError(
            "perturbation: got one for an adapter, which was trained on other weights; perturb its base, and train an"
            " adapter of that"
        )
    stored = {} if opened is None else opened.stored
    if kwargs.get("quantization_config") is not None or stored.get("quantization_config") is not None:
        raise quantised()
    device_map = kwargs.get("device_map")
    if isinstance(device_map, dict) and "disk" in device_map.values():
        raise PerturbationError(
            "perturbation: weights that are offloaded to disk cannot be perturbed while they load; build the variant"
            " first (hf-perturb create) and load that"
        )


def _read(
    cls: type[PerturbablePreTrainedModel],
    name: Any,
    model_args: tuple[Any, ...],
    config: Any,
    kwargs: Mapping[str, Any],
    opened: Checkpoint | None,
) -> tuple[PerturbablePreTrainedModel, dict[str, Any]]:
    """Let Transformers build and fill the network; where it reads files, they must be those that were opened."""
    try:
        prefix = "" if opened is None else opened.prefix
        loaded: tuple[PerturbablePreTrainedModel, dict[str, Any]]
        loaded = cls.read_weights(name, model_args, config, kwargs, prefix)
    except Exception as error:
        if name is not None and opened is not None and not opened.is_current():
            raise replaced_meanwhile(opened) from error
        if opened is not None and "quantization_config" in opened.stored and isinstance(error, TypeError | LookupError):
            raise CheckpointError(f"{opened.name!r}: its quantization_config cannot be used: {error}") from error
        raise
    if opened is not None and not (opened.is_intact() if name is None else opened.is_current()):
        raise replaced_meanwhile(opened)
    model, info = loaded
    said, is_other = info, False
    if not cls.is_ours():  # whose own modules count in no digest
        said, counted = of_network(model, info), network_of(model.recorded)
        is_other = opened is None or {*opened.tensors} - {*counted.tied} != {*counted.shapes} - {*counted.tied}
    if is_other or any(said[key] for key in ("missing_keys", "mismatched_keys", "unexpected_keys")):
        model.config.set_record(model.config.perturbation, None)  # a base's digest is that of all of it
    return loaded


def replaced_meanwhile(opened: Checkpoint) -> CheckpointError:
    """Return the error for a checkpoint whose files are no longer those that were opened."""
    return CheckpointError(f"{opened.name!r} was replaced while it was loaded; load it again")
