"""Held-out masked-LM loss: the number that tells a trained network from its controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


@torch.no_grad()
def masked_lm_loss(
    model: Any, tokenizer: Any, sequences: Sequence[str], *, fraction: float = 0.15, batch_size: int = 8
) -> float:
    """Average masked-LM loss over sequences, with masks that are the same for every model of an alphabet.

    Args:
        model: a masked language model of this package.
        tokenizer: its tokenizer.
        sequences: protein sequences, one letter a residue.
        fraction: share of the residues that is hidden, each behind the mask token.
        batch_size: sequences a batch.

    Returns:
        Cross-entropy in nats a hidden residue.

    Raises:
        ValueError: if there are no sequences.
    """
    if not sequences:
        raise ValueError("masked_lm_loss: got no sequences; allowed: at least one")
    generator = torch.Generator().manual_seed(0)
    # batches of like lengths, in an order that does not depend on the order given
    order = sorted(sequences, key=lambda sequence: (len(sequence), sequence))
    total, count = 0.0, 0
    for start in range(0, len(order), batch_size):
        batch = tokenizer(order[start : start + batch_size], padding=True, return_tensors="pt")
        ids = batch["input_ids"]
        residues = ~torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
        hidden = residues & (torch.rand(ids.shape, generator=generator) < fraction)
        batch["input_ids"] = ids.masked_fill(hidden, tokenizer.mask_token_id)
        logits = model(**batch.to(model.device)).logits.float().cpu()
        total += torch.nn.functional.cross_entropy(logits[hidden], ids[hidden], reduction="sum").item()
        count += int(hidden.sum())
    return total / count
