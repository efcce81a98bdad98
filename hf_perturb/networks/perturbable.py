# Copyright 2026 The hf_perturb authors. MIT License: see the LICENSE file at the root of the repository.
"""What makes a Transformers model perturbable: `perturb()`, `post_init` and `from_pretrained(perturbation=...)`."""

import copy
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .record import CheckpointError, ModelInputError, PerturbationError, UnsupportedModuleError, loading, require

# while a checkpoint is being read, post_init must not act on the record that its config brings along
reading: ContextVar[bool] = ContextVar("reading", default=False)

# keywords that find a file; hf_perturb's own list of them does not travel
_PLACES = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")
_NAMED = 8  # how many tensors a message names


class PerturbablePreTrainedModel(PreTrainedModel):
    """A `PreTrainedModel` whose `config.perturbation` says what was done to its weights."""

    config_class: type[PreTrainedConfig]

    _language_head: list[str] = []  # patterns of its tensors' names, which a checkpoint of the trunk lacks

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
        if asked is None or reading.get() or self._applied:
            return
        self._pending = True
        if not any(parameter.is_meta for parameter in self.parameters()):
            self.perturb(asked)

    @classmethod
    def without_weights(cls, config: PreTrainedConfig) -> "PerturbablePreTrainedModel":
        """Build the network on the meta device; the weights that its record describes are filled in later."""
        token = reading.set(True)
        try:
            with torch.device("meta"):
                return cls(config)
        finally:
            reading.reset(token)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Raise, for the alphabet is part of the network.

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
        perturbed: PerturbablePreTrainedModel = require("applying a perturbation").perturb_model(self, perturbation)
        return perturbed

    def save_pretrained(
        self, save_directory: Any, is_main_process: bool = True, state_dict: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Save as `PreTrainedModel.save_pretrained` does; a digest that is not that of the weights is left out.

        Raises:
            ValueError: if a perturbation was cut short, so that nothing describes the weights.
        """
        self.refuse_torn()
        if loading is not None:
            loading.describe_weights(self, state_dict)
        else:  # nobody here can say whether a digest is still true
            self.config.digest = None
            if self.config.perturbation is not None:
                self.config.perturbation = {k: v for k, v in self.config.perturbation.items() if k != "digest"}
        return super().save_pretrained(save_directory, is_main_process, state_dict, *args, **kwargs)

    def refuse_torn(self) -> None:
        """Raise a `ValueError` if a perturbation of this model was cut short."""
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
            pretrained_model_name_or_path: a folder, a Hub id, or a `Checkpoint` that is opened.
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
            ImportError: where `hf_perturb` is not installed, for a perturbation, `verify` or a recipe.
        """
        if loading is not None:
            loaded = loading.load(cls, pretrained_model_name_or_path, model_args, config, kwargs)
        else:
            loaded = cls._load_stored(pretrained_model_name_or_path, model_args, config, kwargs)
        return loaded if output_loading_info else loaded[0]

    @classmethod
    def _load_stored(cls, name: Any, model_args: tuple[Any, ...], config: Any, kwargs: dict[str, Any]) -> Any:
        """Load what is stored, where hf_perturb is not installed; see `read_weights`."""
        asked = kwargs.pop("perturbation", None)
        places = {key: kwargs[key] for key in _PLACES if key in kwargs}
        if isinstance(config, str | os.PathLike):
            config = cls.config_class.from_pretrained(config, **places)
        try:
            own = config if name is None else cls.config_class.from_pretrained(name, **places)
        except OSError:  # an adapter alone, or weights that a configuration is passed for
            own = None
        record = getattr(own, "perturbation", None)
        if isinstance(config, cls.config_class):
            if config.perturbation != record:
                asked = config.perturbation  # the Auto classes have folded the keyword into it
            config = copy.deepcopy(config)
            config.perturbation, config.digest = record, getattr(own, "digest", None)
        if asked is not None:
            require("perturbation=, also to compare it with the record (perturbations do not stack),")
        if kwargs.pop("verify", False):
            require("verify=True")
        others = kwargs.get("ignore_mismatched_sizes", False)
        try:
            # Transformers' own error would not name the tensors
            model, info = cls.read_weights(name, model_args, config, {**kwargs, "ignore_mismatched_sizes": True})
        except OSError as error:
            if record is None or "file named" not in str(error):
                raise
            problem = (
                f"{str(name)!r} is a recipe without weights; to make them needs the package that defines the rules"
            )
            raise ImportError(f"{problem}: pip install hf-perturb") from error
        if info["mismatched_keys"] and not others:
            shapes = [f"{key} {tuple(found)} instead of {tuple(own)}" for key, found, own in info["mismatched_keys"]]
            raise CheckpointError(f"the checkpoint {str(name)!r} has tensors of another shape: {_listed(shapes)}")
        refuse_incomplete(model, info, name, None, lambda tensor: record is None and model.is_of_language_head(tensor))
        return model, info

    @classmethod
    def read_weights(cls, name: Any, model_args: tuple[Any, ...], config: Any, kwargs: Mapping[str, Any]) -> Any:
        """Load as Transformers does, the record being no order; return the model and what is said of its tensors."""
        token = reading.set(True)
        try:
            return super().from_pretrained(name, *model_args, config=config, output_loading_info=True, **kwargs)
        finally:
            reading.reset(token)

    def is_of_language_head(self, name: str) -> bool:
        """Whether a tensor of the network belongs to its language head."""
        return any(re.match(pattern, name) for pattern in self._language_head)


def refuse_incomplete(
    model: PerturbablePreTrainedModel,
    info: Mapping[str, Any],
    name: Any,
    perturbed: Any,
    may_lack: Callable[[str], bool],
) -> None:
    """Raise if a model is not the whole network that its checkpoint describes; its heads may be others.

    Transformers drops what a network has no place for, and draws what a checkpoint lacks from the global random state;
    the record would still claim all of it.

    Args:
        model: what was loaded.
        info: what Transformers says of its tensors.
        name: of the checkpoint.
        perturbed: what was done to the weights, or is about to be; `None` for nothing.
        may_lack: whether a tensor may be missing; a downstream head always may.
    """
    what = "which this network has" if perturbed is None else f"which {perturbed} perturbs"
    mismatched = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    absent = (key for key in [*info["missing_keys"], *mismatched] if not key.startswith("classifier."))
    if lost := sorted(key for key in absent if not may_lack(key)):
        raise CheckpointError(
            f"the checkpoint {str(name)!r} lacks {_listed(lost)}, {what}; build the variant from a base with that head"
        )
    extra = (key for key in info["unexpected_keys"] if not key.startswith("classifier."))
    if unused := sorted(key for key in extra if not model.is_of_language_head(key)):
        raise CheckpointError(
            f"the checkpoint {str(name)!r} has {_listed(unused)}, for which this network has no place, so its record"
            " would not describe it; load it with the sizes that it is stored with"
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


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
