"""A quantiser that needs no other package: it rounds the weights of linear layers to eight bits.

It replaces them when a network has its weights, or before, where those that are loaded are rounded already; and it says
of its tensors in the header of a file what torchao says there.
"""

from __future__ import annotations

import json

import torch
from torch import nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

NAME = "rounding"


@register_quantization_config(NAME)
class RoundingConfig(QuantizationConfigMixin):
    def __init__(self, **kwargs):
        self.quant_method = NAME


class Rounded(nn.Module):
    def __init__(self, linear: nn.Linear):
        super().__init__()
        scale = linear.weight.detach().abs().amax() / 127
        self.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.scale = nn.Parameter(scale[None], requires_grad=False)
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(self.scale.dtype) * self.scale, self.bias)


def rounded(model):
    """Replace the linear layers of a model, in memory and unknown to Transformers."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, Rounded(child))
    return model


@register_quantizer(NAME)
class Rounding(HfQuantizer):
    requires_calibration = False
    is_trainable = False

    def _process_model_before_weight_loading(self, model, **kwargs):
        return rounded(model) if self.pre_quantized else model

    def _process_model_after_weight_loading(self, model, **kwargs):
        return rounded(model)

    def is_serializable(self, *args, **kwargs):
        return True

    def get_state_dict_and_metadata(self, model, *args, **kwargs):
        state = model.state_dict()
        plain = {name: json.dumps({"_type": "Tensor"}) for name in state}
        return state, {**plain, "tensor_names": json.dumps([*state])}
