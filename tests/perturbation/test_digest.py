"""Digests: what changes them, what does not, and the same number from a file's bytes without any tensor."""

from __future__ import annotations

import json
import math
import struct

import hypothesis.strategies as st
import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from safetensors.torch import save, save_file
from support.models import TIED, small_model

from hf_perturb.perturbation import digest_of
from hf_perturb.perturbation.digest import tensor_digest

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def ramp(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float32).sub(3).view(shape).to(dtype)


def digest_of_bytes(data: bytes) -> str:
    """The contract's section 6 over the bytes of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__", None)
    lines = []
    for name in sorted(header):
        begin, end = header[name]["data_offsets"]
        shape = "[" + ", ".join(map(str, header[name]["shape"])) + "]"
        lines.append(f"{name} {header[name]['dtype']} {shape} {blake3(body[begin:end]).hexdigest()}\n")
    return "blake3:" + blake3("".join(lines).encode()).hexdigest()


def test_written_out_by_hand():
    content = blake3(struct.pack("<6f", -3, -2, -1, 0, 1, 2)).hexdigest()
    scalar = blake3(struct.pack("<q", 7)).hexdigest()
    text = f"a.weight F32 [2, 3] {content}\nb I64 [] {scalar}\n"
    expected = "blake3:" + blake3(text.encode()).hexdigest()
    assert digest_of({"b": torch.tensor(7), "a.weight": ramp(2, 3)}) == expected
    assert digest_of({}) == "blake3:" + blake3(b"").hexdigest()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_the_bytes_of_a_file(dtype):
    tensors = {
        "matrix": ramp(4, 5, dtype=dtype),
        "vector": ramp(7, dtype=dtype),
        "scalar": ramp(1, dtype=dtype)[0],
        "empty": ramp(0, 3, dtype=dtype),
        "conv.weight": ramp(2, 3, 5, dtype=dtype),
    }
    assert digest_of(tensors) == digest_of_bytes(save({name: tensor.clone() for name, tensor in tensors.items()}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_agrees_with_a_saved_model(network, dtype, tmp_path):
    model = small_model(network).to(dtype)
    model.save_pretrained(tmp_path)
    assert digest_of(model.state_dict()) == digest_of_bytes((tmp_path / "model.safetensors").read_bytes())
    # an original's file has its tensors in another order than ours
    names = sorted(model.state_dict(), reverse=True)
    rest = {name: model.state_dict()[name].clone() for name in names if name != "lm_head.weight" or network not in TIED}
    save_file(rest, tmp_path / "other.safetensors")
    assert digest_of(model.state_dict()) == digest_of_bytes((tmp_path / "other.safetensors").read_bytes())


@settings(deadline=None)
@given(st.permutations(["layers.0.weight", "layers.0.bias", "layers.10.bias", "layers.2.bias", "é", "embed_tokens"]))
def test_the_order_of_the_tensors_does_not_count(names):
    tensors = {name: ramp(len(name), 2) for name in sorted(names)}
    assert digest_of({name: tensors[name] for name in names}) == digest_of(tensors)


def test_neither_layout_nor_gradients_count():
    plain = ramp(4, 6)
    alike = [
        plain.t().contiguous().t(),
        torch.nn.Parameter(plain.clone()),
        torch.cat([plain, plain], dim=1)[:, :6],
        ramp(10, 6)[:4],
    ]
    assert {digest_of({"a": tensor}) for tensor in alike} == {digest_of({"a": plain})}


@settings(deadline=None)
@given(
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64]),
    position=st.integers(0, 11),
    data=st.data(),
)
def test_one_bit_counts(dtype, position, data):
    bit = data.draw(st.integers(0, 8 * dtype.itemsize - 1))
    tensors = {"a": ramp(3, 4, dtype=dtype), "b": ramp(5)}
    before = digest_of(tensors)
    raw = tensors["a"].view(-1).view(torch.uint8)
    raw[position * dtype.itemsize + bit // 8] ^= 1 << (bit % 8)
    assert digest_of(tensors) != before
    raw[position * dtype.itemsize + bit // 8] ^= 1 << (bit % 8)
    assert digest_of(tensors) == before


def test_name_shape_and_dtype_count():
    zeros = torch.zeros(2, 6)
    alike = [  # the same bytes every time
        {"a": zeros},
        {"b": zeros},
        {"A": zeros},
        {"a": zeros.view(6, 2)},
        {"a": zeros.view(12)},
        {"a": zeros.view(1, 12)},
        {"a": zeros.view(torch.int32)},
        {"a": torch.zeros(2, 3, dtype=torch.float64)},
        {"a": torch.zeros(2, 12, dtype=torch.float16)},
        {"a": torch.zeros(2, 12, dtype=torch.bfloat16)},
        {"a": torch.zeros(2, 3, dtype=torch.int64)},
        {"a": zeros[:1].clone(), "b": zeros[1:].clone()},
        {"a": -zeros},  # negative zero: equal, but not to the bit
        {"a": zeros, "b": torch.empty(0)},
    ]
    assert len({digest_of(tensors) for tensors in alike}) == len(alike)


def test_a_tied_tensor_counts_once_under_its_first_name():
    tied, other = ramp(3, 4), ramp(5)
    once = digest_of({"z.weight": tied, "m": other})
    assert digest_of({"z.weight": tied, "m": other, "a.weight": tied}) == once
    assert digest_of({"z.weight": tied, "m": other, "a.weight": torch.nn.Parameter(tied)}) == once
    assert digest_of({"a.weight": tied, "m": other, "z.weight": tied}) != once
    # the same values in memory of their own are another tensor
    assert digest_of({"z.weight": tied, "m": other, "a.weight": tied.clone()}) != once


def test_a_view_of_a_tensor_is_not_a_tie():
    whole = ramp(4, 6)
    assert digest_of({"a": whole, "b": whole[:2]}) == digest_of({"a": whole, "b": whole[:2].clone()})


def test_empty_tensors_are_not_ties():
    """They may all have the same address."""
    assert digest_of({"a": torch.empty(0), "b": torch.empty(0)}) != digest_of({"a": torch.empty(0)})


def test_the_tied_head_counts_once_until_it_is_untied():
    model = small_model("esm1b")
    tensors = dict(model.state_dict())
    without = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    assert digest_of(tensors) == digest_of(without)
    model.perturb({"method": "reinit", "include": ["lm_head.weight"]})
    assert digest_of(model.state_dict()) != digest_of(without)
    assert digest_of({k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}) == digest_of(without)


def test_a_transposed_view_is_no_tie():
    square = torch.arange(9.0).view(3, 3)
    assert digest_of({"a": square, "b": square.t()}) != digest_of({"a": square})


def test_eight_bit_floats_have_the_names_of_safetensors(tmp_path):
    tensors = {"a": torch.zeros(2).to(torch.float8_e4m3fn), "b": torch.zeros(2).to(torch.float8_e5m2)}
    save_file(tensors, tmp_path / "file")
    header = (tmp_path / "file").read_bytes()
    for tensor in tensors.values():
        assert tensor_digest(tensor).split()[0].encode() in header
