"""`Perturbation`: what is done to the weights, as an immutable value that is JSON both ways."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from hf_perturb.errors import PerturbationError
from hf_perturb.perturbation.rules import PARTS, default_axis, default_rules
from hf_perturb.perturbation.scopes import parse_scope

METHODS = ("reinit", "resample", "gaussian")
RULES = ("documented", "published", "transformers")
AXES = ("embedding", "rows", "outputs", "all")
MAX_SEED = 2**63 - 1
PUBLISHED_MAX_SEED = 2**32 - 1  # the study's generator reads 32 bits of a seed
_VERSIONS = ("transformers_version", "code_revision")  # of what drew the weights
DEFAULT_SEED = 42  # the study's first, of 42, 0 and 12345


def _refuse(key: str, value: object, allowed: str) -> PerturbationError:
    return PerturbationError(f"perturbation {key}: got {value!r}; allowed: {allowed}")


def _choose(key: str, value: object, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise _refuse(key, value, "one of " + ", ".join(map(repr, allowed)))


def _known_keys(key: str, given: Mapping[str, Any], cls: type) -> None:
    allowed = [f.name for f in fields(cls) if f.init]
    for name in given:
        if name not in allowed:
            raise PerturbationError(f"{key} key {name!r} is unknown; allowed: {', '.join(allowed)}")


def in_words(record: Mapping[str, Any]) -> str:
    """Return what tells a record from others of its base, in few words; of a stranger's dict too, whatever is in it."""
    told = {"seed": DEFAULT_SEED, **record}
    keys = [key for key in ("seed", "rules", "axis", "scope", "include", "exclude", "also") if told.get(key, "") != ""]
    values = {key: told[key] if isinstance(told[key], list | tuple) else [told[key]] for key in keys}
    parts = [f"{key} {' and '.join(map(str, values[key]))}" for key in keys if told[key] != "documented"]
    return f"{told.get('method')} ({', '.join(parts)})"


def check_digest(key: str, value: object) -> None:
    """Raise a `PerturbationError` if a value is neither a digest nor `None`."""
    if value is not None and not (isinstance(value, str) and re.fullmatch("blake3:[0-9a-f]{64}", value)):
        before = (
            "; this one is of an edition before: make the folder again from its base"
            if str(value).startswith("sha256:")
            else ""
        )
        raise _refuse(key, value, f"None or 'blake3:' and 64 hexadecimal digits{before}")


@dataclass(frozen=True)
class Base:
    """Where the weights came from: provenance, written by the tool.

    Args:
        name: Hub id, folder or `demo`.
        revision: commit on the Hub; `None` for a folder.
        digest: digest of the base's weights.
    """

    name: str | None = None
    revision: str | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        for key in ("name", "revision"):
            if not isinstance(getattr(self, key), str | None):
                raise _refuse(f"base.{key}", getattr(self, key), "None or a string")
        check_digest("base.digest", self.digest)


@dataclass(frozen=True)
class Perturbation:
    """A control: how the weights of a network are drawn anew or shuffled.

    Two perturbations are equal when all keys but those of provenance are, from `base` on.

    Args:
        method: `"reinit"` draws weights anew, `"resample"` shuffles the trained ones within each tensor, `"gaussian"`
            draws from a normal distribution with the mean and deviation of each trained tensor.
        seed: 0 to 2**63 - 1; with rules `"published"` 0 to 2**32 - 1, which is all that the study's generator sees.
        rules: `"documented"`, `"published"` for what the study's own code did, or `"transformers"` for what the
            network's own `_init_weights` does; `None` until the network is known, and then the first for ESM and CARP,
            the last for others.
        axis: for resample, what is shuffled: `"embedding"` applies one permutation of the last dimension to every
            row, `"rows"` permutes every row on its own, `"outputs"` lets whole rows change places, `"all"` permutes all
            entries; `None` is the family's default.
        include: globs over parameter names; empty for everything that the rules name.
        exclude: globs over parameter names that stay as they are.
        scope: names of scopes (see `scopes.py`); only what is in every one of them is perturbed.
        also: parts that the rules keep, and that are perturbed all the same: `"embeddings"`, `"head"`.
        base: where the weights came from.
        digest: digest of the weights that result; `None` in the record of a model that was cast.
        changed: whether the weights are no longer these: trained further, edited or merged.
        transformers_version: of the `_init_weights` that drew them, with rules `"transformers"`.
        code_revision: commit of the code of the network, where that is not Transformers' own.

    Raises:
        PerturbationError: a `ValueError` that names the key, the value and what is allowed.
    """

    method: str
    seed: int = DEFAULT_SEED
    rules: str | None = field(default=None, compare=False)
    axis: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    scope: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    base: Base | None = field(default=None, compare=False)
    digest: str | None = field(default=None, compare=False)
    changed: bool = field(default=False, compare=False)
    transformers_version: str | None = field(default=None, compare=False)
    code_revision: str | None = field(default=None, compare=False)
    _rules: str = field(init=False, repr=False)  # what is compared: left open, they are those of the document

    def __post_init__(self) -> None:
        _choose("method", self.method, METHODS)
        if not isinstance(self.seed, bool) and hasattr(self.seed, "__index__"):
            object.__setattr__(self, "seed", operator.index(self.seed))  # numpy's integers among them
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed <= MAX_SEED:
            raise _refuse("seed", self.seed, f"an integer from 0 to {MAX_SEED}")
        if self.rules is not None:
            _choose("rules", self.rules, RULES)
        object.__setattr__(self, "_rules", self.rules or RULES[0])
        for key in ("include", "exclude"):
            object.__setattr__(self, key, self._globs(key))
        object.__setattr__(self, "scope", parse_scope(self.scope))
        object.__setattr__(self, "also", self._parts())
        if self.axis is not None:
            _choose("axis", self.axis, AXES)
            if self.method != "resample":
                raise _refuse("axis", self.axis, f"nothing with method {self.method!r}; an axis is for 'resample'")
        if self.rules == "published":
            if self.method == "gaussian":
                raise _refuse(
                    "method", self.method, "reinit and resample with rules 'published', which repeat the study"
                )
            for key in ("axis", "include", "exclude", "scope", "also"):
                if getattr(self, key):
                    raise _refuse(key, getattr(self, key), "nothing with rules 'published', which repeat the study")
            if self.seed > PUBLISHED_MAX_SEED:
                why = f"the study's generator reads 32 bits, and this is seed {self.seed & PUBLISHED_MAX_SEED} again"
                raise _refuse("seed", self.seed, f"0 to {PUBLISHED_MAX_SEED} with rules 'published': {why}")
        if isinstance(self.base, Mapping):
            _known_keys("perturbation base", self.base, Base)
            object.__setattr__(self, "base", Base(**self.base))
        elif self.base is not None and not isinstance(self.base, Base):
            raise _refuse("base", self.base, "None or a dict of name, revision and digest")
        check_digest("digest", self.digest)
        if not isinstance(self.changed, bool):
            raise _refuse("changed", self.changed, "true, or absent")
        for key in _VERSIONS:
            if not isinstance(getattr(self, key), str | None):
                raise _refuse(key, getattr(self, key), "None or a string")

    def __str__(self) -> str:
        left = ("method", "base", "digest", "changed", *_VERSIONS)
        parts = [f"{key} {value}" for key, value in self.to_dict().items() if key not in left]
        return f"{self.method} ({', '.join(parts)}){', changed since' if self.changed else ''}"

    def _globs(self, key: str) -> tuple[str, ...]:
        value = getattr(self, key)
        if value is None:
            return ()
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise _refuse(key, value, "a list of globs over parameter names")
        for glob in value:
            if not isinstance(glob, str) or not glob:
                raise _refuse(key, glob, "globs that are non-empty strings")
        # the order and repeats of globs change nothing, so they must not make two perturbations differ
        return tuple(sorted(set(value)))

    def _parts(self) -> tuple[str, ...]:
        value = self.also
        names = [value] if isinstance(value, str) else () if value is None else value
        if not isinstance(names, list | tuple):
            raise _refuse("also", value, "a list of " + " and ".join(map(repr, PARTS)))
        for name in names:
            _choose("also", name, PARTS)
        return tuple(sorted(set(names)))

    @classmethod
    def parse(cls, value: object, rules: str | None = None) -> Perturbation:
        """Read a perturbation from a method name, a dict or a `Perturbation`.

        Args:
            value: any of these.
            rules: those of the network, where the value leaves them open.

        Raises:
            PerturbationError: if the value is none of these, or one of its keys is wrong.
        """
        if isinstance(value, cls):
            return value if value.rules is not None or rules is None else replace(value, rules=rules)
        if isinstance(value, str):
            return cls(method=value, rules=rules)
        if not isinstance(value, Mapping):
            named = f"the name of a method ({', '.join(METHODS)}), a dict or a Perturbation"
            raise PerturbationError(f"perturbation: got {value!r}; allowed: {named}")
        _known_keys("perturbation", value, cls)
        if "method" not in value:
            raise PerturbationError(f"perturbation key 'method' is missing; allowed: {', '.join(METHODS)}")
        return cls(**{**value, "rules": rules if value.get("rules") is None else value["rules"]})

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict that `parse` reads back; optional keys that are not set are left out."""
        output: dict[str, Any] = {"method": self.method, "seed": self.seed}
        if self.rules is not None:
            output["rules"] = self.rules
        if self.axis is not None:
            output["axis"] = self.axis
        for key in ("include", "exclude", "scope", "also"):
            if getattr(self, key):
                output[key] = list(getattr(self, key))
        if self.base is not None:
            output["base"] = {f.name: v for f in fields(Base) if (v := getattr(self.base, f.name)) is not None}
        if self.digest is not None:
            output["digest"] = self.digest
        if self.changed:
            output["changed"] = True
        return output | {key: value for key in _VERSIONS if (value := getattr(self, key)) is not None}

    def spelt_out(self, family: str) -> Perturbation:
        """Return the same perturbation with rules and axis said, where they were left to the `model_type`."""
        rules = self.rules or default_rules(family)
        is_left = self.method == "resample" and self.axis is None and rules != "published"
        return replace(self, rules=rules, axis=default_axis(family, rules) if is_left else self.axis)

    def with_record(self, base: Base | None, digest: str | None) -> Perturbation:
        """Return the same perturbation with its provenance, of weights that are as it made them."""
        return replace(self, base=base, digest=digest, changed=False)
