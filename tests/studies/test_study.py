"""A study's scores are those of a plain script: Transformers embeds, scikit-learn probes, scipy scores."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from support.plain_metrics import EXPECTED
from support.studies import (
    plain_states,
    predictions,
    proteins,
    share,
    write_base,
    write_csv,
    write_regression,
)
from transformers import AutoModel, AutoTokenizer

import hf_perturb
from hf_perturb.studies.dataset import read_dataset
from hf_perturb.studies.metrics import METRICS_OF
from hf_perturb.studies.probes import DEFAULT, PROBES
from hf_perturb.studies.rows import rows_of
from hf_perturb.studies.splits import make_split

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def fitted(kind, strength, x, y):
    """Return what predicts: a plain probe at one strength, of standardised features."""
    scaler = StandardScaler().fit(x)
    if kind == "regression":
        probe = Ridge(alpha=strength).fit(scaler.transform(x), y)
        return lambda rows: probe.predict(scaler.transform(rows))
    probe = LogisticRegression(C=1 / strength, tol=1e-11, max_iter=20_000).fit(scaler.transform(x), y)
    return lambda rows: probe.predict_proba(scaler.transform(rows))


def together(kind, said, seen):
    """Return what was predicted of all folds, as if of the same mean, or the same shares of classes, in training."""
    if len(said) == 1:
        return said[0]
    if kind == "regression":
        return np.concatenate([each - y.mean() for each, y in zip(said, seen, strict=True)]) + np.mean(
            [y.mean() for y in seen]
        )
    shares = [np.array([(y == number).mean() for number in range(said[0].shape[1])]) for y in seen]
    moved = np.concatenate([each * np.mean(shares, axis=0) / own for each, own in zip(said, shares, strict=True)])
    return np.round(moved / moved.sum(axis=1, keepdims=True), 12)  # of equal ones the first is said


def chosen(kind, metric, x, y, fold):
    """Return strength, score on what chooses, and predictions of the test rows."""
    scores = []
    for strength in PROBES[DEFAULT[kind]].strengths:
        pairs = fold.inner or [(fold.train, fold.validation)]
        said = [fitted(kind, strength, x[train], y[train])(x[held]) for train, held in pairs]
        truth = np.concatenate([y[held] for _, held in pairs])
        scores.append((EXPECTED[metric](truth, together(kind, said, [y[train] for train, _ in pairs])), strength))
    best, strength = max(scores, key=lambda pair: (round(pair[0], 9), pair[1]))
    return strength, best, fitted(kind, strength, x[fold.train], y[fold.train])(x[fold.test])


def by_hand(kind, metric, layers, y, folds):
    """Return the scores of each layer, the strengths of its folds, and the layer that all folds choose, if they do."""
    truth = np.concatenate([y[fold.test] for fold in folds])
    found = {layer: [chosen(kind, metric, x, y, fold) for fold in folds] for layer, x in layers.items()}
    best = [max(found, key=lambda layer: (round(found[layer][fold][1], 9), -layer)) for fold in range(len(folds))]
    every = {layer: [each[2] for each in of_folds] for layer, of_folds in found.items()}
    if len({*best}) > 1:
        every[None] = [found[layer][fold][2] for fold, layer in enumerate(best)]
    said = {layer: together(kind, each, [y[fold.train] for fold in folds]) for layer, each in every.items()}
    scores = {layer: {name: EXPECTED[name](truth, each) for name in METRICS_OF[kind]} for layer, each in said.items()}
    strengths = {layer: {each[0] for each in every} for layer, every in found.items()}
    return scores, strengths, best[0] if len({*best}) == 1 else None


def agree(results, network, kind, layers, y, folds):
    scores, strengths, best = by_hand(kind, results.metric, layers, y, folds)
    ours = [score for score in results.scores if score.network == network]
    assert {score.layer for score in ours} == {*scores}
    for score in ours:
        assert score.value == pytest.approx(scores[score.layer][score.metric], abs=1e-6), score
        assert score.low <= score.value <= score.high
        assert score.chosen == (score.layer == best)
        if score.layer is not None:
            first, *others = strengths[score.layer]
            assert score.strength == (None if others else first)
    return best


def means(states):
    return {layer: np.stack([each.mean(0) for each in every]) for layer, every in enumerate(states)}


def networks(base, controls):
    """Load a base and its controls as anybody would."""
    yield "base", AutoModel.from_pretrained(base).eval(), None
    for name, perturbation in controls.items():
        yield name, AutoModel.from_pretrained(base, perturbation=perturbation).eval(), perturbation


def redone(results, out):
    """Recompute every score from `predictions.parquet` alone."""
    rows = defaultdict(list)
    for row in predictions(out):
        rows[row["network"], row["layer"], row["probe"]].append(row)
    classes = list(results.task.classes)
    for score in results.scores:
        each = rows[score.network, score.layer, score.probe]
        assert len(each) == score.n
        if classes:
            truth = np.array([classes.index(row["truth"]) for row in each])
            said = np.array([[row[f"probability {name}"] for name in classes] for row in each])
            assert [row["prediction"] for row in each] == [classes[number] for number in said.argmax(1)]
        else:
            truth, said = (np.array([row[key] for row in each]) for key in ("truth", "prediction"))
        assert EXPECTED[score.metric](truth, said) == pytest.approx(score.value, abs=1e-9), score
    assert {*rows} == {(score.network, score.layer, score.probe) for score in results.scores}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    for network in ("carp", "esm2"):
        write_base(folder / network, network)
    write_regression(folder / "regression.csv")
    return folder


CONTROLS = {"reinit-seed1": {"method": "reinit", "seed": 1}, "resample-top1-seed7": None}
CONTROLS["resample-top1-seed7"] = {"method": "resample", "seed": 7, "scope": ["top:1"]}


@pytest.fixture(scope="module")
def regression(places):
    results = hf_perturb.study(
        places / "esm2", places / "regression.csv", places / "regression", CONTROLS.values(), resamples=200
    )
    return results, places / "regression"


def test_a_regression_of_proteins_by_the_split_of_the_data(places, regression):
    results, out = regression
    data = read_dataset(places / "regression.csv")
    [fold] = make_split(data).folds
    tokenizer = AutoTokenizer.from_pretrained(places / "esm2")
    every = {}
    for name, model, _ in networks(places / "esm2", CONTROLS):
        every[name] = means(plain_states(model, tokenizer, data.sequences))
        best = agree(results, name, "regression", every[name], data.values, [fold])
        assert best is not None
    redone(results, out)
    plain = {
        "length": np.array([[len(each)] for each in data.sequences]),
        "composition": np.array([[each.count(letter) / len(each) for letter in LETTERS] for each in data.sequences]),
        "representation 0": every["base"][0],
    }
    for name, x in plain.items():
        scores, _, _ = by_hand("regression", "spearman", {0: x}, data.values, [fold])
        for score in results.scores:
            if score.network == name:
                assert score.value == pytest.approx(scores[0][score.metric], abs=1e-6), score
    guess = {score.metric: score.value for score in results.scores if score.network == "guess"}
    mean = np.full(len(fold.test), data.values[fold.train].mean())
    assert guess == pytest.approx({name: EXPECTED[name](data.values[fold.test], mean) for name in guess}, abs=1e-9)
    assert guess["spearman"] == 0
    assert "one-hot" not in {score.network for score in results.scores}
    assert "baseline one-hot: left out, as sequences are of several lengths" in results.notes


def test_labels_are_shuffled_of_training_rows_and_for_the_best_layer_of_the_base(places, regression):
    results, out = regression
    data = read_dataset(places / "regression.csv")
    [fold] = make_split(data).folds
    model, tokenizer = (kind.from_pretrained(places / "esm2") for kind in (AutoModel, AutoTokenizer))
    x = means(plain_states(model.eval(), tokenizer, data.sequences))[results.base.layer]
    values, every = [], [score for score in results.scores if score.group == "shuffled labels"]
    for number in range(5):
        truth, random = data.values.copy(), np.random.default_rng([0, number, 0])
        for rows in (fold.train, fold.validation):
            truth[rows] = truth[random.permutation(rows)]
        expected = chosen("regression", "spearman", x, truth, fold)[2]
        name = f"shuffled labels-seed{number}"
        ours = [row["prediction"] for row in predictions(out) if row["network"] == name]
        np.testing.assert_allclose(ours, expected, atol=1e-6)
        values.append(EXPECTED["spearman"](data.values[fold.test], expected))
    # a single order leads anywhere: what is told is their mean, and all where they lead
    [told] = [score for score in results.baselines if score.network == "shuffled labels"]
    assert told.value == pytest.approx(np.mean(values), abs=1e-6)
    assert told.low <= min(values) < max(values) <= told.high
    ends = [(score.low, score.high) for score in every if score.metric == "spearman"]
    assert (told.low, told.high) == (min(low for low, _ in ends), max(high for _, high in ends))


def test_labels_of_test_proteins_change_their_scores_alone(places, regression, tmp_path):
    data, out = read_dataset(places / "regression.csv"), regression[1]
    tested, others = make_split(data).folds[0].test, data.values.copy()
    others[tested] = np.random.default_rng(1).permutation(data.values[tested]) ** 2
    sets = [name.replace("validation", "train") for name in data.sets]  # inner folds choose
    same, other = (
        write_csv(tmp_path / name, ["sequence", "target", "set"], zip(data.sequences, values, sets, strict=True))
        for name, values in (("a.csv", data.values.tolist()), ("b.csv", others.tolist()))
    )
    options = {"resamples": 100, "embeddings": out / "embeddings"}
    found = [
        hf_perturb.study(places / "esm2", table, tmp_path / table.stem, CONTROLS.values(), **options)
        for table in (same, other)
    ]
    kept = [
        [
            (score.network, score.layer, score.strength, score.chosen, score.metric, score.validation)
            for score in each.scores
        ]
        for each in found
    ]
    assert kept[0] == kept[1]
    ours, theirs = ([row["prediction"] for row in predictions(tmp_path / name)] for name in ("a", "b"))
    assert ours == theirs
    assert found[0].base.value != found[1].base.value


def test_a_binary_task_by_folds(places, tmp_path):
    given = proteins(60, 34)
    rows = [(f"P {number}", each, ["low", "high"][share(each) > 0.43]) for number, each in enumerate(given)]
    table = write_csv(tmp_path / "binary.csv", ["id", "sequence", "label"], rows)
    asked = {"resample-rows-seed0": {"method": "resample", "axis": "rows", "seed": 0}}
    options = {"split": "kfold:3", "resamples": 200, "layers": "0,1,-1", "pool": "max", "metrics": "balanced_accuracy"}
    results = hf_perturb.study(places / "carp", table, tmp_path / "out", asked.values(), **options)
    assert (results.metric, results.task.kind) == ("balanced_accuracy", "binary")
    data = read_dataset(table)
    folds = make_split(data, "kfold:3").folds
    tokenizer = AutoTokenizer.from_pretrained(places / "carp")
    best = set()
    for name, model, _ in networks(places / "carp", asked):
        states = plain_states(model, tokenizer, data.sequences)
        layers = {layer: np.stack([each.max(0) for each in states[layer]]) for layer in (0, 1, 3)}
        best.add(agree(results, name, "binary", layers, data.values, folds))
    redone(results, tmp_path / "out")
    # guessing says one thing of all folds, or it would rank these
    guess = [row for row in predictions(tmp_path / "out") if row["network"] == "guess"]
    assert Counter(row["id"] for row in guess) == Counter(data.ids)
    [said] = {row[f"probability {results.task.classes[1]}"] for row in guess}
    assert said == pytest.approx(np.mean([data.values[fold.train].mean() for fold in folds]), abs=1e-6)
    assert [score.value for score in results.scores if (score.network, score.metric) == ("guess", "auroc")] == [0.5]


def test_classes_of_residues_that_are_sampled(places, tmp_path):
    given = proteins(24)
    classes = [
        "".join(
            "HEC"[min(2, each[max(0, i - 1) : i + 2].count("L") + each[i:].startswith("K"))] for i in range(len(each))
        )
        for each in given
    ]
    labels = [f">p{number}\n{each[:3]}-{each[4:]}\n" for number, each in enumerate(classes)]
    sets = ["test", "train", "validation"]
    fasta = [f">p{number} SET={sets[number % 3]}\n{each}\n" for number, each in enumerate(given)]
    (tmp_path / "a.fasta").write_text("".join(fasta))
    (tmp_path / "b.fasta").write_text("".join(labels))
    options = {"labels": tmp_path / "b.fasta", "resamples": 200, "max_residues": 150, "layers": [1, 3], "seed": 4}
    places_of = (places / "esm2", tmp_path / "a.fasta", tmp_path / "out")
    results = hf_perturb.study(*places_of, ["reinit"], **options)
    data = read_dataset(places_of[1], labels=options["labels"])
    split = make_split(data, None, 4)
    rows = rows_of(data, split, 150, 4)
    out = predictions(tmp_path / "out")
    # what is said of the sample: equally many of each protein, within the number, never an unlabelled one
    tested = [(row["id"], row["residue"]) for row in out if row["network"] == "guess"]
    counts = Counter(name for name, _ in tested)
    assert {*counts} == {data.ids[number] for number in split.folds[0].test}
    assert {*counts.values()} == {150 // len(counts)}
    assert not any(residue == 4 for _, residue in tested)
    assert [(data.ids[rows.protein[row]], rows.residue[row] + 1) for row in rows.folds[0].test] == tested
    tokenizer = AutoTokenizer.from_pretrained(places / "esm2")
    for name, model, _ in networks(places / "esm2", {"reinit-seed42": "reinit"}):
        states = plain_states(model, tokenizer, data.sequences)
        pairs = list(zip(rows.protein, rows.residue, strict=True))
        layers = {layer: np.stack([states[layer][protein][residue] for protein, residue in pairs]) for layer in (1, 3)}
        agree(results, name, "classes", layers, rows.truth, rows.folds)
    redone(results, tmp_path / "out")
    truth = [classes[data.ids.index(name)][residue - 1] for name, residue in tested]
    assert [row["truth"] for row in out if row["network"] == "guess"] == truth
