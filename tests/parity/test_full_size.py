"""Every published model, at full size but without memory: all tensors as in the original class, in its order."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import pytest
import torch

import hf_perturb
from hf_perturb.checkpoints.catalog import CATALOG, Entry
from parity.originals import CARPS, FAIR_ESM, Pair

ESM1, ESM1B, ESM1V, ESM2 = (FAIR_ESM[name] for name in ("esm1", "esm1b", "esm1v", "esm2"))
CARP, CARP_WIDE = CARPS["carp"], CARPS["carp_wide"]

# what fair-esm and sequence-models build, written down a second time: the catalogue is compared with it
ORIGINALS = {
    "esm1_t6_43M_UR50S": partial(ESM1, layers=6, embed_dim=768, attention_heads=12),
    "esm1_t12_85M_UR50S": partial(ESM1, layers=12, embed_dim=768, attention_heads=12),
    "esm1_t34_670M_UR50S": partial(ESM1, layers=34, embed_dim=1280, attention_heads=20),
    "esm1_t34_670M_UR50D": partial(ESM1, layers=34, embed_dim=1280, attention_heads=20),
    "esm1_t34_670M_UR100": partial(ESM1, layers=34, embed_dim=1280, attention_heads=20),
    "esm1b_t33_650M_UR50S": partial(ESM1B, layers=33, embed_dim=1280, attention_heads=20),
    "esm1v_t33_650M_UR90S_1": partial(ESM1V, layers=33, embed_dim=1280, attention_heads=20),
    "esm1v_t33_650M_UR90S_2": partial(ESM1V, layers=33, embed_dim=1280, attention_heads=20),
    "esm1v_t33_650M_UR90S_3": partial(ESM1V, layers=33, embed_dim=1280, attention_heads=20),
    "esm1v_t33_650M_UR90S_4": partial(ESM1V, layers=33, embed_dim=1280, attention_heads=20),
    "esm1v_t33_650M_UR90S_5": partial(ESM1V, layers=33, embed_dim=1280, attention_heads=20),
    "esm2_t6_8M_UR50D": partial(ESM2, layers=6, embed_dim=320, attention_heads=20),
    "esm2_t12_35M_UR50D": partial(ESM2, layers=12, embed_dim=480, attention_heads=20),
    "esm2_t30_150M_UR50D": partial(ESM2, layers=30, embed_dim=640, attention_heads=20),
    "esm2_t33_650M_UR50D": partial(ESM2, layers=33, embed_dim=1280, attention_heads=20),
    "esm2_t36_3B_UR50D": partial(ESM2, layers=36, embed_dim=2560, attention_heads=40),
    "esm2_t48_15B_UR50D": partial(ESM2, layers=48, embed_dim=5120, attention_heads=40),
    "carp_600k": partial(CARP, n_layers=16, d_model=128),
    "carp_38M": partial(CARP, n_layers=16, d_model=1024),
    "carp_76M": partial(CARP, n_layers=32, d_model=1024),
    "carp_640M": partial(CARP_WIDE, n_layers=56, d_model=1280),
}
UNITS = {"k": 10**3, "M": 10**6, "B": 10**9}


@dataclass(frozen=True)
class Published:
    """An entry of the catalogue, its network on the meta device, and the same network of the original package."""

    entry: Entry
    pair: Pair
    ours: torch.nn.Module


@pytest.fixture(scope="module", params=CATALOG)
def published(request) -> Published:
    entry = CATALOG[request.param]
    return Published(entry, pair_on_meta(entry.name), on_meta(entry.config()))


def pair_on_meta(name: str) -> Pair:
    with torch.device("meta"):
        return ORIGINALS[name]()


def on_meta(config) -> torch.nn.Module:
    is_carp = isinstance(config, hf_perturb.CarpConfig)
    with torch.device("meta"):
        return (hf_perturb.CarpForMaskedLM if is_carp else hf_perturb.FairEsmForMaskedLM)(config)


def described(named: Iterable[tuple[str, torch.Tensor]]) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    return [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in named]


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def bytes_in_memory(model: torch.nn.Module) -> int:
    every = [*model.parameters(), *model.buffers()]
    return sum(tensor.nbytes for tensor in every if tensor.device.type != "meta")


def test_every_published_model_is_compared():
    assert list(CATALOG) == list(ORIGINALS)


def test_every_tensor_is_that_of_the_original(published):
    original, ours = published.pair.original, published.ours
    assert described(ours.state_dict().items()) == described(original.state_dict().items())
    # state_dict holds buffers too, and a tied tensor twice
    assert described(ours.named_parameters()) == described(original.named_parameters())
    assert bytes_in_memory(original) + bytes_in_memory(ours) < 2**20


def test_the_configuration_is_that_of_the_original(published):
    assert published.entry.config().to_dict() == published.pair.config.to_dict()


def test_the_number_of_parameters_is_the_stated_one(published):
    assert count(published.pair.original) == count(published.ours) == published.entry.parameters


def test_the_name_states_the_size(published):
    entry = published.entry
    number, unit = re.search(r"_(\d+)([kMB])(?:_|$)", entry.name).groups()
    assert entry.parameters == pytest.approx(int(number) * UNITS[unit], rel=0.07)
    if layers := re.search(r"_t(\d+)_", entry.name):
        assert entry.config().num_hidden_layers == int(layers.group(1))


@pytest.mark.parametrize(
    ("config", "name"),
    [(hf_perturb.FairEsmConfig, "esm1b_t33_650M_UR50S"), (hf_perturb.CarpConfig, "carp_640M")],
)
def test_defaults_are_the_largest_models_of_the_document(config, name):
    pair = pair_on_meta(name)
    assert config().to_dict() == pair.config.to_dict() == CATALOG[name].config().to_dict()
    assert described(on_meta(config()).state_dict().items()) == described(pair.original.state_dict().items())


@pytest.mark.parametrize(
    ("name", "documented", "parameters"),
    [
        ("esm1_t34_670M_UR50S", {"intermediate_size": 3072}, 491e6),
        ("carp_640M", {"num_hidden_layers": 32}, 367e6),
    ],
)
def test_the_sizes_of_the_document_give_another_number_of_parameters(name, documented, parameters):
    assert count(on_meta(CATALOG[name].config(**documented))) == pytest.approx(parameters, rel=0.002)
    assert re.findall(r"\d+M", CATALOG[name].errata)[0] == f"{parameters / 1e6:.0f}M"
