"""`hf-perturb study`: what it prints, what it returns, and how it fails."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("sklearn")

from support.embedding import environment
from support.studies import write_base, write_regression

import hf_perturb
from hf_perturb.cli import main
from hf_perturb.studies.words import last_line

# with the controls of `--seed 0-1` and no `--control`
WORDS = ("--layers", "0,-1", "--resamples", "100", "--seed", "0-1")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    write_base(folder / "base")
    write_regression(folder / "a.csv", 40)
    return folder


@pytest.fixture
def here(places, monkeypatch):
    monkeypatch.chdir(places)


def test_the_last_line_says_what_was_found(here, places, capsys):
    assert main(["study", "base", "a.csv", "out", *WORDS]) == 0
    said = capsys.readouterr()
    *table, _, written, last = said.out.splitlines()
    assert len(table) > 3
    assert last.startswith("Layer ")
    assert written.startswith("out: layers.svg, ")
    assert all((places / "out" / name).is_file() for name in written.removeprefix("out: ").split(", "))
    assert "hf-perturb study: note: task: regression of a protein" in said.err
    assert main(["study", "base", "a.csv", "out", *WORDS, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["words"] == last
    assert found == json.loads((places / "out" / "report.json").read_text())
    assert {score["group"] for score in found["scores"] if score["kind"] == "control"} == {"reinit", "resample"}
    assert {score["seed"] for score in found["scores"] if score["kind"] == "control"} == {0, 1}
    # the same in Python is the same study
    controls = [{"method": method, "seed": seed} for method in ("reinit", "resample") for seed in (0, 1)]
    again = hf_perturb.study("base", "a.csv", "out", controls, layers="0,-1", resamples=100)
    assert last_line(again) == last


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["base", "none.csv", "new"], 1, "none.csv"),
        (["none", "a.csv", "new"], 1, "none"),
        (["base", "a.csv", "new", "--metric", "mcc"], 1, "metric: got 'mcc' for a task of kind regression"),
        (["base", "a.csv", "new", "--layers", "9"], 1, "layers: got '9'; allowed"),
        (["base", "a.csv", "new", "--target", "fitness"], 1, "fitness"),
        (["base", "a.csv", "new", "--split", "random"], 1, "split: got 'random'; allowed"),
        (["base", "a.csv", "new", "--resamples", "3"], 1, "resamples: got 3; allowed: a number of at least 100"),
        (["base", "a.csv", "new", "--study-seed", "-1"], 1, "seed: got -1; allowed"),
        (["base", "a.csv", "new", "--task", "residue-classes"], 1, "a.csv"),
        (["base", "a.csv", "new", "--probe", "svm"], 2, "invalid choice: 'svm'"),
        (["base", "a.csv", "new", "--control", "reinit", "--seed", "x"], 2, "seeds: got 'x'"),
        (["base", "a.csv", "new", "--target", "sequence"], 1, "target: 'sequence' has the sequences"),
        (["base", "a.csv", "new", "--control", "shuffle"], 2, "shuffle"),
        (["base", "a.csv"], 2, "OUT"),
        (["base", "a.csv", "a.csv"], 1, "a.csv is no folder"),
    ],
)
def test_what_is_wrong_is_one_line(here, places, capsys, words, code, said):
    if code == 2:
        with pytest.raises(SystemExit, match="2"):
            main(["study", *words])
    else:
        assert main(["study", *words]) == code
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert code == 2 or error.count("\n") == 1
    assert not (places / "new").exists()


def test_a_control_without_seeds_has_the_usual_ones(monkeypatch):
    asked = {}
    monkeypatch.setattr(hf_perturb, "study", lambda *given, **options: asked.update(controls=given[3]) or sys.exit(0))
    with pytest.raises(SystemExit):
        main(["study", "demo", "a.csv", "out", "--control", "reinit"])
    assert [each.seed for each in asked["controls"]] == [0, 1, 2, 3, 4]


def test_what_is_not_installed_is_said_before_any_work(here, places):
    code = "import sys; sys.modules['sklearn'] = None; from hf_perturb.cli import script; script()"
    call = [sys.executable, "-c", code, "study", "base", "a.csv", "new"]
    done = subprocess.run(call, capture_output=True, text=True, env=environment(), timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("hf-perturb study: a study needs sklearn (")
    assert done.stderr.endswith("): pip install 'hf-perturb[study]'\n")
    assert not (places / "new").exists()


def test_help_needs_nothing_heavy():
    heavy = ("numpy", "torch", "transformers", "scipy", "sklearn", "pyarrow", "matplotlib")
    code = (
        "import atexit, sys; from hf_perturb.cli import script;"
        f"atexit.register(lambda: print('heavy:', sorted(sys.modules.keys() & {set(heavy)!r}))); script()"
    )
    call = [sys.executable, "-c", code, "study", "--help"]
    done = subprocess.run(call, capture_output=True, text=True, env=environment(), timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Is a result due to what the model learned?" in done.stdout
    assert done.stdout.endswith("heavy: []\n")
