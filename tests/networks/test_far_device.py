"""A device that is far away, as a GPU is, is asked as often for a large batch as for a small one, and awaited once."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from support.far_device import FarDevice
from support.models import CONFIGS, small_model
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_perturb.networks import inputs, packing

WIDTH = 33
CASES = [(n, a) for n in CONFIGS if n != "carp" for a in ("eager", "sdpa")] + [("carp", None)]


@pytest.fixture
def model(name, attention, monkeypatch):
    monkeypatch.setattr(inputs, "_asserts_later", lambda device: device.type == "lazy")
    model = small_model(name, "ForMaskedLM")
    if attention is not None:
        model.set_attn_implementation(attention)
    return model


def batch_of(model, sequences):
    draw = torch.Generator().manual_seed(sequences)
    lengths = torch.randint(1, WIDTH, (sequences, 1), generator=draw)
    tokens = torch.randint(4, 24, (sequences, WIDTH), generator=draw)
    return tokens.where(torch.arange(WIDTH) < lengths, model.config.pad_token_id)


@pytest.mark.parametrize(("name", "attention"), CASES)
@torch.no_grad()
def test_a_forward_of_a_large_batch_has_the_launches_of_a_small_one(model, name):
    counts = []
    batches = [batch_of(model, sequences) for sequences in (4, 16)]
    expected = [model(tokens).logits for tokens in batches]
    with FarDevice() as far:
        far.send(model)
        for tokens, logits in zip(batches, expected, strict=True):
            there = tokens.to(far.device)
            far.forget()
            output = model(there).logits
            counts.append((dict(far.launches), dict(far.waits)))
            inside = tokens != model.config.pad_token_id
            torch.testing.assert_close(output.cpu()[inside], logits[inside], rtol=1e-5, atol=1e-5)
    assert counts[0] == counts[1]
    # the mask is fetched, where the padding is taken out
    assert counts[0][1] == ({} if name == "carp" else {"_to_copy": 1})


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_training_waits_for_nothing_of_ours(model, name):
    with FarDevice() as far:
        far.send(model)
        there = batch_of(model, 4).to(far.device)
        far.forget()
        model(there)
    # Transformers looks whether its mask can be left out
    assert sum(far.waits.values()) == (name != "carp")


@pytest.mark.parametrize(("name", "attention"), [("esm2", "sdpa"), ("carp", None)])
def test_ids_of_another_model_are_said_without_a_wait(model):
    with FarDevice() as far:
        far.send(model)
        there = torch.full((2, 5), model.config.vocab_size).to(far.device)
        far.forget()
        with pytest.raises(RuntimeError, match=r"input_ids: got ids other than 0 to \d+; was the sequence tok"):
            model(there)
    assert not far.waits


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_tokens_that_are_sent_are_looked_at_before(model, name):
    shown, counts = [], []
    tokens = batch_of(model, 5)
    lengths = model.visit_representations(lambda _, values: shown.append(values), tokens)
    with FarDevice() as far:
        far.send(model)

        def visit(number, values):
            counts.append(sum(far.waits.values()))
            torch.testing.assert_close(values.cpu(), shown[number], rtol=1e-5, atol=1e-5)
            far.forget()

        assert model.visit_representations(visit, tokens, device=far.device) == lengths
        with pytest.raises(ValueError, match="input_ids: got ids from 99 to 99"):
            model.visit_representations(visit, torch.full((1, 3), 99), device=far.device)
    assert counts == [0] * len(shown)


@pytest.mark.parametrize("extra", [False, True])
@torch.no_grad()
def test_the_kernel_of_torch_takes_what_it_is_given(extra):
    known = packing.Packing(torch.arange(9) < torch.tensor([9, 4])[:, None])
    assert (known.lengths, len(known.places)) == ((9, 4), 13)
    with FakeTensorMode(allow_non_fake_inputs=True):
        options = {"device": "lazy:0", "dtype": torch.bfloat16}
        query, key = torch.empty(1, 4, 13, 16, **options), torch.empty(1, 4, 13 + 2 * extra, 16, **options)
        output = packing._varlen_attention(query, key, key, known.to("lazy:0"), extra)
    assert (output.shape, output.dtype) == ((1, 13, 4, 16), torch.bfloat16)


_WRONG = """
import torch, hf_perturb
model = hf_perturb.CarpModel(hf_perturb.CarpConfig(hidden_size=16, num_hidden_layers=2, embedding_size=4)).cuda()
model(torch.full((2, 5), 99, device="cuda"))
torch.cuda.synchronize()
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_says_which_ids_are_allowed():
    done = subprocess.run([sys.executable, "-c", _WRONG], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode != 0
    assert "input_ids: got ids other than 0 to" in done.stderr
