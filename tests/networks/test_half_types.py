"""Half types on the CPU: bfloat16 and float16 give what float32 gives, residue by residue."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from support.models import ALPHABETS, CONFIGS, build_tokenizer, model_class, small_model
from transformers import AutoModelForMaskedLM

from hf_perturb import demo
from hf_perturb.checkpoints.network import CARP

HALVES = [torch.bfloat16, torch.float16]
DEEP = {"num_hidden_layers": 8}
LEAST = 0.999

halves = pytest.mark.parametrize("dtype", HALVES, ids=str)
paths = pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])


@cache
def deep_model(network):
    return small_model(network, **DEEP)


def real_batch(alphabet, lengths=(300, 1, 40, 77), side="right"):
    """Tokenize the beginnings of real sequences; `None` is a whole one."""
    sequences = [sequence[:n] for sequence, n in zip(demo.held_out_sequences(), lengths, strict=False)]
    return build_tokenizer(alphabet)(sequences, padding=True, padding_side=side, return_tensors="pt")


def everything(model, batch, packed=True):
    """Return every representation and the logits."""
    with torch.set_grad_enabled(not packed):
        output = model(**batch, output_hidden_states=True)
    return [x.detach() for x in (*output.hidden_states, output.logits)]


def assert_follows(halved, exact, inside, dtype, least=LEAST):
    assert len(halved) == len(exact)
    for number, (ours, theirs) in enumerate(zip(halved, exact, strict=True)):
        assert ours.dtype == dtype
        assert ours.isfinite().all(), number
        cosine = torch.nn.functional.cosine_similarity(ours[inside].double(), theirs[inside].double(), dim=-1)
        assert cosine.min() >= least, (number, cosine.min())


def least_cosine(dtype):
    """float16 has three more bits than bfloat16, so what loses them somewhere is seen."""
    return LEAST if dtype == torch.bfloat16 else 0.9999


@halves
@paths
@pytest.mark.parametrize("side", ["left", "right"])
def test_representations_and_logits(network, dtype, packed, side):
    model, batch = deep_model(network), real_batch(ALPHABETS[network], side=side)
    exact = everything(model, batch)
    halved = everything(copy.deepcopy(model).to(dtype), batch, packed)
    assert_follows(halved, exact, batch["attention_mask"] == 1, dtype, least_cosine(dtype))


@halves
def test_loading_in_a_half_type_is_casting(network, dtype, tmp_path):
    model, batch = small_model(network), real_batch(ALPHABETS[network])
    model.save_pretrained(tmp_path)
    loaded = model_class(network).from_pretrained(tmp_path, dtype=dtype)
    cast = everything(model.to(dtype), batch)
    assert all(map(torch.equal, everything(loaded, batch), cast))
    if network == "esm2":
        # positions would be rounded away
        assert {layer.self_attn.rot_emb.inv_freq.dtype for layer in loaded.layers} == {torch.float32}


@halves
@paths
def test_the_demo_base(dtype, packed):
    batch = real_batch(CARP, [None] * 6)
    exact = everything(AutoModelForMaskedLM.from_pretrained(demo.folder()).eval(), batch)
    model = AutoModelForMaskedLM.from_pretrained(demo.folder(), dtype=dtype).eval()
    assert_follows(everything(model, batch, packed), exact, batch["attention_mask"] == 1, dtype, least_cosine(dtype))


@halves
def test_long_sequences(network, dtype):
    """The last positions: a rounded angle or position would be far off there."""
    sequence = "".join(demo.held_out_sequences())
    tokenizer = build_tokenizer(ALPHABETS[network])
    batch = tokenizer([sequence[:1000], sequence[:400]], padding=True, return_tensors="pt")
    model = small_model(network)
    exact = everything(model, batch)
    assert_follows(everything(model.to(dtype), batch), exact, batch["attention_mask"] == 1, dtype, least_cosine(dtype))


@halves
def test_a_batch_gives_what_each_sequence_gives_alone(network, dtype):
    model, batch = copy.deepcopy(deep_model(network)).to(dtype), real_batch(ALPHABETS[network])
    inside = batch["attention_mask"] == 1
    together = everything(model, batch)
    for row, here in enumerate(inside):
        alone = everything(model, {"input_ids": batch["input_ids"][row, here][None]})
        assert_follows([x[row, here] for x in together], [x[0] for x in alone], slice(None), dtype)


def sharpened(network, attention):
    """Return a network with scores far from 0, of either sign, as a half type's largest numbers must not meet."""
    model = small_model(network)
    if network != "carp":
        model.set_attn_implementation(attention)
        for layer in model.layers:
            layer.self_attn.q_proj.weight.data.mul_(20)
            layer.self_attn.k_proj.weight.data.mul_(20)
    return model


@halves
@paths
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_rows_of_nothing_but_padding(network, dtype, packed, attention):
    model, batch = sharpened(network, attention).to(dtype), real_batch(ALPHABETS[network], (9, 30, 20))
    batch["attention_mask"][1] = 0
    batch["attention_mask"][2, 3:] = 0
    for values in everything(model, batch, packed):
        assert values.isfinite().all()
    with torch.no_grad():
        nothing = {**batch, "attention_mask": torch.zeros_like(batch["attention_mask"])}
        assert model(**nothing).logits.isfinite().all()


@halves
@paths
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_residual_streams_that_grow(network, dtype, packed, attention):
    """Trained networks have channels of some thousands, whose squares float16 does not hold."""
    model, batch = small_model(network), real_batch(ALPHABETS[network])
    if network != "carp":
        model.set_attn_implementation(attention)
    layers = model.model.embedder.layers if network == "carp" else model.layers
    last = layers[0].sequence2["2"]["conv"] if network == "carp" else layers[0].fc2
    last.bias.data[3] = 5000
    exact = everything(model, batch)
    inside = batch["attention_mask"] == 1
    assert exact[1][inside].abs().max() > 4000
    assert_follows(everything(model.to(dtype), batch, packed), exact, inside, dtype)


@halves
def test_the_narrow_epsilon_of_esm1(dtype):
    """1e-12 is nothing to float16: a residue whose channels are all the same must not be divided by zero."""
    model = small_model("esm1", "Model")
    assert model.config.layer_norm_eps == 1e-12
    model.embed_positions.forward = lambda positions: torch.zeros(*positions.shape, model.config.hidden_size)
    model.embed_tokens.weight.data[5] = 0.5
    model.to(dtype)
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        with torch.no_grad():
            assert model(torch.tensor([[32, 5, 6, 5], [5, 5, 1, 1]])).last_hidden_state.isfinite().all()


@halves
@pytest.mark.parametrize("network", [name for name in CONFIGS if name != "carp"])
@torch.no_grad()
def test_attentions_and_contacts(network, dtype):
    model, batch = small_model(network), real_batch(ALPHABETS[network], (60, 9, 40))
    inside = batch["attention_mask"] == 1
    exact, contacts = model(**batch, output_attentions=True).attentions, model.predict_contacts(**batch)
    model.to(dtype)
    for ours, theirs in zip(model(**batch, output_attentions=True).attentions, exact, strict=True):
        assert_follows([ours.transpose(1, 2)], [theirs.transpose(1, 2)], inside, dtype)
    assert (model.predict_contacts(**batch).float() - contacts).abs().max() < 0.1
