# Copyright 2026 The hf_perturb authors. MIT License: see the LICENSE file at the root of the repository.
"""What keeps models that load in several threads apart.

While Transformers builds a network for its weights it replaces, for the whole process, `PreTrainedModel.tie_weights`,
torch's default type and `torch.linspace`. Of two threads that do so, the one that ends last can leave the other's
replacement behind for good. The networks of this package need none of the three: they load whatever others do, and
leave all of it alone.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from threading import RLock
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import modeling_utils
from transformers.modeling_utils import PreTrainedModel

# held while something is replaced for the process after all; it may be that a network is loaded while another is built
LOCK = RLock()
# while a network is built for weights that are filled in later
_building: ContextVar[bool] = ContextVar("building", default=False)
_REPLACING = ("no_tie_weights", "meta_device_safe_creation_ops", "local_torch_dtype")
_NEW = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.linspace)


def _tie_weights() -> Callable[..., None]:
    """Return Transformers' own `tie_weights`, whether or not a thread has replaced it at the moment."""
    if "no_tie_weights" not in PreTrainedModel.tie_weights.__qualname__:
        return PreTrainedModel.tie_weights
    spec: Any = importlib.util.find_spec(modeling_utils.__name__)
    whole = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(whole)
    return whole.PreTrainedModel.tie_weights


@contextmanager
def _locked(contexts: Sequence[AbstractContextManager[Any]]) -> Iterator[None]:
    """Enter contexts with the lock held; Transformers' own list of them leaves open what came before one that fails."""
    with LOCK, ExitStack() as entered:
        for context in contexts:
            entered.enter_context(context)
        entered.callback(_building.reset, _building.set(True))
        yield


class _DefaultType(TorchFunctionMode):
    """Makes new tensors of a type in this thread, where `torch.set_default_dtype` would in all of them."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _NEW and kwargs.get("dtype") is None:
            kwargs["dtype"] = self.dtype
        return func(*args, **kwargs)


class ThreadSafePreTrainedModel(PreTrainedModel):
    """A `PreTrainedModel` that may be loaded and built in several threads, beside threads that load any other."""

    _tie_weights = _tie_weights()

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Tie as Transformers does: not while it builds a network for weights, which must all have their names."""
        if not _building.get():
            self._tie_weights(*args, **kwargs)

    @classmethod
    def get_init_context(cls, dtype: torch.dtype, is_quantized: bool, *args: Any, **kwargs: Any) -> list[Any]:
        """Return what Transformers builds a network under, but for what it replaces for the process.

        Quantised weights and ZeRO-3 build modules of other packages, and a type that is none is an error of theirs.
        """
        contexts = super().get_init_context(dtype, is_quantized, *args, **kwargs)
        if not is_quantized and dtype.is_floating_point and torch.device("meta") in contexts:
            names = (getattr(getattr(context, "func", None), "__name__", None) for context in contexts)
            contexts = [context for context, name in zip(contexts, names, strict=True) if name not in _REPLACING]
            contexts.append(_DefaultType(dtype))
        return [_locked(contexts)]

    @classmethod
    def _from_config(cls, *args: Any, **kwargs: Any) -> Any:
        with LOCK:  # under a default type
            return super()._from_config(*args, **kwargs)

    def initialize_weights(self) -> None:
        with LOCK:  # under replaced functions of `torch.nn.init`
            super().initialize_weights()

    def tensors_without_values(self) -> list[str]:
        """Return the names of tensors that nothing filled.

        None are named where none has values, which somebody asked for, nor what accelerate fetches when it is used.
        """
        if all(parameter.is_meta for parameter in self.parameters()):
            return []
        named = {**dict(self.named_parameters(remove_duplicate=False)), **dict(self.named_buffers())}
        empty = (name for name, tensor in named.items() if tensor.is_meta)
        return [name for name in empty if not hasattr(self.get_submodule(name.rpartition(".")[0]), "_hf_hook")]
