"""Any encoder of Transformers embeds by its own tokenizer as one sequence alone does, whatever is in the batch."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow")

from support.any_encoders import (
    ENCODERS,
    LETTERS,
    characters,
    encoder,
    merging,
    prefixed,
    unigram,
    wordpiece,
    write_letters,
)
from support.embedding import draw, read_all, write_fasta
from transformers.models.esmc.tokenization_esmc import EsmcTokenizer

import hf_perturb
from hf_perturb.embedding.tokenizing import Tokenizing, read_replace
from hf_perturb.errors import FastaError, ModelInputError, UnsupportedModuleError

LENGTHS = (5, 50, 1, 42, 17, 2, 49, 3, 33, 42)
BLANKS = (wordpiece, unigram, prefixed)


@torch.no_grad()
def alone(name, model, tokenizer, sequence, prefix=""):
    """Hidden states of a sequence by itself, each `(tokens, hidden_size)`, and where its residues are."""
    text = " ".join([*([prefix] if prefix else []), *sequence]) if ENCODERS[name][3] in BLANKS else prefix + sequence
    given = tokenizer(text, return_tensors="pt", return_special_tokens_mask=True)
    inner = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    states = inner(given.input_ids, output_hidden_states=True).hidden_states
    residues = given.special_tokens_mask[0] == 0
    residues[: len(tokenizer(prefix, add_special_tokens=False).input_ids)] &= not prefix
    assert "gpt2" in name or residues.sum() == len(sequence)
    return [state[0] for state in states], residues


def assert_columns(out, sequences, expected):
    """Compare every column within 1e-5 of its largest value; `expected` gives, for a sequence, column -> values."""
    columns = read_all(out)
    for row, sequence in enumerate(sequences):
        wanted = expected(sequence)
        assert columns.keys() == wanted.keys()
        for name, values in wanted.items():
            scale = values.abs().max().item()
            np.testing.assert_allclose(columns[name][1][row], values.numpy(), rtol=0, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_pooling_and_layer_is_that_of_the_sequence_alone(tmp_path, name):
    model, tokenizer = encoder(name)
    sequences = draw(LENGTHS)
    sequences += [sequences[1], sequences[2]]
    by_residue, has_cls = name != "gpt2", name not in ("gpt2", "t5", "t5-encoder", "llama", "mamba", "qwen3_moe")
    pools = ["mean", "max", *(["cls"] if has_cls else [])]
    options = {"layers": "all", "pool": pools, "per_residue": by_residue, "tokens": 300, "tokenizer": tokenizer}
    hf_perturb.embed(model, write_fasta(tmp_path / "a.fasta", sequences), tmp_path / "out", **options)

    def expected(sequence):
        states, residues = alone(name, model, tokenizer, sequence)
        values = {}
        for layer, state in enumerate(states):
            rows = state[residues]
            values |= {f"mean_{layer}": rows.double().mean(0), f"max_{layer}": rows.amax(0)}
            values |= {f"cls_{layer}": state[0]} if has_cls else {}
            values |= {f"residues_{layer}": rows} if by_residue else {}
        return values

    assert_columns(tmp_path / "out", sequences, expected)


@pytest.mark.parametrize("name", ["bert", "t5", "esmc", "gpt2", "convbert"])
def test_neither_padding_nor_the_batch_matters(tmp_path, name):
    """A budget of one token runs each by itself; the side that a tokenizer pads on is not asked."""
    model, tokenizer = encoder(name)
    sequences = draw(LENGTHS)
    columns = []
    for number, (tokens, side) in enumerate([(1, "right"), (4096, "right"), (4096, "left"), (200, "left")]):
        order = sorted(sequences, key=len) if number == 3 else sequences
        tokenizer.padding_side = side
        fasta = write_fasta(tmp_path / f"{number}.fasta", order)
        hf_perturb.embed(model, fasta, tmp_path / str(number), tokens=tokens, tokenizer=tokenizer)
        _, vectors = hf_perturb.read_embeddings(tmp_path / str(number))
        columns.append(np.stack([vectors[order.index(sequence)] for sequence in sequences]))
    for other in columns[1:]:
        np.testing.assert_allclose(other, columns[0], rtol=0, atol=1e-5 * np.abs(columns[0]).max())


@pytest.mark.parametrize(
    ("name", "batches"),
    [("bert", [(4, False), (2, True)]), ("convbert", [(3, True), (1, True), (2, True)])],
    ids=["bert", "convbert"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_that_minds_padding_is_given_none(tmp_path, monkeypatch, dtype, name, batches):
    seen = []
    model, tokenizer = encoder(name)
    model.to(dtype)
    call = type(model).forward

    def forward(self, input_ids, attention_mask, **options):
        seen.append((input_ids.shape[0], bool(attention_mask.all())))
        return call(self, input_ids, attention_mask, **options)

    monkeypatch.setattr(type(model), "forward", forward)
    fasta = write_fasta(tmp_path / "a.fasta", draw((9, 30, 28, 30, 9, 30)))
    hf_perturb.embed(model, fasta, tmp_path / "out", tokenizer=tokenizer)
    tried, embedded = seen[: -len(batches)], seen[-len(batches) :]
    assert embedded == batches
    assert tried == [(1, True), (1, True), (2, False), (2, False)]


def test_a_network_that_minds_how_long_rows_are_is_given_no_padding(tmp_path, monkeypatch):
    model, tokenizer = encoder("bert")
    call = type(model).forward

    def forward(self, input_ids, attention_mask=None, **options):
        output = call(self, input_ids, attention_mask, **options)
        output.last_hidden_state = output.last_hidden_state * input_ids.shape[1]
        if output.hidden_states is not None:
            output.hidden_states = (*output.hidden_states[:-1], output.last_hidden_state)
        return output

    monkeypatch.setattr(type(model), "forward", forward)
    sequences = draw((30, 28))
    hf_perturb.embed(model, write_fasta(tmp_path / "a.fasta", sequences), tmp_path / "out", tokenizer=tokenizer)

    def expected(sequence):
        states, residues = alone("bert", model, tokenizer, sequence)
        return {"mean_2": states[-1][residues].double().mean(0)}

    assert_columns(tmp_path / "out", sequences, expected)


def test_the_last_layer_alone_keeps_no_others(tmp_path, monkeypatch):
    model, tokenizer = encoder("esmc")
    asked, call = [], type(model).forward
    monkeypatch.setattr(
        type(model), "forward", lambda self, *a, **k: asked.append(k["output_hidden_states"]) or call(self, *a, **k)
    )
    fasta = write_fasta(tmp_path / "a.fasta", draw((9, 30)))
    hf_perturb.embed(model, fasta, tmp_path / "last", tokenizer=tokenizer)
    assert asked[-1] is False
    hf_perturb.embed(model, fasta, tmp_path / "all", layers="all", tokenizer=tokenizer)
    assert asked[-1] is True
    assert np.array_equal(*(hf_perturb.read_embeddings(tmp_path / out, "mean_2")[1] for out in ("last", "all")))


def test_a_prefix_is_no_residue(tmp_path):
    model, tokenizer = encoder("t5")
    sequences, fasta = draw((9, 30, 1)), tmp_path / "a.fasta"
    write_fasta(fasta, sequences)
    done = hf_perturb.embed(
        model, fasta, tmp_path / "out", prefix="<AA2fold>", per_residue=True, tokenizer=tokenizer, layers="1,-1"
    )
    assert done.notes == ("T5ForConditionalGeneration has a decoder too: these are representations of its encoder",)

    def expected(sequence):
        states, residues = alone("t5", model, tokenizer, sequence, "<AA2fold>")
        values = {f"residues_{layer}": states[layer][residues] for layer in (1, 2)}
        return values | {f"mean_{layer}": states[layer][residues].mean(0) for layer in (1, 2)}

    assert_columns(tmp_path / "out", sequences, expected)
    inputs = json.loads((tmp_path / "out" / "_manifest.json").read_text())["inputs"]
    assert (inputs["prefix"], inputs["separate"]) == ("<AA2fold>", True)
    for prefix in ("<AA3fold>", "<unk>"):
        with pytest.raises(ModelInputError, match=f"prefix: got '{prefix}', which this T5Tokenizer has no token of"):
            hf_perturb.embed(model, fasta, tmp_path / "none", prefix=prefix, tokenizer=tokenizer)


def test_a_prefix_that_is_special_by_itself_is_no_end():
    """Tokenizers in Python mark every special token, wherever it is."""
    assert Tokenizing(characters(), prefix="<mask>").begin == [0, 32]


def test_a_prefix_leaves_residues_as_they_are():
    tokenizer = merging()
    joined = next(letter for letter in LETTERS if f"{letter}M" in tokenizer.get_vocab())
    with pytest.raises(ModelInputError, match=f"prefix: got '{joined}'; this .* makes other tokens of the residues th"):
        Tokenizing(tokenizer, prefix=joined)


def test_tokens_that_are_not_the_residues_are_an_error():
    tokenizer = EsmcTokenizer()
    tokenizer.add_tokens(["ACD"])
    with pytest.raises(FastaError, match=r"'MACDM' ... of 5 residues: this EsmcTokenizer makes 3 tokens of it, M ACD"):
        Tokenizing(tokenizer).tokens(["MAC", "MACDM"])


def test_how_a_tokenizer_was_called_before_does_not_matter():
    tokenizer = wordpiece()
    before = Tokenizing(tokenizer).digest
    tokenizer(["M K T"], padding="max_length", truncation=True, max_length=4)
    after = Tokenizing(tokenizer)
    assert after.digest == before
    assert len(after.tokens(["MKTAYI"])[0]) == 6
    assert Tokenizing(wordpiece(LETTERS[::-1])).digest != before


@pytest.mark.parametrize(
    ("make", "separate", "by_residue", "ends"),
    [
        (wordpiece, True, True, (1, 1)),
        (unigram, True, True, (0, 1)),
        (characters, False, True, (1, 1)),
        (EsmcTokenizer, False, True, (1, 1)),
        (merging, False, False, (0, 0)),
        (lambda: wordpiece("ACGTN"), True, True, (1, 1)),
        # the beginning of a word is a token by itself
        (lambda: bare(("▁", *"ACDEFGHIKLMNPQRSTVWYX")), False, True, (1, 1)),
    ],
    ids=["wordpiece", "unigram", "characters", "esmc", "merging", "nucleotides", "bare"],
)
def test_how_residues_are_written_is_found_out(make, separate, by_residue, ends):
    found = Tokenizing(make())
    assert (found.separate, found.by_residue, (len(found.begin), len(found.end))) == (separate, by_residue, ends)


def bare(pieces):
    return unigram(pieces, letters="")


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        # pieces within words too: both ways are a token a residue, and not the same
        (
            lambda: unigram("ACDEFGHIKLMNPQRSTVWY"),
            {},
            r"separate: got none, and this T5Tokenizer makes ▁M K W V of 'MKWV' and ▁M ▁K ▁W ▁V of 'M K W V'; say",
        ),
        (lambda: wordpiece("A"), {}, r"tokenizer: this BertTokenizer makes \[UNK\] of 'M'; if there"),
        (wordpiece, {"separate": False}, r"separate: got False; this BertTokenizer makes no token a residue: \[UNK\]"),
        (EsmcTokenizer, {"separate": True}, "separate: got True; this EsmcTokenizer makes no token a residue: M <unk>"),
        (merging, {"separate": True}, "separate: got True; this .* makes no token a residue"),
        (wordpiece, {"replace": {"J": "J"}}, "replace: got J; allowed: ABC"),
    ],
)
def test_what_cannot_be_told_is_asked_for(make, options, said):
    with pytest.raises(ModelInputError, match=said):
        Tokenizing(make(), **options)


def test_an_answer_settles_it():
    both = unigram("ACDEFGHIKLMNPQRSTVWY")
    assert Tokenizing(both, separate=True).tokens(["MK"]) != Tokenizing(both, separate=False).tokens(["MK"])


def test_a_tokenizer_is_what_its_file_says(tmp_path):
    """Transformers' class of it puts an unknown token before each word."""
    folder = write_letters(tmp_path / "letters")
    model, _ = encoder("t5-encoder")
    sequences = draw((9, 30))
    fasta = write_fasta(tmp_path / "a.fasta", sequences)
    done = hf_perturb.embed(model, fasta, tmp_path / "out", tokenizer=folder, per_residue=True, pool=())
    assert done.notes[0] == "tokenizer.json is read as it is written; T5Tokenizer would make other tokens of residues"
    for sequence, got in zip(sequences, hf_perturb.read_embeddings(tmp_path / "out")[1], strict=True):
        ids = torch.tensor([[*(3 + LETTERS.index(letter) for letter in sequence), 1]])
        with torch.no_grad():
            np.testing.assert_allclose(got, model(ids).last_hidden_state[0, :-1], atol=1e-5)


@pytest.mark.parametrize("given", ["UZOB", "UZOB=", "=X", "u=X", "U=XX", "U=x", "", {"U": ""}, {"U": "XY"}])
def test_other_replacements_are_refused(given):
    with pytest.raises(ModelInputError, match=r"replace: got .*; allowed: letters and what to read them as"):
        read_replace(given)


def test_a_residue_without_a_token_is_told_before_anything_is_embedded(tmp_path):
    model, tokenizer = encoder("bert")
    fasta = write_fasta(tmp_path / "a.fasta", ["MKT", "MJT", "UKZ"])
    with pytest.raises(FastaError, match=r"record 's1' has J, which BertTokenizer does not know; .* --replace J=X"):
        hf_perturb.embed(model, fasta, tmp_path / "out", tokenizer=tokenizer)
    assert not (tmp_path / "out").exists()
    options = {"tokenizer": tokenizer, "replace": "J=L,UZOB=X"}
    done = hf_perturb.embed(model, fasta, tmp_path / "out", **options)
    assert done.findings == {"replaced": {"records": 2, "first": "s1"}}
    plain = hf_perturb.embed(model, write_fasta(tmp_path / "b.fasta", ["MKT", "MLT", "XKX"]), tmp_path / "b", **options)
    assert np.array_equal(*(hf_perturb.read_embeddings(each.path)[1] for each in (done, plain)))
    rare = hf_perturb.embed(
        model, write_fasta(tmp_path / "c.fasta", ["MKT", "UKZ"]), tmp_path / "c", tokenizer=tokenizer
    )
    assert "1 record had U, Z, O or B, read as tokens of their own" in rare.notes[0]


def test_a_mask_is_that_of_the_tokenizer(tmp_path):
    model, tokenizer = encoder("bert")
    fasta = write_fasta(tmp_path / "a.fasta", ["MK<mask>T", "<mask>", "mk[MASK]-t"])
    hf_perturb.embed(model, fasta, tmp_path / "out", per_residue=True, pool=(), tokenizer=tokenizer)
    ids = tokenizer("M K [MASK] T", return_tensors="pt").input_ids
    with torch.no_grad():
        wanted = model(ids).last_hidden_state[0, 1:-1]
    _, vectors = hf_perturb.read_embeddings(tmp_path / "out")
    np.testing.assert_allclose(vectors[0], wanted, atol=1e-5)
    assert vectors[1].shape == (1, 32)
    np.testing.assert_allclose(vectors[2], wanted, atol=1e-5)
    for odd in ("<foo>", "[PAD]", "["):
        said = rf"has '{re.escape(odd)}', which is no token of this network; allowed: residues and .*\[MASK\], <mask>"
        with pytest.raises(FastaError, match=said):
            hf_perturb.embed(
                model, write_fasta(tmp_path / "b.fasta", [f"M{odd}K"]), tmp_path / "b", tokenizer=tokenizer
            )


@pytest.mark.parametrize("name", ["bert", "roberta", "esm", "bart"])
def test_positions_that_are_learned_have_an_end(tmp_path, name):
    model, tokenizer = encoder(name)
    whole, options = draw((62,)), {"tokenizer": tokenizer, "per_residue": True}
    hf_perturb.embed(model, write_fasta(tmp_path / "a.fasta", whole), tmp_path / "whole", **options)
    fasta = write_fasta(tmp_path / "b.fasta", [whole[0] + "MKV"])
    with pytest.raises(FastaError, match="record 's0' has 65 residues; allowed: at most 62, because"):
        hf_perturb.embed(model, fasta, tmp_path / "none", **options)
    hf_perturb.embed(model, fasta, tmp_path / "cut", **options, long="truncate")
    for column in ("mean_2", "residues_2"):
        ours, theirs = (hf_perturb.read_embeddings(tmp_path / out, column)[1][0] for out in ("whole", "cut"))
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    hf_perturb.embed(model, fasta, tmp_path / "seen", **options, long="window", overlap=59)
    assert hf_perturb.read_embeddings(tmp_path / "seen", "residues_2")[1][0].shape == (65, 32)


def test_positions_that_are_computed_have_none(tmp_path):
    model, tokenizer = encoder("llama", max_position_embeddings=32)
    hf_perturb.embed(model, write_fasta(tmp_path / "a.fasta", draw((80,))), tmp_path / "out", tokenizer=tokenizer)


def test_tokens_of_several_residues_have_no_vectors_of_residues(tmp_path):
    model, tokenizer = encoder("gpt2")
    fasta = write_fasta(tmp_path / "a.fasta", draw((9, 80)))
    seen = []
    done = hf_perturb.embed(
        model, fasta, tmp_path / "out", tokenizer=tokenizer, progress=lambda *counts: seen.append(counts)
    )
    assert (seen[-1], done.computed) == ((89, 89), 89)
    assert done.notes == ("TokenizersBackend makes tokens of several residues: pooled over tokens",)
    with pytest.raises(ModelInputError, match="per_residue: got True; the tokenizer of this gpt2 network makes tokens"):
        hf_perturb.embed(model, fasta, tmp_path / "none", tokenizer=tokenizer, per_residue=True)
    with pytest.raises(ModelInputError, match="long: got 'window'; the tokenizer of this gpt2 network makes tokens"):
        hf_perturb.embed(model, fasta, tmp_path / "none", tokenizer=tokenizer, long="window")
    with pytest.raises(FastaError, match=r"record 's0' is \d+ tokens; allowed: at most 64, because"):
        hf_perturb.embed(model, write_fasta(fasta, draw((300,))), tmp_path / "none", tokenizer=tokenizer)


@pytest.mark.parametrize("name", ["llama", "mamba", "qwen3_moe"])
def test_a_first_token_that_sees_nothing_is_no_vector_of_a_sequence(tmp_path, name):
    model, tokenizer = encoder(name)
    fasta = write_fasta(tmp_path / "a.fasta", draw((9,)))
    with pytest.raises(ModelInputError, match=f"pool: got 'cls'; the first token of this {name} network sees nothing"):
        hf_perturb.embed(model, fasta, tmp_path / "out", tokenizer=tokenizer, pool="cls")


@pytest.mark.parametrize(
    ("name", "options", "error", "said"),
    [
        ("t5", {"pool": "cls"}, ModelInputError, "pool: got 'cls'; a t5 network has no token that begins a sequence"),
        ("bert", {"tokenizer": 3}, ModelInputError, "tokenizer: got a int; allowed: one of Transformers"),
        ("bert", {"tokenizer": None}, ModelInputError, "tokenizer: got none, and this model does not say"),
        ("bert", {"tokenizer": "nowhere/none"}, ModelInputError, "tokenizer: 'nowhere/none' has none that can be load"),
        ("bert", {"layers": 3}, ModelInputError, "layers: got 3; allowed: last, all, or numbers from 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, name, options, error, said):
    model, tokenizer = encoder(name)
    fasta = write_fasta(tmp_path / "a.fasta", draw((9,)))
    with pytest.raises(error, match=said):
        hf_perturb.embed(model, fasta, tmp_path / "out", **{"tokenizer": tokenizer, **options})


def test_a_tokenizer_of_another_network_is_told(tmp_path):
    model, tokenizer = encoder("bert", vocab_size=20)
    fasta = write_fasta(tmp_path / "a.fasta", draw((30,)))
    with pytest.raises(
        ModelInputError, match=r"tokenizer: '.' of this BertTokenizer has the id 2\d, and the network has 20"
    ):
        hf_perturb.embed(model, fasta, tmp_path / "out", tokenizer=tokenizer)


def test_a_tokenizer_of_more_tokens_than_the_network_has_is_told(tmp_path):
    model, tokenizer = encoder("bert")
    tokenizer.add_tokens([f"<{number}>" for number in range(40)])
    fasta = write_fasta(tmp_path / "a.fasta", draw((30,)))
    done = hf_perturb.embed(model, fasta, tmp_path / "out", tokenizer=tokenizer)
    assert done.notes == ("BertTokenizer has 70 tokens, the network 50: is it of this network?",)


def test_networks_that_read_no_tokens_are_refused(tmp_path):
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model, fasta = ViTModel(ViTConfig(**sizes, image_size=8, patch_size=4)), write_fasta(tmp_path / "a.fasta", ["MK"])
    with pytest.raises(
        UnsupportedModuleError, match="a ViTModel reads pixel_values; allowed: networks that read tokens"
    ):
        hf_perturb.embed(model, fasta, tmp_path / "out", tokenizer=wordpiece())


@pytest.mark.parametrize(
    ("option", "value"), [("tokenizer", "x"), ("separate", False), ("prefix", "A"), ("replace", "U=X")]
)
def test_networks_of_ours_have_an_alphabet_and_no_tokenizer(tmp_path, option, value):
    fasta = write_fasta(tmp_path / "a.fasta", draw((9,)))
    with pytest.raises(ModelInputError, match=f"{option}: got .*; a carp network has its alphabet"):
        hf_perturb.embed("demo", fasta, tmp_path / "out", **{option: value})
