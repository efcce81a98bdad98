"""Loading in several threads: what is loaded is what is loaded alone, and Transformers is whole afterwards."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch
from support.models import CONFIGS, model_class, small_model
from transformers import EsmConfig, EsmForMaskedLM, PreTrainedModel, initialization

import hf_perturb

JOBS = [
    ("esm1b", "ForMaskedLM", {}),
    ("esm1b", "ForMaskedLM", {"perturbation": "resample"}),
    ("esm1b", "ForMaskedLM", {"dtype": torch.bfloat16}),
    ("carp", "ForMaskedLM", {}),
    ("carp", "Model", {"perturbation": "reinit"}),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for network in ("esm1b", "carp"):
        small_model(network).save_pretrained(root / network)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    EsmForMaskedLM(EsmConfig(vocab_size=33, pad_token_id=1, mask_token_id=32, **sizes)).save_pretrained(root / "stock")
    return root


@pytest.fixture
def often():
    """Let threads take turns often, so that they meet."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def load(folders, network, head, keywords):
    return model_class(network, head).from_pretrained(folders / network, **keywords).state_dict()


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name


def in_threads(*works) -> None:
    """Run functions side by side, and raise what one of them raised."""
    raised = []

    def guarded(work):
        try:
            work()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread waits for ever"
    if raised:
        raise raised[0]


def what_transformers_replaces():
    return PreTrainedModel.tie_weights, torch.linspace, torch.nn.init.normal_, torch.get_default_dtype()


@pytest.mark.parametrize("other", [None, "stock"])
def test_what_is_loaded_in_threads_is_what_is_loaded_alone(folders, often, other):
    expected = [load(folders, *job) for job in JOBS]
    before, left = what_transformers_replaces(), [8]

    def ours(first):
        try:
            for number in range(first, first + 5):
                assert_same(load(folders, *JOBS[number % len(JOBS)]), expected[number % len(JOBS)])
        finally:
            left.append(left.pop() - 1)

    def theirs():
        while left[0] > 0:
            EsmForMaskedLM.from_pretrained(folders / "stock", dtype=torch.float16)

    works = [lambda first=first: ours(first) for first in range(8)]
    in_threads(*works, *([theirs] if other else []))
    assert what_transformers_replaces()[0] is before[0]
    assert other or what_transformers_replaces() == before


def test_building_in_threads_leaves_torch_as_it_was(often):
    before = what_transformers_replaces()
    config = CONFIGS["esm1b"]()

    def work(dtype):
        for _ in range(5):
            assert hf_perturb.FairEsmModel._from_config(config, dtype=dtype).dtype == dtype

    in_threads(*[lambda dtype=dtype: work(dtype) for dtype in (torch.float32, torch.bfloat16) * 3])
    assert what_transformers_replaces() == before


def test_a_function_that_was_replaced_for_good_is_not_used(folders, monkeypatch):
    expected = load(folders, *JOBS[1])
    monkeypatch.setattr(PreTrainedModel, "tie_weights", lambda *args, **kwargs: None)
    assert_same(load(folders, *JOBS[1]), expected)
    model = hf_perturb.FairEsmForMaskedLM.from_pretrained(folders / "esm1b")
    assert model.lm_head.weight is model.embed_tokens.weight


def test_the_function_is_found_where_it_is_replaced_at_the_first_import():
    code = (
        "from transformers import PreTrainedModel, initialization\n"
        "whole = PreTrainedModel.tie_weights\n"
        "with initialization.no_tie_weights():\n"
        "    from hf_perturb import FairEsmConfig, FairEsmForMaskedLM\n"
        "assert FairEsmForMaskedLM._tie_weights.__code__ == whole.__code__\n"
        "sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)\n"
        "model = FairEsmForMaskedLM(FairEsmConfig(model_version='ESM-1b', **sizes))\n"
        "assert model.lm_head.weight is model.embed_tokens.weight\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForSequenceClassification"])
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_the_default_type_of_another_thread_is_not_that_of_the_weights(folders, monkeypatch, head, dtype):
    """Another thread may set it at any moment while the network is built."""
    cls, keywords = model_class("esm1b", head), {} if dtype is None else {"dtype": dtype}
    expected = cls.from_pretrained(folders / "esm1b", **keywords).state_dict()
    build, before = cls.build_trunk, torch.get_default_dtype()

    def meanwhile(self, config):
        torch.set_default_dtype(torch.bfloat16)
        build(self, config)

    monkeypatch.setattr(cls, "build_trunk", meanwhile)
    try:
        found = cls.from_pretrained(folders / "esm1b", **keywords).state_dict()
    finally:
        torch.set_default_dtype(before)
    kept = {name: tensor for name, tensor in expected.items() if not name.startswith("classifier.")}
    assert_same({name: found[name] for name in kept}, kept)
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        name: tensor.dtype for name, tensor in expected.items()
    }


def test_a_type_that_is_given_to_a_module_stays(folders):
    class Precise(hf_perturb.FairEsmModel):
        def build_trunk(self, config):
            super().build_trunk(config)
            self.scale = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

    assert Precise.from_pretrained(folders / "esm1b", dtype=torch.bfloat16).scale.dtype == torch.float64


def test_tensors_that_nothing_filled_are_an_error(folders, monkeypatch):
    monkeypatch.setattr(hf_perturb.FairEsmForMaskedLM, "tie_weights", lambda *args, **kwargs: None)
    with pytest.raises(OSError, match=r"no values for lm_head\.weight.*meta device.*load it again"):
        hf_perturb.FairEsmForMaskedLM.from_pretrained(folders / "esm1b")


def test_a_load_that_fails_holds_up_no_other_thread(folders):
    with pytest.raises(ValueError, match="not a floating-point"):
        hf_perturb.FairEsmModel.from_pretrained(folders / "esm1b", dtype=torch.int8)
    in_threads(lambda: load(folders, *JOBS[0]))


class Outer(PreTrainedModel):
    """Somebody's model that loads one of ours while Transformers builds it."""

    config_class = EsmConfig

    def __init__(self, config, folder):
        super().__init__(config)
        with torch.device("cpu"):
            self.inner = hf_perturb.FairEsmForMaskedLM.from_pretrained(folder)
        self.post_init()

    def _init_weights(self, module):
        pass


def test_a_model_is_loaded_inside_another_that_is_loaded(folders, often, tmp_path):
    Outer(EsmConfig(hidden_size=8), folders / "esm1b").save_pretrained(tmp_path)
    expected = load(folders, *JOBS[0])

    def outer():
        for _ in range(3):
            assert_same(Outer.from_pretrained(tmp_path, folders / "esm1b").inner.state_dict(), expected)

    def ours():
        for _ in range(5):
            assert_same(load(folders, *JOBS[0]), expected)

    in_threads(outer, ours, ours)
    with initialization.no_tie_weights():
        assert_same(load(folders, *JOBS[0]), expected)
