"""Tables of a study: columns that stay, numbers that come back, files that are whole."""

from __future__ import annotations

import csv
import json
import math
import os
from dataclasses import asdict, replace

import pyarrow.parquet
import pytest
from support.study_results import CLASSES, SIX, results

from hf_perturb.errors import CheckpointError
from hf_perturb.storage.folders import replaced_file
from hf_perturb.studies import tables
from hf_perturb.studies.results import Score
from hf_perturb.studies.tables import read_report, write_tables

FIRST = [
    "network",
    "method",
    "rules",
    "scope",
    "seed",
    "digest",
    "layer",
    "probe",
    "strength",
    "split",
    "metric",
    "value",
    "low",
    "high",
    "n",
]


def summary(folder):
    with (folder / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_scores_have_their_columns_whatever_is_in_them(tmp_path):
    some, few = results(5, SIX, 2), results(1, (), by_fold=True)
    found = {}
    for name, made in (("some", some), ("few", few)):
        (tmp_path / name).mkdir()
        write_tables(made, tmp_path / name)
        found[name] = pyarrow.parquet.read_table(tmp_path / name / "scores.parquet")
        assert [Score(**row) for row in found[name].to_pylist()] == list(made.scores)
    assert found["some"].schema == found["few"].schema
    assert found["some"].column_names[: len(FIRST)] == FIRST
    assert {*found["some"].column_names} == {*asdict(some.scores[0])}


@pytest.mark.parametrize("task", [CLASSES, results().task])
def test_a_report_is_read_back_as_it_was(tmp_path, task):
    made = replace(results(3, SIX, 1, task=task, by_fold=True), notes=("näher",))
    write_tables(made, tmp_path)
    assert read_report(tmp_path) == read_report(tmp_path / "report.json") == made
    assert json.loads((tmp_path / "report.json").read_text())["words"].startswith("The layers chosen fold by fold")


def test_a_summary_has_a_row_a_layer_and_one_of_the_best(tmp_path):
    made = results(5, ("reinit", "resample-all-top4"), 3)
    write_tables(made, tmp_path)
    *layers, best = summary(tmp_path)
    assert [row["layer"] for row in layers] == ["0", "1", "2", "3", "4"]
    assert {row["chosen_by"] for row in (layers[0], layers[2], layers[4])} == {""}
    assert (layers[3]["chosen_by"], best["layer"]) == ("base", "best")
    assert layers[1]["chosen_by"].split()[0] == "reinit-seed0"
    for row, layer in zip([*layers, best], [0, 1, 2, 3, 4, None], strict=True):
        base = made.base if layer is None else next(score for score in made.of("base") if score.layer == layer)
        assert float(row["base"]) == base.value
        for group in made.groups:
            said = asdict(made.contrast(group, layer))
            for name in ("mean", "sd", "low", "high", "difference", "p", "p_holm", "share", "share_low", "share_high"):
                assert float(row[f"{group}_{name}"]) == said[name]
        assert float(row["composition"]) == 0.35
        assert float(row["base_participation"]) == 40.0 - base.layer


def test_what_there_is_none_of_is_left_empty(tmp_path):
    write_tables(results(3, ("reinit",), 1, base=0.02, by_fold=True), tmp_path)
    *_, best = summary(tmp_path)
    assert (best["reinit_sd"], best["reinit_share"], best["base_cosine"]) == ("", "", "")
    assert best["reinit_withheld"] == "the base is not above guessing"


def test_the_same_results_give_the_same_bytes_and_replace_what_was_there(tmp_path):
    written = []
    for _ in range(2):
        write_tables(results(3), tmp_path)
        written.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert written[0] == written[1]
    assert {*written[0]} == {"scores.parquet", "summary.csv", "methods.md", "report.json"}


def test_the_report_comes_last_for_it_says_that_all_is_there(tmp_path, monkeypatch):
    written = []

    def noted(path):
        written.append(path.name)
        return replaced_file(path)

    monkeypatch.setattr(tables, "replaced_file", noted)
    write_tables(results(3), tmp_path)
    assert written == ["scores.parquet", "summary.csv", "methods.md", "report.json"]


def test_a_number_that_is_none_is_refused_and_nothing_is_left(tmp_path):
    made = results(3)
    broken = replace(made, contrasts=(replace(made.contrasts[0], p=math.nan), *made.contrasts[1:]))
    with pytest.raises(CheckpointError, match=r"report\.json: a number of the study is NaN or infinite"):
        write_tables(broken, tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("text", ["", "{}", '{"format": 2}', '{"format": 1, "task": 3}'])
def test_what_is_no_report_is_said(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"report\.json"):
        read_report(tmp_path)
