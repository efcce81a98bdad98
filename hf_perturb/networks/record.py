# Copyright 2026 The hf_perturb authors. MIT License: see the LICENSE file at the root of the repository.
"""The `perturbation` field of a configuration, and the one guarded hook to the package that gives it a meaning.

These files travel to the Hub beside the weights. Where hf_perturb is installed they load and perturb through
`hf_perturb.loading`; where it is not, `loading` is `None`: a stored control loads, and the rest says what to install.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from inspect import signature
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

from .sizes import check_size, read_fields

try:
    from hf_perturb import loading
    from hf_perturb.errors import (
        CheckpointError,
        ModelInputError,
        PerturbationError,
        ShapeError,
        UnsupportedModuleError,
        UnusedKeywordError,
    )
    from hf_perturb.perturbation import Perturbation
    from hf_perturb.perturbation.digest import lines_of
except ImportError:
    loading = Perturbation = lines_of = None  # type: ignore[assignment, misc]
    ModelInputError = PerturbationError = ValueError  # type: ignore[assignment, misc]
    CheckpointError = OSError  # type: ignore[assignment, misc]
    UnsupportedModuleError = UnusedKeywordError = TypeError  # type: ignore[assignment, misc]
    ShapeError = type("ShapeError", (OSError, RuntimeError), {})  # type: ignore[assignment, misc]

__all__ = [
    "CheckpointError",
    "ModelInputError",
    "PerturbableConfigMixin",
    "PerturbationError",
    "ShapeError",
    "UnsupportedModuleError",
    "UnusedKeywordError",
    "lines_of",
    "loading",
    "require",
    "same_record",
]

logger = logging.get_logger(__name__)
# what a value that Transformers does not look at first is tripped over by
_TRIPPED = (TypeError, AttributeError, LookupError, RecursionError, StrictDataclassError)


def require(what: str) -> Any:
    """Return `hf_perturb.loading`, which `what` needs.

    Raises:
        ImportError: if only the model files are here, as in a repository loaded with `trust_remote_code`.
    """
    if loading is None:
        raise ImportError(f"{what} needs the package that defines the rules and the digests: pip install hf-perturb")
    return loading


def parse_perturbation(value: Any) -> Any:
    """Turn a perturbation, its dict or a method name into a `Perturbation`; without hf_perturb, into the stored dict.

    Raises:
        ValueError: if the value is not a valid perturbation.
    """
    if value is None:
        return None
    if Perturbation is not None:
        return Perturbation.parse(value, "documented")
    if isinstance(value, str):
        return {"method": value}
    if not isinstance(value, dict) or "method" not in value:
        raise PerturbationError(f"perturbation: got {value!r}; allowed: None, a method name, or a dict with 'method'")
    return value


def same_record(one: Any, other: Any) -> bool:
    """Whether two records say the same, of provenance too, which does not count where perturbations are compared."""
    first, second = (each.to_dict() if hasattr(each, "to_dict") else each for each in (one, other))
    return bool(first == second)


@contextmanager
def _explained(place: Any) -> Iterator[None]:
    """Raise what is raised as a `ValueError`, which says whose `config.json` cannot be used where that is known."""
    try:
        yield
    except (ValueError, *_TRIPPED) as error:
        kind = PerturbationError if isinstance(error, PerturbationError) else ValueError
        where = "" if place is None else f"{str(place)!r}: its config.json cannot be used: "
        raise kind(f"{where}{error}") from error


class PerturbableConfigMixin:
    """Keeps `config.perturbation` parsed however it is set, and plain JSON when it is written."""

    _read_as: tuple[str, str] | None = None  # the place that it was read from, and what was written there
    _of_model = False  # whether it is that of a live model, whose weights no assignment changes

    def __setattr__(self, key: str, value: Any) -> None:
        # from_dict() and users assign the raw value after construction, so parsing belongs here
        if key == "perturbation":
            value = parse_perturbation(value)
            if self._of_model and not same_record(value, self.perturbation):
                raise PerturbationError(
                    f"config.perturbation: got {value}; to set it changes no weight of this model; call"
                    " perturb(model, ...), or load the base with from_pretrained(..., perturbation=...)"
                )
        # before anything is made of it: Transformers gives each label a name right away
        check_size(type(self).__name__, key, value)
        super().__setattr__(key, value)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a configuration of the content of a `config.json`, but for what such a file has no say in.

        Such keys can name code to fetch, or other weights than those that are looked at. A keyword may.

        Raises:
            ValueError: if it cannot be used; it names the field, its value and what is allowed.
        """
        place, unused = kwargs.get("name_or_path"), kwargs.get("return_unused_kwargs", False)
        parse_perturbation(kwargs.get("perturbation"))  # a wrong one is no fault of the file
        with _explained(place):
            known, others = cls.read_fields(config_dict)
            written = json.dumps(known, sort_keys=True, default=str)
            made = super().from_dict(known, **kwargs)  # type: ignore[misc]
        if others:
            left = ", ".join(map(repr, others))
            logger.warning_once(f"{cls.__name__}: left out {left} of a config.json, which no such network has")
        if place is not None:  # as the Auto classes tell it, which read a checkpoint's configuration before us
            (made[0] if unused else made)._read_as = (str(place), written)
        return made

    def set_record(self, record: Any, digest: str | None = None, *, of_model: bool = True) -> None:
        """Record what was done to the weights of a model, by who did it; what goes beside it says the same.

        Args:
            record: what was done, `None` for nothing.
            digest: of a base's weights.
            of_model: whether the configuration is that of a live model.
        """
        self._of_model = False
        self.perturbation, self.digest = record, digest
        self._of_model = of_model

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy takes over: it is no longer that of a live model."""
        return {key: value for key, value in vars(self).items() if key != "_of_model"}

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Save as Transformers does.

        Raises:
            ValueError: if a base's digest stands beside a perturbation.
        """
        if self.perturbation is not None and self.digest is not None:
            raise PerturbationError(
                f"digest: got {self.digest} beside the perturbation {self.perturbation}; allowed: one of them; a"
                " control has its digest inside the perturbation"
            )
        return super().save_pretrained(*args, **kwargs)  # type: ignore[misc]

    @classmethod
    def read_fields(cls, stored: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Divide the content of a `config.json` into what this class takes from it, and the rest.

        Raises:
            ValueError: if a field has a value of the wrong kind.
        """
        theirs = {each.name for each in fields(PreTrainedConfig)}
        # a class derived from ours may have a constructor in the place of fields
        constructors = [vars(each)["__init__"] for each in cls.__mro__[:-1] if "__init__" in vars(each)]
        taken = (each for constructor in constructors for each in signature(constructor).parameters.values())
        named = {each.name for each in taken if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)} - {"self"}
        named |= {each.name for each in fields(cls)}  # type: ignore[arg-type]
        return read_fields(cls.__name__, stored, {*(named - theirs), "tie_word_embeddings"})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Read a configuration as `PreTrainedConfig.from_pretrained` does.

        Raises:
            ValueError: if the `config.json` cannot be used.
        """
        parse_perturbation(kwargs.get("perturbation"))  # a wrong one is no fault of the file
        with _explained(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)  # type: ignore[misc]

    @classmethod
    def read_stored(cls, stored: dict[str, Any]) -> dict[str, Any]:
        """Return the content of a `config.json` in the terms of this class, the same object if it is in them."""
        return stored

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a `config.json`, also one of another implementation of the same network."""
        stored, unused = super().get_config_dict(*args, **kwargs)  # type: ignore[misc]
        return cls.read_stored(stored), unused

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as a JSON-ready dict; what is not set of our own keys is absent."""
        output: dict[str, Any] = super().to_dict()  # type: ignore[misc]
        for key in ("_read_as", "_of_model"):
            output.pop(key, None)
        for key in ("digest", "published_as"):
            if output.get(key) is None:
                output.pop(key, None)
        if output.get("packing"):
            del output["packing"]
        record = output.pop("perturbation", None)
        if record is not None:
            output["perturbation"] = record if isinstance(record, dict) else record.to_dict()
        return output
