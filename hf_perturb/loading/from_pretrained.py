"""What `from_pretrained` does around Transformers': one reading of a checkpoint, and what is asked of it."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import is_peft_available

from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.network import Network
from hf_perturb.checkpoints.origins.stock_esm import config_from_stock as config_from_stock
from hf_perturb.checkpoints.recipe import Recipe
from hf_perturb.checkpoints.request import Record, decide
from hf_perturb.checkpoints.shapes import PREFIXES, is_parameter
from hf_perturb.checkpoints.source import HUB_ARGUMENTS, Place, UndescribedError
from hf_perturb.checkpoints.tensors import elements_of, mapped, read_tensors
from hf_perturb.errors import CheckpointError, DigestError, ModelInputError, PerturbationError
from hf_perturb.loading.perturb import model_of, network_of, perturb_model, quantised
from hf_perturb.networks.perturbable import refuse_incomplete
from hf_perturb.perturbation import Perturbation, digest_of, select

if TYPE_CHECKING:
    from hf_perturb.networks.perturbable import PerturbablePreTrainedModel

# keywords that name other weights than those that `Checkpoint.open` looks at
_OTHER_WEIGHTS = ("state_dict", "gguf_file", "transformers_weights")
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
# keywords that belong to the loading, and that a configuration would swallow
_TYPES = ("dtype", "torch_dtype", "quantization_config")


def load(
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
    elsewhere = _of_the_hub(kwargs)  # where another configuration is
    opened = None if name is None else _open(cls, name, config, kwargs)
    if opened is not None:
        name = opened.location
    hub = _of_the_hub(kwargs)
    if verify and (opened is None or opened.stated_digest is None):
        raise CheckpointError(
            f"verify: {str(name)!r} records no digest, so there is nothing to compare its weights with"
        )
    same = isinstance(config, str | os.PathLike) and str(config) == str(name)
    config = _given_config(cls, config, hub if same else elsewhere, opened)
    # with a state_dict in place of a checkpoint, the config is all that describes the weights
    asked = getattr(config, "perturbation", None)
    record = asked if opened is None else opened.record
    if "perturbation" in kwargs:
        wanted = kwargs.pop("perturbation")
        asked = None if wanted is None else Perturbation.parse(wanted)
    has_weights = opened is None or not opened.is_recipe
    decision = decide(Record(f"the checkpoint {str(name)!r}", _family(cls), record, has_weights), asked)
    if decision == "apply":
        _prepare_values(opened, kwargs)
    source, state = name, None
    if opened is not None:
        config, kwargs = _described(cls, opened, config, kwargs)
        rebuild = decision == "rebuild"
        state = _rebuilt(opened, config, hub) if rebuild else _checked_state(cls, opened, config, verify, kwargs)
        config.name_or_path = str(name)  # while it is built, messages name it
    if state is not None:
        kept = {key: value for key, value in kwargs.items() if key not in (*hub, "variant", "use_safetensors")}
        source, kwargs = None, {**kept, "state_dict": state}
    model, info = _read(cls, source, model_args, config, kwargs, opened)
    if name is not None:
        # what was loaded from memory has no name of its own
        model.name_or_path = model.config.name_or_path = str(name)
    _refuse_incomplete(model, info, name, asked if decision == "apply" else record)
    if decision == "apply":
        perturb_model(model, asked, shared=False)
    return model, info


def _refuse_incomplete(
    model: PerturbablePreTrainedModel, info: Mapping[str, Any], name: Any, perturbed: Perturbation | None
) -> None:
    """Raise if tensors that are, or will be, perturbed did not come from the checkpoint."""
    if perturbed is not None:
        family, head = _family(type(model)), network_of(model).language_head
        chosen = select(family, [*model.document_tensors(), *head], perturbed)

        def may_lack(tensor: str) -> bool:
            return tensor not in chosen and (tensor in head or not is_parameter(tensor))

        refuse_incomplete(model, info, name, perturbed, may_lack)


def _family(cls: type[PerturbablePreTrainedModel]) -> str:
    """Return the family of a class, that of ours for one that somebody derived from it."""
    return next(family for family in _families(cls) if family in PREFIXES)


def _families(cls: type[PerturbablePreTrainedModel]) -> list[str]:
    parents = cls.config_class.__mro__
    return [found for parent in parents if isinstance(found := getattr(parent, "model_type", None), str) and found]


def _open(cls: type[PerturbablePreTrainedModel], name: Any, config: Any, kwargs: dict[str, Any]) -> Checkpoint | None:
    """Open a checkpoint for a class, and leave in the keywords where its other files are.

    Returns:
        The checkpoint; `None` for one that is not described: an adapter alone, whose base Transformers finds, or
        weights for the configuration that is passed.
    """
    for key in _OTHER_WEIGHTS:
        if kwargs.get(key) is not None:
            raise ModelInputError(f"{key}: got one beside the checkpoint {str(name)!r}; allowed: one of the two")
    try:
        opened = name if isinstance(name, Checkpoint) else _opened(cls, name, config, kwargs)
    except UndescribedError as error:
        files = error.place.weights() if isinstance(config, PreTrainedConfig) else []
        for file in files:
            read_tensors(file)  # Transformers would not name one that is damaged
        if not files and not _is_adapter(error.place):
            raise
        return None
    _refuse_other_classes(cls, opened)
    if opened.place is not None:
        kwargs.update(opened.place.arguments)
    kwargs.pop("force_download", None)  # that is done
    return opened


def _opened(cls: type[PerturbablePreTrainedModel], name: Any, config: Any, kwargs: dict[str, Any]) -> Checkpoint:
    read_as, commit = getattr(config, "_read_as", None), getattr(config, "_commit_hash", None)
    hub = _of_the_hub(kwargs)
    if read_as is not None and read_as[0] == str(name) and commit and not hub.get("revision"):
        hub["revision"] = commit  # the Auto classes have looked there a moment ago
    files: dict[str, Any] = {key: kwargs.get(key) for key in ("variant", "use_safetensors")}
    return Checkpoint.open(name, hub=hub, **files, location=str(name), family=_family(cls))


def _of_the_hub(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}


def _is_adapter(place: Place) -> bool:
    return is_peft_available() and place.find("adapter_config.json") is not None


def _refuse_other_classes(cls: type[PerturbablePreTrainedModel], opened: Checkpoint) -> None:
    """Raise if a class does not load what was opened; one that somebody derived from ours loads what ours loads."""
    families, found = _families(cls), opened.stored.get("model_type")
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


def _given_config(
    cls: type[PerturbablePreTrainedModel], config: Any, hub: Mapping[str, Any], opened: Checkpoint | None
) -> Any:
    """Return a copy of the configuration that was passed, as one of the class; `None` for none."""
    config_class: Any = cls.config_class
    if config is None:
        return None
    if not isinstance(config, PreTrainedConfig):
        return config_class.from_pretrained(config, **hub)
    if (ours := config_class.read_stored(theirs := config.to_dict())) is not theirs:
        return config_class.from_dict(ours, attn_implementation=config._attn_implementation)
    read_as = getattr(config, "_read_as", None)
    # the Auto classes have read the same config.json a moment ago
    if opened is not None and opened.is_local and read_as is not None and read_as[0] == opened.name:
        then, now = (
            {key: value for key, value in said.items() if not key.startswith("_")}
            for said in ({"model_type": _family(cls), **json.loads(read_as[1])}, opened.stored)
        )
        if then != now:
            raise CheckpointError(
                f"config: was read from {opened.name!r} before its config.json was replaced; read it again, or leave it"
                " out"
            )
    return copy.deepcopy(config)


def _described(
    cls: type[PerturbablePreTrainedModel], opened: Checkpoint, config: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return a configuration that says of the weights what the checkpoint says, and the keywords that it left."""
    config_class: Any = cls.config_class
    kwargs = dict(kwargs)
    try:
        own = config_class.from_dict(opened.stored)
        tied = kwargs.pop("tie_word_embeddings", own.tie_word_embeddings)
        if config is None:
            hub = {key: kwargs.pop(key) for key in HUB_ARGUMENTS if key in kwargs}
            files: dict[str, Any] = {key: kwargs.pop(key) for key in ("variant", "use_safetensors") if key in kwargs}
            types = {key: kwargs.pop(key) for key in _TYPES if key in kwargs}
            config, left = config_class.from_dict(opened.stored, return_unused_kwargs=True, **kwargs)
            kwargs = {**hub, **files, **types, **left}
    except (ValueError, StrictDataclassError) as error:
        raise CheckpointError(f"{opened.name!r}: its config.json cannot be used: {error}") from error
    if bool(tied) != bool(own.tie_word_embeddings):
        raise PerturbationError(
            f"tie_word_embeddings: got {tied}; the checkpoint {opened.name!r} is stored with {own.tie_word_embeddings},"
            " which decides; a perturbation of lm_head.weight unties it"
        )
    for key in ("tie_word_embeddings", "digest", "published_as"):
        setattr(config, key, getattr(own, key))
    vars(config).pop("transformers_weights", None)  # other weights than those that were looked at
    config.perturbation = opened.record
    if opened.described is not None and opened.network.family == "fair_esm":
        config.contact_head = opened.network.sizes.contact_head and config.contact_head
    return config, kwargs


def _checked_state(
    cls: type[PerturbablePreTrainedModel],
    opened: Checkpoint,
    config: Any,
    verify: bool,
    kwargs: Mapping[str, Any],
) -> dict[str, Any] | None:
    """Look at what is stored before a network is built; return it, or `None` where Transformers is to read the files.

    Raises:
        CheckpointError: if tensors are missing, unexpected, or misshapen.
        DigestError: if the weights are not those that are recorded.
    """
    foreign = opened.origin == "transformers"
    if foreign and cls.__name__.endswith("Classification") and any(map(_is_classifier, opened.tensors)):
        raise CheckpointError(
            f"{cls.__name__}: the checkpoint has a classifier of Transformers' own ESM, which is built differently;"
            " load the trunk (FairEsmModel), or a masked language model and train a new classifier"
        )
    if opened.described is not None:
        opened.drop_tied()
        _refuse_other_tensors(opened, foreign, quantised=getattr(config, "quantization_config", None) is not None)
    # by name, as Transformers takes them: the type of the first one is that of a network whose type nobody says
    tensors = dict(sorted(opened.tensors.items()))
    if not verify:
        return mapped(tensors) if foreign or not _needs_files(opened, config, kwargs) else None
    # what was looked at is what is loaded, whatever is written into the file
    state = {name: tensor.values() for name, tensor in tensors.items()}
    if problems := opened.other_records():
        raise DigestError(f"{opened.name!r}: {'; '.join(problems)}: its record was changed")
    tied = opened.network.tied if opened.described is not None else {}
    found = digest_of({name: tensor for name, tensor in state.items() if name not in tied})
    if found != opened.stated_digest:
        raise DigestError(
            f"{opened.name!r} has weights with digest {found}, its config.json says {opened.stated_digest}: they were"
            " damaged on the way, or changed since; fetch it again (force_download=True), or ask who gave it to you"
        )
    return state


def _needs_files(opened: Checkpoint, config: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether Transformers is to read the files itself: it offloads from them, cuts them up, or adds an adapter."""
    if any(kwargs.get(key) is not None for key in _FROM_FILES) or getattr(config, "quantization_config", None):
        return True
    adapter = (kwargs.get("adapter_kwargs") or {}).get("_adapter_model_path")
    return bool(adapter or (opened.place is not None and _is_adapter(opened.place)))


def _is_classifier(name: str) -> bool:
    return name.startswith("classifier.")


def _refuse_other_tensors(opened: Checkpoint, foreign: bool, quantised: bool) -> None:
    network, tensors = opened.network, opened.tensors
    if quantised:  # the names of such weights are their package's own
        weights = sum(map(elements_of, network.shapes.values()))
        bits = 8 * sum(tensor.nbytes for tensor in tensors.values())
        said = f"a network of {weights:,} weights, in {bits:,} bits" if weights > bits else ""
    elif foreign or opened.unusable:
        trunk = Network(network.sizes, f"{PREFIXES[network.family]}Model")
        # buffers follow from the sizes, and others may leave them out
        buffers = {name: shape for name, shape in trunk.shapes.items() if not is_parameter(name)}
        said = trunk.differences({**buffers, **{key: x for key, x in opened.shapes.items() if key in trunk.shapes}})
    else:
        said = network.differences(opened.shapes)
    if said:
        raise CheckpointError(f"{opened.name!r} is not what its config.json says: {said}")


@torch.inference_mode(False)
def _rebuilt(opened: Checkpoint, config: Any, hub: Mapping[str, Any]) -> dict[str, Any]:
    """Make the weights of a recipe again, and hold them against its record."""
    recipe = Recipe.of(opened)
    places = {key: value for key, value in hub.items() if key not in ("revision", "subfolder")}
    base = recipe.open_base(places)
    whole = perturb_model(model_of(base), recipe.record.with_record(None, None), shared=False)
    state = dict(whole.state_dict())
    # opened anew: the tensors of a pickle are those that were perturbed
    recipe.check(digest_of(state), lambda: recipe.open_base(places).digest())
    if said := opened.network.differences({name: tuple(tensor.shape) for name, tensor in state.items()}):
        raise CheckpointError(f"{opened.name!r} is not what its config.json says: {said}")
    config.tie_word_embeddings = whole.config.tie_word_embeddings
    return state


def _prepare_values(opened: Checkpoint | None, kwargs: dict[str, Any]) -> None:
    """Raise if what is to be perturbed will have no plain values in memory, and copy those that are the caller's."""
    stored = {} if opened is None else opened.stored
    if kwargs.get("quantization_config") is not None or stored.get("quantization_config") is not None:
        raise quantised()
    device_map = kwargs.get("device_map")
    if isinstance(device_map, dict) and "disk" in device_map.values():
        raise PerturbationError(
            "perturbation: weights that are offloaded to disk cannot be perturbed while they load; build the variant"
            " first (hf-perturb create) and load that"
        )
    if kwargs.get("state_dict") is not None:
        # Transformers takes a state_dict's tensors for its own, and these are about to change
        kwargs["state_dict"] = {key: tensor.clone() for key, tensor in kwargs["state_dict"].items()}


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
        loaded: tuple[PerturbablePreTrainedModel, dict[str, Any]] = cls.read_weights(name, model_args, config, kwargs)
    except Exception as error:
        if name is not None and opened is not None and not opened.is_current():
            raise _changed(opened) from error
        raise
    if opened is not None and not (opened.is_intact() if name is None else opened.is_current()):
        raise _changed(opened)
    return loaded


def _changed(opened: Checkpoint) -> CheckpointError:
    return CheckpointError(f"{opened.name!r} was replaced while it was loaded; load it again")
