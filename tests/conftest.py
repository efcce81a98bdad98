"""Small networks that every test may use."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

import hf_perturb

ESM_SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
CARP_SIZES = {"hidden_size": 32, "num_hidden_layers": 9, "slim": True}

CONFIGS = {
    "esm1": lambda **kw: hf_perturb.FairEsmConfig(model_version="ESM-1", **(ESM_SIZES | kw)),
    "esm1b": lambda **kw: hf_perturb.FairEsmConfig(model_version="ESM-1b", **(ESM_SIZES | kw)),
    "esm2": lambda **kw: hf_perturb.FairEsmConfig(model_version="ESM-2", **(ESM_SIZES | kw)),
    "carp": lambda **kw: hf_perturb.CarpConfig(**(CARP_SIZES | kw)),
}
TIED = ("esm1b", "esm2")  # the language head is the embedding
HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")


def model_class(network: str, head: str = "ForMaskedLM"):
    """Return the class of a head: `model_class("esm1", "Model")` is `FairEsmModel`."""
    return getattr(hf_perturb, ("Carp" if network == "carp" else "FairEsm") + head)


def small_model(network: str, head: str = "ForMaskedLM", seed: int = 0, **config):
    """Return a small network whose every weight is a draw of its own, as if trained."""
    torch.manual_seed(seed)
    model = model_class(network, head)(CONFIGS[network](**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


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
