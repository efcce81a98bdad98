"""Exports for fair-esm and sequence-models are read by their own loaders, to the bit."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import esm.pretrained
import pytest
import sequence_models.pretrained
import torch
from support.models import small_model

import hf_perturb
from hf_perturb import Perturbation
from hf_perturb.perturbation import digest_of
from parity.originals import CARPS, FAIR_ESM, Pair, assert_close
from parity.sources import CONTACTS, files_of, load_source, source_pair, write_source

# what fair-esm's loader goes by
NAMES = {"esm1": "esm1_t2_control.pt", "esm1b": "esm1b.control.pt", "esm1v": "esm1v_control.pt", "esm2": "esm2_t2.pt"}
TIED = Perturbation("resample", exclude=["lm_head.weight"])
CASES: dict[str, tuple[str, dict[str, bool], Any]] = {
    **{name: (name, {}, None) for name in FAIR_ESM},
    "esm1 without bias": ("esm1", {"final_bias": False}, None),
    "esm1 with token dropout": ("esm1", {"token_dropout": True}, None),
    "esm1b without token dropout": ("esm1b", {"token_dropout": False}, None),
    "esm2 without token dropout": ("esm2", {"token_dropout": False}, None),
    "esm1 reinit": ("esm1", {}, Perturbation("reinit", seed=2)),
    "esm1b resample": ("esm1b", {}, TIED),
    "esm1b published": ("esm1b", {}, Perturbation("reinit", rules="published")),
    "esm1v resample": ("esm1v", {}, TIED),
    "esm2 resample": ("esm2", {}, TIED),
}
_NO_MEANING = "embed_positions._float_tensor"


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request, tmp_path) -> tuple[str, Pair, Path]:
    name, options, asked = request.param
    pair, model = source_pair(name, **options)
    return name, pair, write_source(tmp_path, model, asked)


def load_fair_esm(path: Path, contacts: bool = True) -> Any:
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
        if not contacts:
            warnings.filterwarnings("ignore", message="Regression weights not found")
        return esm.pretrained.load_model_and_alphabet_local(path)[0].eval()


def load_carp(path: Path) -> Any:
    return sequence_models.pretrained.load_model_and_alphabet(str(path))[0].eval()


def assert_bit_equal(loaded: Any, ours: Any, but: tuple[str, ...] = ()) -> None:
    theirs, expected = loaded.state_dict(), ours.state_dict()
    assert [name for name in theirs if name not in but] == [name for name in expected if name not in but]
    for name, tensor in expected.items():
        assert name in but or torch.equal(theirs[name], tensor), name


def assert_comes_back(source: Path, back: Path, done: hf_perturb.Conversion) -> None:
    ours, again = load_source(source), load_source(back)
    assert done.digest == digest_of(ours.state_dict()) == digest_of(again.state_dict())
    assert list(again.state_dict()) == list(ours.state_dict())
    for key in ("perturbation", "digest", "architectures", "vocab_size", "tie_word_embeddings"):
        assert again.config.to_dict().get(key) == ours.config.to_dict().get(key), key


def published_names(name: str) -> list[str]:
    """Return the files of an export, the contact regression beside it where fair-esm expects one."""
    stem = NAMES[name].removesuffix(".pt")
    return [NAMES[name]] if name == "esm1v" else [NAMES[name], f"{stem}-contact-regression.pt"]


@torch.no_grad()
def test_fair_esm_reads_it(case, tmp_path):
    name, pair, source = case
    before = files_of(tmp_path)
    written = hf_perturb.export_checkpoint(source, tmp_path / "out" / NAMES[name], "fair-esm")
    assert [path.name for path in written] == published_names(name)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(published_names(name))
    after = files_of(tmp_path)
    assert {path: after[path] for path in before} == before
    loaded, ours = load_fair_esm(written[0], contacts=name != "esm1v"), load_source(source)
    assert type(loaded) is type(pair.original)
    assert_bit_equal(loaded, ours, (_NO_MEANING, *(CONTACTS if name == "esm1v" else ())))
    input_ids = pair.batch((30, 1, 12), masked=True)
    inside = input_ids != pair.original.padding_idx
    representations, logits = pair.represent(loaded, input_ids)
    outputs = ours(input_ids, output_hidden_states=True)
    assert_close(outputs.logits[inside], logits[inside], "logits")
    for i, (one, other) in enumerate(zip(outputs.hidden_states, representations, strict=True)):
        assert_close(one[inside], other[inside], f"representation {i}")
    if name != "esm1v":
        theirs = loaded.predict_contacts(input_ids)
        for one, other, n in zip(ours.predict_contacts(input_ids), theirs, (30, 1, 12), strict=True):
            assert_close(one[:n, :n], other[:n, :n], f"contacts of {n} residues")


def test_a_file_of_fair_esm_comes_back(case, tmp_path):
    name, _, source = case
    path = hf_perturb.export_checkpoint(source, tmp_path / NAMES[name], "fair-esm")[0]
    done = hf_perturb.convert_checkpoint(path, tmp_path / "back")
    assert_comes_back(source, tmp_path / "back", done)
    assert done.origin == "fair-esm"


def test_a_table_of_positions_of_another_length(tmp_path):
    small_model("esm1b", max_position_embeddings=34).save_pretrained(tmp_path / "base")
    path = hf_perturb.export_checkpoint(tmp_path / "base", tmp_path / "short.pt", "fair-esm")[0]
    loaded = load_fair_esm(path)
    assert loaded.embed_positions.num_embeddings == 34
    assert loaded.layers[0].ffn_embed_dim == 64
    assert_bit_equal(loaded, load_source(tmp_path / "base"))


def test_a_contact_head_stays_in_a_file_that_is_named_like_an_esm1v(tmp_path):
    """The loader looks for no second file then, but takes what is in the first."""
    source = write_source(tmp_path, source_pair("esm1b")[1])
    written = hf_perturb.export_checkpoint(source, tmp_path / "like_esm1v.pt", "fair-esm")
    assert len(written) == 1
    assert_bit_equal(load_fair_esm(written[0]), load_source(source))


def test_no_name_loses_the_contact_head(tmp_path):
    """For a name with `esm_if` the loader looks for no second file either; such a name may be refused as well."""
    source = write_source(tmp_path, source_pair("esm1b")[1])
    try:
        written = hf_perturb.export_checkpoint(source, tmp_path / "like_esm_if.pt", "fair-esm")
    except hf_perturb.CheckpointError as error:
        assert "esm_if" in str(error)  # noqa: PT017, either is right
    else:
        assert_bit_equal(load_fair_esm(written[0]), load_source(source))


def test_an_esm2_without_a_contact_head(tmp_path):
    config = source_pair("esm2")[0].config.to_dict() | {"contact_head": False}
    hf_perturb.FairEsmForMaskedLM(hf_perturb.FairEsmConfig(**config)).save_pretrained(tmp_path / "base")
    written = hf_perturb.export_checkpoint(tmp_path / "base", tmp_path / "esm2_like_esm1v.pt", "fair-esm")
    assert len(written) == 1
    assert_bit_equal(load_fair_esm(written[0], contacts=False), load_source(tmp_path / "base"), CONTACTS)


def test_from_an_original_to_an_original(tmp_path):
    """A file that fair-esm has written goes through us unchanged."""
    source = write_source(tmp_path, source_pair("esm2")[1])
    first = hf_perturb.export_checkpoint(source, tmp_path / "esm2_first.pt", "fair-esm")[0]
    second = hf_perturb.export_checkpoint(first, tmp_path / "esm2_second.pt", "fair-esm")[0]
    assert_bit_equal(load_fair_esm(second), load_fair_esm(first))


@pytest.mark.parametrize(("name", "to"), [("esm1b", "fair-esm"), ("esm1", "fair-esm"), ("carp", "sequence-models")])
def test_a_file_holds_its_tensors_and_no_more(name, to, tmp_path):
    """Tensors that are mapped from one file would each bring all of it along."""
    source = write_source(tmp_path, source_pair(name)[1])
    path = hf_perturb.export_checkpoint(source, tmp_path / "network.pt", to)[0]
    stored = sum(tensor.nbytes for tensor in load_source(source).state_dict().values())
    assert path.stat().st_size < 1.1 * stored + 100_000
    assert path.stat().st_mode == (source / "config.json").stat().st_mode


@pytest.mark.parametrize("asked", [None, Perturbation("reinit"), Perturbation("resample", axis="rows")], ids=str)
@pytest.mark.parametrize("name", CARPS)
@torch.no_grad()
def test_sequence_models_reads_it(name, asked, tmp_path):
    pair, model = source_pair(name)
    source = write_source(tmp_path, model, asked)
    written = hf_perturb.export_checkpoint(source, tmp_path / "network.pt", "sequence-models")
    assert written == (tmp_path / "network.pt",)
    loaded, ours = load_carp(written[0]), load_source(source)
    assert_bit_equal(loaded, ours)
    input_ids = pair.batch((30, 1, 12), masked=True)
    inside = input_ids != ours.config.pad_token_id
    representations, logits = pair.represent(loaded, input_ids)
    outputs = ours(input_ids, output_hidden_states=True)
    assert_close(outputs.logits[inside], logits[inside], "logits")
    for i, (one, other) in enumerate(zip(outputs.hidden_states, representations, strict=True)):
        assert_close(one[inside], other[inside], f"representation {i}")
    done = hf_perturb.convert_checkpoint(written[0], tmp_path / "back")
    assert done.origin == "sequence-models"
    assert not done.notes
    assert_comes_back(source, tmp_path / "back", done)
    assert load_source(tmp_path / "back").config.max_dilation == ours.config.max_dilation


def test_the_small_model_of_the_package_is_exported(tmp_path):
    path = hf_perturb.export_checkpoint("demo", tmp_path / "demo.pt", "sequence-models")[0]
    assert_bit_equal(load_carp(path), load_source(hf_perturb.demo.folder()))
