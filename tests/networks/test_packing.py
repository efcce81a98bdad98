"""Batches without their padding give what padded batches give, and are used wherever they can be."""

from __future__ import annotations

import threading
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from hypothesis import given, settings, strategies as st
from support.models import CONFIGS, layers_of, small_model
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import output_capturing

from hf_perturb.networks import modeling_carp as convolution, packing
from hf_perturb.networks.packing import Packing

NETWORKS = (*CONFIGS, "esm1v")
LENGTHS = (7, 1, 30, 2, 13)
WIDTH = 33
LAYOUTS = ("right", "left", "both", "mask", "empty")
CASES = [(n, a) for n in NETWORKS if n != "carp" for a in ("eager", "sdpa")] + [("carp", None)]


def build(name, attention=None, head="ForMaskedLM", **config):
    """Build a network whose representations and logits are of order 1, which the tolerance is meant for."""
    if name == "esm1v":
        name, config = "esm1b", {"emb_layer_norm_before": False, **config}
    model = small_model(name, head, **config)
    if attention is not None:
        model.set_attn_implementation(attention)
    if name != "carp":
        model.get_input_embeddings().weight.data.mul_(0.2)
    return model


def batch_of(model, layout="right", lengths=LENGTHS, seed=0):
    """Draw a batch with padding at least at one end of each row; return its tokens and what is not padding."""
    draw, pad = torch.Generator().manual_seed(seed), model.config.pad_token_id
    tokens = torch.randint(4, 24, (len(lengths), WIDTH), generator=draw)
    tokens[torch.rand(tokens.shape, generator=draw) < 0.1] = model.config.mask_token_id
    first = [{"left": WIDTH - n, "both": (WIDTH - n) // 2}.get(layout, 0) for n in lengths]
    places = torch.arange(WIDTH) - torch.tensor(first)[:, None]
    inside = (places >= 0) & (places < torch.tensor(lengths)[:, None])
    if layout == "gaps":
        inside[2, 5:9] = inside[4, 1] = False
    if layout == "empty":
        inside[3] = False
    return {"input_ids": tokens if layout == "mask" else tokens.where(inside, pad), "attention_mask": inside}


def same(ours, theirs, atol=1e-5):
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@contextmanager
def rows_seen(model):
    """Note the (batch, length) of what the layers work on, where nobody could be taken for one who looks inside."""
    seen, masks = [], model.layer_masks

    def noted(hidden_states, *args, **kwargs):
        seen.append(tuple(hidden_states.shape[:2]))
        return masks(hidden_states, *args, **kwargs)

    model.layer_masks = noted
    try:
        yield seen
    finally:
        del model.layer_masks


def packs(model, batch):
    """Run without gradients, and say whether the layers saw only what is not padding."""
    with torch.no_grad(), rows_seen(model) as seen:
        model(**batch)
    return seen == [(1, int(batch["attention_mask"].sum()))]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "attention"), CASES)
def test_packed_gives_what_padded_gives(name, attention, layout):
    model = build(name, attention)
    batch = batch_of(model, layout)
    inside = batch["attention_mask"]
    with rows_seen(model) as seen:
        padded = model(**batch, output_hidden_states=True)
        with torch.no_grad():
            packed = model(**batch, output_hidden_states=True)
    assert seen == [tuple(inside.shape), (1, int(inside.sum()))]
    assert packed.logits.shape == padded.logits.shape
    same(packed.logits[inside], padded.logits[inside])
    assert len(packed.hidden_states) == model.config.num_hidden_layers + 1
    for ours, theirs in zip(packed.hidden_states, padded.hidden_states, strict=True):
        same(ours[inside], theirs[inside])
        assert ours.shape == theirs.shape
        assert not ours[~inside].any()


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_a_gap_inside_a_sequence_keeps_its_place(name, attention):
    model = build(name, attention)
    batch = batch_of(model, "gaps")
    inside = batch["attention_mask"]
    with torch.no_grad():
        packed = model(**batch).logits
    same(packed[inside], model(**batch).logits[inside])
    # positions are known to a transformer, and to a convolution only by the padding itself
    assert packs(model, batch) is (name != "carp")


@pytest.mark.parametrize("layout", ["right", "left", "gaps", "empty"])
@pytest.mark.parametrize(("name", "attention"), [case for case in CASES if case[0] != "carp"])
def test_positions_that_are_given_hold_in_a_packed_batch(name, attention, layout):
    model = build(name, attention)
    batch = batch_of(model, layout)
    inside = batch["attention_mask"]
    batch["position_ids"] = torch.randint(2, 900, inside.shape, generator=torch.Generator().manual_seed(3))
    assert packs(model, batch)
    padded = model(**batch, output_hidden_states=True)
    with torch.no_grad():
        packed = model(**batch, output_hidden_states=True)
        of_all = model(**{**batch, "position_ids": batch["position_ids"][:1]}).logits
    for ours, theirs in zip(
        (*packed.hidden_states, packed.logits), (*padded.hidden_states, padded.logits), strict=True
    ):
        same(ours[inside], theirs[inside].detach())
    same(of_all[inside], model(**{**batch, "position_ids": batch["position_ids"][:1]}).logits[inside].detach())


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_every_way_to_ask_gives_the_same(name):
    model = build(name)
    batch = batch_of(model)
    inside = batch["attention_mask"]
    logits, states = model(**batch).logits, model(**batch, output_hidden_states=True).hidden_states
    assert torch.equal(model(**{**batch, "input_ids": batch["input_ids"].int()}).logits, logits)
    assert torch.equal(model(**batch, return_dict=False)[0], logits)
    assert torch.equal(model(**batch, output_attentions=None).logits, logits)
    # older Transformers can only keep all
    for selected in (1, -1, [0, 2], [-2, 99]) if hasattr(output_capturing, "selected_hidden_states") else ():
        some = model(**batch, output_hidden_states=selected).hidden_states
        chosen = [i % len(states) for i in ([selected] if isinstance(selected, int) else selected) if i < 99]
        assert [i for i, state in enumerate(some) if state is not None] == sorted(chosen)
        assert all(torch.equal(some[i], states[i]) for i in chosen)
    model.config.output_hidden_states = True
    assert all(map(torch.equal, model(**batch).hidden_states, states))
    model.config.output_hidden_states = False
    with torch.inference_mode():
        same(model(**batch).logits, logits)
    for row, length in enumerate(LENGTHS):
        alone = {key: value[row : row + 1] for key, value in batch.items()}
        assert packs(model, alone)
        same(model(**alone).logits[0, :length], logits[row, :length])
    same(model.double()(**batch).logits.float()[inside], logits[inside])


@pytest.mark.parametrize("name", NETWORKS)
def test_embeddings_in_place_of_ids(name):
    model = build(name)
    batch = batch_of(model)
    embeds = model.get_input_embeddings()(batch["input_ids"]).detach()
    inputs = {"inputs_embeds": embeds, "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        packed = model(**inputs).logits
    assert packs(model, inputs)
    same(packed[inputs["attention_mask"]], model(**inputs).logits[inputs["attention_mask"]])


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_but_padding(name):
    model = build(name)
    batch = batch_of(model)
    batch["attention_mask"] = torch.zeros_like(batch["attention_mask"])
    expected = model(**batch).logits
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, expected)
    assert expected.isfinite().all()
    assert model.visit_representations(lambda *_: None, **batch) == (0,) * len(LENGTHS)


@pytest.mark.parametrize("name", NETWORKS)
def test_heads_and_contacts(name):
    for head in ("ForSequenceClassification", "ForTokenClassification"):
        model = build(name, head=head)
        batch = batch_of(model, lengths=(7, 3, 30, 4, 13))
        padded = model(**batch).logits
        with torch.no_grad():
            packed = model(**batch).logits
        mine, theirs = (
            x if head == "ForSequenceClassification" else x[batch["attention_mask"]] for x in (packed, padded)
        )
        same(mine, theirs)
    if name != "carp":
        with torch.no_grad(), rows_seen(model) as seen:
            contacts = model.predict_contacts(**batch)
        same(contacts, model.predict_contacts(**batch).detach())
        assert seen == [(len(LENGTHS), WIDTH)]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("why", ["gradients", "training", "checkpointing", "attentions", "config", "implementation"])
@pytest.mark.parametrize("name", NETWORKS)
def test_padded_where_packing_cannot_be(name, why):
    model = build(name)
    batch = batch_of(model)
    inside = batch["attention_mask"]
    if name == "carp" and why in ("attentions", "config", "implementation"):
        return
    with torch.no_grad():
        expected = model(**batch).logits
    if why == "config":
        model.set_attn_implementation("eager")  # the only one that Transformers lets the config ask attentions of
        model.config.output_attentions = True
    if why == "implementation":
        AttentionInterface.register("another", sdpa_attention_forward)
        AttentionMaskInterface.register("another", sdpa_mask)
        model.set_attn_implementation("another")
    if why in ("training", "checkpointing"):
        model.train()
    if why == "checkpointing":
        model.gradient_checkpointing_enable()
    with_gradients = why in ("gradients", "training", "checkpointing")
    with torch.set_grad_enabled(with_gradients), rows_seen(model) as seen:
        output = model(**batch, **({"output_attentions": True} if why == "attentions" else {}))
    assert seen == [tuple(inside.shape)]
    same(output.logits[inside].detach(), expected[inside])
    if why in ("attentions", "config"):
        assert output.attentions[0].shape[-2:] == (WIDTH, WIDTH)
    if with_gradients:
        output.logits.sum().backward()
        assert all(p.grad is not None for n, p in model.named_parameters() if "contact_head" not in n)


class Logits(torch.nn.Module):
    """What tracers take: tokens in, one tensor out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids, return_dict=False)[0]


def traced(model, input_ids):
    return torch.jit.trace(model, (input_ids,), check_trace=False)


def exported(model, input_ids):
    sizes = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)
    return torch.export.export(model, (input_ids,), dynamic_shapes=sizes).module()


def compiled(model, input_ids):
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend="eager")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("make", [traced, exported, compiled])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_a_graph_holds_for_batches_of_other_lengths(name, make):
    model = build(name)
    other = batch_of(model, lengths=(3, 33, 20, 1, 5), seed=1)
    function = make(Logits(model), batch_of(model)["input_ids"])
    same(function(other["input_ids"])[other["attention_mask"]], model(**other).logits[other["attention_mask"]])


@pytest.mark.parametrize("name", NETWORKS)
def test_autocast(name):
    model = build(name)
    batch = batch_of(model)
    inside = batch["attention_mask"]
    exact = model(**batch).logits[inside]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        padded = model(**batch).logits[inside].float()
        with torch.no_grad():
            packed = model(**batch).logits[inside].float()
    error = (padded - exact).abs().max().item()
    assert 0 < (packed - exact).abs().max().item() < 2 * error


@pytest.mark.parametrize("depth", [None, 0, 2, 3])
@pytest.mark.parametrize("layout", ["right", "left", "gaps", "empty"])
@pytest.mark.parametrize("name", NETWORKS)
def test_representations_can_be_looked_at_one_by_one(name, layout, depth):
    model = build(name, head="Model")
    batch = batch_of(model, layout)
    inside = batch["attention_mask"]
    states = model(**batch, output_hidden_states=True).hidden_states
    # what a config wants kept is not kept here
    model.set_attn_implementation("eager")
    model.config.output_hidden_states = model.config.output_attentions = True
    shown, called = [], []
    call = nn.Module._call_impl  # behind what is looked at to see whether somebody looks

    def noted(module, *args, **kwargs):
        called.extend(number for number, layer in enumerate(layers_of(model), start=1) if layer is module)
        return call(module, *args, **kwargs)

    with mock.patch.object(nn.Module, "_call_impl", noted), rows_seen(model) as seen:
        lengths = model.visit_representations(lambda *args: shown.append(args), **batch, depth=depth)
    assert lengths == tuple(inside.sum(1).tolist())
    numbers = list(range(1 + (model.config.num_hidden_layers if depth is None else depth)))
    assert called == numbers[1:]
    padded = (name, layout) == ("carp", "gaps")
    assert seen == ([tuple(inside.shape) if padded else (1, sum(lengths))] if called else [])
    assert [number for number, _ in shown] == numbers
    for number, values in shown:
        same(values, states[number][inside])
        assert not values.requires_grad


@pytest.mark.parametrize("name", ["esm1", "esm2", "carp"])
def test_threads_share_a_model(name):
    model = build(name)
    batches = [batch_of(model, layout, lengths, seed) for seed, (layout, lengths) in enumerate(
        [("right", LENGTHS), ("left", (1, 33, 2)), ("both", (5,)), ("right", (30, 30, 31, 1))]
    )]  # fmt: skip

    def run(batch):
        shown = []
        with torch.no_grad():
            states = model(**batch, output_hidden_states=True).hidden_states
        model.visit_representations(lambda _, x: shown.append(x), **batch)
        return [*states, *shown]

    expected, wrong = [run(batch) for batch in batches], []

    def work(number):
        try:
            for _ in range(10):
                assert all(map(torch.equal, run(batches[number]), expected[number]))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    "config",
    [{"kernel_size": k} for k in (1, 3, 11, 41)] + [{"max_dilation": r} for r in (1, 5, 1024)] + [{"slim": False}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_carps_of_all_sizes(config, dtype):
    model = build("carp", **config).to(dtype)
    batch = batch_of(model)
    with torch.no_grad():
        packed = model(**batch).logits
    assert packs(model, batch)
    same(packed[batch["attention_mask"]], model(**batch).logits[batch["attention_mask"]])


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    taps=st.sampled_from([1, 3, 5, 7]),
    dilation=st.integers(1, 64),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
@torch.no_grad()
def test_convolutions_are_those_of_each_sequence_alone(lengths, taps, dilation, dtype, seed):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(lengths), 6, generator=draw, dtype=dtype)
    weight = torch.randn(4, 6, taps, generator=draw, dtype=dtype) / (6 * taps) ** 0.5
    bias = torch.randn(4, generator=draw, dtype=dtype)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    padding = dilation * (taps // 2)
    alone = [
        torch.nn.functional.conv1d(part.t()[None], weight, bias, padding=padding, dilation=dilation)[0].t()
        for part in x.split(lengths)
    ]
    for rows in (7, 1024):
        with mock.patch.object(convolution, "_GATHERED", rows):
            for convolve in (convolution.packed_convolution, convolution.gathered_convolution):
                same(convolve(x, weight, bias, dilation, Packing(mask)), torch.cat(alone))


ATTENTIONS = [case for case in CASES if case[0] != "carp"]


@pytest.mark.parametrize("layout", [*LAYOUTS, "gaps"])
@pytest.mark.parametrize(("name", "attention"), ATTENTIONS)
def test_one_call_for_all_sequences_gives_what_a_call_for_each_gives(name, attention, layout, monkeypatch):
    model = build(name, attention)
    batch = batch_of(model, layout)
    inside, padded = batch["attention_mask"], model(**batch).logits
    with torch.no_grad():
        one_by_one = model(**batch).logits
        at_once = mock.Mock(side_effect=packing._padded_attention)
        monkeypatch.setattr(packing, "_attention_one_by_one", at_once)
        output = model(**batch).logits
        assert at_once.call_count == model.config.num_hidden_layers
        same(output[inside], padded[inside])
        same(output[inside], one_by_one[inside])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            same(model(**batch).logits[inside].float(), padded[inside], atol=0.1)


@pytest.mark.parametrize("layout", ["right", "left", "empty"])
@pytest.mark.parametrize(("name", "attention"), ATTENTIONS)
@torch.no_grad()
def test_what_is_no_number_stays_in_its_sequence(name, attention, layout, monkeypatch):
    monkeypatch.setattr(packing, "_attention_one_by_one", packing._padded_attention)
    model = build(name, attention)
    batch = batch_of(model, layout)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    embeds[2] = torch.nan
    inside = batch["attention_mask"]
    logits = model(inputs_embeds=embeds, attention_mask=inside).logits
    is_number = logits.isfinite().all(-1)
    assert not is_number[2][inside[2]].any()
    inside[2] = False
    assert is_number[inside].all()


def varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k):
    """`torch.nn.attention.varlen.varlen_attn` as it is documented, for any device."""
    for bounds, tokens, longest in ((cu_seq_q, query, max_q), (cu_seq_k, key, max_k)):
        assert bounds.dtype == torch.int32
        assert bounds[0] == 0
        assert bounds[-1] == len(tokens)
        assert type(longest) is int
        assert longest == bounds.diff().max()
        assert tokens.stride(-1) == 1
    assert key.shape == value.shape
    assert query.dtype == key.dtype == value.dtype
    parts = []
    for i in range(len(cu_seq_q) - 1):
        one, many = slice(cu_seq_q[i], cu_seq_q[i + 1]), slice(cu_seq_k[i], cu_seq_k[i + 1])
        scores = torch.einsum("qhd,khd->hqk", query[one], key[many]) / query.shape[-1] ** 0.5
        parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[many]))
    return torch.cat(parts)


@pytest.mark.parametrize("layout", [*LAYOUTS, "gaps"])
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "carp"])
def test_attention_over_sequences_of_different_lengths(name, layout, monkeypatch):
    import torch.nn.attention.varlen

    model = build(name)
    batch = batch_of(model, layout)
    inside, padded = batch["attention_mask"], model(**batch_of(model, layout)).logits
    flash = mock.Mock(side_effect=varlen)
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", flash)
    monkeypatch.setattr(packing, "_has_varlen", lambda query: True)
    with torch.no_grad():
        same(model(**batch).logits[inside], padded[inside])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            same(model(**batch).logits[inside].float(), padded[inside], atol=0.1)
    assert flash.call_count == 2 * model.config.num_hidden_layers


def test_flash_attention_is_taken_where_it_can_be(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: device)

    def taken(is_cuda=True, dtype=torch.bfloat16, shape=(1, 20, 9, 64), device=(8, 0)):
        return packing._has_varlen(SimpleNamespace(is_cuda=is_cuda, dtype=dtype, shape=shape, device=device))

    assert taken()
    assert taken(dtype=torch.float16, shape=(1, 4, 9, 24), device=(9, 0))
    assert not taken(is_cuda=False)
    assert not taken(dtype=torch.float32)
    assert not taken(device=(7, 5))
    assert not taken(shape=(1, 4, 9, 20))
    assert not taken(shape=(1, 4, 9, 264))
    monkeypatch.setattr(torch.backends.cuda, "flash_sdp_enabled", lambda: False)
    assert not taken()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NETWORKS)
def test_cuda_follows_fp32_on_the_cpu(name, dtype, autocast):
    model = build(name)
    batch = batch_of(model)
    with torch.no_grad():
        expected = model(**batch, output_hidden_states=True)
        model, there = model.cuda(), {key: value.cuda() for key, value in batch.items()}
        assert packs(model, there) is (name != "carp")
        with torch.autocast("cuda", dtype=dtype) if autocast and dtype.itemsize == 2 else nullcontext():
            output = (model if autocast else model.to(dtype))(**there, output_hidden_states=True)
    inside = batch["attention_mask"]
    for ours, theirs in zip(
        (*output.hidden_states, output.logits), (*expected.hidden_states, expected.logits), strict=True
    ):
        cosine = torch.nn.functional.cosine_similarity(ours.cpu().float()[inside], theirs[inside], dim=-1)
        assert cosine.min() > 0.999


def test_a_packing_takes_tokens_out_and_puts_them_back():
    mask = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 1, 1]], dtype=torch.bool)
    packed = Packing(mask)
    assert packed.lengths == (2, 0, 3)
    assert packed.bounds.tolist() == [0, 2, 2, 5]
    assert packed.positions.tolist() == [1, 2, 0, 2, 3]
    assert packed.with_extra.tolist() == [0, 1, 5, 5, 2, 3, 4, 5]
    assert packed.padded[0].tolist() == [[0, 0, 1, 1], [2, 2, 2, 2], [2, 2, 3, 4]]
    rows, seen = packed.padded_with_extra
    assert rows.tolist() == [[0, 0, 1, 1, 2], [3, 3, 3, 3, 3], [4, 4, 5, 6, 7]]
    assert seen.int().tolist() == [[[[0, 1, 1, 0, 1]]], [[[0, 0, 0, 0, 1]]], [[[1, 0, 1, 1, 1]]]]
    assert packed.neighbours(3, 1).tolist() == [[5, 0, 1], [0, 1, 5], [5, 2, 3], [2, 3, 4], [3, 4, 5]]
    x = torch.randn(3, 4, 2)
    assert torch.equal(packed.unpack(packed.pack(x)), x * mask[..., None])
    # between the layers of one device nothing is made anew
    assert packed.to("cpu", non_blocking=True) is packed
    moved = packed.to("meta")
    assert (moved.mask.device.type, moved.places.device.type, moved.lengths) == ("meta", "meta", packed.lengths)
    assert packed.to(torch.device("meta")) is moved
    assert moved.known is packed.known
