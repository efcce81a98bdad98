"""The kernels: a shuffle keeps entries where its axis says, and a draw is `torch.nn.init`'s own."""

from __future__ import annotations

import math
import subprocess
import sys
from contextlib import ExitStack, contextmanager, nullcontext
from unittest.mock import patch

import hypothesis.strategies as st
import pytest
import torch
from accelerate import init_empty_weights
from hypothesis import given, settings
from support.models import small_model
from support.spec_table import copied, same_bits
from torch.nn import init
from transformers.initialization import no_init_weights

from hf_perturb.perturbation.kernels import INITIALISERS, permutation, shuffle

AXES = ("embedding", "rows", "all")
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

shapes = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)
dtypes = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64])
seeds = st.integers(0, 2**63 - 1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def any_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Return random bits of a type: infinities, subnormals and negative zeros among them."""
    count = math.prod(shape) * dtype.itemsize
    data = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator(seed)).view(dtype)
    # no NaN: torch's gather takes half types by way of float32, which keeps every number but no NaN's payload
    return data.masked_fill(data.isnan(), 1).view(shape)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(INTEGERS[tensor.dtype.itemsize])


def multisets(tensor: torch.Tensor, axis: str) -> torch.Tensor:
    """Return what a shuffle along an axis keeps: the sorted entries of the tensor or of each row."""
    values = bits(tensor)
    return values.flatten().sort().values if axis == "all" else values.sort(dim=-1).values


@pytest.mark.parametrize("axis", AXES)
@settings(deadline=None)
@given(shape=shapes, dtype=dtypes, seed=seeds)
def test_a_shuffle_keeps_the_entries_of_its_axis_to_the_bit(axis, shape, dtype, seed):
    tensor = any_bits(shape, dtype, seed)
    before = tensor.clone()
    shuffled = shuffle(tensor, generator(seed), axis=axis)
    assert (shuffled.shape, shuffled.dtype) == (tensor.shape, tensor.dtype)
    assert torch.equal(multisets(shuffled, axis), multisets(tensor, axis))
    assert same_bits(tensor, before)
    assert shuffled.data_ptr() != tensor.data_ptr()


@settings(deadline=None)
@given(shape=shapes, dtype=dtypes, seed=seeds, axis=st.sampled_from(AXES))
def test_a_shuffle_does_not_look_at_values(shape, dtype, seed, axis):
    """Where each entry goes depends on the shape alone, so it is the same in every type and memory layout."""
    tensor = any_bits(shape, dtype, seed)
    places = torch.arange(tensor.numel()).view(shape)
    moved = shuffle(places, generator(seed), axis=axis)
    assert same_bits(shuffle(tensor, generator(seed), axis=axis), tensor.flatten()[moved])
    strided = tensor.movedim(0, -1).contiguous().movedim(-1, 0)
    assert same_bits(shuffle(strided, generator(seed), axis=axis), tensor.flatten()[moved])


@settings(deadline=None)
@given(shape=shapes, seed=seeds)
def test_embedding_is_one_permutation_for_every_row(shape, seed):
    columns = torch.arange(shape[-1]).expand(shape)
    moved = shuffle(columns, generator(seed), axis="embedding").view(-1, shape[-1])
    assert (moved == moved[0]).all()
    # the contract's words and torch's own permutation, the second reading of the first
    assert torch.equal(moved[0], torch.randperm(shape[-1], generator=generator(seed)))


@settings(deadline=None)
@given(shape=shapes, seed=seeds)
def test_all_is_one_permutation_of_the_entries(shape, seed):
    places = torch.arange(math.prod(shape)).view(shape)
    expected = torch.randperm(math.prod(shape), generator=generator(seed)).view(shape)
    assert torch.equal(shuffle(places, generator(seed), axis="all"), expected)


@settings(deadline=None)
@given(length=st.integers(1, 50), seed=seeds)
def test_a_vector_is_shuffled_alike_along_embedding_and_all(length, seed):
    vector = torch.arange(length)
    assert torch.equal(*(shuffle(vector, generator(seed), axis=axis) for axis in ("embedding", "all")))


def test_rows_are_permuted_independently_and_uniformly():
    rows, length = 6000, 4
    moved = shuffle(torch.arange(length).expand(rows, length).contiguous(), generator(0), axis="rows")
    codes, counts = (moved * torch.tensor([64, 16, 4, 1])).sum(-1).unique(return_counts=True)
    # all 24 orders, each near 6000 / 24 = 250 times: five standard deviations are 77
    assert len(codes) == math.factorial(length)
    assert (counts - rows / 24).abs().max() < 77
    # neighbouring rows know nothing of each other: they agree in one of 24 cases
    assert abs((moved[1:] == moved[:-1]).all(-1).double().mean() - 1 / 24) < 0.013


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", [(64,), (1, 1, 64), (8, 16), (4, 4, 5)])
def test_a_shuffle_moves_entries_and_seeds_differ(axis, shape):
    tensor = torch.arange(math.prod(shape)).view(shape)
    results = [shuffle(tensor, generator(seed), axis=axis) for seed in range(5)]
    # five seeds on at least 120 orders each: two alike would be a coincidence that these seeds do not have
    assert all(not torch.equal(a, b) for i, a in enumerate([tensor, *results]) for b in results[i:])


@pytest.mark.parametrize("length", [1, 2, 17, 1000, 300_000])
def test_permutation_draws_what_randperm_draws(length):
    expected = torch.randperm(length, generator=generator(7))
    assert torch.equal(permutation(length, generator(7)).long(), expected)


DRAWS = [
    ("constant", {"value": 1.0}, lambda t, g: init.constant_(t, 1.0)),
    ("constant", {"value": 0.0}, lambda t, g: init.zeros_(t)),
    ("uniform", {"bound": 0.25}, lambda t, g: init.uniform_(t, -0.25, 0.25, generator=g)),
    ("normal", {}, lambda t, g: init.normal_(t, generator=g)),
    ("xavier_uniform", {"gain": 1.0}, lambda t, g: init.xavier_uniform_(t, generator=g)),
    ("xavier_uniform", {"gain": 0.5}, lambda t, g: init.xavier_uniform_(t, gain=0.5, generator=g)),
    ("xavier_normal", {}, lambda t, g: init.xavier_normal_(t, generator=g)),
    ("kaiming_uniform", {"a": math.sqrt(5)}, lambda t, g: init.kaiming_uniform_(t, a=math.sqrt(5), generator=g)),
]


@pytest.mark.parametrize(
    ("kernel", "arguments", "expected"), DRAWS, ids=lambda value: "" if callable(value) else str(value)
)
@pytest.mark.parametrize("shape", [(3, 5), (1, 1, 33), (4, 6, 5)])
def test_a_draw_is_that_of_torch(kernel, arguments, expected, shape):
    for seed in (0, 42, 2**63 - 1):
        drawn = INITIALISERS[kernel](shape, generator(seed), **arguments)
        assert same_bits(drawn, expected(torch.empty(shape), generator(seed)))


def test_the_zero_row_changes_no_other_row():
    drawn = INITIALISERS["normal"]((7, 5), generator(3), zero_row=1)
    expected = init.normal_(torch.empty(7, 5), generator=generator(3))
    assert drawn[1].eq(0).all()
    assert same_bits(drawn[[0, 2, 3, 4, 5, 6]], expected[[0, 2, 3, 4, 5, 6]])


def test_draws_are_float32_whatever_the_default():
    torch.set_default_dtype(torch.float64)
    try:
        drawn = [INITIALISERS[kernel]((4, 6), generator(1), **arguments) for kernel, arguments, _ in DRAWS]
    finally:
        torch.set_default_dtype(torch.float32)
    for (kernel, arguments, _), tensor in zip(DRAWS, drawn, strict=True):
        assert same_bits(tensor, INITIALISERS[kernel]((4, 6), generator(1), **arguments))


@pytest.mark.parametrize("axis", AXES)
def test_global_random_state_is_neither_read_nor_changed(axis):
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        shuffled = shuffle(torch.arange(60).view(6, 10), generator(5), axis=axis)
        drawn = [INITIALISERS[kernel]((4, 6), generator(5), **arguments) for kernel, arguments, _ in DRAWS]
        assert torch.equal(torch.get_rng_state(), state)
        results.append([shuffled, *drawn])
    assert all(map(same_bits, *results))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("axis", ["embedding", "rows", "all"])
def test_not_a_number_keeps_its_bits(dtype, axis):
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    tensor = torch.tensor([[1.0, float("nan"), 2.0, -float("nan")]]).to(dtype)
    shuffled = shuffle(tensor, torch.Generator().manual_seed(0), axis=axis)
    assert sorted(shuffled.view(bits).flatten().tolist()) == sorted(tensor.view(bits).flatten().tolist())


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
def test_whoever_skips_initialisation_skips_no_draw(idiom):
    """Uninitialised memory would look like a control, with a digest of its own."""
    made = []
    for context in (nullcontext, IDIOMS[idiom]):
        numbers, models = torch.arange(60).view(6, 10), [small_model("esm1b"), small_model("carp")]
        generators = [generator(seed) for seed in range(len(DRAWS) + len(AXES))]
        with context():
            draws = [INITIALISERS[name]((4, 6), generators.pop(), **keys) for name, keys, _ in DRAWS]
            shuffles = [shuffle(numbers, generators.pop(), axis=axis) for axis in AXES]
            models = [model.perturb("reinit") for model in models]
        made.append([*draws, *shuffles, *(tensor for model in models for tensor in copied(model).values())])
    assert all(same_bits(one, other) for one, other in zip(*made, strict=True))


_IMPORTED_LATE = """
import torch
for name in dir(torch.nn.init):
    if name.endswith("_") and not name.startswith("_"):
        setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)
for name in ("uniform_", "normal_", "random_", "fill_", "zero_"):
    setattr(torch.Tensor, name, lambda tensor, *_, **__: tensor)
torch.randperm = torch.empty = torch.full = None
from hf_perturb.perturbation.kernels import INITIALISERS, shuffle
def generator():
    return torch.Generator("cpu").manual_seed(3)
for name, arguments in DRAWS:
    print(INITIALISERS[name]((4, 6), generator(), **arguments).tolist())
for axis in AXES:
    print(shuffle(torch.arange(60).view(6, 10), generator(), axis=axis).tolist())
"""


def test_the_package_may_be_imported_where_initialisation_is_skipped():
    draws = [(name, arguments) for name, arguments, _ in DRAWS]
    code = f"DRAWS, AXES = {draws}, {AXES}\n{_IMPORTED_LATE}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    expected = [INITIALISERS[name]((4, 6), generator(3), **arguments) for name, arguments in draws]
    expected += [shuffle(torch.arange(60).view(6, 10), generator(3), axis=axis) for axis in AXES]
    assert done.stdout.splitlines() == [str(tensor.tolist()) for tensor in expected], done.stderr
