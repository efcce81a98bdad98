"""Models of somebody else's that own one of ours, or extend it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_perturb.networks.heads import ModelMixin
from hf_perturb.networks.modeling_carp import CarpForMaskedLM, CarpModel, CarpPreTrainedModel
from hf_perturb.networks.modeling_fair_esm import FairEsmForMaskedLM, FairEsmModel, FairEsmPreTrainedModel
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


class _Scores:
    """What the classes below compute, by a head of their own on what a network gives."""

    own_head: nn.Module

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        states = self.states(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        logits = self.own_head(states.mean(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class HoldsCarp(_Scores, CarpPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.carp = CarpModel(config)
        self.own_head = nn.Linear(config.hidden_size, 2, bias=False)
        self.own = nn.Embedding(3, config.hidden_size)
        self.post_init()

    def states(self, **kwargs):
        return self.carp(**kwargs).last_hidden_state


class HoldsEsm(_Scores, FairEsmPreTrainedModel):
    """Its own head is called as a part of the network's language head is."""

    def __init__(self, config):
        super().__init__(config)
        self.esm = FairEsmForMaskedLM(config)
        self.own_head = nn.Linear(config.hidden_size, 2)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def states(self, **kwargs):
        return self.esm(output_hidden_states=True, **kwargs).hidden_states[-1]


class _Extends(_Scores):
    def __init__(self, config):
        super().__init__(config)
        self.own_head = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def states(self, **kwargs):
        return self.encode(return_dict=True, **kwargs).last_hidden_state


class ExtendsCarp(_Scores, ModelMixin, CarpPreTrainedModel):
    states = _Extends.states

    def build_head(self, config):
        self.own_head = nn.Linear(config.hidden_size, 2)


class ExtendsCarpLM(_Extends, CarpForMaskedLM):
    pass


class ExtendsEsm(_Scores, FairEsmModel):
    """It has a module inside the network's layers, too."""

    states = _Extends.states

    def __init__(self, config):
        super().__init__(config)
        self.own_head = nn.Linear(config.hidden_size, 2)
        self.layers[0].own = nn.Embedding(3, config.hidden_size)
        self.post_init()


class ExtendsEsmLM(_Extends, FairEsmForMaskedLM):
    pass


OWN = {"carp": (HoldsCarp, ExtendsCarp, ExtendsCarpLM)}
OWN |= dict.fromkeys(("esm1", "esm1b", "esm2"), (HoldsEsm, ExtendsEsm, ExtendsEsmLM))


OWN_CLASSES = {cls.__name__: cls for classes in OWN.values() for cls in classes}
_PLACES = {HoldsCarp: "carp.", HoldsEsm: "esm."}


def has_language_head(cls: type[PreTrainedModel]) -> bool:
    """Whether the network of a class, ours or somebody's, is a masked language model."""
    return "MaskedLM" in cls.__name__ or cls in (HoldsEsm, ExtendsCarpLM, ExtendsEsmLM)


def plain_class(cls: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return our class with the network of somebody's."""
    network = "carp" if issubclass(cls, CarpPreTrainedModel) else "esm1b"
    return model_class(network, "ForMaskedLM" if has_language_head(cls) else "Model")


def network_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the tensors of the network in a model, by document name, found without asking it."""
    names = plain_class(type(model)).without_weights(model.config).state_dict()
    place = _PLACES.get(type(model), "")
    state = model.state_dict()
    return {name: state[place + name] for name in names}
