"""An interrupted run is continued by the same command, and by no other; what comes of it is as if nothing happened."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from contextlib import suppress

import pytest

pytest.importorskip("pyarrow")

from support.embedding import assert_same, command, draw, environment, read_all, write_carp, write_fasta

import hf_perturb
from hf_perturb.embedding import survey
from hf_perturb.embedding.store import Store, store_lock
from hf_perturb.errors import EmbeddingsError, FastaError, FolderLockedError

# a command that stops when it has written so many shards
STOPPING = """
import os, signal, sys
from hf_perturb.embedding.store import Store
from hf_perturb.cli import script

count, number, write = int(sys.argv.pop(1)), int(sys.argv.pop(1)), Store.write
def counted(*arguments):
    global count
    write(*arguments)
    count -= 1
    if not count:
        os.kill(os.getpid(), number)
        signal.pause()
Store.write = counted
script()
"""
LENGTHS = [1 + 37 * i % 250 for i in range(600)]  # 75,000 residues, 4 shards


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    write_carp(folder / "carp")
    sequences = draw(LENGTHS)
    sequences[7] = sequences[500] = ""
    write_fasta(folder / "a.fasta", sequences)
    hf_perturb.embed(folder / "carp", folder / "a.fasta", folder / "whole", layers="all", per_residue=True, pool="mean")
    return folder


WORDS = ("--layers", "all", "--per-residue", "--pool", "mean", "--json")


def shards(out):
    return {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*.parquet")}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_stopped_is_continued(places, tmp_path, number):
    out, call = tmp_path / "out", [sys.executable, "-c", STOPPING, "2", str(int(number)), "embed"]
    call += [*map(str, (places / "carp", places / "a.fasta", out)), *WORDS]
    options = {"capture_output": True, "text": True, "env": environment(), "start_new_session": True}
    done = subprocess.run(call, **options, timeout=120, check=False)
    assert done.returncode == (130 if number == signal.SIGINT else -number), done.stderr
    assert "Traceback" not in done.stderr
    assert ("every shard that is there is whole: the same command continues" in done.stderr) == (
        number == signal.SIGINT
    )
    before = shards(out)
    plan = json.loads((out / "_manifest.json").read_text())
    assert (len(before), plan["complete"]) == (2, False)
    assert (".hf_perturb-lock" in os.listdir(out)) == (number == signal.SIGKILL)
    seen = []
    options = {"layers": "all", "per_residue": True, "pool": "mean", "progress": lambda *counts: seen.append(counts)}
    again = hf_perturb.embed(places / "carp", places / "a.fasta", out, **options)
    left = sum(shard["residues"] for shard in plan["shards"] if shard["file"] not in before)
    assert 0 < left < again.residues
    assert again.computed == left
    assert (seen[0], seen[-1]) == ((0, left), (left, left))
    after = shards(out)
    assert {name: after[name] for name in before} == before, "they were written again"
    assert sorted(os.listdir(out)) == ["_manifest.json", *sorted(after)]
    assert_same(out, places / "whole")
    assert hf_perturb.embed(places / "carp", places / "a.fasta", out, **options).computed == 0
    assert shards(out) == after


@pytest.fixture
def begun(places, tmp_path, monkeypatch):
    """A folder with one shard of four, and what it was made of."""
    write, out = Store.write, tmp_path / "out"

    def once(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    (tmp_path / "a.fasta").write_bytes((places / "a.fasta").read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", once)
        with pytest.raises(KeyboardInterrupt):
            hf_perturb.embed(places / "carp", tmp_path / "a.fasta", out)
    assert len(shards(out)) == 1
    return tmp_path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model", "model.weights: "),
        ("perturbation", "model.perturbation.*: .*reinit"),
        ("fasta", "fasta: "),
        ("layers", r"layers: \[2\] in the folder, \[0,1,2\] asked for"),
        ("pool", r"pool: \[\"mean\"\] in the folder, \[\"max\"\] asked for"),
        ("dtype", 'dtype: "float32" in the folder, "bfloat16" asked for'),
        ("per_residue", "per_residue: false in the folder, true asked for"),
    ],
)
def test_something_else_is_not_continued_with(places, begun, change, said):
    model, fasta, out = places / "carp", begun / "a.fasta", begun / "out"
    options = {"layers": {"layers": "all"}, "pool": {"pool": "max"}, "dtype": {"dtype": "bfloat16"}}
    options |= {"per_residue": {"per_residue": True}, "perturbation": {"perturbation": "reinit"}}
    if change == "model":
        model = write_carp(begun / "another", seed=1)
    if change == "fasta":
        fasta.write_bytes(fasta.read_bytes().replace(b"A", b"C", 1))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(
        EmbeddingsError, match=f"holds other embeddings: .*{said}.*; choose another folder, or .*--force"
    ):
        hf_perturb.embed(model, fasta, out, **options.get(change, {}))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    done = hf_perturb.embed(model, fasta, out, force=True, **options.get(change, {}))
    assert done.computed == done.residues


def test_what_does_not_decide_may_change(places, begun):
    """How the FASTA is packed and laid out, where it is, batches, and how the model is called."""
    import gzip

    text = (begun / "a.fasta").read_text().replace("\n", "\r\n").lower()
    (begun / "b.fa").write_bytes(gzip.compress(text.encode()))
    (begun / "moved").symlink_to(places / "carp")
    done = hf_perturb.embed(begun / "moved", begun / "b.fa", begun / "out", tokens=500)
    assert 0 < done.computed < done.residues
    hf_perturb.embed(places / "carp", places / "a.fasta", begun / "whole")
    assert_same(begun / "out", begun / "whole")


def test_standard_input_is_continued_too(places, begun, monkeypatch):
    with (begun / "a.fasta").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        done = hf_perturb.embed(places / "carp", "-", begun / "out")
    assert 0 < done.computed < done.residues
    with open(os.devnull) as file:
        monkeypatch.setattr(sys, "stdin", file)
        with pytest.raises(FastaError, match="has no sequences"):
            hf_perturb.embed(places / "carp", "-", begun / "new")


def test_a_terminal_is_no_fasta(places, tmp_path):
    main_end, end = os.openpty()
    call = [sys.executable, "-m", "hf_perturb", "embed", str(places / "carp"), "-", str(tmp_path / "out")]
    done = subprocess.run(call, stdin=end, capture_output=True, text=True, env=environment(), timeout=120, check=False)
    os.close(end), os.close(main_end)
    assert done.returncode == 1
    assert "it is a terminal or closed; pipe a FASTA in, or name a file" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("instead", ["", "C"])
def test_a_fasta_that_changes_meanwhile_is_told(places, begun, monkeypatch, instead):
    read = survey.read_records

    def changed(path, *findings):
        yield from read(path, *findings)
        path.write_text(path.read_text().replace("A", instead, 1))

    monkeypatch.setattr(survey, "read_records", changed)
    with pytest.raises(FastaError, match="changed while it was read"):
        hf_perturb.embed(places / "carp", begun / "a.fasta", begun / "new")


def test_two_runs_do_not_share_a_folder(places, begun):
    with store_lock(begun / "out"), pytest.raises(FolderLockedError, match="another process is writing it"):
        hf_perturb.embed(places / "carp", begun / "a.fasta", begun / "out")


def test_a_full_disk_is_told_and_continued_after(places, tmp_path):
    limit = "import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
    call = [sys.executable, "-c", f"{limit}from hf_perturb.cli import script; script()", "embed"]
    call += [*map(str, (places / "carp", places / "a.fasta", tmp_path / "out")), *WORDS]
    done = subprocess.run(call, capture_output=True, text=True, env=environment(), timeout=120, check=False)
    assert done.returncode == 1
    assert "the disk is full" in done.stderr
    assert done.stderr.count("\n") == 1
    options = {"layers": "all", "per_residue": True, "pool": "mean"}
    again = hf_perturb.embed(places / "carp", places / "a.fasta", tmp_path / "out", **options)
    assert again.computed > 0
    assert_same(tmp_path / "out", places / "whole")


def test_the_command_is_quiet_where_nobody_looks(places, tmp_path):
    """No bar of anybody's on a stream that is no terminal, and one line as the result."""
    done = command(places / "carp", places / "a.fasta", tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert "note: 2 records had no residues" in done.stderr
    assert done.stdout.count("\n") == 1
    assert len(read_all(tmp_path / "out")["mean_2"][0]) == len(LENGTHS)


def test_rate_and_time_left_are_shown_on_a_terminal(places, tmp_path):
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))  # one without columns shows nothing
    call = [sys.executable, "-m", "hf_perturb", "embed", *map(str, (places / "carp", places / "a.fasta", tmp_path))]
    with subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=theirs, env=environment()) as process:
        os.close(theirs)
        said = b""
        with suppress(OSError):  # the other end is closed
            while part := os.read(ours, 1000):
                said += part
    os.close(ours)
    assert process.returncode == 0
    assert re.search(rb"\d% *\|.*\d+:\d+<\d+:\d+, .*res/s", said), said
