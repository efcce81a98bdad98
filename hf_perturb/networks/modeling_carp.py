# Copyright 2026 The hf_perturb authors. MIT License: see the LICENSE file at the root of the repository.
"""PyTorch CARP model: a ByteNet over protein sequences, trained as a masked language model.

Source of the network: `sequence_models.pretrained.CARP` and `sequence_models.convolutional` (sequence-models 1.8.0),
after Yang, Fusi and Lu, "Convolutions are competitive with transformers for protein sequence pretraining" (2022).
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_carp import CarpConfig
from .encoder import EncoderPreTrainedModel
from .heads import MaskedLMMixin, ModelMixin, SequenceClassificationMixin, TokenClassificationMixin
from .packing import Packing, can_pack, in_one_piece

# tokens whose neighbours are gathered at a time: few enough to stay in the cache
_GATHERED = 1024


def packed_convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, dilation: int, packing: Packing
) -> torch.Tensor:
    """Add up one product a tap and sequence, leaving out what a tap would see beyond the ends.

    Those of neighbours of one length are one call, which does the same work for less.

    With proteins of some hundred residues and dilations up to 128, that is a tenth of the work. `x` is
    `(tokens, channels)`, `weight` `(out, channels, taps)` with an odd number of taps; the result is `(tokens, out)`.
    """
    taps = weight.permute(2, 1, 0).contiguous().unbind()
    middle = len(taps) // 2
    mixed = torch.addmm(bias, x, taps[middle])
    sizes = [sequences * length for sequences, length in packing.runs]
    for run, seen, sums in zip(packing.runs, x.split(sizes), mixed.split(sizes), strict=True):
        residues, result, (sequences, length) = seen.unflatten(0, run), sums.unflatten(0, run), run
        for tap, matrix in enumerate(taps):
            shift, matrices = (tap - middle) * dilation, matrix.expand(sequences, -1, -1)
            if 0 < shift < length:
                result[:, :-shift].baddbmm_(residues[:, shift:], matrices)
            elif 0 < -shift < length:
                result[:, -shift:].baddbmm_(residues[:, :shift], matrices)
    return mixed


def gathered_convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, dilation: int, packing: Packing
) -> torch.Tensor:
    """Gather what the taps see and multiply once; the arguments are those of `packed_convolution`.

    For half types: there a sum over products would be rounded at each, and small products are slow.
    """
    taps = weight.permute(0, 2, 1).flatten(1)
    seen = packing.neighbours(weight.shape[-1], dilation)
    with_zeros = torch.nn.functional.pad(x, (0, 0, 0, 1))
    mixed = x.new_empty(len(x), len(weight))
    for part, result in zip(seen.split(_GATHERED), mixed.split(_GATHERED), strict=True):
        torch.addmm(bias, with_zeros[part].flatten(1), taps.t(), out=result)
    return mixed


class _Padding(tuple[int, ...]):
    """The padding of a convolution, which knows the dilation that it belongs to."""

    dilation: Any = 1


class CarpConvolution(nn.Conv1d):
    """A convolution over `(batch, channels, length)`, made and called as torch's own.

    With one tap it is a linear layer on every residue, and multiplies like one. Source:
    `sequence_models.convolutional.MaskedConv1d`, and the convolution of `sequence_models.layers.PositionFeedForward`.
    """

    def __init__(  # the arguments of `nn.Conv1d`, in its order
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = None,
        *args: Any,
        **kwargs: Any,
    ):
        # PEFT makes its own layers of this class, with the padding of this one but without its dilation
        dilation = getattr(padding, "dilation", 1) if dilation is None else dilation
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, *args, **kwargs)
        self.is_linear = (self.kernel_size, self.stride, self.padding, self.groups) == ((1,), (1,), (0,), 1)
        if isinstance(self.padding, tuple) and self.padding_mode == "zeros":
            self.padding = _Padding(self.padding)
            self.padding.dilation = self.dilation

    def forward(self, hidden_states: torch.Tensor, packing: Packing | None = None) -> torch.Tensor:
        """Mix residues of `(batch, channels, length)`, or packed `(1, channels, tokens)`."""
        if self.is_linear and hidden_states.dim() == 3:
            # the weight is (out, in, 1); the views cost nothing
            along = nn.functional.linear(hidden_states.transpose(1, 2), self.weight.squeeze(-1), self.bias)
            return along.transpose(1, 2)
        if packing is None and isinstance(self.padding, _Padding):
            padding = tuple(self.padding)  # compilers take no other
            return nn.functional.conv1d(
                hidden_states, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
            )
        if packing is None:
            return super().forward(hidden_states)
        convolve = packed_convolution if hidden_states.dtype == torch.float32 else gathered_convolution
        tokens = hidden_states.squeeze(0).t()
        return convolve(tokens, self.weight, self.bias, self.dilation[0], packing).t().unsqueeze(0)


def along_residues(convolution: nn.Module, hidden_states: torch.Tensor, *args: Any) -> torch.Tensor:
    """Convolve `(batch, length, channels)`, in which the channels of a residue lie side by side."""
    return convolution(hidden_states.transpose(1, 2), *args).transpose(1, 2)


def pointwise(in_features: int, out_features: int) -> nn.ModuleDict:
    """Hold a linear layer as `conv`. Source: `sequence_models.layers.PositionFeedForward`."""
    return nn.ModuleDict({"conv": CarpConvolution(in_features, out_features, 1)})


class CarpBlock(GradientCheckpointingLayer):
    """Residual block: down, dilated convolution, up. Source: `sequence_models.convolutional.ByteNetBlock`."""

    def __init__(self, config: CarpConfig, dilation: int):
        super().__init__()
        hidden_size, block_size = config.hidden_size, config.block_size
        self.activation = ACT2FN[config.hidden_act]
        reach = dilation * (config.kernel_size - 1) // 2
        self.conv = CarpConvolution(block_size, block_size, config.kernel_size, padding=reach, dilation=dilation)
        # the numbers are the places in the original's nn.Sequential, whose activations have no weights
        down, up = pointwise(hidden_size, block_size), pointwise(block_size, hidden_size)
        self.sequence1 = nn.ModuleDict({"0": nn.LayerNorm(hidden_size), "2": down, "3": nn.LayerNorm(block_size)})
        self.sequence2 = nn.ModuleDict({"0": nn.LayerNorm(block_size), "2": up})

    def forward(
        self,
        hidden_states: torch.Tensor,
        padding_mask: torch.Tensor,
        packing: Packing | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        residual = hidden_states
        down, up = self.sequence1["2"]["conv"], self.sequence2["2"]["conv"]
        hidden_states = along_residues(down, self.activation(self.sequence1["0"](hidden_states)))
        hidden_states = self.activation(self.sequence1["3"](hidden_states))
        if packing is None:
            # only the convolution mixes positions, so only its input is masked
            hidden_states = along_residues(self.conv, hidden_states * padding_mask)
        else:
            hidden_states = along_residues(self.conv, hidden_states, packing)
        hidden_states = along_residues(up, self.activation(self.sequence2["0"](hidden_states)))
        return residual + hidden_states


class CarpEmbedder(nn.Module):
    """Token embedding, projection and blocks. Source: `sequence_models.convolutional.ByteNet`."""

    def __init__(self, config: CarpConfig):
        super().__init__()
        # the original hands the *mask* id to padding_idx; it matters for initialisation and gradients
        self.embedder = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=config.mask_token_id)
        self.up_embedder = pointwise(config.embedding_size, config.hidden_size)
        self.layers = nn.ModuleList([CarpBlock(config, dilation) for dilation in config.dilations])


class CarpNetwork(nn.Module):
    """The module that the original calls `model`. Source: `sequence_models.convolutional.ByteNetLM`."""

    def __init__(self, config: CarpConfig):
        super().__init__()
        self.embedder = CarpEmbedder(config)


class CarpPreTrainedModel(EncoderPreTrainedModel):
    """Weights, initialisation and the trunk that every CARP head shares."""

    config: CarpConfig
    config_class = CarpConfig
    _no_split_modules = ["CarpBlock", "SequenceClassificationHead"]
    _can_record_outputs = {"hidden_states": CarpBlock}
    _unused_keywords = {
        "position_ids": "a convolution sees how far residues are apart, and no positions",
        "output_attentions": "a convolution has no attentions",
    }
    _language_head = [r"^model\.decoder\.", r"^model\.last_norm\."]
    # a checkpoint of the masked LM is a good one for every class without its head
    _keys_to_ignore_on_load_unexpected = _language_head

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw what the original constructors draw: torch's own defaults."""
        super()._init_weights(module)
        if isinstance(module, (nn.Linear, nn.Conv1d)):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            bound = 1 / math.sqrt(module.weight[0].numel())
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])

    def get_input_embeddings(self) -> nn.Module:
        return self.recorded.model.embedder.embedder

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.recorded.model.embedder.embedder = value

    def build_trunk(self, config: CarpConfig) -> None:
        self.model = CarpNetwork(config)

    def embed(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        mask: torch.Tensor,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        embedder = self.model.embedder
        inputs_embeds = embedder.embedder(input_ids) if inputs_embeds is None else inputs_embeds
        return along_residues(embedder.up_embedder["conv"], inputs_embeds)

    def packs(self, packing: Packing, **kwargs: Any) -> bool:
        # CODEPATH: the CPU convolves even a batch without padding faster in one row; elsewhere that is not measured.
        if packing.mask.device.type != "cpu" or not can_pack(packing, self.config, self.stack(), **kwargs):
            return False
        # products in place are not among what autocast casts for
        if torch.is_autocast_enabled("cpu"):
            return False
        # a gap inside a sequence keeps its place, so it cannot be taken out
        return in_one_piece(packing.known)

    def stack(self) -> tuple[nn.ModuleList, nn.Module | None]:
        return self.model.embedder.layers, None

    def layer_masks(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor,
        packing: Packing | None,
        positions: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        return {"padding_mask": mask.unsqueeze(-1).to(hidden_states.dtype)}


class CarpModel(ModelMixin, CarpPreTrainedModel):
    """CARP without a head: representations of residues.

    The token `-` counts as padding, as in the original. The last representation is that before the language head's
    norm.
    """


class CarpForMaskedLM(MaskedLMMixin, CarpPreTrainedModel):
    """CARP with its language head."""

    def build_head(self, config: CarpConfig) -> None:
        self.model.decoder = pointwise(config.hidden_size, config.vocab_size)
        self.model.last_norm = nn.LayerNorm(config.hidden_size)

    def predict_tokens(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return along_residues(self.model.decoder["conv"], self.model.last_norm(hidden_states))


class CarpForSequenceClassification(SequenceClassificationMixin, CarpPreTrainedModel):
    """CARP with a classifier or a regression on the mean over residues."""


class CarpForTokenClassification(TokenClassificationMixin, CarpPreTrainedModel):
    """CARP with a classifier on every residue."""


__all__ = [
    "CarpForMaskedLM",
    "CarpForSequenceClassification",
    "CarpForTokenClassification",
    "CarpModel",
    "CarpPreTrainedModel",
]
