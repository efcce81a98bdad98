"""What the tests of streaming share: folders compared with what `save_pretrained` makes of the model in memory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file

import hf_perturb
from hf_perturb import Perturbation
from hf_perturb.checkpoints.tensors import Tensor
from hf_perturb.perturbation import digest_of
from hf_perturb.perturbation.floats import dtype_code
from hf_perturb.variants import shards
from hf_perturb.variants.create import create_variant
from hf_perturb.variants.stream import Sources, write_weights
from support.models import CONFIGS, model_class, small_model
from support.spec_table import differing

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# fewer layers than elsewhere: what is tested here counts tensors, and a file for every cell takes time
SIZES = {
    "esm1": {"num_hidden_layers": 2},
    "esm1b": {"num_hidden_layers": 2, "max_position_embeddings": 64},
    "esm2": {"num_hidden_layers": 2},
    "carp": {"num_hidden_layers": 3},
}
METHODS = {
    "reinit": Perturbation("reinit"),
    "reinit-published": Perturbation("reinit", rules="published"),
    "resample": Perturbation("resample"),
    "resample-embedding": Perturbation("resample", axis="embedding"),
    "resample-rows": Perturbation("resample", axis="rows"),
    "resample-all": Perturbation("resample", axis="all"),
    "resample-published": Perturbation("resample", rules="published"),
    "resample-outputs": Perturbation("resample", axis="outputs", also=["head"]),
    "reinit-also": Perturbation("reinit", also=["embeddings", "head"]),
    "gaussian": Perturbation("gaussian", also=["embeddings"]),
}
# what `create` knows and a model in memory does not, in config.json and in its perturbation
_KNOWN_TO_CREATE = ("auto_map", "torch_version")
_PROVENANCE = ("base", "digest")
_BESIDE = {"README.md", "tokenizer.json", "tokenizer_config.json"}


def write_base(folder: Path, network: str, head: str = "ForMaskedLM", dtype: torch.dtype = torch.float32, **config):
    """Save a small network, and return its folder."""
    small_model(network, head, **{**SIZES[network], **config}).to(dtype).save_pretrained(folder)
    return folder


def write_bases(tmp_path_factory) -> dict[str, Path]:
    """Save a small network of every kind; a fixture of scope `module` is `bases = pytest.fixture(write_bases, ...)`."""
    parent = tmp_path_factory.mktemp("bases")
    return {network: write_base(parent / network / "base", network) for network in CONFIGS}


def write_tensors(folder: Path, tensors, dtypes=None, max_shard_size=shards.MAX_SHARD_SIZE) -> Sources:
    """Write tensors of torch, in types of torch, with `write_weights`."""
    found = {name: Tensor.of(tensor) for name, tensor in tensors.items()}
    dtypes = dtypes or {name: tensor.dtype for name, tensor in tensors.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "MAX_SHARD_SIZE", max_shard_size)
        return write_weights(folder, found, {name: dtype_code(dtype) for name, dtype in dtypes.items()})[0]


def no_waiting(monkeypatch) -> None:
    """Do not wait for the disk: what a crash leaves is tested elsewhere. It is `pytest.fixture(no_waiting, ...)`."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of all files of a folder."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def file_parts(file: Path) -> tuple[dict[str, str], str, bytes]:
    """Return the metadata, the rest of the header as it is written, and the bytes of the tensors."""
    content = file.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    assert begin % 8 == 0
    opening, header = '{"__metadata__":', content[8:begin].decode()
    assert header.startswith(opening)
    metadata, length = json.JSONDecoder().raw_decode(header[len(opening) :])
    return metadata, header[len(opening) + length :].rstrip(" "), content[begin:]


def bytes_digest(tensor: torch.Tensor) -> str:
    """Return the BLAKE3 of the bytes of a tensor."""
    return blake3(tensor.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def config_of(folder: Path) -> dict[str, Any]:
    """Return what a configuration says that a model in memory could say as well."""
    stored = json.loads((folder / "config.json").read_text())
    record = {key: value for key, value in stored.pop("perturbation").items() if key not in _PROVENANCE}
    return {"perturbation": record, **{key: value for key, value in stored.items() if key not in _KNOWN_TO_CREATE}}


def assert_as_saved(ours: Path, theirs: Path) -> None:
    """Compare a variant with what `save_pretrained` wrote of the perturbed model: tensors, headers, configuration."""
    assert not differing(weights_of(ours), weights_of(theirs))
    files = {file.name for file in theirs.iterdir()}
    assert {file.name for file in ours.iterdir()} == files | _BESIDE
    stored = json.loads((ours / "config.json").read_text())["perturbation"]
    assert json.loads((theirs / "config.json").read_text())["perturbation"]["digest"] == stored["digest"]
    for name in files:
        if name.endswith(".safetensors"):
            said = []
            for folder in (ours, theirs):
                metadata, *rest = file_parts(folder / name)
                record = json.loads((folder / "config.json").read_text())["perturbation"]
                assert json.loads(metadata.pop("perturbation")) == record
                said.append((metadata.pop("format"), json.loads(metadata.pop("digests")), metadata, rest))
            assert said[0] == said[1]
            assert said[0][1] == {key: bytes_digest(tensor) for key, tensor in load_file(ours / name).items()}
    assert config_of(ours) == config_of(theirs)
    assert stored["digest"] == digest_of(weights_of(ours))


def assert_streamed_as_in_memory(base: Path, scratch: Path, asked: Perturbation, network: str, head="ForMaskedLM"):
    """Build a variant in both ways, and compare them.

    Args:
        base: the folder of the base.
        scratch: a folder of this call alone.
        asked: what to do.
        network: of the base.
        head: of the base.
    """
    record = create_variant(base, scratch / "ours", asked)
    model = model_class(network, head).from_pretrained(base, perturbation=asked)
    model.save_pretrained(scratch / "theirs")
    assert_as_saved(scratch / "ours", scratch / "theirs")
    stored = json.loads((scratch / "ours" / "config.json").read_text())
    assert stored.get("torch_version") == (torch.__version__ if asked.rules == "published" else None), "what drew"
    assert record == asked
    assert record.digest == digest_of(model.state_dict())
    assert record.base == hf_perturb.perturbation.Base(base.name, None, digest_of(weights_of(base)))


def in_hub_cache(cache: Path, name: str, folder: Path, commit: str) -> None:
    """Put a folder where the Hub's client keeps a repository that it has downloaded, as its branch `main`."""
    repository = cache / ("models--" + name.replace("/", "--"))
    for file, content in {**contents(folder), "refs/main": commit.encode()}.items():
        path = repository / file if file.startswith("refs") else repository / "snapshots" / commit / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    absent = repository / ".no_exist" / commit
    absent.mkdir(parents=True)
    for file in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"):
        if not (folder / file).exists():
            (absent / file).touch()
    (absent / "pytorch_model.bin.index.json").touch()


def counted_reads(monkeypatch) -> dict[tuple[str, int], int]:
    """Return how often each stored tensor is read from now on, by file and place."""
    values, examine = Tensor.values, Tensor.examine
    counts: dict[tuple[str, int], int] = {}

    def count(tensor: Tensor) -> None:
        if tensor.region is not None:  # else it was made
            place = tensor.region.file.path.name, tensor.region.begin
            counts[place] = counts.get(place, 0) + 1

    def counted_values(self: Tensor) -> Any:
        count(self)
        return values(self)

    def counted_examine(self: Tensor, look: bool = False) -> Any:
        count(self)
        return examine(self, look)

    monkeypatch.setattr(Tensor, "values", counted_values)
    monkeypatch.setattr(Tensor, "examine", counted_examine)
    return counts
