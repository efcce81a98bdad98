# Copyright 2026 The hf_perturb authors. All rights reserved.
#
# Licensed under the MIT License: see the LICENSE file at the root of the repository.
"""The `perturbation` field of a configuration, and the one guarded import of the package that defines the rules."""

import re
from pathlib import Path
from typing import Any

from .bounds import refuse_size

try:
    from hf_perturb import demo, perturbation as rules
    from hf_perturb.errors import (
        CheckpointError,
        DigestError,
        ModelInputError,
        PerturbationError,
        StackedPerturbationError,
        UnsupportedModuleError,
    )
except ImportError:  # this file travels to the Hub: there, loading works without the package
    demo = rules = None  # type: ignore[assignment]
    DigestError = ModelInputError = PerturbationError = StackedPerturbationError = ValueError  # type: ignore[assignment, misc]
    CheckpointError = OSError  # type: ignore[assignment, misc]
    UnsupportedModuleError = TypeError  # type: ignore[assignment, misc]

__all__ = [
    "CheckpointError",
    "DigestError",
    "ModelInputError",
    "PerturbableConfigMixin",
    "PerturbationError",
    "StackedPerturbationError",
    "UnsupportedModuleError",
    "base_location",
    "digest_in",
    "digest_now",
    "parse_perturbation",
    "recorded_digest",
    "require_rules",
    "rules",
    "same_perturbation",
    "without_digest",
    "without_place",
]

PROVENANCE = ("base", "digest")
_NOT_SAID = re.compile("implementation|^transformers_weights$")
DEFAULTS = {"seed": 42, "rules": "documented"}


def parse_perturbation(value: Any) -> Any:
    """Turn what a user or a `config.json` gives into a `Perturbation`.

    Args:
        value: `None`, a `Perturbation`, its dict, or a method name as shorthand.

    Returns:
        `None` or a `Perturbation`; without `hf_perturb` installed, `None` or the dict as it is stored.

    Raises:
        ValueError: if the value is not a valid perturbation.
    """
    if value is None:
        return None
    if rules is not None:
        return rules.Perturbation.parse(value)
    if isinstance(value, str):
        return {"method": value}
    if not isinstance(value, dict) or "method" not in value:
        raise PerturbationError(f"perturbation: got {value!r}; allowed: None, a method name, or a dict with 'method'")
    return value


def same_perturbation(one: Any, other: Any, family: str) -> bool:
    """Whether two parsed perturbations give the same weights, a default axis spelled out or not."""
    if rules is None:
        return bool(_comparable(one) == _comparable(other))
    axis = rules.default_axis(family)
    return bool(one.with_axis(axis) == other.with_axis(axis))


def _comparable(record: dict[str, Any]) -> dict[str, Any]:
    """Return what counts of a perturbation's dict, as the package would write it: its lists are sets."""
    keys = {**DEFAULTS, **{key: value for key, value in record.items() if key not in PROVENANCE}}
    if isinstance(keys.get("scope"), str):
        keys["scope"] = [keys["scope"]]
    keys = {key: value for key, value in keys.items() if value is not None and value != []}
    return {key: sorted(set(map(str, value))) if isinstance(value, list) else value for key, value in keys.items()}


def require_rules(what: str = "applying a perturbation") -> Any:
    """Return the package that defines the rules.

    Args:
        what: that it is needed for.

    Raises:
        ImportError: if only the model files are here, as in a repository loaded with `trust_remote_code`.
    """
    if rules is None:
        raise ImportError(f"{what} needs the package that defines the rules and the digests: pip install hf-perturb")
    return rules


def digest_in(record: Any) -> Any:
    """Return the digest that a parsed perturbation claims, if any."""
    return record.get("digest") if isinstance(record, dict) else getattr(record, "digest", None)


def recorded_digest(config: Any) -> Any:
    """Return the digest that a configuration states, if any: that of a variant is in its record."""
    return config.digest if config.perturbation is None else digest_in(config.perturbation)


def without_digest(record: Any) -> Any:
    """Return a parsed perturbation without its claim to a digest."""
    if record is None:
        return None
    if isinstance(record, dict):
        return {key: value for key, value in record.items() if key != "digest"}
    return record.with_record(record.base, None)


def without_place(record: Any) -> Any:
    """Return a record that calls its base by the name of its folder: a recipe needs the place, weights do not."""
    if record is None:
        return None
    whole = record if isinstance(record, dict) else record.to_dict()
    base = whole.get("base") or {}
    if not Path(base.get("name") or "").is_absolute():
        return record
    return parse_perturbation({**whole, "base": {**base, "name": Path(base["name"]).name}})


def digest_now(tensors: Any) -> Any:
    """Return the digest of tensors; `None` where nobody can say: without the rules, or for tensors without values."""
    if rules is None or any(tensor.is_meta for tensor in tensors.values()):
        return None
    return rules.digest_of(tensors)


def base_location(name: str) -> str:
    """Return where a recorded base is loaded from: `demo` is a folder of the package."""
    if demo is not None and name == demo.NAME:
        return str(demo.folder())
    return name


class PerturbableConfigMixin:
    """Keeps `config.perturbation` parsed however it is set, and plain JSON when it is written."""

    def __setattr__(self, key: str, value: Any) -> None:
        # from_dict() and users assign the raw value after construction, so parsing belongs here
        if key == "perturbation":
            value = parse_perturbation(value)
        # before anything is made of it: Transformers gives each label a name right away
        refuse_size(type(self).__name__, key, value)
        super().__setattr__(key, value)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a configuration of the content of a `config.json`.

        How to run a network, and which file its weights are in, is not for that file to say: such keys can name code to
        fetch, or other weights than those that are looked at. A keyword may.

        Raises:
            ValueError: if it cannot be used.
        """
        kept = {key: value for key, value in config_dict.items() if not _NOT_SAID.search(key)}
        try:
            return super().from_dict(kept, **kwargs)  # type: ignore[misc]
        except (TypeError, AttributeError, LookupError) as error:  # what a value of the wrong kind is tripped over by
            raise ValueError(f"{cls.__name__}: a value is of the wrong kind: {error}") from error

    @classmethod
    def read_stored(cls, stored: dict[str, Any]) -> dict[str, Any]:
        """Return the content of a `config.json` in the terms of this class.

        Args:
            stored: as it is written; where it needs no translation, the same object is returned.
        """
        return stored

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a `config.json`, also one of another implementation of the same network."""
        stored, unused = super().get_config_dict(*args, **kwargs)  # type: ignore[misc]
        return cls.read_stored(stored), unused

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as a JSON-ready dict; what is not set of our own keys is absent."""
        output: dict[str, Any] = super().to_dict()  # type: ignore[misc]
        for key in ("digest", "published_as"):
            if output.get(key) is None:
                output.pop(key, None)
        record = output.pop("perturbation", None)
        if record is not None:
            output["perturbation"] = record if isinstance(record, dict) else record.to_dict()
        return output
