"""The classes that Transformers loads a network as, by the content of its `config.json`. It imports Transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import transformers
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from hf_perturb.errors import CheckpointError

if TYPE_CHECKING:
    from hf_perturb.checkpoints.any_network import Code


def classes_of(
    written: dict[str, Any], architecture: str, code: Code | None
) -> tuple[PreTrainedConfig, list[type[PreTrainedModel]]]:
    """Return the configuration of a network, the class that it is stored as, and that of its trunk where it has one.

    Args:
        written: the content of its `config.json`.
        architecture: the class that it names, `""` for none.
        code: where its code is, if that may be run.

    Raises:
        CheckpointError: if there is no such class.
        Exception: whatever the class of the configuration makes of one that it cannot use.
    """
    kind, own = str(written.get("model_type")), written.get("auto_map") or {}
    named: dict[str, type[PreTrainedModel]] = {}
    if kind in CONFIG_MAPPING and (code is None or "AutoConfig" not in own):
        config = CONFIG_MAPPING[kind].from_dict(written)
    elif code is not None and own:
        config, named = _of_code(code, own)
    else:
        remedy = (
            "its config.json names code of its own (auto_map); read it, and say --trust-remote-code"
            if own
            else (f"transformers {transformers.__version__} has none of it")
        )
        raise CheckpointError(f"model_type is {kind!r}: {remedy}")
    trunk = named.get("AutoModel") or MODEL_MAPPING.get(type(config), None)
    # some configurations have several trunks, the first of which is the usual one
    trunk = trunk[0] if isinstance(trunk, tuple) else trunk
    stored = next((each for each in named.values() if each.__name__ == architecture), None)
    stored = stored or _of_transformers(architecture) or _registered(architecture, type(config)) or trunk
    if stored is None:
        raise CheckpointError(f"architectures is {architecture!r}, and transformers has no such class for {kind!r}")
    return config, list(dict.fromkeys(each for each in (stored, trunk) if each is not None))


def _of_code(code: Code, own: dict[str, str]) -> tuple[PreTrainedConfig, dict[str, type[PreTrainedModel]]]:
    """Run the code of a network, and return its configuration and its classes by the names of the Auto classes."""
    hub = dict(code.hub)
    config = AutoConfig.from_pretrained(code.location, trust_remote_code=True, **hub)
    models = {auto: name for auto, name in own.items() if auto.startswith("AutoModel")}
    return config, {auto: get_class_from_dynamic_module(name, code.location, **hub) for auto, name in models.items()}


def _of_transformers(architecture: str) -> type[PreTrainedModel] | None:
    """Return a class of Transformers by its name; not all that has a name there is a class of networks."""
    found = getattr(transformers, architecture, None)
    is_network = isinstance(found, type) and issubclass(found, PreTrainedModel) and found is not PreTrainedModel
    return found if is_network else None


def _registered(architecture: str, config: type[PreTrainedConfig]) -> type[PreTrainedModel] | None:
    """Return a class that somebody has made known to the Auto classes."""
    for auto in vars(transformers.models.auto.modeling_auto).values():
        mapping = getattr(auto, "_model_mapping", None)
        found = mapping.get(config, None) if mapping is not None else None
        for each in found if isinstance(found, tuple) else (found,):
            if getattr(each, "__name__", None) == architecture:
                return each
    return None
