"""Networks larger than one device: layers on disk, and layers on several devices."""

from __future__ import annotations

import re

import pytest
import torch
from accelerate.utils import send_to_device
from support.models import ALPHABETS, CONFIGS, SEQUENCES, build_tokenizer, layers_of, model_class, small_model
from torch._subclasses.fake_tensor import FakeTensorMode

import hf_perturb
from hf_perturb.networks import inputs
from hf_perturb.networks.packing import Packing

REINIT = {"method": "reinit", "seed": 0}
# accelerate knows modules alone; ESM-1's output projection is a parameter of the whole
pytestmark = pytest.mark.filterwarnings("ignore:The following device_map keys do not match.*embed_out:UserWarning")


@pytest.fixture
def saved(network, head, tmp_path):
    """Save a small network; return it, its folder and a batch."""
    model = small_model(network, head)
    model.save_pretrained(tmp_path / "model")
    batch = build_tokenizer(ALPHABETS[network])(SEQUENCES, padding=True, return_tensors="pt")
    return model, tmp_path / "model", batch


def load(model, folder, **kwargs):
    return type(model).from_pretrained(folder, offload_folder=folder.parent / "offload", **kwargs)


def on_disk(model):
    return {name for name, parameter in model.named_parameters() if parameter.is_meta}


def assert_same(ours, theirs, atol=1e-6):
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.device == other.device
        torch.testing.assert_close(mine, other, rtol=0, atol=atol)


def outputs(model, batch, grad=False):
    with torch.set_grad_enabled(grad):
        output = model(**batch, output_hidden_states=True)
    return [output[0].detach(), *(x.detach() for x in output.hidden_states)]


def size(model):
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def every_other_layer(model):
    """Map every second layer to the disk and all else to the CPU."""
    found = {}
    layers = {id(layer): i for i, layer in enumerate(layers_of(model))}

    def place(name, module):
        if id(module) in layers:
            found[name] = "disk" if layers[id(module)] % 2 else "cpu"
        elif any(id(inner) in layers for inner in module.modules()):
            for child, inner in module.named_children():
                place(f"{name}.{child}".lstrip("."), inner)
            found.update({f"{name}.{child}".lstrip("."): "cpu" for child, _ in module.named_parameters(recurse=False)})
        else:
            found[name] = "cpu"

    place("", model)
    return found


@pytest.mark.parametrize("head", ["ForMaskedLM"])
def test_on_one_device(saved):
    model, folder, batch = saved
    for device_map in ("auto", "cpu", {"": "cpu"}, {"": torch.device("cpu")}):
        loaded = load(model, folder, device_map=device_map)
        assert not on_disk(loaded)
        assert_same(outputs(loaded, batch), outputs(model, batch))


def test_every_other_layer_on_disk(saved):
    model, folder, batch = saved
    loaded = load(model, folder, device_map=every_other_layer(model))
    assert on_disk(loaded) == {name for name, _ in model.named_parameters() if re.search(r"layers\.\d*[13579]\.", name)}
    for grad in (False, True):
        assert_same(outputs(loaded, batch, grad), outputs(model, batch, grad))


@pytest.mark.parametrize("share", [0.7, 0.4, 0.1])
@pytest.mark.parametrize("head", ["ForMaskedLM", "ForSequenceClassification"])
def test_auto_spills_what_does_not_fit(saved, share):
    model, folder, batch = saved
    loaded = load(model, folder, device_map="auto", max_memory={"cpu": int(share * size(model))})
    assert on_disk(loaded)
    assert_same(outputs(loaded, batch), outputs(model, batch))


@pytest.mark.parametrize(
    ("keyword", "dtype"),
    [("dtype", torch.bfloat16), ("dtype", torch.float16), ("dtype", "auto"), ("torch_dtype", "bfloat16")],
)
@pytest.mark.parametrize("head", ["ForMaskedLM"])
@pytest.mark.filterwarnings("ignore:.*torch_dtype.*")
def test_with_a_type(saved, dtype, keyword):
    model, folder, batch = saved
    loaded = load(model, folder, device_map="auto", max_memory={"cpu": int(0.3 * size(model))}, **{keyword: dtype})
    cast = model if dtype == "auto" else model.to({"bfloat16": torch.bfloat16}.get(dtype, dtype))
    assert loaded.dtype == cast.dtype
    assert on_disk(loaded)
    assert_same(outputs(loaded, batch), outputs(cast, batch), atol=0)


@pytest.mark.parametrize("head", ["Model"])
def test_attentions_contacts_and_visits_with_layers_on_disk(saved, network):
    model, folder, batch = saved
    loaded = load(model, folder, device_map=every_other_layer(model))
    shown = [[], []]
    for mine, each in zip(shown, (loaded, model), strict=True):
        each.visit_representations(lambda _, values, mine=mine: mine.append(values), **batch)
    assert len(shown[0]) == model.config.num_hidden_layers + 1
    assert_same(*shown)
    if network != "carp":
        with torch.no_grad():
            assert_same([loaded.predict_contacts(**batch)], [model.predict_contacts(**batch)])
            assert_same(*(each(**batch, output_attentions=True).attentions for each in (loaded, model)))


@pytest.mark.parametrize("head", ["ForMaskedLM"])
def test_a_half_type_on_disk_shares_what_a_batch_needs(saved, network, monkeypatch):
    """What every layer needs of a packing is worked out once, although each is sent to its device."""
    model, folder, batch = saved
    loaded = load(model, folder, device_map=every_other_layer(model))
    seen = set()
    to = Packing.to
    monkeypatch.setattr(Packing, "to", lambda self, *args, **kwargs: seen.add(id(self)) or to(self, *args, **kwargs))
    outputs(loaded, batch)
    assert len(seen) == 1


@pytest.mark.parametrize("head", ["ForMaskedLM"])
def test_perturbing_what_is_on_disk_is_refused(saved):
    model, folder, _ = saved
    with pytest.raises(ValueError, match="disk"):
        load(model, folder, device_map=every_other_layer(model), perturbation=REINIT)
    loaded = load(model, folder, device_map="auto", max_memory={"cpu": int(0.5 * size(model))})
    with pytest.raises(hf_perturb.HfPerturbError, match="disk"):
        loaded.perturb(REINIT)


# The rest spreads a network over two devices that this machine need not have: fake tensors have no values, but refuse
# to meet a tensor of another device. "lazy" is a device type that every build of PyTorch accepts for them.
DEVICES = [torch.device("lazy", number) for number in range(2)]


def parts(model):
    """Name the modules that a device map may place, in the order in which "auto" does."""

    def walk(module, prefix):
        for name, child in module.named_children():
            if type(child).__name__ in model._no_split_modules or not list(child.children()):
                yield prefix + name
            else:
                yield from walk(child, f"{prefix}{name}.")

    return list(walk(model, ""))


def spread(module, device_map, prefix="", device=DEVICES[0]):
    """Put a network of the meta device where a map says, with the hooks that accelerate would add."""
    device = device_map.get(prefix, device)
    if prefix in device_map or not prefix:
        module.register_forward_pre_hook(lambda _, *given: send_to_device(given, device), with_kwargs=True)
    for name, tensor in list(module.named_parameters(recurse=False)):
        place = device_map.get(f"{prefix}.{name}".lstrip("."), device)
        setattr(module, name, torch.nn.Parameter(torch.empty(tensor.shape, device=place)))
    for name, tensor in list(module.named_buffers(recurse=False)):
        setattr(module, name, torch.nn.Buffer(torch.empty(tensor.shape, device=device)))
    for name, child in module.named_children():
        spread(child, device_map, f"{prefix}.{name}".lstrip("."), device)


def cut_networks(network, head):
    """Make a network once for each place where the second device can begin, and say which part is where."""
    cut = names = None
    while cut is None or cut <= len(names):
        with torch.device("meta"):
            model = model_class(network, head)(CONFIGS[network](num_hidden_layers=2))
        cut, names = 0 if cut is None else cut, parts(model)
        yield model, {name: DEVICES[place >= cut] for place, name in enumerate(names)}
        cut += 1


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForSequenceClassification"])
def test_on_two_devices_wherever_the_cut_is(network, head, monkeypatch):
    monkeypatch.setattr(inputs, "_check_ids", lambda *args: None)  # it looks at values
    for model, device_map in cut_networks(network, head):
        packing = Packing(torch.arange(9) < torch.tensor([9, 4])[:, None])
        assert (packing.lengths, len(packing.places)) == ((9, 4), 13)
        with FakeTensorMode(allow_non_fake_inputs=True):
            spread(model, device_map)
            input_ids = torch.full((2, 9), 5, device=DEVICES[0])
            output = model(input_ids, output_hidden_states=True)
            assert len(output.hidden_states) == 3
            hidden, mask = model.begin(input_ids, None, None)
            packed = packing.to(DEVICES[0])
            with torch.no_grad():
                last = model.run_layers(packed.pack(hidden), mask, packed, return_dict=True).last_hidden_state
            assert packed.unpack(last).shape == hidden.shape
            if network != "carp":
                assert model.predict_contacts(input_ids).shape[0] == 2
            # what is not called as a module has no hook that would bring its arguments along
            model.begin(input_ids.cpu(), None, None)
