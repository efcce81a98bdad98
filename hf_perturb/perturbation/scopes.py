"""Scopes: names for parts of a network that studies perturb, as data on top of `include` and `exclude`.

A scope only chooses tensors. It never changes how one is drawn, so a tensor's draw is the same in every scope.

Sources: classes are those of fair-esm 2.0.0 and sequence-models 1.8.0, *study* is as in `rules.py`, *cascade* is the
cascading randomisation of Adebayo et al., "Sanity checks for saliency maps", 2018.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from hf_perturb.errors import PerturbationError
from hf_perturb.perturbation.rules import expand, rows_of


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

    def holds(self, layer: int | None, rest: str) -> bool:
        """Whether a tensor is in scope: the `rest` of its name after its `layer`, `None` outside the layers."""
        named = any(fnmatchcase(rest, glob) for glob in expand(self.pattern))
        return not named if self.keeps else named and layer is not None


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
_SPAN = re.compile(f"(?:(top|bottom):|layers:{_NUMBER}-){_NUMBER}")
_IN_LAYER = re.compile(r"(?:model\.embedder\.)?layers\.([0-9]+)\.(.+)")


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


def in_scope(family: str, names: Iterable[str], scope: Iterable[str]) -> set[str]:
    """Return the tensors, of all of the network's, that are in every one of the scopes.

    Raises:
        PerturbationError: if the family lacks a scope, or the network a layer.
    """
    places = {name: _place(name) for name in names}
    depth, chosen = depth_of(places), set(places)
    for each in scope:
        if (found := _read(each)) is not None:
            layers = _layers(each, *found, depth)
            chosen &= {name for name, (layer, _) in places.items() if layer in layers}
        else:
            part = _part(family, each)
            chosen &= {name for name, place in places.items() if part.holds(*place)}
    return chosen


def depth_of(names: Iterable[str]) -> int:
    """Return the number of layers of the network that tensors with these names make."""
    return max((layer + 1 for layer, _ in map(_place, names) if layer is not None), default=0)


def scope_text(family: str, name: str) -> str:
    """Return in a few words what a scope perturbs, `"the 4 layers nearest the output"`."""
    if (found := _read(name)) is None:
        return _part(family, name).text
    kind, first, last = found
    return (SPANS[kind].one if first == last else SPANS[kind].text).format(first=first, last=last)


def cascade(depth: int, direction: str) -> list[str]:
    """Return the scopes of a cascade, each with one layer more than the one before, up to `depth` layers.

    It begins at the output, `"top-down"`, or at the input, `"bottom-up"`. Source: cascade; it is top-down there.

    Raises:
        PerturbationError: if the depth is not a positive integer, or the direction is another.
    """
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise PerturbationError(f"cascade depth: got {depth!r}; allowed: the network's number of layers, 1 or more")
    if direction not in tuple(DIRECTIONS):
        raise PerturbationError(f"cascade direction: got {direction!r}; allowed: {', '.join(map(repr, DIRECTIONS))}")
    return [f"{DIRECTIONS[direction]}:{count}" for count in range(1, depth + 1)]


def _place(name: str) -> tuple[int | None, str]:
    found = _IN_LAYER.fullmatch(name)
    return (int(found[1]), found[2]) if found else (None, name)


def _read(name: str) -> tuple[str, int, int] | None:
    """Return kind, first and last number of a scope that names layers, `("top", 1, 4)` of `top:4`."""
    found = _SPAN.fullmatch(name)
    if found is None:
        return None
    kind, first, last = found[1] or "layers", int(found[2] or 1), int(found[3])
    return (kind, first, last) if first <= last else None


def _layers(name: str, kind: str, first: int, last: int, depth: int) -> range:
    if last > depth - (kind == "layers"):
        allowed = f"I and J from 0 to {depth - 1}" if kind == "layers" else f"K from 1 to {depth}"
        raise _refuse(name, f"{SPANS[kind].form!r} with {allowed}, for this network has {depth} layers")
    if kind == "layers":
        return range(first, last + 1)
    return range(depth - last, depth) if kind == "top" else range(last)


def _part(family: str, name: str) -> Part:
    rows_of(family)  # names the families if there is no such one
    for part in PARTS[family]:
        if part.name == name:
            return part
    raise _refuse(name, f"for family {family!r}, " + _forms(part.name for part in PARTS[family]))


def _forms(names: Iterable[str]) -> str:
    return ", ".join(map(repr, [*(span.form for span in SPANS.values()), *names])) + " (K at least 1, I at most J)"


def _refuse(value: object, allowed: str) -> PerturbationError:
    return PerturbationError(f"perturbation scope: got {value!r}; allowed: {allowed}")
