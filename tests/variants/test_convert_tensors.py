"""Tensors and sizes that `convert` refuses: missing, left over, of another shape or kind, or no numbers."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from parity.original_files import CONTACTS, EMBEDDING, HEAD, NAMES, REGRESSION
from safetensors.torch import load_file
from support.refusals import edited, refuse, replaced
from transformers import AutoModelForMaskedLM

import hf_perturb
from hf_perturb.perturbation import digest_of

FC = "encoder.sentence_encoder.layers.1.fc1.weight"
POSITIONS = "encoder.sentence_encoder.embed_positions.weight"
MASK = 32  # of the ESM-1b alphabet


def nothing(*names: str):
    return replaced(**dict.fromkeys(names))


def zeros(name: str):
    return replaced(**{name: lambda _: torch.zeros(1)})


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("esm1b", nothing(FC), r"missing tensors: layers\.1\.fc1\.weight$"),
        ("esm1b", nothing(FC, POSITIONS), r"missing tensors: layers\.1\.fc1\.weight, embed_positions\.weight$"),
        ("esm1b", nothing(EMBEDDING), r"embed_tokens\.weight"),
        ("esm2", nothing(EMBEDDING), r"embed_tokens\.weight"),
        ("esm1", nothing("decoder.embed_out"), r"missing tensors: embed_out$"),
        ("carp", nothing("last_norm.bias"), r"missing tensors: model\.last_norm\.bias$"),
        ("carp", nothing("embedder.embedder.weight"), r"embedder\.embedder\.weight"),
        ("esm1b", zeros("encoder.version"), "tensors that this network does not have: version$"),
        ("esm1b", zeros("encoder.sentence_encoder.layers.2.fc1.bias"), r"not have: layers\.2\.fc1\.bias$"),
        ("carp", zeros("adapter.weight"), r"tensors that this network does not have: model\.adapter\.weight$"),
        ("esm1b", zeros("layers.1.fc1.weight"), "two of its tensors have the same name"),
    ],
)
def test_missing_and_extra_tensors_are_named(tmp_path, name, edit, message):
    refuse(edited(tmp_path, name, edit), tmp_path, message)


def test_only_the_first_of_many_missing_tensors_are_named(tmp_path):
    def drop_a_layer(data):
        nothing(*(name for name in data["model"] if ".layers.1." in name))(data)

    said = refuse(edited(tmp_path, "esm1b", drop_a_layer), tmp_path, r"missing tensors: layers\.1\..* and 8 more$")
    assert said.count("layers.1.") == 8


@pytest.mark.parametrize(
    ("name", "tensors", "message"),
    [
        ("esm1b", (FC,), r"layers\.1\.fc1\.weight \(127, 32\) instead of \(128, 32\)$"),
        ("esm1b", (POSITIONS,), r"embed_positions\.weight \(1025, 32\) instead of \(1026, 32\)$"),
        ("esm1b", (EMBEDDING,), r"embed_tokens\.weight"),
        ("esm1b", (EMBEDDING, HEAD), r"embed_tokens\.weight"),
        ("esm2", (EMBEDDING, HEAD), r"embed_tokens\.weight \(32, 32\) instead of \(33, 32\)$"),
        ("esm1", ("decoder.embed_tokens.weight",), r"embed_tokens\.weight \(34, 32\) instead of \(35, 32\)$"),
        ("carp", ("decoder.conv.bias",), r"model\.decoder\.conv\.bias \(29,\) instead of \(30,\)$"),
    ],
)
def test_wrong_shapes_are_named(tmp_path, name, tensors, message):
    refuse(edited(tmp_path, name, replaced(**dict.fromkeys(tensors, lambda t: t[:-1]))), tmp_path, message)


def test_regression_of_another_network(tmp_path):
    path = edited(tmp_path, "esm1b")
    regression = path.with_name(path.stem + REGRESSION)
    torch.save({"model": {CONTACTS[0]: torch.zeros(1, 660), CONTACTS[1]: torch.zeros(1)}}, regression)
    refuse(path, tmp_path, r"contact_head\.regression\.weight \(1, 660\) instead of \(1, 4\)$")
    torch.save({"model": {CONTACTS[0]: torch.zeros(1, 4)}}, regression)
    refuse(path, tmp_path, r"missing tensors: contact_head\.regression\.bias$")
    torch.save([1], regression)
    refuse(path, tmp_path, rf"{REGRESSION}: its 'model' is not a state_dict")
    regression.write_text("404 Not Found")
    refuse(path, tmp_path, f"{REGRESSION} is damaged")


KINDS = {
    "int8": lambda tensor: tensor.to(torch.int8),
    "int64": lambda tensor: tensor.to(torch.int64),
    "bool": lambda tensor: tensor > 0,
    "complex": lambda tensor: tensor.to(torch.complex64),
    "float8": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "sparse": lambda tensor: tensor.to_sparse(),
    "without values": lambda tensor: tensor.to("meta"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "tensor"), [("esm1b", FC), ("carp", "last_norm.weight")])
def test_tensors_of_another_kind_are_named(tmp_path, name, tensor, kind):
    named = tensor.removeprefix("encoder.sentence_encoder.").replace(".", r"\.")
    refuse(edited(tmp_path, name, replaced(**{tensor: KINDS[kind]})), tmp_path, named)


# what the files call their sizes, with the names of our configurations
SIZES = [
    ("esm1", "decoder_layers", "num_hidden_layers"),
    ("esm1b", "encoder_layers", "num_hidden_layers"),
    ("esm1b", "encoder_embed_dim", "hidden_size"),
    ("esm1b", "encoder_attention_heads", "num_attention_heads"),
    ("esm1b", "encoder_ffn_embed_dim", "intermediate_size"),
    ("esm2", "encoder_layers", "num_hidden_layers"),
    ("esm2", "encoder_attention_heads", "num_attention_heads"),
    ("carp", "n_layers", "num_hidden_layers"),
    ("carp", "d_model", "hidden_size"),
    ("carp", "kernel_size", "kernel_size"),
    ("carp", "r", "max_dilation"),
    ("carp", "slim", "slim"),
    ("carp", "activation", "hidden_act"),
]


def sized(tmp_path: Path, name: str, key: str, value: object) -> Path:
    def edit(data):
        if name == "carp":
            data[key] = value
        else:
            setattr(data["cfg"]["model"] if name == "esm2" else data["args"], key, value)

    return edited(tmp_path, name, edit)


@pytest.mark.parametrize("value", ["2", -1, 0, 2.5, None], ids=repr)
@pytest.mark.parametrize(("name", "key", "ours"), SIZES)
def test_sizes_that_are_none(tmp_path, name, key, ours, value):
    refuse(sized(tmp_path, name, key, value), tmp_path, f"{NAMES[name]}.*{ours}")


@pytest.mark.parametrize("value", ["1024", -1, None], ids=repr)
def test_number_of_positions_that_is_none(tmp_path, value):
    refuse(sized(tmp_path, "esm1b", "max_positions", value), tmp_path, NAMES["esm1b"])


# a million layers tell as much as more of them, and cost less if they are believed
ABSURD = [(*size[:2], 10**6) for size in SIZES[:10]] + [(*s[:2], 10**30) for s in SIZES[:10] if "layers" not in s[1]]


@pytest.mark.parametrize(("name", "key", "value"), ABSURD)
def test_absurd_sizes_cost_neither_time_nor_memory(tmp_path, name, key, value):
    path = sized(tmp_path, name, key, value)
    begin = time.monotonic()
    tracemalloc.start()
    try:
        refuse(path, tmp_path, NAMES[name])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.monotonic() - begin < 5
    assert peak < 20e6


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize(("name", "tensor"), [("esm1b", FC), ("esm1", "decoder.embed_out"), ("carp", "last_norm.bias")])
def test_weights_that_are_no_numbers(tmp_path, name, tensor, value):
    def spoil(weight):
        weight = weight.clone()
        weight.view(-1)[-1] = value
        return weight

    path = edited(tmp_path, name, replaced(**{tensor: spoil}))
    short = tensor.removeprefix("encoder.sentence_encoder.").removeprefix("decoder.").replace(".", r"\.")
    refuse(path, tmp_path, rf"NaN or infinite weights in (model\.)?{short};.*allow_nonfinite=True")
    done = hf_perturb.convert_checkpoint(path, tmp_path / "out", allow_nonfinite=True)
    assert digest_of(AutoModelForMaskedLM.from_pretrained(tmp_path / "out").state_dict()) == done.digest
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert [key for key, weight in stored.items() if not weight.isfinite().all()] == [
        ("model." if name == "carp" else "") + short.replace("\\", "")
    ]


def test_nan_in_the_row_of_the_mask(tmp_path):
    """The loader overwrites that row of the embedding, and not that of a head which is a copy."""

    def spoil(weight):
        return weight.index_fill(0, torch.tensor(MASK), float("nan"))

    whole = hf_perturb.convert_checkpoint(edited(tmp_path, "esm1b", replaced(**{HEAD: torch.clone})), tmp_path / "1")
    done = hf_perturb.convert_checkpoint(edited(tmp_path, "esm1b", replaced(**{EMBEDDING: spoil})), tmp_path / "2")
    assert done.digest == whole.digest
    refuse(edited(tmp_path, "esm1b", replaced(**{HEAD: spoil})), tmp_path, r"NaN .* in embed_tokens\.weight;")


@pytest.mark.parametrize("name", ["esm1b", "carp"])
def test_overflow_of_a_narrow_type(tmp_path, name):
    tensor, short = (FC, r"layers\.1\.fc1\.weight") if name == "esm1b" else ("last_norm.bias", r"last_norm\.bias")
    path = edited(tmp_path, name, replaced(**{tensor: lambda weight: weight * 1e6}))
    refuse(path, tmp_path, f"infinite weights in .*{short};.*too narrow", dtype="float16")
    hf_perturb.convert_checkpoint(path, tmp_path / "out", dtype="bfloat16")
    hf_perturb.convert_checkpoint(path, tmp_path / "all", dtype="float16", allow_nonfinite=True)


def test_overflow_of_a_wide_file(tmp_path):
    path = edited(tmp_path, "esm1b", replaced(**{FC: lambda weight: weight.double() * 1e300}))
    refuse(path, tmp_path, r"infinite weights in layers\.1\.fc1\.weight")
    hf_perturb.convert_checkpoint(path, tmp_path / "out", dtype="float64")


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("esm1b", lambda weight: weight + 1),
        ("esm1b", lambda weight: weight.index_fill(0, torch.tensor(5), 0.5)),
        ("esm2", lambda weight: weight + 1),
        ("esm2", lambda weight: weight.index_fill(0, torch.tensor(MASK), 0.5)),  # its loader zeroes no row
    ],
)
def test_head_of_its_own(tmp_path, name, edit):
    message = r"lm_head\.weight and embed_tokens\.weight differ"
    refuse(edited(tmp_path, name, replaced(**{HEAD: edit})), tmp_path, message)


def test_unknown_dtype(tmp_path):
    refuse(edited(tmp_path, "carp"), tmp_path, r"dtype: got 'int8'; allowed: float32, float16", dtype="int8")
