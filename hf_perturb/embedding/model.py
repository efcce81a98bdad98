"""The network that embeds: what it is, how it is loaded, where it computes, and in which type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_perturb import loading
from hf_perturb.checkpoints.any_network import AnyNetwork
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.formats import DTYPES
from hf_perturb.checkpoints.network import Network
from hf_perturb.checkpoints.of_torch import torch_dtype
from hf_perturb.checkpoints.recipe import only_rules, with_versions
from hf_perturb.checkpoints.shapes import PREFIXES, listed
from hf_perturb.embedding.encoder import AlphabetEncoder, Encoder
from hf_perturb.errors import (
    CheckpointError,
    EmbeddingsError,
    ModelInputError,
    StackedPerturbationError,
    UnsupportedModuleError,
)
from hf_perturb.perturbation import Perturbation
from hf_perturb.perturbation.digest import digest_of
from hf_perturb.variants.blueprint import plan_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_perturb.embedding.options import EmbedOptions


# on a core, ESM-2 and CARP are as fast with 1,024 to 8,192, within a tenth, but for memory that is mapped anew
_TOKENS_ON_CPU = 2_048
_TOKENS_ELSEWHERE = 32_768


@dataclass(frozen=True)
class Embedder:
    """A network that embeds: one that is to be loaded, and perturbed then, or a model that is at hand."""

    name: str
    source: Checkpoint | PreTrainedModel
    encoder: Encoder
    record: Perturbation | None  # what was done to the weights
    published_as: str | None
    dtype: torch.dtype  # of the weights
    perturbation: Perturbation | None = None  # what is done to them once they are loaded

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
        if not isinstance(self.source, Checkpoint):
            raise StackedPerturbationError(
                "a model that is at hand is not perturbed here, since that would change it; give the base's name"
            )
        # what does not fit is told before hours of work on the base
        perturbation = with_versions(perturbation, self.source.network)
        plan_for(self.source.network, perturbation)
        return replace(self, perturbation=perturbation)

    def digest(self) -> str:
        """Return the digest of the weights before they are perturbed; reads all of them."""
        if not isinstance(self.source, Checkpoint):
            if isinstance(self.encoder, AlphabetEncoder):
                return digest_of(self.source.state_dict())
            from hf_perturb.loading.any_model import digest_in_memory  # which takes its time

            return digest_in_memory(self.source)
        # the record of what is loaded may be wrong; a recipe is compared with its own while it is loaded
        return str(self.source.stated_digest) if self.source.is_recipe else self.source.digest()

    def described(self) -> dict[str, Any]:
        """Return what is said of it besides, as JSON."""
        return {
            "name": self.name,
            "revision": self.source.revision if isinstance(self.source, Checkpoint) else None,
            "model_type": self.encoder.kind,
            "num_hidden_layers": self.encoder.depth,
            "published_as": self.published_as,
            "record": None if self.record is None else self.record.to_dict(),
        }

    @property
    def architecture(self) -> str:
        """The class that the weights are stored as, or that a model is of."""
        if isinstance(self.source, Checkpoint):
            network = self.source.network
            return type(network.empty()).__name__ if isinstance(network, AnyNetwork) else network.architecture
        return type(self.source).__name__

    @contextmanager
    def loaded(self, dtype: torch.dtype, device: str, head: bool = False) -> Iterator[PreTrainedModel]:
        """Give the model, ready to embed in a type on a device; one that is at hand is as it was afterwards.

        Args:
            dtype: of weights and arithmetic.
            device: one that torch names, or `auto`: spread over all there are.
            head: load the language head too.

        Raises:
            EmbeddingsError: if the device has too little memory.
            OSError: if it cannot be read any more.
        """
        if isinstance(self.source, Checkpoint):
            with memory_told(f"{device}, for this network in {dtype}; try a smaller --dtype, or --device auto"):
                model = _load(self.source, self.perturbation, dtype, device, head)
            with _exact_products():
                yield model
            return
        modes = {module: module.training for module in self.source.modules()}
        try:
            with _exact_products():
                yield self.source.eval()
        finally:
            for module, mode in modes.items():
                module.training = mode


def _load(
    checkpoint: Checkpoint, perturbation: Perturbation | None, dtype: torch.dtype, device: str, head: bool
) -> PreTrainedModel:
    """Load a network, and perturb it; the arguments are those of `loaded`."""
    network, given = checkpoint.network, {"device_map": "auto"} if device == "auto" else {}
    if isinstance(network, AnyNetwork):
        model: Any = _load_any(checkpoint, network, {**given, "dtype": dtype, "perturbation": perturbation})
        return model if device == "auto" else model.to(device)
    if checkpoint.place is None:  # an original file, which `from_pretrained` does not read
        model = loading.model_of(checkpoint)
        if perturbation is not None:
            # a copy: its tensors are those of the checkpoint, of which other variants are made
            model = deepcopy(model).to(dtype).perturb(perturbation)
        return model.to(device, dtype)
    if not head:  # Transformers makes words of a classifier for which there is no place
        network = replace(network, architecture=network.architecture.replace("ForMaskedLM", "Model"))
    cls: Any = loading.model_class(network)
    model = cls.from_pretrained(checkpoint, dtype=dtype, perturbation=perturbation, **given).eval()
    return model if device == "auto" else model.to(device)


def _load_any(checkpoint: Checkpoint, network: AnyNetwork, given: dict[str, Any]) -> Any:
    """Load a network that is none of ours by the class that it is stored as, of which nothing may be missing."""
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING

    from hf_perturb.loading.any_checkpoint import from_pretrained

    empty = network.empty()
    cls: Any = type(empty)
    encoder = MODEL_FOR_TEXT_ENCODING_MAPPING.get(type(empty.config), None) if empty.config.is_encoder_decoder else None
    if encoder is not None and given["perturbation"] is None and not checkpoint.is_recipe:
        # its decoder would be loaded for nothing
        cls, given = encoder, {**given, "is_encoder_decoder": False}
    given = {**given, "trust_remote_code": network.source is not None, "output_loading_info": True}
    model, info = from_pretrained(checkpoint, auto_class=cls, **given)
    if missing := [*info["missing_keys"], *info["mismatched_keys"]]:
        raise CheckpointError(f"{checkpoint.name!r} has no tensors for {listed(map(str, missing))} of {cls.__name__}")
    return model.eval()


def open_embedder(
    model: str | Path | PreTrainedModel, options: EmbedOptions, asked: Iterable[Perturbation] = ()
) -> Embedder:
    """Open a checkpoint by its name, and compare it with its network; or take a model that is at hand.

    Args:
        model: the name, or the model.
        options: of the run.
        asked: what is to be done to the weights, which says what kind of network a stock ESM is taken for.

    Raises:
        CheckpointError: if there is none, or it is damaged or of another family.
        EmbeddingsError: if it is a recipe that does not say which weights it has.
        ModelInputError: if an option says of sequences what is not so for this network.
        UnsupportedModuleError: for any other object.
    """
    if not isinstance(model, (str, Path)):
        return _at_hand(model, options)
    found = Checkpoint.open(
        model, options.revision, rules=only_rules(asked), trust_remote_code=options.trust_remote_code
    )
    if not found.is_recipe:
        found.check()
        [(stored, _)] = Counter(tensor.dtype for tensor in found.tensors.values()).most_common(1)
    elif found.stated_digest is None:
        raise EmbeddingsError(f"{found.name!r} is a recipe without a digest, so nothing says which weights it has")
    else:
        stored = found.stated_dtype or "F32"
    dtype, network = torch_dtype(found.dtype or stored), found.network
    if isinstance(network, AnyNetwork):
        from hf_perturb.embedding.any_encoder import encoder_of

        places = {} if found.place is None else {**found.place.hub, "trust_remote_code": options.trust_remote_code}
        encoder: Encoder = encoder_of(network.empty(), found.location, places, options)
    else:
        encoder = _of_ours(network, options)
    return Embedder(str(model), found, encoder, found.record, found.published_as, dtype)


def _of_ours(network: Network, options: EmbedOptions) -> Encoder:
    """Return what a network of ours reads, whose alphabet is part of it."""
    options.refuse_tokenizing(network.family)
    return AlphabetEncoder(network.sizes)


def _at_hand(model: Any, options: EmbedOptions) -> Embedder:
    from transformers import PreTrainedModel

    is_ours = getattr(getattr(model, "config", None), "family", None) in PREFIXES
    if not (is_ours or isinstance(model, PreTrainedModel)):
        raise UnsupportedModuleError(
            f"model: got a {type(model).__name__}; allowed: a name, a folder, or a model of hf_perturb or Transformers;"
            " an original becomes one with hf_perturb.wrap(module)"
        )
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise UnsupportedModuleError(f"model: the weights of this {type(model).__name__} are not in memory")
    name = model.name_or_path or type(model).__name__
    if is_ours:
        model.refuse_unknown("embed")
        record = loading.record_now(model)
        network = model.recorded  # which somebody's own model may hold
        encoder = _of_ours(loading.network_of(network), options)
        return Embedder(name, network, encoder, record, network.config.published_as, network.dtype)
    if options.tokenizer is None and not model.name_or_path:
        raise ModelInputError(
            "tokenizer: got none, and this model does not say where its own is; allowed: one, or a name"
        )
    from hf_perturb.embedding.any_encoder import encoder_of
    from hf_perturb.loading.any_model import record_of

    encoder = encoder_of(model, model.name_or_path, {}, options)
    return Embedder(name, model, encoder, record_of(model), None, model.dtype)


def choose_dtype(asked: str | torch.dtype | None, embedder: Embedder) -> torch.dtype:
    """Return the type to compute in, the network's own if none is asked for.

    Raises:
        ModelInputError: for one that is not allowed.
    """
    names = {name: getattr(torch, name) for name in DTYPES}
    dtype = embedder.dtype if asked is None else names.get(str(asked).removeprefix("torch."))
    if dtype is None:
        raise ModelInputError(f"dtype: got {asked!r}; allowed: {', '.join(names)}")
    if not isinstance(embedder.source, Checkpoint) and dtype != embedder.dtype:
        raise ModelInputError(f"dtype: got {asked}; this model is in {embedder.dtype}, and stays so: model.to({dtype})")
    return dtype


def choose_device(asked: str | None, embedder: Embedder, own: str | None = None) -> str:
    """Return the device to compute on: `own` of several processes, a GPU where there is one if none is asked for.

    Raises:
        ModelInputError: if there is no such device, or it cannot be had.
    """
    if not isinstance(embedder.source, Checkpoint):
        here = str(embedder.source.device)
        if asked not in (None, here, embedder.source.device.type):
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
        if embedder.source.place is None:
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


def tokens_at_once(model: PreTrainedModel) -> int:
    """Return the most tokens of a batch, if none are asked for."""
    return _TOKENS_ON_CPU if model.device.type == "cpu" else _TOKENS_ELSEWHERE


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
    """Raise an `EmbeddingsError` if there is too little memory; it says whose, for what, and the remedy."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch has no one class for it
        said = ("allocate memory", "out of memory")
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in said):
            raise
        raise EmbeddingsError(f"too little memory on {what}") from error
