"""Records become batches of tokens: of like length, none computed twice, and no larger than asked for."""

from __future__ import annotations

import string

import pytest
import torch
from hypothesis import given, strategies as st
from support.embedding import draw
from support.models import CONFIGS, build_tokenizer

from hf_perturb.checkpoints.network import alphabet_of
from hf_perturb.embedding.batches import Unit, batches, units_of
from hf_perturb.embedding.encoder import AlphabetEncoder
from hf_perturb.embedding.fasta import Record, read_records
from hf_perturb.embedding.options import Choices
from hf_perturb.errors import FastaError


def test_the_encoder_does_what_the_tokenizer_does(network):
    config = CONFIGS[network]()
    encoder, tokenizer = AlphabetEncoder(config), build_tokenizer(alphabet_of(config))
    sequences = [string.ascii_uppercase, "M", *string.ascii_uppercase, *draw((7, 40, 3))]
    theirs = tokenizer(sequences, padding=True, return_tensors="pt")["input_ids"]
    assert torch.equal(encoder.encode(sequences), theirs)
    assert encoder.special == theirs.shape[1] - 40


def test_tokens_that_are_spelt_out_are_those_of_the_tokenizer(network, tmp_path):
    config = CONFIGS[network]()
    alphabet = alphabet_of(config)
    encoder, tokenizer = AlphabetEncoder(config), build_tokenizer(alphabet)
    assert ("<cls>" in alphabet.spelt) is (network != "carp")
    written = [f"MK{token}V{token}{token}" for token in alphabet.spelt] + ["<mask>", "m<mask>k", "MK"]
    path = tmp_path / "some.fasta"
    path.write_text("".join(f">s\n{sequence}\n" for sequence in written))
    sequences = [record.sequence for record in read_records(path, None, alphabet.spelt)]
    theirs = tokenizer(written, padding=True, return_tensors="pt")["input_ids"]
    assert torch.equal(encoder.encode(sequences), theirs)
    for token in {"<pad>", "<cls>", "<sep>", "<foo>"} - alphabet.spelt.keys():
        path.write_text(f">s\nMK{token}\n")
        with pytest.raises(
            FastaError, match=f"{token}', which is no token of this network; allowed: residues and .*<mask>"
        ):
            list(read_records(path, None, alphabet.spelt))


@given(
    st.lists(st.integers(0, 80), max_size=40),
    st.integers(1, 200),
    st.sampled_from([None, 20]),
    st.sampled_from(["truncate", "window"]),
)
def test_batches_hold_the_budget_and_every_sequence_once(lengths, tokens, limit, long):
    records = [Record(i, str(i), "A" * length) for i, length in enumerate(lengths)]
    units = units_of(records, Choices((1,), limit=limit, long=long, overlap=5), AlphabetEncoder(CONFIGS["esm1b"]()))
    assert sorted(row for unit in units for row in unit.rows) == [i for i, length in enumerate(lengths) if length]
    made = list(batches(units, tokens, special=2))
    assert sorted(id(unit) for batch in made for unit in batch) == sorted(map(id, units))
    for batch in made:
        widths = [last - first + 2 for unit in batch for first, last in unit.windows]
        assert len(batch) == 1 or len(widths) * max(widths) <= tokens
    firsts = [len(batch[0].sequence) for batch in made]
    assert firsts == sorted(firsts, reverse=True)


def test_batches_are_no_smaller_than_they_must_be():
    units = [Unit("A" * length, [length], [(0, length)]) for length in range(1, 101)]
    assert len(list(batches(units, 1000, special=0))) < 1.5 * sum(range(1, 101)) / 1000 + 1
