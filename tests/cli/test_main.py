"""The command: exit codes, streams, and no traceback for what a user can cause."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from transformers import AutoModel

import hf_perturb
from hf_perturb.cli import main


def test_create_says_what_it_wrote(tmp_path, capsys):
    assert main(["create", "demo", str(tmp_path / "out"), "--method", "resample", "--seed", "5", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert said["perturbation"] == model.config.perturbation.to_dict()
    assert said["perturbation"]["base"]["name"] == "demo"
    assert model.config.perturbation == hf_perturb.Perturbation("resample", seed=5)


def test_create_with_every_option(tmp_path, capsys):
    words = ["--axis", "rows", "--include", "*.layers.1.*", "--include", "*.layers.2.*", "--exclude", "*.bias"]
    assert main(["create", "demo", str(tmp_path / "out"), "--method", "resample", *words]) == 0
    record = AutoModel.from_pretrained(tmp_path / "out").config.perturbation
    assert (record.axis, record.include, record.exclude) == ("rows", ("*.layers.1.*", "*.layers.2.*"), ("*.bias",))
    assert main(["create", "demo", str(tmp_path / "out"), "--method", "reinit", "--rules", "published", "--force"]) == 0
    assert AutoModel.from_pretrained(tmp_path / "out").config.perturbation.rules == "published"
    assert main(["create", "demo", str(tmp_path / "recipe"), "--method", "reinit", "--recipe"]) == 0
    assert not list((tmp_path / "recipe").glob("*.safetensors"))
    assert AutoModel.from_pretrained(tmp_path / "recipe").config.perturbation.method == "reinit"
    assert "reinit (seed 42" in capsys.readouterr().out


def test_several_seeds_in_one_word(tmp_path, capsys):
    out = [str(tmp_path / name) for name in ("two", "one", "embedded")]
    words = ["--method", "reinit", "--include", "*.layers.1.*", "--recipe"]
    assert main(["create", "demo", out[0], *words, "--seed", "0-1", "--seed", "1", "--json"]) == 0
    assert [row["perturbation"]["seed"] for row in json.loads(capsys.readouterr().out)] == [0, 1]
    assert sorted(os.listdir(out[0])) == ["reinit-seed0", "reinit-seed1"]
    assert main(["create", "demo", out[1], *words, "--seed", "7,7"]) == 0
    assert "config.json" in os.listdir(out[1])
    (tmp_path / "one.fasta").write_text(">a\nMKT\n")
    assert main(["embed", "demo", str(tmp_path / "one.fasta"), out[2], *words[:-1], "--seed", "0,7"]) == 0
    assert sorted(os.listdir(out[2])) == ["base", "reinit-seed0", "reinit-seed7"]


def test_what_a_glob_names_and_the_rules_keep_is_told_once(tmp_path, capsys):
    words = ["--method", "reinit", "--include", "*", "--include", "*.layers.*"]
    assert main(["create", "demo", str(tmp_path / "out"), *words, "--seed", "1", "--seed", "2", "--json"]) == 0
    streams = capsys.readouterr()
    note = "hf-perturb create: note: include ['*', '*.layers.*'] also names 7 parameters that the rules keep, and that"
    assert streams.err.startswith(note)
    assert streams.err.count("\n") == 1
    assert len(json.loads(streams.out)) == 2
    card = (tmp_path / "out" / "reinit-seed1" / "README.md").read_text(encoding="utf-8")
    assert "- `include` also names 7 parameters that the rules keep, and that are those of the base: `model.emb" in card
    assert main(["create", "demo", str(tmp_path / "quiet"), "--method", "reinit", "--include", "*.layers.*"]) == 0
    assert capsys.readouterr().err == ""
    assert "also names" not in (tmp_path / "quiet" / "README.md").read_text(encoding="utf-8")
    (tmp_path / "one.fasta").write_text(">a\nMKT\n")
    places = [str(tmp_path / name) for name in ("one.fasta", "embedded")]
    assert main(["embed", "demo", *places, *words, "--seed", "1", "--seed", "2"]) == 0
    assert capsys.readouterr().err.count("hf-perturb embed: note: include ['*', '*.layers.*'] also names 7 ") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["create", "no-such-base", "OUT", "--method", "reinit"], "no such file or folder"),
        (["create", "demo", "EXISTS", "--method", "reinit"], "exists already"),
        (["create", "demo", "OUT", "--method", "reinit", "--include", "nothing.*"], "matches no parameter"),
        (
            ["create", "demo", "OUT", "--method", "reinit", "--include", "model.decoder.*"],
            "also: ['head'] would perturb",
        ),
        (["create", "demo", "OUT", "--method", "gaussian", "--also", "head", "--scope", "top:1"], "leave none of its"),
        (["create", "demo", "OUT", "--method", "reinit", "--exclude", "*"], "nothing to perturb"),
        (["list", "no-such-base"], "no such file or folder"),
        (["create", "carp_640M", "OUT", "--method", "reinit"], "hf-perturb convert carp_640M OUT"),
    ],
)
def test_what_fails_exits_1_and_writes_nothing(tmp_path, capsys, words, message):
    (tmp_path / "exists").mkdir()
    places = {"OUT": str(tmp_path / "out"), "EXISTS": str(tmp_path / "exists")}
    assert main([places.get(word, word) for word in words]) == 1
    streams = capsys.readouterr()
    assert message in streams.err
    assert streams.out == ""
    assert os.listdir(tmp_path) == ["exists"]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["destroy"],
        ["create", "demo"],
        ["create", "demo", "OUT"],
        ["create", "", "OUT", "--method", "reinit"],
        ["create", "demo", "", "--method", "reinit"],
        ["create", "demo", "OUT", "--method", "reinit", "--includ", "*"],
        ["create", "demo", "OUT", "--method", "shuffle"],
        ["create", "demo", "OUT", "--method", "reinit", "--seed", "-1"],
        ["create", "demo", "OUT", "--method", "reinit", "--seed", "one"],
        ["create", "demo", "OUT", "--method", "reinit", "--seed", "4-0"],
        ["embed", "demo", "no.fasta", "OUT", "--method", "reinit", "--seed", "1-"],
        ["create", "demo", "OUT", "--method", "reinit", "--method", "reinit"],
        ["create", "demo", "OUT", "--seed", "1"],
        ["create", "demo", "OUT", "--method", "reinit", "--jobs", "0"],
        ["create", "demo", "OUT", "--method", "reinit", "--scope", "upper:2"],
        ["create", "demo", "OUT", "--method", "reinit", "--axis", "all"],
        ["create", "demo", "OUT", "--method", "resample", "--rules", "published", "--axis", "rows"],
        ["create", "demo", "OUT", "--method", "gaussian", "--axis", "outputs"],
        ["create", "demo", "OUT", "--method", "gaussian", "--rules", "published"],
        ["create", "demo", "OUT", "--method", "reinit", "--also", "heads"],
        ["create", "demo", "OUT", "--method", "reinit", "--rules", "published", "--also", "head"],
        ["create", "demo", "OUT", "--also", "head"],
        ["embed", "demo", "proteins.fasta", "OUT", "--also", "head"],
    ],
)
def test_wrong_usage_exits_2(tmp_path, capsys, words):
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "out") if word == "OUT" else word for word in words])
    assert caught.value.code == 2
    assert "usage: hf-perturb" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_list_names_the_published_checkpoints(capsys):
    assert main(["list", "--json"]) == 0
    rows = {row["base"]: row for row in json.loads(capsys.readouterr().out)}
    assert len(rows) == 22
    assert rows["esm2_t6_8M_UR50D"]["stock copy"] == "facebook/esm2_t6_8M_UR50D"
    assert rows["carp_640M"]["citation"].endswith("doi:10.1101/2022.05.19.492714")
    assert [name for name, row in rows.items() if row.get("documented")] == [
        "esm1_t6_43M_UR50S",
        "esm1_t12_85M_UR50S",
        "esm1_t34_670M_UR50S",
        "esm1b_t33_650M_UR50S",
        "carp_600k",
        "carp_38M",
        "carp_76M",
        "carp_640M",
    ]
    assert main(["list"]) == 0
    assert "esm1b_t33_650M_UR50S" in capsys.readouterr().out


def test_list_shows_the_tensors_of_a_base(capsys):
    assert main(["list", "demo", "--json"]) == 0
    rows = {row["tensor"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["model.decoder.conv.weight"]["reinit"] == "keep"
    assert rows["model.embedder.layers.3.conv.weight"]["resample"] == "shuffle(all)"
    assert rows["model.embedder.layers.3.sequence1.0.weight"]["reinit"] == "constant(value=1)"
    assert {row["gaussian"] for row in rows.values()} == {"keep", "gaussian"}
    for row in rows.values():
        kept = {row[method] == "keep" for method in ("reinit", "resample", "gaussian")}
        assert kept == {bool(row["also"])}, "all that this network keeps has a name"
    assert rows["model.decoder.conv.weight"]["also"] == "head"
    assert rows["model.embedder.up_embedder.conv.bias"]["also"] == "embeddings"
    assert main(["list", "demo"]) == 0
    head, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["tensor", "shape", "reinit", "resample", "gaussian", "also"]
    assert {row["perturbation"] for row in rows.values()} == {None}


def test_list_shows_what_was_done_to_a_variant(tmp_path, capsys):
    asked = {"method": "resample", "axis": "rows", "scope": ["top:1"], "also": []}
    record = hf_perturb.create_variant("demo", tmp_path / "out", asked)
    assert main(["list", str(tmp_path / "out"), "--json"]) == 0
    said = capsys.readouterr()
    rows = {row["tensor"]: row for row in json.loads(said.out)}
    assert {json.dumps(row["perturbation"]) for row in rows.values()} == {json.dumps(record.to_dict())}
    assert rows["model.embedder.layers.15.conv.weight"]["done"] == "shuffle(rows)"
    assert rows["model.embedder.layers.14.conv.weight"]["done"] == "keep"
    assert rows["model.embedder.layers.14.conv.weight"]["resample"] == "shuffle(all)", "as of a base"
    assert "`done` tells what that did" in said.err
    assert main(["list", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[-2:] == ["also", "done"]


@pytest.mark.parametrize(
    ("words", "record"),
    [
        (["--method", "gaussian"], "gaussian (seed 42, rules documented)"),
        (["--method", "resample", "--axis", "outputs"], "resample (seed 42, rules documented, axis outputs)"),
        (
            ["--method", "reinit", "--also", "head", "--also", "embeddings"],
            "reinit (seed 42, rules documented, also ['embeddings', 'head'])",
        ),
    ],
)
def test_more_controls_are_created_verified_and_rebuilt(words, record, tmp_path, capsys):
    out, recipe, whole = (str(tmp_path / name) for name in ("out", "recipe", "whole"))
    assert main(["create", "demo", out, *words]) == 0
    assert main(["create", "demo", recipe, *words, "--recipe"]) == 0
    assert main(["create", recipe, whole]) == 0
    made = capsys.readouterr().out.splitlines()
    assert made[::2] == [f"{path}: {record}" for path in (out, recipe, whole)]
    assert len({*made[1::2]}) == 1, "one digest"
    assert main(["verify", out, "--base", "demo"]) == main(["verify", recipe]) == 0
    assert main(["create", out, str(tmp_path / "again"), *words]) == 1, "perturbations do not stack"
    assert "start from its base" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["-h"], ["create", "-h"], ["list", "-h"], ["--version"]])
def test_help_is_there(capsys, words):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 0
    assert "hf-perturb" in capsys.readouterr().out


def test_python_m(tmp_path):
    words = ["create", "demo", str(tmp_path / "out"), "--method", "reinit"]
    done = subprocess.run([sys.executable, "-m", "hf_perturb", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "blake3:" in done.stdout
