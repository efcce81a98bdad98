"""Both families in Transformers' Auto classes, whichever is imported first."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import wrapt

from hf_perturb.checkpoints.shapes import AUTO_CLASSES, PREFIXES

_OURS = "hf_perturb.networks"
_AUTO = "transformers.models.auto"


def import_models() -> None:
    """Import both families' models by the one way that several threads can take at once: Auto classes first."""
    import_module(f"{_AUTO}.modeling_auto")
    for family in PREFIXES:
        import_module(f"{_OURS}.modeling_{family}")


def register_on_import() -> None:
    """Register each family when Transformers' Auto classes and its own modules are both there."""
    wrapt.register_post_import_hook(_register_configurations, f"{_AUTO}.configuration_auto")
    # Auto classes are also imported on the way to our models, which then register themselves when they are whole
    wrapt.register_post_import_hook(_import_layers, f"{_AUTO}.modeling_auto")
    wrapt.register_post_import_hook(_import_models, "transformers.modeling_layers")
    for family in PREFIXES:
        wrapt.register_post_import_hook(_register_models, f"{_OURS}.modeling_{family}")


def _register_configurations(module: Any) -> None:
    for family, prefix in PREFIXES.items():
        config = getattr(import_module(f"{_OURS}.configuration_{family}"), f"{prefix}Config")
        module.AutoConfig.register(family, config, exist_ok=True)


def _import_layers(module: ModuleType) -> None:
    import_module("transformers.modeling_layers")


def _import_models(module: ModuleType) -> None:
    for family in PREFIXES:
        import_module(f"{_OURS}.modeling_{family}")


def _register_models(module: ModuleType) -> None:
    auto = import_module(f"{_AUTO}.modeling_auto")
    prefix = PREFIXES[module.__name__.rpartition("modeling_")[2]]
    for name, head in AUTO_CLASSES.items():
        model = getattr(module, prefix + head)
        getattr(auto, name).register(model.config_class, model, exist_ok=True)
