"""A study that was killed is continued by the same command, and by no other; a folder holds one study."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from support.embedding import environment
from support.studies import snapshot, times, write_base, write_regression

import hf_perturb
from hf_perturb.errors import FolderExistsError, FolderLockedError, HfPerturbError
from hf_perturb.storage.folders import lock
from hf_perturb.studies.folder import WRITTEN

CONTROLS = ({"method": "reinit", "seed": 0}, {"method": "reinit", "seed": 1})
OPTIONS = {"layers": [0, 2], "resamples": 100}
# studies in forks of one process, each of which dies of something; what there is of them afterwards is printed
DYING = """
import json, os, signal, sys
from pathlib import Path
import hf_perturb, matplotlib.backends.backend_agg, matplotlib.backends.backend_svg
from hf_perturb import CarpForMaskedLM  # with what each fork would import by itself
from hf_perturb.embedding.store import Store
from hf_perturb.studies import evaluate, probing, run

def die(*given, **more):
    os.kill(os.getpid(), signal.SIGKILL)

def after(turns, kind, name):
    done, left = getattr(kind, name), iter(range(turns))
    def turn(*given, **more):
        if next(left, None) is None:
            die()
        return done(*given, **more)
    setattr(kind, name, turn)

def at_file(called):
    replace = os.replace
    os.replace = lambda old, new: die() if Path(new).name == called else replace(old, new)

phases = {
    "begun": lambda: at_file("study.json"),
    "embedding": lambda: after(1, Store, "write"),
    "probing": lambda: after(3, probing.Probing, "_probe"),
    "resampling": lambda: after(2, evaluate.Resamples, "take"),
    "written": lambda: at_file("scores.parquet"),
    "last": lambda: setattr(run.shutil, "rmtree", die),
}
base, data, out, options = json.loads(sys.argv[1])
for phase, prepare in phases.items():
    if (pid := os.fork()) == 0:
        prepare()
        hf_perturb.study(base, data, out, json.loads(sys.argv[2]), **options)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    there = sorted(str(path.relative_to(out)) for path in Path(out).rglob("*") if path.is_file())
    print(json.dumps([phase, status, there]))
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    write_base(folder / "base")
    write_regression(folder / "a.csv", 40)
    first = study(folder, folder / "whole")
    assert study(folder, folder / "whole") == first
    return folder


def study(places, out, controls=CONTROLS, **more):
    return hf_perturb.study(places / "base", places / "a.csv", out, controls, **{**OPTIONS, **more})


def test_a_killed_study_is_continued_in_each_phase(places, tmp_path):
    out = tmp_path / "out"
    given = json.dumps([str(places / "base"), str(places / "a.csv"), str(out), OPTIONS])
    call = [sys.executable, "-c", DYING, given, json.dumps(CONTROLS)]
    done = subprocess.run(call, capture_output=True, text=True, env=environment(), timeout=120, check=False)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [status for _, status, _ in told] == [-signal.SIGKILL] * 6, done.stderr
    there = {phase: {name for name in names if "hf_perturb-" not in name} for phase, _, names in told}
    assert there["begun"] == set()
    count = {phase: sum(name.endswith(".npz") for name in names) for phase, names in there.items()}
    assert sum("shard" in name for name in there["embedding"]) == 1
    assert 0 < count["probing"] < count["resampling"] == count["written"]
    assert "predictions.parquet" in there["written"] - there["resampling"]
    assert {*WRITTEN} <= there["last"]
    for one, other in pairwise(there):
        assert there[one] <= there[other], "what was there is gone"
    study(places, out)
    assert snapshot(out) == snapshot(places / "whole")
    assert {path.name for path in out.iterdir()} == {path.name for path in (places / "whole").iterdir()}


def test_the_same_command_computes_nothing(places, monkeypatch):
    before, seen = times(places / "whole"), []
    found = study(places, places / "whole", progress=lambda *said: seen.append(said))
    assert (times(places / "whole"), seen) == (before, [])
    assert json.loads((places / "whole" / "report.json").read_text())["scores"] == [vars(each) for each in found.scores]
    # how the base and options are said decides nothing
    monkeypatch.chdir(places)
    said = {"device": "cpu", "tokens": 100, "long": "refuse", "trust_remote_code": False, "force": True}
    hf_perturb.study("base", "a.csv", "whole", CONTROLS, **OPTIONS, **said)
    assert times(places / "whole") == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"resamples": 200}, "options.resamples: 100 in the folder, 200 asked for"),
        ({"split": "kfold:2"}, 'split.name: "column" in the folder, "kfold:2" asked for'),
        ({"controls": CONTROLS[:1]}, 'networks.reinit-seed1: "blake3:.*" in the folder, nothing asked for'),
        ({"dtype": "bfloat16"}, 'embedding.dtype: nothing in the folder, "bfloat16" asked for'),
        ({"metrics": "r2"}, "options.metrics: "),
    ],
)
def test_another_study_is_refused_and_told(places, change, said):
    before = snapshot(places / "whole")
    with pytest.raises(FolderExistsError, match=rf"whole holds another study: .*{said}.*--force"):
        study(places, places / "whole", **change)
    assert snapshot(places / "whole") == before


def test_force_replaces_a_study_whole(places, tmp_path):
    out = tmp_path / "out"
    study(places, out, CONTROLS[:1], layers=[0, 1])
    with pytest.raises(ZeroDivisionError):
        study(places, out, force=True, progress=lambda what, done, total: 1 / (what != "embedding"))
    assert not {*WRITTEN} & {*os.listdir(out)}, "figures of the other study are left"
    study(places, out)
    assert snapshot(out) == snapshot(places / "whole")
    for name in ("scores.parquet", "layers.png"):
        (out / name).unlink()
    study(places, out)
    assert snapshot(out) == snapshot(places / "whole"), "what was taken away is made again"


@pytest.mark.parametrize("name", ["thesis.txt", "study.json"])
def test_a_folder_of_something_else_is_refused(places, tmp_path, name):
    (tmp_path / name).write_text("{}")
    for force in (False, True):
        with pytest.raises(FolderExistsError, match=rf"{name}.* is no.*; choose another"):
            study(places, tmp_path, force=force)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "{}"}
    with pytest.raises(FolderExistsError, match="is no folder"):
        study(places, tmp_path / name)


def test_two_at_once_are_told(places, tmp_path):
    with lock(tmp_path, tmp_path / ".hf_perturb-lock"), pytest.raises(FolderLockedError, match="another process"):
        study(places, tmp_path)
    assert not os.listdir(tmp_path)


KINDS = [
    *("study.json", "sequences.fasta", "_manifest.json", "shard-.*", "base-2.npz", "shuffled-labels-seed4-all.npz"),
    *("predictions.parquet", "layers.png", "scores.parquet", "report.json"),
]


def test_a_full_disk_is_told_and_continued_after(places, tmp_path, monkeypatch):
    """One file after the other finds no room; what was there stays, so that each study goes further."""
    sync, out, there = os.fsync, tmp_path / "out", {}
    for name in KINDS:

        def full(file, wanted=rf"\.{name}\.hf_perturb-.*"):
            if re.fullmatch(
                wanted, os.path.basename(os.readlink(f"/proc/self/fd/{getattr(file, 'fileno', lambda: file)()}"))
            ):
                raise OSError(errno.ENOSPC, "No space left on device")
            sync(file)

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(HfPerturbError, match=f"{name}.*No space left on device") as told:
            study(places, out)
        assert isinstance(told.value, OSError)
        now = times(out) if out.exists() else {}
        assert {
            path: now.get(path) for path in there if "/embeddings/" in path or "/probes/" in path
        }.items() <= now.items()
        there = {path: moment for path, moment in now.items() if "manifest" not in path}
        assert not [path for path in now if ".hf_perturb-" in path]
    monkeypatch.setattr(os, "fsync", sync)
    study(places, out)
    assert snapshot(out) == snapshot(places / "whole")


def test_what_was_kept_and_is_damaged_is_made_again(places, tmp_path, monkeypatch):
    from hf_perturb.studies import run

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(run, "write_tables", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            study(places, out)
    kept = sorted((out / "probes").iterdir())
    kept[0].write_bytes(kept[0].read_bytes()[:100])
    with np.load(kept[1]) as one:
        np.savez(kept[1], **{**one, "key": np.array("sha256:another"), "prediction": one["prediction"] + 1})
    study(places, out)
    assert snapshot(out) == snapshot(places / "whole")
