"""What holds for every test, and the networks and heads that many run on."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from support.models import CONFIGS, HEADS


@pytest.fixture(params=CONFIGS)
def network(request) -> str:
    return request.param


@pytest.fixture(params=HEADS)
def head(request) -> str:
    return request.param


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Run on one thread: with tensors this small, more of them only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
