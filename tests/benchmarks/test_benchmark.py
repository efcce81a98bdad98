"""The performance reports measure what they say: the study's procedure and `hf-perturb create`, side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.benchmarks import BENCHMARKS, run_script
from support.models import small_model

import hf_perturb
from hf_perturb.perturbation import digest_of
from hf_perturb.variants.create import create_variant


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark") / "base"
    small_model("esm1b").save_pretrained(folder)
    return folder


def test_create_is_measured_beside_the_study(tmp_path):
    work, data = tmp_path / "work", tmp_path / "create.json"
    options = ["--size", "8M", "--only", "reinit", "resample-all"]  # two of three, to save the time
    done = run_script("benchmark.py", "create", *options, "--repeat", 1, "--work", work, "--json", data)
    assert done.returncode == 0, done.stderr
    report = json.loads(data.read_text())
    assert [(row["method"], row["axis"]) for row in report["rows"]] == [("reinit", None), ("resample", "all")]
    for row in report["rows"]:
        for side in ("study", "ours"):
            assert len(row[side]["seconds"]) == 1
            assert row[side]["best_seconds"] == row[side]["median_seconds"] > 0
            # a process with torch in it; each has a figure of its own, whatever the others took
            assert 50e6 < row[side]["peak_bytes"] < 2e9
        assert row["speedup"] == row["study"]["best_seconds"] / row["ours"]["best_seconds"]
        assert row["memory_share"] == row["ours"]["peak_bytes"] / row["study"]["peak_bytes"]
    assert report["bytes"] == pytest.approx(30e6, rel=0.01), "what the check for room on the disk goes by"
    assert report["machine"]["versions"]["torch"]
    assert [line.split("  ")[0] for line in done.stdout.splitlines()[3:]] == ["reinit", "resample --axis all"]
    assert not any(work.iterdir()), "bases and outputs are removed"


@pytest.mark.parametrize("method", ["reinit", "resample"])
def test_the_peer_is_the_procedure_of_the_published_rules(base, tmp_path, method):
    out = tmp_path / "study.safetensors"
    done = run_script("study_procedure.py", method, base / "model.safetensors", out)
    assert done.returncode == 0, done.stderr
    create_variant(base, tmp_path / "ours", {"method": method, "rules": "published"})
    theirs, ours = load_file(out), load_file(tmp_path / "ours" / "model.safetensors")
    assert theirs.keys() == ours.keys()
    before = load_file(base / "model.safetensors")
    assert sum(not tensor.equal(before[name]) for name, tensor in theirs.items()) > 20
    assert not [name for name in theirs if not theirs[name].equal(ours[name])]


def test_a_synthetic_base_is_a_model(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from synthetic import write_base

    write_base(hf_perturb.FairEsmConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2), tmp_path / "base")
    model = hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "base")
    assert model.config.digest == digest_of(model.state_dict())
    assert 0.04 < float(model.layers[0].fc1.weight.detach().std()) < 0.06


def test_a_full_disk_is_refused_before_anything_is_made(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import benchmarking

    with pytest.raises(SystemExit, match="GB are needed; give another --work"):
        benchmarking.demand_room(tmp_path, 1e18)


def test_a_failure_names_the_command_and_what_it_said(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text("{}")
    done = run_script("benchmark.py", "create", "--base", tmp_path, "--work", tmp_path / "work", "--repeat", 1)
    assert done.returncode == 1
    assert "study_procedure.py" in done.stderr
    assert "KeyError: 'model_type'" in done.stderr
