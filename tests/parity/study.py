"""What the study did to an original module, after the list in the contract's section 4 (rules `"published"`).

A reading of our own of that list, with the global generator that the study used; it shares nothing with the package.
"""

from __future__ import annotations

import math

import torch
from sequence_models.pretrained import CARP
from torch import nn
from torch.nn import init

# CARP: as documented, so the convolutions and norms of the blocks
_CARP_BLOCKS = "model.embedder.layers."
_ESM_SKIPPED = ("embed_tokens.weight", "embed_out", "embed_out_bias", "embed_positions._float_tensor")
_ESM2_BUFFER = "rot_emb.inv_freq"  # the study had no ESM-2; it skipped the buffers that it had


@torch.no_grad()
def reinit(module: nn.Module, seed: int) -> None:
    """Draw the tensors of an original module anew, in place and in the order of its `state_dict`."""
    draw = _draw_carp if isinstance(module, CARP) else _draw_esm
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = module.state_dict()
        for name, tensor in state.items():
            draw(name, tensor, state)


@torch.no_grad()
def resample(module: nn.Module, seed: int) -> None:
    """Shuffle all entries of every tensor of an original module, and load the result back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = dict(module.state_dict())
        for name, tensor in state.items():
            touched = name.startswith(_CARP_BLOCKS) if isinstance(module, CARP) else not _skipped(name)
            if touched:
                state[name] = tensor.flatten()[torch.randperm(tensor.numel())].reshape(tensor.shape)
    # a head that is tied to the embedding is loaded last, and so into both
    module.load_state_dict(state, strict=True)


def _skipped(name: str) -> bool:
    return name in _ESM_SKIPPED or name.endswith(_ESM2_BUFFER)


def _linear_bias(name: str, bias: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
    fan_in = state[name.replace(".bias", ".weight")][0].numel()
    init.uniform_(bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))


def _draw_esm(name: str, tensor: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
    if _skipped(name) or "layer_norm" in name or name.endswith(("bias_k", "bias_v")) or name == "lm_head.bias":
        return
    if any(part in name for part in ("q_proj.weight", "k_proj.weight", "v_proj.weight")):
        init.xavier_uniform_(tensor, gain=1 / math.sqrt(2))
    elif name.endswith("out_proj.weight") or name == "lm_head.weight":
        init.xavier_uniform_(tensor)
    elif name.endswith("out_proj.bias"):
        init.constant_(tensor, 0.0)
    elif name == "embed_positions.weight":
        init.normal_(tensor)
    elif name.endswith(".bias"):
        _linear_bias(name, tensor, state)
    else:  # fc1, fc2, the contact head and the dense layer of the language head
        init.kaiming_uniform_(tensor, a=math.sqrt(5))


def _draw_carp(name: str, tensor: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
    if not name.startswith(_CARP_BLOCKS):
        return
    if name.endswith("conv.weight"):
        init.kaiming_uniform_(tensor, a=math.sqrt(5))
    elif name.endswith("conv.bias"):
        _linear_bias(name, tensor, state)
    else:  # the norms
        init.constant_(tensor, 1.0 if name.endswith("weight") else 0.0)
