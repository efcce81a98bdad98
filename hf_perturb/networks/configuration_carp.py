# Copyright 2026 The hf_perturb authors. MIT License: see the LICENSE file at the root of the repository.
"""CARP model configuration."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from .record import PerturbableConfigMixin
from .sizes import CarpSizes


@strict
class CarpConfig(CarpSizes, PerturbableConfigMixin, PreTrainedConfig):
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
        packing: whether padding may be taken out of batches at inference, while no hook looks at the layers.
    """

    model_type = "carp"

    perturbation: Any = None
    digest: str | None = None
    published_as: str | None = None
    packing: bool = True


__all__ = ["CarpConfig"]
