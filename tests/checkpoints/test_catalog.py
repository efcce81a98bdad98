"""The catalogue of published checkpoints: what it says of each is what the original packages say."""

from __future__ import annotations

import json
import re
from dataclasses import FrozenInstanceError, fields

import esm.data
import esm.pretrained
import pytest
import sequence_models.constants
import sequence_models.pretrained
import torch
from support.models import build_tokenizer
from transformers import AutoModelForMaskedLM

import hf_perturb
from hf_perturb.checkpoints import network
from hf_perturb.checkpoints.catalog import CATALOG
from hf_perturb.cli import main

CARPS = ("carp_600k", "carp_38M", "carp_76M", "carp_640M")
DOCUMENTED = ("esm1_t6_43M_UR50S", "esm1_t12_85M_UR50S", "esm1_t34_670M_UR50S", "esm1b_t33_650M_UR50S", *CARPS)
ALPHABETS = {"ESM-1": network.ESM1, "ESM-1b": network.ESM1B, "CARP": network.CARP}
# functions of esm.pretrained that load a language model of single sequences
LOADERS = [name for name in vars(esm.pretrained) if re.match(r"esm(1|1b|1v|2)_t\d+_", name)]
COLUMNS = ["base", "family", "alphabet", "layers", "hidden", "parameters", "stock copy", "note"]

every_entry = pytest.mark.parametrize("entry", CATALOG.values(), ids=CATALOG)


class StoppedError(Exception):
    """What a stand-in raises in place of downloading."""


@pytest.fixture
def fetched(monkeypatch) -> list[str]:
    """Return the addresses that an original package asks for; nothing is fetched."""
    addresses = []

    def record(url, **options):
        addresses.append(url)
        return {}

    def stop(*arguments):
        raise StoppedError

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", record)
    monkeypatch.setattr(esm.pretrained, "load_model_and_alphabet_core", stop)
    return addresses


def stated(entry) -> list[str]:
    return [url for url in (entry.url, entry.regression_url) if url is not None]


@every_entry
def test_every_entry_is_complete(entry):
    assert CATALOG[entry.name] is entry
    assert entry.family in ("fair_esm", "carp")
    assert entry.config().model_type == entry.family
    assert all(re.fullmatch(r"https://[\w./-]+\.pt(\?download=1)?", url) for url in stated(entry))
    assert entry.licence == "MIT" or re.search(r"code: .+; weights: .+", entry.licence)
    assert re.fullmatch(r"[A-Z].+ 20\d\d, .+, doi:10\.\d+/\S+", entry.citation)
    assert isinstance(entry.parameters, int)


@every_entry
def test_the_alphabet_is_the_one_that_the_network_reads(entry):
    tokens = ALPHABETS[entry.alphabet].tokens
    config = entry.config()
    assert len(tokens) == config.vocab_size
    assert build_tokenizer(network.alphabet_of(config)).get_vocab() == {token: i for i, token in enumerate(tokens)}
    if entry.family == "carp":
        assert tokens == tuple(sequence_models.constants.PROTEIN_ALPHABET)
    else:
        assert tokens == tuple(esm.data.Alphabet.from_architecture(entry.alphabet).all_toks)


def test_every_language_model_of_the_original_packages_is_there(fetched):
    assert len(LOADERS) == 18  # one of them is another name of the first ESM-1v
    for loader in LOADERS:
        with pytest.raises(StoppedError):
            getattr(esm.pretrained, loader)()
    names = {re.search(r"/models/(\w+)\.pt$", url).group(1) for url in fetched if "/models/" in url}
    assert {*names, *CARPS} == set(CATALOG)
    assert [entry.name for entry in CATALOG.values() if entry.family == "carp"] == list(CARPS)
    assert set(fetched) == {url for name in names for url in stated(CATALOG[name])}


@pytest.mark.parametrize("name", [name for name in CATALOG if name not in CARPS])
def test_the_addresses_are_those_of_fair_esm(name, fetched):
    with pytest.raises(StoppedError):
        esm.pretrained.load_model_and_alphabet(name)
    assert fetched == stated(CATALOG[name])
    assert (CATALOG[name].regression_url is not None) == esm.pretrained._has_regression_weights(name)


@pytest.mark.parametrize("name", CARPS)
def test_the_addresses_are_those_of_sequence_models(name, fetched):
    with pytest.raises(KeyError):  # the stand-in's file is empty
        sequence_models.pretrained.load_model_and_alphabet(name)
    assert fetched == stated(CATALOG[name]) == [f"{sequence_models.pretrained.CARP_URL}{name}.pt?download=1"]


@pytest.mark.parametrize("field", ["name", "url", "sha256"])
def test_entries_differ(field):
    values = [getattr(entry, field) for entry in CATALOG.values() if getattr(entry, field) is not None]
    assert len(set(values)) == len(values)


def test_checksums_are_those_of_sha256():
    assert {entry.name for entry in CATALOG.values() if entry.sha256 is not None} == set(CARPS)
    for name in CARPS:
        assert re.fullmatch(r"[0-9a-f]{64}", CATALOG[name].sha256)


@every_entry
def test_entries_cannot_be_changed(entry):
    for field in fields(entry):
        with pytest.raises(FrozenInstanceError):
            setattr(entry, field.name, None)
    assert entry in {entry}


def test_sizes_cannot_be_changed():
    sizes = CATALOG["carp_600k"].sizes
    with pytest.raises(TypeError):
        sizes["slim"] = sizes["slim"]


def test_a_configuration_is_a_new_one_each_time():
    entry = CATALOG["carp_600k"]
    changed = entry.config(num_hidden_layers=3)
    changed.hidden_size = 7
    assert (changed.num_hidden_layers, changed.slim) == (3, True)
    assert (entry.config().num_hidden_layers, entry.config().hidden_size) == (16, 128)


def test_what_is_peculiar_about_some():
    assert tuple(entry.name for entry in CATALOG.values() if entry.documented) == DOCUMENTED
    for name, entry in CATALOG.items():
        variant = name.startswith("esm1v")
        assert (entry.regression_url is None) == (variant or name in CARPS)
        assert ("contact regression" in entry.errata) == variant
        # Transformers' own ESM has no ESM-1, and no CARP
        assert entry.stock == (f"facebook/{name}" if name.startswith(("esm1b", "esm1v", "esm2")) else None)
    assert [name for name, entry in CATALOG.items() if "the document has" in entry.errata] == [
        "esm1_t34_670M_UR50S",
        "carp_640M",
    ]


def listed_as_json(capsys) -> list[dict]:
    assert main(["list", "--json"]) == 0
    streams = capsys.readouterr()
    assert streams.err == ""
    return json.loads(streams.out)


def test_list_as_json_has_everything(capsys):
    *rows, demo = listed_as_json(capsys)
    assert [row["base"] for row in rows] == list(CATALOG)
    for row in rows:
        entry, config = CATALOG[row["base"]], CATALOG[row["base"]].config()
        assert row == {
            "base": entry.name,
            "family": entry.family,
            "alphabet": entry.alphabet,
            "layers": config.num_hidden_layers,
            "hidden": config.hidden_size,
            "parameters": entry.parameters,
            "stock copy": entry.stock or "",
            "note": entry.errata,
            "sizes": entry.sizes,
            "url": entry.url,
            "regression_url": entry.regression_url,
            "sha256": entry.sha256,
            "licence": entry.licence,
            "citation": entry.citation,
            "documented": entry.documented,
        }
    assert demo["base"] == "demo"
    assert "demonstration" in demo["note"]


def test_what_is_listed_of_the_demo_base_is_true(capsys):
    row = listed_as_json(capsys)[-1]
    model = AutoModelForMaskedLM.from_pretrained(hf_perturb.demo.folder())
    assert row["family"] == model.config.model_type
    assert (row["layers"], row["hidden"]) == (model.config.num_hidden_layers, model.config.hidden_size)
    assert row["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert row["stock copy"] == ""


def test_list_as_a_table_has_a_line_for_each(capsys):
    assert main(["list"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert re.split(r" {2,}", heading) == COLUMNS
    starts = [heading.index(column) for column in COLUMNS]
    assert [line.split()[0] for line in lines] == [*CATALOG, "demo"]
    for line in lines:
        assert line == line.rstrip()
        # every cell begins under its heading, and two spaces before it end the last one
        assert all(line[start - 2 : start].strip() == "" for start in starts[1:])
        cells = [line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]
        if (entry := CATALOG.get(cells[0])) is not None:
            sizes = [entry.config().num_hidden_layers, entry.config().hidden_size, entry.parameters]
            expected = [entry.name, entry.family, entry.alphabet, *map(str, sizes), entry.stock or "", entry.errata]
            assert cells == expected
