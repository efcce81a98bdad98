"""The kernels: each draw and shuffle is the contract's to the bit, and of the distribution that its name says.

`support.draws` is the contract in plain Python; what the kernels make is compared with its bytes.
"""

from __future__ import annotations

import math
import random
from functools import cache
from itertools import islice, permutations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from support import draws

from hf_perturb.errors import PerturbationError
from hf_perturb.perturbation import kernels, normals
from hf_perturb.perturbation.floats import DTYPES, Array, as_integers, cast, numpy_dtype
from hf_perturb.perturbation.kernels import moments, order
from hf_perturb.perturbation.streams import Stream

AXES = ("embedding", "rows", "outputs", "all")
FLOATS = ("F64", "F32", "F16", "BF16")
KEY = draws.key_of(42, "kernels")

shapes = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)
codes = st.sampled_from(FLOATS)
keys = st.integers(0, 2**128 - 1)
axes = st.sampled_from(AXES)
quick = settings(deadline=None, max_examples=40)


class Given:
    """A stream of words that a test has chosen."""

    def __init__(self, words: list[int]):
        self._words = iter(words)

    def words(self, count: int) -> Array:
        return np.array(list(islice(self._words, count)), np.uint64)


@cache
def some_words() -> list[int]:
    """Return the first words of a stream; it takes a while to work them out in plain Python."""
    return list(islice(draws.words(KEY), 100_000))


def filled(kernel, shape: tuple[int, ...], code: str, *values: Array, stream=None, **arguments) -> Array:
    """Return a new array that a kernel has filled."""
    # of no number that a kernel gives, so that what it leaves out is seen
    out = np.full(shape, -77, numpy_dtype(code))
    kernels.fill(out, kernel(shape, out.dtype, Stream(KEY) if stream is None else stream, *values, **arguments))
    assert (out.shape, out.dtype) == (shape, numpy_dtype(code))
    return out


def shuffled(values: Array, axis: str, stream=None) -> Array:
    return filled(kernels.shuffle, values.shape, code_of(values), values, stream=stream, axis=axis)


def code_of(values: Array) -> str:
    return next(code for code, name in DTYPES.items() if name == values.dtype.name)


def any_bits(shape: tuple[int, ...], code: str, seed: int) -> Array:
    """Return random bits of a type: infinities, subnormals, negative zeros and NaN of every payload among them."""
    dtype = numpy_dtype(code)
    data = random.Random(seed).randbytes(math.prod(shape) * dtype.itemsize)
    return np.frombuffer(data, dtype).reshape(shape)


def places(shape: tuple[int, ...]) -> Array:
    """Return a number of its own for every entry, as a type that has so many."""
    return np.arange(math.prod(shape), dtype=np.uint64).view(np.float64).reshape(shape)


def moved(shape: tuple[int, ...], axis: str, stream=None) -> list[int]:
    """Return from which place each entry of a shuffled tensor comes."""
    return as_integers(shuffled(places(shape), axis, stream)).reshape(-1).tolist()


def bits(values: Array) -> list[int]:
    return as_integers(np.ascontiguousarray(values)).reshape(-1).tolist()


def same(found: Array, expected: list[float]) -> bool:
    return found.tobytes() == draws.encoded(expected, found.dtype.name)


# ---- the contract, to the bit: shuffles


@quick
@given(shape=shapes, key=keys, axis=axes)
def test_a_shuffle_is_the_contract_s(shape, key, axis):
    assert moved(shape, axis, Stream(key)) == draws.places(draws.words(key), shape, axis)


CHUNK = kernels._CHUNK
LONG = {
    "embedding": [(CHUNK - 1,), (CHUNK,), (CHUNK + 1,), (2, CHUNK + 1)],
    "outputs": [(CHUNK + 1, 1), (CHUNK - 1, 2)],
    "all": [(CHUNK - 1,), (CHUNK + 1,), (181, 182), (5, 13, 1009), (2 * CHUNK + 1,)],
    "rows": [
        *((CHUNK // length + rows, length) for length in (2, 3, 5, 8, 9, 17) for rows in (-1, 0, 1)),
        *((CHUNK + 1, 1), (3, CHUNK // 2), (3, CHUNK // 2 + 1), (2, CHUNK), (2, CHUNK + 1), (4100, 4, 4)),
    ],
}


@pytest.mark.parametrize(("axis", "shape"), [(axis, shape) for axis in AXES for shape in LONG[axis]], ids=str)
def test_a_shuffle_of_more_than_a_chunk_is_the_contract_s(axis, shape):
    assert moved(shape, axis) == draws.places(iter(some_words()), shape, axis)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 255, 256, 257, 1023, 1024, 1025, 65536, 65537])
def test_an_order_is_the_contract_s(length):
    """Powers of two and those beside them, where a place takes one bit more."""
    assert order(length, Stream(KEY)).tolist() == draws.order(some_words()[:length])
    # the last place is the largest that the low bits hold, whatever words they replace
    for word in (0, 2**64 - 1):
        assert order(length, Given([word] * length)).tolist() == list(range(length))


@quick
@given(length=st.integers(1, 40), data=st.data())
def test_words_that_agree_in_their_high_bits_keep_their_order(length, data):
    k = max(1, (length - 1).bit_length())
    highs = st.sampled_from([0, 1, 2**63 >> k, (2**64 - 1) >> k])
    words = [high << k | data.draw(st.integers(0, 2**k - 1)) for high in data.draw(st.tuples(*[highs] * length))]
    expected = sorted(range(length), key=lambda place: words[place] >> k)  # which keeps those that agree
    assert draws.order(words) == expected == order(length, Given(words)).tolist()
    assert moved((3, length), "rows", Given(words * 3)) == [r * length + place for r in range(3) for place in expected]


@pytest.mark.parametrize("length", range(1, 7))
def test_short_rows_are_sorted_whatever_their_order(length):
    """A network of exchanges sorts all of them: 720 rows of 6, and all that are zeros and ones of 7 and 8."""
    rows = [[(place + 1) << 32 for place in row] for row in permutations(range(length))]
    found = moved((len(rows), length), "rows", Given([word for row in rows for word in row]))
    assert found == [at * length + place for at, row in enumerate(rows) for place in draws.order(row)]


@pytest.mark.parametrize("length", [7, 8, 9])
def test_short_rows_of_two_words_are_sorted_whatever_their_order(length):
    """What sorts all rows of two numbers sorts all rows (Knuth's zero-one principle)."""
    rows = [[(code >> place & 1) << 40 for place in range(length)] for code in range(2**length)]
    found = moved((len(rows), length), "rows", Given([word for row in rows for word in row]))
    assert found == [at * length + place for at, row in enumerate(rows) for place in draws.order(row)]


# ---- the contract, to the bit: draws


@quick
@given(shape=shapes, key=keys, code=codes, bound=st.floats(1e-6, 100))
def test_a_uniform_draw_is_the_contract_s(shape, key, code, bound):
    found = filled(kernels.uniform, shape, code, stream=Stream(key), bound=bound)
    assert same(found, draws.uniform(draws.words(key), math.prod(shape), bound))


@quick
@given(shape=shapes, key=keys, code=codes, mean=st.floats(-100, 100), std=st.floats(1e-6, 100))
def test_a_normal_draw_is_the_contract_s(shape, key, code, mean, std):
    found = filled(kernels.normal, shape, code, stream=Stream(key), mean=mean, std=std)
    assert same(found, draws.normal(draws.words(key), math.prod(shape), mean, std))


@pytest.mark.parametrize("code", FLOATS)
@pytest.mark.parametrize("count", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_a_uniform_draw_of_more_than_a_chunk_is_the_contract_s(count, code):
    found = filled(kernels.uniform, (count,), code, bound=0.1)
    assert same(found, draws.uniform(iter(some_words()), count, 0.1))


@pytest.mark.parametrize("code", FLOATS)
@pytest.mark.parametrize("shape", [(normals.CHUNK - 1,), (normals.CHUNK + 1,), (3, normals.CHUNK // 2)], ids=str)
def test_a_normal_draw_of_more_than_a_chunk_is_the_contract_s(shape, code):
    found = filled(kernels.normal, shape, code, std=0.02, mean=1.5)
    assert same(found, draws.normal(iter(some_words()), math.prod(shape), 1.5, 0.02))


@pytest.mark.parametrize("code", FLOATS)
def test_the_ends_of_a_uniform_draw(code):
    """The first of 2**24 steps is the bound itself, the middle one 0, and the other bound is not reached."""

    class Halves:
        def halves(self, count):
            return np.array([0, 255, 256, 2**31 - 1, 2**31, 2**32 - 256, 2**32 - 1], np.uint32)[:count]

    found = filled(kernels.uniform, (7,), code, stream=Halves(), bound=0.3)
    low, step = -draws.rounded(0.3, "float32"), 2 * draws.rounded(0.3, "float32") * 2.0**-24
    expected = [low, low, low + step, -step, 0.0, -low - step, -low - step]
    assert same(found, [draws.rounded(value, "float32") for value in expected])


@pytest.mark.parametrize("code", FLOATS)
@pytest.mark.parametrize("value", [0.0, 1.0, -2.5])
def test_a_constant_is_itself_and_takes_no_words(value, code):
    assert same(filled(kernels.constant, (3, 5), code, stream=Given([]), value=value), [value] * 15)


@pytest.mark.parametrize("code", FLOATS)
@pytest.mark.parametrize("row", [0, 1, 6])
def test_a_zero_row_changes_no_other_row(row, code):
    found = filled(kernels.normal, (7, 5), code, zero_row=row)
    expected = draws.normal(draws.words(KEY), 35)
    expected[5 * row : 5 * row + 5] = [0.0] * 5
    assert same(found, expected)


def test_a_draw_does_not_depend_on_how_much_of_it_there_is():
    """Halves of a tensor that are drawn one after the other are the tensor: what is drawn is a prefix of the stream."""
    for kernel, arguments in ((kernels.uniform, {"bound": 1.0}), (kernels.normal, {})):
        whole = filled(kernel, (70_000,), "F32", **arguments)
        assert (whole[:40_001] == filled(kernel, (40_001,), "F32", **arguments)).all()


# ---- the contract, to the bit: a tensor's own normal distribution


@quick
@given(shape=shapes, key=keys, code=codes, scale=st.integers(-6, 6), seed=st.integers(0, 2**32))
def test_a_gaussian_draw_is_the_contract_s(shape, key, code, scale, seed):
    rng = random.Random(seed)
    numbers = [math.ldexp(rng.gauss(rng.choice([0, 1, 50]), 1), scale) for _ in range(math.prod(shape))]
    values = cast(np.array(numbers).reshape(shape), numpy_dtype(code))
    expected = draws.gaussian(draws.words(key), values.astype(np.float64).reshape(-1).tolist())
    assert same(filled(kernels.gaussian, shape, code, values, stream=Stream(key)), expected)


@quick
@given(code=codes, seed=st.integers(0, 2**32), shape=shapes)
def test_moments_are_the_contract_s_for_numbers_of_every_size(code, seed, shape):
    values = any_bits((*shape, 2), code, seed).copy()
    # squares of deviations of the very largest float64 are no float64
    with np.errstate(invalid="ignore"):
        values[~(abs(values.astype(np.float64)) < 1e300)] = 1
    numbers = values.astype(np.float64).reshape(-1).tolist()
    assume(len(set(numbers)) > 1)
    assert moments(values) == draws.moments(numbers)


@pytest.mark.parametrize("code", FLOATS)
@pytest.mark.parametrize("count", [2, normals.CHUNK - 1, normals.CHUNK + 1, CHUNK + 1])
def test_moments_of_more_than_a_chunk_are_the_contract_s(count, code):
    values = filled(kernels.normal, (count,), code, mean=0.3, std=2.0)
    numbers = values.astype(np.float64).tolist()
    assert moments(values) == draws.moments(numbers)
    assert moments(values[::-1].copy()) == moments(values)
    # and to a dozen digits those that numpy knows
    assert np.allclose(moments(values), (np.mean(numbers), np.std(numbers)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("code", FLOATS)
def test_a_gaussian_draw_has_the_moments_of_the_values(code):
    values = filled(kernels.uniform, (200_000,), code, bound=2.0) + numpy_dtype(code).type(1.0)
    drawn = filled(kernels.gaussian, values.shape, code, values).astype(np.float64)
    mean, std = moments(values)
    assert abs(drawn.mean() - mean) < 4 * std / len(drawn) ** 0.5
    assert abs(drawn.std() / std - 1) < 4 / (2 * len(drawn)) ** 0.5


@pytest.mark.parametrize("code", FLOATS)
@pytest.mark.parametrize("numbers", [[3.25], [0.1] * 7, [0.0] * 3, [-0.0], [0.0, -0.0], [-1e-7] * 40_000], ids=len)
def test_a_constant_tensor_and_one_of_one_element_stay_to_the_bit(numbers, code):
    values = np.array(numbers).astype(numpy_dtype(code))
    assert bits(filled(kernels.gaussian, values.shape, code, values)) == bits(values)


@pytest.mark.parametrize("code", FLOATS)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 20_000, 39_999])
def test_values_that_are_not_finite_have_no_moments(wrong, place, code):
    values = np.ones(40_000, numpy_dtype(code))
    values[place] = wrong
    with pytest.raises(PerturbationError, match="not finite"):
        filled(kernels.gaussian, values.shape, code, values)
    with pytest.raises(PerturbationError, match="not finite"):
        filled(kernels.gaussian, (1,), code, values[place : place + 1])


@pytest.mark.parametrize(
    ("code", "largest"), [("F16", 65504.0), ("BF16", 3e38), ("F32", 3e38), ("F64", 3e38), ("F64", 1.7e308)]
)
def test_draws_that_might_be_infinite_are_refused(code, largest):
    values = np.array([-largest, 0, largest]).astype(numpy_dtype(code))
    with pytest.raises(PerturbationError, match=r"may be more than its type holds|too far from each other"):
        filled(kernels.gaussian, (3,), code, values)
    smaller = np.array([-largest, 0, largest]) / 1e280 if largest > 1e300 else np.array([-largest, 0, largest]) / 16
    assert np.isfinite(filled(kernels.gaussian, (3,), code, smaller.astype(numpy_dtype(code))).astype(np.float64)).all()


@pytest.mark.parametrize("shape", [(), (0,), (5, 0), (1, 1)])
def test_what_has_one_entry_or_none_stays(shape):
    values = np.full(shape, 3, np.float32)
    for axis in AXES:
        assert bits(filled(kernels.shuffle, shape, "F32", values, axis=axis)) == bits(values)
    assert bits(filled(kernels.gaussian, shape, "F32", values)) == bits(values)


def test_moments_of_numbers_that_hardly_differ():
    """Deviations are taken from exact values, so a tensor of two neighbouring numbers is not constant."""
    values = np.array([1.0, np.nextafter(np.float32(1), np.float32(2))], np.float32)
    mean, std = moments(values)
    assert (mean, std) == (1 + 2.0**-24, 2.0**-24)


# ---- types


@pytest.mark.parametrize("code", FLOATS)
def test_every_type_rounds_the_same_float32_draws(code):
    for kernel, arguments in ((kernels.uniform, {"bound": 0.7}), (kernels.normal, {"std": 3.0})):
        single = filled(kernel, (999,), "F32", **arguments)
        assert same(filled(kernel, (999,), code, **arguments), single.astype(np.float64).tolist())


@pytest.mark.parametrize("code", ["F16", "BF16"])
def test_rounding_is_to_nearest_and_to_even_between_two(code):
    dtype = numpy_dtype(code)
    infinity = int(as_integers(np.array([math.inf], dtype))[0])
    finite = np.arange(infinity, dtype=np.uint16).view(dtype).astype(np.float32)
    middles = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    numbers = np.concatenate([part for x in (finite, middles) for part in (x, np.nextafter(x, 0), np.nextafter(x, 1))])
    numbers = np.concatenate([numbers, -numbers, [np.float32(3e38), np.float32(65519.99), np.float32(65520)]])
    assert same(cast(numbers.astype(np.float32), dtype), numbers.astype(np.float64).tolist())


# ---- what a shuffle does not do


def multisets(values: Array, axis: str) -> list[list]:
    """Return what a shuffle along an axis keeps: the entries of the tensor, of each row or whole rows, in order."""
    integers = as_integers(np.ascontiguousarray(values))
    if axis == "all":
        return np.sort(integers.reshape(-1)).tolist()
    if axis == "outputs":
        return sorted(integers.reshape(len(integers), -1).tolist())
    if axis == "rows":
        return np.sort(integers.reshape(-1, integers.shape[-1])).tolist()
    return sorted(integers.reshape(-1, integers.shape[-1]).T.tolist())


@quick
@given(shape=shapes, code=st.sampled_from([*FLOATS, "I64", "I8"]), key=keys, axis=axes, seed=st.integers(0, 2**32))
def test_a_shuffle_keeps_the_entries_of_its_axis_to_the_bit(shape, code, key, axis, seed):
    values = any_bits(shape, code, seed)  # read-only
    found = shuffled(values, axis, Stream(key))
    assert multisets(found, axis) == multisets(values, axis)
    assert not np.shares_memory(found, values)


@quick
@given(shape=shapes, code=codes, key=keys, axis=axes, seed=st.integers(0, 2**32))
def test_a_shuffle_does_not_look_at_values_or_their_layout(shape, code, key, axis, seed):
    values = any_bits(shape, code, seed)
    flat, origins = bits(values), moved(shape, axis, Stream(key))
    expected = [flat[place] for place in origins]
    strided = np.ascontiguousarray(np.moveaxis(values, 0, -1))
    for given_values in (values, np.moveaxis(strided, -1, 0), np.repeat(values, 2, axis=-1)[..., ::2]):
        assert bits(shuffled(given_values, axis, Stream(key))) == expected


@quick
@given(length=st.integers(1, 50), key=keys)
def test_a_vector_is_shuffled_alike_along_every_axis(length, key):
    assert len({tuple(moved((length,), axis, Stream(key))) for axis in AXES}) == 1


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", [(64,), (64, 1, 64), (8, 16), (6, 4, 6)], ids=str)
def test_a_shuffle_moves_entries_and_seeds_differ(axis, shape):
    results = {tuple(moved(shape, axis, Stream(draws.key_of(seed, "a")))) for seed in range(5)}
    # five seeds on at least 720 orders each: two alike would be a coincidence that these seeds do not have
    assert len(results | {tuple(range(math.prod(shape)))}) == 6


@pytest.mark.parametrize("code", ["F16", "BF16", "F32", "F64"])
@pytest.mark.parametrize("axis", AXES)
def test_not_a_number_keeps_its_bits(code, axis):
    ordinary = np.array([[1.0, np.nan, 2.0, -np.nan]]).astype(numpy_dtype(code))
    values = np.concatenate([ordinary, ordinary])
    # a signalling one, and one with a payload
    as_integers(values)[1, 1] ^= 1
    as_integers(values)[1, 3] ^= 3
    assert sorted(bits(shuffled(values, axis))) == sorted(bits(values))


@pytest.mark.parametrize("code", FLOATS)
def test_global_random_state_is_neither_read_nor_changed(code):
    results = []
    for seed in (1, 2):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        before = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
        values = any_bits((6, 10), code, 0)
        made = [shuffled(values, axis) for axis in AXES]
        made.append(filled(kernels.uniform, (6, 10), code, bound=1.0))
        made.append(filled(kernels.normal, (6, 10), code))
        made.append(filled(kernels.gaussian, (6, 10), code, made[-1]))
        after = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
        assert before[:2] == after[:2]
        assert torch.equal(before[2], after[2])
        results.append([bits(array) for array in made])
    assert results[0] == results[1]


# ---- bounds, from shapes


@quick
@given(rows=st.integers(1, 6000), columns=st.integers(1, 6000), taps=st.sampled_from([(), (1,), (5,)]))
def test_bounds_are_those_of_the_contract_to_the_bit(rows, columns, taps):
    from hf_perturb.perturbation import rules

    shape = (rows, columns, *taps)
    expected = {
        rules.XAVIER: draws.xavier_bound(shape),
        rules.XAVIER_QKV: draws.xavier_bound(shape, 1 / math.sqrt(2)),
        rules.XAVIER_NORMAL: draws.xavier_std(shape),
        rules.KAIMING: draws.kaiming_bound(shape),
        rules.FAN_IN: draws.fan_in_bound(shape),
    }
    for initialiser, scale in expected.items():
        bias = (rows,) if initialiser is rules.FAN_IN else shape
        name = "std" if initialiser is rules.XAVIER_NORMAL else "bound"
        assert initialiser.for_shape(bias, shape) == ((name, scale),)


# ---- blocks


@pytest.mark.parametrize("shape", [(3, 70_001), (40_000, 5), (7, 3, 9_999), (200_001,)], ids=str)
def test_blocks_make_what_one_block_makes(shape, monkeypatch):
    """As long as they hold whole chunks: of the kernels, and whole rows where these move."""
    values = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    calls = [
        (kernels.uniform, (), {"bound": 0.5}),
        (kernels.normal, (), {"zero_row": 1}),
        (kernels.constant, (), {"value": 1.5}),
        (kernels.gaussian, (values,), {}),
        *((kernels.shuffle, (values,), {"axis": axis}) for axis in AXES),
    ]
    made = []
    for block in (1 << 16, kernels._BLOCK, 1 << 40):
        monkeypatch.setattr(kernels, "_BLOCK", block)
        made.append([bits(filled(kernel, shape, "F32", *given, **keys)) for kernel, given, keys in calls])
    assert made[0] == made[1] == made[2]


def test_no_kernel_holds_more_than_a_block_beside_what_it_reads():
    sizes = {block.size for block in kernels.uniform((300, 3000), np.dtype("f4"), Stream(KEY), bound=1.0)}
    assert sizes == {kernels._BLOCK, 900_000 % kernels._BLOCK}
    with pytest.raises(ValueError, match="not contiguous"):
        kernels.fill(np.empty((4, 6)).T, [])
