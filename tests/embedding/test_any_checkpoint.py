"""A folder that Transformers loads embeds as the model does that it holds, and so do its variants."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("pyarrow")

from support.any_encoders import ENCODERS, LETTERS, encoder, wordpiece, write_encoder
from support.embedding import draw, read_all, write_fasta
from transformers import EsmcTokenizer, T5GemmaConfig, T5GemmaModel

import hf_perturb
from hf_perturb.cli import main
from hf_perturb.errors import EmbeddingsError

TOY_CONFIGURATION = """
from transformers import PreTrainedConfig


class ToyConfig(PreTrainedConfig):
    model_type = "toy_encoder"

    def __init__(self, width=8, depth=2, vocab_size=30, **kwargs):
        self.width, self.depth, self.vocab_size = width, depth, vocab_size
        super().__init__(**kwargs)
"""
TOY_MODEL = """
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .configuration_toy import ToyConfig


class ToyModel(PreTrainedModel):
    config_class = ToyConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList([nn.Linear(config.width, config.width) for _ in range(config.depth)])
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, output_hidden_states=False, return_dict=True):
        states = [self.embed(input_ids)]
        for layer in self.layers:
            states.append(states[-1] + layer(states[-1]).tanh())
        return BaseModelOutput(last_hidden_state=states[-1], hidden_states=tuple(states))
"""
SEQUENCES = draw((9, 30, 2, 17))


@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "esm"])  # which is one of our families
def test_a_folder_embeds_as_its_model_does(tmp_path, name):
    fasta, folder = write_fasta(tmp_path / "a.fasta", SEQUENCES), write_encoder(tmp_path / "base", name)
    options = {"layers": "all", "per_residue": name != "gpt2", "pool": ["mean", "max"]}
    model, tokenizer = encoder(name)
    hf_perturb.embed(model, fasta, tmp_path / "model", tokenizer=tokenizer, **options)
    done = hf_perturb.embed(folder, fasta, tmp_path / "folder", **options)
    ours, theirs = read_all(tmp_path / "folder"), read_all(tmp_path / "model")
    assert ours.keys() == theirs.keys() == {*done.columns}
    for column in ours:
        for one, other in zip(ours[column][1], theirs[column][1], strict=True):
            assert np.array_equal(one, other)
    again = hf_perturb.embed(folder, fasta, tmp_path / "folder", **options)
    assert (again.computed, again.fingerprint) == (0, done.fingerprint)


def test_the_decoder_of_a_t5_is_not_loaded(tmp_path, monkeypatch):
    from transformers import T5EncoderModel

    loaded, call = [], T5EncoderModel.from_pretrained.__func__
    monkeypatch.setattr(
        T5EncoderModel, "from_pretrained", classmethod(lambda cls, *a, **k: loaded.append(cls) or call(cls, *a, **k))
    )
    fasta, folder = write_fasta(tmp_path / "a.fasta", SEQUENCES), write_encoder(tmp_path / "base", "t5")
    hf_perturb.embed(folder, fasta, tmp_path / "out", prefix="<AA2fold>")
    assert loaded == [T5EncoderModel]


def test_an_encoder_class_that_takes_no_decoder_is_given_none(tmp_path):
    tokenizer, fasta = EsmcTokenizer(), write_fasta(tmp_path / "a.fasta", SEQUENCES)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    half = {**sizes, "intermediate_size": 24, "head_dim": 8, "vocab_size": 64}
    model = T5GemmaModel(T5GemmaConfig(encoder=half, decoder=half, vocab_size=64))
    for each in (model, tokenizer):
        each.save_pretrained(tmp_path / "base")
    hf_perturb.embed(model, fasta, tmp_path / "one", tokenizer=tokenizer)
    hf_perturb.embed(tmp_path / "base", fasta, tmp_path / "other")
    assert np.array_equal(*(hf_perturb.read_embeddings(tmp_path / out)[1] for out in ("one", "other")))


@pytest.mark.parametrize("name", ["bert-lm", "t5", "esm"])
def test_variants_in_memory_are_those_on_disk(tmp_path, name):
    fasta, base = write_fasta(tmp_path / "a.fasta", SEQUENCES), write_encoder(tmp_path / "base", name)
    scope = {"scope": ["encoder.top:1" if name == "t5" else "top:1"]}
    asked = [{"method": method, "rules": "transformers", **scope} for method in ("reinit", "resample", "gaussian")]
    found = hf_perturb.embed_variants(base, fasta, tmp_path / "out", asked, layers="all")
    assert len(found) == 4
    for perturbation, each in zip(asked, [*found][1:], strict=True):
        hf_perturb.create_variant(base, tmp_path / each, perturbation)
        done = hf_perturb.embed(tmp_path / each, fasta, tmp_path / f"{each} alone", layers="all")
        for column in done.columns:
            ours, theirs = (hf_perturb.read_embeddings(path, column)[1] for path in (found[each].path, done.path))
            assert np.array_equal(ours, theirs)
        assert not np.array_equal(ours, hf_perturb.read_embeddings(found["base"].path, column)[1])
    described = json.loads((tmp_path / f"{each} alone" / "_manifest.json").read_text())["described"]
    assert described["model"]["record"]["rules"] == "transformers"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_recipe_is_its_variant(tmp_path, monkeypatch, dtype):
    monkeypatch.chdir(tmp_path)
    fasta = write_fasta(tmp_path / "a.fasta", SEQUENCES)
    write_encoder(tmp_path / "base", "t5")
    hf_perturb.create_variants("base", {"recipe": "reinit"}, recipe=True)
    hf_perturb.create_variant("base", "variant", "reinit")
    one, other = (hf_perturb.embed(name, fasta, f"of {name}", dtype=dtype) for name in ("recipe", "variant"))
    assert one.fingerprint == other.fingerprint
    assert np.array_equal(*(hf_perturb.read_embeddings(each.path)[1] for each in (one, other)))


def test_a_variant_in_memory_says_what_it_is(tmp_path):
    model, tokenizer = encoder("bert-lm")
    fasta = write_fasta(tmp_path / "a.fasta", SEQUENCES)
    hf_perturb.embed(hf_perturb.perturb(model, "reinit"), fasta, tmp_path / "out", tokenizer=tokenizer)
    described = json.loads((tmp_path / "out" / "_manifest.json").read_text())["described"]
    assert described["model"]["record"]["method"] == "reinit"
    model.get_input_embeddings().weight.data.add_(1)
    hf_perturb.embed(model, fasta, tmp_path / "trained", tokenizer=tokenizer)
    described = json.loads((tmp_path / "trained" / "_manifest.json").read_text())["described"]
    assert described["model"]["record"]["changed"] is True


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_other_types_are_near(tmp_path, dtype):
    fasta, folder = write_fasta(tmp_path / "a.fasta", SEQUENCES), write_encoder(tmp_path / "base", "esmc")
    hf_perturb.embed(folder, fasta, tmp_path / "one")
    hf_perturb.embed(folder, fasta, tmp_path / "other", dtype=dtype)
    ours, theirs = (hf_perturb.read_embeddings(tmp_path / out)[1] for out in ("one", "other"))
    assert 0 < np.abs(ours - theirs).max() < (1e-4 if dtype == "float64" else 0.05 * np.abs(ours).max())


def test_another_answer_is_another_run(tmp_path):
    folder, fasta = write_encoder(tmp_path / "base", "t5"), write_fasta(tmp_path / "a.fasta", SEQUENCES)
    hf_perturb.embed(folder, fasta, tmp_path / "out")
    with pytest.raises(EmbeddingsError, match='holds other embeddings: prefix: null in the folder, "<AA2fold>" asked'):
        hf_perturb.embed(folder, fasta, tmp_path / "out", prefix="<AA2fold>")
    done = hf_perturb.embed(folder, fasta, tmp_path / "out", prefix="<AA2fold>", force=True)
    assert done.computed == 58


def test_a_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    from transformers import BertModel

    folder = write_encoder(tmp_path / "base", "bert")
    fasta = write_fasta(tmp_path / "a.fasta", draw([60] * 600))
    call, left = BertModel.forward, [7]

    def forward(self, *arguments, **options):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return call(self, *arguments, **options)

    monkeypatch.setattr(BertModel, "forward", forward)
    with pytest.raises(KeyboardInterrupt):
        hf_perturb.embed(folder, fasta, tmp_path / "out", tokens=16_384)
    monkeypatch.undo()
    done = hf_perturb.embed(folder, fasta, tmp_path / "out", tokens=16_384)
    assert 0 < done.computed < done.residues
    hf_perturb.embed(folder, fasta, tmp_path / "whole", tokens=16_384)
    vectors = [hf_perturb.read_embeddings(tmp_path / out)[1] for out in ("out", "whole")]
    np.testing.assert_allclose(*vectors, rtol=0, atol=1e-6)


def test_the_command_asks_by_the_name_of_the_option(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_encoder(tmp_path / "base", "bert")
    write_fasta(tmp_path / "a.fasta", ["MKTJ", "UKZ"])
    assert main(["embed", "base", "a.fasta", "out"]) == 1
    assert "record 's0' has J, which BertTokenizer does not know; say what to read them" in capsys.readouterr().err
    assert main(["embed", "base", "a.fasta", "out", "--replace", "J=L,UZOB=X", "--separate", "--layers", "all"]) == 0
    said = capsys.readouterr()
    assert "out: 2 records, 7 residues, 7 of them computed now: mean_0" in said.out
    assert "note: 2 records had residues that were replaced, as asked for (first: 's0')" in said.err
    inputs = json.loads((tmp_path / "out" / "_manifest.json").read_text())["inputs"]
    assert inputs["replace"] == {"J": "L", "U": "X", "Z": "X", "O": "X", "B": "X"}
    assert main(["embed", "base", "a.fasta", "no", "--no-separate"]) == 1
    assert (
        "separate: got False; this BertTokenizer makes no token a residue: [UNK] of 'MKWV'" in capsys.readouterr().err
    )


def test_a_folder_without_a_tokenizer_says_so(tmp_path):
    model, tokenizer = encoder("gpt2")
    fasta = write_fasta(tmp_path / "a.fasta", SEQUENCES)
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(
        hf_perturb.ModelInputError, match="tokenizer: this GPT2Tokenizer makes nothing of 'M'; if there is none"
    ):
        hf_perturb.embed(tmp_path / "base", fasta, tmp_path / "out")
    tokenizer.save_pretrained(tmp_path / "elsewhere")
    hf_perturb.embed(tmp_path / "base", fasta, tmp_path / "out", tokenizer=str(tmp_path / "elsewhere"))


def test_code_that_comes_along_is_run_where_that_is_said(tmp_path):
    """Its sizes have names of their own."""
    folder, fasta = tmp_path / "toy", write_fasta(tmp_path / "a.fasta", SEQUENCES)
    wordpiece().save_pretrained(folder)
    (folder / "configuration_toy.py").write_text(TOY_CONFIGURATION)
    (folder / "modeling_toy.py").write_text(TOY_MODEL)
    code = {"AutoConfig": "configuration_toy.ToyConfig", "AutoModel": "modeling_toy.ToyModel"}
    said = {"model_type": "toy_encoder", "architectures": ["ToyModel"], "auto_map": code, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(said))
    torch.manual_seed(0)
    shapes = {
        "embed.weight": (30, 8),
        **{f"layers.{i}.{x}": (8, 8)[: 1 + (x == "weight")] for i in (0, 1) for x in ("weight", "bias")},
    }
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(hf_perturb.CheckpointError, match="trust-remote-code"):
        hf_perturb.embed(folder, fasta, tmp_path / "out")
    hf_perturb.embed(folder, fasta, tmp_path / "out", trust_remote_code=True, layers=0)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]
    for sequence, got in zip(SEQUENCES, hf_perturb.read_embeddings(tmp_path / "out")[1], strict=True):
        rows = tensors["embed.weight"][[tokens.index(letter) for letter in sequence]]
        np.testing.assert_allclose(got, rows.mean(0), atol=1e-6)
