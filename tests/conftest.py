"""What holds for every test, and the networks and heads that many run on."""

from __future__ import annotations

import os
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell has it ignored in what runs in the background, and so would every command that the tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from support.models import CONFIGS, HEADS, UNSTUDIED

from hf_perturb import Perturbation


@pytest.fixture(params=CONFIGS)
def network(request) -> str:
    return request.param


@pytest.fixture(params=HEADS)
def head(request) -> str:
    return request.param


def pytest_collection_modifyitems(items):
    """Leave out what there cannot be: controls by the study's rules of networks that the study did not have."""

    def by_study(key: str, value: object) -> bool:
        if isinstance(value, Perturbation):
            return value.rules == "published"
        if isinstance(value, dict):
            return value.get("rules") == "published"
        return isinstance(value, str) and (value.endswith("-published") or (key, value) == ("rules", "published"))

    def possible(item) -> bool:
        given = item.callspec.params if hasattr(item, "callspec") else {}
        unstudied = any(value in UNSTUDIED for value in given.values() if isinstance(value, str))
        return not (unstudied and any(by_study(*each) for each in given.items()))

    items[:] = filter(possible, items)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Run on one thread: with tensors this small, more of them only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
