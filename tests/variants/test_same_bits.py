"""The same seed gives the same bits: against a second implementation, and however a plan is run."""

from __future__ import annotations

import math

import pytest
import torch
from support import draws
from support.models import HEADS, small_model
from support.spec_table import PARTS, copied, differing, distribution, rule, same_bits, shapes_of

from hf_perturb import Perturbation
from hf_perturb.checkpoints.of_torch import tensor_of
from hf_perturb.loading.perturb import apply_plan
from hf_perturb.perturbation import make_plan
from hf_perturb.perturbation.floats import array_of

METHODS = ("reinit", "resample", "gaussian")
BY_RULES = [
    (method, rules) for rules in ("documented", "published") for method in METHODS[: 3 if rules == "documented" else 2]
]


def shapes_of_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def stream_of(seed: int, name: str) -> draws.Words:
    return draws.words(draws.key_of(seed, name))


@pytest.mark.parametrize("seed", [42, 2**63 - 1])
def test_every_tensor_is_drawn_from_its_own_seed(network, seed):
    """The contract's rules and draws, both read a second time, agree to the bit."""
    model = small_model(network)
    family, expected, shapes = model.config.model_type, copied(model), shapes_of(model)
    for name, tensor in expected.items():
        if (initialiser := rule(family, name, also=PARTS)) is not None:
            kind, parameter = distribution(family, name, shapes, PARTS)
            stream, count = stream_of(seed, name), tensor.numel()
            values = {
                "constant": lambda s, n, value: n * [value],
                "uniform": draws.uniform,
                "normal": lambda s, n, std: draws.normal(s, n, std=std),
            }[kind](stream, count, parameter)
            tensor.copy_(torch.tensor(values).view(tensor.shape))
            if (row := initialiser[1].get("zero_row")) is not None:
                tensor[row] = 0
    assert not differing(copied(model.perturb({"method": "reinit", "seed": seed, "also": PARTS})), expected)


@pytest.mark.parametrize("axis", ["embedding", "rows", "outputs", "all"])
def test_every_tensor_is_shuffled_from_its_own_seed(network, axis):
    model = small_model(network)
    expected = copied(model)
    for name, tensor in expected.items():
        if rule(model.config.model_type, name, also=PARTS) is not None:
            places = draws.places(stream_of(42, name), tuple(tensor.shape), axis)
            expected[name] = tensor.flatten()[places].view(tensor.shape)
    assert not differing(copied(model.perturb({"method": "resample", "axis": axis, "also": PARTS})), expected)


def test_every_tensor_is_drawn_after_its_own_mean_and_deviation(network):
    model = small_model(network)
    expected = copied(model)
    for name, tensor in expected.items():
        if rule(model.config.model_type, name, also=PARTS) is not None:
            values = draws.gaussian(stream_of(42, name), tensor.double().flatten().tolist())
            expected[name] = torch.tensor(values).view(tensor.shape)
    assert not differing(copied(model.perturb({"method": "gaussian", "also": PARTS})), expected)


@pytest.mark.parametrize("method", METHODS)
def test_neither_order_nor_company_of_the_tensors_counts(network, method):
    perturbation = Perturbation(method)
    model = small_model(network)
    family, base = model.config.model_type, copied(model)
    whole = copied(model.perturb(perturbation))
    backwards = {name: base[name].clone() for name in reversed(base)}
    apply_plan(make_plan(family, shapes_of_tensors(backwards), perturbation), backwards)
    assert not differing(backwards, whole)
    # one tensor at a time, as it is streamed from a file; a bias needs the shape of its weight, not its values
    plan = make_plan(family, shapes_of_tensors(base), perturbation)
    for step in plan.steps:
        # a cast of trained values has another mean and deviation
        for dtype in (torch.float32, *([torch.bfloat16] if method != "gaussian" else [])):
            values = array_of(base[step.name].to(dtype))
            assert same_bits(tensor_of(step.run(values, values.dtype)), whole[step.name].to(dtype))


@pytest.mark.parametrize(("method", "rules"), BY_RULES)
def test_threads_do_not_count(method, rules):
    """Tensors of some 100 000 entries, which torch spreads over threads where it can."""
    shapes = {
        "embed_positions.weight": (1026, 160),
        "layers.0.fc1.weight": (640, 160),
        "layers.0.fc1.bias": (640,),
        "layers.0.self_attn.bias_k": (1, 1, 40_000),
        "layers.0.self_attn.out_proj.weight": (320, 320),
    }
    results, threads = [], torch.get_num_threads()
    axes = [None] if rules == "published" or method != "resample" else ["embedding", "rows", "outputs", "all"]
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            for axis in axes:
                tensors = {name: torch.arange(math.prod(s), dtype=torch.float32).view(s) for name, s in shapes.items()}
                apply_plan(make_plan("fair_esm", shapes, Perturbation(method, 7, rules, axis)), tensors)
                results.append(tensors)
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(results[: len(axes)], results[len(axes) :], strict=True):
        assert not differing(one, two)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("key", ["include", "exclude"])
def test_one_layer_alone_has_the_bits_that_it_has_in_company(network, method, key):
    model = small_model(network)
    base, whole = copied(model), copied(model.perturb(method))
    glob = "model.embedder.layers.1.*" if network == "carp" else "layers.1.*"
    inside = {name for name in base if name.startswith(glob[:-1])}
    assert len(inside) > 10
    part = copied(small_model(network).perturb({"method": method, key: [glob]}))
    for name in base:
        perturbed = (name in inside) == (key == "include")
        assert same_bits(part[name], (whole if perturbed else base)[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_the_trunk_is_the_same_with_and_without_a_head(network, method):
    base = copied(small_model(network))
    results = []
    for head in HEADS:
        model = small_model(network, head)
        model.load_state_dict(base, strict=False)
        results.append(copied(model.perturb(method)))
    trunk = set.intersection(*map(set, results))
    assert len(trunk) > 50
    for other in results[1:]:
        assert not differing(*({name: result[name] for name in trunk} for result in (results[0], other)))


def test_another_seed_gives_other_bits(network):
    results = [copied(small_model(network).perturb({"method": "reinit", "seed": seed})) for seed in (0, 1, 2**62)]
    family = small_model(network).config.model_type
    random = {name for name in results[0] if (rule(family, name) or ("constant",))[0] != "constant"}
    for i, result in enumerate(results):
        for other in results[i + 1 :]:
            assert differing(result, other) == random


@pytest.mark.parametrize("rules", ["documented", "published"])
@pytest.mark.parametrize("method", ["reinit", "resample"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_casting_before_or_after_is_the_same(network, method, rules, dtype):
    perturbation = Perturbation(method, rules=rules)
    before = small_model(network).to(dtype).perturb(perturbation)
    after = small_model(network).perturb(perturbation).to(dtype)
    assert not differing(copied(before), copied(after))
    assert {parameter.dtype for parameter in before.parameters()} == {dtype}
