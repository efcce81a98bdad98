# Copyright 2026 The hf_perturb authors. All rights reserved.
#
# Licensed under the MIT License: see the LICENSE file at the root of the repository.
"""CARP model configuration."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from .record import PerturbableConfigMixin


@strict
class CarpConfig(PerturbableConfigMixin, PreTrainedConfig):
    r"""Sizes of a CARP network (a masked-language-model ByteNet) and the record of its perturbation.

    The defaults are `carp_640M`. Source: `sequence_models.pretrained.load_carp`.

    Args:
        vocab_size: tokens in the alphabet `ACDEFGHIKLMNPQRSTVWYBZXJOU*-#@`.
        embedding_size: width of the token embedding, before it is projected up (`d_embed`).
        hidden_size: channels of the residual stream (`d_model`).
        num_hidden_layers: ByteNet blocks (`n_layers`).
        kernel_size: taps of the dilated convolutions; odd, so that the length is kept.
        max_dilation: dilations double from 1 up to this, then start again (`r`).
        slim: whether a block works on half the channels.
        hidden_act: activation of the blocks.
        classifier_dropout: dropout probability before a downstream classifier.
        perturbation: `None`, or what was done to the weights: a record, never an order to do it again.
        digest: digest of a base's weights, written by `hf-perturb convert`; that of a variant is in its record.
        published_as: name of the published checkpoint that the weights come from; see `hf-perturb list`.
    """

    model_type = "carp"

    vocab_size: int = 30
    embedding_size: int = 8
    hidden_size: int = 1280
    num_hidden_layers: int = 56
    kernel_size: int = 5
    max_dilation: int = 128
    slim: bool = False
    hidden_act: Literal["gelu", "relu"] = "gelu"
    classifier_dropout: float = 0.0
    pad_token_id: int = 27
    mask_token_id: int = 28
    tie_word_embeddings: bool = False
    perturbation: Any = None
    digest: str | None = None
    published_as: str | None = None

    @property
    def block_size(self) -> int:
        """Channels inside a block (`d_h`)."""
        return self.hidden_size // 2 if self.slim else self.hidden_size

    @property
    def dilations(self) -> list[int]:
        """Dilation of every block. Source: `sequence_models.convolutional.ByteNet`."""
        return [2 ** (n % self.max_dilation.bit_length()) for n in range(self.num_hidden_layers)]

    def validate_architecture(self) -> None:
        """Part of `@strict` validation: refuse sizes that do not go together; each alone is checked when it is set."""
        for name in ("pad_token_id", "mask_token_id"):
            if not 0 <= (token := getattr(self, name)) < self.vocab_size:
                raise ValueError(f"CarpConfig.{name}: got {token}; allowed: an id from 0 to {self.vocab_size - 1}")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"CarpConfig.kernel_size: got {self.kernel_size}; allowed: an odd number of taps")
        if self.slim and self.hidden_size % 2:
            raise ValueError(f"CarpConfig.hidden_size: got {self.hidden_size}; a slim network needs an even number")


__all__ = ["CarpConfig"]
