"""`contacts`: a map a protein, of a base and of its controls, and a folder that is continued or refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.any_encoders import encoder, write_encoder
from support.embedding import draw, write_carp, write_fasta
from support.models import batch_of, small_model

import hf_perturb
from hf_perturb.cli.main import main
from hf_perturb.zero_shot import contact_plot, contacts as module

SEQUENCES = draw([30, 1, 12, 30, 57])
KEPT_HEAD = hf_perturb.Perturbation("reinit", seed=1, exclude=["contact_head.*"])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("esm") / "base"
    small_model("esm2", "Model").save_pretrained(folder)
    return folder


@pytest.fixture
def fasta(tmp_path) -> Path:
    return write_fasta(tmp_path / "proteins.fasta", SEQUENCES)


def maps_in(folder: Path) -> list[np.ndarray]:
    return [found for _, found in hf_perturb.read_contacts(folder)]


def alone(network: torch.nn.Module, sequence: str) -> np.ndarray:
    """Return the map of a sequence by itself, without its special tokens."""
    with torch.no_grad():
        return network.predict_contacts(**batch_of("esm2", [sequence]))[0].numpy()


def assert_maps_of(network: torch.nn.Module, folder: Path) -> None:
    found = maps_in(folder)
    assert [each.shape for each in found] == [(len(sequence),) * 2 for sequence in SEQUENCES]
    for each, sequence in zip(found, SEQUENCES, strict=True):
        assert each.dtype == np.float32
        np.testing.assert_allclose(each, alone(network, sequence), rtol=0, atol=1e-5)
        np.testing.assert_allclose(each, each.T, rtol=0, atol=1e-6)


def test_maps_of_a_base_and_its_controls_have_no_padding(model, fasta, tmp_path):
    done = hf_perturb.contacts(model, fasta, tmp_path / "out", ["resample", KEPT_HEAD])
    assert list(done) == ["base", "resample-seed42", "reinit-seed1"]
    for name, perturbation in {"base": None, "resample-seed42": "resample", "reinit-seed1": KEPT_HEAD}.items():
        network = hf_perturb.FairEsmModel.from_pretrained(model, perturbation=perturbation)
        assert_maps_of(network, tmp_path / "out" / name)


def test_batches_are_as_small_as_memory_asks(model, fasta, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CELLS_ON_CPU", 1)
    hf_perturb.contacts(model, fasta, tmp_path / "out")
    assert_maps_of(hf_perturb.FairEsmModel.from_pretrained(model), tmp_path / "out" / "base")


def test_a_control_whose_head_is_perturbed_is_told(model, fasta, tmp_path):
    [note] = hf_perturb.contacts(model, fasta, tmp_path / "out", ["resample", KEPT_HEAD])["base"].notes
    assert note.startswith("resample-seed42: the contact head is perturbed too")
    assert "--exclude '*contact_head.*'" in note
    variant = tmp_path / "variant"
    hf_perturb.create_variant(model, variant, "reinit")
    done = hf_perturb.contacts(variant, fasta, tmp_path / "of it")
    assert list(done) == ["reinit-seed42"], "a control that is given is no base"
    assert "reinit-seed42: the contact head" in done["reinit-seed42"].notes[0]
    at_hand = hf_perturb.FairEsmModel.from_pretrained(variant)
    here = hf_perturb.contacts(at_hand, fasta, tmp_path / "at hand")
    assert here["reinit-seed42"].notes == done["reinit-seed42"].notes


def test_ids_may_be_anything_and_the_index_has_them(model, tmp_path):
    fasta = tmp_path / "odd.fasta"
    fasta.write_text(">../../etc/ö*?\nMKT\n>\nMKTAY\n>../../etc/ö*?\n\n", encoding="utf-8")
    done = hf_perturb.contacts(model, fasta, tmp_path / "out")["base"]
    index = json.loads((done.path / "index.json").read_text(encoding="utf-8"))
    assert [(each["file"], each["id"], each["length"]) for each in index["maps"]] == [
        ("000001.npy", "../../etc/ö*?", 3),
        ("000002.npy", "", 5),
        ("000003.npy", "../../etc/ö*?", 0),
    ]
    assert [each.shape for each in maps_in(done.path)] == [(3, 3), (5, 5), (0, 0)]
    assert index["fingerprint"] == done.fingerprint
    assert index["inputs"]["model"]["weights"] == hf_perturb.checkpoints.checkpoint.Checkpoint.open(model).digest()
    assert {path.name for path in (tmp_path / "out" / "base").iterdir()} == {
        "index.json",
        *(each["file"] for each in index["maps"]),
    }


def test_an_interrupted_run_is_continued(model, fasta, tmp_path):
    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        hf_perturb.contacts(model, fasta, out, progress=interrupt)
    with pytest.raises(hf_perturb.EmbeddingsError, match="not complete"):
        maps_in(out / "base")
    whole = out / "base" / "000001.npy"
    whole.write_bytes(whole.read_bytes()[:-4])
    (out / "base" / "000005.npy").unlink()
    assert hf_perturb.contacts(model, fasta, out)["base"].computed == 2
    assert_maps_of(hf_perturb.FairEsmModel.from_pretrained(model), out / "base")
    assert hf_perturb.contacts(model, fasta, out)["base"].computed == 0


def test_other_maps_are_refused_and_replaced_by_force(model, fasta, tmp_path):
    out = tmp_path / "out"
    hf_perturb.contacts(model, fasta, out)
    fewer = write_fasta(tmp_path / "fewer.fasta", SEQUENCES[:2])
    with pytest.raises(hf_perturb.EmbeddingsError, match="other contact maps: fasta: "):
        hf_perturb.contacts(model, fewer, out)
    assert len(maps_in(out / "base")) == len(SEQUENCES)
    hf_perturb.contacts(model, fewer, out, force=True)
    assert len(maps_in(out / "base")) == 2
    assert len([*(out / "base").glob("*.npy")]) == 2


def test_maps_of_other_sequences_do_not_stay_beside_new_ones(model, fasta, tmp_path):
    out, other = tmp_path / "out", write_fasta(tmp_path / "other.fasta", draw([30, 1, 12, 30, 57], seed=9))
    hf_perturb.contacts(model, fasta, out, "resample")
    (out / "base").rename(tmp_path / "base")
    with pytest.raises(hf_perturb.EmbeddingsError, match="resample-seed42 holds other contact maps"):
        hf_perturb.contacts(model, other, out, "resample", progress=lambda *_: pytest.fail("nothing is made for it"))

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hf_perturb.contacts(model, other, out, "resample", force=True, progress=interrupt)
    for name in ("base", "resample-seed42"):
        with pytest.raises(hf_perturb.EmbeddingsError, match="not complete"):
            maps_in(out / name)


def test_pictures_of_maps_that_are_replaced_go_with_them(model, fasta, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    hf_perturb.contacts(model, fasta, out, plot=3)
    (out / "plots" / "mine.png").write_bytes(b"mine")
    hf_perturb.contacts(model, fasta, out, plot=1)
    assert len([*(out / "plots").glob("0*.png")]) == 3, "of the same maps"
    fewer = write_fasta(tmp_path / "fewer.fasta", SEQUENCES[1:2])
    hf_perturb.contacts(model, fewer, out, force=True)
    assert [path.name for path in (out / "plots").iterdir()] == ["mine.png"]


def test_pictures_without_a_place_are_refused_before_maps_are_made(model, fasta, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plots").write_text("mine")
    with pytest.raises(hf_perturb.FolderExistsError, match="plots is no folder, and pictures go to one of that name"):
        hf_perturb.contacts(model, fasta, tmp_path / "out", plot=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["plots"]


def test_what_is_not_ours_is_left_alone(model, fasta, tmp_path):
    (tmp_path / "out" / "base").mkdir(parents=True)
    (tmp_path / "out" / "base" / "thesis.txt").write_text("mine")
    with pytest.raises(hf_perturb.FolderExistsError, match=r"holds thesis\.txt"):
        hf_perturb.contacts(model, fasta, tmp_path / "out", force=True)
    assert [path.name for path in (tmp_path / "out" / "base").iterdir()] == ["thesis.txt"]


def test_networks_without_contacts_say_so_before_anything_is_read(tmp_path):
    carp, bert = write_carp(tmp_path / "carp"), write_encoder(tmp_path / "bert", "bert")
    small_model("esm1b", contact_head=False).save_pretrained(tmp_path / "esm1v")
    said = {carp: "is a CARP, whose layers are convolutions", bert: "is a BertModel, which has no contact head"}
    said[tmp_path / "esm1v"] = "came without a contact head"
    for network, why in said.items():
        with pytest.raises(hf_perturb.UnsupportedModuleError, match=f"{why}.*; allowed: an ESM"):
            hf_perturb.contacts(network, tmp_path / "none.fasta", tmp_path / "out")


def test_a_head_that_nobody_fitted_is_refused(tmp_path):
    """Transformers' ESM-1v has one like any other."""
    network, tokenizer = encoder("esm", vocab_size=33)
    network.save_pretrained(tmp_path / "esm1v")
    tokenizer.save_pretrained(tmp_path / "esm1v")
    fasta = write_fasta(tmp_path / "proteins.fasta", SEQUENCES)
    asked = hf_perturb.Perturbation("reinit", rules="transformers")
    for given, more in ((network, {"tokenizer": tokenizer}), (tmp_path / "esm1v", {"perturbations": asked})):
        with pytest.raises(hf_perturb.UnsupportedModuleError, match="is an ESM-1v as Transformers stores it"):
            hf_perturb.contacts(given, fasta, tmp_path / "out", **more)
    with pytest.raises(hf_perturb.UnsupportedModuleError, match="random numbers for a contact head"):
        hf_perturb.contacts(tmp_path / "esm1v", fasta, tmp_path / "out")
    hf_perturb.convert_checkpoint(tmp_path / "esm1v", tmp_path / "base")
    hf_perturb.contacts(tmp_path / "base", fasta, tmp_path / "out")


def test_stock_esm_predicts_by_its_own_head(tmp_path):
    network, tokenizer = encoder("esm", vocab_size=33, emb_layer_norm_before=True)
    fasta = write_fasta(tmp_path / "proteins.fasta", SEQUENCES)
    assert network.config._attn_implementation == "sdpa"
    hf_perturb.contacts(network, fasta, tmp_path / "out", tokenizer=tokenizer)
    assert network.config._attn_implementation == "sdpa", "it is as it was"
    network.save_pretrained(tmp_path / "stock")
    tokenizer.save_pretrained(tmp_path / "stock")
    asked = hf_perturb.Perturbation("reinit", rules="transformers")
    hf_perturb.contacts(tmp_path / "stock", fasta, tmp_path / "rules", [asked])
    hf_perturb.contacts(tmp_path / "stock", fasta, tmp_path / "ours")  # as one of our classes
    network.set_attn_implementation("eager")
    for number, sequence in enumerate(SEQUENCES):
        batch = tokenizer([sequence], return_tensors="pt")
        with torch.no_grad():
            theirs = network.predict_contacts(batch["input_ids"], batch["attention_mask"])[0].numpy()
        for folder in ("out", "rules", "ours"):
            found = maps_in(tmp_path / folder / "base")[number]
            np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-5, err_msg=folder)
    assert not np.allclose(maps_in(tmp_path / "rules" / "reinit-transformers-seed42")[4], found, atol=1e-3)


def test_a_record_that_is_too_long_is_refused_by_its_name(tmp_path):
    small_model("esm1b", "Model", max_position_embeddings=34).save_pretrained(tmp_path / "short")
    fasta = write_fasta(tmp_path / "proteins.fasta", SEQUENCES)
    with pytest.raises(hf_perturb.FastaError, match=r"'s4' has 57 residues; allowed: at most 30"):
        hf_perturb.contacts(tmp_path / "short", fasta, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_no_numbers_are_no_map(fasta, tmp_path):
    network = small_model("esm2", "Model")
    with torch.no_grad():
        network.contact_head.regression.bias.fill_(float("nan"))
    with pytest.raises(hf_perturb.EmbeddingsError, match="contacts are NaN or infinite"):
        hf_perturb.contacts(network, fasta, tmp_path / "out")


def test_the_command_draws_the_first_proteins(model, fasta, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    words = ["contacts", str(model), str(fasta), str(tmp_path / "out"), "--plot", "--pictures", "2"]
    assert main([*words, "--method", "reinit", "--seed", "0-1"]) == 0
    printed = capsys.readouterr()
    assert f"{tmp_path / 'out' / 'reinit-seed1'}: 5 maps, 130 residues, 5 of them made now" in printed.out
    assert "drew the first 2 of 5 proteins" in printed.err
    plots = sorted((tmp_path / "out" / "plots").iterdir())
    assert [path.name for path in plots] == ["000001.png", "000002.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in plots)


def test_a_picture_shows_all_networks_in_one_scale_and_counts_from_1():
    pytest.importorskip("matplotlib")
    maps = {f"control {number}": np.full((30, 30), number / 10, np.float32) for number in range(6)}
    figure = contact_plot._figure("a protein", maps)
    *panels, bar = figure.axes
    assert [panel.get_title() for panel in panels if panel.axison] == [*maps]
    for panel, contacts in zip(panels, maps.values(), strict=False):
        [image] = panel.images
        assert image.get_clim() == (0, 1)
        assert np.array_equal(image.get_array(), contacts)
        assert image.get_extent() == [0.5, 30.5, 30.5, 0.5]
        assert panel.get_xticks().tolist() == panel.get_yticks().tolist() == [1, 10, 20, 30]
    assert bar.get_ylabel() == "probability of contact"
