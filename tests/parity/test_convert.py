"""`convert` makes of an original file the network that the original package loads from it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel

import hf_perturb
from hf_perturb.perturbation import digest_of
from parity.original_files import (
    CONTACTS,
    EMBEDDING,
    HEAD,
    NAMES,
    load_original,
    original_data,
    state_of,
    write_original,
)
from parity.originals import FAIR_ESM, Pair, assert_close, draw_sequences, small_pair

LENGTHS = (7, 1, 30)
PUBLISHED_DTYPE = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
MASK = 32  # of the ESM-1b alphabet

every_network = pytest.mark.parametrize("name", NAMES)
both_formats = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


@pytest.fixture(scope="module")
def pairs() -> dict[str, Pair]:
    """Return networks to write files of; nothing changes them."""
    return {name: small_pair(name) for name in NAMES}


def convert(path: Path, **options) -> tuple[hf_perturb.Conversion, PreTrainedModel]:
    out = path.parent / "out"
    done = hf_perturb.convert_checkpoint(path, out, **options)
    return done, AutoModelForMaskedLM.from_pretrained(out)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def assert_same_tensors(model: PreTrainedModel, original: nn.Module) -> None:
    theirs, ours = original.state_dict(), model.state_dict()
    if getattr(model.config, "contact_head", True) is False:
        theirs = {name: tensor for name, tensor in theirs.items() if name not in CONTACTS}
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape), name
        assert bits(ours[name]) == bits(tensor), name


@torch.no_grad()
def assert_same_outputs(pair: Pair, model: PreTrainedModel, original: nn.Module) -> None:
    input_ids = pair.batch(LENGTHS, masked=True)
    inside = input_ids != model.config.pad_token_id
    assert not inside.all()
    assert (input_ids == model.config.mask_token_id).any()
    representations, logits = pair.represent(original, input_ids)
    assert 0.1 < logits[inside].std() < 10  # of the order that the tolerance is meant for
    outputs = model(input_ids, attention_mask=inside.long(), output_hidden_states=True)
    assert_close(outputs.logits[inside], logits[inside], "logits")
    for i, (ours, theirs) in enumerate(zip(outputs.hidden_states, representations, strict=True)):
        assert_close(ours[inside], theirs[inside], f"representation {i}")
    if getattr(model.config, "contact_head", False):
        contacts, their_contacts = model.predict_contacts(input_ids), original.predict_contacts(input_ids)
        assert their_contacts.std() > 0.05
        for ours, theirs, n in zip(contacts, their_contacts, LENGTHS, strict=True):
            assert_close(ours[:n, :n], theirs[:n, :n], f"contact map of {n} residues")


@every_network
@both_formats
def test_published_file(pairs, name, legacy, tmp_path):
    path = write_original(tmp_path, name, original_data(pairs[name]), legacy=legacy)
    stored = path.read_bytes()
    original = load_original(path)
    done, model = convert(path)
    assert_same_tensors(model, original)
    assert_same_outputs(pairs[name], model, original)
    assert model.dtype == torch.float32
    has_contacts = name not in ("esm1v", *(n for n in NAMES if n.startswith("carp")))
    counted = [p for n, p in original.named_parameters() if has_contacts or n not in CONTACTS]
    assert done.parameters == sum(parameter.numel() for parameter in counted)
    assert done.origin == ("fair-esm" if name in FAIR_ESM else "sequence-models")
    assert done.architecture == type(model).__name__
    assert path.read_bytes() == stored, "the source is only read"


@every_network
def test_configuration_is_that_of_the_network(pairs, name, tmp_path):
    _, model = convert(write_original(tmp_path, name, original_data(pairs[name]), contacts="inside"))
    read, expected = model.config.to_dict(), pairs[name].config.to_dict()
    written_by_convert = ("architectures", "auto_map", "digest", "dtype", "_name_or_path", "transformers_version")
    for key in written_by_convert:
        read.pop(key, None), expected.pop(key, None)
    assert read == expected
    expected_ids = pairs[name].tokenize(draw_sequences((30,)))[0].tolist()
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(draw_sequences((30,))[0])["input_ids"] == expected_ids


@pytest.mark.parametrize("name", ["carp", "carp_wide"])
@both_formats
def test_training_checkpoint_without_sizes(pairs, name, legacy, tmp_path):
    network = copy.deepcopy(pairs[name].original.model)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.0)
    input_ids = pairs[name].batch((7,))
    network(input_ids, (input_ids != 27).unsqueeze(-1)).square().mean().backward()
    optimizer.step()
    data = {
        "step": 1,
        "epoch": 0,
        "model_state_dict": {f"module.{key}": tensor for key, tensor in network.state_dict().items()},
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": {"last_epoch": 1, "_last_lr": [0.0]},
    }
    done, model = convert(write_original(tmp_path, "checkpoint1", data, legacy=legacy))
    assert_same_tensors(model, pairs[name].original)
    assert_same_outputs(pairs[name], model, pairs[name].original)
    assert ["dilation" in note for note in done.notes] == [True, False]
    assert ["activation" in note for note in done.notes] == [False, True]


@pytest.mark.parametrize("name", ["esm1b", "esm1v"])
@both_formats
def test_head_that_shares_the_memory_of_the_embedding(pairs, name, legacy, tmp_path):
    """The loader zeroes the mask's row of both."""
    data = original_data(pairs[name])
    state = data["model"]
    assert state[HEAD].data_ptr() == state[EMBEDDING].data_ptr()
    assert state[HEAD][MASK].abs().min() > 0
    path = write_original(tmp_path, name, data, legacy=legacy)
    original = load_original(path)
    assert not original.embed_tokens.weight[MASK].any()
    _, model = convert(path)
    assert_same_tensors(model, original)
    assert not model.embed_tokens.weight[MASK].any()


@pytest.mark.parametrize("name", ["esm1b", "esm1v"])
@pytest.mark.parametrize("edit", ["copy", "another mask row", "negative zeros"])
@both_formats
def test_head_that_is_a_copy_of_the_embedding(pairs, name, edit, legacy, tmp_path):
    """The loader zeroes the mask's row of the embedding, then loads the head, with its row, into the same tensor."""
    data = original_data(pairs[name])
    head = data["model"][HEAD].clone()
    if edit != "copy":
        head[MASK] = torch.full((32,), -0.0) if edit == "negative zeros" else torch.randn(32)
    data["model"][HEAD] = head
    path = write_original(tmp_path, name, data, legacy=legacy)
    original = load_original(path)
    assert bits(original.embed_tokens.weight[MASK]) == bits(head[MASK])
    _, model = convert(path)
    assert_same_tensors(model, original)
    assert model.lm_head.weight is model.embed_tokens.weight
    assert_same_outputs(pairs[name], model, original)


@every_network
@pytest.mark.parametrize("stored", PUBLISHED_DTYPE)
def test_file_of_another_type_is_loaded_into_float32(pairs, name, stored, tmp_path):
    data = original_data(pairs[name])
    state = state_of(data)
    state.update({key: tensor.to(PUBLISHED_DTYPE[stored]) for key, tensor in state.items()})
    path = write_original(tmp_path, name, data)
    original = load_original(path)
    assert original.state_dict()[next(iter(original.state_dict()))].dtype == torch.float32
    _, model = convert(path)
    assert_same_tensors(model, original)
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("name", ["esm1", "esm1b", "esm2"])
@torch.no_grad()
def test_missing_contact_regression(pairs, name, tmp_path):
    done, model = convert(write_original(tmp_path, name, original_data(pairs[name]), contacts="absent"))
    assert [f"no {NAMES[name]}-contact-regression.pt beside it" in note for note in done.notes] == [True]
    assert model.config.contact_head is False
    assert not set(CONTACTS) & set(load_file(tmp_path / "out" / "model.safetensors"))
    input_ids = pairs[name].batch(LENGTHS)
    with pytest.raises(ValueError, match=r"no contact head.*convert the original again"):
        model.predict_contacts(input_ids)
    assert "contact head | absent" in (tmp_path / "out" / "README.md").read_text()
    # the rest is the same network
    path = write_original(tmp_path, name, original_data(pairs[name]))
    original = load_original(path)
    assert_same_tensors(model, original)
    assert_same_outputs(pairs[name], model, original)


@both_formats
def test_contact_regression_in_the_file_itself(pairs, legacy, tmp_path):
    """The loader of an ESM-1v, which looks for no second file, takes one that is inside."""
    path = write_original(tmp_path, "esm1v", original_data(pairs["esm1v"]), legacy=legacy, contacts="inside")
    original = load_original(path)
    done, model = convert(path)
    assert model.config.contact_head is True
    assert done.notes == ()
    assert_same_tensors(model, original)
    assert_same_outputs(pairs["esm1v"], model, original)


@pytest.mark.parametrize("name", ["esm1", "esm1b", "esm2"])
def test_contact_regression_beside_the_file_wins_over_the_one_inside(pairs, name, tmp_path):
    path = write_original(tmp_path, name, original_data(pairs[name]), contacts="both")
    original = load_original(path)
    assert torch.equal(original.contact_head.regression.bias, pairs[name].original.contact_head.regression.bias)
    assert_same_tensors(convert(path)[1], original)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("dtype", [None, "float16"])
def test_buffer_that_means_nothing_may_hold_anything(pairs, garbage, dtype, tmp_path):
    """fair-esm leaves the memory of ESM-1's `_float_tensor` as it finds it."""
    data = original_data(pairs["esm1"])
    data["model"]["decoder.embed_positions._float_tensor"] = torch.tensor([garbage])
    path = write_original(tmp_path, "esm1", data)
    _, model = convert(path, dtype=dtype)
    assert model.embed_positions._float_tensor.isfinite().all()
    if dtype is None:
        assert_same_outputs(pairs["esm1"], model, load_original(path))


@every_network
@pytest.mark.parametrize("dtype", PUBLISHED_DTYPE)
def test_dtype(pairs, name, dtype, tmp_path):
    path = write_original(tmp_path, name, original_data(pairs[name]))
    done, model = convert(path, dtype=dtype)
    assert model.dtype == model.config.dtype == PUBLISHED_DTYPE[dtype]
    original = load_original(path).state_dict()
    for tensor_name, tensor in model.state_dict().items():
        kind = PUBLISHED_DTYPE[dtype]
        if tensor_name.endswith("inv_freq"):  # bfloat16 angles would be off by more than a radian at position 1000
            kind = torch.promote_types(kind, torch.float32)
        assert tensor.dtype == kind, tensor_name
        assert bits(tensor) == bits(original[tensor_name].to(kind)), tensor_name
    assert model.config.digest == done.digest == digest_of(model.state_dict())
    if name == "esm2":
        stored = load_file(tmp_path / "out" / "model.safetensors")
        kinds = {stored[f"layers.{layer}.self_attn.rot_emb.inv_freq"].dtype for layer in (0, 1)}
        assert kinds == {torch.promote_types(PUBLISHED_DTYPE[dtype], torch.float32)}


@every_network
def test_digest_is_that_of_the_loaded_model(pairs, name, tmp_path):
    done, model = convert(write_original(tmp_path, name, original_data(pairs[name])))
    assert model.config.digest == done.digest == digest_of(model.state_dict())
    assert done.digest == digest_of(load_file(tmp_path / "out" / "model.safetensors"))
    assert done.digest in (tmp_path / "out" / "README.md").read_text()
    again = hf_perturb.convert_checkpoint(tmp_path / "out", tmp_path / "again")
    assert again.digest == done.digest
    stored, copied = (tmp_path / folder / "model.safetensors" for folder in ("out", "again"))
    assert stored.read_bytes() == copied.read_bytes()


@every_network
@pytest.mark.parametrize("method", ["reinit", "resample"])
def test_variant_of_the_file_is_the_variant_of_the_folder(pairs, name, method, tmp_path):
    path = write_original(tmp_path, name, original_data(pairs[name]), legacy=method == "reinit")
    done = hf_perturb.convert_checkpoint(path, tmp_path / "base")
    of_folder = hf_perturb.create_variant(tmp_path / "base", tmp_path / "1", method)
    of_file = hf_perturb.create_variant(path, tmp_path / "2", method)
    assert of_file.base.digest == of_folder.base.digest == done.digest
    assert of_file.digest == of_folder.digest != done.digest
    assert of_file.base.name == path.name
    first, second = (load_file(tmp_path / folder / "model.safetensors") for folder in ("1", "2"))
    assert first.keys() == second.keys()
    assert all(bits(first[key]) == bits(second[key]) for key in first)
    assert digest_of(AutoModelForMaskedLM.from_pretrained(tmp_path / "2").state_dict()) == of_file.digest
