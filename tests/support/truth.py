"""What weights really are, known beside what is said of them: the judge of the state machine."""

from __future__ import annotations

import copy
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import safetensors.torch
import torch
from transformers.utils import logging as transformers_logging

import hf_perturb
from hf_perturb.checkpoints.of_torch import torch_dtype
from hf_perturb.loading.perturb import counted
from hf_perturb.networks.seal import fingerprints, judged
from hf_perturb.perturbation import Perturbation, digest_of
from hf_perturb.perturbation.digest import digest_of_lines, lines_of
from support.models import CONFIGS, small_model
from support.owners import OWN_CLASSES

REFUSALS = (hf_perturb.errors.HfPerturbError, ValueError, OSError)
_ESM = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 12,
}
SIZES = {**dict.fromkeys(CONFIGS, _ESM), "carp": {"hidden_size": 8, "num_hidden_layers": 2, "slim": True}}
PERTURBATIONS = (
    Perturbation("reinit"),
    Perturbation("resample", seed=0),
    Perturbation("resample", axis="rows"),
    Perturbation("gaussian", also=["embeddings"]),
    Perturbation("reinit", exclude=("lm_head.weight",)),
    Perturbation("reinit", seed=7, include=("*layers.1.*",)),
    Perturbation("resample", rules="published"),
)
Lines = Mapping[str, str]


def is_downstream(name: str) -> bool:
    """Whether a tensor is one of a head on top, ours or somebody's own."""
    return name.startswith(("classifier.", "own_head.", "layers.0.own."))


def counting(cls: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors that count in a digest: all of a class of ours, those of the network of somebody's."""
    if cls.__name__ not in OWN_CLASSES:
        return dict(tensors)
    return {name: tensor for name, tensor in plainly_named(tensors).items() if not is_downstream(name)}


class ViolationError(AssertionError):
    """Something is said of weights that is not so, or what is true is refused."""


def plainly_named(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a network under their own names, also where an adapter is attached to it."""
    parts = (".base_layer", ".original_module")
    held = next((name.partition(".")[0] + "." for name in tensors if name.startswith(("carp.", "esm."))), "")
    named = {
        name.removeprefix(held): tensor
        for name, tensor in tensors.items()
        if name.startswith(held) and "lora_" not in name and not tensor.is_meta
    }
    for part in parts:
        named = {name.replace(part, ""): tensor for name, tensor in named.items()}
    return named


def network_lines(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return what a digest says of each tensor of the perturbed network, which heads on top of it are no part of."""
    return {name: line for name, line in lines_of(plainly_named(tensors)).items() if not is_downstream(name)}


def without_provenance(record: Perturbation, family: str) -> Perturbation:
    return replace(record, base=None, digest=None, changed=False).spelt_out(family)


def twin(model: Any, tensors: Mapping[str, torch.Tensor] | None = None) -> Any:
    """Return a base of the same class with copies of tensors, by nothing but the network's own constructor."""
    config = copy.deepcopy(model.config)
    config.set_record(None, None, of_model=False)
    state = model.state_dict() if tensors is None else tensors
    network = plainly_named(state)
    head, embedding = network.get("lm_head.weight"), network.get("embed_tokens.weight")
    if head is not None and embedding is not None and not torch.equal(head, embedding):
        config.tie_word_embeddings = False  # whatever was put there
    made = type(model).without_weights(config)
    made.load_state_dict({name: tensor.detach().clone() for name, tensor in state.items()}, strict=False, assign=True)
    made.tie_weights()
    made.recorded.told(None, None)
    return made


@dataclass
class Control:
    """What a perturbation makes of a base.

    Args:
        perturbation: without provenance, its axis spelled out.
        base: digest of the base.
        tensors: that come out.
    """

    perturbation: Perturbation
    base: str
    tensors: dict[str, torch.Tensor]
    lines: dict[str, str] = field(default_factory=dict)
    casts: dict[torch.dtype, Control] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lines = network_lines(self.tensors)

    def is_what(self, lines: Lines) -> bool:
        """Whether the tensors of a network, or of its trunk, are these; rotary tables have a type of their own."""
        return all(self.lines.get(name) == line for name, line in lines.items() if not name.endswith("inv_freq"))

    def cast(self, dtype: torch.dtype) -> Control:
        if dtype not in self.casts:
            tensors = {name: x.to(dtype) for name, x in self.tensors.items()}
            self.casts[dtype] = Control(self.perturbation, self.base, tensors)
        return self.casts[dtype]


@dataclass
class Truth:
    """Every control that was made of a base, and every type that it was cast to."""

    controls: list[Control] = field(default_factory=list)

    def expect(self, base: Any, perturbation: Perturbation, digest: str | None = None) -> None:
        """Note what a perturbation is to make of a base, which stays as it is.

        Args:
            base: a model.
            perturbation: for it.
            digest: of a folder that the model was loaded from, if it lacks a part of it.

        Raises:
            ValueError: if it cannot be applied there.
        """
        made = twin(base)
        digest = digest_of(counting(type(made), made.state_dict())) if digest is None else digest
        named = without_provenance(perturbation, base.config.model_type)
        made.perturb(perturbation)
        self.controls.append(Control(named, digest, dict(made.state_dict())))

    def holds(self, record: Perturbation, lines: Lines, family: str) -> bool:
        """Whether a network is what a record says, which may have been cast since."""
        named = without_provenance(record, family)
        digest = None if record.base is None else record.base.digest
        known = [each for each in self.controls if each.perturbation == named and digest in (None, each.base)]
        if any(each.is_what(lines) for each in known):
            return True
        kinds = {line.partition(" ")[0] for name, line in lines.items() if not name.endswith("inv_freq")}
        if len(kinds) != 1:
            return False
        for control in known:
            cast = control.cast(torch_dtype(*kinds))
            if cast.is_what(lines):
                self.controls.append(cast)  # from which it may be cast on
                return True
        return False


@dataclass
class Live:
    """A model in memory.

    Args:
        model: of this package.
        lenient: whether it may state the digest of what it was a part of.
        strayed: whether its weights have ever been others than its record says.
        filled: what the weights truly are of a model that was built empty, `"base"` or a record.
    """

    model: Any
    lenient: bool = False
    strayed: bool = False
    filled: Any = None

    @property
    def family(self) -> str:
        return str(self.model.config.model_type)

    @property
    def lines(self) -> dict[str, str]:
        return network_lines(self.model.state_dict())

    @property
    def is_unknown(self) -> bool:
        return bool(self.model.recorded._is_empty or self.model.recorded._is_torn)

    def claim(self, lines: Lines | None = None) -> Perturbation | None:
        """Return what `record_now` would say, without asking the model, which would remember that it was asked."""
        network = self.model.recorded
        return judged(network, fingerprints(plainly_named(self.model.state_dict())) if lines is None else lines)

    def state(self) -> Any:
        """Return all that a refusal must leave as it is."""
        lines = lines_of(plainly_named(self.model.state_dict()))
        record = self.claim(lines)
        return lines, None if record is None else record.to_dict()


@dataclass
class Place:
    """A folder.

    Args:
        path: of it.
        sound: the variants of Transformers' `variant=` that were written whole, and left alone since.
        lines: of the network in it, if it is sound.
        claim: what was claimed when it was written.
        strayed: as for a model.
        is_stock: whether it is in the format of Transformers' own ESM.
        is_recipe: whether it has no weights.
    """

    path: Path
    sound: set[str | None] = field(default_factory=set)
    lines: dict[str, str] = field(default_factory=dict)
    claim: Perturbation | None = None
    strayed: bool = False
    is_stock: bool = False
    is_recipe: bool = False

    @property
    def exists(self) -> bool:
        """Whether there is a configuration that can be read."""
        try:
            return bool(self.config)
        except (OSError, ValueError):
            return False

    @property
    def config(self) -> dict[str, Any]:
        return dict(json.loads((self.path / "config.json").read_text()))

    @property
    def is_mixed(self) -> bool:
        """Whether its tensors are of several types, of which a load makes one."""
        return len({line.partition(" ")[0] for name, line in self.lines.items() if "inv_freq" not in name}) > 1

    def architecture(self) -> Any:
        """Return our class of what is stored."""
        named = self.config.get("architectures", ["FairEsmForMaskedLM"])[0]
        if named in OWN_CLASSES:
            return OWN_CLASSES[named]
        return getattr(hf_perturb, named if named.startswith(("Fair", "Carp")) else f"Fair{named}")

    def tree(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.path.iterdir()} if self.path.exists() else {}

    def files(self, variant: str | None = None) -> list[Path]:
        """Return the safetensors files that are to be read."""
        end = "" if variant is None else f".{variant}"
        if (whole := self.path / f"model{end}.safetensors").exists():
            return [whole]
        index = self.path / f"model.safetensors.index{end}.json"
        names = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else ()
        return [self.path / name for name in sorted(names)]

    def stored(self, variant: str | None = None) -> dict[str, torch.Tensor]:
        """Return the tensors as they are stored, whatever type a configuration asks for."""
        pickle = self.path / "pytorch_model.bin"
        if variant is None and not self.files() and pickle.exists():
            return dict(torch.load(pickle, weights_only=True))
        return {name: x for file in self.files(variant) for name, x in safetensors.torch.load_file(file).items()}

    def counted(self, variant: str | None = None) -> dict[str, torch.Tensor]:
        """Return the stored tensors that count in a digest."""
        return counting(self.architecture(), self.stored(variant))

    def records_in_headers(self) -> list[Any]:
        found = []
        for file in self.files():
            with safetensors.safe_open(file, "pt") as opened:
                found.append(json.loads((opened.metadata() or {}).get("perturbation", "null")))
        return found


def check_live(truth: Truth, live: Live, where: str) -> None:
    """Raise a `ViolationError` if a model says what is not so."""
    if live.is_unknown:
        return
    model, lines = live.model, live.lines
    record = live.claim(lines)
    has_adapter = any("lora_" in name for name, _ in model.named_parameters())
    if record is None:
        digest = model.config.digest
        loose = live.lenient or live.strayed or has_adapter
        state = counting(type(model), model.state_dict())
        found = digest_of_lines(counted(model.recorded, state, lines_of(state)))
        if digest is not None and not loose and digest != found:
            raise ViolationError(f"{where}: a base states the digest {digest}, which is not that of its weights")
        return
    holds = truth.holds(record, lines, live.family)
    live.strayed |= not holds
    if record.changed:
        if not live.strayed:
            raise ViolationError(f"{where}: it says {record}, and its weights are what that made of them")
        return
    if not holds:
        raise ViolationError(f"{where}: it says {record}, and its weights are something else")
    state = counting(type(model), model.state_dict())
    if record.digest is not None and not (live.lenient or has_adapter or any(map(is_downstream, state))):
        found = digest_of_lines(counted(model.recorded, state, lines_of(state)))
        if found != record.digest:
            raise ViolationError(f"{where}: it states the digest {record.digest}, its weights have {found}")


def check_stored(place: Place, variant: str | None, where: str) -> None:
    """Raise a `ViolationError` if what was written whole states another digest than its weights have."""
    config = place.config
    record = config.get("perturbation")
    stated = config.get("digest") if record is None else record.get("digest")
    if record is not None and record.get("changed"):
        return
    if stated is not None and not place.is_stock and stated != (found := digest_of(place.counted(variant))):
        raise ViolationError(f"{where}: it states the digest {stated}, its weights have {found}")


def same_claim(one: Perturbation | None, other: Perturbation | None, family: str) -> bool:
    """Whether two records say the same of weights, whatever digests they state."""
    if one is None or other is None:
        return one is other
    return one.changed == other.changed and without_provenance(one, family) == without_provenance(other, family)


_bases: dict[tuple[str, str, int], Any] = {}


def base_model(network: str, head: str, seed: int) -> Any:
    """Return a small base, which nobody may change."""
    key = (network, head, seed)
    if key not in _bases:
        _bases[key] = small_model(network, head, seed, **SIZES[network])
    return _bases[key]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Transformers from telling what thousands of loads tell, and work on one thread."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    alone = patch.object(os, "sched_getaffinity", lambda pid: {0}, create=True)  # threads would wait for each other
    try:
        with alone, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()
