"""Batches on several threads: the same results in the same order, and nothing is left behind whatever happens."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow")
from support.embedding import draw, read_all, write_carp, write_fasta
from support.models import small_model

import hf_perturb
from hf_perturb.embedding import run, threads
from hf_perturb.embedding.threads import side_by_side, workers_for


@pytest.fixture
def four():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def names():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("hf_perturb")]


def test_results_are_in_order_and_torch_s_threads_are_divided(four):
    seen = set()

    def do(job):
        time.sleep(0.02 * (job % 3 == 0))
        seen.add((threading.current_thread().name, torch.get_num_threads()))
        return -job

    assert list(side_by_side(do, iter(range(20)), 2)) == [(job, -job) for job in range(20)]
    assert {count for _, count in seen} == {2}
    assert len(seen) == 2
    assert (torch.get_num_threads(), names()) == (4, [])


def test_few_jobs_are_taken_ahead(four):
    taken = []
    results = side_by_side(lambda job: job, (taken.append(job) or job for job in range(99)), 2)
    for done in range(1, 20):
        next(results)
        assert len(taken) - done <= 2
    results.close()
    assert len(taken) < 25
    assert (torch.get_num_threads(), names()) == (4, [])


@pytest.mark.parametrize("where", ["job", "jobs", "reader"])
def test_nothing_goes_on_after_a_failure(four, where):
    done = []

    def do(job):
        time.sleep(0.01)
        if where == "job" and job == 5:
            raise KeyError("no luck")
        done.append(job)

    def jobs():
        for job in range(999):
            if where == "jobs" and job == 5:
                raise KeyError("no luck")
            yield job

    def read():
        results = side_by_side(do, jobs(), 3)
        try:
            for job, _ in results:
                if where == "reader" and job == 5:
                    raise KeyError("no luck")
        finally:
            results.close()

    with pytest.raises(KeyError, match="no luck"):
        read()
    count = len(done)
    assert count < 12
    assert (torch.get_num_threads(), names()) == (4, [])
    time.sleep(0.05)
    assert len(done) == count
    assert list(side_by_side(lambda job: job, [1], 2)) == [(1, 1)], "the next run has threads again"


def test_a_run_inside_another_has_no_threads_of_its_own(four):
    def do(job):
        return [threading.current_thread() is threading.main_thread(), torch.get_num_threads()]

    outer = side_by_side(do, range(3), 2)
    assert next(outer) == (0, [False, 2])
    assert list(side_by_side(do, [7], 2)) == [(7, [True, 2])]
    outer.close()
    assert torch.get_num_threads() == 4


def test_small_networks_of_ours_on_a_cpu_have_them(four, monkeypatch):
    from transformers import BertConfig, BertModel

    model = small_model("esm2")
    assert workers_for(model) == 4
    torch.set_num_threads(9)
    assert workers_for(model) == 4
    torch.set_num_threads(1)
    assert workers_for(model) == 1
    torch.set_num_threads(4)
    with torch.autocast("cpu", torch.bfloat16):  # other threads would not know of it
        assert workers_for(model) == 1
    # code that is none of ours may keep something between calls
    assert workers_for(BertModel(BertConfig(hidden_size=12, num_hidden_layers=1))) == 1
    assert workers_for(small_model("esm2").to("meta")) == 1
    monkeypatch.setattr(threads, "_SMALL", 1000)
    assert workers_for(model) == 1


@pytest.mark.parametrize("name", ["carp", "esm2"])
def test_embeddings_do_not_depend_on_them(tmp_path, four, monkeypatch, name):
    """Each torch of theirs has one thread here, as one by one."""
    write_carp(tmp_path / "base") if name == "carp" else small_model(name).save_pretrained(tmp_path / "base")
    sequences = [*draw([1 + 37 * i % 250 for i in range(120)]), "", *draw([100] * 20)]
    fasta = write_fasta(tmp_path / "a.fasta", sequences)
    options = {"layers": "all", "pool": ["mean", "max"], "per_residue": True, "tokens": 700}
    seen, counts = set(), []
    embed_batch = run.embed_batch

    def noted(*arguments):
        seen.add(threading.current_thread().name)
        return embed_batch(*arguments)

    monkeypatch.setattr(run, "embed_batch", noted)
    found = []
    for out, count in (("several", 4), ("one", 1)):
        torch.set_num_threads(count)
        seen.clear()
        hf_perturb.embed(tmp_path / "base", fasta, tmp_path / out, **options, progress=lambda *c: counts.append(c))
        assert (len(seen) > 1, torch.get_num_threads()) == (count > 1, count)
        found.append(read_all(tmp_path / out))
    for column, (ids, vectors) in found[0].items():
        assert found[1][column][0] == ids
        assert all(np.array_equal(*pair, equal_nan=True) for pair in zip(vectors, found[1][column][1], strict=True))
    assert counts[: len(counts) // 2] == counts[len(counts) // 2 :] == sorted(counts[len(counts) // 2 :])


def test_a_model_at_hand_is_run_by_its_own_thread(tmp_path, four):
    """Somebody may look inside it."""
    model, seen = small_model("carp"), set()
    model.model.embedder.layers[0].register_forward_hook(lambda *_: seen.add(threading.current_thread().name))
    hf_perturb.embed(model, write_fasta(tmp_path / "a.fasta", draw([50] * 20)), tmp_path / "out", tokens=100)
    assert seen == {threading.current_thread().name}
