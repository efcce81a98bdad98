# Copyright 2026 The hf_perturb authors. All rights reserved.
#
# Licensed under the MIT License: see the LICENSE file at the root of the repository.
"""ESM-1, ESM-1b and ESM-2 model configuration."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from .record import PerturbableConfigMixin
from .stock_esm import config_from_stock, is_stock

# what the generation of the network decides; source: fair-esm's ProteinBertModel, ESM2 and Alphabet
_VERSIONS: dict[str, dict[str, Any]] = {
    "ESM-1": {
        "vocab_size": 35,
        "bos_token_id": 32,
        "eos_token_id": None,
        "mask_token_id": 33,
        "layer_norm_eps": 1e-12,
        "emb_layer_norm_before": True,
        "token_dropout": False,
        "tie_word_embeddings": False,
    },
    "ESM-1b": {
        "vocab_size": 33,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "mask_token_id": 32,
        "layer_norm_eps": 1e-5,
        "emb_layer_norm_before": True,
        "token_dropout": True,
        "tie_word_embeddings": True,
    },
}
_VERSIONS["ESM-2"] = {**_VERSIONS["ESM-1b"], "emb_layer_norm_before": False}


@strict
class FairEsmConfig(PerturbableConfigMixin, PreTrainedConfig):
    r"""Sizes of an ESM-1, ESM-1b or ESM-2 network and the record of its perturbation.

    The defaults are `esm1b_t33_650M_UR50S`; ESM-1v is an ESM-1b by the same modules. A field that is `None` takes the
    value of its `model_version`. The configuration of a stock Transformers ESM is read as well: see `stock_esm.py`.
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
    """

    model_type = "fair_esm"

    model_version: Literal["ESM-1", "ESM-1b", "ESM-2"] = "ESM-1b"
    vocab_size: int | None = None
    hidden_size: int = 1280
    num_hidden_layers: int = 33
    num_attention_heads: int = 20
    intermediate_size: int = 5120
    max_position_embeddings: int = 1026
    layer_norm_eps: float | None = None
    emb_layer_norm_before: bool | None = None
    token_dropout: bool | None = None
    final_bias: bool = True
    contact_head: bool = True
    classifier_dropout: float = 0.0
    pad_token_id: int = 1
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    mask_token_id: int | None = None
    tie_word_embeddings: bool | None = None
    perturbation: Any = None
    digest: str | None = None
    published_as: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for key, value in _VERSIONS.get(self.model_version, {}).items():
            if getattr(self, key) is None:
                setattr(self, key, value)
        super().__post_init__(**kwargs)

    @classmethod
    def read_stored(cls, stored: dict[str, Any]) -> dict[str, Any]:
        # CODEPATH: a repository of Transformers' own ESM is read as the same network under fair-esm's names.
        return config_from_stock(stored) if is_stock(stored) else stored

    @property
    def max_tokens(self) -> int | None:
        """Most tokens that a sequence may have, special tokens included; `None` for no limit."""
        if self.model_version != "ESM-1b":
            return None
        return self.max_position_embeddings - self.pad_token_id - 1

    def validate_architecture(self) -> None:
        """Part of `@strict` validation: refuse sizes that do not go together; each alone is checked when it is set."""
        for name in ("pad_token_id", "mask_token_id"):
            token, tokens = getattr(self, name), range(self.vocab_size or 0)
            if token not in tokens:
                raise ValueError(f"FairEsmConfig.{name}: got {token}; allowed: an id from 0 to {tokens[-1]}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"FairEsmConfig.hidden_size: got {self.hidden_size}; allowed: a multiple of num_attention_heads"
                f" ({self.num_attention_heads})"
            )
        if self.pad_token_id != 1:
            raise ValueError(f"FairEsmConfig.pad_token_id: got {self.pad_token_id}; allowed: 1, as in every alphabet")
        if self.model_version == "ESM-2" and self.hidden_size // self.num_attention_heads % 2:
            raise ValueError(
                f"FairEsmConfig.hidden_size: got {self.hidden_size}; rotary positions need heads of an even width"
            )
        if self.model_version == "ESM-2" and self.emb_layer_norm_before:
            raise ValueError("FairEsmConfig.emb_layer_norm_before: got True; ESM-2 does not norm its embeddings")
        if self.model_version == "ESM-1" and self.hidden_size < 4:
            raise ValueError(f"FairEsmConfig.hidden_size: got {self.hidden_size}; sinusoidal positions need at least 4")
        if self.model_version == "ESM-1" and self.tie_word_embeddings:
            raise ValueError("FairEsmConfig.tie_word_embeddings: got True; ESM-1 has an output projection of its own")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(
                f"FairEsmConfig.max_position_embeddings: got {self.max_position_embeddings}; allowed: at least 3"
            )


__all__ = ["FairEsmConfig"]
