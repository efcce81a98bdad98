"""A network of Transformers without values: names, parts and stacks, and each tensor drawn alone."""

from __future__ import annotations

import hashlib
import random
import re
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import torch
from support.any_models import MODELS, any_class, any_config, any_model, noised
from support.models import CONFIGS, model_class
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    EncodecConfig,
    EncodecModel,
    Llama4ForCausalLM,
    Llama4TextConfig,
    Llama4TextModel,
    PreTrainedModel,
    T5EncoderModel,
    initialization as init,
)

from hf_perturb.checkpoints.any_network import DerivedTable
from hf_perturb.checkpoints.skeleton import Skeleton
from hf_perturb.errors import PerturbationError

every_model = pytest.mark.parametrize("name", MODELS)
# of the two-sample statistic times sqrt(n m / (n + m)): one pattern in 40000 is beyond by chance
FARTHEST = 2.4


@cache
def skeleton(name: str, head: bool = False) -> Skeleton:
    return Skeleton.build(any_class(name, head), any_config(name))


@cache
def drawn(name: str) -> dict[str, np.ndarray]:
    return draws(skeleton(name))


def draws(of: Skeleton, seed: int = 42) -> dict[str, np.ndarray]:
    return {name: of.draw(name, seed) for name in of.shapes if name in of.parameters}


def pattern(name: str) -> str:
    return re.sub(r"\b\d+\b", "*", name)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return the two-sample statistic of Kolmogorov and Smirnov, in units of its standard deviation."""
    one, other = np.sort(one), np.sort(other)
    both = np.concatenate([one, other])
    below = [np.searchsorted(each, both, "right") / each.size for each in (one, other)]
    return float(np.abs(below[0] - below[1]).max() * np.sqrt(one.size * other.size / both.size))


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(values, other[name]) for name, values in one.items())


# ---- as the network itself does


@every_model
def test_draws_are_distributed_as_in_an_ordinary_initialisation(name):
    of = skeleton(name, True)
    ordinary = any_model(name, True, seed=7).state_dict()
    drawn: dict[str, list[np.ndarray]] = defaultdict(list)
    expected: dict[str, list[np.ndarray]] = defaultdict(list)
    for each, values in draws(of).items():
        assert values.dtype == np.float32
        assert values.flags.c_contiguous
        drawn[pattern(each)].append(values.ravel())
        expected[pattern(each)].append(ordinary[of.stored(each)].numpy().ravel())
    for each in drawn:
        one, other = np.concatenate(drawn[each]), np.concatenate(expected[each])
        if np.allclose(one, other, rtol=1e-6):
            continue  # ones, zeros, and what is worked out
        assert np.ptp(one), f"{each} is {one[0]}"
        assert np.ptp(other), f"{each} is drawn and was {other[0]}"
        assert distance(one, other) < FARTHEST, each


def test_the_generator_of_a_tensor_is_seeded_by_its_canonical_name():
    for name in (
        f"encoder.layer.{layer}.attention.{part}.weight" for layer in (0, 1) for part in ("self.key", "output.dense")
    ):
        words = hashlib.sha256(f"hf_perturb/2/42/{name}".encode()).digest()
        seed = int.from_bytes(words[:8], "big") % 2**63
        expected = torch.empty(32, 32).normal_(0, 0.02, generator=torch.Generator().manual_seed(seed))
        assert np.array_equal(skeleton("bert", True).draw(name, 42), expected.numpy())


@every_model
def test_tensors_of_one_shape_are_drawn_apart(name):
    random_ones = [values for values in drawn(name).values() if values.size > 8 and np.ptp(values)]
    pairs = ((one, other) for i, one in enumerate(random_ones) for other in random_ones[:i] if one.shape == other.shape)
    equal = sum(np.array_equal(*pair) for pair in pairs)
    tied = len(skeleton(name).tied)
    worked_out = name == "mamba"  # its `A_log` is the same in each of two layers
    assert equal == (tied * (tied + 1) // 2) + worked_out


@every_model
def test_a_seed_is_another_draw(name):
    of = skeleton(name)
    for each, values in drawn(name).items():
        other = of.draw(each, 43)
        is_worked_out = each.endswith("A_log")
        assert np.array_equal(values, other) == (not np.ptp(values) or is_worked_out), each


# ---- the same bits


@every_model
def test_neither_order_nor_company_changes_a_draw(name):
    first = drawn(name)
    again, alone = Skeleton.build(any_class(name), any_config(name)), list(first)[len(first) // 2]
    assert np.array_equal(again.draw(alone, 42), first[alone])
    assert same({each: again.draw(each, 42) for each in reversed(first)}, first)


@every_model
def test_threads_draw_the_same(name):
    first = drawn(name)
    shared = Skeleton.build(any_class(name), any_config(name))
    with ThreadPoolExecutor(4) as pool:
        twice = list(pool.map(lambda each: (each, shared.draw(each, 42)), list(first) * 2))
    assert all(np.array_equal(values, first[each]) for each, values in twice)


@every_model
def test_a_class_with_a_head_and_the_trunk_agree(name):
    trunk, headed = skeleton(name), skeleton(name, True)
    shared = [each for each in trunk.shapes if each in headed.shapes]
    assert len(shared) > 18
    assert same({each: headed.draw(each, 42) for each in shared if each in trunk.parameters}, drawn(name))


@every_model
def test_a_trained_model_is_drawn_as_its_configuration_is_and_stays_as_it_is(name):
    model = any_model(name, True, change=noised).to(torch.bfloat16)
    before = {each: values.clone() for each, values in model.state_dict().items()}
    of, built = Skeleton.of(model), skeleton(name, True)
    assert (of.shapes, of.parameters, of.tied) == (built.shapes, built.parameters, built.tied)
    assert (of.parts, of.stacks) == (built.parts, built.stacks)
    assert same(draws(of), draws(built))
    assert all(torch.equal(values, before[each]) for each, values in model.state_dict().items())
    assert not any(parameter.is_meta for parameter in model.parameters())


# ---- what is left as it is


@every_model
def test_no_random_state_of_the_process_is_read_or_changed(name):
    expected = drawn(name)
    for seed in (0, 1):
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        assert same(expected, draws(Skeleton.build(any_class(name), any_config(name))))
        after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]


@every_model
def test_nothing_else_in_the_skeleton_has_values_or_changes(name):
    of = Skeleton.build(any_class(name), any_config(name))
    of.draw(next(iter(of.parameters)), 42)
    (lent,) = of._free
    models = [of.model, next(iter(lent._order.values()))[1]]
    held = [[*model.state_dict(keep_vars=True).values()] for model in models]
    draws(of)
    for model, tensors in zip(models, held, strict=True):
        now = [*model.state_dict(keep_vars=True).values()]
        assert all(one is other for one, other in zip(tensors, now, strict=True))
        assert all(tensor.is_meta for tensor in now)


# ---- names, parts, stacks


def test_a_head_that_is_tied_is_the_embedding():
    of = skeleton("t5", True)
    assert of.tied["lm_head.weight"] == "shared.weight"
    assert of.parts["lm_head.weight"] == "embeddings"
    assert np.array_equal(of.draw("lm_head.weight", 1), of.draw("shared.weight", 1))


def test_a_head_of_its_own_is_the_head():
    assert skeleton("llama", True).parts == {"embed_tokens.weight": "embeddings", "lm_head.weight": "head"}
    assert skeleton("bert", True).parts["cls.predictions.bias"] == "head"


def test_a_model_that_has_no_embeddings_has_no_parts():
    assert skeleton("wav2vec2").parts == {}


@pytest.mark.parametrize(
    ("name", "stacks"),
    [
        *(("bert", ["encoder.layer"]), ("gpt2", ["h"]), ("t5", ["encoder.block", "decoder.block"])),
        *(("wav2vec2", ["encoder.layers"]), ("clip", ["text_model.encoder.layers", "vision_model.encoder.layers"])),
    ],
)
def test_the_stacks_of_a_network_are_its_longest_lists_of_equal_blocks(name, stacks):
    assert skeleton(name, True).stacks == dict.fromkeys(stacks if name != "clip" else stacks[1:], 2)
    assert skeleton(name).stacks == dict.fromkeys(stacks, 2)


def test_a_longer_list_of_small_parts_is_no_stack():
    class Tagged(BertModel):
        def __init__(self, config):
            super().__init__(config)
            self.tags = nn.ModuleList(nn.Embedding(2, 2) for _ in range(9))

    assert Skeleton.build(Tagged, any_config("bert")).stacks == {"encoder.layer": 2}


def test_stored_names_are_those_of_the_class():
    of = skeleton("bert", True)
    assert of.stored("encoder.layer.0.output.dense.weight") == "bert.encoder.layer.0.output.dense.weight"
    assert of.canonical("bert.pooler.dense.weight") == "pooler.dense.weight"
    assert [of.stored(each) for each in of.shapes] == list(any_model("bert", True).state_dict())


@pytest.mark.parametrize("name", ["pooler.weight", "embeddings.position_ids"])
def test_what_is_no_parameter_is_not_drawn(name):
    class Counting(BertModel):
        def __init__(self, config):
            super().__init__(config)
            self.embeddings.register_buffer("position_ids", torch.arange(8))

    said = "a buffer or integers" if "ids" in name else "a name that the network lacks"
    with pytest.raises(PerturbationError, match=f"{name}.*{said}"):
        Skeleton.build(Counting, any_config("bert")).draw(name, 42)


# ---- what only the constructor sets, and other ways of remote code


class Odd(PreTrainedModel):
    """Parameters that `_init_weights` does not write, or in ways of its own."""

    config_class = BertConfig

    def __init__(self, config):
        super().__init__(config)
        self.ones = nn.Parameter(torch.ones(3) * 2.5)
        self.listed = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.truncated = nn.Parameter(torch.zeros(2000))
        nn.init.trunc_normal_(self.truncated, std=2.0)
        self.orthogonal = nn.Parameter(torch.empty(8, 8))
        nn.init.orthogonal_(self.orthogonal)
        self.derived = nn.Parameter(torch.randn(2000) * 0.5 + 3)
        self.old = nn.Parameter(torch.Tensor(2000).uniform_())
        self.never = nn.Parameter(torch.empty(5))
        self.halved = nn.Parameter(torch.ones(4))
        self.replaced = nn.Parameter(torch.empty(2000))
        self.assigned = nn.Parameter(torch.empty(2000))
        self.beside = nn.Parameter(torch.empty(2000))
        self.convolution = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 6, 3), dim=2)
        self.part = nn.Linear(3, 3)
        self.post_init()

    def _init_weights(self, module):
        if getattr(module, "_is_hf_initialized", False):
            return
        if module is self:
            self.halved.data.mul_(0.5)
            self.replaced = nn.Parameter(torch.randn(2000) + 1)
            self.assigned.data = torch.rand(2000)
            self.beside.data = torch.full((2000,), 4.0, device=self.assigned.device) * torch.rand(2000)
            if not getattr(self.part, "_is_hf_initialized", False):
                self.part.weight.data.fill_(9.0)
                self.listed.data.fill_(9.0)
        elif isinstance(module, nn.Linear):
            module.weight.data.normal_()


@cache
def odd() -> Skeleton:
    return Skeleton.build(Odd, BertConfig())


def test_what_the_constructor_sets_is_set_as_it_does():
    of = odd()
    assert (of.draw("ones", 1) == 2.5).all()
    assert of.draw("listed", 1).tolist() == [1, 2, 3]
    assert (of.draw("halved", 1) == 0.5).all()


def test_what_the_constructor_draws_is_drawn_as_it_does():
    of = odd()
    truncated, orthogonal, derived = (of.draw(name, 1) for name in ("truncated", "orthogonal", "derived"))
    assert abs(truncated).max() <= 2
    assert 1 < truncated.std() < 1.15  # of a normal of deviation 2, within 2
    assert np.allclose(orthogonal @ orthogonal.T, np.eye(8), atol=1e-5)
    assert abs(derived.mean() - 3) < 0.05
    assert abs(derived.std() - 0.5) < 0.05
    assert 0.45 < of.draw("old", 1).mean() < 0.55


def test_a_normalised_weight_keeps_the_length_of_its_direction():
    of = odd()
    path = "convolution.parametrizations.weight.original"
    length, direction = of.draw(f"{path}0", 5), of.draw(f"{path}1", 5)
    assert np.allclose(length, np.linalg.norm(direction, axis=(0, 1), keepdims=True), rtol=1e-5)


def test_what_is_given_another_tensor_is_that():
    assert abs(odd().draw("replaced", 1).mean() - 1) < 0.1
    assert 0.45 < odd().draw("assigned", 1).mean() < 0.55


def test_what_needs_a_neighbour_on_its_device_is_drawn():
    assert 1.9 < odd().draw("beside", 1).mean() < 2.1


def test_a_part_is_found_initialised_as_in_an_ordinary_initialisation():
    assert np.ptp(odd().draw("part.weight", 1))


def test_the_default_type_and_the_mode_of_the_caller_do_not_matter():
    names = odd().parameters - {"never", "old"}  # `torch.Tensor` names the default type itself
    expected = {name: odd().draw(name, 1) for name in names}
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            of = Skeleton.build(Odd, BertConfig())
            assert same({name: of.draw(name, 1) for name in names}, expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_nothing_writes_is_refused_by_name():
    with pytest.raises(PerturbationError, match="tensor 'never': `_init_weights` of Odd and the constructor leave it"):
        odd().draw("never", 1)


def test_a_trained_model_of_such_code_is_drawn_the_same():
    torch.manual_seed(3)
    of = Skeleton.of(Odd(BertConfig()))
    assert all(np.array_equal(of.draw(name, 1), odd().draw(name, 1)) for name in odd().parameters - {"never"})


def test_what_is_given_a_transposed_tensor_is_in_order_and_of_its_shape():
    class Turned(Odd):
        def _init_weights(self, module):
            if module is self:
                self.orthogonal = nn.Parameter(torch.randn(8, 8, dtype=torch.float64).T)
                self.ones = nn.Parameter(torch.ones(3, 3))

    of = Skeleton.build(Turned, BertConfig())
    drawn = of.draw("orthogonal", 1)
    assert (drawn.dtype, drawn.flags.c_contiguous) == (np.float32, True)
    with pytest.raises(PerturbationError, match=r"tensor 'ones'.*of another shape, \(3, 3\)"):
        of.draw("ones", 1)


def test_random_numbers_without_a_generator_are_refused():
    class Foreign(Odd):
        def _init_weights(self, module):
            if module is self:
                self.ones.data.copy_(torch.native_dropout(torch.ones(3), 0.5, True)[0])

    with pytest.raises(PerturbationError, match=r"tensor 'ones'.*takes no generator of its own"):
        Skeleton.build(Foreign, BertConfig()).draw("ones", 1)


# ---- our families


def test_our_families_are_drawn_as_transformers_draws(network):
    of = Skeleton.build(model_class(network), CONFIGS[network]())
    name = "model.embedder.layers.3.conv.weight" if network == "carp" else "layers.1.fc1.weight"
    seed = int.from_bytes(hashlib.sha256(f"hf_perturb/2/42/{name}".encode()).digest()[:8], "big") % 2**63
    expected = torch.empty(of.shapes[name]).normal_(0, 0.02, generator=torch.Generator().manual_seed(seed))
    assert np.array_equal(of.draw(name, 42), expected.numpy())
    assert set(draws(of)) == of.parameters


@pytest.mark.parametrize(
    ("network", "name", "text"),
    [
        *(("esm1b", "lm_head.bias", "0"), ("esm1", "embed_out", "0")),
        ("esm1", "layers.0.self_attn.bias_k", "`normal_(0, 0.176777)`"),
    ],
)
def test_what_only_an_original_package_has_is_drawn_as_there(network, name, text):
    told = Skeleton.build(model_class(network), CONFIGS[network]()).told(name)
    assert (told.initialiser.text, told.source[:7]) == (text, "FairEsm")


# ---- what is told


@pytest.mark.parametrize(
    ("name", "text", "source", "constant"),
    [
        ("ones", "2.5", "Odd.__init__", True),
        ("halved", "0.5", "Odd.__init__; Odd._init_weights, Odd", True),
        ("truncated", "`trunc_normal_(0, 2, -2, 2)`", "Odd.__init__", False),
        ("replaced", "another tensor", "Odd._init_weights, Odd", False),
        ("assigned", "another tensor", "Odd._init_weights, Odd", False),
        ("part.weight", "`normal_()`", "Odd._init_weights, Linear", False),
        ("part.bias", "`uniform_(-0.57735, 0.57735)`", "Linear.__init__", False),
    ],
)
def test_a_draw_is_told_with_what_decides_it(name, text, source, constant):
    told = odd().told(name)
    assert (told.initialiser.text, told.source, told.constant) == (text, source, constant)


def test_a_draw_in_part_is_told_as_that():
    assert skeleton("bert").told("embeddings.word_embeddings.weight").initialiser.text == (
        "`normal_(0, 0.02)`, then `zero_()` in a part"
    )


def test_the_last_of_two_draws_is_told():
    assert skeleton("gpt2").told("h.0.mlp.c_proj.weight").initialiser.text == "`normal_(0, 0.01)`"


def test_biases_of_a_shape_beside_weights_of_others_are_told_apart():
    skeleton = Skeleton.build(EncodecModel, EncodecConfig(num_filters=4, hidden_size=16, codebook_size=8))
    table = DerivedTable("encodec", (), skeletons=(skeleton,))
    names = [name for name in skeleton.shapes if re.fullmatch(r"encoder.layers.\d+.(block.\d+.)?conv.bias", name)]
    for name in names:
        assert table.told(skeleton, name) == skeleton.told(name)
    assert len({skeleton.shapes[name] for name in names}) < len({table.told(skeleton, name) for name in names})


class OfTheDefault(PreTrainedModel):
    """Its values come of numbers that say no type, and of what it is told that such have."""

    config_class = BertConfig

    def __init__(self, config):
        super().__init__(config)
        self.scale = nn.Parameter(torch.tensor(2.6592))
        self.rates = nn.Parameter(torch.empty(9))
        self.angles = nn.Parameter(torch.empty(9))
        self.post_init()

    def _init_weights(self, module):
        with torch.no_grad():
            self.rates.copy_(torch.log(torch.arange(1, 10)))
            self.angles.copy_(torch.arange(9).to(torch.get_default_dtype()) * 0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_default_type_of_the_process_is_no_matter(dtype):
    def build():
        return Skeleton.build(OfTheDefault, BertConfig())

    expected = draws(build())
    assert np.array_equal(expected["rates"], np.log(np.arange(1, 10, dtype=np.float32)))
    torch.set_default_dtype(dtype)
    try:
        other = build()
        with ThreadPoolExecutor(4) as pool:
            names = [*expected] * 20
            found = list(zip(names, pool.map(lambda each: other.draw(each, 42), names), strict=True))
        assert torch.get_default_dtype() is dtype
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(np.array_equal(expected[name], values) for name, values in found)


def test_a_class_whose_trunk_has_another_name_than_it_says_draws_as_that():
    sizes = {**MODELS["llama"][2], "intermediate_size_mlp": 64, "num_local_experts": 2}
    config = Llama4TextConfig(**sizes)
    trunk, whole = (Skeleton.build(each, config) for each in (Llama4TextModel, Llama4ForCausalLM))
    assert not hasattr(whole.model, whole.model.base_model_prefix)
    assert {*whole.shapes} - {*trunk.shapes} == {"lm_head.weight"}
    assert same(draws(trunk), draws(whole))
    # an encoder alone is no trunk, and has the names that it has in one
    assert {*Skeleton.build(T5EncoderModel, any_config("t5")).shapes} < {*skeleton("t5").shapes}


class Orthogonal(PreTrainedModel):
    """Its values are worked out with a library that divides sums among threads."""

    config_class = BertConfig

    def __init__(self, config):
        super().__init__(config)
        self.linear = nn.Linear(256, 256)
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            init.orthogonal_(module.weight)
            init.constant_(module.bias, 0)


def test_how_many_threads_work_is_no_matter():
    of, found, before = Skeleton.build(Orthogonal, BertConfig()), [], torch.get_num_threads()
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            found.append(of.draw("linear.weight", 42))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
