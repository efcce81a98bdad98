"""The network that embeds: what it is, how it is loaded, where it computes, and in which type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_perturb import loading
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.formats import DTYPES
from hf_perturb.checkpoints.network import Network
from hf_perturb.checkpoints.shapes import PREFIXES
from hf_perturb.errors import EmbeddingsError, ModelInputError, StackedPerturbationError, UnsupportedModuleError
from hf_perturb.perturbation import Perturbation
from hf_perturb.perturbation.digest import digest_of, torch_dtype
from hf_perturb.perturbation.plan import make_plan

if TYPE_CHECKING:
    from hf_perturb.networks.perturbable import PerturbablePreTrainedModel


@dataclass(frozen=True)
class Embedder:
    """A network that is named or at hand, and what is to be done to it.

    Args:
        name: how it is called.
        network: what it is.
        record: what was done to its weights.
        published_as: name of the published checkpoint that they are, where that is known.
        dtype: the type that they are in.
        checkpoint: that it is loaded from, `None` for a model that is at hand.
        model: the model itself, if it is at hand.
        perturbation: what is done to the weights once they are loaded.
    """

    name: str
    network: Network
    record: Perturbation | None
    published_as: str | None
    dtype: torch.dtype
    checkpoint: Checkpoint | None = None
    model: PerturbablePreTrainedModel | None = None
    perturbation: Perturbation | None = None

    @property
    def is_original(self) -> bool:
        """Whether it is an original file, which `from_pretrained` does not read."""
        return self.checkpoint is not None and self.checkpoint.place is None

    def perturbed(self, perturbation: Perturbation | None) -> Embedder:
        """Return the same network, to be perturbed when it is loaded.

        Raises:
            PerturbationError: if it cannot be applied, the weights are perturbed already, or it is a live model, which
                is not to be changed.
        """
        if perturbation is None:
            return self
        if self.record is not None:
            raise StackedPerturbationError(f"{self.name!r} is a variant already, by {self.record}; start from its base")
        if self.model is not None:
            raise StackedPerturbationError(
                "a model that is at hand is not perturbed here, since that would change it; give the base's name"
            )
        # what does not fit is told before hours of work on the base
        make_plan(self.network.family, self._shapes(), perturbation, self.network.language_head)
        return replace(self, perturbation=perturbation)

    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {} if self.checkpoint is None else self.checkpoint.shapes

    def digest(self) -> str:
        """Return the digest of the weights before they are perturbed; reads all of them."""
        if self.checkpoint is None:
            return digest_of({} if self.model is None else self.model.state_dict())
        # the record of what is loaded may be wrong; a recipe is compared with its own while it is loaded
        return str(self.checkpoint.stated_digest) if self.checkpoint.is_recipe else self.checkpoint.digest()

    def described(self) -> dict[str, Any]:
        """Return what is said of it besides, as JSON."""
        return {
            "name": self.name,
            "revision": None if self.checkpoint is None else self.checkpoint.revision,
            "model_type": self.network.family,
            "published_as": self.published_as,
            "record": None if self.record is None else self.record.to_dict(),
        }

    @contextmanager
    def loaded(self, dtype: torch.dtype, device: str) -> Iterator[PerturbablePreTrainedModel]:
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
            with _exact_products():
                yield model
            return
        modes = {module: module.training for module in self.model.modules()}
        try:
            with _exact_products():
                yield self.model.eval()
        finally:
            for module, mode in modes.items():
                module.training = mode

    def _load(self, dtype: torch.dtype, device: str) -> PerturbablePreTrainedModel:
        checkpoint: Any = self.checkpoint
        if self.is_original:
            model: Any = loading.model_of(checkpoint)
            if self.perturbation is not None:
                # a copy: its tensors are those of the checkpoint, of which other variants are made
                model = deepcopy(model).to(dtype).perturb(self.perturbation)
            return model.to(device, dtype)
        given: dict[str, Any] = {"dtype": dtype, "perturbation": self.perturbation}
        if device == "auto":
            given["device_map"] = "auto"
        # the language head is not needed; Transformers makes words of a classifier for which there is no place
        trunk = replace(self.network, architecture=self.network.architecture.replace("ForMaskedLM", "Model"))
        model = loading.model_class(trunk).from_pretrained(checkpoint, **given)
        return model.eval() if device == "auto" else model.eval().to(device)


def open_embedder(model: str | Path | PerturbablePreTrainedModel, revision: str | None = None) -> Embedder:
    """Find a network and look at its weights, or take one that is at hand.

    Args:
        model: a folder, a Hub id, an original `.pt`, `demo`, or a model of this package.
        revision: of a Hub id.

    Raises:
        CheckpointError: if there is none, or it is damaged or of another family.
        EmbeddingsError: if it is a recipe that does not say which weights it has.
        UnsupportedModuleError: for any other object.
    """
    if not isinstance(model, (str, Path)):
        return _at_hand(model)
    found = Checkpoint.open(model, revision)
    if not found.is_recipe:
        found.check()
        [(stored, _)] = Counter(tensor.dtype for tensor in found.tensors.values()).most_common(1)
    elif found.stated_digest is None:
        raise EmbeddingsError(f"{found.name!r} is a recipe without a digest, so nothing says which weights it has")
    else:
        stored = found.stated_dtype or "F32"
    dtype = torch_dtype(found.dtype or stored)
    return Embedder(str(model), found.network, found.record, found.published_as, dtype, checkpoint=found)


def _at_hand(model: PerturbablePreTrainedModel) -> Embedder:
    if getattr(getattr(model, "config", None), "model_type", None) not in PREFIXES:
        raise UnsupportedModuleError(
            f"model: got a {type(model).__name__}; allowed: a name, a folder, or a model of hf_perturb; an original"
            " becomes one with hf_perturb.wrap(module)"
        )
    name, config = model.name_or_path or type(model).__name__, model.config
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise UnsupportedModuleError(f"model: the weights of this {type(model).__name__} are not in memory")
    said = config.perturbation, config.published_as
    return Embedder(name, loading.network_of(model), *said, model.dtype, model=model)


def choose_dtype(asked: str | torch.dtype | None, embedder: Embedder) -> torch.dtype:
    """Return the type to compute in, the network's own if none is asked for.

    Raises:
        ModelInputError: for one that is not allowed.
    """
    names = {name: getattr(torch, name) for name in DTYPES}
    dtype = embedder.dtype if asked is None else names.get(str(asked).removeprefix("torch."))
    if dtype is None:
        raise ModelInputError(f"dtype: got {asked!r}; allowed: {', '.join(names)}")
    if embedder.model is not None and dtype != embedder.dtype:
        raise ModelInputError(f"dtype: got {asked}; this model is in {embedder.dtype}, and stays so: model.to({dtype})")
    return dtype


def choose_device(asked: str | None, embedder: Embedder, own: str | None = None) -> str:
    """Return the device to compute on, a GPU where there is one if none is asked for.

    Args:
        asked: as torch names it, `auto`, or `None`.
        embedder: that is to compute.
        own: that of this process, if there are several.

    Raises:
        ModelInputError: if there is no such device, or it cannot be had.
    """
    if embedder.model is not None:
        here = str(embedder.model.device)
        if asked not in (None, here, embedder.model.device.type):
            raise ModelInputError(
                f"device: got {asked!r}; this model is on {here}, and stays there: model.to({asked!r})"
            )
        return here
    if own is not None:
        if asked not in (None, own, torch.device(own).type):
            raise ModelInputError(f"device: got {asked!r} on several processes, each of which has its own, here {own}")
        return own
    if asked is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return "cpu" if accelerator is None else accelerator.type
    if asked == "auto":
        if embedder.is_original:
            raise ModelInputError(
                f"device: got 'auto' for the file {embedder.name}; make a base of it first: hf-perturb convert"
            )
        return asked
    try:
        if torch.zeros(1, device=asked).is_meta:
            raise RuntimeError("a meta device computes nothing")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise ModelInputError(
            f"device: got {asked!r}: {reason}; allowed: cpu, cuda, auto, and what torch has"
        ) from error
    return asked


@contextmanager
def _exact_products() -> Iterator[None]:
    """Let float32 convolutions on a GPU be float32; by default cuDNN rounds what goes in to 10 bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextmanager
def memory_told(what: str) -> Iterator[None]:
    """Say plainly that there is too little memory.

    Args:
        what: whose, for what, and the remedy.

    Raises:
        EmbeddingsError: if so.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch has no one class for it
        said = ("allocate memory", "out of memory")
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in said):
            raise
        raise EmbeddingsError(f"too little memory on {what}") from error
