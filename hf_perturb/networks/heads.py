# Copyright 2026 The hf_perturb authors. All rights reserved.
#
# Licensed under the MIT License: see the LICENSE file at the root of the repository.
"""Downstream heads and losses, the same for every family. No rule of a perturbation touches `classifier.*`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput, TokenClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .inputs import sequence_mask


def residue_mean(
    config: Any,
    hidden_states: torch.Tensor,
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
) -> torch.Tensor:
    """Average over residues: padding and the tokens that begin and end a sequence do not count.

    Args:
        config: for the ids of the special tokens.
        hidden_states: `(batch, length, hidden_size)`.
        input_ids: `(batch, length)`, or `None`: then every attended position counts.
        attention_mask: `(batch, length)` or `None`.

    Returns:
        `(batch, hidden_size)`; zeros for a sequence without residues.
    """
    mask = sequence_mask(config, input_ids, attention_mask, hidden_states)
    for name in ("bos_token_id", "eos_token_id"):
        token = getattr(config, name, None)
        if token is not None and input_ids is not None:
            mask = mask & (input_ids != token)
    weights = mask.unsqueeze(-1).to(hidden_states.dtype)
    return (hidden_states * weights).sum(1) / weights.sum(1).clamp(min=1)


class SequenceClassificationHead(nn.Module):
    """Mean over residues, dense layer, tanh, projection to `(batch, num_labels)`."""

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(
        self,
        hidden_states: torch.Tensor,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        pooled = self.dropout(residue_mean(self.config, hidden_states, input_ids, attention_mask))
        return self.out_proj(self.dropout(torch.tanh(self.dense(pooled))))


class TokenClassificationHead(nn.Module):
    """Projection of every position to `(batch, length, num_labels)`."""

    def __init__(self, config: Any):
        super().__init__()
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.out_proj(self.dropout(hidden_states))


def token_loss(
    logits: torch.Tensor, labels: torch.Tensor | None, num_items_in_batch: Any = None, **kwargs: Any
) -> torch.Tensor | None:
    """Cross-entropy in nats over the positions whose label is not -100.

    Args:
        logits: `(batch, length, classes)`.
        labels: `(batch, length)` or `None`.
        num_items_in_batch: labels in all accumulated batches, which `Trainer` passes; the sum is divided by it.
    """
    if labels is None:
        return None
    reduction = "mean" if num_items_in_batch is None else "sum"
    flat, target = logits.flatten(0, 1).float(), labels.to(logits.device).flatten()
    loss = nn.functional.cross_entropy(flat, target, reduction=reduction)
    return loss if num_items_in_batch is None else loss / num_items_in_batch


def sequence_classification_loss(config: Any, logits: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor | None:
    """Loss of `config.problem_type`, or of the type that the labels suggest, as in Transformers' own heads."""
    if labels is None:
        return None
    labels = labels.to(logits.device)
    problem = config.problem_type
    if problem is None:
        integer = not labels.is_floating_point()
        problem = "single_label_classification" if integer else "multi_label_classification"
        problem = "regression" if config.num_labels == 1 else problem
    if problem == "regression":
        return nn.functional.mse_loss(logits.squeeze().float(), labels.squeeze().float())
    if problem == "single_label_classification":
        return nn.functional.cross_entropy(logits.float(), labels.view(-1))
    return nn.functional.binary_cross_entropy_with_logits(logits.float(), labels.float())


class SequenceClassificationMixin:
    """What a network with a `SequenceClassificationHead` as its `classifier` computes."""

    accepts_loss_kwargs = False  # the loss is a mean over the batch at hand
    config: Any
    classifier: nn.Module
    encode: Callable[..., BaseModelOutput]

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
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
        outputs = self.encode(input_ids, attention_mask, inputs_embeds, return_dict=True, **kwargs)
        logits = self.classifier(outputs.last_hidden_state, input_ids, attention_mask)
        return SequenceClassifierOutput(
            loss=sequence_classification_loss(self.config, logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class TokenClassificationMixin:
    """What a network with a `TokenClassificationHead` as its `classifier` computes."""

    classifier: nn.Module
    encode: Callable[..., BaseModelOutput]

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
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
        outputs = self.encode(input_ids, attention_mask, inputs_embeds, return_dict=True, **kwargs)
        logits = self.classifier(outputs.last_hidden_state)
        return TokenClassifierOutput(
            loss=token_loss(logits, labels, **kwargs),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
