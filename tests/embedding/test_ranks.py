"""Several processes share a run: two with gloo on the CPU, as launchers start them or by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st

pytest.importorskip("pyarrow")
pytest.importorskip("accelerate")

from support.embedding import assert_same, draw, environment, free_port, write_carp, write_fasta

import hf_perturb
from hf_perturb.cli import main
from hf_perturb.embedding import ranks
from hf_perturb.embedding.manifest import Shard
from hf_perturb.embedding.ranks import Ranks, SaidElsewhereError, launched, split
from hf_perturb.embedding.store import Store
from hf_perturb.errors import EmbeddingsError

# the command; it notes which rank wrote what, and one of them does something else when it has written a shard
NOTING = """
import os, signal, sys, time
from hf_perturb.embedding.store import Store
from hf_perturb.errors import EmbeddingsError
from hf_perturb.cli import script

notes, after, write = sys.argv.pop(1), sys.argv.pop(1), Store.write
def noted(store, shard, columns):
    write(store, shard, columns)
    with open(notes, "a") as file:
        file.write(f"{os.environ['RANK']} {shard.file} {shard.residues}\\n")
    if os.environ["RANK"] == "1":
        exec(after)
Store.write = noted
script()
"""
# says whether a group's threads are there; registered first, it is called last
LEAVING = """
import atexit
from pathlib import Path

@atexit.register
def tell():
    print("pt_gloo_runloop" in {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")})

from hf_perturb.embedding.ranks import find_ranks
find_ranks(True).gather(None)
tell()
"""
LENGTHS = [1 + 37 * i % 250 for i in range(900)]  # 112,000 residues, 7 shards
SECONDS = 150


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    write_carp(folder / "carp")
    write_fasta(folder / "a.fasta", draw(LENGTHS))
    hf_perturb.embed(folder / "carp", folder / "a.fasta", folder / "whole", layers="all")
    (folder / "note.py").write_text(NOTING)
    return folder


def words(places: Path, out: Path, after: str = "pass") -> list[str]:
    noting = [str(places / "note.py"), str(out.with_suffix(".notes")), after]
    return [*noting, "embed", *map(str, (places / "carp", places / "a.fasta", out)), "--layers", "all"]


def start(*call: str) -> list[subprocess.Popen[str]]:
    """Start two processes by hand, so that none is ended because the other is."""
    shared = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    environments = [environment(RANK=rank, LOCAL_RANK=rank, **shared) for rank in range(2)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen([sys.executable, *call], env=each, **pipes) for each in environments]


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Wait for the end of all, which has to come; return exit code, stdout and stderr of each."""
    until, found = time.monotonic() + SECONDS, []
    try:
        for process in processes:
            out, err = process.communicate(timeout=max(0, until - time.monotonic()))
            found.append((process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return found


def notes(out: Path) -> dict[str, dict[str, int]]:
    """Return rank -> file -> residues."""
    found: dict[str, dict[str, int]] = {"0": {}, "1": {}}
    for line in out.with_suffix(".notes").read_text().splitlines():
        rank, file, residues = line.split()
        found[rank][file] = int(residues)
    return found


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.glob("shard-*.parquet"))


def test_both_write_shards_of_one_folder(places, tmp_path):
    out, port = tmp_path / "out", str(free_port())
    call = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    call += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port]
    done = subprocess.run(
        [*call, *words(places, out)], capture_output=True, text=True, env=environment(), timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    wrote = notes(out)
    assert wrote["0"].keys() | wrote["1"].keys() == set(names(out))
    assert not wrote["0"].keys() & wrote["1"].keys()
    loads = [sum(each.values()) for each in wrote.values()]
    assert sum(loads) == sum(LENGTHS)
    assert abs(loads[0] - loads[1]) <= max(residues for each in wrote.values() for residues in each.values())
    assert sorted(os.listdir(out)) == ["_manifest.json", *names(out)]
    assert json.loads((out / "_manifest.json").read_text())["complete"]
    assert done.stdout.count("\n") == 1, "one has the word"
    assert f"{sum(LENGTHS):,} of them computed now" in done.stdout
    assert_same(out, places / "whole")


def test_what_one_began_two_finish(places, tmp_path, monkeypatch):
    out, write, left = tmp_path / "out", Store.write, 2

    def some(*arguments):
        nonlocal left
        write(*arguments)
        left -= 1
        if not left:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", some)
        with pytest.raises(KeyboardInterrupt):
            hf_perturb.embed(places / "carp", places / "a.fasta", out, layers="all")
    begun = names(out)
    assert len(begun) == 2
    (code, said, err), (other, silent, quiet) = ends(start(*words(places, out)))
    assert (code, other, silent, quiet) == (0, 0, "", ""), err
    wrote = notes(out)
    assert min(map(len, wrote.values())) > 0
    assert not set(begun) & {*wrote["0"], *wrote["1"]}
    assert f"{sum(sum(each.values()) for each in wrote.values()):,} of them computed now" in said
    assert_same(out, places / "whole")


def test_who_is_killed_leaves_the_rest_to_another_run(places, tmp_path, capsys):
    """The other one does its share, as it would on another node, and then ends."""
    out = tmp_path / "out"
    (code, _, said), (other, _, _) = ends(start(*words(places, out, "os.kill(os.getpid(), signal.SIGKILL)")))
    assert (code, other) == (1, -signal.SIGKILL)
    assert "another process failed or was killed before its work was done; every shard that is there is whole" in said
    assert said.count("\n") == 1
    wrote = notes(out)
    assert len(wrote["1"]) == 1
    assert len(wrote["0"]) >= 3
    assert main(["embed", *map(str, (places / "carp", places / "a.fasta", out)), "--layers", "all", "--json"]) == 0
    computed = json.loads(capsys.readouterr().out)["computed"]
    assert computed == sum(LENGTHS) - sum(sum(each.values()) for each in wrote.values()) > 0
    assert_same(out, places / "whole")


def test_who_fails_says_why_and_the_others_end(places, tmp_path):
    (code, _, said), (other, _, why) = ends(start(*words(places, tmp_path / "out", "raise EmbeddingsError('no luck')")))
    assert (code, other) == (1, 1)
    assert why == "hf-perturb embed: no luck\n"
    assert said.startswith("hf-perturb embed: another process failed or was killed")
    assert said.count("\n") == 1


@pytest.mark.parametrize("what", ["folder", "layers", "stdin"])
def test_what_is_wrong_is_said_once(places, tmp_path, what):
    call = ["-m", "hf_perturb", "embed", *map(str, (places / "carp", places / "a.fasta", places))]
    if what == "layers":
        call += ["--layers", "9"]
    if what == "stdin":
        call[4] = "-"
    (code, out, said), (other, silent, quiet) = ends(start(*call))
    assert (code, out, other, silent, quiet) == (1, "", 1, "", "")
    message = {"folder": "nothing in it is replaced", "layers": "layers: got '9'", "stdin": "got '-' on several"}
    assert message[what] in said
    assert said.count("\n") == 1


def test_whoever_waits_hears_a_signal(places, tmp_path):
    out, until = tmp_path / "out", time.monotonic() + SECONDS
    processes = start(*words(places, out, "time.sleep(60)"))
    try:
        while time.monotonic() < until and len(names(out)) < 4:  # three of the one, and one of the other
            time.sleep(0.1)
        time.sleep(1)
        assert [process.poll() for process in processes] == [None, None]
        assert not json.loads((out / "_manifest.json").read_text())["complete"]
        processes[0].terminate()
        assert processes[0].wait(20) == 143, "whether or not the other one ends"
        assert processes[1].poll() is None
    finally:
        for process in processes:
            process.terminate()
    begun = time.monotonic()
    assert [code for code, _, _ in ends(processes)] == [143, 143]
    assert time.monotonic() - begun < 20
    assert ".hf_perturb-lock" not in os.listdir(out)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the names of threads are in /proc")
def test_no_thread_of_a_group_outlives_python():
    """One that came late to freeing a tensor would abort a process whose work is done."""
    assert ends(start("-c", LEAVING)) == [(0, "True\nFalse\n", "")] * 2


# without processes


class Two(Ranks):
    """One of two, whose other one failed or not."""

    def __init__(self, rank: int, other: bool):
        super().__init__(rank, 2)
        self.other = other

    def gather(self, value):
        return [value, (self.other, None)] if self.rank == 0 else [(self.other, 7), value]


def fail():
    raise EmbeddingsError("no luck")


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_that_failed_has_the_word(rank):
    assert Two(rank, other=False).together(lambda: 3) == 3
    with pytest.raises(SaidElsewhereError):
        Two(rank, other=True).together(lambda: 3)
    with pytest.raises(EmbeddingsError, match="no luck" if rank == 0 else "process 0 failed"):
        Two(rank, other=True).together(fail)
    with pytest.raises(EmbeddingsError, match="no luck"):
        Two(rank, other=False).together(fail)
    assert Two(rank, other=False).together(lambda: 7, first_only=True) == 7


def test_one_process_is_alone():
    assert Ranks().together(lambda: 3, first_only=True) == 3
    with pytest.raises(EmbeddingsError, match="no luck"):
        Ranks().together(fail)


@given(st.lists(st.integers(0, 1000), max_size=60), st.integers(1, 8))
def test_work_is_divided_by_residues(residues, size):
    work = [Shard(i, i, 1, n) for i, n in enumerate(residues)]
    parts = split(work, size)
    assert len(parts) == size
    assert sorted((shard for part in parts for shard in part), key=lambda shard: shard.number) == work
    assert all(part == sorted(part, key=lambda shard: shard.number) for part in parts)
    loads = [sum(shard.residues for shard in part) for part in parts]
    for part, load in zip(parts, loads, strict=True):
        # whoever was given the smallest piece that it has was not ahead of anybody
        assert load - min((shard.residues for shard in part), default=0) <= min(loads)


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, (0, 0, 1)),
        ({"RANK": "3"}, (0, 0, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, (3, 3, 4)),
        ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, (3, 1, 4)),
        ({"RANK": "", "WORLD_SIZE": ""}, (0, 0, 1)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, (1, 1, 2)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "WORLD_SIZE": "1"}, (1, 1, 2)),
    ],
)
def test_launchers_say_which_process_this_is(monkeypatch, variables, found):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "PMI_RANK", "PMI_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launched() == found


def test_every_process_of_a_machine_has_a_device(monkeypatch):
    chosen = []
    for name, value in (("is_available", True), ("current_accelerator", torch.device("cuda")), ("device_count", 2)):
        monkeypatch.setattr(torch.accelerator, name, lambda value=value: value)
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    assert [ranks._own_device(local) for local in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert chosen == [0, 1, 0]


def test_processes_that_do_not_find_each_other_are_told(monkeypatch):
    monkeypatch.setattr(ranks, "launched", lambda: (1, 1, 2))
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(EmbeddingsError, match=r"2 processes were started, and process 1 cannot find .*MASTER_ADDR"):
        ranks.find_ranks.__wrapped__(True)


def test_only_the_first_says_what_usage_is(monkeypatch, capsys):
    for rank, said in ((0, True), (1, False)):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(SystemExit) as caught:
            main(["embed", "demo"])
        assert caught.value.code == 2
        assert ("usage" in capsys.readouterr().err) == said
