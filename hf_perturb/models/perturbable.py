# Copyright 2026 The hf_perturb authors. All rights reserved.
#
# Licensed under the MIT License: see the LICENSE file at the root of the repository.
"""What makes a Transformers model perturbable: `perturb()`, `post_init` and `from_pretrained(perturbation=...)`."""

import copy
import sys
from contextvars import ContextVar
from typing import Any

import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .loading import (
    HUB_ARGUMENTS,
    has_no_weights,
    quantised,
    refuse_another,
    refuse_quantised_or_offloaded,
    stored_config,
)
from .record import (
    DigestError,
    ModelInputError,
    PerturbationError,
    UnsupportedModuleError,
    base_location,
    parse_perturbation,
    require_rules,
)

# while a checkpoint is being read, post_init must not act on the record that its config brings along
_loading: ContextVar[bool] = ContextVar("_loading", default=False)


class PerturbablePreTrainedModel(PreTrainedModel):
    """A `PreTrainedModel` whose `config.perturbation` says what was done to its weights."""

    config_class: type[PreTrainedConfig]

    def post_init(self) -> None:
        """Initialise as the original package would, then apply `config.perturbation` to the new weights."""
        super().post_init()
        asked = self.config.perturbation
        if asked is None or _loading.get() or any(p.is_meta for p in self.parameters()):
            return
        self.config.perturbation = None
        self.perturb(asked)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: the alphabet is part of the network.

        Raises:
            ValueError: always.
        """
        raise ModelInputError(
            f"{type(self).__name__}: the alphabet of {self.config.vocab_size} tokens is part of the network and cannot"
            " be resized; give a residue that it lacks as its unknown token"
        )

    def document_tensors(self, rules: str = "documented") -> dict[str, torch.Tensor]:
        """Return parameters and stored buffers by document name, in the order of the original class.

        Args:
            rules: the rule set that they are for.
        """
        return dict(self.state_dict())

    def untie(self, chosen: set[str]) -> None:
        """Give a tensor that is about to be perturbed its own memory; nothing to do where no weights are tied.

        Args:
            chosen: names of the tensors that are about to be perturbed.
        """

    @torch.no_grad()
    def perturb(self, perturbation: Any) -> "PerturbablePreTrainedModel":
        """Perturb the weights, in place.

        Args:
            perturbation: a `Perturbation`, its dict, or a method name.

        Returns:
            The model itself, with `config.perturbation` set. A second call with the same perturbation does nothing.

        Raises:
            ValueError: if the perturbation is not valid here, if the weights are quantised or have no values, or if
                another perturbation was applied before. The weights are then as they were.
            ImportError: if `hf_perturb`, which defines the rules, is not installed.
        """
        rules, asked, family = require_rules(), parse_perturbation(perturbation), self.config.model_type
        if asked is None:
            raise PerturbationError("perturbation: got None; allowed: a method name, a dict or a Perturbation")
        if (applied := self.config.perturbation) is not None:
            refuse_another(applied, asked, family, "this model")
            return self
        if getattr(self, "is_quantized", False):
            raise quantised()
        tensors = self.document_tensors(asked.rules)
        plan = rules.make_plan(family, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, asked)
        rules.check_values(plan, tensors)
        if asked.rules == "documented":
            self.untie(rules.selection(family, tensors, asked))
        rules.apply_plan(plan, self.document_tensors(asked.rules))
        self.config.perturbation = asked
        return self

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        config: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Load a checkpoint; with `perturbation=...`, load a base and perturb it.

        The checkpoint's own record says what its weights are and wins over any configuration that is passed: a
        variant is loaded as it is, bit for bit, and is never perturbed again.

        Args:
            pretrained_model_name_or_path: a folder or a Hub id.
            *model_args: as in `PreTrainedModel.from_pretrained`.
            config: as in `PreTrainedModel.from_pretrained`; its `perturbation` counts as asked for.
            **kwargs: `perturbation`, and whatever `PreTrainedModel.from_pretrained` takes.

        Raises:
            ValueError: if another perturbation is asked for than the one that the checkpoint records, or one together
                with quantised loading or offloading to disk.
        """
        name = pretrained_model_name_or_path
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        stored, commit = stored_config(name, hub)
        if commit is not None:
            hub["revision"] = kwargs["revision"] = commit
        if config is not None and not isinstance(config, PreTrainedConfig):
            config = cls.config_class.from_pretrained(config, **hub)
        asked = getattr(config, "perturbation", None)
        # with a state_dict in place of a checkpoint, the config is all that describes the weights
        record = asked if name is None else parse_perturbation(stored.get("perturbation"))
        if "perturbation" in kwargs:
            asked = parse_perturbation(kwargs.pop("perturbation"))
        if asked is not None and record is not None:
            refuse_another(record, asked, cls.config_class.model_type, f"the checkpoint {str(name)!r}")
        if asked is not None and record is None:
            refuse_quantised_or_offloaded(stored, kwargs)
        if config is not None:
            config = copy.deepcopy(config)
            config.perturbation = record
            if stored:  # what is on disk decides whether the head's weight is there
                config.tie_word_embeddings = cls.config_class.from_dict(stored).tie_word_embeddings
        if record is not None and has_no_weights(name, hub, kwargs.get("variant")):
            return cls._from_recipe(name, record, config, hub, *model_args, **kwargs)
        token = _loading.set(True)
        try:
            loaded = super().from_pretrained(name, *model_args, config=config, **kwargs)
        finally:
            _loading.reset(token)
        if asked is not None and record is None:
            (loaded[0] if isinstance(loaded, tuple) else loaded).perturb(asked)
        return loaded

    @classmethod
    def _from_recipe(cls, name: Any, record: Any, config: Any, hub: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Rebuild the weights that a recipe describes, check their digest, and load them like a checkpoint's."""
        rules = require_rules()
        if record.base is None or record.base.name is None:
            raise PerturbationError(f"{str(name)!r} has no weights, and its record names no base to rebuild them from")
        own = cls.config_class.from_pretrained(name, **hub)
        whole_class = getattr(sys.modules[cls.__module__], (own.architectures or [cls.__name__])[0])
        source = {key: value for key, value in hub.items() if key not in ("revision", "subfolder")}
        if record.base.revision is not None:
            source["revision"] = record.base.revision
        asked = record.with_record(None, None)
        whole = whole_class.from_pretrained(base_location(record.base.name), perturbation=asked, **source)
        if record.digest is not None and (digest := rules.digest_of(whole.state_dict())) != record.digest:
            raise DigestError(
                f"the recipe {str(name)!r} gives weights with digest {digest}, its record says {record.digest}: the"
                f" base {record.base.name!r} has changed, or torch {torch.__version__} draws differently"
            )
        config = own if config is None else config
        config.tie_word_embeddings = whole.config.tie_word_embeddings
        kwargs = {key: value for key, value in kwargs.items() if key not in hub}
        token = _loading.set(True)
        try:
            return super().from_pretrained(None, *args, config=config, state_dict=whole.state_dict(), **kwargs)
        finally:
            _loading.reset(token)


def perturb(model: PerturbablePreTrainedModel, perturbation: Any) -> PerturbablePreTrainedModel:
    """Perturb a model of this package in place and return it; see `PerturbablePreTrainedModel.perturb`.

    Raises:
        TypeError: if the model is not one of this package: wrap an original module first, with `hf_perturb.wrap`.
    """
    if not isinstance(model, PerturbablePreTrainedModel):
        raise UnsupportedModuleError(
            f"perturb: got a {type(model).__name__}; allowed: a model of hf_perturb;"
            " an original fair-esm or sequence-models module becomes one with hf_perturb.wrap(module)"
        )
    return model.perturb(perturbation)
