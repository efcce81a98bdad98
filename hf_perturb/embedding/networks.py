"""The network that embeds: what it is, before it is loaded, and how it is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from hf_perturb.checkpoints.bases import find, open_checkpoint, read_config
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.embedding.devices import memory_told
from hf_perturb.errors import EmbeddingsError, StackedPerturbationError, UnsupportedModuleError
from hf_perturb.loading.auto import import_models
from hf_perturb.networks.layouts import PREFIXES, language_head
from hf_perturb.networks.loading import has_no_weights
from hf_perturb.networks.record import base_location, recorded_digest
from hf_perturb.perturbation import Perturbation
from hf_perturb.perturbation.digest import digest_of
from hf_perturb.perturbation.plan import make_plan


@dataclass(frozen=True)
class Network:
    """A network that is named or at hand, and what is to be done to it.

    Args:
        name: how it is called.
        config: its configuration.
        architecture: the class that it is stored as.
        tensors: as they are stored, by document name; none of a recipe, which has none.
        dtype: the type that they are in.
        revision: the commit on the Hub, `None` elsewhere.
        checkpoint: an original file, which `from_pretrained` does not read.
        model: the model itself, if it is at hand.
        perturbation: what is done to the weights once they are loaded.
    """

    name: str
    config: Any
    architecture: str
    tensors: Mapping[str, torch.Tensor]
    dtype: torch.dtype
    revision: str | None = None
    checkpoint: Checkpoint | None = None
    model: Any = None
    perturbation: Perturbation | None = None

    def perturbed(self, perturbation: Perturbation | None) -> Network:
        """Return the same network, to be perturbed when it is loaded.

        Raises:
            PerturbationError: if it cannot be applied, the weights are perturbed already, or it is a live model, which
                is not to be changed.
        """
        if perturbation is None:
            return self
        if self.config.perturbation is not None:
            raise StackedPerturbationError(
                f"{self.name!r} is a variant already, by {self.config.perturbation}; start from its base"
            )
        if self.model is not None:
            raise StackedPerturbationError(
                "a model that is at hand is not perturbed here, since that would change it; give the base's name"
            )
        # what does not fit is told before hours of work on the base
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        make_plan(self.config.model_type, shapes, perturbation, language_head(self.config))
        return replace(self, perturbation=perturbation)

    def digest(self) -> str:
        """Return the digest of the weights before they are perturbed; reads all of them."""
        # the record of what is loaded may be wrong; a recipe is compared with its own while it is loaded
        return digest_of(self.tensors) if self.tensors else str(recorded_digest(self.config))

    def described(self) -> dict[str, Any]:
        """Return what is said of it besides, as JSON."""
        record = self.config.perturbation
        return {
            "name": self.name,
            "revision": self.revision,
            "model_type": self.config.model_type,
            "published_as": self.config.published_as,
            "record": None if record is None else record.to_dict(),
        }

    @contextmanager
    def loaded(self, dtype: torch.dtype, device: str) -> Iterator[Any]:
        """Give the model, ready to embed; one that is at hand stays where it is, and is as it was afterwards.

        Args:
            dtype: of the weights and of the arithmetic.
            device: as torch names it, or `auto`: spread over all devices there are.

        Raises:
            EmbeddingsError: if the device has too little memory.
            OSError: if it cannot be read any more.
        """
        if self.model is None:
            with memory_told(f"{device}, for this network in {dtype}; try a smaller --dtype, or --device auto"):
                model = self._load(dtype, device)
            yield model
            return
        modes = {module: module.training for module in self.model.modules()}
        try:
            yield self.model.eval()
        finally:
            for module, mode in modes.items():
                module.training = mode

    def _load(self, dtype: torch.dtype, device: str) -> Any:
        if self.checkpoint is not None:
            model: Any = self.checkpoint.model()
            if self.perturbation is not None:
                # a copy: its tensors are those of the checkpoint, of which other variants are made
                model = deepcopy(model).to(dtype).perturb(self.perturbation)
            return model.to(device, dtype)
        given: dict[str, Any] = {"revision": self.revision, "perturbation": self.perturbation}
        if device == "auto":
            given["device_map"] = "auto"
        import_models()
        module = import_module(f"hf_perturb.networks.modeling_{self.config.model_type}")
        # the language head is not needed; Transformers makes words of a classifier for which there is no place
        cls = getattr(module, self.architecture.replace("ForMaskedLM", "Model"))
        kept = {key: value for key, value in given.items() if value is not None}
        model = cls.from_pretrained(base_location(self.name), dtype=dtype, **kept).eval()
        return model if device == "auto" else model.to(device)


def open_network(model: Any, revision: str | None = None) -> Network:
    """Find a network and look at its weights, or take one that is at hand.

    Args:
        model: a folder, a Hub id, an original `.pt`, `demo`, or a model of this package.
        revision: of a Hub id.

    Raises:
        CheckpointError: if there is none, or it is damaged or of another family.
        UnsupportedModuleError: for any other object.
    """
    if not isinstance(model, (str, Path)):
        if getattr(getattr(model, "config", None), "model_type", None) not in PREFIXES:
            raise UnsupportedModuleError(
                f"model: got a {type(model).__name__}; allowed: a name, a folder, or a model of hf_perturb; an original"
                " becomes one with hf_perturb.wrap(module)"
            )
        name, tensors = model.name_or_path or type(model).__name__, model.state_dict()
        if any(tensor.is_meta for tensor in tensors.values()):
            raise UnsupportedModuleError(f"model: the weights of this {type(model).__name__} are not in memory")
        return Network(name, model.config, type(model).__name__, tensors, model.dtype, model=model)
    name, location = str(model), base_location(str(model))
    if not Path(location).is_file():
        stored, hub = find(name, revision)
        config, architecture = read_config(name, stored)
        if config.perturbation is not None and has_no_weights(location, hub):
            return _recipe(name, config, architecture, hub.get("revision"))
    checkpoint = open_checkpoint(name, revision).check()
    [(dtype, _)] = Counter(tensor.dtype for tensor in checkpoint.tensors.values()).most_common(1)
    return Network(
        name,
        checkpoint.config,
        checkpoint.architecture,
        checkpoint.tensors,
        checkpoint.dtype or dtype,
        checkpoint.revision,
        checkpoint if Path(location).is_file() else None,
    )


def _recipe(name: str, config: Any, architecture: str, revision: str | None) -> Network:
    if recorded_digest(config) is None:
        raise EmbeddingsError(f"{name!r} is a recipe without a digest, so nothing says which weights it has")
    kind = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    return Network(name, config, architecture, {}, kind, revision)
