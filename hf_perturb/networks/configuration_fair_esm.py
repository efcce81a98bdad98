# Copyright 2026 The hf_perturb authors. MIT License: see the LICENSE file at the root of the repository.
"""ESM-1, ESM-1b and ESM-2 model configuration."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from .record import PerturbableConfigMixin, require
from .sizes import FairEsmSizes


@strict
class FairEsmConfig(FairEsmSizes, PerturbableConfigMixin, PreTrainedConfig):
    r"""Sizes of an ESM-1, ESM-1b or ESM-2 network and the record of its perturbation.

    The defaults are `esm1b_t33_650M_UR50S`; ESM-1v is an ESM-1b by the same modules. A field that is `None` takes the
    value of its `model_version`. The configuration of a stock Transformers ESM is read as well.
    Source: `esm.model.esm1.ProteinBertModel` and `esm.model.esm2.ESM2` (fair-esm 2.0.0).

    Args:
        model_version: `"ESM-1"` (sinusoidal positions, a bias in keys and values, an output projection of its own),
            `"ESM-1b"` (learned positions, token dropout, an output head tied to the embedding) or `"ESM-2"` (rotary
            positions in every layer, otherwise as ESM-1b).
        vocab_size: tokens in the alphabet; 35 or 33.
        hidden_size: width of the residual stream (`embed_dim`).
        num_hidden_layers: transformer layers (`layers`).
        num_attention_heads: heads of every layer (`attention_heads`).
        intermediate_size: width of the feed-forward layers (`ffn_embed_dim`).
        max_position_embeddings: rows of the table of learned positions, two more than a sequence may have tokens;
            ESM-1 and ESM-2 have no table and no limit.
        layer_norm_eps: 1e-12 or 1e-5.
        emb_layer_norm_before: whether the embeddings are normed before the first layer (ESM-1b).
        token_dropout: whether masked tokens are zeroed and the others scaled up.
        final_bias: whether the output projection of ESM-1 has a bias.
        contact_head: whether there is a regression that predicts contacts; ESM-1v was published without one.
        classifier_dropout: dropout probability before a downstream classifier.
        perturbation: `None`, or what was done to the weights: a record, never an order to do it again.
        digest: digest of a base's weights, written by `hf-perturb convert`; that of a variant is in its record.
        published_as: name of the published checkpoint that the weights come from; see `hf-perturb list`.
        packing: whether padding may be taken out of batches at inference, while no hook looks at the layers.
    """

    model_type = "fair_esm"

    tie_word_embeddings: bool | None = None  # said again: transformers-mlinter looks for it here
    perturbation: Any = None
    digest: str | None = None
    published_as: str | None = None
    packing: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        self.fill_from_version()
        super().__post_init__(**kwargs)

    @classmethod
    def read_stored(cls, stored: dict[str, Any]) -> dict[str, Any]:
        # CODEPATH: a repository of Transformers' own ESM is read as the same network under fair-esm's names.
        if stored.get("model_type") != "esm":
            return stored
        translated: dict[str, Any] = require("reading Transformers' own ESM").config_from_stock(stored)
        return translated


__all__ = ["FairEsmConfig"]
