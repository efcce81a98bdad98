"""What is embedded for a study, what of it may be there already, and which networks a study is of."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pyarrow import parquet
from support.any_encoders import encoder
from support.studies import predictions, proteins, share, write_base, write_csv, write_regression

import hf_perturb
from hf_perturb.embedding.manifest import read_manifest
from hf_perturb.errors import FolderExistsError, ModelInputError, PerturbationError, StudyError
from hf_perturb.studies.dataset import read_dataset
from hf_perturb.studies.features import Unique, baselines
from hf_perturb.studies.rows import Rows

CONTROLS = ("reinit", {"method": "resample", "seed": 3})
OPTIONS = {"layers": [0, 3], "resamples": 100, "baselines": False}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    write_base(folder / "base")
    write_regression(folder / "a.csv", 40)
    hf_perturb.study(folder / "base", folder / "a.csv", folder / "study", CONTROLS, **OPTIONS)
    given = list(enumerate(read_dataset(folder / "a.csv").sequences, 1))
    fasta = "".join(f">{number} of mine\n{sequence}\n" for number, sequence in reversed(given))
    (folder / "a.fasta").write_text(f">another\nMKT\n{fasta}")
    embed(folder, folder / "mine")
    return folder


def embed(places, out, controls=CONTROLS, fasta="a.fasta", **options):
    options = {"layers": "all", "pool": ["mean", "max"], **options}
    return hf_perturb.embed_variants(places / "base", places / fasta, out, controls, **options)


def study(places, out, data="a.csv", controls=CONTROLS, **more):
    return hf_perturb.study(places / "base", places / data, out, controls, **{**OPTIONS, **more})


def figures(results):
    return [
        (score.network, score.layer, score.metric, score.chosen, pytest.approx(score.value, abs=1e-6))
        for score in results.scores
    ]


def test_embeddings_of_ones_own_give_the_same_scores(places, tmp_path):
    found = study(places, tmp_path / "out", embeddings=places / "mine", layers=np.array([0, 3]))
    assert figures(found) == [(*each[:-1], each[-1].expected) for each in figures(study(places, places / "study"))]
    assert not (tmp_path / "out" / "embeddings").exists()
    # of them is said which they are, so that others are not taken for these
    with pytest.raises(FolderExistsError, match=r"embeddings: .* in the folder, null asked for"):
        study(places, tmp_path / "out")


def test_sequences_of_embeddings_are_known_where_the_fasta_is_that_of_the_study(places, tmp_path):
    told = [
        any(note.startswith("embeddings: found by the ids") for note in study(places, out, embeddings=given).notes)
        for out, given in ((tmp_path / "same", places / "study" / "embeddings"), (tmp_path / "other", places / "mine"))
    ]
    assert told == [False, True]


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({"controls": CONTROLS[:1]}, {}, "has no embeddings of resample-seed3; allowed: a folder with those of base"),
        ({"pool": "mean"}, {"pool": "max"}, "has no max_0; allowed: mean_0, .*by --pool and --layers"),
        ({"layers": [0, 2]}, {}, "has no mean_3; allowed: mean_0"),
        ({"dtype": "bfloat16"}, {"dtype": "float32"}, "got embeddings of bfloat16; the study is asked for in float32"),
        ({}, {"prefix": "<x>"}, "prefix: got '<x>' with embeddings, which are made"),
        ({"fasta": "short.fasta"}, {}, "has '7' .*residues, in the data .*; allowed: embeddings of the same sequences"),
        ({"fasta": "less.fasta"}, {}, "has no '7', and 39 more of the study's proteins are not there"),
        ({"fasta": "twice.fasta"}, {}, "has '7' 2 times; allowed: once"),
        ("another", {}, r"base: got embeddings of weights blake3:\w+, perturbed by None; the study is of blake3"),
        ("unlike", {}, "reinit-seed42: pool is .*, and of base it is .*; allowed: embeddings .* that were made alike"),
        ("seeds", {}, r"resample-seed3: got embeddings of weights .*'seed': 4.*; the study is of .*'seed': 3"),
    ],
)
def test_embeddings_that_are_not_of_the_study_are_refused(places, tmp_path, change, options, said):
    text = (places / "a.fasta").read_text()
    (places / "short.fasta").write_text(text.replace(">7 of mine\n", ">7 of mine\nMK"))
    (places / "less.fasta").write_text(">another\nMKT\n")
    (places / "twice.fasta").write_text(f"{text}>7\nMKT\n")
    out = tmp_path / "there"
    if isinstance(change, dict):
        embed(places, out, **change)
    elif change == "another":
        write_base(tmp_path / "base", seed=1)
        (tmp_path / "a.fasta").write_text(text)
        embed(tmp_path, out)
    else:
        embed(places, out, ["reinit", {"method": "resample", "seed": 3 + (change == "seeds")}])
        if change == "unlike":
            hf_perturb.embed(
                places / "base", places / "a.fasta", tmp_path / "max", layers="all", pool="max", perturbation="reinit"
            )
            (out / "reinit-seed42").rename(tmp_path / "old")
            (tmp_path / "max").rename(out / "reinit-seed42")
        else:
            (out / "resample-seed4").rename(out / "resample-seed3")
    if "less" in str(change):
        said = "has no '1', and 39 more of the study's proteins are not there"
    with pytest.raises(StudyError, match=said.replace("has '7' .*res", "'7' has .*res")):
        study(places, tmp_path / "out", embeddings=out, **options)
    left = tmp_path / "out" / "report.json"
    assert not left.exists()


def test_a_sequence_is_embedded_once(places, tmp_path):
    given = proteins(30)
    rows = [(f"a/../{number} x", given[number % 25], share(given[number % 25]) + number / 1000) for number in range(30)]
    write_csv(tmp_path / "a.csv", ["id", "sequence", "target"], rows)
    out = tmp_path / "out"
    results = hf_perturb.study(places / "base", tmp_path / "a.csv", out, ["reinit"], split="kfold:3", **OPTIONS)
    folders = sorted((out / "embeddings").iterdir())
    assert [folder.name for folder in folders] == ["base", "reinit-seed42"]
    for folder in folders:
        manifest = read_manifest(folder)
        assert sum(shard.records for shard in manifest.shards) == 25
    assert {row["id"] for row in predictions(out)} == {row[0] for row in rows}
    assert results.about["data"]["proteins"] == 30
    # equal sequences are predicted alike where they are in one fold
    said = {(row["id"], row["layer"]): row["prediction"] for row in predictions(out) if row["network"] == "base"}
    assert said["a/../0 x", 3] == said["a/../25 x", 3]


def test_residues_of_equal_sequences_are_kept_of_each(tmp_path, places):
    given = proteins(9)
    given[8] = given[1]
    (tmp_path / "a.fasta").write_text(
        "".join(f">p{i} SET={['test', 'train', 'train'][i % 3]}\n{each}\n" for i, each in enumerate(given))
    )
    labels = ["".join("HE"[letter in "LAGVE"] for letter in each) for each in given]
    labels[8] = "-" * 10 + labels[8][10:]
    (tmp_path / "b.fasta").write_text("".join(f">p{i}\n{each}\n" for i, each in enumerate(labels)))
    options = {**OPTIONS, "labels": tmp_path / "b.fasta", "max_residues": 100, "layers": [3]}
    results = hf_perturb.study(places / "base", tmp_path / "a.fasta", tmp_path / "out", [], **options)
    fasta = tmp_path / "again.fasta"
    fasta.write_text("".join(f">p{i}\n{each}\n" for i, each in reversed(list(enumerate(given)))))
    hf_perturb.embed_variants(places / "base", fasta, tmp_path / "all", [], layers=[3], pool=(), per_residue=True)
    again = hf_perturb.study(
        places / "base", tmp_path / "a.fasta", tmp_path / "again", [], **options, embeddings=tmp_path / "all"
    )
    assert figures(results) == [(*each[:-1], each[-1].expected) for each in figures(again)]


# ---- baselines


def features(tmp_path, rows, header=("sequence", "target", "set"), **options):
    data = read_dataset(write_csv(tmp_path / "a.csv", header, rows), task="regression")
    sources, said = baselines(data, Rows(data.values, np.arange(len(data)), None, ()), None)
    return data, {source.name: source.features(None) for source in sources}, said


def test_baselines_are_what_they_are_called(tmp_path):
    rows = [
        ("MKTAX", 1.5, "train"),
        ("MKTAU", 2, "test"),
        ("MKTAA", 3, "train"),
        ("MRTAA", 4, "train"),
        ("MRTAC", 5, "test"),
    ]
    _, found, _ = features(tmp_path, rows)
    np.testing.assert_allclose(found["composition"].sum(1), 1, atol=1e-7)
    assert found["composition"][:, -1].tolist() == pytest.approx([0.2, 0.2, 0, 0, 0])
    assert found["length"].ravel().tolist() == [5] * 5
    assert not found["guess"].any()
    # the second place has K and R, the last one X, U, A and C
    assert found["one-hot"].tolist() == [
        [1, 0, 0, 0, 0, 1],
        [1, 0, 0, 0, 1, 0],
        [1, 0, 1, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 0, 1, 0, 0],
    ]
    _, found, said = features(tmp_path, [*rows, ("MK", 9, "train")])
    assert "one-hot" not in found
    assert "baseline one-hot: left out, as sequences are of several lengths" in said
    # of letters that nothing but the 20 are, nothing is left, to the last bit
    _, found, _ = features(tmp_path, [(each, share(each), "train") for each in proteins(30)])
    assert not found["composition"][:, -1].any()


def test_the_order_of_unique_sequences_is_that_of_the_first(tmp_path):
    rows = [("MKT", 1.5, "train"), ("AC", 2, "test"), ("MKT", 3, "train"), ("W", 4, "train")]
    data = read_dataset(write_csv(tmp_path / "a.csv", ["sequence", "target", "set"], rows), task="regression")
    unique = Unique.of(data, Rows(data.values, np.arange(4), None, ()))
    assert (unique.ids, unique.sequences, unique.number.tolist()) == (("1", "2", "4"), ("MKT", "AC", "W"), [0, 1, 0, 2])


# ---- networks


def test_controls_are_those_that_create_writes(places, tmp_path):
    asked = [
        {"method": "reinit", "seed": 1, "scope": ["top:1"]},
        {"method": "reinit", "seed": 1, "scope": ["top:2"]},
        {"method": "resample", "seed": 0, "axis": "all"},
        {"method": "gaussian", "seed": 2},
    ]
    found = study(places, tmp_path / "out", controls=asked, embeddings=None)
    table = parquet.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
    names = [f"reinit-top{k}-seed1" for k in (1, 2)] + ["resample-all-seed0", "gaussian-seed2"]
    assert {row["network"] for row in table if row["kind"] == "control"} == {*names}
    for name, perturbation in zip(names, asked, strict=True):
        record = hf_perturb.create_variant(places / "base", tmp_path / name, perturbation)
        said = {
            (row["digest"], row["method"], row["seed"], row["axis"], row["scope"])
            for row in table
            if row["network"] == name
        }
        assert said == {(record.digest, record.method, record.seed, record.axis, ",".join(record.scope) or None)}
        stored = json.loads((tmp_path / name / "config.json").read_text())["perturbation"]
        assert found.about["networks"][name]["record"] == {**stored}
    [base] = {row["digest"] for row in table if row["network"] == "base"}
    assert base == hf_perturb.verify_variant(tmp_path / names[0]).digest or base == record.base.digest


def test_what_is_no_control_is_refused(places, tmp_path):
    with pytest.raises(PerturbationError, match="leaves nothing to perturb"):
        study(
            places,
            tmp_path / "out",
            controls=[{"method": "resample", "scope": ["layers:1-1", "keep_layer_norms"], "exclude": ["*"]}],
        )
    with pytest.raises(PerturbationError, match="two variants would be called reinit-seed42"):
        study(places, tmp_path / "out", controls=["reinit", {"method": "reinit", "include": ["*conv*"]}])
    hf_perturb.create_variant(places / "base", tmp_path / "control", "reinit")
    with pytest.raises(PerturbationError, match="is a variant already"):
        hf_perturb.study(tmp_path / "control", places / "a.csv", tmp_path / "out", ["reinit"], **OPTIONS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"layers": [9]}, ModelInputError, "layers: got 9; allowed"),
        ({"pool": "cls"}, ModelInputError, "pool: got 'cls'"),
        ({"pool": ("mean", "max")}, StudyError, "pool: got .*; allowed: mean, max, cls"),
        ({"metrics": "mcc"}, StudyError, "metric: got 'mcc' for a task of kind regression; allowed: spearman, r2"),
        ({"probe": "svm"}, StudyError, "probe: got 'svm'; allowed: ridge, logistic, knn"),
        ({"target": "fitness"}, StudyError, "'fitness'"),
        ({"dtyp": "x"}, TypeError, "study: got dtyp; allowed: baselines"),
        ({"probe": "logistic"}, StudyError, "probe: got 'logistic' for a task of kind regression; allowed: ridge, knn"),
    ],
)
def test_wrong_options_are_refused_before_work(places, tmp_path, options, error, said):
    with pytest.raises(error, match=said):
        study(places, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_study_without_controls_says_what_the_base_reaches(places, tmp_path):
    found = study(places, tmp_path / "out", controls=[])
    assert found.groups == ()
    assert found.base.value != 0


def test_a_test_set_of_one_cluster_is_refused_before_a_network_is_opened(tmp_path):
    sets = [("test", "x"), ("test", "x"), *[("train", "y"), ("train", "z")] * 4]
    rows = [(each, number / 7, *sets[number]) for number, each in enumerate(proteins(10))]
    table = write_csv(tmp_path / "a.csv", ["sequence", "target", "set", "cluster"], rows)
    with pytest.raises(StudyError, match=r"all 2 rows are of one protein or cluster \(x\)"):
        hf_perturb.study(tmp_path / "nothing", table, tmp_path / "out", ["reinit"])


def test_any_encoder_of_transformers(tmp_path):
    model, tokenizer = encoder("bert")
    model.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    write_regression(tmp_path / "a.csv", 40)
    found = hf_perturb.study(
        tmp_path / "bert", tmp_path / "a.csv", tmp_path / "out", "reinit", layers="0,-1", resamples=100
    )
    assert found.layers == (0, model.config.num_hidden_layers)
    assert {score.rules for score in found.scores if score.kind == "control"} == {"transformers"}
    assert all(score.digest for score in found.scores if score.kind == "control")
    given = enumerate(read_dataset(tmp_path / "a.csv").sequences, 1)
    (tmp_path / "a.fasta").write_text("".join(f">{number}\n{sequence}\n" for number, sequence in given))
    hf_perturb.embed_variants(tmp_path / "bert", tmp_path / "a.fasta", tmp_path / "mine", ["reinit"], layers="all")
    options = {"layers": "0,-1", "resamples": 100, "embeddings": tmp_path / "mine"}
    again = hf_perturb.study(tmp_path / "bert", tmp_path / "a.csv", tmp_path / "again", ["reinit"], **options)
    assert [score.value for score in again.scores] == pytest.approx([score.value for score in found.scores], abs=1e-6)


def test_zero_shot_scores_can_be_redone(places, tmp_path):
    from support.plain_metrics import EXPECTED

    wild = proteins(1)[0][:24]
    rows = []
    for place in range(24):
        for letter in "AW":
            if wild[place] != letter:
                rows.append(
                    (
                        wild[:place] + letter + wild[place + 1 :],
                        share(wild[:place] + letter) + place / 50,
                        "test" if place % 2 else "train",
                    )
                )
    table = write_csv(tmp_path / "a.csv", ["sequence", "target", "set"], rows)
    found = hf_perturb.study(places / "base", table, tmp_path / "out", ["reinit"], **OPTIONS, zero_shot=wild)
    scored = [score for score in found.scores if score.probe == "masked marginals"]
    assert {score.network for score in scored} == {"base", "reinit-seed42"}
    for score in scored:
        each = [
            row
            for row in predictions(tmp_path / "out")
            if (row["network"], row["probe"]) == (score.network, "masked marginals")
        ]
        truth, said = (np.array([row[key] for row in each]) for key in ("truth", "prediction"))
        assert EXPECTED["spearman"](truth, said) == pytest.approx(score.value)
    assert "scored as mutants of their wild type" in (tmp_path / "out" / "methods.md").read_text()
    other = hf_perturb.study(
        places / "base", table, tmp_path / "r2", ["reinit"], **OPTIONS, zero_shot=wild, metrics="r2"
    )
    assert [score.metric for score in other.scores if score.probe == "masked marginals"] == ["spearman"] * 2
    for other in (None, wild[:-1] + ("A" if wild[-1] != "A" else "C")):
        with pytest.raises(FolderExistsError, match=r"zero_shot: .* in the folder, "):
            hf_perturb.study(places / "base", table, tmp_path / "out", ["reinit"], **OPTIONS, zero_shot=other)
    with pytest.raises(StudyError, match=r"zero_shot: .*the wild type 23; allowed: substitutions alone"):
        hf_perturb.study(places / "base", table, tmp_path / "new", ["reinit"], **OPTIONS, zero_shot=wild[:-1])
