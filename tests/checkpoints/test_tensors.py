"""Headers of safetensors files: read by ourselves, and refused whenever the safetensors library refuses them."""

from __future__ import annotations

import json
import os
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hf_perturb import CheckpointError
from hf_perturb.checkpoints import tensors
from hf_perturb.checkpoints.headers import read_tensors
from hf_perturb.checkpoints.of_torch import mapped, tensor_of
from hf_perturb.checkpoints.tensors import Tensor, same_values
from hf_perturb.perturbation.digest import tensor_digest

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.arange(3, dtype=torch.bfloat16),
    "c": torch.tensor([True, False]),
    "empty": torch.empty(0, 4),
    "scalar": torch.tensor(7, dtype=torch.int64),
}
FUZZED = settings(max_examples=300, deadline=None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("tensors") / "whole.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt", "said": "ü"})
    return path


def test_what_a_header_says_is_what_the_library_reads(whole):
    found, metadata = read_tensors(whole)
    assert metadata == {"format": "pt", "said": "ü"}
    theirs, ours = load_file(whole), mapped(found)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(tensor_of(found[name].values()), tensor)
        assert torch.equal(ours[name], tensor)
        assert (found[name].shape, found[name].nbytes) == (tuple(tensor.shape), tensor.nbytes)


def refused_by_the_library(path):
    try:
        load_file(path)
    except (SafetensorError, ValueError, KeyError, OverflowError):
        return True
    return False


def agree(path, content):
    path.write_bytes(content)
    if refused_by_the_library(path):
        with pytest.raises(CheckpointError, match=path.name):
            read_tensors(path)
        return
    with suppress(CheckpointError):  # we may be stricter
        found, _ = read_tensors(path)
        for name, tensor in load_file(path).items():
            assert tensor_digest(found[name].values()) == tensor_digest(tensor)


@FUZZED
@given(st.data())
def test_a_damaged_file_is_refused_like_the_library_does(whole, data):
    content = bytearray(whole.read_bytes())
    begin = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, begin - 1))] = data.draw(st.integers(0, 255))
    agree(whole.with_name("damaged.safetensors"), bytes(content))


@FUZZED
@given(st.integers(0, 10_000), st.binary(max_size=20))
@example(0, b"")
@example(7, b"")
@example(8, b"")
def test_a_file_that_was_cut_or_grew_is_refused(whole, kept, more):
    content = whole.read_bytes()
    agree(whole.with_name("cut.safetensors"), content[: min(kept, len(content))] + more)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "entry",
    [
        {**ENTRY, "dtype": "F31"},
        {**ENTRY, "dtype": None},
        {**ENTRY, "shape": [-2]},
        {**ENTRY, "shape": [2.0]},
        {**ENTRY, "shape": [True, 2]},
        {**ENTRY, "shape": 2},
        {**ENTRY, "shape": [3]},
        {**ENTRY, "shape": [2**40, 2**40]},
        {**ENTRY, "data_offsets": [8, 0]},
        {**ENTRY, "data_offsets": [0, 16]},
        {**ENTRY, "data_offsets": [1, 9]},
        {**ENTRY, "data_offsets": [0]},
        {**ENTRY, "more": 1},
        {"dtype": "F32", "shape": [2]},
        [],
        None,
    ],
    ids=str,
)
def test_an_entry_that_is_none_is_refused(entry, tmp_path):
    header = json.dumps({"x": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CheckpointError, match=r"x\.safetensors is damaged"):
        read_tensors(path)


@pytest.mark.parametrize("offsets", [([0, 8], [0, 8]), ([0, 8], [4, 12]), ([0, 8], [12, 20])], ids=str)
def test_tensors_that_overlap_or_leave_holes_are_refused(offsets, tmp_path):
    first, second = ({**ENTRY, "data_offsets": each} for each in offsets)
    header = json.dumps({"x": first, "y": second}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(offsets[1][1]))
    with pytest.raises(CheckpointError, match="without holes"):
        read_tensors(path)
    assert refused_by_the_library(path)


def test_a_file_that_was_opened_stays_what_it_was(whole, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(whole.read_bytes())
    found, _ = read_tensors(path)
    save_file({"a": torch.zeros(2, 3)}, tmp_path / "new.safetensors")
    os.replace(tmp_path / "new.safetensors", path)
    assert torch.equal(tensor_of(found["a"].values()), TENSORS["a"])
    path.unlink()
    assert torch.equal(mapped(found)["b"], TENSORS["b"])


def test_a_file_that_becomes_shorter_is_an_error(whole, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(whole.read_bytes())
    found, _ = read_tensors(path)
    os.truncate(path, path.stat().st_size - 40)
    for read in (Tensor.values, Tensor.digest, lambda tensor: tensor.examine(look=True)):
        with pytest.raises(CheckpointError, match=r"model\.safetensors was written into"):
            [read(tensor) for tensor in found.values()]


# ---- what is read as it passes

LARGE = 3 * tensors._CHUNK // 4 + 1000  # entries of float32: several chunks, the last one not whole


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    values = torch.arange(LARGE, dtype=torch.float32)
    save_file({"a": values, "b": -values, "half": values.bfloat16(), "whole": torch.arange(9)}, path)
    return path


def test_what_passes_has_the_digest_of_what_is_read(large):
    for tensor in read_tensors(large)[0].values():
        assert tensor.examine() == tensor.examine(look=True) == (tensor_digest(tensor.values()), True)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, -torch.nan], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_one_entry_that_is_not_finite_is_found_wherever_it_is(dtype, value, tmp_path):
    values = torch.zeros(LARGE, dtype=dtype)
    values[::2], values[1::2] = torch.finfo(dtype).max, torch.finfo(dtype).min
    for place in (None, 0, tensors._CHUNK // dtype.itemsize, LARGE - 1):
        odd = values.clone()
        if place is not None:
            odd[place] = value
        save_file({"x": odd}, tmp_path / "x.safetensors")
        (found,) = read_tensors(tmp_path / "x.safetensors")[0].values()
        assert found.examine(look=True)[1] == Tensor.of(odd).examine(look=True)[1] == (place is None)


def test_two_that_pass_at_once_do_not_share_their_memory(large):
    found, _ = read_tensors(large)
    for _ in range(2):  # the second time, there is memory that was used before
        pairs = zip(*(found[name].region.chunks() for name in "ab"), strict=True)
        both = [np.frombuffer(chunk, np.float32).copy() for pair in pairs for chunk in pair]
        assert np.array_equal(np.concatenate(both[::2]), -np.concatenate(both[1::2]))


def test_a_pass_takes_no_new_memory(large):
    found, _ = read_tensors(large)
    found["a"].examine(look=True)
    tracemalloc.start()
    try:
        found["b"].examine(look=True)
        assert tracemalloc.get_traced_memory()[1] < tensors._CHUNK / 4
    finally:
        tracemalloc.stop()


@given(st.permutations([0.0, -0.0, 1.5, torch.inf, torch.nan]), st.sampled_from([None, 0, 1, 2, 3, 4]))
def test_the_same_numbers_are_the_same_in_every_type(numbers, place):
    one, other = torch.tensor(numbers, dtype=torch.float64), torch.tensor(numbers).bfloat16()
    other[other == 0] *= -1  # the same number
    if place is not None:
        other[place] = 2.5
    assert same_values(Tensor.of(one), Tensor.of(other)) == (place is None)
    assert not same_values(Tensor.of(one), Tensor.of(other[:4]))
