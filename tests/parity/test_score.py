"""Scores of substitutions are those of the procedure that the original packages show in their examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from esm.data import Alphabet
from sequence_models.constants import MASK, PROTEIN_ALPHABET
from support.any_encoders import characters, encoder
from support.any_models import any_model, noised
from support.embedding import draw
from transformers import EsmcTokenizer

import hf_perturb
from parity.originals import CARPS, FAIR_ESM, TOLERANCE, small_pair
from parity.stock import STOCKS, stock_model

pytest.importorskip("pyarrow")

OFFSET = 24
[WILDTYPE] = draw([23])
_SINGLE = [f"{WILDTYPE[at]}{at + OFFSET}{letter}" for at in (0, 7, 22) for letter in "AWG"]
MUTANTS = [*_SINGLE, f"{_SINGLE[0]}:{_SINGLE[4]}", ":".join([_SINGLE[8], _SINGLE[1], _SINGLE[3]])]


def by_hand(
    tokens: torch.Tensor,
    first: int,
    mask: int,
    logits: Callable[[torch.Tensor], torch.Tensor],
    identity: Callable[[str], int],
    wildtype: str = WILDTYPE,
    mutants: Sequence[str] = MUTANTS,
) -> dict[str, np.ndarray]:
    """Score by a pass a position, as fair-esm's `examples/variant-prediction/predict.py` does, and by one for all.

    Args:
        tokens: of the wild type, `(1, length)`.
        first: where its first residue is.
        mask: the token that hides one.
        logits: what the network says of tokens.
        identity: the token of a residue.
        wildtype: its residues.
        mutants: numbered from `OFFSET`.
    """
    tables = {}
    with torch.no_grad():
        tables["wildtype"] = torch.log_softmax(logits(tokens), -1)[0]
        rows = []
        for at in range(tokens.shape[1]):
            hidden = tokens.clone()
            hidden[0, at] = mask
            rows.append(torch.log_softmax(logits(hidden), -1)[0, at])
        tables["masked"] = torch.stack(rows)

    def effect(table: torch.Tensor, part: str) -> float:
        was, at, becomes = part[0], int(part[1:-1]) - OFFSET, part[-1]
        assert wildtype[at] == was
        return (table[first + at, identity(becomes)] - table[first + at, identity(was)]).item()

    return {
        f"{name}_marginal": np.array([sum(effect(table, part) for part in each.split(":")) for each in mutants])
        for name, table in tables.items()
    }


def assert_scores(wanted, model, **options):
    done = hf_perturb.score(model, WILDTYPE, MUTANTS, offset=OFFSET, **options)
    for name, values in wanted.items():
        assert np.ptp(values) > 0.1  # of the order that the tolerance is meant for
        np.testing.assert_allclose(done.table[name].to_numpy(), values, rtol=0, atol=TOLERANCE.absolute)


@pytest.mark.parametrize("name", FAIR_ESM)
def test_scores_of_esm_are_those_of_fair_esms_example(name, tmp_path):
    pair = small_pair(name)
    alphabet = Alphabet.from_architecture("protein_bert_base" if name == "esm1" else "ESM-1b")
    tokens = pair.tokenize([WILDTYPE])
    wanted = by_hand(tokens, 1, alphabet.mask_idx, lambda ids: pair.original(ids)["logits"], alphabet.get_idx)
    model = pair.model()
    assert_scores(wanted, model)
    model.save_pretrained(tmp_path / "base")
    assert_scores(wanted, tmp_path / "base", tokens=70)
    hf_perturb.export_checkpoint(tmp_path / "base", tmp_path / f"{name}.pt", "fair-esm")
    assert_scores(wanted, tmp_path / f"{name}.pt")


@pytest.mark.parametrize("name", CARPS)
def test_scores_of_carp_are_those_of_sequence_models(name, tmp_path):
    pair = small_pair(name)
    wanted = by_hand(
        pair.tokenize([WILDTYPE]),
        0,
        PROTEIN_ALPHABET.index(MASK),
        lambda ids: pair.original(ids, repr_layers=[], logits=True)["logits"],
        PROTEIN_ALPHABET.index,
    )
    model = pair.model()
    assert_scores(wanted, model)
    model.save_pretrained(tmp_path / "base")
    assert_scores(wanted, tmp_path / "base", tokens=70)


def stock(name):
    """Return a network of Transformers, its tokenizer, and how that is given residues."""
    if name == "bert":
        return *encoder("bert-lm"), " "
    if name == "esmc":
        return any_model("esmc", head=True, change=noised), EsmcTokenizer(), ""
    return stock_model(name), characters(), ""


@pytest.mark.parametrize("name", [*STOCKS, "bert", "esmc"])
def test_scores_of_a_network_of_transformers_are_those_of_a_plain_loop(name, tmp_path):
    model, tokenizer, between = stock(name)
    tokens = tokenizer(between.join(WILDTYPE), return_tensors="pt")["input_ids"]
    wanted = by_hand(tokens, 1, tokenizer.mask_token_id, lambda ids: model(ids).logits, tokenizer.convert_tokens_to_ids)
    assert_scores(wanted, model, tokenizer=tokenizer)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    assert_scores(wanted, tmp_path / "base", tokens=70)  # a stock ESM is one of our families there


def test_a_wild_type_that_is_too_long_is_seen_around_each_position():
    """Each position in the middle of as many residues as the network takes, moved inwards at the ends."""
    model, width = small_pair("esm1b").model(), 6
    [wildtype] = draw([14])
    short = type(model)(type(model.config)(**{**model.config.to_dict(), "max_position_embeddings": width + 4}))
    state = model.state_dict()
    state["embed_positions.weight"] = state["embed_positions.weight"][: width + 4]
    short.load_state_dict(state)
    alphabet = Alphabet.from_architecture("ESM-1b")
    done = hf_perturb.score(short.eval(), wildtype, long="window", offset=OFFSET, tokens=30).table.to_pydict()
    pair = small_pair("esm1b")
    for row in range(0, 14 * 19, 19):
        mutant, at = done["mutant"][row], row // 19
        start = min(max(at - width // 2, 0), len(wildtype) - width)
        seen = wildtype[start : start + width]
        wanted = by_hand(
            pair.tokenize([seen]), 1, alphabet.mask_idx, lambda ids: pair.original(ids)["logits"], alphabet.get_idx,
            seen, [f"{mutant[0]}{at - start + OFFSET}{mutant[-1]}"],
        )  # fmt: skip
        for name, [value] in wanted.items():
            assert abs(done[name][row] - value) <= TOLERANCE.absolute
    with pytest.raises(hf_perturb.FastaError, match="14 residues; allowed: at most 6"):
        hf_perturb.score(short, wildtype)
