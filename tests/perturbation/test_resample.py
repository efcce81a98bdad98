"""Resample: the entries of every tensor stay within their axis, and nothing but their order changes."""

from __future__ import annotations

import pytest
import torch
from support.models import small_model
from support.spec_table import DEFAULT_AXIS, copied, differing, rule, shapes_of

AXES = ("embedding", "rows", "all")


def distinct_model(network: str):
    """Return a network whose every tensor holds 0, 1, 2 ...: where an entry came from can be read off it."""
    model = small_model(network)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape))
    return model


def origins(network: str, **perturbation) -> dict[str, torch.Tensor]:
    """Return, for every tensor that resample touches, the flat place that each entry came from."""
    model = distinct_model(network).perturb({"method": "resample", **perturbation})
    family = model.config.model_type
    return {name: t.long() for name, t in model.state_dict().items() if rule(family, name) is not None}


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("seed", [0, 42])
def test_entries_stay_within_their_axis(network, axis, seed):
    moved = origins(network, axis=axis, seed=seed)
    assert len(moved) > 50
    for name, places in moved.items():
        count, length = places.numel(), places.shape[-1]
        identity = torch.arange(count).view(places.shape)
        assert torch.equal(places.flatten().sort().values, identity.flatten()), name
        rows, columns = places.view(-1, length) // length, places.view(-1, length) % length
        own_row = torch.arange(count // length).unsqueeze(1)
        # the last dimension of a pointwise convolution is one tap wide: nothing can move along it
        assert torch.equal(places, identity) == (count == 1 or (axis != "all" and length == 1)), name
        if axis == "all":
            assert (rows != own_row).any() == (count > length), name
            continue
        assert (rows == own_row).all(), name
        if axis == "embedding":
            assert (columns == columns[0]).all(), name
        elif len(rows) > 1 and length > 1:
            assert (columns != columns[0]).any(), name


@pytest.mark.parametrize("axis", AXES)
def test_every_tensor_has_a_permutation_of_its_own(network, axis):
    """Two tensors of one shape are not shuffled alike, or a control would keep what connects them."""
    seen: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for places in origins(network, axis=axis).values():
        if places.shape[-1] > 10:
            assert not any(torch.equal(places, other) for other in seen.get(places.shape, []))
            seen.setdefault(places.shape, []).append(places)
    assert max(map(len, seen.values())) > 5


@pytest.mark.parametrize("axis", [None, *AXES])
def test_only_what_the_contract_names_changes(network, head, axis):
    model = small_model(network, head)
    before, shapes, family = copied(model), shapes_of(model), model.config.model_type
    model.perturb({"method": "resample", "axis": axis})
    after = copied(model)
    fixed = (axis or DEFAULT_AXIS[family]) != "all"
    movable = {
        name
        for name, shape in shapes.items()
        if rule(family, name) is not None and before[name].numel() > 1 and not (fixed and shape[-1] == 1)
    }
    assert differing(before, after) == movable
    for name in movable:
        assert torch.equal(before[name].flatten().sort().values, after[name].flatten().sort().values), name


def test_the_axis_that_the_document_names(network):
    model = small_model(network)
    default = copied(model.perturb("resample"))
    axis = DEFAULT_AXIS[model.config.model_type]
    for other in AXES:
        spelled = copied(small_model(network).perturb({"method": "resample", "axis": other}))
        assert bool(differing(default, spelled)) == (other != axis)


def test_the_document_s_reading_of_the_embedding_dimension():
    """The last dimension: of a matrix the inputs, of `bias_k` the only one that is longer than 1."""
    moved = origins("esm1", axis="embedding")
    assert moved["layers.0.fc1.weight"].shape == (64, 32)
    assert sorted(moved["layers.0.fc1.weight"][0].tolist()) == list(range(32))
    bias = moved["layers.0.self_attn.bias_k"]
    assert bias.shape == (1, 1, 32)
    assert bias.flatten().tolist() != list(range(32))


def test_structure_does_not_survive(network):
    """What the control is for: where a weight was says nothing of where it is."""
    model = small_model(network)
    before = copied(model)
    after = copied(model.perturb({"method": "resample", "axis": "all"}))
    large = [n for n, t in before.items() if rule(model.config.model_type, n) is not None and t.numel() >= 512]
    assert len(large) > 10
    for name in large:
        old, new = before[name].double().flatten(), after[name].double().flatten()
        assert torch.corrcoef(torch.stack([old, new]))[0, 1].abs() < 5 / old.numel() ** 0.5, name


def test_a_shuffled_head_holds_the_entries_of_the_embedding():
    model = small_model("esm1b")
    model.perturb({"method": "resample", "axis": "all"})
    head, embedding = (w.detach().flatten().sort().values for w in (model.lm_head.weight, model.embed_tokens.weight))
    assert torch.equal(head, embedding)
