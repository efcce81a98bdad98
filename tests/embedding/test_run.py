"""Embeddings are the original's representations of each sequence alone, pooled over its residues."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow")
pytest.importorskip("esm")
pytest.importorskip("sequence_models")

from parity.original_files import original_data, write_original
from parity.originals import TOLERANCE, Pair, small_pair
from support.embedding import draw, read_all, write_carp, write_fasta
from support.models import build_tokenizer, small_model

import hf_perturb
from hf_perturb.checkpoints.network import alphabet_of

NETWORKS = ("esm1", "esm1b", "esm1v", "esm2", "carp")
LENGTHS = (5, 300, 1, 42, 120, 2, 299, 17, 64, 3, 88, 1, 200, 42)
POOLS = {"mean": lambda x: x.double().mean(0), "max": lambda x: x.amax(0)}


@torch.no_grad()
def alone(pair: Pair, sequence: str) -> list[torch.Tensor]:
    """The original's representations 0 to n of a sequence, special tokens and all, each `(tokens, hidden_size)`."""
    return [layer[0] for layer in pair.outputs(pair.tokenize([sequence]))[0]]


def ends(pair: Pair, layer: torch.Tensor, sequence: str) -> slice:
    """Where the residues are among the tokens."""
    first = int(pair.config.model_type != "carp")
    assert len(layer) == len(sequence) + (0 if not first else 1 + (pair.config.eos_token_id is not None))
    return slice(first, first + len(sequence))


def assert_columns(out, sequences, expected):
    """Compare every column; `expected` gives, for a sequence, column -> values."""
    columns = read_all(out)
    assert all(ids == [f"s{i}" for i in range(len(sequences))] for ids, _ in columns.values())
    for row, sequence in enumerate(sequences):
        for name, values in expected(sequence).items():
            got = columns[name][1][row]
            np.testing.assert_allclose(got, values.numpy(), rtol=0, atol=TOLERANCE.absolute, err_msg=f"{name}, {row}")


@pytest.mark.parametrize("name", NETWORKS)
def test_every_pooling_and_layer_is_the_original_s(tmp_path, name):
    pair = small_pair(name)
    sequences = draw(LENGTHS)
    sequences += [sequences[3], sequences[0], sequences[3] + "X"]
    cls = () if name == "carp" else ("cls",)
    options = {"layers": "all", "pool": [*POOLS, *cls], "per_residue": True, "tokens": 700}
    done = hf_perturb.embed(pair.model(), write_fasta(tmp_path / "a.fasta", sequences), tmp_path / "out", **options)
    layers = range(pair.config.num_hidden_layers + 1)
    names = {f"{kind}_{layer}" for layer in layers for kind in [*options["pool"], "residues"]}
    assert set(done.columns) == names
    assert done.computed == done.residues == sum(map(len, sequences))

    def expected(sequence):
        values = {}
        for number, layer in enumerate(alone(pair, sequence)):
            values[f"residues_{number}"] = residues = layer[ends(pair, layer, sequence)]
            values |= {f"{kind}_{number}": pool(residues) for kind, pool in POOLS.items()}
            values |= {f"cls_{number}": layer[0] for _ in cls}
        return values

    assert_columns(tmp_path / "out", sequences, expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_mask_is_the_mask(tmp_path, name):
    """And one position, which has the vector that the network gives it."""
    pair, sequences = small_pair(name), ["MKTAYIAKQR", "<mask>KT", "MK<mask><mask>YI"]
    model, alphabet = pair.model(), alphabet_of(pair.config)
    done = hf_perturb.embed(model, write_fasta(tmp_path / "a.fasta", sequences), tmp_path / "out", per_residue=True)
    assert done.residues == 10 + 3 + 6
    assert done.findings["tokens"] == {"records": 2, "first": "s1"}
    tokenizer, first = build_tokenizer(alphabet), int(alphabet.bos is not None)
    _, vectors = hf_perturb.read_embeddings(tmp_path / "out", done.columns[-1])
    for sequence, length, got in zip(sequences, (10, 3, 6), vectors, strict=True):
        ids = tokenizer(sequence, return_tensors="pt").input_ids
        assert (ids == tokenizer.mask_token_id).sum() == sequence.count("<mask>")
        with torch.no_grad():
            hidden = model(ids, output_hidden_states=True).hidden_states[-1][0, first : first + length]
        np.testing.assert_allclose(got, hidden.numpy(), rtol=0, atol=TOLERANCE.absolute)
    write_fasta(tmp_path / "b.fasta", ["MK", "M<foo>K"])
    with pytest.raises(
        hf_perturb.FastaError, match=r"record 2 \('s1'\) has '<foo>', which is no token of this network"
    ):
        hf_perturb.embed(model, tmp_path / "b.fasta", tmp_path / "none")


@pytest.mark.parametrize("name", NETWORKS)
def test_the_last_layer_of_a_checkpoint_in_any_format(tmp_path, name):
    pair, sequences = small_pair(name), draw((9, 30, 2))
    fasta = write_fasta(tmp_path / "a.fasta", sequences)
    pair.model().save_pretrained(tmp_path / "base")
    original = write_original(tmp_path, name, original_data(pair))

    def expected(sequence):
        layer = alone(pair, sequence)[-1]
        return {f"mean_{pair.config.num_hidden_layers}": layer[ends(pair, layer, sequence)].double().mean(0)}

    for place in (tmp_path / "base", original):
        hf_perturb.embed(place, fasta, tmp_path / "out", force=True)
        assert_columns(tmp_path / "out", sequences, expected)


def windowed(pair: Pair, limit: int) -> hf_perturb.FairEsmForMaskedLM:
    """Our network with the first rows of the original's learned positions, so that it takes no more residues."""
    config = type(pair.config)(**{**pair.config.to_dict(), "max_position_embeddings": limit + 4})
    model = hf_perturb.FairEsmForMaskedLM(config)
    state = pair.original.state_dict()
    state["embed_positions.weight"] = state["embed_positions.weight"][: limit + 4]
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("overlap", [None, 0, 1, 15, 29])
def test_windows_are_averaged_where_they_overlap(tmp_path, overlap):
    pair, sequences = small_pair("esm1b"), draw((29, 30, 31, 44, 60, 61, 100, 1))
    fasta = write_fasta(tmp_path / "a.fasta", sequences)
    options = {"pool": ["mean", "max", "cls"], "per_residue": True, "long": "window", "overlap": overlap}
    hf_perturb.embed(windowed(pair, 30), fasta, tmp_path / "out", **options, tokens=100)
    counts = []

    def expected(sequence):
        starts, step = [0], 30 - (7 if overlap is None else overlap)
        while starts[-1] + 30 < len(sequence):
            starts.append(min(starts[-1] + step, len(sequence) - 30))
        counts.append(len(starts))
        total, seen, heads = torch.zeros(len(sequence), 32), torch.zeros(len(sequence), 1), []
        for start in starts:
            layer = alone(pair, part := sequence[start : start + 30])[-1]
            heads.append(layer[0])
            total[start : start + 30] += layer[ends(pair, layer, part)]
            seen[start : start + 30] += 1
        residues = total / seen
        pooled = {f"{kind}_2": pool(residues) for kind, pool in POOLS.items()}
        return {**pooled, "cls_2": torch.stack(heads).mean(0), "residues_2": residues}

    assert_columns(tmp_path / "out", sequences, expected)
    from pyarrow import parquet

    assert parquet.read_table(tmp_path / "out", columns=["windows"])["windows"].to_pylist() == counts
    inputs = hf_perturb.embedding.manifest.read_manifest(tmp_path / "out").inputs
    assert inputs["long_records"] == {"long": "window", "limit": 30, "overlap": 7 if overlap is None else overlap}


def test_truncated_records_are_their_beginning(tmp_path):
    pair, sequences = small_pair("esm1b"), draw((29, 30, 31, 100))
    fasta = write_fasta(tmp_path / "a.fasta", sequences)
    hf_perturb.embed(windowed(pair, 30), fasta, tmp_path / "out", pool="mean", per_residue=True, long="truncate")

    def expected(sequence):
        layer = alone(pair, part := sequence[:30])[-1]
        residues = layer[ends(pair, layer, part)]
        return {"mean_2": residues.double().mean(0), "residues_2": residues}

    assert_columns(tmp_path / "out", sequences, expected)
    from pyarrow import parquet

    table = parquet.read_table(tmp_path / "out", columns=["length", "embedded"]).to_pydict()
    assert table == {"length": [29, 30, 31, 100], "embedded": [29, 30, 30, 30]}


def test_variants_are_those_that_are_made_on_disk(tmp_path):
    """Of an original file too, whose tensors must not be changed by the first of them."""
    fasta, pair, base = write_fasta(tmp_path / "a.fasta", draw((9, 30, 2))), small_pair("esm1b"), tmp_path / "base"
    pair.model().save_pretrained(base)
    original = write_original(tmp_path, "esm1b", original_data(pair))
    asked = {"reinit-seed42": "reinit", "resample-seed42": "resample"}
    asked["resample-seed1"] = {"method": "resample", "seed": 1}
    asked["gaussian-also-head-seed42"] = {"method": "gaussian", "also": ["head"]}
    of_base = hf_perturb.embed_variants(base, fasta, tmp_path / "1", asked.values())
    of_file = hf_perturb.embed_variants(original, fasta, tmp_path / "2", asked.values())
    assert list(of_base) == list(of_file) == ["base", *asked]
    hf_perturb.create_variants(base, {tmp_path / name: each for name, each in asked.items()})
    for name in of_base:
        alone = hf_perturb.embed(tmp_path / name, fasta, tmp_path / "alone", force=True)
        vectors = [hf_perturb.read_embeddings(each.path)[1] for each in (alone, of_base[name], of_file[name])]
        assert np.array_equal(vectors[0], vectors[1])
        assert np.array_equal(vectors[0], vectors[2])
    one = hf_perturb.embed(base, fasta, tmp_path / "one", perturbation="reinit")
    assert one.fingerprint == of_base["reinit-seed42"].fingerprint


def test_a_recipe_is_its_variant(tmp_path):
    fasta, base = write_fasta(tmp_path / "a.fasta", draw((9, 30, 2))), write_carp(tmp_path / "base")
    hf_perturb.create_variants(base, {tmp_path / "recipe": "reinit"}, recipe=True)
    hf_perturb.create_variant(base, tmp_path / "variant", "reinit")
    for dtype in ("float32", "bfloat16"):
        one = hf_perturb.embed(tmp_path / "recipe", fasta, tmp_path / f"1{dtype}", dtype=dtype)
        other = hf_perturb.embed(tmp_path / "variant", fasta, tmp_path / f"2{dtype}", dtype=dtype)
        assert one.fingerprint == other.fingerprint
        assert np.array_equal(hf_perturb.read_embeddings(one.path)[1], hf_perturb.read_embeddings(other.path)[1])


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_other_types_are_near(tmp_path, dtype, network):
    model, fasta = small_model(network), write_fasta(tmp_path / "a.fasta", draw((9, 30, 2)))
    model.save_pretrained(tmp_path / "base")
    hf_perturb.embed(tmp_path / "base", fasta, tmp_path / "one")
    hf_perturb.embed(tmp_path / "base", fasta, tmp_path / "other", dtype=dtype)
    near, scale = 0.06 if dtype == "bfloat16" else 0.01, 4
    ours, theirs = (hf_perturb.read_embeddings(tmp_path / out)[1] for out in ("one", "other"))
    assert 0 < np.abs(ours - theirs).max() < (1e-4 if dtype == "float64" else near * scale)


def test_a_model_at_hand_is_as_it_was(tmp_path):
    fasta = write_fasta(tmp_path / "a.fasta", draw((9, 30, 2)))
    model = small_model("esm2", "ForSequenceClassification", classifier_dropout=0.5).train()
    model.classifier.eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen = []
    visit = model.visit_representations
    model.visit_representations = lambda *a, **k: seen.append(model.training) or visit(*a, **k)
    hf_perturb.embed(model, fasta, tmp_path / "out")
    assert seen == [False]
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("place", ["folder", "model", "variants"])
def test_nothing_global_is_changed(tmp_path, place):
    fasta, base = write_fasta(tmp_path / "a.fasta", draw((9, 30, 2))), write_carp(tmp_path / "base")

    def state():
        kind = torch.get_default_dtype()
        return torch.is_grad_enabled(), torch.get_num_threads(), kind, torch.are_deterministic_algorithms_enabled()

    before, drawn = state(), (torch.get_rng_state(), np.random.get_state()[1].tolist())
    if place == "variants":
        hf_perturb.embed_variants(base, fasta, tmp_path / "out", ["reinit"])
    else:
        given = base if place == "folder" else hf_perturb.CarpModel.from_pretrained(base)
        hf_perturb.embed(given, fasta, tmp_path / "out")
    assert state() == before
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert np.random.get_state()[1].tolist() == drawn[1]


def test_embed_stays_a_function():
    import hf_perturb.embedding.run

    assert hf_perturb.embed is hf_perturb.embedding.run.embed
    assert callable(hf_perturb.embed)
