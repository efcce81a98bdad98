"""A model of somebody else's that owns one of ours."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from support.models import CONFIGS, model_class


class OwnerConfig(PreTrainedConfig):
    model_type = "owner"

    def __init__(self, network: str = "carp", sizes: Any = None, perturbation: Any = None, **kwargs: Any):
        self.network, self.sizes = network, sizes or {}
        self.asked = perturbation.to_dict() if hasattr(perturbation, "to_dict") else perturbation or kwargs.get("asked")
        super().__init__(**{key: value for key, value in kwargs.items() if key != "asked"})


class Owner(PreTrainedModel):
    config_class = OwnerConfig

    def __init__(self, config: OwnerConfig):
        super().__init__(config)
        inner = CONFIGS[config.network](**config.sizes, perturbation=config.asked)
        self.inner = model_class(config.network, "Model")(inner)
        self.top = nn.Linear(inner.hidden_size, 2)
        self.post_init()
