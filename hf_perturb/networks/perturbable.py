# Copyright 2026 The hf_perturb authors. MIT License: see the LICENSE file at the root of the repository.
"""What makes a Transformers model perturbable: `perturb()`, `post_init` and `from_pretrained(perturbation=...)`."""

import copy
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from transformers.configuration_utils import PreTrainedConfig

from .alone import load_alone, save_alone
from .record import (
    CheckpointError,
    ModelInputError,
    PerturbationError,
    loading,
    require,
    same_record,
)
from .seal import cast, listed, plainly, record_now, share_config, the_network, unread
from .sizes import NAMES, tensors_of_network
from .threads import ThreadSafePreTrainedModel

# while a checkpoint is being read, post_init must not act on the record that its config brings along; it is called with
# what the names of the network's tensors begin with in the model that was built
reading: ContextVar[Callable[[str], object] | None] = ContextVar("reading", default=None)

_TAG = "perturbation-"  # begins the tags that say what a record says


class PerturbablePreTrainedModel(ThreadSafePreTrainedModel):
    """A `PreTrainedModel` whose `config.perturbation` says what was done to its weights."""

    config_class: type[PreTrainedConfig]

    _language_head: list[str] = []  # patterns of its tensors' names, which a checkpoint of the trunk lacks

    _record: Any = None  # what was done to its weights; the config says the same, or was tampered with
    _seal: dict[str, str] | None = None  # of a control, a fingerprint of each tensor from when its record was true
    _sealed: frozenset[str] = frozenset()  # the names of those that are the network's: a head on top may be any
    _is_empty = False  # whether it was built without values, so that nobody has said what its weights are
    _asked: Any = None  # what its config asked for, if so
    _is_torn = False  # whether a perturbation was cut short
    _tags: tuple[str, ...] = ()  # of a model card, beside those of the record

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any):
        # a config of its own: what is recorded for one model must not be recorded for another
        super().__init__(copy.deepcopy(config), *args, **kwargs)

    def post_init(self) -> None:
        """Initialise as the original package would, then apply `config.perturbation` to the new weights, once."""
        super().post_init()
        prefix, network = self.placed()
        if network is not self:
            share_config(self, network)
            ignored = self._keys_to_ignore_on_load_unexpected or ()
            self._keys_to_ignore_on_load_unexpected = {*ignored, *unread(network, prefix)}
            # Transformers asks the children alone, and the network may stand deeper
            tied = {prefix + name: prefix + source for name, source in network.all_tied_weights_keys.items()}
            self.all_tied_weights_keys.update(tied)
        if (place := reading.get()) is not None:
            place(prefix)
        if place is not None or network is not self or self._seal is not None:
            return
        asked = self.config.perturbation
        # Transformers' way to leave memory as it is
        undrawn = "no_init_weights" in type(self).init_weights.__qualname__
        self._is_empty = undrawn or any(parameter.is_meta for parameter in self.parameters())
        self._asked = asked if self._is_empty else None
        self.config.set_record(None, None if asked is not None else self.config.digest)
        if asked is not None and not self._is_empty:
            self.perturb(asked)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make a copy, whose config is that of a live model too."""
        super().__setstate__(state)
        self.config.set_record(self.config.perturbation, self.config.digest)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        """Move or cast the weights; those that are cast are no longer the recorded ones, which is noted."""
        kinds = {parameter.dtype for parameter in self.parameters()}
        made = {kind: fn(torch.empty(0, dtype=kind)) for kind in kinds}
        if self._seal is not None and any(tensor.dtype != kind for kind, tensor in made.items()):
            return cast(self, partial(super()._apply, fn, *args, **kwargs))
        if any(tensor.is_meta for tensor in made.values()):
            self._lose_values()
        return super()._apply(fn, *args, **kwargs)

    def to_empty(self, *args: Any, **kwargs: Any) -> Any:
        """Move the network without its values, as `torch.nn.Module.to_empty` does."""
        self.recorded._lose_values()
        return super().to_empty(*args, **kwargs)

    def _lose_values(self) -> None:
        """Know nothing of the weights of a base any more; those of a control are compared with its seal."""
        self._is_empty = self._is_empty or self._seal is None

    @classmethod
    def is_ours(cls) -> bool:
        """Whether this is a class of this package, not one that somebody derived from it."""
        ours = __name__.rpartition(".")[0]
        return any(each.__name__ == cls.__name__ and each.__module__.rpartition(".")[0] == ours for each in cls.__mro__)

    @classmethod
    def without_weights(cls, config: PreTrainedConfig) -> "PerturbablePreTrainedModel":
        """Build the network on the meta device; the weights that its record describes are filled in later."""
        token = reading.set(lambda prefix: None)
        try:
            with torch.device("meta"):
                return cls(config)
        finally:
            reading.reset(token)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> Any:
        """Return the embedding if it has as many tokens, for the alphabet is part of the network.

        Raises:
            ValueError: for another number of tokens.
        """
        size, multiple = self.config.vocab_size, pad_to_multiple_of or 1
        wanted = -(-(size if new_num_tokens is None else new_num_tokens) // multiple) * multiple
        if wanted == size:
            return self.get_input_embeddings()
        raise ModelInputError(
            f"{type(self).__name__}: resize_token_embeddings: got {wanted}; allowed: {size}, because the alphabet is"
            " part of the network and cannot be resized; give a residue that it lacks as its unknown token"
        )

    def placed(self) -> tuple[str, "PerturbablePreTrainedModel"]:
        """Return what the names of the network's tensors begin with in this model, and the network.

        That is the model itself, or one of this package that it holds in an attribute; the record is that of the
        network, and no other module is part of it.

        Raises:
            TypeError: if there are several.
        """
        held = {name: each for name, each in self.named_modules() if isinstance(each, PerturbablePreTrainedModel)}
        return the_network(self, held)

    @property
    def recorded(self) -> Any:
        """The network that the record is of; see `placed`."""
        return self.placed()[1]

    def document_names(self) -> dict[str, str]:
        """Return the names of the network's tensors in this model, by document name."""
        prefix, network = self.placed()
        names = plainly({name: name for name in network.state_dict()})
        return {name: prefix + names[name] for name in tensors_of_network(network.config.family, names)}

    def recorded_tensors(self, state: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """Return the tensors that count in a digest, by document name: the network's, and a head of this package.

        Args:
            state: the tensors, by the names that they have in this model; `None` for its own.
        """
        found = self.state_dict() if state is None else state
        if self.is_ours():
            return dict(found)
        return {name: found[here] for name, here in self.document_names().items() if here in found}

    def document_tensors(self, rules: str = "documented") -> dict[str, torch.Tensor]:
        """Return parameters and stored buffers by document name, in the original's order, for a set of rules."""
        return self.recorded_tensors()

    def untie(self, chosen: set[str]) -> None:
        """Give those of the chosen tensors that are tied their own memory; nothing to do where none are."""

    def perturb(self, perturbation: Any, *, fresh: bool = False) -> "PerturbablePreTrainedModel":
        """Perturb the weights, in place.

        Args:
            perturbation: a `Perturbation`, its dict, or a method name.
            fresh: say that the weights of a model that was built without values (on the meta device, under accelerate's
                `init_empty_weights`, or inside another model that was loaded) are those of a base.

        Returns:
            The model itself, with `config.perturbation` set. A second call with the same perturbation does nothing.

        Raises:
            ValueError: if the perturbation is not valid here, if the weights are quantised or have no values, if
                another perturbation was applied before, or if nobody has said what the weights are. They are then as
                they were.
            ImportError: if `hf_perturb`, which defines the rules, is not installed.
        """
        require("applying a perturbation").perturb_model(self, perturbation, fresh=fresh)
        return self

    def record_as(self, perturbation: Any) -> "PerturbablePreTrainedModel":
        """Say what the weights are of a model that was built without values and then filled by somebody else.

        Args:
            perturbation: what was done to them, such as `config.perturbation` of the variant that they come from;
                `None` for those of a base.

        Returns:
            The model itself, with `config.perturbation` set.

        Raises:
            ValueError: if the model knows what its weights are, or if they have no values.
            OSError: if the perturbation has a digest, and it is not that of the weights.
            ImportError: if `hf_perturb` is not installed.
        """
        require("recording a perturbation").record_as(self, perturbation)
        return self

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Save as `PreTrainedModel.save_pretrained` does; a control that has changed since says so.

        The record goes into the header of each file of weights too, and weights of another layout that lie in the
        folder are removed. Of a model with adapters that is the active adapter alone; its card says on which control
        it was trained.

        Raises:
            ValueError: if nothing describes the weights: a perturbation was cut short, the model was built without
                values and filled by somebody else, or its configuration was exchanged.
            OSError: with `push_to_hub=True`; see `push_to_hub`.
        """
        self.refuse_unknown("save")
        if kwargs.get("push_to_hub") or args[2:3] == (True,):
            self._refuse_to_publish()
        if loading is not None:
            return loading.save_model(self, super().save_pretrained, save_directory, *args, **kwargs)
        if self._hf_peft_config_loaded:
            return super().save_pretrained(save_directory, *args, **kwargs)
        state = args[1] if len(args) > 1 else kwargs.get("state_dict")
        return save_alone(self, partial(super().save_pretrained, save_directory, *args, **kwargs), state)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Publish an adapter, or a model of somebody's own class, as Transformers does.

        Raises:
            OSError: for a network of this package, which `hf-perturb push` publishes with its card, its tokenizer and
                the code that loads it.
        """
        self._refuse_to_publish()
        return super().push_to_hub(*args, **kwargs)

    def _refuse_to_publish(self) -> None:
        if self.is_ours() and not self._hf_peft_config_loaded:
            raise CheckpointError(
                f"push_to_hub: would publish this {type(self).__name__} without its card, its tokenizer and the code"
                " that loads it; nothing was sent; instead: model.save_pretrained(FOLDER), then hf-perturb convert"
                " FOLDER OUT, and hf-perturb push OUT REPO (pip install hf-perturb)"
            )

    @property
    def model_tags(self) -> list[str]:
        """Tags of a model card, which say what the record says; PEFT and Transformers write them into theirs."""
        record: Any = record_now(self) or {}
        record = record if isinstance(record, dict) else record.to_dict()
        said = {key: value if isinstance(value, str) else json.dumps(value) for key, value in record.items()}
        return [*self._tags, *(f"{_TAG}{key}:{value}" for key, value in said.items() if key != "base")]

    @model_tags.setter
    def model_tags(self, tags: Sequence[str] | None) -> None:
        self._tags = tuple(dict.fromkeys(tag for tag in tags or () if not tag.startswith(_TAG)))

    def add_model_tags(self, tags: Sequence[str] | str) -> None:
        self.model_tags = [*self._tags, *([tags] if isinstance(tags, str) else tags)]

    def told(self, record: Any, seal: dict[str, str] | None = None, digest: str | None = None) -> None:
        """Record what was done to the weights, by who did it or looked.

        Args:
            record: what was done, `None` for nothing.
            seal: of a control, a fingerprint of each tensor that no one may change unnoticed.
            digest: of a base's weights.
        """
        self._record, self._seal, self._is_empty, self._is_torn = record, seal, False, False
        self._sealed = frozenset(self.document_names() if seal else ())
        self.config.set_record(record, digest)

    def refuse_unknown(self, what: str, *, empty: bool = True) -> None:
        """Raise a `ValueError` if nothing describes the weights of this model.

        Args:
            what: is to be done with it.
            empty: whether one whose weights nobody has told of is refused.
        """
        network = self.recorded
        if network._is_torn:
            raise PerturbationError(
                "a perturbation of this model was cut short, so part of its weights are perturbed; load the base again"
            )
        if empty and network._is_empty:
            raise PerturbationError(
                f"{what}: this {type(self).__name__} was built empty (on the meta device, under init_empty_weights, or"
                " inside another model), so it does not know what its weights are; load it with from_pretrained, or say"
                " it: model.record_as(perturbation) for a control, record_as(None) for a base, perturb(..., fresh=True)"
                " for a base that is to be perturbed"
            )
        if not network._is_empty and not same_record(self.config.perturbation, network._record):
            raise PerturbationError(
                f"{what}: the configuration of this {type(self).__name__} says {self.config.perturbation}, its weights"
                f" are {network._record or 'those of a base'}: another configuration was put in the place of its own;"
                " put that back, or load the model again"
            )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        config: Any = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a checkpoint; with `perturbation=...`, load a base and perturb it.

        The checkpoint's own record says what its weights are and wins over any configuration that is passed: a
        variant is loaded as it is, bit for bit, and is never perturbed again.

        Args:
            pretrained_model_name_or_path: a folder, a Hub id, or a `Checkpoint` that is opened.
            *model_args: as in `PreTrainedModel.from_pretrained`.
            config: as in `PreTrainedModel.from_pretrained`; its `perturbation` counts as asked for.
            output_loading_info: as in `PreTrainedModel.from_pretrained`.
            **kwargs: `perturbation`; `verify=True` to compare the stored weights with the recorded digest, before
                anything is made of them; and whatever `PreTrainedModel.from_pretrained` takes. Beside a record, a
                perturbation or `verify`, `ignore_mismatched_sizes` holds for heads alone.

        Raises:
            ValueError: if another perturbation is asked for than the one that the checkpoint records, any of weights
                that changed since, or one together with quantised loading or offloading to disk; and for
                `key_mapping` beside a record, a perturbation or `verify`.
            OSError: if the checkpoint is of another family, lacks tensors or has others than its configuration says, if
                the record in the header of its weights is not that of its configuration, if its weights have another
                digest than it records (`verify`, or where a header says nothing), or if a recipe's base is gone.
            ImportError: where `hf_perturb` is not installed, for a perturbation, `verify` or a recipe.
        """
        if loading is not None:
            loaded = loading.load_model(cls, pretrained_model_name_or_path, model_args, config, kwargs)
        else:
            loaded = load_alone(cls, pretrained_model_name_or_path, model_args, config, kwargs)
        return loaded if output_loading_info else loaded[0]

    @classmethod
    def read_weights(
        cls, name: Any, model_args: tuple[Any, ...], config: Any, kwargs: Mapping[str, Any], prefix: str = ""
    ) -> Any:
        """Load as Transformers does, the record being no order; return the model and what is said of its tensors.

        Args:
            name: as in `from_pretrained`, like the two that follow.
            model_args: see there.
            config: see there.
            kwargs: the other keywords.
            prefix: what the stored names of the network's tensors begin with.

        Raises:
            OSError: if a tensor was left without values.
        """
        renamed = dict(kwargs.get("key_mapping") or {})
        config_class: Any = cls.config_class
        stored = rf"^{re.escape(prefix)}(?=({NAMES[config_class.family]})$)"

        def place(here: str) -> None:
            renamed.pop(stored, None)
            if here != prefix:
                renamed[stored] = here

        token = reading.set(place)
        kwargs = {**kwargs, "key_mapping": renamed} if prefix or not cls.is_ours() or renamed else kwargs
        try:
            loaded: Any = super().from_pretrained(name, *model_args, config=config, output_loading_info=True, **kwargs)
        finally:
            reading.reset(token)
        model = loaded[0]
        if renamed:
            model._weight_conversions = None  # saved by its own names, which its record goes by
        if empty := model.tensors_without_values():
            raise CheckpointError(
                f"{str(name or model.name_or_path)!r} was not loaded whole: no values for {listed(empty)}, still on"
                " the meta device; another thread may have changed Transformers meanwhile: load it again"
            )
        return loaded

    def is_of_language_head(self, name: str) -> bool:
        """Whether a tensor of the network belongs to its language head."""
        return any(re.match(pattern, name) for pattern in self._language_head)
