"""What is asked for: read strictly, and refused with one message before any work is done."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from inspect import signature
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

pytest.importorskip("pyarrow")

from support.embedding import draw, write_carp, write_fasta
from support.models import CONFIGS, small_model

import hf_perturb
from hf_perturb.cli import main
from hf_perturb.embedding import run
from hf_perturb.embedding.batches import batches
from hf_perturb.embedding.encoder import AlphabetEncoder
from hf_perturb.embedding.options import Choices, EmbedOptions, read_layers
from hf_perturb.errors import (
    EmbeddingsError,
    FolderExistsError,
    ModelInputError,
    PerturbationError,
    UnsupportedModuleError,
)

ESM1B = CONFIGS["esm1b"](max_position_embeddings=34)


@pytest.mark.parametrize(
    ("given", "layers"),
    [
        ("last", (6,)),
        ("all", (0, 1, 2, 3, 4, 5, 6)),
        ("0", (0,)),
        ("-1", (6,)),
        ("-7", (0,)),
        ("6,0,3", (0, 3, 6)),
        (" 1, 2 ", (1, 2)),
        ("-1,6", (6,)),
        (2, (2,)),
        (-2, (5,)),
        ([5, 1], (1, 5)),
        (range(2, 4), (2, 3)),
        (iter([3]), (3,)),
        (np.int64(4), (4,)),
        (np.array([1, -1]), (1, 6)),
        (["1", 2], (1, 2)),
    ],
)
def test_layers_are_counted_as_in_the_originals(given, layers):
    assert read_layers(given, 6) == layers


@pytest.mark.parametrize(
    "given",
    [
        "7",
        "-8",
        "first",
        "",
        "1,,2",
        "1.5",
        7,
        -8,
        1.0,
        True,
        None,
        [],
        [1.5],
        [None],
        np.float32(1.5),
        [[1]],
        ["last"],
    ],
)
def test_other_layers_are_refused(given):
    with pytest.raises(ModelInputError, match=r"layers: got .*; allowed: last, all, or"):
        read_layers(given, 6)


@pytest.mark.parametrize(
    ("network", "options", "said"),
    [
        ("carp", {"pool": "cls"}, r"pool: got 'cls'; a carp network has no token .*; allowed: mean, max"),
        ("esm1b", {"pool": "median"}, "pool: got 'median'; allowed: mean, max, cls"),
        ("esm1b", {"pool": ()}, "pool: got none; allowed: at least one"),
        ("esm1b", {"long": "cut"}, "long: got 'cut'; allowed: refuse, truncate, window"),
        ("esm1b", {"long": "window", "overlap": 30}, "overlap: got 30; allowed: 0 to 29 residues"),
        ("esm1b", {"long": "window", "overlap": -1}, "overlap: got -1; allowed: 0 to 29 residues"),
        ("esm1b", {"long": "truncate", "overlap": 1}, "overlap: got 1, but long is 'truncate'"),
        ("esm2", {"long": "window", "overlap": 1}, "overlap: got 1, but records of any length are taken whole"),
    ],
)
def test_choices_that_a_network_does_not_have(network, options, said):
    with pytest.raises(ModelInputError, match=said):
        EmbedOptions(**options).choices(AlphabetEncoder(ESM1B if network == "esm1b" else CONFIGS[network]()))


@pytest.mark.parametrize("function", [hf_perturb.embed, hf_perturb.embed_variants])
def test_options_are_shown_and_no_others_are_taken(function):
    shown = signature(function).parameters
    for option in fields(EmbedOptions):
        assert shown[option.name].default == option.default
        assert f"\n    {option.name}: " in function.__doc__
    assert all(parameter.kind is not parameter.VAR_KEYWORD for parameter in shown.values())
    with pytest.raises(TypeError, match="'layer'"):
        function("demo", "a.fasta", "OUT", *(["reinit"] if function is hf_perturb.embed_variants else []), layer=1)


@given(st.integers(1, 200), st.integers(1, 40), st.data())
def test_windows_see_every_residue(length, limit, data):
    choices = Choices((1,), limit=limit, long="window", overlap=data.draw(st.integers(0, limit - 1)))
    windows = choices.windows(length)
    assert {last - first for first, last in windows} == {min(length, limit)}
    assert (windows[0][0], windows[-1][1]) == (0, length)
    for (_, before), (first, _) in pairwise(windows):
        assert before - first >= choices.overlap
    assert len(set(windows)) == len(windows)


# the command


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Networks and FASTAs, and what is none of these."""
    folder = tmp_path_factory.mktemp("places")
    write_carp(folder / "carp")
    for name in ("esm1b", "esm2"):
        small_model(name, **({"max_position_embeddings": 34} if name == "esm1b" else {})).save_pretrained(folder / name)
    nan = small_model("carp")
    with torch.no_grad():
        nan.model.embedder.layers[3].conv.weight[0, 0, 0] = float("nan")
    nan.save_pretrained(folder / "nan")
    small_model("esm2", "ForSequenceClassification").save_pretrained(folder / "classifier")
    hf_perturb.create_variant(folder / "carp", folder / "variant", "reinit")
    (folder / "other").mkdir()
    (folder / "other" / "config.json").write_text('{"model_type": "bert"}')
    (folder / "empty").mkdir()
    (folder / "file").write_text("x")
    (folder / "nothing.fasta").write_text("")
    (folder / "headers.fasta").write_text(">a\n>b\n")
    write_fasta(folder / "a.fasta", draw((9, 30, 2)))
    write_fasta(folder / "long.fasta", draw((9, 31)))
    return folder


@pytest.fixture
def inside(places, tmp_path, monkeypatch):
    """A folder with links to these."""
    for path in places.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("./none a.fasta OUT", "./none: no such file or folder"),
        ("some/model a.fasta OUT", "'some/model': no such file or folder, and not to be had from the Hub"),
        ("empty a.fasta OUT", "no config.json in it"),
        ("other a.fasta OUT", "'other' has no weights; looked for"),
        ("a.fasta a.fasta OUT", "a.fasta is damaged, or no checkpoint"),
        ("carp_640M a.fasta OUT", "hf-perturb convert carp_640M OUT"),
        ("nan a.fasta OUT", "record 's1': mean_9 is NaN or infinite; so are weights"),
        ("carp none.fasta OUT", "none.fasta does not exist"),
        ("carp empty OUT", "empty is a folder; give a FASTA"),
        ("carp nothing.fasta OUT", "has no sequences in it"),
        ("carp carp/model.safetensors OUT", "is not FASTA: it is binary"),
        ("carp a.fasta file", "file is no folder"),
        ("carp a.fasta file/out", "cannot be made"),
        ("carp a.fasta /proc/out", "cannot be made"),
        ("carp a.fasta carp", "is no folder of embeddings, so nothing in it is replaced"),
        ("carp a.fasta OUT --layers 3", "layers: got '3'"),
        ("carp a.fasta OUT --layers -4", "layers: got '-4'"),
        ("carp a.fasta OUT --pool cls", "pool: got 'cls'"),
        ("carp a.fasta OUT --overlap 3", "overlap: got 3"),
        ("esm1b long.fasta OUT", "record 's1' has 31 residues; allowed: at most 30"),
        ("carp a.fasta OUT --device nonsense", "device: got 'nonsense'"),
        ("carp a.fasta OUT --device meta", "device: got 'meta'"),
        ("carp a.fasta OUT --device cuda:99", "device: got 'cuda:99'"),
        ("variant a.fasta OUT --method reinit", "'variant' is a variant already"),
        ("carp a.fasta OUT --method reinit --include nothing.*", "'nothing.*' matches no parameter"),
        ("carp a.fasta OUT --method reinit --exclude *", "leaves nothing to perturb"),
        ("carp a.fasta OUT --method reinit --scope layers:0-9", "scope: got 'layers:0-9'"),
        ("variant a.fasta OUT --method reinit --cascade top-down", "is a variant already"),
    ],
)
def test_what_fails_exits_1_with_one_line(inside, capsys, words, said):
    before = sorted(os.listdir(inside))
    assert main(["embed", *words.split()]) == 1
    streams = capsys.readouterr()
    assert said in streams.err
    assert streams.err.startswith("hf-perturb embed: ")
    assert streams.err.count("\n") == 1
    assert streams.out == ""
    # the numbers are known to be none only when the run has begun
    assert sorted(os.listdir(inside)) == before if "nan" not in words else os.listdir("OUT") == ["_manifest.json"]


@pytest.mark.parametrize(
    "words",
    [
        "carp a.fasta",
        "carp a.fasta OUT --pool median",
        "carp a.fasta OUT --dtype float8",
        "carp a.fasta OUT --tokens 0",
        "carp a.fasta OUT --tokens many",
        "carp a.fasta OUT --overlap x",
        "carp a.fasta OUT --long cut",
        "carp a.fasta OUT --seed 3",
        "carp a.fasta OUT --cascade top-down",
        "carp a.fasta OUT --method shuffle",
        "carp a.fasta OUT --method reinit --axis all",
        "carp a.fasta OUT --method reinit --recipe",
    ],
)
def test_wrong_usage_exits_2(inside, capsys, words):
    with pytest.raises(SystemExit) as caught:
        main(["embed", *words.split()])
    assert caught.value.code == 2
    assert "usage: hf-perturb" in capsys.readouterr().err
    assert not (inside / "OUT").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("carp a.fasta OUT", "OUT: 3 records, 41 residues, 41 of them computed now: mean_2\n"),
        ("carp a.fasta OUT --tokens 1", "41 of them computed now: mean_2\n"),
        ("esm2 a.fasta OUT --layers=-2,-1 --per-residue", ": residues_2, residues_3\n"),
        ("esm2 a.fasta OUT --layers all --pool cls --pool max", ": cls_0, max_0, ..., max_3 (8 columns)\n"),
        ("esm1b long.fasta OUT --long window", ": mean_3\n"),
        ("classifier a.fasta OUT --method resample", "OUT/resample-seed42: 3 records"),
        ("variant a.fasta OUT --device cpu --dtype bfloat16", ": mean_2\n"),
        ("carp a.fasta OUT --device auto", ": mean_2\n"),
        ("carp headers.fasta OUT", "OUT: 2 records, 0 residues, nothing left to compute: mean_2\n"),
        ("carp headers.fasta OUT --per-residue", "OUT: 2 records, 0 residues"),
        ("carp a.fasta OUT --method reinit --cascade top-down", "OUT/reinit-top1-seed42: 3 records"),
    ],
)
def test_what_works_is_summed_up(inside, capsys, words, said):
    for time in range(2):
        assert main(["embed", *words.split()]) == 0
        out, err = capsys.readouterr()
        assert said.replace("41 of them computed now", "nothing left to compute") in out if time else said in out
        assert err == ("" if "headers" not in words else err)
    assert ("2 records had no residues" in err) == ("headers" in words)


def test_json(inside, capsys):
    assert main(["embed", "carp", "a.fasta", "OUT", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["path"], said["columns"], said["records"], said["computed"]) == ("OUT", ["mean_2"], 3, 41)
    assert main(["embed", "carp", "a.fasta", "MANY", "--method", "reinit", "--json"]) == 0
    assert [row["path"] for row in json.loads(capsys.readouterr().out)] == ["MANY/base", "MANY/reinit-seed42"]


def test_records_without_residues_have_no_vectors(inside):
    (inside / "some.fasta").write_text(">a\nmkv-l*\n>b\n\n>c x\nM\n>a\nMKVL\n>\n??\n")
    done = hf_perturb.embed("carp", "some.fasta", "OUT", pool=["mean", "max"])
    ids, vectors = hf_perturb.read_embeddings("OUT", "mean_2")
    assert ids == ["a", "b", "c", "a", ""]
    assert np.isnan(vectors).all(1).tolist() == [False, True, False, False, False]
    assert np.array_equal(vectors[0], vectors[3])
    assert {kind: found["records"] for kind, found in done.findings.items()} == {
        "lower_case": 1,
        "stops_at_end": 1,
        "gaps": 1,
        "non_letters": 1,
        "empty": 1,
        "without_id": 1,
    }
    assert len(done.notes) == 6
    hf_perturb.embed("carp", "some.fasta", "EACH", per_residue=True, pool=())
    assert [len(row) for row in hf_perturb.read_embeddings("EACH")[1]] == [4, 0, 1, 4, 2]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"perturbation": "reinit"}, PerturbationError, "is not perturbed here"),
        ({"device": "meta"}, ModelInputError, "device: got 'meta'; this model is on cpu"),
        ({"dtype": "float16"}, ModelInputError, "dtype: got float16; this model is in torch.float32"),
        ({"tokens": 0}, ModelInputError, "tokens: got 0"),
    ],
)
def test_a_model_at_hand_is_not_changed_for_an_option(inside, options, error, said):
    with pytest.raises(error, match=said):
        hf_perturb.embed(hf_perturb.CarpModel.from_pretrained("carp"), "a.fasta", "OUT", **options)
    hf_perturb.embed(hf_perturb.CarpModel.from_pretrained("carp"), "a.fasta", "OUT", device="cpu", dtype=torch.float32)


def test_other_objects_are_refused(inside):
    with torch.device("meta"):
        meta = hf_perturb.CarpModel(CONFIGS["carp"]())
    for model, said in ((torch.nn.Linear(1, 1), "got a Linear"), (meta, "not in memory")):
        with pytest.raises(UnsupportedModuleError, match=said):
            hf_perturb.embed(model, "a.fasta", "OUT")
    with pytest.raises(PerturbationError, match=r"two variants would be called reinit-seed42"):
        hf_perturb.embed_variants("carp", "a.fasta", "OUT", ["reinit", "reinit"])


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), "too much"])
def test_too_little_memory_is_told(inside, monkeypatch, error):
    def fail(*arguments, **options):
        if error == "too much":
            torch.empty(2**60)
        raise error

    monkeypatch.setattr(hf_perturb.CarpModel, "visit_representations", fail)
    with pytest.raises(EmbeddingsError, match="too little memory on cpu, for a batch of 3 rows of up to 30 tok"):
        hf_perturb.embed("carp", "a.fasta", "OUT")
    monkeypatch.undo()
    monkeypatch.chdir(inside)
    monkeypatch.setattr(hf_perturb.CarpModel, "from_pretrained", fail)
    with pytest.raises(EmbeddingsError, match=r"too little memory on cpu, for this network in torch.float32; try"):
        hf_perturb.embed("carp", "a.fasta", "OUT")


def test_progress_counts_residues(inside):
    write_fasta(inside / "b.fasta", [*draw((9, 30, 2)), *draw((30,))])
    seen = []
    hf_perturb.embed("carp", "b.fasta", "OUT", tokens=30, progress=lambda *counts: seen.append(counts))
    assert (seen[0], seen[-1]) == ((0, 71), (71, 71))
    assert seen == sorted(seen)
    assert len(seen) > 2


def test_a_budget_is_chosen_for_the_device(inside, monkeypatch):
    seen = []
    monkeypatch.setattr(
        run, "batches", lambda units, tokens, *more: seen.append(tokens) or batches(units, tokens, *more)
    )
    for device in ("cpu", "cpu:0", "auto"):
        hf_perturb.embed("carp", "a.fasta", f"OUT {device}", device=device)
    assert seen == [2048] * 3


def test_variants_do_not_go_into_a_folder_of_embeddings(inside):
    hf_perturb.embed("carp", "a.fasta", "OUT")
    with pytest.raises(
        FolderExistsError, match="OUT holds embeddings, and is no folder of such folders; choose another"
    ):
        hf_perturb.embed_variants("carp", "a.fasta", "OUT", ["reinit"])
    assert list(hf_perturb.embed_variants("carp", "a.fasta", "NEW", "reinit")) == ["base", "reinit-seed42"]
