# Copyright 2026 The hf_perturb authors. MIT License: see the LICENSE file at the root of the repository.
"""PyTorch ESM-1, ESM-1b and ESM-2 models, with the names and the arithmetic of fair-esm.

Source of the networks: `esm.model.esm1.ProteinBertModel`, `esm.model.esm2.ESM2`, `esm.modules` and
`esm.multihead_attention` (fair-esm 2.0.0), after Rives et al., "Biological structure and function emerge from scaling
unsupervised learning to 250 million protein sequences" (2021), and Lin et al., "Evolutionary-scale prediction of
atomic-level protein structure with a language model" (2023).
"""

import math
from typing import Any, Literal, overload

import torch
from torch import nn
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask

from .configuration_fair_esm import FairEsmConfig
from .encoder import EncoderPreTrainedModel
from .heads import MaskedLMMixin, ModelMixin, SequenceClassificationMixin, TokenClassificationMixin
from .inputs import is_transformed, residue_mask
from .layers_fair_esm import (
    FairEsmAttention,
    FairEsmContactHead,
    FairEsmLayer,
    FairEsmLMHead,
    FairEsmRotaryPositions,
    FairEsmSinusoidalPositions,
    without_ends,
)
from .packing import Packing, can_pack
from .record import ModelInputError

# the share of tokens that was masked in training; source: esm.model.esm1.ProteinBertModel.forward
_MASK_RATIO_TRAIN = 0.15 * 0.8


class FairEsmPreTrainedModel(EncoderPreTrainedModel):
    """Weights, initialisation and the trunk that every ESM head shares."""

    config: FairEsmConfig
    config_class = FairEsmConfig
    # what reads its inputs beside its own modules' outputs, or parameters of its own beside theirs
    _no_split_modules = ["FairEsmLayer", "FairEsmLMHead", "SequenceClassificationHead"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": FairEsmLayer, "attentions": FairEsmAttention}
    _language_head = [r"^lm_head\.", r"^embed_out"]
    # a checkpoint of the masked LM is a good one for every class without its head
    _keys_to_ignore_on_load_unexpected = _language_head

    @property
    def _supports_flex_attn(self) -> bool:  # type: ignore[override]
        # the block mask of flex attention has no place for ESM-1's extra key
        return self.config.model_version != "ESM-1"

    def build_trunk(self, config: FairEsmConfig) -> None:
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.layers = nn.ModuleList([FairEsmLayer(config) for _ in range(config.num_hidden_layers)])
        # CODEPATH: ESM-1v was published without the regression that predicts contacts.
        self.contact_head = FairEsmContactHead(config) if config.contact_head else None
        self.emb_layer_norm_before = self.emb_layer_norm_after = None
        # CODEPATH: ESM-1 counts positions by sines and norms nothing outside its layers.
        if config.model_version == "ESM-1":
            self.embed_scale = math.sqrt(config.hidden_size)
            self.embed_positions = FairEsmSinusoidalPositions(config)
            return
        self.embed_scale = 1.0
        self.embed_positions = None  # type: ignore[assignment]
        # CODEPATH: only ESM-2 has frequencies, which half a type is too coarse for.
        if config.model_version == "ESM-2":
            self._keep_in_fp32_modules_strict = {"rot_emb"}
        # CODEPATH: ESM-1b and ESM-1v learned their positions, those of ESM-2 are in its attention.
        if config.model_version == "ESM-1b":
            self.embed_positions = nn.Embedding(  # type: ignore[assignment]
                config.max_position_embeddings, config.hidden_size, padding_idx=config.pad_token_id
            )
        # CODEPATH: esm1b_t33_650M_UR50S norms its embeddings, ESM-1v does not.
        if config.emb_layer_norm_before:
            self.emb_layer_norm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.emb_layer_norm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw what the original constructors draw.

        Transformers skips a module outside its own package that has no tensor itself, so an attention layer cannot
        initialise its projections: each says itself which it is.
        """
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            if module.bias is not None:  # as in a head of somebody's own
                init.uniform_(module.bias, -bound, bound)
            kind = getattr(module, "projection", None)
            if kind == "to":
                init.xavier_uniform_(module.weight, gain=1 / math.sqrt(2))
            elif kind == "from":
                init.xavier_uniform_(module.weight)
                init.zeros_(module.bias)
            else:
                init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, FairEsmAttention) and module.bias_k is not None:
            init.xavier_normal_(module.bias_k)
            init.xavier_normal_(module.bias_v)
        elif isinstance(module, FairEsmLMHead):
            # tied to embed_tokens in the original; a head of its own starts like one
            init.normal_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, FairEsmSinusoidalPositions):
            init.zeros_(module._float_tensor)
        elif isinstance(module, FairEsmRotaryPositions):
            init.copy_(module.inv_freq, module.frequencies())
        elif isinstance(module, FairEsmForMaskedLM) and module.embed_out is not None:
            init.zeros_(module.embed_out)
            if module.embed_out_bias is not None:
                init.zeros_(module.embed_out_bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.recorded.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.recorded.embed_tokens = value

    def document_tensors(self, rules: str = "documented") -> dict[str, torch.Tensor]:
        tensors = super().document_tensors(rules)
        # the study drew the tied head, so under its rules a model without one has its embedding drawn all the same
        if rules == "published" and self.config.tie_word_embeddings:
            tensors.setdefault("lm_head.weight", tensors["embed_tokens.weight"])
        return tensors

    def untie(self, chosen: set[str]) -> None:
        """Give the tied head a weight of its own: the document keeps the embedding and perturbs the head."""
        if not self.config.tie_word_embeddings or not {"lm_head.weight", "embed_tokens.weight"} & chosen:
            return
        self.config.tie_word_embeddings = False
        # with the configuration, Transformers ties nothing any more, a head of somebody's own neither
        for name in self.all_tied_weights_keys:
            owner, _, weight = name.rpartition(".")
            module = self.get_submodule(owner)
            tied = getattr(module, weight)
            with torch.inference_mode(tied.is_inference()):  # whatever mode the caller is in
                setattr(module, weight, nn.Parameter(tied.detach().clone(), requires_grad=tied.requires_grad))
        self.all_tied_weights_keys = self.recorded.all_tied_weights_keys = {}

    def embed(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        mask: torch.Tensor,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        # below, `.to(hidden_states)` also brings together what a device map has put on several devices
        hidden_states = self.embed_scale * inputs_embeds
        # CODEPATH: ESM-1b, ESM-1v and ESM-2 were trained with token dropout, ESM-1 without.
        if self.config.token_dropout:
            masked = torch.zeros_like(mask) if input_ids is None else mask & (input_ids == self.config.mask_token_id)
            hidden_states = hidden_states.masked_fill(masked.unsqueeze(-1).to(hidden_states.device), 0.0)
            # in float32 at least; the original counts in the type of the hidden states
            counted = masked.sum(-1).to(torch.promote_types(hidden_states.dtype, torch.float32))
            observed = counted / mask.sum(-1).clamp(min=1)
            scale = (1 - _MASK_RATIO_TRAIN) / (1 - observed)
            hidden_states = hidden_states * scale[:, None, None].to(hidden_states)
        if self.embed_positions is not None:
            if position_ids is None:
                # counting what is not padding makes a sequence the same alone, padded left and padded right
                position_ids = mask.long().cumsum(-1) * mask + self.config.pad_token_id
            hidden_states = hidden_states + self.embed_positions(position_ids).to(hidden_states)
        if self.emb_layer_norm_before is not None:
            hidden_states = self.emb_layer_norm_before(hidden_states)
        if self.emb_layer_norm_after is not None:  # ESM-1b and ESM-2 zero padding, ESM-1 does not
            hidden_states = hidden_states * mask.unsqueeze(-1).to(hidden_states)
        return hidden_states

    def packs(self, packing: Packing, **kwargs: Any) -> bool:
        return can_pack(packing, self.config, self.stack(), **kwargs) and sum(packing.lengths) < packing.mask.numel()

    def stack(self) -> tuple[nn.ModuleList, nn.Module | None]:
        return self.layers, self.emb_layer_norm_after

    def layer_masks(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor,
        packing: Packing | None,
        positions: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        config = self.config
        key_mask: Any = None
        if kwargs.get("output_attentions", config.output_attentions) or (packing is None and is_transformed()):
            # weights come from the eager path, whatever the implementation is; and what follows looks at the mask
            key_mask = mask[:, None, None, :]
        elif packing is None:
            key_mask = create_bidirectional_mask(config=config, inputs_embeds=hidden_states, attention_mask=mask)
        # CODEPATH: every query of ESM-1 sees the extra key, that of `bias_k`.
        if key_mask is not None and config.model_version == "ESM-1":
            key_mask = nn.functional.pad(key_mask, (0, 1), value=key_mask.dtype == torch.bool)
        # CODEPATH: only ESM-2 has positions in its layers.
        if config.model_version != "ESM-2":
            positions = None
        elif packing is not None:
            positions = packing.positions if positions is None else packing.pack(positions.expand_as(mask))
        return {"attention_mask": key_mask, "padding_mask": mask, "positions": positions}

    @overload
    def predict_contacts(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, return_mask: Literal[False] = False
    ) -> torch.Tensor: ...

    @overload
    def predict_contacts(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, *, return_mask: Literal[True]
    ) -> tuple[torch.Tensor, torch.Tensor]: ...

    def predict_contacts(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, return_mask: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Predict which residues touch.

        Args:
            input_ids: tokens with the special tokens that the tokenizer adds, `(batch, length)`.
            attention_mask: `(batch, length)` or `None`.
            return_mask: say too which rows and columns of each map are residues.

        Returns:
            Probabilities `(batch, residues, residues)`, `residues` being the length without the token that begins a
            sequence and, for ESM-1b and ESM-2, the one that ends it; where padding is, they mean nothing. With
            `return_mask`, also a bool mask `(batch, residues)`: false where padding and special tokens are.

        Raises:
            ValueError: if the checkpoint came without the regression that predicts contacts.
        """
        if self.contact_head is None:
            raise ModelInputError(
                f"{type(self).__name__}.predict_contacts: this checkpoint has no contact head (config.contact_head is"
                " False), because it came without one; ESM-1v was published like that; for the others, convert the"
                " original again with its -contact-regression.pt beside it"
            )
        attentions = self.encode(input_ids, attention_mask, output_attentions=True, return_dict=True).attentions
        residues = residue_mask(self.config, input_ids, attention_mask)
        contacts = self.contact_head(torch.cat([each.to(residues.device) for each in attentions], dim=1), residues)
        return (contacts, residues[:, without_ends(self.config)]) if return_mask else contacts


class FairEsmModel(ModelMixin, FairEsmPreTrainedModel):
    """ESM without a head: representations of residues, and contacts. The last one is normed, but for ESM-1."""


class FairEsmForMaskedLM(MaskedLMMixin, FairEsmPreTrainedModel):
    """ESM with its language head."""

    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}

    def build_head(self, config: FairEsmConfig) -> None:
        self.embed_out = self.embed_out_bias = None
        # CODEPATH: ESM-1 projects with a matrix of its own, the others with a head on the tied embedding.
        if config.model_version != "ESM-1":
            self.lm_head = FairEsmLMHead(config)
            return
        self._tied_weights_keys = {}
        self.embed_out = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        # CODEPATH: every released ESM-1 has the bias; the original class can go without.
        if config.final_bias:
            self.embed_out_bias = nn.Parameter(torch.empty(config.vocab_size))

    def predict_tokens(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.embed_out is None:
            is_adapted = isinstance(getattr(self.lm_head, "original_module", None), FairEsmLMHead)
            if is_adapted and not hasattr(self.lm_head, "layer_norm"):
                raise ModelInputError(
                    f"{type(self).__name__}: an adapter has put a projection alone in the place of lm_head, as PEFT"
                    " does for ensure_weight_tying=True; leave that out, and the head keeps the weight of the base"
                )
            return self.lm_head(hidden_states)
        # these parameters are not in a module that a device map could bring the hidden states to
        return nn.functional.linear(hidden_states.to(self.embed_out.device), self.embed_out, self.embed_out_bias)


class FairEsmForSequenceClassification(SequenceClassificationMixin, FairEsmPreTrainedModel):
    """ESM with a classifier or a regression on the mean over residues."""


class FairEsmForTokenClassification(TokenClassificationMixin, FairEsmPreTrainedModel):
    """ESM with a classifier on every residue."""


__all__ = [
    "FairEsmForMaskedLM",
    "FairEsmForSequenceClassification",
    "FairEsmForTokenClassification",
    "FairEsmModel",
    "FairEsmPreTrainedModel",
]
