"""Where a network computes, and in which type; and what is said when the memory there is too small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from hf_perturb.checkpoints.formats import DTYPES
from hf_perturb.errors import EmbeddingsError, ModelInputError

if TYPE_CHECKING:
    from hf_perturb.embedding.networks import Network


def choose_dtype(asked: str | torch.dtype | None, network: Network) -> torch.dtype:
    """Return the type to compute in, the network's own if none is asked for.

    Raises:
        ModelInputError: for one that is not allowed.
    """
    names = {name: getattr(torch, name) for name in DTYPES}
    dtype = network.dtype if asked is None else names.get(str(asked).removeprefix("torch."))
    if dtype is None:
        raise ModelInputError(f"dtype: got {asked!r}; allowed: {', '.join(names)}")
    if network.model is not None and dtype != network.dtype:
        raise ModelInputError(f"dtype: got {asked}; this model is in {network.dtype}, and stays so: model.to({dtype})")
    return dtype


def choose_device(asked: str | None, network: Network, own: str | None = None) -> str:
    """Return the device to compute on, a GPU where there is one if none is asked for.

    Args:
        asked: as torch names it, `auto`, or `None`.
        network: that is to compute.
        own: that of this process, if there are several.

    Raises:
        ModelInputError: if there is no such device, or it cannot be had.
    """
    if network.model is not None:
        here = str(network.model.device)
        if asked not in (None, here, network.model.device.type):
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
        if network.checkpoint is not None:
            raise ModelInputError(
                f"device: got 'auto' for the file {network.name}; make a base of it first: hf-perturb convert"
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
def exact_products() -> Iterator[None]:
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
