# Copyright 2026 The hf_perturb authors. MIT License: see the LICENSE file at the root of the repository.
"""What comes after the trunk: heads and losses, the same for every family. No rule touches `classifier.*`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.loss.loss_utils import fixed_cross_entropy
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .inputs import residue_mask
from .record import ModelInputError


class SequenceClassificationHead(nn.Module):
    """Mean over residues, dense layer, tanh, projection to `(batch, num_labels)`."""

    def __init__(self, config: Any):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, hidden_states: torch.Tensor, residues: torch.Tensor) -> torch.Tensor:
        """Score sequences by their residues, `(batch, length)`; the mean is zeros where there are none."""
        weights = residues.unsqueeze(-1).to(hidden_states.dtype)
        pooled = self.dropout((hidden_states * weights).sum(1) / weights.sum(1).clamp(min=1))
        return self.out_proj(self.dropout(torch.tanh(self.dense(pooled))))


class TokenClassificationHead(nn.Module):
    """Projection of every position to `(batch, length, num_labels)`."""

    def __init__(self, config: Any):
        super().__init__()
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.out_proj(self.dropout(hidden_states))


def _exact(x: torch.Tensor) -> torch.Tensor:
    """Return values in float32, or in float64 if they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def token_loss(
    logits: torch.Tensor, labels: torch.Tensor | None, num_items_in_batch: Any = None, **kwargs: Any
) -> torch.Tensor | None:
    """Cross-entropy in nats of `(batch, length, classes)` over the positions whose label is not -100.

    It is the mean, or the sum divided by the labels in all accumulated batches, which `Trainer` passes.
    """
    if labels is None:
        return None
    return fixed_cross_entropy(_exact(logits).flatten(0, 1), labels.to(logits.device).flatten(), num_items_in_batch)


def sequence_classification_loss(config: Any, logits: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor | None:
    """Loss of `config.problem_type`, or of the type that the labels suggest, as in Transformers' own heads."""
    if labels is None:
        return None
    labels, logits = labels.to(logits.device), _exact(logits)
    problem = config.problem_type
    if problem is None and config.num_labels == 1:
        problem = "regression"
    elif problem is None:
        problem = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
    if problem == "regression":
        return nn.functional.mse_loss(logits.squeeze(), labels.squeeze().to(logits.dtype))
    if problem == "single_label_classification":
        return nn.functional.cross_entropy(logits, labels.view(-1))
    return nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


class ModelMixin:
    """A network without a head; the others are made of the same parts."""

    config: Any
    build_trunk: Callable[..., None]
    encode: Callable[..., BaseModelOutput]
    post_init: Callable[[], None]

    def __init__(self, config: Any, add_pooling_layer: bool = False):
        """Build a network; without the pooling layer that stock Transformers' ESM can have.

        Raises:
            ValueError: if it is asked for.
        """
        if add_pooling_layer:
            raise ModelInputError(
                f"{type(self).__name__}: add_pooling_layer: got {add_pooling_layer!r}; allowed: False, for the"
                " originals have no pooling layer; take the mean of last_hidden_state over the residues"
            )
        super().__init__(config)  # type: ignore[call-arg]
        self.build_trunk(self.config)
        self.build_head(self.config)
        self.post_init()

    def build_head(self, config: Any) -> None:
        """Register the modules after the last representation: here none."""

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        r"""Compute representations.

        Args:
            input_ids: tokens, `(batch, length)`.
            attention_mask: 1 for tokens and 0 for padding, `(batch, length)`; the padding token never counts.
            position_ids: positions of the tokens, `(batch, length)` or `(1, length)`, in place of counting what is not
                padding: for ESM-1, ESM-1b and ESM-1v from 2 on, `pad_token_id + 1`; of ESM-2 only differences matter.
            inputs_embeds: token embeddings in place of `input_ids`, `(batch, length, width of the embedding)`.

        Returns:
            `last_hidden_state` `(batch, length, hidden_size)`; on request `hidden_states`, the representations 0 to n
            of the original, and of an ESM `attentions` `(batch, heads, length, length)`.

        Raises:
            ValueError: if an id, a shape, a mask or a length is not one that the network can take.
            TypeError: for a keyword that is not used, and for `position_ids` of a CARP, which has no positions.
        """
        return self.encode(input_ids, attention_mask, inputs_embeds, position_ids, return_dict=True, **kwargs)


class MaskedLMMixin(ModelMixin):
    """A network with a language head."""

    _keys_to_ignore_on_load_unexpected: Any = None
    predict_tokens: Callable[..., torch.Tensor]

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        r"""Predict tokens; the other arguments are those of the `forward` of the family's class without a head.

        Args:
            labels: true tokens, `(batch, length)`; positions with -100 do not count in the loss.

        Returns:
            `logits` `(batch, length, vocab_size)` and, with `labels`, the mean cross-entropy in nats.
        """
        outputs = self.encode(input_ids, attention_mask, inputs_embeds, position_ids, return_dict=True, **kwargs)
        logits = self.predict_tokens(outputs.last_hidden_state)
        return MaskedLMOutput(
            loss=token_loss(logits, labels, **kwargs),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class SequenceClassificationMixin(ModelMixin):
    """A network with a classifier or a regression on the mean over residues."""

    accepts_loss_kwargs = False  # the loss is a mean over the batch at hand

    def build_head(self, config: Any) -> None:
        self.classifier = SequenceClassificationHead(config)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        r"""Classify sequences; the other arguments are those of the `forward` of the family's class without a head.

        Args:
            labels: class ids `(batch,)`, or targets `(batch,)` or `(batch, num_labels)`.

        Returns:
            `logits` `(batch, num_labels)` and, with `labels`, the loss of `config.problem_type`.
        """
        outputs = self.encode(input_ids, attention_mask, inputs_embeds, position_ids, return_dict=True, **kwargs)
        residues = residue_mask(self.config, input_ids, attention_mask, outputs.last_hidden_state)
        logits = self.classifier(outputs.last_hidden_state, residues)
        return SequenceClassifierOutput(
            loss=sequence_classification_loss(self.config, logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class TokenClassificationMixin(ModelMixin):
    """A network with a classifier on every residue."""

    def build_head(self, config: Any) -> None:
        self.classifier = TokenClassificationHead(config)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        r"""Classify residues; the other arguments are those of the `forward` of the family's class without a head.

        Args:
            labels: class ids, `(batch, length)`; positions with -100 do not count in the loss.

        Returns:
            `logits` `(batch, length, num_labels)` and, with `labels`, the mean cross-entropy in nats.
        """
        outputs = self.encode(input_ids, attention_mask, inputs_embeds, position_ids, return_dict=True, **kwargs)
        logits = self.classifier(outputs.last_hidden_state)
        return TokenClassifierOutput(
            loss=token_loss(logits, labels, **kwargs),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
