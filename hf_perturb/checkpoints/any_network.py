"""Any network that Transformers has, as its configuration and its class describe it: its tensors and its own rules.

Names are those of the files. What a tensor is drawn by is its name in the trunk, so that a model with a head and one
without agree: `encoder.layer.0.output.dense.weight` for `bert.encoder.layer.0.output.dense.weight`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from inspect import signature
from typing import TYPE_CHECKING, Any

from hf_perturb.checkpoints.network import Network
from hf_perturb.checkpoints.shapes import Shape, listed
from hf_perturb.errors import CheckpointError, PerturbationError, UnsupportedModuleError
from hf_perturb.perturbation.rules import Initialiser, Place, Row, Table

if TYPE_CHECKING:
    from hf_perturb.checkpoints.conversions import Stack
    from hf_perturb.checkpoints.skeleton import Skeleton, Told
    from hf_perturb.perturbation.floats import Array

_OWN = Initialiser("init_weights", "as its own `_init_weights` draws it")
# the output heads of ours, which are no modules that `get_output_embeddings` could return
_HEADS = {
    "fair_esm": ("embed_out", "embed_out_bias", "lm_head.weight"),
    "carp": ("model.decoder.conv.weight", "model.decoder.conv.bias"),
}
# what a configuration says that is nothing to tensors, and may need what is not here to be obeyed
_NOT_OF_TENSORS = {"perturbation", "quantization_config", "attn_implementation", "_attn_implementation"}
_SOURCE = "`PreTrainedModel._init_weights` of the network"


@dataclass(frozen=True)
class DerivedTable(Table):
    """The rules `"transformers"` of a network, which its own classes say.

    Args:
        skeletons: the class that it is stored as, and its trunk, which may have tensors of its own.
        stored: where each tensor of its files is, and its name there; `None` for one that no class has.
        stacks: tensors of its files that are held as others.
    """

    rules: tuple[str, ...] = ("transformers",)
    skeletons: tuple[Skeleton, ...] = ()
    stored: Mapping[str, tuple[Skeleton, str] | None] = field(default_factory=dict, repr=False)
    stacks: tuple[Stack, ...] = ()
    _told: dict[tuple[object, ...], Told] = field(default_factory=dict, repr=False, compare=False)

    def find(self, name: str) -> tuple[Skeleton, str] | None:
        """Return where a tensor is, and its name there; `None` for one that no class has."""
        if name in self.stored:
            return self.stored[name]
        for skeleton in self.skeletons:
            if (own := skeleton.canonical(name)) in skeleton.shapes:
                return skeleton, own
        return None

    def of_files(self, shapes: Mapping[str, Shape]) -> DerivedTable:
        """Return the same table for files with tensors of these names, which Transformers may hold by others."""
        from hf_perturb.checkpoints.conversions import conversions_of

        stored: dict[str, tuple[Skeleton, str] | None] = dict.fromkeys(shapes)
        stacks: list[Stack] = []
        for skeleton in self.skeletons:
            left = {name: shape for name, shape in shapes.items() if stored[name] is None}
            found = conversions_of(skeleton, left)
            stored |= {name: (skeleton, own) for name, own in found.names.items()}
            stacks += found.stacks
        return replace(self, stored=stored, stacks=tuple(stacks))

    def check(self) -> None:
        """Raise if a class has weights that its loss alone uses: to perturb them is to change nothing that it says."""
        for skeleton in self.skeletons:
            modules, model = skeleton.model.named_modules(), type(skeleton.model).__name__
            odd = [
                f"{name} ({type(each).__name__})"
                for name, each in modules
                if type(each).__name__.endswith("Loss") and any(True for _ in each.parameters())
            ]
            if odd:
                raise UnsupportedModuleError(
                    f"{model} has weights that its loss alone uses, {listed(odd)}, so they are in nothing that it puts"
                    " out; perturb the network without them (AutoModel), and put a head on that"
                )

    def row(self, name: str) -> Row:
        """Return the rule of a tensor: only a parameter of floating point is perturbed, if it is in no kept part."""
        found, pattern = self.find(name), _pattern(name)
        if found is None or found[1] not in found[0].parameters:
            return Row(pattern, None, "a buffer, or no floating point")
        if found[0].stored(found[1]) in (found[0].model._keys_to_ignore_on_save or ()):
            return Row(pattern, None, "never stored: as the constructor makes it")
        head = "head" if found[1] in _HEADS.get(self.family, ()) else None
        part = found[0].parts.get(found[1], head)
        return Row(pattern, _OWN, _SOURCE, part=part, other="head" if found[1] in found[0].two_parts else None)

    def initialiser(self, name: str, rules: str) -> Initialiser | None:
        """Return how the network itself draws a tensor.

        Raises:
            PerturbationError: if it does not.
        """
        found = self.find(name)
        return None if found is None else self.told(*found).initialiser

    def told(self, skeleton: Skeleton, own: str) -> Told:
        """Return what is known of the draw of a tensor; those of a pattern and a shape are drawn alike.

        Where those beside it are of the same shapes, that is: the bound of a bias is that of its weight.
        """
        beside = skeleton.model.get_submodule(skeleton.stored(own).rpartition(".")[0]).parameters()
        alike = _pattern(own), skeleton.shapes[own], *(tuple(each.shape) for each in beside)
        if alike not in self._told:
            self._told[alike] = skeleton.told(own)
        return self._told[alike]

    def is_constant(self, name: str) -> bool:
        """Whether all entries of a tensor are equal once it is drawn."""
        found = self.find(name)
        return found is not None and self.told(*found).constant

    def source(self, name: str) -> str:
        """Return whose `_init_weights` draws a tensor, and as a part of what; nothing for what none draws."""
        found = self.find(name)
        try:
            return "" if found is None or found[1] not in found[0].parameters else self.told(*found).source
        except PerturbationError:
            return ""

    def drawn(self, name: str, seed: int) -> Callable[[Array], Array] | None:
        """Return what draws a tensor as the network itself does."""
        found = self.find(name)
        return None if found is None else partial(found[0].draw, found[1], seed)

    def named(self, name: str) -> str:
        """Return the name of a tensor in the trunk, by which it is drawn."""
        found = self.find(name)
        return name if found is None else found[1]

    def stack(self, named: str) -> str:
        """Return the stack that a scope means; the only one of a part may be named as in the whole."""
        paths = {path for skeleton in self.skeletons for path in skeleton.stacks}
        return "" if len(paths) == 1 and f"{paths.pop()}.".startswith(f"{named}.") else named

    def place(self, name: str) -> Place:
        """Return the stack of layers that a tensor is in, and its number there."""
        found = self.find(name)
        if found is None:
            return Place("", None, name)
        skeleton, own = found
        for path in skeleton.stacks:
            number, _, rest = own.removeprefix(f"{path}.").partition(".")
            if own.startswith(f"{path}.") and number.isdecimal():
                return Place(_shortest(path, skeleton.stacks), int(number), rest)
        return Place("", None, own)


def _pattern(name: str) -> str:
    return re.sub(r"\b\d+\b", "*", name)


def _shortest(path: str, stacks: Iterable[str]) -> str:
    """Return the beginning of the path of a stack that tells it from the others, nothing of the only one."""
    others, parts = [other for other in stacks if other != path], path.split(".")
    beginnings = (".".join(parts[:count]) for count in range(len(parts) + 1))
    return next(
        each for each in beginnings if not any(f"{other}.".startswith(f"{each}." if each else "") for other in others)
    )


@dataclass(frozen=True)
class AnyNetwork(Network):
    """A network that is none of ours, as a class of Transformers or of the code that comes with it has it.

    Torch and Transformers are imported when its classes are asked for: a digest needs neither.

    Args:
        written: the content of its `config.json`.
        name: of the folder or Hub id, for messages.
        source: of the code that comes with it, `None` where none may be run.
        found: shape of every tensor that is stored; none, to go by the class that it is stored as.
    """

    sizes: Any = None
    architecture: str = ""
    written: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    source: Code | None = None
    found: Mapping[str, Shape] = field(default_factory=dict)

    @classmethod
    def of_config(cls, written: Mapping[str, Any], name: str, source: Code | None) -> AnyNetwork:
        """Read a network from the content of a `config.json`."""
        architecture = next(iter(written.get("architectures") or [""]))
        return cls(architecture=str(architecture), written=written, name=name, source=source)

    def with_tensors(self, found: Mapping[str, Shape]) -> AnyNetwork:
        """Return the same network as it is stored, with these tensors."""
        return replace(self, found=dict(found), _shapes={})

    @cached_property
    def _table(self) -> DerivedTable:
        return derived_table(self).of_files(self.found) if self.found else derived_table(self)

    @property
    def family(self) -> str:
        """`model_type` of its configuration."""
        return str(self.written.get("model_type"))

    @property
    def version(self) -> None:
        """There are no generations."""

    @property
    def max_tokens(self) -> None:
        """What its tokenizer says."""

    @property
    def rules(self) -> str:
        """Its own are all that there are, also where a family of ours reads the same files."""
        return "transformers"

    def table(self, rules: str | None = None) -> DerivedTable:
        """Return the rules that its classes give, whatever set is asked for."""
        return self._table

    @property
    def classes(self) -> list[type]:
        """The class that it is stored as, and that of its trunk."""
        return [type(skeleton.model) for skeleton in self.table().skeletons]

    def empty(self) -> Any:
        """Return the model that it is stored as, without values; it is nobody's to change."""
        return self.table().skeletons[0].model

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shape of every tensor that is stored and that one of its classes has, or of all of its class.

        Of what is stored one by one and held as others, these are the others.
        """
        if not self._shapes:
            table, first = self.table(), self.table().skeletons[0]
            every = self.found or {first.stored(name): shape for name, shape in first.shapes.items()}
            stacked = {name for stack in table.stacks for name in stack.patterns}
            self._shapes.update({name: of for name, of in every.items() if table.find(name) and name not in stacked})
            for stack in table.stacks:
                self._shapes.update({stack.skeleton.stored(own): shape for own, shape in stack.shapes.items()})
            order = {name: number for number, name in enumerate(first.shapes)}
            shapes = sorted(self._shapes.items(), key=lambda item: order.get(table.named(item[0]), len(order)))
            self._shapes.clear()
            self._shapes.update(shapes)
        return self._shapes

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """What is stored one by one and held as others."""
        return self.table().stacks

    @property
    def language_head(self) -> tuple[str, ...]:
        """None that another class of it would have."""
        return ()

    def whole(self, rules: str) -> dict[str, Shape]:
        """Return nothing beside what is stored: no draw depends on another."""
        return {}

    @property
    def tied(self) -> dict[str, str]:
        """Names of stored tensors that are another one that is stored."""
        places: dict[tuple[Skeleton, str], list[str]] = {}
        table = self.table()
        for name in self.shapes:
            if found := table.find(name):
                skeleton, own = found
                same = places.setdefault((skeleton, skeleton.tied.get(own, own)), [])
                # the one that Transformers itself would store comes first
                same.insert(len(same) if own in skeleton.tied else 0, name)
        return {name: first for first, *others in places.values() for name in others}

    def differences(self, found: Mapping[str, Shape]) -> str:
        """Say how the tensors of a checkpoint differ from those of the class that it is stored as."""
        table = self.table()
        places = {name: place for name in found if (place := table.find(name)) is not None}
        shapes: dict[str, tuple[Shape, Shape | None]] = {
            name: (found[name], skeleton.shapes[own]) for name, (skeleton, own) in places.items()
        }
        for stack in table.stacks:
            for name in stack.patterns:
                del shapes[name]
            shapes |= {name: (shape, stack.skeleton.shapes.get(name)) for name, shape in stack.shapes.items()}
        other = [f"{name} {one} instead of {expected}" for name, (one, expected) in shapes.items() if one != expected]
        # a trunk may be stored under the name of a class with a head, which it lacks
        missing = min((self.lost(number) for number, _ in enumerate(table.skeletons)), key=bool)
        problems = {"missing tensors": missing, "tensors of another shape": other}
        return "; ".join(f"{problem}: {listed(sorted(names))}" for problem, names in problems.items() if names)

    def lost(self, number: int = 0) -> list[str]:
        """Return those of the parameters that are not stored without which there is no such network.

        A pooler may have been left out: some classes can be built without it.
        """
        skeleton, missing = self.table().skeletons[number], self.missing(number)
        is_optional = "add_pooling_layer" in signature(type(skeleton.model).__init__).parameters
        return [name for name in missing if not (is_optional and skeleton.canonical(name).startswith("pooler."))]

    def names_in(self, other: AnyNetwork) -> dict[str, str]:
        """Return what another network with the same trunk calls each tensor that is stored; what it lacks as here."""
        theirs, mine = (
            {name: each.table().named(name) for name in each.found if each.table().find(name)} for each in (other, self)
        )
        # of what is held as one with others, nobody asks by that name
        alone = [{own for own, count in Counter(each.values()).items() if count == 1} for each in (theirs, mine)]
        called = {own: name for name, own in theirs.items() if own in alone[0] & alone[1]}
        return {name: called.get(mine.get(name, name), name) for name in self.found}

    def has_no_place_for(self, other: AnyNetwork, name: str) -> bool:
        """Whether a tensor of another network is none of the class that this one is stored as."""
        found, first = other.table().find(name), self.table().skeletons[0]
        return found is None or found[1] not in first.shapes

    def missing(self, number: int = 0) -> list[str]:
        """Return the parameters of one of its classes that are not stored, by default of the first."""
        table = self.table()
        skeleton = table.skeletons[number]
        here = {place[1] for place in table.stored.values() if place is not None}
        here.update(*(stack.shapes for stack in table.stacks))
        here = {skeleton.tied.get(name, name) for name in here}
        left = [skeleton.stored(name) for name in skeleton.parameters if skeleton.tied.get(name, name) not in here]
        unmissed = skeleton.model._keys_to_ignore_on_load_missing or ()
        return [name for name in left if not any(re.search(each, name) for each in unmissed)]

    def is_parameter(self, name: str) -> bool:
        """Whether a tensor is a parameter of floating point, not a buffer."""
        found = self.table().find(name)
        return found is not None and found[1] in found[0].parameters

    def with_sizes(self, **changes: Any) -> Network:
        """Raise, for nothing of it is changed."""
        raise PerturbationError(f"{self.name!r}: got {changes}; allowed: the sizes of its config.json")

    def to_dict(self) -> dict[str, Any]:
        """Return nothing beside what is written."""
        return {}

    @property
    def code_revision(self) -> str | None:
        """The commit of the code that it comes with, if that is run."""
        return None if self.source is None else dict(self.source.hub).get("revision")

    @property
    def auto_map(self) -> dict[str, str]:
        """The code that its `config.json` names, if any."""
        said = self.written.get("auto_map")
        return dict(said) if isinstance(said, dict) else {}


@dataclass(frozen=True)
class Code:
    """The code of a network that Transformers does not have, which may be run.

    Args:
        location: the folder or Hub id that its `config.json` is in.
        hub: what else finds a file there, as pairs.
    """

    location: str
    hub: tuple[tuple[str, Any], ...] = ()


def derived_table(network: Network) -> DerivedTable:
    """Return what the classes of a network say of each of its tensors.

    Raises:
        CheckpointError: if Transformers has no such class, or needs code that may not be run.
    """
    source = network.source if isinstance(network, AnyNetwork) else None
    written = network.written if isinstance(network, AnyNetwork) else network.to_dict()
    name = network.name if isinstance(network, AnyNetwork) else network.family
    told = {key: value for key, value in written.items() if key not in _NOT_OF_TENSORS}
    try:
        return _table(json.dumps(told, sort_keys=True), network.architecture, source)
    except CheckpointError as error:
        raise CheckpointError(f"{name!r}: {error}") from error


def _number(said: dict[str, Any]) -> Any:
    """Return the number for which JSON has no word, as Transformers writes it, and anything else as it is."""
    return float(said["__float__"]) if [*said] == ["__float__"] else said


@lru_cache(maxsize=8)
def _table(written: str, architecture: str, source: Code | None) -> DerivedTable:
    from hf_perturb.checkpoints.classes import classes_of
    from hf_perturb.checkpoints.skeleton import Skeleton

    stored = json.loads(written, object_hook=_number)
    try:
        config, classes = classes_of(stored, architecture, source)
        skeletons = [Skeleton.build(each, config) for each in classes[:1]]
    except CheckpointError:
        raise
    except Exception as error:  # of constructors, whatever they make of a configuration that is not theirs
        why = " ".join(str(error).split())
        raise CheckpointError(f"its config.json cannot be used ({type(error).__name__}: {why})") from error
    with suppress(Exception):  # a trunk may want more than a configuration of the whole says
        skeletons += [Skeleton.build(each, config) for each in classes[1:]]
    return DerivedTable(str(stored.get("model_type")), (), skeletons=tuple(skeletons))
