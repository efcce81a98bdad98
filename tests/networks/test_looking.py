"""Whoever looks inside a network sees `(batch, length, hidden)`: batches are packed only while nobody does."""

from __future__ import annotations

from contextlib import contextmanager
from functools import wraps
from unittest import mock

import nnsight
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module
from captum.attr import LayerActivation, LayerGradientXActivation
from support.models import layers_of, model_class, small_model
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hf_perturb.networks.packing import Packing, is_looked_into

LENGTHS = (30, 21, 9)
CASES = [(name, kind) for name in ("esm1", "esm1b", "esm2") for kind in ("sdpa", "eager")] + [("carp", None)]


def build(name, attention=None):
    model = small_model(name, num_hidden_layers=3)
    if attention is not None:
        model.set_attn_implementation(attention)
    return model


def batch_of(model):
    tokens = torch.randint(4, 24, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(0))
    inside = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return {"input_ids": tokens.where(inside, model.config.pad_token_id), "attention_mask": inside}


def is_packed(model):
    """Whether a batch with padding is packed."""
    with torch.no_grad(), mock.patch.object(Packing, "pack", autospec=True, side_effect=Packing.pack) as pack:
        model(**batch_of(model))
    return pack.called


def parts_of(model):
    """Return every module that is called inside the layers, by its name there."""
    layer = layers_of(model)[1]
    called = {name: part for name, part in layer.named_modules() if not isinstance(part, nn.ModuleDict)}
    if model.config.model_type == "fair_esm" and model.config.model_version != "ESM-1":
        called["norm"] = model.emb_layer_norm_after
    return called


def changed_rows(before, after, inside):
    return [(before[row] - after[row])[mask].abs().max().item() > 0 for row, mask in enumerate(inside)]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(filter(None, case)))
def model(request):
    return build(*request.param)


def first(output):
    return output[0] if isinstance(output, tuple) else output


def test_a_hook_sees_the_same_with_and_without_gradients(model):
    batch = batch_of(model)
    inside = batch["attention_mask"]

    def seen_by(part, context):
        seen = []
        with part.register_forward_hook(lambda *given: seen.append(first(given[-1]).detach().clone())), context:
            model(**batch)
        return seen

    for name, part in parts_of(model).items():
        length = 2 if type(part).__name__ in ("CarpConvolution", "FairEsmRotaryPositions") else 1
        plain = seen_by(part, torch.enable_grad())
        for context in (torch.no_grad(), torch.inference_mode()):
            for mine, theirs in zip(seen_by(part, context), plain, strict=True):
                assert mine.shape == theirs.shape, name
                assert (len(mine), mine.shape[length]) == inside.shape, name
                mine, theirs = (x.movedim(length, 1)[inside] for x in (mine, theirs))
                torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    assert is_packed(model)


def test_a_patched_position_is_that_of_every_sequence(model):
    batch, inside = batch_of(model), batch_of(model)["attention_mask"]
    with torch.no_grad():
        before = model(**batch).logits

    def patch(module, args, output):
        output = output.clone()
        output[:, 5] = 0
        return output

    with layers_of(model)[1].register_forward_hook(patch), torch.no_grad():
        after = model(**batch).logits
    assert changed_rows(before, after, inside) == [True] * len(LENGTHS)
    with layers_of(model)[1].register_forward_hook(patch):
        torch.testing.assert_close(after[inside], model(**batch).logits[inside], rtol=0, atol=1e-4)


def test_pooling_in_a_hook_gives_a_vector_for_each_sequence(model):
    pooled, batch = [], batch_of(model)
    weights = batch["attention_mask"].float() / batch["attention_mask"].sum(1, keepdim=True)
    with (
        layers_of(model)[0].register_forward_hook(
            lambda *given: pooled.append((given[-1] * weights[..., None]).sum(1))
        ),
        torch.inference_mode(),
    ):
        model(**batch)
    assert pooled[0].shape == (len(LENGTHS), model.config.hidden_size)
    for row, length in enumerate(LENGTHS):
        with torch.no_grad():
            alone = model(batch["input_ids"][row : row + 1, :length], output_hidden_states=True).hidden_states[1][0]
        torch.testing.assert_close(pooled[0][row], alone.mean(0), rtol=0, atol=1e-5)


def test_captum_sees_every_sequence(model):
    batch = batch_of(model)

    def logits(input_ids):
        return model(input_ids).logits.sum((1, 2))

    found = LayerActivation(logits, layers_of(model)[1]).attribute(batch["input_ids"])
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states[2]
    inside = batch["attention_mask"]
    torch.testing.assert_close(found[inside], states[inside], rtol=0, atol=1e-5)
    assert LayerGradientXActivation(logits, layers_of(model)[1]).attribute(batch["input_ids"]).shape == states.shape


def test_nnsight_sees_and_patches_every_sequence(model):
    batch, inside = batch_of(model), batch_of(model)["attention_mask"]
    place = "model.embedder.layers" if model.config.model_type == "carp" else "layers"
    with torch.no_grad():
        plain = model(**batch, output_hidden_states=True)
    sight = nnsight.NNsight(model)
    layer = sight.get(f"{place}.1")
    with torch.no_grad():
        with sight.trace(**batch):
            seen = layer.output.save()
        with sight.trace(**batch):
            layer.output[:, 5] = 0
            patched = sight.output.save()
    torch.testing.assert_close(seen[inside], plain.hidden_states[2][inside], rtol=0, atol=1e-5)
    assert changed_rows(plain.logits, patched.logits, inside) == [True] * len(LENGTHS)


class Wrapped(nn.Module):
    """A module of somebody's in the place of ours."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, *args, **kwargs):
        return self.part(*args, **kwargs)


class Spy(ModelHook):
    """What somebody puts around a module by the means of accelerate."""


def wrapped(part):
    """Wrap a method as a profiler does, under its own name."""

    @wraps(part)
    def method(*args, **kwargs):
        return part(*args, **kwargs)

    return method


@contextmanager
def exchanged(model):
    layers = layers_of(model)
    layers[1], kept = Wrapped(layers[1]), layers[1]
    yield
    layers[1] = kept


@contextmanager
def on_the_instance(model):
    layer = layers_of(model)[1]
    layer.forward = wrapped(layer.forward)
    yield
    del layer.forward


def on_the_class(model):
    kind = type(layers_of(model)[1])
    return mock.patch.object(kind, "forward", wrapped(kind.forward))


@contextmanager
def of_a_subclass(model):
    """Look from `__call__`, which a class may have of its own."""
    layer = layers_of(model)[1]
    kind = type(layer)
    layer.__class__ = type("Spying", (kind,), {"__call__": wrapped(kind.__call__)})
    yield
    layer.__class__ = kind


@contextmanager
def compiled(model):
    layers = layers_of(model)
    layers[1], kept = torch.compile(layers[1], backend="eager"), layers[1]
    yield
    layers[1] = kept


@contextmanager
def compiled_in_place(model):
    layer = layers_of(model)[1]
    layer.compile(backend="eager")
    yield
    layer._compiled_call_impl = None


@contextmanager
def through_accelerate(model):
    add_hook_to_module(layers_of(model)[1], AlignDevicesHook())
    add_hook_to_module(layers_of(model)[1], Spy(), append=True)
    yield
    layers_of(model)[1].forward = layers_of(model)[1]._old_forward


@contextmanager
def around_accelerate(model):
    layer = layers_of(model)[1]
    add_hook_to_module(layer, AlignDevicesHook())
    layer.forward = wrapped(layer.forward)
    yield
    del layer.forward


@contextmanager
def within_accelerate(model):
    layer = layers_of(model)[1]
    layer.forward = wrapped(layer.forward)
    add_hook_to_module(layer, AlignDevicesHook())
    yield
    del layer.forward


@contextmanager
def mixing(model):
    """Put in a module of torch's own, from which residues would see those of other sequences."""
    owner, name = (
        (layers_of(model)[2].sequence2, "0") if model.config.model_type == "carp" else (layers_of(model)[2], "fc2")
    )
    kept = owner.get_submodule(name)
    width = kept.normalized_shape[0] if isinstance(kept, nn.LayerNorm) else kept.out_features
    setattr(owner, name, nn.Sequential(kept, nn.TransformerEncoderLayer(width, 4, 8, batch_first=True).eval()))
    yield
    setattr(owner, name, kept)


def leaf(model):
    return layers_of(model)[2].sequence2["0"] if model.config.model_type == "carp" else layers_of(model)[2].fc2


LOOKING = {
    "hook": lambda model: leaf(model).register_forward_hook(lambda *_: None),
    "hook with keywords": lambda model: leaf(model).register_forward_hook(lambda *_: None, with_kwargs=True),
    "pre-hook": lambda model: leaf(model).register_forward_pre_hook(lambda *_: None),
    "hook of all modules": lambda model: nn.modules.module.register_module_forward_hook(lambda *_: None),
    "pre-hook of all modules": lambda model: nn.modules.module.register_module_forward_pre_hook(lambda *_: None),
    "another module": exchanged,
    "another method": on_the_instance,
    "another method of the class": on_the_class,
    "another call": lambda model: mock.patch.object(nn.Module, "__call__", wrapped(nn.Module.__call__)),
    "accelerate": through_accelerate,
    "around accelerate": around_accelerate,
    "within accelerate": within_accelerate,
    "class of its own": of_a_subclass,
    "torch's own that mixes positions": mixing,
    "compiled": compiled,
    "compiled in place": compiled_in_place,
}


@pytest.mark.parametrize("how", LOOKING)
@pytest.mark.parametrize("name", ["esm1b", "carp"])
def test_nothing_is_packed_while_somebody_looks(name, how):
    model = build(name)
    assert is_packed(model)
    with LOOKING[how](model):
        assert is_looked_into(*model.stack())
        assert not is_packed(model)
        shown = []
        lengths = model.visit_representations(lambda _, x: shown.append(x), **batch_of(model))
        assert lengths == LENGTHS
        assert all(x.shape == (sum(LENGTHS), model.config.hidden_size) for x in shown)
    layers_of(model)[1].__dict__.pop("forward", None)
    assert is_packed(model)


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_an_attention_function_of_somebodys_sees_every_sequence(kind):
    model, seen = build("esm1b", kind), []

    def attend(module, query, *args, **kwargs):
        seen.append(query.shape[::2])
        return sdpa_attention_forward(module, query, *args, **kwargs)

    with mock.patch.dict(AttentionInterface._global_mapping, {kind: attend}):
        assert not is_packed(model)
    assert seen == [(len(LENGTHS), max(LENGTHS))] * 3
    assert is_packed(model)


def test_a_convolution_of_torchs_own_takes_the_place_of_ours():
    model = build("carp")
    with torch.no_grad():
        before = model(**batch_of(model)).logits
        for layer in layers_of(model):
            ours = layer.conv
            layer.conv = nn.Conv1d(16, 16, 5, padding=tuple(ours.padding), dilation=ours.dilation)
            layer.conv.load_state_dict(ours.state_dict())
        after = model(**batch_of(model)).logits
    inside = batch_of(model)["attention_mask"]
    torch.testing.assert_close(after[inside], before[inside], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["esm1b", "carp"])
def test_what_collects_hidden_states_and_what_moves_weights_does_not_look(name):
    model = build(name)
    with torch.no_grad():
        model(**batch_of(model), output_hidden_states=True)
    assert any(layer._forward_hooks for layer in layers_of(model))
    assert is_packed(model)
    for module in [*layers_of(model), leaf(model)]:
        add_hook_to_module(module, AlignDevicesHook(execution_device="cpu", io_same_device=True))
    assert "forward" in vars(leaf(model))
    assert is_packed(model)
    model.register_forward_hook(lambda *_: None)
    model.get_input_embeddings().register_forward_hook(lambda *_: None)
    assert is_packed(model), "outside the layers a batch is never packed"


@pytest.mark.parametrize("name", ["esm1b", "carp"])
def test_packing_can_be_switched_off(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path / "on")
    assert '"packing"' not in (tmp_path / "on/config.json").read_text()
    model.config.packing = False
    assert not is_packed(model)
    model.save_pretrained(tmp_path / "off")
    load = model_class(name).from_pretrained
    assert not is_packed(load(tmp_path / "off"))
    assert is_packed(load(tmp_path / "on"))
    assert not is_packed(load(tmp_path / "on", packing=False))
    assert is_packed(load(tmp_path / "off", packing=True))
    with pytest.raises(Exception, match="packing"):
        load(tmp_path / "on", packing="never")
