"""The worked example: probes tell the demo base from its controls."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest
from support.benchmarks import BENCHMARKS, run_script

from hf_perturb import demo


def test_training_shows_in_the_probe_and_not_in_the_embedding(tmp_path):
    data, picture = tmp_path / "rows.json", tmp_path / "probe.png"
    work = tmp_path / "work"
    options = ["--layers", "0,16", "--seeds", 42, "--work", work, "--json", data, "--plot", picture]
    done = run_script("probe.py", *options)
    assert done.returncode == 0, done.stderr
    rows = json.loads(data.read_text())
    score = {(row["kind"], row["layer"]): row["accuracy"] for row in rows}
    assert len(rows) == len(score) == 6
    # no rule touches the embedding, so that all three agree there
    assert score["pretrained", 0] == score["random init", 0] == score["stat transfer", 0]
    controls = mean([score["random init", 16], score["stat transfer", 16]])
    assert 0.55 < controls < score["pretrained", 16] - 0.05
    assert min(row["r2"] for row in rows if row["layer"] == 16) > 0.5
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert done.stdout.splitlines()[0].startswith("layer  accuracy, pretrained")
    assert {path.name for path in work.iterdir()} == {"base", "reinit-seed42", "resample-seed42"}


def test_every_sequence_has_a_group():
    with (BENCHMARKS / "held_out_groups.tsv").open(newline="") as file:
        groups = dict(csv.reader(file, delimiter="\t"))
    records = demo.read_fasta(Path(demo.__file__).parent / "held_out.fasta.gz")
    assert list(groups) == [header.split()[0] for header, _ in records]
    assert {*groups.values()} == {"bacterium", "eukaryote", "archaea", "virus"}


def test_a_base_that_is_not_there_is_said_in_a_line(tmp_path):
    done = run_script("probe.py", "--base", tmp_path / "nowhere")
    assert done.returncode == 1
    assert done.stderr.startswith("probe: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["probe", "-h"], ["benchmark", "--help"], ["benchmark", "create", "-h"]])
def test_help_comes_before_anything_is_installed(words, tmp_path):
    name, *rest = words
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "$@"\n')  # without any package
    python.chmod(0o755)
    command = [BENCHMARKS.parent / "scripts" / name, *rest]
    done = subprocess.run(
        command, env={**os.environ, "PYTHON": str(python)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {name} ")
