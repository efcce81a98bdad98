# Copyright 2026 The hf_perturb authors. All rights reserved.
#
# Licensed under the MIT License: see the LICENSE file at the root of the repository.
"""What makes a Transformers model perturbable: `perturb()`, `post_init` and `from_pretrained(perturbation=...)`."""

import copy
from contextvars import ContextVar
from typing import Any

import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .layouts import language_head
from .loading import quantised, refuse_another, refuse_another_network
from .record import (
    ModelInputError,
    PerturbationError,
    UnsupportedModuleError,
    digest_in,
    digest_now,
    parse_perturbation,
    require_rules,
    without_digest,
    without_place,
)
from .request import read_request

# while a checkpoint is being read, post_init must not act on the record that its config brings along
_loading: ContextVar[bool] = ContextVar("_loading", default=False)


class PerturbablePreTrainedModel(PreTrainedModel):
    """A `PreTrainedModel` whose `config.perturbation` says what was done to its weights."""

    config_class: type[PreTrainedConfig]

    _applied = False  # whether this object's weights were perturbed by it
    _pending = False  # whether the config asks for what could not be done yet, on the meta device
    _torn = False  # whether a perturbation was cut short

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any):
        # a config of its own: what is recorded for one model must not be recorded for another
        super().__init__(copy.deepcopy(config), *args, **kwargs)

    def post_init(self) -> None:
        """Initialise as the original package would, then apply `config.perturbation` to the new weights, once."""
        super().post_init()
        asked = self.config.perturbation
        if asked is None or _loading.get() or self._applied:
            return
        self._pending = True
        if not any(parameter.is_meta for parameter in self.parameters()):
            self.perturb(asked)

    @classmethod
    def without_weights(cls, config: PreTrainedConfig) -> "PerturbablePreTrainedModel":
        """Build the network on the meta device for weights that are on their way, which its record describes."""
        token = _loading.set(True)
        try:
            with torch.device("meta"):
                return cls(config)
        finally:
            _loading.reset(token)

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
        """Return parameters and stored buffers by document name, in the original's order, for a set of rules."""
        return dict(self.state_dict())

    @classmethod
    def foreign_tensors(cls, tensors: dict[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
        """Name the tensors of another implementation of the same network as this class does.

        Args:
            tensors: by the names that they are stored by.
            config: the configuration, which loses what the tensors lack.
        """
        return tensors

    def language_head_names(self) -> tuple[str, ...]:
        """Return the names of the language head's tensors, also where this class has none."""
        return language_head(self.config)

    def untie(self, chosen: set[str]) -> None:
        """Give those of the chosen tensors that are tied their own memory; nothing to do where none are."""

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
        return self._perturb(perturbation, shared=True)

    @torch.no_grad()
    def _perturb(self, perturbation: Any, shared: bool) -> "PerturbablePreTrainedModel":
        """Perturb weights that somebody else may hold (`shared`), or that were just loaded."""
        rules, asked, family = require_rules(), parse_perturbation(perturbation), self.config.model_type
        if asked is None:
            raise PerturbationError("perturbation: got None; allowed: a method name, a dict or a Perturbation")
        self._refuse_torn()
        if (applied := self.config.perturbation) is not None:
            refuse_another(applied, asked, family, "this model")
            if not self._pending:
                return self
        if getattr(self, "is_quantized", False):
            raise quantised()
        tensors, head = self.document_tensors(asked.rules), self.language_head_names()
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        plan = rules.make_plan(family, shapes, asked, head)
        rules.check_values(plan, tensors)
        self._torn = True
        if asked.rules == "documented":
            self.untie(rules.select(family, [*tensors, *head], asked))
        owners = None if shared else dict(self.named_parameters(remove_duplicate=False))
        rules.apply_plan(plan, self.document_tensors(asked.rules), owners)
        # provenance that came along is that of other weights
        self.config.perturbation, self.config.digest = asked.with_record(None, None), None
        self._torn, self._pending, self._applied = False, False, True
        return self

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Save as `PreTrainedModel.save_pretrained` does; a digest that is not that of the weights is left out.

        Raises:
            ValueError: if a perturbation was cut short, so that nothing describes the weights.
        """
        self._refuse_torn()
        # whose disk the base is on is nobody's business
        record = self.config.perturbation = without_place(self.config.perturbation)
        claimed = {self.config.digest, digest_in(record)} - {None}
        # the weights may have been cast, trained or cut to another head since they were loaded
        if claimed and digest_now(kwargs.get("state_dict") or self.state_dict()) not in claimed:
            self.config.digest, self.config.perturbation = None, without_digest(record)
        return super().save_pretrained(save_directory, *args, **kwargs)

    def _refuse_torn(self) -> None:
        if self._torn:
            raise PerturbationError(
                "a perturbation of this model was cut short, so part of its weights are perturbed; load the base again"
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
            pretrained_model_name_or_path: a folder or a Hub id.
            *model_args: as in `PreTrainedModel.from_pretrained`.
            config: as in `PreTrainedModel.from_pretrained`; its `perturbation` counts as asked for.
            output_loading_info: as in `PreTrainedModel.from_pretrained`.
            **kwargs: `perturbation`; `verify=True` to compare the stored weights with the recorded digest, before
                anything is made of them; and whatever `PreTrainedModel.from_pretrained` takes.

        Raises:
            ValueError: if another perturbation is asked for than the one that the checkpoint records, or one together
                with quantised loading or offloading to disk.
            OSError: if the checkpoint is of another family, lacks tensors or has others than its configuration says, if
                its weights have another digest than it records (`verify`), or if a recipe's base is gone.
        """
        request = read_request(cls, pretrained_model_name_or_path, config, kwargs)
        token = _loading.set(True)
        try:
            loaded: Any = super().from_pretrained(
                request.name, *model_args, config=request.config, output_loading_info=True, **request.kwargs
            )
        finally:
            _loading.reset(token)
        model, info = loaded
        if pretrained_model_name_or_path is not None:
            # what was loaded from memory has no name of its own
            model.name_or_path = model.config.name_or_path = str(pretrained_model_name_or_path)
        refuse_another_network(model, info, request.record, request.asked, pretrained_model_name_or_path)
        if request.asked is not None:
            model._perturb(request.asked, shared=False)
        return (model, info) if output_loading_info else model


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
