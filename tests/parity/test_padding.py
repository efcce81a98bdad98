"""A sequence gives the same in a batch, padded left or right, as it gives alone."""

from __future__ import annotations

import pytest
import torch

from parity.originals import ATTENTIONS, CARPS, FAIR_ESM, assert_close, small_pair

LENGTHS = (7, 1, 100, 2, 31)


def pad(rows: list[torch.Tensor], side: str, token: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack rows of tokens; return them with which of them are not padding."""
    shape = len(rows), max(len(row) for row in rows)
    input_ids, inside = torch.full(shape, token), torch.zeros(shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(-len(row), None)
        input_ids[i, place], inside[i, place] = row, True
    return input_ids, inside


CASES = [(name, attention) for name in FAIR_ESM for attention in ATTENTIONS] + [(name, None) for name in CARPS]


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("name", "attention"), CASES)
@torch.no_grad()
def test_batch_gives_what_each_sequence_gives_alone(name, attention, side, masked):
    pair = small_pair(name)
    model = pair.model(attention)
    rows = [pair.batch((length,), masked)[0] for length in LENGTHS]
    input_ids, inside = pad(rows, side, model.config.pad_token_id)
    with_mask = model(input_ids, attention_mask=inside.long(), output_hidden_states=True)
    # the padding token tells as much as the mask
    assert_close(model(input_ids).logits[inside], with_mask.logits[inside], "logits without a mask")
    for i, row in enumerate(rows):
        alone = model(row[None], output_hidden_states=True)
        assert_close(with_mask.logits[i, inside[i]], alone.logits[0], f"logits of row {i}")
        for j, (batched, single) in enumerate(zip(with_mask.hidden_states, alone.hidden_states, strict=True)):
            assert_close(batched[i, inside[i]], single[0], f"representation {j} of row {i}")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", FAIR_ESM)
@torch.no_grad()
def test_batch_gives_the_attentions_and_contacts_of_each_sequence_alone(name, side):
    pair = small_pair(name)
    model = pair.model()
    rows = [pair.batch((length,))[0] for length in LENGTHS]
    input_ids, inside = pad(rows, side, model.config.pad_token_id)
    attentions = torch.stack(model(input_ids, inside.long(), output_attentions=True).attentions, 1)
    contacts = model.predict_contacts(input_ids, inside.long())
    for i, (row, length) in enumerate(zip(rows, LENGTHS, strict=True)):
        alone = torch.stack(model(row[None], output_attentions=True).attentions, 1)[0]
        assert_close(attentions[i][..., inside[i], :][..., inside[i]], alone, f"attentions of row {i}")
        # the contact map lacks the first token of the batch and, for ESM-1b, the last
        first = int(inside[i].int().argmax())
        residues = slice(first, first + length)
        assert_close(contacts[i, residues, residues], model.predict_contacts(row[None])[0], f"contacts of row {i}")


@pytest.mark.parametrize("name", [*FAIR_ESM, *CARPS])
@torch.no_grad()
def test_what_a_masked_position_holds_does_not_matter(name):
    """Padding by the mask alone: the tokens there are residues."""
    pair = small_pair(name)
    model = pair.model()
    alone = pair.batch((7,))
    longer = torch.cat([alone, alone.flip(1)], dim=1)
    inside = torch.arange(longer.shape[1])[None] < alone.shape[1]
    logits = model(longer, attention_mask=inside.long()).logits
    assert_close(logits[inside], model(alone).logits[0], "logits")
