"""A name of the catalogue, fetched and converted in one go."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from parity.original_files import original_data, write_original
from parity.originals import Pair, small_pair
from support.downloading import (
    cache_folder,
    count_naps,
    sum_of,
)
from support.file_server import FileServer, serve
from transformers import AutoModelForMaskedLM

import hf_perturb
from hf_perturb.checkpoints.catalog import CATALOG, Entry
from hf_perturb.cli import main

server = pytest.fixture(serve)
naps = pytest.fixture(count_naps)
folder = pytest.fixture(cache_folder)


def in_catalogue(server: FileServer, monkeypatch, tmp_path: Path, name: str, pair: Pair, **changes) -> Entry:
    """Publish a small network under a name of the catalogue."""
    path = write_original(tmp_path / "published", name, original_data(pair))
    entry = CATALOG[name]
    urls = {"url": server.publish(f"/models/{path.name}", path.read_bytes())}
    if entry.regression_url is not None:
        beside = path.with_name(f"{path.stem}-contact-regression.pt")
        urls["regression_url"] = server.publish(f"/regression/{beside.name}", beside.read_bytes())
    if entry.sha256 is not None:
        urls["sha256"] = sum_of(path.read_bytes())
    entry = replace(entry, **urls, **changes)
    monkeypatch.setitem(CATALOG, name, entry)
    monkeypatch.chdir(tmp_path)
    return entry


def sizes_of(pair: Pair, entry: Entry) -> dict:
    return {key: getattr(pair.config, key) for key in entry.sizes}


def assert_loads_as(folder: Path, pair: Pair) -> None:
    model = AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True)
    expected = dict(pair.original.state_dict())
    if pair.config.model_type == "fair_esm" and pair.config.model_version == "ESM-1b":
        expected["embed_tokens.weight"][pair.config.mask_token_id] = 0
    assert model.state_dict().keys() == expected.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    ("network", "name"),
    [
        ("esm1", "esm1_t6_43M_UR50S"),
        ("esm1b", "esm1b_t33_650M_UR50S"),
        ("esm2", "esm2_t6_8M_UR50D"),
        ("carp", "carp_600k"),
    ],
)
def test_a_name_of_the_catalogue_becomes_a_base(server, folder, monkeypatch, tmp_path, network, name):
    pair = small_pair(network)
    (tmp_path / "published").mkdir()
    sizes = sizes_of(pair, CATALOG[name])
    entry = in_catalogue(server, monkeypatch, tmp_path, name, pair, sizes=sizes)
    done = hf_perturb.convert_checkpoint(name, tmp_path / "base")
    assert_loads_as(tmp_path / "base", pair)
    assert done.notes == ()
    assert done.parameters == sum(parameter.numel() for parameter in pair.original.parameters())
    card = (tmp_path / "base" / "README.md").read_text(encoding="utf-8")
    for fact in (name, entry.licence, entry.citation, entry.url):
        assert fact in card
    assert ("\nlicense: mit\n" in card) == (entry.licence == "MIT")
    assert json.loads((tmp_path / "base" / "config.json").read_text())["published_as"] == name
    hf_perturb.convert_checkpoint(name, tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text(encoding="utf-8") == card
    assert len(server.requests) == (1 if network == "carp" else 2)


def test_a_file_of_other_sizes_gets_no_licence_from_its_name(server, folder, monkeypatch, tmp_path):
    pair = small_pair("carp")
    (tmp_path / "published").mkdir()
    entry = in_catalogue(server, monkeypatch, tmp_path, "carp_600k", pair)
    hf_perturb.convert_checkpoint("carp_600k", tmp_path / "base")
    assert_loads_as(tmp_path / "base", pair)
    card = (tmp_path / "base" / "README.md").read_text(encoding="utf-8")
    for fact in (entry.licence, entry.citation, entry.url):
        assert fact not in card
    assert "published_as" not in (tmp_path / "base" / "config.json").read_text()


def test_the_command_downloads_and_converts(server, folder, monkeypatch, tmp_path, capsys):
    pair = small_pair("carp")
    (tmp_path / "published").mkdir()
    in_catalogue(server, monkeypatch, tmp_path, "carp_600k", pair)
    assert main(["convert", "carp_600k", "base"]) == 0
    streams = capsys.readouterr()
    assert "CarpForMaskedLM" in streams.out
    assert streams.err.count("\n") <= 1
    assert_loads_as(tmp_path / "base", pair)


@pytest.mark.parametrize("fault", [{"status": 404}, {"status": 503}, {"cut": 0}, {"flip": 3000}])
def test_the_command_fails_without_a_trace_when_the_download_does(server, folder, monkeypatch, tmp_path, capsys, fault):
    (tmp_path / "published").mkdir()
    entry = in_catalogue(server, monkeypatch, tmp_path, "carp_600k", small_pair("carp"))
    server.fail(times=50, **fault)
    assert main(["convert", "carp_600k", "base"]) == 1
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "hf-perturb convert: " in streams.err
    assert entry.url in streams.err
    assert "Traceback" not in streams.err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cache", "published"]
    assert not (folder / "carp_600k.pt").exists()


def test_nothing_is_fetched_for_a_folder_that_may_not_be_written(server, folder, monkeypatch, tmp_path):
    (tmp_path / "published").mkdir()
    in_catalogue(server, monkeypatch, tmp_path, "carp_600k", small_pair("carp"))
    (tmp_path / "base").mkdir()
    with pytest.raises(hf_perturb.FolderExistsError):
        hf_perturb.convert_checkpoint("carp_600k", tmp_path / "base")
    with pytest.raises(hf_perturb.CheckpointError, match="dtype"):
        hf_perturb.convert_checkpoint("carp_600k", tmp_path / "other", dtype="int8")
    assert server.requests == []
