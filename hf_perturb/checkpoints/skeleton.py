"""A network of Transformers without values: what its tensors are, and how the installed Transformers draws each."""

from __future__ import annotations

import copy
import hashlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_iter
from transformers import MODEL_MAPPING
from transformers.modeling_utils import PreTrainedModel

from hf_perturb.checkpoints.constructed import BUILDING, Construction, construct, of_float32
from hf_perturb.checkpoints.drawing import Seen, Slots, has_nan, tied_keys
from hf_perturb.checkpoints.shapes import Shape
from hf_perturb.errors import PerturbationError
from hf_perturb.perturbation.floats import Array
from hf_perturb.perturbation.rules import Initialiser


@dataclass(frozen=True)
class Told:
    """What is known of a draw before it is asked for.

    Args:
        initialiser: what is drawn, as tables name it.
        source: the method that writes the tensor, and the class of the module that it is called for.
        constant: whether all entries are equal after the draw.
    """

    initialiser: Initialiser
    source: str
    constant: bool


class Skeleton:
    """The tensors of a `PreTrainedModel`, and how each is drawn.

    *Stored* names are those of the class at hand. *Canonical* names lack its `base_model_prefix`, so that the class
    with a head and the one without agree; a tensor's draw goes by that.

    Args:
        model: it is left as it is.
        construction: what its constructor did, where that is known.
    """

    def __init__(self, model: PreTrainedModel, construction: Construction | None = None):
        self.model = copy.deepcopy(model, _twins(model))
        if construction is not None:
            self._construction = construction
        self._free: list[Slots] = []

    @classmethod
    def build(cls, model_class: type[PreTrainedModel], config: Any) -> Skeleton:
        """Return the skeleton of a class with a configuration; nothing is drawn."""
        return cls(*construct(model_class, config))

    @classmethod
    def of(cls, model: PreTrainedModel) -> Skeleton:
        """Return the skeleton of a model, which is left as it is."""
        return cls(model)

    @cached_property
    def _state(self) -> dict[str, torch.Tensor]:
        return {self.canonical(name): tensor for name, tensor in self.model.state_dict(keep_vars=True).items()}

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Shape of every tensor of `state_dict()` by canonical name, in its order."""
        return {name: tuple(tensor.shape) for name, tensor in self._state.items()}

    @cached_property
    def parameters(self) -> frozenset[str]:
        """Canonical names of the floating-point parameters."""
        return frozenset(
            name for name, x in self._state.items() if isinstance(x, nn.Parameter) and x.is_floating_point()
        )

    @cached_property
    def tied(self) -> dict[str, str]:
        """The tensor that another one is, by canonical names."""
        targets = {self.canonical(name) for name in tied_keys(self.model)}
        first: dict[int, str] = {}
        for name, tensor in sorted(self._state.items(), key=lambda item: item[0] in targets):
            first.setdefault(id(tensor), name)
        return {name: first[id(x)] for name, x in self._state.items() if first[id(x)] != name}

    @cached_property
    def parts(self) -> dict[str, str]:
        """`"embeddings"` or `"head"` of the tensors of the input embedding and the output head, by canonical name."""
        return {**dict.fromkeys(self._head, "head"), **dict.fromkeys(self._embeddings, "embeddings")}

    @cached_property
    def two_parts(self) -> frozenset[str]:
        """Canonical names of the tensors that are of the input embedding and of the output head, being tied."""
        return self._embeddings & self._head

    @cached_property
    def _embeddings(self) -> frozenset[str]:
        return self._answered("get_input_embeddings")

    @cached_property
    def _head(self) -> frozenset[str]:
        return self._answered("get_output_embeddings")

    def _answered(self, method: str) -> frozenset[str]:
        """Return the canonical names of the tensors that models inside name when they are asked."""
        models = [module for module in self.model.modules() if isinstance(module, PreTrainedModel)]
        found = {id(tensor) for model in models for tensor in _tensors_of(_asked(model, method))}
        return frozenset(name for name, tensor in self._state.items() if id(tensor) in found)

    @cached_property
    def stacks(self) -> dict[str, int]:
        """The number of blocks of each stack of equal ones, by the canonical path of its `ModuleList`."""
        found: dict[str, dict[str, nn.ModuleList]] = defaultdict(dict)
        lists: list[str] = []
        holders = [name for name, each in self.model.named_modules() if isinstance(each, PreTrainedModel)]
        for path, module in self.model.named_modules():
            if not isinstance(module, nn.ModuleList) or any(path.startswith(f"{each}.") for each in lists):
                continue
            lists.append(path)
            if len({type(block) for block in module}) == 1:
                above = max((name for name in holders if not name or path.startswith(f"{name}.")), key=len)
                found[above][self.canonical(path)] = module
        return {path: blocks for each in found.values() for path, blocks in _longest(each).items()}

    @cached_property
    def _prefix(self) -> str:
        """What canonical names lack; nothing where two tensors would then have one name."""
        attribute = getattr(self.model, "base_model_prefix", "")
        if attribute and not isinstance(getattr(self.model, attribute, None), nn.Module):
            # some classes call their trunk by another name than the one that they say
            found: Any = MODEL_MAPPING.get(type(self.model.config), None)
            trunks = found if isinstance(found, tuple) else (found,)
            attribute = next((name for name, each in self.model.named_children() if type(each) in trunks), "")
        if not attribute:
            return ""
        names = [name.removeprefix(f"{attribute}.") for name in self.model.state_dict(keep_vars=True)]
        return f"{attribute}." if len(set(names)) == len(names) else ""

    @cached_property
    def _stored(self) -> dict[str, str]:
        return {self.canonical(name): name for name in self.model.state_dict(keep_vars=True)}

    def canonical(self, stored: str) -> str:
        """Return the canonical name of a tensor by its stored one."""
        return stored.removeprefix(self._prefix)

    def stored(self, name: str) -> str:
        """Return the stored name of a tensor by its canonical one."""
        return self._stored[name]

    def draw(self, name: str, seed: int, memory: Array | None = None) -> Array:
        """Draw a tensor as `_init_weights` does, whatever became of others; several threads may at once.

        Args:
            name: canonical.
            seed: that of the perturbation.
            memory: that may be used, of as many float32.

        Returns:
            float32, of the tensor's shape; perhaps in that memory.

        Raises:
            PerturbationError: if it is no floating-point parameter, or `_init_weights` leaves some of it as it is.
        """
        return self._drawn(name, seed, memory=memory).numpy()

    def told(self, name: str) -> Told:
        """Return what `draw` does to a tensor; it is drawn once to see it."""
        seen = Seen()
        drawn = self._drawn(name, 0, seen)
        low, high = (bound.item() for bound in torch.aminmax(drawn)) if drawn.numel() else (0.0, 0.0)
        text = f"{low:g}" if low == high else ", then ".join(text for text, _ in seen.writes)
        sources = dict.fromkeys(source for _, source in seen.writes)
        return Told(Initialiser("init_weights", text), "; ".join(sources), low == high)

    def _drawn(self, name: str, seed: int, seen: Seen | None = None, memory: Array | None = None) -> torch.Tensor:
        name = self.tied.get(name, name)
        if name not in self.parameters:
            raise PerturbationError(
                f"tensor {name!r}: `_init_weights` draws floating-point parameters; got"
                f" {'a buffer or integers' if name in self.shapes else 'a name that the network lacks'}"
            )
        stored = self.stored(name)
        with torch.inference_mode(False), torch.no_grad(), of_float32(), self._slots() as slots:
            try:
                own = None if memory is None else torch.from_numpy(memory)
                drawn = slots.draw(stored, generator_seed(seed, name), seen, memory=own)
                lacks = has_nan(drawn)
                if lacks and (begun := self._constructed(name, seed)) is not None:
                    # what it does not write is as the constructor left it, and so is what it works on
                    if seen is not None:
                        seen.before = [(step.text, step.constructor) for step in self._construction.steps(stored)]
                    drawn = slots.draw(stored, generator_seed(seed, name), seen, begun)
                    lacks = has_nan(drawn)
            except Exception as error:
                raise self._refused(name, f"fails ({type(error).__name__}: {error})") from error
        if lacks:
            raise self._refused(name, "and the constructor leave it, or a part of it, as it is")
        if drawn.shape != self.shapes[name]:
            raise self._refused(name, f"makes it of another shape, {tuple(drawn.shape)}")
        return drawn.float().contiguous()

    def _refused(self, name: str, why: str) -> PerturbationError:
        return PerturbationError(
            f"tensor {name!r}: `_init_weights` of {type(self.model).__name__} {why}, so there is no initialisation to"
            " draw it by; exclude it"
        )

    def _constructed(self, name: str, seed: int) -> torch.Tensor | None:
        """Return a tensor as the constructor leaves it, `None` where that cannot be told."""
        stored = self.stored(name)
        noted = self._construction.tensors.get(stored)
        if noted is None or noted.shape != self.shapes[name]:
            return None
        draws, owner = self._construction.draws(stored), stored.rpartition(".")[0]
        # parts of one draw, as direction and length of a weight are, come of the same numbers
        beside = (each for each in self._construction.tensors if draws and each.rpartition(".")[0] == owner)
        last = max([stored, *(each for each in beside if self._construction.draws(each) & draws)])
        generator = torch.Generator().manual_seed(generator_seed(seed, self.canonical(last)))
        return self._construction.value(stored, generator).float()

    @cached_property
    def _construction(self) -> Construction:
        return construct(type(self.model), self.model.config)[1]

    @contextmanager
    def _slots(self) -> Iterator[Slots]:
        """Lend a network of one's own: while a tensor is drawn it has values there."""
        try:
            slots = self._free.pop()
        except IndexError:
            with BUILDING:  # nobody copies what another copies
                slots = Slots(copy.deepcopy(self.model))
        try:
            yield slots
        finally:
            self._free.append(slots)


def generator_seed(seed: int, name: str) -> int:
    """Return what torch's generator of a tensor is seeded with: no other tensor and no order can change its draws."""
    words = hashlib.sha256(f"hf_perturb/2/{seed}/{name}".encode()).digest()[:8]
    return int.from_bytes(words, "big") & (2**63 - 1)


def _longest(lists: dict[str, nn.ModuleList]) -> dict[str, int]:
    """Return the number of blocks of the longest lists of a model, by path."""
    sizes = {path: sum(tensor.numel() for tensor in each.parameters()) for path, each in lists.items()}
    # a list of small parts, such as norms or the embeddings of tags, is no trunk however long
    long = {path: len(each) for path, each in lists.items() if 0 < 10 * sizes[path] >= max(sizes.values())}
    return {path: blocks for path, blocks in long.items() if blocks == max(long.values())}


def _twins(model: nn.Module) -> dict[int, Any]:
    """Return a tensor without values for each that a network holds, by its identity, so that ties stay."""
    return {
        id(tensor): _twin(tensor)
        for module in model.modules()
        for tensor in tree_iter(vars(module))
        if isinstance(tensor, torch.Tensor)
    }


def _twin(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor without values of the same kind."""
    twin = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(twin, requires_grad=tensor.requires_grad)
    return twin


def _asked(model: PreTrainedModel, method: str) -> Any:
    """Return what a model says of its embeddings: `None` where it has none."""
    try:
        return getattr(model, method)()
    except (NotImplementedError, AttributeError):
        return None


def _tensors_of(held: Any) -> Iterator[torch.Tensor]:
    """Yield the parameters of a module, or of several: some models have an embedding a code book."""
    if isinstance(held, torch.Tensor):
        yield held
    elif isinstance(held, nn.Module):
        yield from held.parameters()
    elif isinstance(held, dict | list | tuple):
        for each in held.values() if isinstance(held, dict) else held:
            yield from _tensors_of(each)
