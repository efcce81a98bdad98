"""Scopes: names for parts of a network that studies perturb, as data on top of `include` and `exclude`.

A scope only chooses tensors. It never changes how one is drawn, so a tensor's draw is the same in every scope.

Sources: classes are those of fair-esm 2.0.0 and sequence-models 1.8.0, *study* is as in `rules.py`, *cascade* is the
cascading randomisation of Adebayo et al., "Sanity checks for saliency maps", 2018.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from hf_perturb.errors import PerturbationError
from hf_perturb.perturbation.rules import Place, Table, expand, table_of


@dataclass(frozen=True)
class Span:
    """A scope that names whole layers. Embeddings, final norms and heads are in no layer.

    Args:
        form: how it is written, its numbers as letters.
        text: what it names, `first` and `last` the numbers; K of `top` and `bottom` is the last, counted from 1.
        one: the same where that is one layer.
        source: where studies use it.
    """

    form: str
    text: str
    one: str
    source: str


@dataclass(frozen=True)
class Part:
    """A scope that names a part of the network by its tensors.

    Args:
        name: how it is written.
        pattern: the tensors, by the rest of their names after `layers.N.` (by the whole name outside the layers);
            `*` stands for anything, `{a,b}` for either.
        text: what is perturbed.
        source: what makes these tensors that part.
        keeps: whether these stay as they are and all others are in scope, rather than these alone.
    """

    name: str
    pattern: str
    text: str
    source: str
    keeps: bool = False

    def holds(self, place: Place) -> bool:
        """Whether a tensor is in scope."""
        named = any(fnmatchcase(place.rest, glob) for glob in expand(self.pattern))
        return not named if self.keeps else named and place.layer is not None


_STUDY = "ESM1LayerNorm and ESM1bLayerNorm; the study leaves them"

SPANS = {
    "top": Span("top:K", "the {last} layers nearest the output", "the layer nearest the output", "cascade, top down"),
    "bottom": Span(
        "bottom:K", "the {last} layers nearest the input", "the layer nearest the input", "cascade, bottom up"
    ),
    "layers": Span(
        "layers:I-J",
        "layers {first} to {last}, counted from 0 at the input, both included",
        "layer {first}, counted from 0 at the input",
        "one layer at a time, or a block of them",
    ),
}

PARTS = {
    "fair_esm": (
        Part("attention", "self_attn.*", "attention only, without its layer norm", "TransformerLayer.self_attn"),
        Part("feed_forward", "fc{1,2}.*", "the two feed-forward projections only", "TransformerLayer.fc1 and fc2"),
        Part("keep_layer_norms", "*layer_norm*", "all but the layer norms, inside layers and out", _STUDY, keeps=True),
    ),
    "carp": (
        Part("convolution", "conv.*", "the dilated convolutions only, which mix residues", "ByteNetBlock.conv"),
        Part("feed_forward", "sequence{1,2}.2.conv.*", "the pointwise convolutions only", "PositionFeedForward"),
        Part(
            "keep_layer_norms",
            "{sequence1.0,sequence1.3,sequence2.0,model.last_norm}.*",
            "all but the layer norms, inside layers and out",
            "ByteNetBlock and ByteNetLM.last_norm",
            keeps=True,
        ),
    ),
}

DIRECTIONS = {"top-down": "top", "bottom-up": "bottom"}

_NAMES = tuple(sorted({part.name for parts in PARTS.values() for part in parts}))
# six digits are more layers than any network has, and int() refuses thousands of them in its own words
_NUMBER = "(0|[1-9][0-9]{0,5})"
_STACK = r"(?:(\w+(?:\.\w+)*)\.)?"
_SPAN = re.compile(f"{_STACK}(?:(top|bottom):|layers:{_NUMBER}-){_NUMBER}")
_DIRECTION = re.compile(f"{_STACK}({'|'.join(DIRECTIONS)})")


def parse_scope(value: object) -> tuple[str, ...]:
    """Read the key `scope`: a list of names, or one as shorthand.

    Returns:
        The names in order, each once: neither order nor repeats choose another tensor.

    Raises:
        PerturbationError: if one is not written as any family's scope is.
    """
    names = [value] if isinstance(value, str) else () if value is None else value
    if not isinstance(names, list | tuple):
        raise _refuse(value, "a list of scopes: " + _forms(_NAMES))
    for name in names:
        if not isinstance(name, str) or not (name in _NAMES or _read(name)):
            raise _refuse(name, _forms(_NAMES))
    return tuple(sorted(set(names)))


def in_scope(family: str | Table, names: Iterable[str], scope: Iterable[str]) -> set[str]:
    """Return the tensors, of all of the network's, that are in every one of the scopes.

    Raises:
        PerturbationError: if the network lacks a scope, a layer, or a stack of layers.
    """
    table = table_of(family)
    places = {name: table.place(name) for name in names}
    depths, chosen = _depths(places.values()), set(places)
    for each in scope:
        if (found := _read(each)) is not None:
            stack = _stack_of(each, table.stack(found.stack), depths)
            layers = _layers(each, found, depths.get(stack, 0))
            chosen &= {name for name, place in places.items() if place.stack == stack and place.layer in layers}
        else:
            part = _part(table, each)
            chosen &= {name for name, place in places.items() if part.holds(place)}
    return chosen


def depth_of(names: Iterable[str], family: str | Table = "fair_esm", direction: str = "top-down") -> int:
    """Return the number of layers of the network that tensors with these names make, or of the stack of a cascade."""
    table, found = table_of(family), _DIRECTION.fullmatch(direction)
    depths, named = _depths(map(table.place, names)), table.stack((found and found[1]) or "")
    return depths.get(_stack_of(direction, named, depths, "cascade direction"), 0)


def _depths(places: Iterable[Place]) -> dict[str, int]:
    """Return the number of layers of each stack that tensors are in."""
    depths: dict[str, int] = {}
    for place in places:
        if place.layer is not None:
            depths[place.stack] = max(depths.get(place.stack, 0), place.layer + 1)
    return depths


def _stack_of(scope: str, named: str, depths: Mapping[str, int], key: str = "perturbation scope") -> str:
    """Return the stack that a scope or a cascade is of: the one that it names, or the only one."""
    if named in depths or (not named and not depths):
        return named
    if not named and len(depths) == 1:
        return next(iter(depths))
    form = scope.removeprefix(f"{named}.")
    stacks = [f"{stack}.{form}" if stack else form for stack in depths]
    allowed = f"one of {', '.join(map(repr, stacks))}, for these are the network's stacks of layers"
    raise PerturbationError(f"{key}: got {scope!r}; allowed: {allowed}")


def scope_text(family: str | Table, name: str) -> str:
    """Return in a few words what a scope perturbs, `"the 4 layers nearest the output"`."""
    if (found := _read(name)) is None:
        return _part(table_of(family), name).text
    text = SPANS[found.kind].one if found.first == found.last else SPANS[found.kind].text
    text = text.format(first=found.first, last=found.last)
    return f"{text} of `{found.stack}`" if found.stack else text


def cascade(depth: int, direction: str) -> list[str]:
    """Return the scopes of a cascade, each with one layer more than the one before, up to `depth` layers.

    It begins at the output, `"top-down"`, or at the input, `"bottom-up"`; of one of several stacks of layers, that is
    named before, `"encoder.top-down"`. Source: cascade; it is top-down there.

    Raises:
        PerturbationError: if the depth is not a positive integer, or the direction is another.
    """
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise PerturbationError(f"cascade depth: got {depth!r}; allowed: the network's number of layers, 1 or more")
    found = _DIRECTION.fullmatch(direction) if isinstance(direction, str) else None
    if found is None:
        allowed = f"{', '.join(map(repr, DIRECTIONS))}, of several stacks of layers 'encoder.top-down' and the like"
        raise PerturbationError(f"cascade direction: got {direction!r}; allowed: {allowed}")
    stack = f"{found[1]}." if found[1] else ""
    return [f"{stack}{DIRECTIONS[found[2]]}:{count}" for count in range(1, depth + 1)]


class _Span(NamedTuple):
    """A scope that names layers, as it is written: `top:4` is layers 1 to 4 of kind `top`."""

    stack: str
    kind: str
    first: int
    last: int


def _read(name: str) -> _Span | None:
    """Read a scope that names layers."""
    found = _SPAN.fullmatch(name)
    if found is None:
        return None
    span = _Span(found[1] or "", found[2] or "layers", int(found[3] or 1), int(found[4]))
    return (
        span if (span.kind == "layers" and span.first <= span.last) or (span.kind != "layers" and span.last) else None
    )


def _layers(name: str, span: _Span, depth: int) -> range:
    if span.last > depth - (span.kind == "layers"):
        allowed = f"I and J from 0 to {depth - 1}" if span.kind == "layers" else f"K from 1 to {depth}"
        raise _refuse(name, f"{SPANS[span.kind].form!r} with {allowed}, for this network has {depth} layers")
    if span.kind == "layers":
        return range(span.first, span.last + 1)
    return range(depth - span.last, depth) if span.kind == "top" else range(span.last)


def _part(table: Table, name: str) -> Part:
    parts = PARTS.get(table.family, ())
    for part in parts:
        if part.name == name:
            return part
    raise _refuse(name, f"for family {table.family!r}, " + _forms(part.name for part in parts))


def _forms(names: Iterable[str]) -> str:
    return ", ".join(map(repr, [*(span.form for span in SPANS.values()), *names])) + " (K at least 1, I at most J)"


def _refuse(value: object, allowed: str) -> PerturbationError:
    return PerturbationError(f"perturbation scope: got {value!r}; allowed: {allowed}")
