"""Scores of a base and its controls: which networks, what is run, and what is written."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow")

import pyarrow as pa
from pyarrow import parquet
from scipy.stats import spearmanr
from support.any_encoders import encoder, write_encoder
from support.embedding import draw, write_carp, write_fasta
from support.models import small_model

import hf_perturb
from hf_perturb.errors import (
    CheckpointError,
    EmbeddingsError,
    FastaError,
    FolderExistsError,
    ModelInputError,
    PerturbationError,
    UnsupportedModuleError,
)
from hf_perturb.zero_shot import networks
from hf_perturb.zero_shot.table import read_about

[WILDTYPE] = draw([30])
LETTERS = [letter for letter in "ACDW" if letter not in (WILDTYPE[3], WILDTYPE[20])][:2]
SINGLE = [f"{WILDTYPE[at]}{at + 1}{letter}" for at in (3, 20) for letter in LETTERS]
MUTANTS = [*SINGLE, f"{SINGLE[0]}:{SINGLE[2]}", "WT"]
CONTROLS = ["reinit", {"method": "resample", "seed": 7}]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_carp(tmp_path_factory.mktemp("score") / "base")


def columns(scores, network="base"):
    rows = scores.table.to_pydict()
    chosen = [row for row, name in enumerate(rows["network"]) if name == network]
    return {name: [values[row] for row in chosen] for name, values in rows.items()}


def test_a_mutant_has_the_sum_of_its_substitutions(base):
    done = hf_perturb.score(base, WILDTYPE, MUTANTS)
    found = columns(done)
    assert found["mutant"] == MUTANTS
    for name in ("masked_marginal", "wildtype_marginal"):
        one, _, other, *_, both, nothing = found[name]
        assert abs(both - one - other) < 1e-6
        assert (nothing, len({*found[name]})) == (0.0, 6)


def test_every_single_substitution_is_scored_by_default(base):
    done = hf_perturb.score(base, WILDTYPE, offset=101)
    found = columns(done)
    assert done.mutants == len(found["mutant"]) == 30 * 19
    assert found["mutant"][0][:-1] == f"{WILDTYPE[0]}101"
    chosen = columns(hf_perturb.score(base, WILDTYPE, SINGLE))
    at = [found["mutant"].index(f"{name[0]}{int(name[1:-1]) + 100}{name[-1]}") for name in SINGLE]
    np.testing.assert_allclose([found["masked_marginal"][i] for i in at], chosen["masked_marginal"], atol=1e-5)


@pytest.mark.parametrize("network", ["carp", "esm2", "bert"])
def test_controls_made_in_memory_score_as_those_on_disk(tmp_path, network):
    source = tmp_path / "base"
    if network == "bert":
        write_encoder(source, "bert-lm")
    else:
        small_model(network).save_pretrained(source)
    done = hf_perturb.score(source, WILDTYPE, MUTANTS, perturbations=CONTROLS)
    names = [each.network for each in done.networks]
    assert names[0] == "base"
    assert len({*names}) == 3
    for perturbation, each in zip(CONTROLS, done.networks[1:], strict=True):
        record = hf_perturb.create_variant(source, tmp_path / each.network, perturbation)
        stored = hf_perturb.score(tmp_path / each.network, WILDTYPE, MUTANTS)
        assert stored.networks[0].network.startswith(record.method)  # a control that is given is no base
        assert each.digest == stored.networks[0].digest == record.digest
        assert each.perturbation["method"] == record.method
        ours, theirs = columns(done, each.network), columns(stored, stored.networks[0].network)
        assert {**ours, "network": theirs["network"]} == theirs
        assert ours["masked_marginal"] != columns(done)["masked_marginal"]
        assert {*ours["method"]} == {record.method}
        assert {*ours["seed"]} == {record.seed}


def test_a_network_runs_what_is_asked_for_and_no_more(base, monkeypatch):
    """One row for each position that some mutant changes, and one for the pass without a mask."""
    rows, told = [], []
    call = hf_perturb.CarpForMaskedLM.visit_representations
    monkeypatch.setattr(
        hf_perturb.CarpForMaskedLM,
        "visit_representations",
        lambda self, visit, ids, **more: rows.append(tuple(ids.shape)) or call(self, visit, ids, **more),
    )
    hf_perturb.score(base, WILDTYPE, MUTANTS, progress=lambda *done: told.append(done))
    assert (rows, told) == ([(2, 30), (1, 30)], [(2, 4), (4, 4)])
    rows.clear()
    hf_perturb.score(base, WILDTYPE, MUTANTS, marginal="wildtype")
    assert rows == [(1, 30)]
    rows.clear()
    hf_perturb.score(base, WILDTYPE, marginal="masked", tokens=65)
    assert rows == [(2, 30)] * 15
    rows.clear()
    hf_perturb.score(base, WILDTYPE, ["WT"])
    assert rows == []


def test_heads_see_nothing_but_the_positions_that_are_asked_for(base, monkeypatch):
    shapes, call = [], hf_perturb.CarpForMaskedLM.predict_tokens
    monkeypatch.setattr(
        hf_perturb.CarpForMaskedLM,
        "predict_tokens",
        lambda self, states: shapes.append(tuple(states.shape)) or call(self, states),
    )
    hf_perturb.score(base, WILDTYPE, MUTANTS)
    assert [shape[:2] for shape in shapes] == [(1, 2), (1, 2)]


def test_a_model_at_hand_scores_as_its_folder_and_stays_as_it_was(tmp_path):
    model = small_model("esm1b").train()
    model.save_pretrained(tmp_path / "base")
    here = hf_perturb.score(model, WILDTYPE, MUTANTS, perturbations=[])
    assert model.training
    assert columns(here) == columns(hf_perturb.score(tmp_path / "base", WILDTYPE, MUTANTS))
    with pytest.raises(PerturbationError, match="a model that is at hand is not perturbed"):
        hf_perturb.score(model, WILDTYPE, perturbations="reinit")


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (lambda: small_model("esm2", "Model"), {}, "FairEsmModel, without a language head"),
        (lambda: small_model("carp", "ForTokenClassification"), {}, "CarpForTokenClassification, without a language"),
        (
            *(lambda: encoder("bert")[0], {"tokenizer": lambda: encoder("bert")[1]}),
            "BertModel, without a language head",
        ),
        (*(lambda: encoder("t5")[0], {"tokenizer": lambda: encoder("t5")[1]}), "T5ForConditionalGeneration, without"),
        (*(lambda: encoder("llama")[0], {"tokenizer": lambda: encoder("llama")[1]}), "LlamaForCausalLM, without"),
    ],
)
def test_a_network_without_a_masked_language_head_is_refused(model, options, said):
    with pytest.raises(UnsupportedModuleError, match=said):
        hf_perturb.score(model(), WILDTYPE, **{name: make() for name, make in options.items()})


def test_a_folder_without_a_head_and_a_tokenizer_without_a_mask_are_refused(tmp_path):
    small_model("esm2", "Model").save_pretrained(tmp_path / "trunk")
    with pytest.raises(UnsupportedModuleError, match=r"trunk' is a FairEsmModel, without a language head"):
        hf_perturb.score(tmp_path / "trunk", WILDTYPE)
    model, tokenizer = encoder("bert-lm")
    tokenizer.mask_token = None
    with pytest.raises(ModelInputError, match="has no mask token; name that of the network with --tokenizer"):
        hf_perturb.score(model, WILDTYPE, tokenizer=tokenizer)


def test_residues_that_a_network_has_no_token_of_are_refused(base):
    small = small_model("esm1")
    with pytest.raises(FastaError, match=rf"mutant '{WILDTYPE[0]}1J' of 'wildtype': .* has no token of J"):
        hf_perturb.score(small, WILDTYPE, [MUTANTS[0], f"{WILDTYPE[0]}1J"])
    hf_perturb.score(base, WILDTYPE, [f"{WILDTYPE[0]}1J"])  # CARP has one
    model, tokenizer = encoder("bert-lm")
    with pytest.raises(FastaError, match="this bert network has no token of J"):
        hf_perturb.score(model, WILDTYPE, [f"{WILDTYPE[0]}1J"], tokenizer=tokenizer)
    found = hf_perturb.score(model, WILDTYPE, [f"{WILDTYPE[0]}1{x}" for x in "UX"], tokenizer=tokenizer, replace="U=X")
    assert len({*columns(found)["masked_marginal"]}) == 1


def test_each_record_of_a_fasta_is_scored_by_itself(base, tmp_path):
    wildtypes = draw((12, 30, 5), seed=1)
    fasta = write_fasta(tmp_path / "a.fasta", wildtypes)
    lines = [f"s0,{wildtypes[0][0]}1A", f"s2,{wildtypes[2][4]}5A", f"s0,{wildtypes[0][11]}12A"]
    (tmp_path / "a.csv").write_text("\n".join(["id,mutant", *lines]))
    done = hf_perturb.score(base, fasta, tmp_path / "a.csv")
    found = columns(done)
    assert found["id"] == ["s0", "s0", "s2"]
    alone = columns(hf_perturb.score(base, wildtypes[2], [found["mutant"][2]]))
    assert alone["masked_marginal"][0] == pytest.approx(found["masked_marginal"][2], abs=1e-5)
    every = hf_perturb.score(base, fasta)
    assert every.mutants == every.table.num_rows == 19 * 47
    with pytest.raises(FastaError, match="got a list for 3 wild types"):
        hf_perturb.score(base, fasta, MUTANTS)


# ---- what was measured


def measured_table(path, values):
    rows = [f"{name},{value}" for name, value in zip(MUTANTS, values, strict=True)]
    path.write_text("\n".join(["mutant,DMS_score", *rows]))
    return path


def test_rank_correlations_are_those_of_the_rows_that_were_measured(base, tmp_path):
    path = measured_table(tmp_path / "a.csv", ["1", "-2", "0.5", "", "3", "0"])
    done = hf_perturb.score(base, WILDTYPE, path, perturbations="reinit")
    assert done.measured == "DMS_score"
    for each in done.networks:
        found = columns(done, each.network)
        there = [row for row, value in enumerate(found["measured"]) if value is not None]
        assert len(there) == 5
        for marginal in ("masked", "wildtype"):
            pairs = [[found[name][row] for row in there] for name in (f"{marginal}_marginal", "measured")]
            assert each.spearman[marginal] == pytest.approx(spearmanr(*pairs).statistic)
    assert done.networks[0].spearman != done.networks[1].spearman


def test_a_rank_correlation_that_is_none_is_said_to_be(base, tmp_path):
    for values in (["1"] * 6, ["2", *[""] * 5]):
        done = hf_perturb.score(base, WILDTYPE, measured_table(tmp_path / "a.csv", values))
        assert done.networks[0].spearman == {"masked": None, "wildtype": None}
        assert done.rows()[0]["spearman masked"] == "undefined"


# ---- what is written


def test_a_file_says_what_was_done(base, tmp_path):
    out = tmp_path / "new" / "scores.parquet"
    done = hf_perturb.score(base, WILDTYPE, MUTANTS, out, perturbations=CONTROLS, offset=1)
    assert done.path == out
    assert [path.name for path in out.parent.iterdir()] == ["scores.parquet"]
    assert parquet.read_table(out).equals(done.table)
    assert done.table.column_names == [
        *("mutant", "id", "network", "method", "seed", "digest", "masked_marginal", "wildtype_marginal"),
    ]
    about = read_about(out)
    assert [each["digest"] for each in about["networks"]] == [each.digest for each in done.networks]
    assert about["networks"][2]["perturbation"]["seed"] == 7
    assert (about["offset"], about["dtype"], about["model"]["model_type"]) == (1, "float32", "carp")
    assert {"hf-perturb", "torch", "transformers"} == {*about["versions"]}


@pytest.mark.parametrize("error", [OSError("no space left"), EmbeddingsError("too little memory")])
def test_a_file_is_written_whole_or_not_at_all(base, tmp_path, monkeypatch, error):
    out, call = tmp_path / "scores.parquet", networks.Scorer.score

    def fail(self, *given):
        if self.network.network != "base":
            raise error
        return call(self, *given)

    monkeypatch.setattr(networks.Scorer, "score", fail)
    is_ours = isinstance(error, EmbeddingsError)  # which says enough
    said = f"^{error}" if is_ours else f"scores.parquet: nothing was written, because {error}"
    with pytest.raises(EmbeddingsError if is_ours else CheckpointError, match=said):
        hf_perturb.score(base, WILDTYPE, MUTANTS, out, perturbations="reinit")
    assert not list(tmp_path.iterdir())


def test_what_appeared_meanwhile_is_not_replaced(base, tmp_path):
    out = tmp_path / "scores.parquet"
    with pytest.raises(FolderExistsError, match="exists already"):
        hf_perturb.score(base, WILDTYPE, MUTANTS, out, progress=lambda *done: out.write_text("mine"))
    assert out.read_text() == "mine"


def test_only_scores_are_replaced_and_only_if_asked(base, tmp_path):
    out = tmp_path / "scores.parquet"
    hf_perturb.score(base, WILDTYPE, MUTANTS, out)
    with pytest.raises(FolderExistsError, match="exists already; choose another file, or replace it with --force"):
        hf_perturb.score(base, WILDTYPE, MUTANTS[:2], out)
    assert hf_perturb.score(base, WILDTYPE, MUTANTS[:2], out, force=True).table.num_rows == 2
    parquet.write_table(pa.table({"mine": [1]}), out)
    (tmp_path / "text").write_text("mine")
    for other in (out, tmp_path / "text", tmp_path):
        with pytest.raises(FolderExistsError, match="holds no scores, so --force does not replace it"):
            hf_perturb.score(base, WILDTYPE, MUTANTS, other, force=True)


# ---- options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"offset": "1"}, "offset: got '1'"),
        ({"offset": 10**25}, "offset: got 10{25}; allowed"),
        ({"long": "truncate"}, "long: got 'truncate'; allowed: refuse, window"),
        ({"marginal": "pseudo"}, "marginal: got 'pseudo'; allowed: masked, wildtype, or both"),
        ({"marginal": ()}, "marginal: got"),
        ({"measured": "DMS_score"}, "measured: got 'DMS_score'; allowed: a column of a table"),
        ({"dtype": "int8"}, "dtype: got 'int8'"),
    ],
)
def test_options_that_say_nothing_are_refused(base, options, said):
    with pytest.raises(ModelInputError, match=said):
        hf_perturb.score(base, WILDTYPE, **options)


def test_half_types_score_nearly_the_same(base):
    exact, half = (columns(hf_perturb.score(base, WILDTYPE, SINGLE, dtype=dtype)) for dtype in (None, "bfloat16"))
    np.testing.assert_allclose(half["masked_marginal"], exact["masked_marginal"], atol=0.1)
    assert half["masked_marginal"] != exact["masked_marginal"]


def test_weights_that_are_no_numbers_are_told(tmp_path):
    model = small_model("esm2")
    with torch.no_grad():
        model.layers[1].fc1.weight[0, 0] = float("nan")
    with pytest.raises(ModelInputError, match="a probability is NaN or infinite"):
        hf_perturb.score(model, WILDTYPE, MUTANTS)


def test_whole_sequences_are_scored_for_the_study(base):
    sequences = [WILDTYPE]
    for name in MUTANTS[:5]:
        residues = [*WILDTYPE]
        for part in name.split(":"):
            residues[int(part[1:-1]) - 1] = part[-1]
        sequences.append("".join(residues))
    for marginal in ("masked", "wildtype"):
        found = hf_perturb.substitution_scores(base, WILDTYPE, sequences, CONTROLS, marginal=marginal)
        done = hf_perturb.score(base, WILDTYPE, ["WT", *MUTANTS[:5]], perturbations=CONTROLS)
        assert [*found] == [each.network for each in done.networks]
        for name, values in found.items():
            np.testing.assert_allclose(values, columns(done, name)[f"{marginal}_marginal"], rtol=0, atol=1e-6)
    with pytest.raises(ModelInputError, match=r"marginal: got \('masked', 'wildtype'\); allowed: one of masked"):
        hf_perturb.substitution_scores(base, WILDTYPE, sequences, marginal=("masked", "wildtype"))
    with pytest.raises(FastaError, match="row 2: the sequence has 29 residues"):
        hf_perturb.substitution_scores(base, WILDTYPE, [WILDTYPE, WILDTYPE[1:]])
