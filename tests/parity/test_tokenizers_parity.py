"""The tokenizers give, token for token, what the originals' own batch converters give."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from esm.data import Alphabet
from sequence_models.collaters import SimpleCollater
from sequence_models.constants import PROTEIN_ALPHABET
from support.models import ALPHABETS as NETWORKS, build_tokenizer
from transformers import EsmTokenizer, PreTrainedTokenizerFast

import hf_perturb
from hf_perturb.checkpoints.network import CARP, ESM1, ESM1B
from hf_perturb.checkpoints.tokenizers import save_tokenizer
from hf_perturb.demo import held_out_sequences, located

ALPHABETS = {"ESM-1": ESM1, "ESM-1b": ESM1B, "CARP": CARP}
RARE = "BUZOX"  # two residues or an unknown one, and those that few proteins have
EDGE_CASES = {
    "ESM-1": [
        "M", "<mask>", "MK<mask>V<mask><mask>", f"A{RARE}A", "M-K.V", "-.", "<cls>MK<eos>", "M<unk>K", "M<pad>K",
        "M K\nV", " MK ", "M <mask> K", "M<null_0>K<null_1><sep>",
    ],
    "ESM-1b": [
        "M", "<mask>", "MK<mask>V<mask><mask>", f"A{RARE}A", "M-K.V", "-.", "<cls>MK<eos>", "M<unk>K", "M<pad>K",
        "M K\nV", " MK ", "M <mask> K", "M<null_1>K",
    ],
    "CARP": ["M", "#", "MK#V##", f"A{RARE}JA", "M-K--V", "-", "MK*", "@MK*", PROTEIN_ALPHABET],
}  # fmt: skip


@pytest.fixture(params=ALPHABETS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def sequences() -> list[str]:
    return held_out_sequences()


def original_batch(name: str, sequences: list[str], longest: int | None = None) -> torch.Tensor:
    if name == "CARP":
        return SimpleCollater(PROTEIN_ALPHABET, pad=True)([[sequence] for sequence in sequences])[0]
    converter = Alphabet.from_architecture(name).get_batch_converter(longest)
    return converter([("", sequence) for sequence in sequences])[2]


def padding_id(name: str) -> int:
    return PROTEIN_ALPHABET.index("-") if name == "CARP" else Alphabet.from_architecture(name).padding_idx


def test_vocabulary_and_special_tokens(name):
    tokenizer = build_tokenizer(ALPHABETS[name])
    if name == "CARP":
        assert tokenizer.get_vocab() == {token: i for i, token in enumerate(PROTEIN_ALPHABET)}
        assert (tokenizer.pad_token, tokenizer.mask_token) == ("-", "#")
        assert tokenizer.cls_token is tokenizer.eos_token is None
        return
    original = Alphabet.from_architecture(name)
    assert tokenizer.get_vocab() == original.to_dict()
    assert tokenizer.pad_token_id == original.padding_idx
    assert tokenizer.mask_token_id == original.mask_idx
    assert tokenizer.unk_token_id == original.unk_idx
    assert tokenizer.cls_token_id == original.cls_idx
    assert tokenizer.eos_token_id == (original.eos_idx if original.append_eos else None)


def test_configuration_has_the_ids_of_the_tokenizer(name):
    tokenizer = build_tokenizer(ALPHABETS[name])
    config = hf_perturb.CarpConfig() if name == "CARP" else hf_perturb.FairEsmConfig(model_version=name)
    for token in ("pad", "mask", "bos", "eos"):
        assert getattr(config, f"{token}_token_id", None) == getattr(tokenizer, f"{token}_token_id"), token
    assert config.vocab_size == len(tokenizer)


def test_real_sequences(name, sequences):
    tokenizer = build_tokenizer(ALPHABETS[name])
    assert len(sequences) >= 200
    for sequence in sequences:
        # without truncation, as the originals: some sequences are longer than ESM-1b can take
        assert tokenizer(sequence, verbose=False).input_ids == original_batch(name, [sequence])[0].tolist(), sequence


def test_padded_batch_of_real_sequences(name, sequences):
    batch = build_tokenizer(ALPHABETS[name])(sequences[:50], padding=True, return_tensors="pt", verbose=False)
    expected = original_batch(name, sequences[:50])
    assert list(batch) == ["input_ids", "attention_mask"]
    assert torch.equal(batch.input_ids, expected)
    assert torch.equal(batch.attention_mask.bool(), expected != padding_id(name))


def test_edge_cases(name):
    tokenizer = build_tokenizer(ALPHABETS[name])
    for sequence in EDGE_CASES[name]:
        assert tokenizer(sequence).input_ids == original_batch(name, [sequence])[0].tolist(), sequence
    batch = tokenizer(EDGE_CASES[name], padding=True, return_tensors="pt").input_ids
    assert torch.equal(batch, original_batch(name, EDGE_CASES[name]))


def test_lower_case_is_read_as_upper_case(name, sequences):
    tokenizer = build_tokenizer(ALPHABETS[name])
    for sequence in [*sequences[:20], RARE, "".join(c for c in PROTEIN_ALPHABET if c.isalpha())]:
        assert tokenizer(sequence.lower()).input_ids == tokenizer(sequence).input_ids
    mask = tokenizer.mask_token
    assert tokenizer(f"mk{mask}v").input_ids == original_batch(name, [f"MK{mask}V"])[0].tolist()


def test_letter_that_the_alphabet_lacks(name):
    """The originals fail on it; ours reads it as unknown, which for CARP is the residue X."""
    letter = "." if name == "CARP" else "J"
    with pytest.raises(KeyError):
        original_batch(name, [f"M{letter}K"])
    unknown = "MXK" if name == "CARP" else "M<unk>K"
    tokenizer = build_tokenizer(ALPHABETS[name])
    assert tokenizer(f"M{letter}K").input_ids == original_batch(name, [unknown])[0].tolist()
    assert tokenizer.tokenize(f"M{letter}K") == ["M", tokenizer.unk_token, "K"]
    assert tokenizer.decode(tokenizer(f"M{letter}K", add_special_tokens=False).input_ids) == unknown


def test_every_token_is_called_by_its_name(name):
    tokens = list(ALPHABETS[name].tokens)
    tokenizer = build_tokenizer(ALPHABETS[name])
    assert tokenizer.convert_ids_to_tokens(list(range(len(tokens)))) == tokens
    assert [tokenizer.decode([number]) for number in range(len(tokens))] == tokens


SPELT = ("<mask>", "<cls>", "<eos>", "<pad>", "<unk>", "<null_0>", "<null_1>", "<sep>")


def test_a_token_that_is_spelt_out_is_that_token_or_an_error(name):
    """As in fair-esm, which raises too; CARP spells its mask `#`, and `<mask>` is understood."""
    tokenizer = build_tokenizer(ALPHABETS[name])
    known = {"<mask>"} if name == "CARP" else {*Alphabet.from_architecture(name).all_toks}
    for token in (*SPELT, "<foo>", "<FOO>", "<MASK>", "<>", "<", ">", "<mask", "mask>", "<<mask>", "<mask >"):
        for sequence in (token, f"MK{token}V{token}T", f"mk {token} v"):
            if token in known:
                meant = "".join(sequence.split()).upper().replace(token.upper(), "#" if name == "CARP" else token)
                assert tokenizer(sequence).input_ids == original_batch(name, [meant])[0].tolist(), sequence
            else:
                with pytest.raises(Exception, match=r"Missing \[UNK\] token"):
                    tokenizer(sequence)
                with pytest.raises(Exception, match=r"Missing \[UNK\] token"):
                    tokenizer(["MK", sequence], padding=True)


def test_pairs(name):
    """An end token follows each where there is one, as in stock; the others are joined."""
    tokenizer = build_tokenizer(ALPHABETS[name])
    single = [original_batch(name, [sequence])[0].tolist() for sequence in ("MKT", "AC")]
    begin = {"ESM-1": 1, "ESM-1b": 1, "CARP": 0}[name]
    expected = single[0] + single[1][begin:]
    batch = tokenizer([("MKT", "AC"), ("M", "A")], padding=True)
    assert tokenizer("MKT", "AC").input_ids == batch.input_ids[0] == expected
    assert sum(batch.attention_mask[1]) == len(expected) - 3
    assert tokenizer.num_special_tokens_to_add(pair=True) == len(expected) - 5


def test_pairs_are_those_of_stock(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(ESM1B.tokens))
    stock, ours = EsmTokenizer.from_pretrained(tmp_path), build_tokenizer(ESM1B)
    for pair in (("MKT", "AC"), ("M<mask>T", "A")):
        assert dict(ours(*pair)) == dict(stock(*pair)), pair
    # ESM-1 has no end token, and stock no pairs without one
    with pytest.raises(ValueError, match="EOS token is not set"):
        EsmTokenizer.from_pretrained(tmp_path, eos_token=None)("MKT", "AC")


def test_truncation(name, sequences):
    tokenizer, long = build_tokenizer(ALPHABETS[name]), "".join(sequences)[:2000]
    if name != "ESM-1b":  # no limit
        assert tokenizer.model_max_length > 1e9
        return
    assert tokenizer.model_max_length == 1024 == hf_perturb.FairEsmConfig().max_tokens
    assert tokenizer(long, truncation=True).input_ids == original_batch(name, [long], 1022)[0].tolist()


def test_stock_auto_tokenizer_reads_it(sequences, tmp_path):
    """In a process that knows nothing of this package, and beside a configuration that it does not know either."""
    texts = {name: [*sequences[:20], sequences[0].lower(), *EDGE_CASES[name]] for name in ALPHABETS}
    for name, alphabet in ALPHABETS.items():
        build_tokenizer(alphabet).save_pretrained(tmp_path / name)
        config = hf_perturb.CarpConfig() if name == "CARP" else hf_perturb.FairEsmConfig(model_version=name)
        config.save_pretrained(tmp_path / name)
    code = """
import json, sys
from transformers import AutoTokenizer
results = {}
for name, texts in json.load(sys.stdin).items():
    tokenizer = AutoTokenizer.from_pretrained(f"{sys.argv[1]}/{name}")
    batch = tokenizer(texts, padding=True)
    more = [tokenizer("MK<mask>", "AC").input_ids, tokenizer("MK1").input_ids]
    try:
        tokenizer("MK<foo>")
    except Exception as error:
        more.append(str(error))
    results[name] = [dict(batch), tokenizer.model_max_length, tokenizer.special_tokens_map, more]
assert not any(name.partition(".")[0] == "hf_perturb" for name in sys.modules)
print(json.dumps(results))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, check=True)
    for name, (batch, max_length, special, more) in json.loads(done.stdout).items():
        tokenizer = build_tokenizer(ALPHABETS[name])
        upper = [*texts[name][:20], texts[name][0], *EDGE_CASES[name]]
        assert batch["input_ids"] == original_batch(name, upper).tolist()
        assert batch == dict(tokenizer(texts[name], padding=True))
        assert (max_length, special) == (tokenizer.model_max_length, tokenizer.special_tokens_map)
        assert more[:2] == [tokenizer("MK<mask>", "AC").input_ids, tokenizer("MK1").input_ids]
        assert "Missing [UNK] token" in more[2]


@pytest.mark.parametrize("network", NETWORKS)
def test_it_is_written_as_transformers_writes_it(network, tmp_path):
    (tmp_path / "ours").mkdir()
    save_tokenizer(NETWORKS[network], tmp_path / "ours")
    said = json.loads((tmp_path / "ours" / "tokenizer_config.json").read_text())
    keywords = {key: value for key, value in said.items() if key not in ("backend", "tokenizer_class")}
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "ours" / "tokenizer.json"), **keywords)
    theirs.save_pretrained(tmp_path / "theirs")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()


def test_carps_is_that_of_the_demo_base(tmp_path):
    save_tokenizer(CARP, tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / file).read_bytes() == Path(located("demo"), file).read_bytes()
