"""The performance reports measure what they say: `cp`, the study's procedure and hf-perturb, side by side."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.benchmarks import BENCHMARKS, run_script
from support.models import small_model

import hf_perturb
from hf_perturb import demo
from hf_perturb.checkpoints.network import Network
from hf_perturb.perturbation import digest_of
from hf_perturb.variants.create import create_variant


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark") / "base"
    small_model("esm1b").save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def measured(seconds: float, gigabytes: float = 0.1) -> dict[str, float]:
    return {"best_seconds": seconds, "anonymous_bytes": gigabytes * 1e9}


def test_create_is_measured_beside_the_copy_and_the_study(tmp_path):
    work, data = tmp_path / "work", tmp_path / "create.json"
    options = ["--base", demo.folder(), "--only", "reinit", "--repeat", 1]  # one of them, to save the time
    done = run_script("benchmark.py", "create", *options, "--work", work, "--json", data)
    assert done.returncode == 0, done.stderr
    report = json.loads(data.read_text())
    [size] = report["sizes"]
    weights = demo.folder() / "model.safetensors"
    assert (size["size"], size["bytes"]) == ("carp_demo", weights.stat().st_size)
    assert size["tensors"] == len(load_file(weights))
    runs = size["runs"]
    assert list(runs) == ["cp + sync", "reinit", "study reinit", "cat, not in the page cache", "verify", "compare"]
    for name, run in runs.items():
        assert run["seconds"] == [run["best_seconds"]]
        # each has a figure of its own, whatever the others took
        least, most = (0, 5e6) if name in ("cp + sync", "cat, not in the page cache") else (20e6, 600e6)
        assert least <= run["anonymous_bytes"] <= most
        assert run["anonymous_bytes"] < run["peak_bytes"]
    assert {"numpy", "torch"} <= report["machine"]["versions"].keys()
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{report['machine']['processor']}, ")
    assert [line.split(" | ")[0] for line in lines[4:6]] == ["| cp + sync", "| reinit"]
    assert not any(work.iterdir()), "bases and outputs are removed"


def test_what_was_written_is_removed_when_it_is_interrupted(tmp_path):
    command = [sys.executable, BENCHMARKS / "benchmark.py", "create", "--base", demo.folder(), "--work", tmp_path]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        until = time.monotonic() + 60
        while not any(tmp_path.glob("*/variant")) and time.monotonic() < until:
            time.sleep(0.02)
        assert any(tmp_path.iterdir())
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=60) == 1
        assert "interrupted" in running.stderr.read()
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="the system has no /proc")
def test_memory_is_what_the_system_cannot_drop(tmp_path):
    from benchmarking import measure

    file = tmp_path / "mapped"
    file.write_bytes(bytes(100_000_000))
    mapped = f"mapped = mmap.mmap(os.open('{file}', os.O_RDONLY), 0, prot=mmap.PROT_READ); sum(mapped[::4096])"
    code = f"import mmap, os, time; {mapped}; own = b'x' * 50_000_000; time.sleep(0.1)"
    run = measure([sys.executable, "-c", code])
    assert 50e6 < run.anonymous < 70e6
    assert run.peak > 150e6


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="the system does not tell what is in the page cache")
def test_a_cold_file_is_read_from_the_disk(tmp_path):
    from benchmarking import cold, warm

    def is_in_memory() -> bool:
        try:
            return os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT) == 1
        except BlockingIOError:
            return False

    file = tmp_path / "file"
    file.write_bytes(bytes(1_000_000))
    descriptor = os.open(file, os.O_RDONLY)
    try:
        found = []
        for step in (cold, warm):
            step(file)
            found.append(is_in_memory())
    except OSError:
        pytest.skip("the file system does not tell what is in the page cache")
    finally:
        os.close(descriptor)
    assert found == [False, True]


def test_the_time_lasts_until_everything_is_on_the_disk(monkeypatch, tmp_path):
    import benchmarking

    synced = []
    monkeypatch.setattr(benchmarking.os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    monkeypatch.setattr(benchmarking.time, "perf_counter", lambda: float(len(synced)))
    out = tmp_path / "out"
    command = ["sh", "-c", f"mkdir {out}; printf 1 > {out}/one; printf 22 > {out}/two"]
    runs = benchmarking.alternate({"some": command}, 2, lambda _: None, out)["some"]
    assert [run.seconds for run in runs] == [2, 2]
    assert sorted(synced) == [1, 1, 2, 2]
    assert not out.exists()


def test_tables_have_what_is_aimed_at_beside_each_figure():
    from create_comparison import CAT, COPY, table_of, table_of_readers, table_of_sizes

    runs = {
        COPY: measured(5),
        "reinit": measured(6.5),
        "resample --axis embedding": measured(5.5, 0.6),
        "resample --axis all": measured(25),
        "study reinit": measured(19, 5),
        "study resample": measured(60, 6),
        CAT: measured(2),
        "verify": measured(3.1),
        "compare": measured(6.9),
    }
    large = {"size": "650M", "bytes": 2.61e9, "tensors": 1000, "runs": runs}
    assert table_of(large)[1:] == [
        [COPY, "5.00", "1", "", "", "", ""],
        ["reinit", "6.50", "1.30 (1.3)", "19.00", "**2.92 (3)**", "0.10 (0.5)", "5.00"],
        ["resample --axis embedding", "5.50", "**1.10 (1)**", "60.00", "10.91 (8)", "**0.60 (0.5)**", "6.00"],
        ["resample --axis all", "25.00", "**5.00 (4)**", "60.00", "**2.40 (2.5)**", "0.10 (0.5)", "6.00"],
    ]
    readers = [[CAT, "2.00"], ["verify (1 cat + 1 s)", "**3.10 (3)**"], ["compare (3 cat + 1 s)", "6.90 (7)"]]
    assert table_of_readers(large)[1:] == readers
    small = {**large, "size": "8M", "bytes": 3e7, "runs": {COPY: measured(1), "reinit": measured(1.5)}}
    assert table_of(small)[2] == ["reinit", "**1.50 (1)**", "1.50", "", "", "0.10 (0.5)", ""]
    small["runs"]["study reinit"] = measured(1)
    assert table_of(small)[2][4] == "**0.67 (1)**"
    head, *rows = table_of_sizes([small, large])
    assert head == ["seconds", *small["runs"], *[name for name in runs if name not in small["runs"]], "anonymous, GB"]
    assert [row[0] for row in rows] == ["8M: 0.03 GB, 1,000 tensors", "650M: 2.61 GB, 1,000 tensors"]
    assert [row[-1] for row in rows] == ["0.10", "0.60"]


def test_the_figure_has_the_copy_and_the_machine(tmp_path):
    from create_comparison import CAT, COPY, READERS

    runs = {name: measured(1) for name in (COPY, "reinit", "study reinit", CAT, *READERS)}
    machine = {"processor": "Some CPU", "cores": 2, "instructions": ["avx2"], "versions": {"numpy": "2.0"}}
    sizes = [{"size": name, "bytes": size, "tensors": 9, "runs": runs} for name, size in (("8M", 3e7), ("35M", 1e8))]
    data, picture = tmp_path / "scale.json", tmp_path / "scale.svg"
    data.write_text(json.dumps({"machine": machine, "repeat": 3, "sizes": sizes}))
    done = run_script("benchmark.py", "plot", data, picture)
    assert done.returncode == 0, done.stderr
    drawn = picture.read_text()
    assert "<!-- Some CPU, 2 cores (avx2), numpy 2.0 -->" in drawn
    assert "<!-- cp + sync of the same file -->" in drawn
    assert "8M: 0.03 GB, 9 tensors" in done.stdout


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


def test_sizes_are_what_the_check_for_room_goes_by():
    from benchmarking import SIZES
    from synthetic import NETWORKS

    for size, sizes in NETWORKS.items():
        network = Network.of("fair_esm", "FairEsmForMaskedLM", **sizes)
        stored = sum(4 * math.prod(shape) for name, shape in network.shapes.items() if name not in network.tied)
        assert stored == pytest.approx(SIZES[size], rel=0.02), size
    assert list(SIZES) == sorted(NETWORKS, key=SIZES.__getitem__)


def test_a_synthetic_base_is_a_model(tmp_path):
    from synthetic import write_base

    write_base(hf_perturb.FairEsmConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2), tmp_path / "base")
    model = hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "base")
    assert model.config.digest == digest_of(model.state_dict())
    assert 0.04 < float(model.layers[0].fc1.weight.detach().std()) < 0.06


def test_a_full_disk_is_refused_before_anything_is_made(tmp_path):
    import benchmarking

    with pytest.raises(SystemExit, match="GB are needed; give another --work"):
        benchmarking.demand_room(tmp_path, 1e18)


def test_a_failure_names_the_command_and_what_it_said(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text("{}")
    done = run_script("benchmark.py", "create", "--base", tmp_path, "--work", tmp_path / "work", "--repeat", 1)
    assert done.returncode == 1
    assert "hf_perturb create" in done.stderr
    assert f"{tmp_path / 'model.safetensors'} is damaged" in done.stderr


@pytest.mark.parametrize("words", [["--help"], ["create", "-h"]])
def test_help_comes_before_anything_is_installed(words, tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "$@"\n')  # without any package
    python.chmod(0o755)
    command = [BENCHMARKS.parent / "scripts" / "benchmark", *words]
    done = subprocess.run(
        command, env={**os.environ, "PYTHON": str(python)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: benchmark ")
