"""`from_pretrained` of any network of Transformers: its record, its recipe, or a perturbation that is asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import transformers
from transformers import AutoModel
from transformers.modeling_utils import PreTrainedModel

from hf_perturb.checkpoints.any_network import AnyNetwork
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.conversions import conversions_of
from hf_perturb.checkpoints.evidence import check_record, differences
from hf_perturb.checkpoints.of_torch import tensor_of
from hf_perturb.checkpoints.recipe import Recipe, other_sizes
from hf_perturb.checkpoints.request import Record, decide
from hf_perturb.checkpoints.shapes import AUTO_CLASSES, PREFIXES, listed
from hf_perturb.checkpoints.skeleton import Skeleton
from hf_perturb.errors import CheckpointError, DigestError, ModelInputError, PerturbationError, ShapeError
from hf_perturb.loading.any_model import digest_in_memory, perturb_any, stored_tensors, write_record
from hf_perturb.loading.configuration import of_the_hub
from hf_perturb.loading.from_pretrained import (
    OTHER_WEIGHTS,
    refuse_other_sources,
    refuse_unperturbable,
    refuse_unverifiable,
    replaced_meanwhile,
)
from hf_perturb.loading.perturb import model_class
from hf_perturb.networks.perturbable import PerturbablePreTrainedModel
from hf_perturb.perturbation import Perturbation, Step, make_plan
from hf_perturb.perturbation.digest import digest_of_lines, tensor_digest
from hf_perturb.perturbation.floats import Array, dtype_code
from hf_perturb.perturbation.parallel import for_each

_LOG = logging.getLogger("hf_perturb")
_TYPES = ("dtype", "torch_dtype")


def from_pretrained(
    name: Any,
    *,
    auto_class: Any = AutoModel,
    perturbation: Any = None,
    verify: bool = False,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> Any:
    """Load any checkpoint of Transformers: a control as it is, a recipe made again, a base, or that perturbed.

    A checkpoint of one of our families, a stock ESM among them, is loaded as a class of this package, unless the rules
    that are recorded or asked for are `"transformers"`; any other as `auto_class` loads it.

    Args:
        name: a folder or Hub id, or a `Checkpoint` that is opened.
        auto_class: a class of Transformers such as `AutoModelForMaskedLM`, its name, or the class of a model.
        perturbation: what to do to a base: a `Perturbation`, its dict, or a method name.
        verify: compare the stored weights with the recorded digest.
        trust_remote_code: run the code that comes with a network that Transformers does not have.
        **kwargs: what `auto_class.from_pretrained` takes.

    Returns:
        The model; with `output_loading_info=True` also what Transformers says of its tensors.

    Raises:
        ValueError: if another perturbation is asked for than the one that is recorded, any of weights that changed
            since, or one together with quantised loading, offloading to disk, or adapters.
        OSError: if the checkpoint is not what its configuration or its record says, or if a recipe's base is gone.
    """
    cls = _class_of(auto_class)
    asked = None if perturbation is None else Perturbation.parse(perturbation)
    if not isinstance(verify, bool):
        raise ModelInputError(f"verify: got {verify!r}; allowed: True, False")
    is_ours, source = issubclass(cls, PerturbablePreTrainedModel), name
    if not is_ours:
        source = _opened(name, cls, asked, trust_remote_code, kwargs)
        if isinstance(source.described, AnyNetwork):
            with_info = kwargs.pop("output_loading_info", False)
            loaded = _Loading(cls, source, trust_remote_code, kwargs).run(asked, verify)
            return loaded if with_info else loaded[0]
        cls = _class_of_ours(source, cls)
    given = {} if asked is None else {"perturbation": asked}
    return cls.from_pretrained(source, verify=verify, **given, **kwargs)


def _class_of(auto_class: Any) -> Any:
    """Return a class that loads models, which may be given by its name."""
    cls = getattr(transformers, auto_class, None) if isinstance(auto_class, str) else auto_class
    is_auto = isinstance(cls, type) and cls.__name__.startswith("AutoModel")
    if is_auto or (isinstance(cls, type) and issubclass(cls, PreTrainedModel)):
        return cls
    raise ModelInputError(
        f"auto_class: got {auto_class!r}; allowed: an Auto class of Transformers such as AutoModel or"
        " AutoModelForMaskedLM, its name, or the class of a model"
    )


def _class_of_ours(opened: Checkpoint, cls: Any) -> Any:
    """Return the class of ours that loads what an Auto class would load."""
    network = opened.network
    if (head := AUTO_CLASSES.get(cls.__name__)) is None:
        raise ModelInputError(
            f"auto_class: got {cls.__name__} for {opened.name!r}, a network of the family {network.family}; allowed:"
            f" {', '.join(AUTO_CLASSES)}"
        )
    return model_class(replace(network, architecture=PREFIXES[network.family] + head))


def _opened(
    name: Any, cls: Any, asked: Perturbation | None, trust_remote_code: bool, kwargs: Mapping[str, Any]
) -> Checkpoint:
    for key in OTHER_WEIGHTS:
        if kwargs.get(key) is not None:
            raise ModelInputError(
                f"{key}: got one beside the checkpoint {str(name)!r}; allowed: the weights of the checkpoint, which are"
                " compared with its record, in .safetensors or .bin files"
            )
    if isinstance(name, Checkpoint):
        return name
    # a class of Transformers' own is no class of ours, whatever the rules
    rules = "transformers" if issubclass(cls, PreTrainedModel) else (asked.rules if asked is not None else None)
    files: dict[str, Any] = {key: kwargs.get(key) for key in ("variant", "use_safetensors")}
    given: dict[str, Any] = {"rules": rules, "trust_remote_code": trust_remote_code}
    return Checkpoint.open(name, hub=of_the_hub(kwargs), **files, **given)


@dataclass(frozen=True)
class _Loading:
    """A checkpoint of a network that is none of ours, which is to be loaded.

    Args:
        cls: that loads it.
        opened: the checkpoint.
        trust_remote_code: whether code that comes with it may be run.
        kwargs: for the class.
    """

    cls: Any
    opened: Checkpoint
    trust_remote_code: bool
    kwargs: dict[str, Any]

    def run(self, asked: Perturbation | None, verify: bool) -> tuple[Any, dict[str, Any]]:
        """Load it, and do what is asked for."""
        opened, config = self.opened, self.kwargs.get("config")
        if asked is None and (said := getattr(config, "perturbation", None)) is not None:
            asked = Perturbation.parse(said, "transformers")
        _check_weights(opened, verify)
        record, family = opened.record, opened.network.family
        decision = decide(Record(f"the checkpoint {opened.name!r}", family, record, not opened.is_recipe), asked)
        if decision == "keep" and record is None and not verify:
            return self._read(opened)
        refuse_other_sources(self.kwargs, None)
        if decision != "keep":
            refuse_unperturbable(opened, self.kwargs)
        if decision == "rebuild":
            return self._rebuilt()
        model, info = self._read(opened)
        added = _added(model, info, opened, asked or record)
        write_record(model, None)  # a configuration that was passed may say anything
        if decision == "apply" and asked is not None:
            _draw_what_is_new(model, added, asked)
            perturb_any(model, asked, shared=False, places=_places(model, opened))
        elif record is not None:
            _tell_of_what_is_new(model, added)
            write_record(model, _as_loaded(model, opened, record))
        return model, info

    def _read(self, opened: Checkpoint, **changes: Any) -> tuple[Any, dict[str, Any]]:
        """Let Transformers build and fill the network of the files that were opened."""
        place = {} if opened.place is None else opened.place.arguments
        given = {key: value for key, value in {**self.kwargs, **place, **changes}.items() if key != "force_download"}
        given |= {"output_loading_info": True, "trust_remote_code": self.trust_remote_code}
        model, info = self.cls.from_pretrained(opened.location, **given)
        if not opened.is_current():
            raise replaced_meanwhile(opened)
        return model, info

    def _rebuilt(self) -> tuple[Any, dict[str, Any]]:
        """Make a recipe again from its base, in the type of that, and cast it then if another is asked for."""
        opened, recipe = self.opened, Recipe.of(self.opened)
        places = {key: value for key, value in of_the_hub(self.kwargs).items() if key not in ("revision", "subfolder")}
        base = recipe.open_base(places, self.trust_remote_code)
        if problems := other_sizes(opened, base):
            raise CheckpointError(
                f"the recipe {opened.name!r} is for another network than its base: {'; '.join(problems)}"
            )
        dtype = next((self.kwargs[key] for key in _TYPES if self.kwargs.get(key) is not None), None)
        model, info = self._read(base, **dict.fromkeys(_TYPES & self.kwargs.keys(), "auto"))
        added = _added(model, info, base, recipe.record)
        write_record(model, None)
        _draw_what_is_new(model, added, recipe.record)
        asked = recipe.record.with_record(None, None)
        perturb_any(model, asked, shared=False, places=_places(model, base))
        digest = model.config.perturbation["digest"]
        if digest != recipe.record.digest:  # by another class than its own, or by other names
            digest = _digest_of_all(base, recipe.record)
        recipe.check(digest, base.digest)
        if dtype not in (None, "auto"):
            made_of_base, (model, info) = model.state_dict(), self._read(base)
            with torch.no_grad():
                for name, tensor in model.state_dict().items():
                    tensor.copy_(made_of_base[name])
        model.name_or_path = model.config.name_or_path = opened.name
        write_record(model, replace(recipe.record, digest=digest_in_memory(model)))
        return model, info


def _check_weights(opened: Checkpoint, verify: bool) -> None:
    """Raise if the weights are not those that are recorded; those that changed since are noted, and warned of.

    Args:
        opened: the checkpoint.
        verify: whether to read the weights also where their headers say what they are.
    """
    if verify:
        refuse_unverifiable(opened.name, opened)
    check_record(opened)
    is_to_be_read = verify and not opened.is_recipe and not opened.has_changed
    if is_to_be_read and (problems := differences(opened, opened.lines())):
        raise DigestError(
            f"{opened.name!r}: {'; '.join(problems)}; if they were damaged on the way, fetch it again"
            " (force_download=True), or ask who gave it to you"
        )
    if opened.has_changed:
        if verify:
            refuse_unverifiable(opened.name, opened)
        _LOG.warning("%s is %s: trained, or edited; it is loaded as it is", opened.name, opened.record)


def _added(model: PreTrainedModel, info: Mapping[str, Any], opened: Checkpoint, perturbed: Any) -> list[str]:
    """Return the parameters that a class has beside those of a checkpoint: a head of its own, by stored names.

    Raises:
        CheckpointError: if anything else is not as the checkpoint has it.
    """
    assert isinstance(opened.network, AnyNetwork)
    table, live = opened.network.table(), Skeleton.of(model)
    stored, trunk = table.skeletons[0], table.skeletons[-1]

    def of_a_layer(name: str) -> bool:
        return any(name.startswith(f"{path}.") for path in live.stacks)

    other = [(live.canonical(key), *shapes) for key, *shapes in info["mismatched_keys"]]
    if shapes := [f"{key} {tuple(a)} instead of {tuple(b)}" for key, a, b in other if key in trunk.shapes]:
        raise ShapeError(
            f"the checkpoint {opened.name!r} has tensors of another shape: {listed(shapes)}; a control has the sizes"
            " that it is stored with, and only a head on top may be another one"
        )
    missing = [name for key in info["missing_keys"] if (name := live.canonical(key)) in live.parameters]
    # of files that are whole all the same
    left_out = {stored.canonical(name) for name in {*opened.network.missing()} - {*opened.network.lost()}}
    if lost := [name for name in missing if (name in stored.parameters and name not in left_out) or of_a_layer(name)]:
        kind, loaded = type(stored.model).__name__, type(model).__name__
        remedy = "it is damaged, or loaded with other sizes than it is stored with"
        if loaded != kind:
            remedy = f"it is stored as {kind}, and a {loaded} has more: auto_class={kind!r} loads all that there is"
        raise CheckpointError(
            f"the checkpoint {opened.name!r} lacks {listed(lost)}, which {perturbed or 'its configuration'} tells of;"
            f" {remedy}"
        )
    unexpected = [live.canonical(key) for key in info["unexpected_keys"]]
    known = [name for name in unexpected if (place := table.find(name)) is not None and name in place[0].parameters]
    if cut := [name for name in known if of_a_layer(name)]:
        raise CheckpointError(
            f"the checkpoint {opened.name!r} has {listed(cut)}, for which this network has no place, so its record"
            " would not describe it; load it with the sizes that it is stored with"
        )
    return [live.stored(name) for name in [*missing, *(key for key, *_ in other)]]


def _places(model: PreTrainedModel, opened: Checkpoint) -> dict[str, tuple[Skeleton, str]]:
    """Return where tensors are in the network that is stored, by their names in a model that calls them otherwise.

    A class of a part of it does, such as `CLIPTextModel`: its tensors are drawn as those of the whole.
    """
    network = opened.network
    assert isinstance(network, AnyNetwork)
    if type(model) in network.classes:
        return {}
    table, live = network.table(), Skeleton.of(model)
    found = conversions_of(live, opened.shapes).names
    places = {own: place for name, own in found.items() if (place := table.find(name)) is not None}
    return {live.stored(own): place for own, place in places.items() if place[1] != own}


def _tell_of_what_is_new(model: PreTrainedModel, added: list[str]) -> None:
    if added:
        _LOG.warning(
            "%s has %d tensors that the checkpoint lacks, a head to be trained, which Transformers has just drawn from"
            " the global random state: %s",
            type(model).__name__,
            len(added),
            listed(added),
        )


@torch.inference_mode(False)
@torch.no_grad()
def _draw_what_is_new(model: PreTrainedModel, added: list[str], asked: Perturbation) -> None:
    """Draw what a class has beside a checkpoint by the seed that is asked for: the same request gives the same bits."""
    if not added:
        return
    skeleton, state = Skeleton.of(model), model.state_dict()
    drawn = []
    for name in added:
        try:
            state[name].copy_(tensor_of(skeleton.draw(skeleton.canonical(name), asked.seed)))
        except PerturbationError as error:  # left as Transformers made it
            _LOG.debug("%s", error)
        else:
            drawn.append(name)
    _LOG.warning(
        "%s has %d tensors that the checkpoint lacks, a head to be trained; its own `_init_weights` drew them by seed"
        " %d: %s",
        type(model).__name__,
        len(added),
        asked.seed,
        listed(drawn),
    )


def _as_loaded(model: PreTrainedModel, opened: Checkpoint, record: Perturbation) -> Perturbation:
    """Return the record of a model that was loaded: a cast, or another class, has weights of another digest."""
    if record.changed or model._hf_peft_config_loaded:  # what is under adapters is as it is stored
        return record
    if getattr(model, "is_quantized", False) or any(tensor.is_meta for tensor in model.state_dict().values()):
        return replace(record, digest=None)
    here = {name: (dtype_code(x.dtype), tuple(x.shape)) for name, x in stored_tensors(model).items()}
    if here == {name: (tensor.dtype, tensor.shape) for name, tensor in opened.tensors.items()}:
        return record
    return replace(record, digest=digest_in_memory(model))


def _digest_of_all(base: Checkpoint, record: Perturbation) -> str:
    """Return the digest of a whole variant, made of its base a few tensors at a time."""
    network = base.network
    assert isinstance(network, AnyNetwork)
    steps = {step.name: step for step in make_plan(network.table(), network.shapes, record).steps}
    made: dict[str, Callable[[], Array]] = {name: partial(_made, base, name, steps.get(name)) for name in base.tensors}
    for stack in network.stacks:
        held = {name: steps.get(stack.skeleton.stored(name)) for name in stack.shapes}
        parts = stack.perturbed(held, base.tensors)
        made |= {name: partial(parts.part, name) for name in stack.patterns}
    lines = dict.fromkeys(made, "")

    def digest(name: str) -> None:
        lines[name] = tensor_digest(made[name]())

    for_each(digest, lines)
    return digest_of_lines(lines)


def _made(base: Checkpoint, name: str, step: Step | None) -> Array:
    values = base.values(name)
    return values if step is None else step.run(values, values.dtype)
