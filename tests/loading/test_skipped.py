"""Whoever skips initialisation skips no draw: memory that nobody filled would look like a control, with a digest."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, nullcontext
from unittest.mock import patch

import pytest
import torch
from accelerate import init_empty_weights
from support.models import small_model
from support.spec_table import copied, differing
from torch.nn import init
from transformers.initialization import no_init_weights


def untouched(tensor: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return tensor


@contextmanager
def replaced(owner: object, *names: str):
    """Replace functions by ones that return their tensor."""
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(patch.object(owner, name, untouched))
        yield


_FUNCTIONS = ("uniform_", "normal_", "constant_", "ones_", "zeros_", "xavier_uniform_", "xavier_normal_")
IDIOMS = {
    "functions": lambda: replaced(init, *_FUNCTIONS, "kaiming_uniform_", "kaiming_normal_", "trunc_normal_"),
    "methods": lambda: replaced(torch.Tensor, "uniform_", "normal_", "random_", "fill_", "zero_"),
    "modules": lambda: replaced(torch.nn.Linear, "reset_parameters"),
    "transformers": no_init_weights,
    "accelerate": lambda: init_empty_weights(include_buffers=True),
    "meta": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("idiom", IDIOMS)
@pytest.mark.parametrize("method", ["reinit", "resample", "gaussian"])
def test_whoever_skips_initialisation_skips_no_draw(network, method, idiom):
    expected, found = small_model(network), small_model(network)
    for model, context in ((expected, nullcontext), (found, IDIOMS[idiom])):
        with context():
            model.perturb(method)
    assert not differing(copied(expected), copied(found))
