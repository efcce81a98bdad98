"""A vocabulary beside the weights is the alphabet of their network, in its order, or the folder is refused."""

from __future__ import annotations

import json
import os
import shutil

import huggingface_hub
import pytest
from support.models import small_model
from transformers import AutoModelForMaskedLM, EsmTokenizer

import hf_perturb
from hf_perturb import CheckpointError
from hf_perturb.checkpoints import source
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.network import ESM1B
from hf_perturb.checkpoints.source import UnreachedError
from hf_perturb.cli import main

NETWORKS = ("esm1", "esm1b", "esm2", "carp")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Bases of every family, and a stock ESM as the published ones are, with the `vocab.txt` of theirs."""
    path = tmp_path_factory.mktemp("bases")
    for network in NETWORKS:
        small_model(network).save_pretrained(path / f"saved-{network}")
        hf_perturb.convert_checkpoint(path / f"saved-{network}", path / network)
    hf_perturb.export_checkpoint(path / "esm2", path / "stock", "transformers")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (path / "stock" / file).unlink()
    (path / "stock" / "vocab.txt").write_text("\n".join(ESM1B.tokens))
    return path


@pytest.fixture
def copied(folders, tmp_path):
    return lambda name: shutil.copytree(folders / name, tmp_path / name)


def edit(path, change):
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))


def swap(ids, one, other):
    ids[one], ids[other] = ids[other], ids[one]


def swap_in_tokenizer(folder, one="A", other="G"):
    edit(folder / "tokenizer.json", lambda stored: swap(stored["model"]["vocab"], one, other))


def write_lines(folder, tokens, end=""):
    (folder / "vocab.txt").write_text("\n".join(tokens) + end)


SWAPPED = list(ESM1B.tokens)
swap(SWAPPED, 4, 5)
# what is beside a stock ESM, and what the message says of it
STOCK = {
    "another order": (lambda at: write_lines(at, SWAPPED), r"vocab\.txt is not .*'L' is 5, not 4, 'A' is 4, not 5"),
    "fewer": (lambda at: write_lines(at, ESM1B.tokens[:-1]), r"vocab\.txt is not .*'<mask>' is None, not 32"),
    "more": (lambda at: write_lines(at, [*ESM1B.tokens, "J"]), r"vocab\.txt is not .*'J' is none of its tokens"),
    "nothing": (lambda at: write_lines(at, []), r"vocab\.txt is not"),
    "no text": (lambda at: (at / "vocab.txt").write_bytes(b"\xff"), r"vocab\.txt cannot be compared"),
    "a list": (
        lambda at: edit(at / "config.json", lambda stored: stored.update(vocab_list=SWAPPED)),
        r"vocab_list in its config\.json is not .*'L' is 5, not 4",
    ),
    "no list": (
        lambda at: edit(at / "config.json", lambda stored: stored.update(vocab_list=5)),
        r"vocab_list in its config\.json cannot be compared",
    ),
    "added": (
        lambda at: (at / "added_tokens.json").write_text('{"<mask>": 31}'),
        r"added_tokens\.json is not .*'<mask>' is 31, not 32",
    ),
    "added by the configuration": (
        lambda at: (at / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"7": {"content": "<my>"}}}'),
        r"tokenizer_config\.json is not .*'<my>' is none of its tokens",
    ),
    "a tokenizer": (
        lambda at: (at / "tokenizer.json").write_text('{"model": {"vocab": [["<cls>", 0.0], ["<pad>", 0.0]]}}'),
        r"tokenizer\.json is not .*'<eos>' is None, not 2",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), STOCK.values(), ids=STOCK)
def test_a_stock_esm_with_another_vocabulary_is_refused(copied, tmp_path, spoil, message):
    spoil(folder := copied("stock"))
    for open_it in (
        Checkpoint.open,
        hf_perturb.FairEsmForMaskedLM.from_pretrained,
        lambda x: hf_perturb.convert_checkpoint(x, tmp_path / "out"),
        lambda x: hf_perturb.export_checkpoint(x, tmp_path / "out", "transformers"),
        lambda x: hf_perturb.create_variant(x, tmp_path / "out", "reinit"),
        lambda x: hf_perturb.create_variant(x, tmp_path / "out", "reinit", recipe=True),
        lambda x: hf_perturb.compare_checkpoints(x, x),
    ):
        with pytest.raises(CheckpointError, match=message):
            open_it(folder)
    assert os.listdir(tmp_path) == ["stock"]


def test_a_vocabulary_that_was_fetched_counts_without_the_hub(folders, tmp_path, monkeypatch):
    """The cache of somebody who fetched three files by name, on a machine that now reaches nobody."""
    commit, attempts = "0" * 40, []
    kept = tmp_path / "models--lab--esm"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs/main").write_text(commit)
    shutil.copytree(folders / "stock", kept / "snapshots" / commit)

    def unreached(hub=None):
        if not (hub or {}).get("local_files_only"):
            attempts.append(hub)
            raise UnreachedError("nobody is there")

    monkeypatch.setattr(source, "reach_hub", unreached)
    load = hf_perturb.FairEsmForMaskedLM.from_pretrained
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert load("lab/esm", cache_dir=tmp_path, revision=commit).config.model_version == "ESM-2"
    write_lines(kept / "snapshots" / commit, SWAPPED)
    attempts.clear()
    with pytest.raises(CheckpointError, match=r"'lab/esm': vocab\.txt is not .*'L' is 5, not 4"):
        load("lab/esm", cache_dir=tmp_path, revision=commit)
    assert len(attempts) == 1


def test_what_stock_makes_of_it_is_what_is_refused(copied):
    """The oracle: the stock tokenizer gives the ids that the file says, in all these places."""
    folder = copied("stock")
    assert EsmTokenizer.from_pretrained(folder)("LAG<mask>").input_ids == [0, 4, 5, 6, 32, 2]
    for name in ("another order", "added", "added by the configuration"):
        STOCK[name][0](folder)
    read = EsmTokenizer.from_pretrained(folder)
    assert read("LAG").input_ids == [0, 5, 4, 6, 2]
    assert read("<my>").input_ids == [0, 7, 2]
    (folder / "tokenizer_config.json").unlink()
    assert EsmTokenizer.from_pretrained(folder)("LAG<mask>").input_ids == [0, 5, 4, 6, 31, 2]


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_the_vocabulary_of_the_published_ones_is_read(copied, end):
    write_lines(folder := copied("stock"), ESM1B.tokens, end)
    EsmTokenizer.from_pretrained(folder).save_pretrained(folder)
    edit(folder / "config.json", lambda stored: stored.update(vocab_list=list(ESM1B.tokens)))
    (folder / "added_tokens.json").write_text('{"<mask>": 32, "<of a resized one>": 33}')
    assert hf_perturb.FairEsmForMaskedLM.from_pretrained(folder).config.vocab_size == 33


@pytest.mark.parametrize("network", NETWORKS)
def test_a_base_of_ours_with_another_tokenizer_is_refused(copied, tmp_path, network, capsys):
    swap_in_tokenizer(folder := copied(network))
    for open_it in (
        AutoModelForMaskedLM.from_pretrained,
        lambda x: hf_perturb.create_variant(x, tmp_path / "out", "reinit"),
        hf_perturb.verify_variant,
    ):
        with pytest.raises(CheckpointError, match=r"tokenizer\.json is not the alphabet of this network.*'A' is"):
            open_it(folder)
    for words in (["verify", str(folder)], ["list", str(folder)], ["push", str(folder), "lab/x", "--dry-run"]):
        assert main(words) == 1
        assert "is not the alphabet of this network" in capsys.readouterr().err
    (folder / "tokenizer.json").unlink()
    assert hf_perturb.verify_variant(folder).ok, "none is fine"


@pytest.mark.parametrize("network", NETWORKS)
def test_a_tokenizer_that_reads_the_same_tokens_otherwise_is_fine(copied, network):
    """As the folders have it that were written before."""
    change = {"normalizer": None, "post_processor": None, "padding": {"strategy": "BatchLongest"}}
    edit((folder := copied(network)) / "tokenizer.json", lambda stored: stored.update(change))
    assert hf_perturb.verify_variant(folder).ok


def test_the_base_of_a_recipe_counts(copied, tmp_path):
    folder = copied("carp")
    hf_perturb.create_variant(folder, tmp_path / "recipe", "reinit", recipe=True)
    hf_perturb.create_variant(folder, tmp_path / "whole", "reinit")
    swap_in_tokenizer(folder)
    for open_it in (
        hf_perturb.CarpForMaskedLM.from_pretrained,
        hf_perturb.verify_variant,
        lambda x: hf_perturb.create_variant(x, tmp_path / "again"),
    ):
        with pytest.raises(CheckpointError, match="is not the alphabet of this network"):
            open_it(tmp_path / "recipe")
    assert hf_perturb.verify_variant(tmp_path / "whole").ok
    swap_in_tokenizer(tmp_path / "recipe", "C", "D")
    with pytest.raises(CheckpointError, match="'C' is 2, not 1"):
        hf_perturb.verify_variant(tmp_path / "recipe", folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": 1}', '{"model": {"vocab": {"A": 0}}}', "\udc80"])
def test_a_tokenizer_that_is_none_is_refused(copied, text):
    (folder := copied("esm1b")).joinpath("tokenizer.json").write_text(text, errors="surrogateescape")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json (is not|cannot be compared with) the alphabet"):
        hf_perturb.verify_variant(folder)
