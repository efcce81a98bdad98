"""`embedding_functions`: what evaluators call gives the representations that `embed` writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.any_encoders import encoder, write_encoder
from support.embedding import draw, write_carp, write_fasta
from support.models import small_model

import hf_perturb
from hf_perturb.embedding import functions

SEQUENCES = [*draw([30, 5, 57, 12]), "MKT", "mkt", "MKT"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("esm") / "base"
    small_model("esm1b", max_position_embeddings=62).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("perturbation", [None, "reinit"])
@pytest.mark.parametrize("layer", [1, "last"])
def test_representations_are_those_that_embed_writes(model, layer, perturbation, tmp_path, monkeypatch):
    monkeypatch.setattr(functions, "_HELD", 4 * 32 * 60)  # 60 residues at a time
    fasta, options = write_fasta(tmp_path / "proteins.fasta", SEQUENCES), {"layers": layer, "per_residue": True}
    hf_perturb.embed(model, fasta, tmp_path / "out", pool="mean", perturbation=perturbation, **options)
    made = hf_perturb.embedding_functions(model, layer=layer, perturbation=perturbation)
    number = 3 if layer == "last" else layer
    for function, column in ((made.per_sequence, f"mean_{number}"), (made.per_residue, f"residues_{number}")):
        _, wanted = hf_perturb.read_embeddings(tmp_path / "out", column)
        found = [*function(iter(SEQUENCES))]
        assert [sequence for sequence, _ in found] == SEQUENCES, "as they were given, and in that order"
        for (_, tensor), vector in zip(found, wanted, strict=True):
            assert (tensor.dtype, tensor.shape) == (torch.float32, vector.shape)
            np.testing.assert_allclose(tensor.numpy(), vector, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["per_sequence", "per_residue"])
def test_so_many_representations_are_held_as_have_room(model, monkeypatch, name):
    """Those of short sequences count as much as those of long ones."""
    monkeypatch.setattr(functions, "_HELD", (4 * 32 + 1) * 10)
    taken = []
    results = getattr(hf_perturb.embedding_functions(model), name)(taken.append(x) or x for x in ["M"] * 50)
    for done in range(1, 50):
        next(results)
        assert len(taken) - done <= 10


def test_a_sequence_whose_letters_would_move_is_refused(model):
    made = hf_perturb.embedding_functions(model)
    for odd in ("MK-T", "MKT*", "", "MK T", "MK<mask>T"):
        with pytest.raises(hf_perturb.FastaError, match="a letter for each residue"):
            next(made.per_residue([odd]))


def test_long_sequences_are_refused_or_seen_through_windows(model):
    long = draw([90])
    with pytest.raises(hf_perturb.FastaError, match="has 90 residues; allowed: at most 58"):
        next(hf_perturb.embedding_functions(model).per_residue(long))
    [(_, found)] = hf_perturb.embedding_functions(model, long="window").per_residue(long)
    assert found.shape == (90, 32)
    cut = hf_perturb.embedding_functions(model, long="truncate")
    assert next(cut.per_sequence(long))[1].shape == (32,)
    with pytest.raises(hf_perturb.ModelInputError, match="long: got 'truncate'; allowed for residues"):
        next(cut.per_residue(long))


def test_options_that_are_for_files_or_for_several_are_refused(model):
    with pytest.raises(TypeError, match="'per_residue': it is for files"):
        hf_perturb.embedding_functions(model, per_residue=True)
    for several in ({"layer": "all"}, {"pool": ("mean", "max")}):
        with pytest.raises(hf_perturb.ModelInputError, match="allowed: one layer and one pool"):
            hf_perturb.embedding_functions(model, **several)


def test_other_networks_and_models_at_hand_are_taken(tmp_path):
    carp = hf_perturb.embedding_functions(write_carp(tmp_path / "carp"))
    bert = hf_perturb.embedding_functions(write_encoder(tmp_path / "bert", "bert"), perturbation="reinit")
    network, tokenizer = encoder("esm")
    network.train()
    esm = hf_perturb.embedding_functions(network, tokenizer=tokenizer)
    for made in (carp, bert, esm):
        [(_, rows), _] = made.per_residue(["MKTAYI", "MK"])
        [(_, mean), _] = made.per_sequence(["MKTAYI", "MK"])
        torch.testing.assert_close(rows.mean(0), mean, atol=1e-6, rtol=0)
    begun = esm.per_residue(["MKTAYI", "MK"])
    next(begun)
    begun.close()
    assert network.training, "as it was, though nobody asked for the rest"
