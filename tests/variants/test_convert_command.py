"""`hf-perturb convert`: exit codes, streams, one line for what a user can cause, and no traceback."""

from __future__ import annotations

import json
import os

import pytest
import torch
from support.refusals import edited, replaced, tree
from transformers import AutoModelForMaskedLM

from hf_perturb.cli import main
from hf_perturb.perturbation import digest_of

NORM = "last_norm.bias"


def carp(**edits):
    return lambda folder: edited(folder, "carp", replaced(**edits))


def sized(**sizes):
    return lambda folder: edited(folder, "carp", lambda data: data.update(sizes))


def text(folder):
    (folder / "x.pt").write_text("MKTAYIAKQR\n")
    return folder / "x.pt"


def base(folder, **changes):
    path = edited(folder, "carp")
    assert main(["convert", str(path), str(folder / "base")]) == 0
    path.unlink()
    stored = json.loads((folder / "base" / "config.json").read_text())
    (folder / "base" / "config.json").write_text(json.dumps({**stored, **changes}))
    return folder / "base"


@pytest.mark.parametrize(
    ("make", "words", "message"),
    [
        (text, [], "x.pt is damaged, or no checkpoint that torch saved"),
        (lambda folder: folder / "x.pt", [], "x.pt"),
        (lambda folder: "carp_600k.tar", [], "carp_600k.tar"),
        (sized(model="mif"), [], "is MIF or MIF-ST"),
        (carp(**{NORM: None}), [], "missing tensors: model.last_norm.bias"),
        (carp(**{NORM: lambda tensor: tensor / 0}), [], "--allow-nonfinite"),
        (carp(**{NORM: lambda tensor: tensor * 1e9}), ["--dtype", "float16"], "--allow-nonfinite"),
        (carp(**{NORM: torch.Tensor.to_sparse}), [], "last_norm.bias"),
        (sized(n_layers="9"), [], "num_hidden_layers"),
        (sized(d_model=-32), [], "hidden_size: got -32"),
        (lambda folder: base(folder, digest="blake3:" + 64 * "0"), [], "the record says blake3:0"),
        (lambda folder: base(folder, digest=5), [], "digest"),
        (lambda folder: base(folder, model_type="bert"), [], "model_type is 'bert'"),
        (lambda folder: base(folder) / "model.safetensors", [], "give the folder"),
    ],
)
def test_what_fails_exits_1_with_one_line(tmp_path, capsys, make, words, message):
    source = make(tmp_path)
    capsys.readouterr()
    before = tree(tmp_path)
    assert main(["convert", str(source), str(tmp_path / "out"), *words]) == 1
    streams = capsys.readouterr()
    assert streams.err.startswith("hf-perturb convert: ")
    assert message in streams.err
    assert streams.err.count("\n") == 1
    assert streams.out == ""
    assert tree(tmp_path) == before


@pytest.mark.parametrize("words", [[], ["--force"]])
def test_a_folder_that_may_not_be_replaced(tmp_path, capsys, words):
    path = edited(tmp_path, "carp")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    assert main(["convert", str(path), str(tmp_path / "out"), *words]) == 1
    assert ("not ours to replace" if words else "exists already") in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == ["thesis.tex"]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["SOURCE"],
        ["", "OUT"],
        ["SOURCE", ""],
        ["SOURCE", "OUT", "--dtype", "int8"],
        ["SOURCE", "OUT", "--to", "onnx"],
        ["SOURCE", "OUT", "--to", "fair-esm", "--dtype", "float16"],
        ["SOURCE", "OUT", "--to", "sequence-models", "--force"],
        ["SOURCE", "OUT", "--allow-non"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2(tmp_path, capsys, words):
    path = edited(tmp_path, "carp")
    places = {"SOURCE": str(path), "OUT": str(tmp_path / "out")}
    with pytest.raises(SystemExit) as caught:
        main(["convert", *(places.get(word, word) for word in words)])
    assert caught.value.code == 2
    assert "usage: hf-perturb" in capsys.readouterr().err
    assert os.listdir(tmp_path) == [path.name]


def test_json(tmp_path, capsys):
    path = edited(tmp_path, "esm1b", contacts="absent")
    assert main(["convert", str(path), str(tmp_path / "out"), "--json"]) == 0
    streams = capsys.readouterr()
    said = json.loads(streams.out)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert said.pop("notes") == [f"no {path.stem}-contact-regression.pt beside it: converted without the head"
                                 " that predicts contacts"]  # fmt: skip
    assert said == {
        "path": str(tmp_path / "out"),
        "origin": "fair-esm",
        "architecture": "FairEsmForMaskedLM",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "digest": digest_of(model.state_dict()),
    }
    assert "convert: note: no " in streams.err


def test_it_says_what_it_wrote(tmp_path, capsys):
    path = edited(tmp_path, "esm1b", replaced(**{"encoder.lm_head.bias": lambda tensor: tensor / 0}))
    words = ["--dtype", "bfloat16", "--allow-nonfinite"]
    assert main(["convert", str(path), str(tmp_path / "out"), *words]) == 0
    said = capsys.readouterr().out
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert said == f"{tmp_path / 'out'}: FairEsmForMaskedLM of {model.num_parameters():,} parameters\n" + (
        f"{digest_of(model.state_dict())}\n"
    )
    assert model.dtype == torch.bfloat16
    assert main(["convert", str(path), str(tmp_path / "out"), *words, "--force"]) == 0
