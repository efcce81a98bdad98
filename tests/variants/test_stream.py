"""Weights written a tensor at a time are what the safetensors library and `save_pretrained` would have written."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from safetensors.torch import load_file
from support.models import model_class, small_model
from support.streamed import write_tensors

import hf_perturb
from hf_perturb.checkpoints.tensors import is_finite
from hf_perturb.perturbation import digest_of
from hf_perturb.perturbation.digest import digest_of_lines
from hf_perturb.perturbation.floats import array_of

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16}
SHARD = 40_000  # bytes; the largest tensor of a small network has fewer, but for ESM-1b's positions


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def numbers(tensor: torch.Tensor) -> bytes:
    """Return the bits of a tensor, those of one NaN for all: a cast may choose which it makes."""
    return bits(tensor.masked_fill(tensor.isnan(), torch.nan))


@st.composite
def tensors(draw) -> torch.Tensor:
    """Draw a tensor of any bits, NaNs of any kind among them, of 0 to 3 dimensions, and maybe not contiguous."""
    dtype = draw(st.sampled_from(FLOATS))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    count, width = torch.Size(shape).numel(), dtype.itemsize
    limit = 2 ** (8 * width - 1)
    values = draw(st.lists(st.integers(-limit, limit - 1), min_size=count, max_size=count))
    tensor = torch.tensor(values, dtype=_BITS[width]).view(dtype).reshape(shape)
    return tensor.mT if tensor.dim() > 1 and draw(st.booleans()) else tensor


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda n: n != "__metadata__")


@given(st.dictionaries(names, tensors(), min_size=1, max_size=6), st.sampled_from([1, 16, 64, "50GB"]))
@example({"half": torch.ones(3, dtype=torch.float16), "wide": torch.ones(1, dtype=torch.float64)}, "50GB")
@example(
    {"empty": torch.ones(0, 4), "scalar": torch.tensor(float("nan")), 'quoted "\\\n\u00e9\U0001f600': -torch.ones(1)}, 1
)
@settings(deadline=None)
def test_any_tensors_are_read_back_bit_for_bit(drawn, max_shard_size):
    with tempfile.TemporaryDirectory() as folder:
        written = write_tensors(Path(folder), drawn, None, max_shard_size)
        read = {}
        for file in Path(folder).glob("*.safetensors"):
            content = file.read_bytes()
            begin = 8 + int.from_bytes(content[:8], "little")
            header = json.loads(content[8:begin])
            metadata = header.pop("__metadata__")
            assert (metadata["format"], metadata["perturbation"]) == ("pt", "null")
            assert json.loads(metadata["digests"]).keys() == header.keys()
            assert len(content) == begin + sum(drawn[name].nbytes for name in header)
            for name, entry in header.items():
                assert (begin + entry["data_offsets"][0]) % drawn[name].itemsize == 0, "not aligned"
            read.update(load_file(file))
        assert read.keys() == drawn.keys() == written.digests.keys()
        for name, tensor in drawn.items():
            assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
            assert bits(read[name]) == bits(tensor)
    assert set(written.nonfinite) == {name for name, tensor in drawn.items() if not tensor.isfinite().all()}
    assert digest_of_lines(written.digests) == digest_of(read)


@given(st.dictionaries(names, st.tuples(tensors(), st.sampled_from(FLOATS)), min_size=1, max_size=6))
@settings(deadline=None)
def test_any_tensors_are_cast_on_their_way(drawn):
    dtypes = {name: dtype for name, (_, dtype) in drawn.items()}
    cast = {name: tensor.to(dtype) for name, (tensor, dtype) in drawn.items()}
    with tempfile.TemporaryDirectory() as folder:
        written = write_tensors(Path(folder), {name: tensor for name, (tensor, _) in drawn.items()}, dtypes)
        read = load_file(Path(folder) / "model.safetensors")
    assert {name: numbers(tensor) for name, tensor in read.items()} == {n: numbers(x) for n, x in cast.items()}
    assert set(written.nonfinite) == {name for name, tensor in cast.items() if not tensor.isfinite().all()}


@given(tensors())
@settings(deadline=None)
def test_bounds_tell_what_is_finite(tensor):
    assert is_finite(array_of(tensor)) == bool(tensor.isfinite().all())


@pytest.mark.parametrize("max_shard_size", [SHARD, "40KB"])
def test_shards_load_like_the_whole(network, max_shard_size, tmp_path):
    model = small_model(network, **({"max_position_embeddings": 64} if network == "esm1b" else {}))
    model.save_pretrained(tmp_path / "saved")
    hf_perturb.convert_checkpoint(tmp_path / "saved", tmp_path / "whole")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "config.json").write_bytes((tmp_path / "whole" / "config.json").read_bytes())
    written = write_tensors(tmp_path / "shards", whole, None, max_shard_size)
    files = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(files) > 2
    assert all(sum(tensor.nbytes for tensor in load_file(file).values()) <= SHARD for file in files)
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert {name: tmp_path / "shards" / file for name, file in index["weight_map"].items()} == {
        name: file for file in files for name in load_file(file)
    }
    loaded = model_class(network).from_pretrained(tmp_path / "shards").state_dict()
    assert all(bits(loaded[name]) == bits(tensor) for name, tensor in model.state_dict().items())
    assert digest_of_lines(written.digests) == digest_of(whole) == digest_of(loaded)
    # shards are a source like any other
    again = hf_perturb.convert_checkpoint(tmp_path / "shards", tmp_path / "again")
    assert again.digest == digest_of(whole)
    stored, copied = (tmp_path / folder / "model.safetensors" for folder in ("whole", "again"))
    assert stored.read_bytes() == copied.read_bytes()


def test_shards_are_cut_and_named_like_those_of_save_pretrained(network, tmp_path):
    model = small_model(network)
    model.save_pretrained(tmp_path, max_shard_size=SHARD)
    theirs = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    (tmp_path / "ours").mkdir()
    state = model.state_dict()
    for tied in model.all_tied_weights_keys:
        del state[tied]
    write_tensors(tmp_path / "ours", state, None, SHARD)
    ours = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    assert ours["weight_map"] == theirs["weight_map"]
    assert ours["metadata"]["total_size"] == theirs["metadata"]["total_size"]
