# Copyright 2026 The hf_perturb authors. MIT License: see the LICENSE file at the root of the repository.
"""The `perturbation` field of a configuration, and the one guarded hook to the package that gives it a meaning.

These files travel to the Hub beside the weights. Where hf_perturb is installed they load and perturb through
`hf_perturb.loading`; where it is not, `loading` is `None`: a stored control loads, and the rest says what to install.
"""

import json
import re
from typing import Any

from .sizes import check_size

try:
    from hf_perturb import loading
    from hf_perturb.errors import (
        CheckpointError,
        ModelInputError,
        PerturbationError,
        UnsupportedModuleError,
    )
    from hf_perturb.perturbation import Perturbation
except ImportError:
    loading = Perturbation = None  # type: ignore[assignment, misc]
    ModelInputError = PerturbationError = ValueError  # type: ignore[assignment, misc]
    CheckpointError, UnsupportedModuleError = OSError, TypeError  # type: ignore[assignment, misc]

__all__ = [
    "CheckpointError",
    "ModelInputError",
    "PerturbableConfigMixin",
    "PerturbationError",
    "UnsupportedModuleError",
    "loading",
    "require",
]

# how to run a network, and which file its weights are in, are not for a `config.json` to say
_NOT_SAID = re.compile("implementation|^transformers_weights$")


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
        return Perturbation.parse(value)
    if isinstance(value, str):
        return {"method": value}
    if not isinstance(value, dict) or "method" not in value:
        raise PerturbationError(f"perturbation: got {value!r}; allowed: None, a method name, or a dict with 'method'")
    return value


class PerturbableConfigMixin:
    """Keeps `config.perturbation` parsed however it is set, and plain JSON when it is written."""

    _read_as: tuple[str, str] | None = None  # the place that it was read from, and what was written there

    def __setattr__(self, key: str, value: Any) -> None:
        # from_dict() and users assign the raw value after construction, so parsing belongs here
        if key == "perturbation":
            value = parse_perturbation(value)
        # before anything is made of it: Transformers gives each label a name right away
        check_size(type(self).__name__, key, value)
        super().__setattr__(key, value)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a configuration of the content of a `config.json`, but for what such a file has no say in.

        Such keys can name code to fetch, or other weights than those that are looked at. A keyword may.

        Raises:
            ValueError: if it cannot be used.
        """
        kept = {key: value for key, value in config_dict.items() if not _NOT_SAID.search(key)}
        written = json.dumps(config_dict, sort_keys=True, default=str)
        unused = kwargs.get("return_unused_kwargs", False)
        place = kwargs.get("name_or_path")
        try:
            made = super().from_dict(kept, **kwargs)  # type: ignore[misc]
        except (TypeError, AttributeError, LookupError) as error:  # what a value of the wrong kind is tripped over by
            raise ValueError(f"{cls.__name__}: a value is of the wrong kind: {error}") from error
        if place is not None:  # as the Auto classes tell it, which read a checkpoint's configuration before us
            (made[0] if unused else made)._read_as = (str(place), written)
        return made

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
        output.pop("_read_as", None)
        for key in ("digest", "published_as"):
            if output.get(key) is None:
                output.pop(key, None)
        record = output.pop("perturbation", None)
        if record is not None:
            output["perturbation"] = record if isinstance(record, dict) else record.to_dict()
        return output
