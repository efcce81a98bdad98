"""Two checkpoints compared: against plain arithmetic over whole tensors, and where there is nothing to compute."""

from __future__ import annotations

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file
from support.models import model_class, small_model
from support.refusals import edited

import hf_perturb
from hf_perturb import Perturbation
from hf_perturb.checkpoints.tensors import OpenFile, Tensor
from hf_perturb.cli import main
from hf_perturb.compare import compare as comparing, statistics
from hf_perturb.compare.compare import chunks, compare_checkpoints, compare_variants
from hf_perturb.compare.statistics import BINS, Histogram, PairStatistics, bin_counts, bin_width
from hf_perturb.compare.table import comparison_table
from hf_perturb.perturbation.floats import cast
from hf_perturb.variants.create import create_variant

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NAN = math.nan


def saved(folder, network="esm2", edit=None, head="ForMaskedLM", **config):
    """Write a small network, its tensors edited by name."""
    small_model(network, head, **config).save_pretrained(folder)
    if edit:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def row_of(comparison, name):
    return next(row for row in comparison.tensors if row.name == name)


def statistics_of(a, b):
    return PairStatistics.of(*(Tensor.of(values).values() for values in (a, b)))


def in_chunks(a, b):
    return sum((PairStatistics.of(*part) for part in chunks(Tensor.of(a), Tensor.of(b))), PairStatistics())


def expected(a, b):
    """Return the statistics by plain arithmetic over whole tensors."""
    x, y = a.double().flatten(), b.double().flatten()
    return {
        "mean_a": x.mean(),
        "mean_b": y.mean(),
        "std_a": x.std(correction=0),
        "std_b": y.std(correction=0),
        "norm_a": x.norm(),
        "norm_b": y.norm(),
        "relative_distance": (y - x).norm() / x.norm() if (x != y).any() else torch.tensor(0.0),
        "cosine": x @ y / (x.norm() * y.norm()),
    }


def about(value):
    return pytest.approx(value.item(), rel=1e-9, abs=1e-12) if value.isfinite() else None


def belongs(name, group):
    if group.name == "total" or group.layer is not None:
        return group.name == "total" or f"layers.{group.layer}." in name
    return "layers." not in name and f"{name}.".startswith(f"{group.name}.")


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 40),
    chunk=st.integers(1, 41),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    mean=st.sampled_from((0.0, 3.0, 30_000.0)),
    seed=st.integers(0, 100),
)
def test_chunks_add_up_to_the_whole(size, chunk, dtypes, mean, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = (mean + torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2))
    a, b = a.to(dtypes[0]), b.to(dtypes[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "CHUNK", chunk)
        found = in_chunks(a, b)
    values = {
        **{f"{what}_{side}": getattr(getattr(found, side), what) for what in ("mean", "std", "norm") for side in "ab"},
        "relative_distance": found.distance,
        "cosine": found.cosine,
    }
    assert found.elements == size
    assert found.differing == int((a.double() != b.double()).sum())
    for name, value in expected(a, b).items():
        assert values[name] == pytest.approx(value.item(), rel=1e-9, abs=1e-12 * max(1, mean)), name


def test_a_tensor_in_memory_need_not_be_contiguous(monkeypatch):
    monkeypatch.setattr(comparing, "CHUNK", 5)
    a = torch.randn(4, 6)
    found = in_chunks(a.T, a.T.contiguous())
    assert (found.elements, found.differing, found.distance) == (24, 0, 0.0)


@pytest.mark.parametrize(
    ("a", "b", "differing"),
    [
        (torch.tensor([0.0, 1.0]), torch.tensor([-0.0, 1.0]), 1),
        (torch.tensor([NAN]), torch.tensor([NAN]), 0),
        (torch.tensor([0x7FC00000]).int().view(torch.float32), torch.tensor([0x7FC00001]).int().view(torch.float32), 1),
        (torch.tensor([NAN, 0.0, 0.5]), torch.tensor([NAN, -0.0, 0.5]).half(), 0),
        (torch.tensor([0.1, 0.5]), torch.tensor([0.1, 0.5]).half(), 1),
        (torch.tensor([NAN, 1.0]), torch.tensor([1.0, NAN]).double(), 2),
    ],
)
def test_one_type_is_compared_by_bits_and_two_by_value(a, b, differing):
    assert statistics_of(a, b).differing == differing


@pytest.mark.parametrize("odd", [0.5, NAN, math.inf])
@pytest.mark.parametrize("size", [1, 3, 70_000])
def test_what_is_bit_for_bit_the_same_takes_less_work_for_the_same_result(monkeypatch, odd, size):
    a = 3 + torch.randn(size, generator=torch.Generator().manual_seed(size))
    a[size // 2] = odd
    summed, done = statistics._dot, []
    monkeypatch.setattr(statistics, "_dot", lambda x, y: done.append(1) or summed(x, y))
    # NaN is not equal to itself, its letters are
    assert repr(statistics_of(a, a.clone())) == repr(statistics_of(a, a.double())), "of two types, by arithmetic"
    assert len(done) == 1 + 4


def test_where_a_statistic_is_not_defined():
    zero, one = torch.zeros(3), torch.ones(3)
    nothing = PairStatistics()
    assert (nothing.elements, nothing.distance, nothing.differing) == (0, 0.0, 0)
    assert nothing + nothing == nothing
    assert math.isnan(nothing.cosine)
    assert statistics_of(zero, zero).distance == 0
    assert math.isnan(statistics_of(zero, one).distance)
    assert statistics_of(one, zero).distance == 1
    assert math.isnan(statistics_of(one, zero).cosine)
    assert math.isnan(statistics_of(torch.tensor([NAN]), one[:1]).cosine)


def test_a_cosine_never_leaves_its_range():
    generator = torch.Generator().manual_seed(0)
    # of a few numbers: about one in twenty would be a digit too large
    for trial in range(200):
        a = torch.randn(1 + trial % 5, generator=generator)
        for scale in (3, -3):
            found = statistics_of(a, a * scale)
            assert abs(found.cosine) <= 1
            assert found.cosine == pytest.approx(math.copysign(1, scale))


def test_every_tensor_and_layer_of_a_variant(network, tmp_path):
    a = saved(tmp_path / "base", network)
    create_variant(a, tmp_path / "variant", "reinit")
    comparison = compare_checkpoints(a, tmp_path / "variant")
    one, other = (load_file(folder / "model.safetensors") for folder in (a, tmp_path / "variant"))
    one.setdefault("lm_head.weight", one.get("embed_tokens.weight"))
    rows = comparison.to_dict()["tensors"]
    assert {row["name"] for row in rows} == set(other)
    for row in rows:
        x, y = one[row["name"]], other[row["name"]]
        assert row["elements"] == x.numel()
        assert row["differing"] == int((x != y).sum())
        assert row["changed"] == (not torch.equal(x, y))
        for key, value in expected(x, y).items():
            assert row[key] == about(value), (row["name"], key)
    for group in [*comparison.layers, comparison.total]:
        names = [name for name in other if belongs(name, group)]
        assert group.tensors == len(names) > 0
        x, y = (torch.cat([side[name].flatten() for name in names]) for side in (one, other))
        values = group.to_dict()
        assert values["elements"] == x.numel()
        assert values["changed_tensors"] == sum(not torch.equal(one[name], other[name]) for name in names)
        for key, value in expected(x, y).items():
            assert values[key] == about(value), (group.name, key)
        kinds = {row["name"]: row["kind"] for row in rows if row["name"] in names}
        for part, allowed in (("weights", {"weight"}), ("vectors", {"bias", "norm"})):
            chosen = [name for name in names if kinds[name] in allowed]
            found = values[part]
            assert found["tensors"] == len(chosen)
            assert found["changed_tensors"] == sum(not torch.equal(one[name], other[name]) for name in chosen)
            assert found["elements"] == sum(one[name].numel() for name in chosen)
            if not chosen:
                assert {found["norm_a"], found["relative_distance"], found["differing"]} == {None}
                continue
            x, y = (torch.cat([side[name].flatten() for name in chosen]) for side in (one, other))
            for key, value in expected(x, y).items():
                assert found[key] == about(value), (group.name, part, key)


GROUPS = {
    "esm1": {"embed_out", "embed_out_bias", "embed_tokens", "contact_head", "embed_positions"},
    "esm1b": {
        *("embed_tokens", "contact_head", "embed_positions", "emb_layer_norm_before", "emb_layer_norm_after"),
        "lm_head",
    },
    "esm2": {"embed_tokens", "contact_head", "emb_layer_norm_after", "lm_head"},
    "carp": {"model.embedder", "model.decoder", "model.last_norm"},
}


def test_groups_and_kinds(network, tmp_path):
    a = saved(tmp_path / "base", network)
    comparison = compare_checkpoints(a, a)
    layers = 9 if network == "carp" else 3
    assert {group.name for group in comparison.layers} == GROUPS[network] | {f"layers.{n}" for n in range(layers)}
    assert [group.layer for group in comparison.layers if group.layer is not None] == list(range(layers))
    norms = {row.name.rpartition(".")[0] for row in comparison.tensors if row.kind == "norm"}
    model = small_model(network)
    assert norms == {name for name, module in model.named_modules() if isinstance(module, torch.nn.LayerNorm)}
    kinds = {row.kind: row.name for row in comparison.tensors}
    biases = {row.name for row in comparison.tensors if row.kind == "bias"}
    assert all("bias" in name for name in biases)
    assert ("buffer" in kinds) == (network in ("esm1", "esm2"))
    if network == "esm1":
        assert {"embed_out_bias", "layers.0.self_attn.bias_k", "layers.0.fc1.bias"} <= biases


def test_a_base_is_itself():
    comparison = compare_checkpoints("demo", "demo")
    assert not comparison.changed
    assert {row.changed for row in comparison.tensors} == {False}
    assert {row.statistics.distance for row in comparison.tensors} == {0.0}
    assert {row.statistics.cosine for row in comparison.tensors} == {1.0}
    assert comparison.histogram.a == comparison.histogram.b
    assert {row["changed"] for row in comparison_table(comparison, "tensor")[:-2]} == {"no"}


def test_resample_keeps_the_statistics_and_reinit_does_not(tmp_path):
    create_variant("demo", tmp_path / "shuffled", "resample")
    create_variant("demo", tmp_path / "drawn", "reinit")
    shuffled, drawn = (compare_checkpoints("demo", tmp_path / name) for name in ("shuffled", "drawn"))
    for row in shuffled.tensors:
        for what in ("mean", "std", "norm"):
            a, b = (getattr(getattr(row.statistics, side), what) for side in "ab")
            assert a == pytest.approx(b, rel=1e-12, abs=1e-15), (row.name, what)
    assert shuffled.changed
    assert shuffled.histogram.a == shuffled.histogram.b
    weights = [row.statistics for row in shuffled.tensors if row.kind == "weight" and row.layer is not None]
    # a shuffle is unrelated to what it came from, and as long
    assert all(found.distance == pytest.approx(math.sqrt(2), rel=0.05) for found in weights)
    assert drawn.histogram.a != drawn.histogram.b
    assert shuffled.histogram.edges[-1] == pytest.approx(-shuffled.histogram.edges[0])
    assert str(drawn.b) == "drawn, reinit (seed 42)"
    assert drawn.to_dict()["b"]["perturbation"]["seed"] == 42
    assert drawn.to_dict()["a"] == {"name": "demo", "revision": None, "perturbation": None}


@pytest.mark.parametrize("turned", [False, True])
def test_a_tied_head_is_compared_with_what_it_is_tied_to(tmp_path, turned):
    base = saved(tmp_path / "base", "esm1b")
    create_variant(base, tmp_path / "variant", {"method": "resample", "include": ["lm_head.weight"]})
    sides = (tmp_path / "variant", base) if turned else (base, tmp_path / "variant")
    comparison = compare_checkpoints(*sides)
    head = row_of(comparison, "lm_head.weight")
    assert (head.changed, head.only_in) == (True, None)
    assert head.tied == {"b" if turned else "a": "embed_tokens.weight"}
    assert head.statistics.a.norm == pytest.approx(head.statistics.b.norm)
    assert not row_of(comparison, "embed_tokens.weight").changed
    assert comparison.total.changed_tensors == 1
    table = {row["tensor"]: row for row in comparison_table(comparison, "tensor")}
    assert table["lm_head.weight"]["note"] == f"{'B' if turned else 'A'}: tied, embed_tokens.weight"


def test_two_tied_heads_count_once(tmp_path):
    base = saved(tmp_path / "base", "esm1b")
    assert "lm_head.weight" not in [row.name for row in compare_checkpoints(base, base).tensors]


@pytest.mark.parametrize("turned", [False, True])
def test_what_only_one_has_is_said_and_not_compared(tmp_path, turned):
    bare, whole = tmp_path / "bare", saved(tmp_path / "whole", "esm2")
    model_class("esm2", "Model").from_pretrained(whole).save_pretrained(bare)
    comparison = compare_checkpoints(*((whole, bare) if turned else (bare, whole)))
    alone = [row for row in comparison.tensors if row.only_in]
    assert {row.only_in for row in alone} == {"a" if turned else "b"}
    # the head's weight is the embedding, which both have
    names = {"lm_head.bias", "lm_head.dense.weight", "lm_head.dense.bias"}
    assert {row.name for row in alone} == {*names, "lm_head.layer_norm.weight", "lm_head.layer_norm.bias"}
    assert all(row.changed is None and row.to_dict()["norm_a"] is None for row in alone)
    assert comparison.changed, "one lacks tensors"
    head = next(group for group in comparison.layers if group.name == "lm_head")
    assert (head.tensors, head.statistics.elements, head.note) == (0, 0, f"5 only in {'A' if turned else 'B'}")
    table = comparison_table(comparison)
    assert table[-1]["changed"] == f"0 of {len(comparison.tensors) - 5}"
    assert table[-1]["note"] == head.note
    assert comparison_table(comparison, "tensor")[-3]["changed"] == f"only in {'A' if turned else 'B'}"
    json.dumps(comparison.to_dict(), allow_nan=False)


def test_a_head_of_its_own_is_not_in_a_bare_network(tmp_path):
    base, bare = saved(tmp_path / "base", "esm1b"), saved(tmp_path / "bare", "esm1b", head="Model")
    create_variant(base, tmp_path / "variant", {"method": "reinit", "include": ["lm_head.weight"]})
    assert row_of(compare_checkpoints(bare, tmp_path / "variant"), "lm_head.weight").only_in == "b"


def test_layers_that_one_lacks(tmp_path):
    short, long = (saved(tmp_path / str(n), "carp", num_hidden_layers=n) for n in (2, 3))
    last = next(group for group in compare_checkpoints(short, long).layers if group.name == "layers.2")
    assert (last.tensors, last.only_in_a, last.only_in_b, last.layer) == (0, 0, 12, 2)


def test_different_networks_are_refused(tmp_path):
    esm, wide = saved(tmp_path / "esm"), saved(tmp_path / "wide", hidden_size=64)
    with pytest.raises(hf_perturb.CheckpointError, match=r"is a fair_esm, 'demo' a carp; allowed: two .* family"):
        compare_checkpoints(esm, "demo")
    with pytest.raises(
        hf_perturb.CheckpointError, match=r"of two shapes: embed_tokens\.weight \(33, 32\) and \(33, 64\), .* more"
    ):
        compare_checkpoints(esm, wide)
    with pytest.raises(hf_perturb.CheckpointError, match="jobs: got 0; allowed: 1 or more"):
        compare_checkpoints(esm, esm, jobs=0)
    with pytest.raises(hf_perturb.CheckpointError, match=r"nowhere.*no such"):
        compare_checkpoints(esm, tmp_path / "nowhere")


def test_json_has_no_numbers_that_are_none(tmp_path):
    def spoil(tensors):
        tensors["layers.0.fc1.bias"].zero_()
        tensors["layers.0.fc1.weight"][0, 0] = NAN
        tensors["layers.1.fc1.weight"][0, 0] = math.inf

    base, odd = saved(tmp_path / "base"), saved(tmp_path / "odd", edit=spoil)
    comparison = compare_checkpoints(odd, base)
    data = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    rows = {row["name"]: row for row in data["tensors"]}
    assert rows["layers.0.fc1.bias"]["relative_distance"] is None, "there is no distance relative to zero"
    assert rows["layers.0.fc1.bias"]["norm_a"] == 0
    assert rows["layers.0.fc1.weight"]["mean_a"] is None
    assert rows["layers.0.fc1.weight"]["mean_b"] is not None
    assert rows["layers.0.fc1.weight"]["differing"] == 1
    assert rows["layers.1.fc1.weight"]["std_a"] is None
    assert data["total"]["changed_tensors"] == 3
    assert not compare_checkpoints(odd, odd).changed, "one NaN is as good as the same"


def halved(folder):
    return {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}


def test_a_cast_changes_what_it_rounds(tmp_path):
    def halve(tensors):
        for name, tensor in tensors.items():
            if name.startswith("layers.0."):
                # what float16 holds exactly, so that a cast is none
                tensor.copy_(tensor.half())

    base = saved(tmp_path / "base", edit=halve)
    small = saved(tmp_path / "small", edit=lambda tensors: tensors.update(halved(base)))
    comparison = compare_checkpoints(base, small)
    groups = {group.name: group for group in comparison.layers}
    assert groups["layers.0"].changed_tensors == 0
    assert groups["layers.1"].changed_tensors > 10
    assert 0 < groups["layers.1"].statistics.distance < 1e-3
    assert row_of(comparison, "layers.0.fc1.weight").note == "float32 and float16, by value"


@pytest.mark.parametrize("name", ["esm1b", "carp"])
def test_an_original_is_the_base_that_was_made_of_it(tmp_path, name):
    original = edited(tmp_path, name)
    hf_perturb.convert_checkpoint(original, tmp_path / "base")
    comparison = compare_checkpoints(original, tmp_path / "base")
    assert not comparison.changed
    assert str(comparison.a) == original.name


def test_jobs_and_chunks_change_nothing(tmp_path, monkeypatch):
    base = saved(tmp_path / "base")
    create_variant(base, tmp_path / "variant", "reinit")
    whole = compare_checkpoints(base, tmp_path / "variant", jobs=1).to_dict()
    monkeypatch.setattr(comparing, "CHUNK", 100)
    one, many = (compare_checkpoints(base, tmp_path / "variant", jobs=jobs).to_dict() for jobs in (1, 4))
    assert one == many, "to the last digit"
    assert one["histogram"] == whole["histogram"]
    assert [row["differing"] for row in one["tensors"]] == [row["differing"] for row in whole["tensors"]]
    for row, other in zip(one["tensors"], whole["tensors"], strict=True):
        assert row["relative_distance"] == pytest.approx(other["relative_distance"], rel=1e-12, nan_ok=True)


def test_no_more_than_a_chunk_is_read_at_a_time(tmp_path, monkeypatch):
    base = saved(tmp_path / "base")
    read, compared, sizes = OpenFile.read_into, comparing._compared, []
    monkeypatch.setattr(comparing, "CHUNK", 100)
    monkeypatch.setattr(comparing, "SAMPLE", 100)
    monkeypatch.setattr(OpenFile, "read_into", lambda file, to, at: sizes.append(len(to)) or read(file, to, at))
    monkeypatch.setattr(
        comparing, "_compared", lambda *both: sizes.clear() or compared(*both)
    )  # headers are read before
    seen = []
    comparison = compare_checkpoints(base, base, jobs=2, progress=lambda done, total: seen.append((done, total)))
    elements = sum(row.elements for row in comparison.tensors)
    assert max(sizes) == 400, "bytes"
    sampled = [row for row in comparison.tensors if row.kind != "buffer"]
    assert 800 <= sum(sizes) - 8 * elements <= 8 * (100 + len(sampled)), "both are read once, but for a sample"
    assert max(seen) == (8 * elements, 8 * elements), "and no page of a mapped file is touched"
    assert len(seen) == len(sizes) / 2 - len(sampled)


def test_a_table_is_text(tmp_path):
    create_variant("demo", tmp_path / "drawn", {"method": "reinit", "include": ["model.embedder.layers.3.conv.*"]})
    comparison = compare_checkpoints("demo", tmp_path / "drawn")
    table = comparison_table(comparison)
    parts = [f"{what} {part}" for part in ("weights", "vectors") for what in ("distance", "correlation")]
    assert list(table[0]) == ["layer", "changed", "std A", "std B", *parts]
    assert all(isinstance(cell, str) for row in table for cell in row.values())
    rows = {row["layer"]: row for row in table}
    assert rows["layers.3"]["changed"] == "2 of 12"
    assert (rows["layers.2"]["changed"], rows["layers.2"]["distance weights"]) == ("0 of 12", "0")
    assert list(rows)[-1] == "total"
    assert rows["total"]["changed"] == f"2 of {len(comparison.tensors)}"
    titles = ["tensor", "changed", "differing", "mean A", "mean B", "std A", "std B", "norm A", "norm B"]
    table = comparison_table(comparison, "tensor")
    assert list(table[0]) == [*titles, "distance", "correlation"]
    assert [(row["tensor"], row["changed"]) for row in table[-2:]] == [
        ("total weights", "1 of 51"),
        ("total vectors", "1 of 148"),
    ]


def test_a_table_does_not_pool_a_shuffle_with_gains_near_one(tmp_path):
    create_variant("demo", tmp_path / "shuffled", "resample")
    comparison = compare_checkpoints("demo", tmp_path / "shuffled")
    rows = [row for row in comparison_table(comparison) if row["layer"].startswith("layers.")]
    assert len(rows) == 16
    assert all(row["std A"] == row["std B"] == row["std A"].strip("-") for row in rows)
    assert all(len("  ".join(row.values())) <= 120 for row in rows)


NOISE = 0.01  # of the standard deviation of each tensor


def noisy(tensors):
    generator = torch.Generator().manual_seed(0)
    for tensor in tensors.values():
        if tensor.dim() and tensor.numel() > 1:
            tensor.add_(NOISE * tensor.std() * torch.randn(tensor.shape, generator=generator))


@pytest.mark.parametrize("network", ["demo", "esm1b", "esm1"])
def test_every_column_of_a_table_tells_a_shuffle_from_its_base(tmp_path, network):
    """Also where gains are near 1, and large embeddings are kept."""
    sizes = {"hidden_size": 64, "intermediate_size": 256}
    base = saved(tmp_path / "base", network, **sizes) if network != "demo" else hf_perturb.demo.folder()
    tensors = load_file(base / "model.safetensors")
    noisy(tensors)
    shutil.copytree(base, tmp_path / "noisy")
    save_file(tensors, tmp_path / "noisy" / "model.safetensors", {"format": "pt"})
    create_variant(base, tmp_path / "shuffled", {"method": "resample", "axis": "all"})
    create_variant(base, tmp_path / "drawn", "reinit")
    tables = {}
    for name in ("base", "noisy", "shuffled", "drawn"):
        comparison = compare_checkpoints(base, base if name == "base" else tmp_path / name)
        tables[name] = comparison_table(comparison)
        said = comparison.to_dict()["total"]
        for part in ("weights", "vectors"):
            cells = tables[name][-1]
            assert cells[f"distance {part}"] == f"{said[part]['standardized_distance']:.4g}"
            assert cells[f"correlation {part}"] == f"{said[part]['correlation']:.4g}"
    for part in ("weights", "vectors"):
        found = {name: [row for row in rows if row[f"distance {part}"] != "-"] for name, rows in tables.items()}
        assert {(row[f"distance {part}"], row[f"correlation {part}"]) for row in found["base"]} == {("0", "1")}
        for name, low, high in (("noisy", 0.9998, 1), ("shuffled", -0.15, 0.15), ("drawn", -0.25, 0.25)):
            rows = [row for row in found[name] if row["changed"][0] != "0" and row[f"distance {part}"] != "0"]
            assert rows
            total, layers = rows[-1], [row for row in rows if row["layer"].startswith("layers.")]
            assert all(low <= float(row[f"correlation {part}"]) <= high for row in [*layers, total]), (name, part)
            distances = [float(row[f"distance {part}"]) for row in [*layers, total]]
            assert all(0.008 < each < 0.012 if name == "noisy" else each > 0.95 for each in distances), (name, part)
        shuffled = float(found["shuffled"][-1][f"distance {part}"])
        assert shuffled == pytest.approx(math.sqrt(2), rel=0.05), "whatever was kept"


def test_of_the_means_nothing_is_taken_for_likeness():
    generator = torch.Generator().manual_seed(0)
    gains = (1 + 0.05 * torch.randn(500, generator=generator)).double()
    biases = -0.1 + 0.01 * torch.randn(500, generator=generator).double()
    orders = [torch.randperm(500, generator=generator) for _ in range(2)]
    pairs = [statistics_of(a, a[order]) for a, order in zip((gains, biases), orders, strict=True)]
    for found in pairs:
        assert found.cosine > 0.98
        assert abs(found.likeness.correlation) < 0.15
        assert found.likeness.distance == pytest.approx(math.sqrt(2), rel=0.1)
    pooled, like = pairs[0] + pairs[1], pairs[0].likeness + pairs[1].likeness
    assert pooled.likeness.correlation > 0.9, "as one vector, they differ in their means first of all"
    assert abs(like.correlation) < 0.15
    a, b = (
        torch.cat([x - x.mean() for x in side]) for side in ((gains, biases), (gains[orders[0]], biases[orders[1]]))
    )
    assert like.correlation == pytest.approx((a @ b / (a.norm() * b.norm())).item(), rel=1e-9)
    assert like.distance == pytest.approx(((b - a).norm() / a.norm()).item(), rel=1e-9)


def test_where_a_constant_has_no_spread():
    odd, values = torch.full((100_001,), 0.1), torch.linspace(-1, 1, 100_001)
    halves = [
        sum((statistics_of(x, y) for x, y in zip(odd.split(999), values.split(999), strict=True)), PairStatistics())
    ]
    for found in (statistics_of(odd, values), *halves):
        assert found.likeness.correlation == 0
        assert math.isnan(found.likeness.distance), "nothing is known of its scale"
    found = statistics_of(values, odd).likeness
    assert (found.correlation, found.distance) == (
        0,
        pytest.approx(math.sqrt(1 + 0.01 / values.double().var().item()), rel=1e-3),
    )
    assert statistics_of(odd, odd).likeness.to_dict() == {"standardized_distance": 0, "correlation": 1}
    assert statistics_of(odd, 2 * odd).likeness.to_dict() == {"standardized_distance": None, "correlation": None}
    assert statistics_of(values, -values).likeness.correlation == pytest.approx(-1)
    assert statistics_of(values, torch.full_like(values, NAN)).likeness.to_dict()["correlation"] is None


def test_a_gaussian_is_as_far_as_a_shuffle_and_its_histogram_is_another(tmp_path):
    create_variant("demo", tmp_path / "drawn", "gaussian")
    comparison = compare_checkpoints("demo", tmp_path / "drawn")
    assert str(comparison.b) == "drawn, gaussian (seed 42)"
    for part in comparison.total.parts.values():
        assert part.likeness.distance == pytest.approx(math.sqrt(2), rel=0.05)
        assert abs(part.likeness.correlation) < 0.05
        assert part.statistics.b.std == pytest.approx(part.statistics.a.std, rel=0.01)
    assert comparison.histogram.a != comparison.histogram.b


def test_what_was_kept_says_nothing_of_what_changed(tmp_path):
    create_variant("demo", tmp_path / "drawn", {"method": "reinit", "include": ["model.embedder.layers.3.conv.weight"]})
    rows = {row["layer"]: row for row in comparison_table(compare_checkpoints("demo", tmp_path / "drawn"))}
    for row in (rows["layers.3"], rows["total"]):
        assert row["changed"].startswith("1 of ")
        assert abs(float(row["correlation weights"])) < 0.05
        assert (row["distance vectors"], row["correlation vectors"]) == ("0", "1")


# a matrix


@pytest.fixture
def many(tmp_path):
    """Three variants of the demo base, the second of which is damaged."""
    for seed in (1, 2, 3):
        create_variant("demo", tmp_path / "many" / f"reinit-seed{seed}", Perturbation("reinit", seed=seed))
    (tmp_path / "many" / "reinit-seed2" / "config.json").unlink()
    return tmp_path / "many"


@pytest.mark.parametrize("turned", [False, True])
def test_a_matrix_is_a_row_for_each(many, turned, capsys):
    sides = (many, "demo") if turned else ("demo", many)
    found = compare_variants(*sides)
    assert [folder.name for folder in found] == ["reinit-seed1", "reinit-seed2", "reinit-seed3"]
    one, broken, three = found.values()
    assert isinstance(broken, hf_perturb.CheckpointError)
    alone = [many / "reinit-seed1", "demo"] if turned else ["demo", many / "reinit-seed1"]
    assert comparison_table(one, "tensor") == comparison_table(compare_checkpoints(*alone), "tensor")
    assert main(["compare", *map(str, sides)]) == 1
    streams = capsys.readouterr()
    title, *rows = streams.out.splitlines()
    assert title.split()[:3] == ["variant", "changed", "std"]
    totals = [comparison_table(each)[-1] for each in (one, three)]
    cells = [" ".join(row.split()).removeprefix("reinit-seed") for row in rows]
    assert cells == [f"{seed} {' '.join(list(row.values())[1:])}" for seed, row in zip((1, 3), totals, strict=True)]
    assert streams.err.startswith(f"hf-perturb compare: {many / 'reinit-seed2'}: ")
    assert streams.err.count("\n") == 1
    assert main(["compare", *map(str, sides), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert [row["path"] for row in said] == [str(folder) for folder in found]
    assert list(said[0]) == ["path", *one.to_dict()]
    assert said[0]["total"]["weights"] == pytest.approx(one.to_dict()["total"]["weights"])
    assert "no config.json in it" in said[1]["problems"][0]


def test_a_matrix_with_the_table_of_each(many, capsys):
    shutil.rmtree(many / "reinit-seed2")
    assert main(["compare", "demo", str(many), "--per", "layer"]) == 0
    first, second, total = capsys.readouterr().out.split("\n\n")
    assert main(["compare", "demo", str(many / "reinit-seed1")]) == 0
    assert first == f"{many / 'reinit-seed1'}\n{capsys.readouterr().out}".rstrip("\n")
    assert second.startswith(f"{many / 'reinit-seed3'}\nlayer ")
    assert total.startswith("variant ")
    assert total.count("\n") == 3


def test_a_matrix_that_cannot_be_compared(many, tmp_path, capsys):
    (tmp_path / "empty" / "logs").mkdir(parents=True)
    for sides, message in (
        ((many, many), "are both folders of variants; allowed: one of them"),
        (("demo", "demo"), "are no folders of variants; allowed: one of them"),
        (("demo", tmp_path / "empty"), "no folder in it that has one; allowed: the folder of a model, or a folder of"),
        ((tmp_path / "nowhere", many), "nowhere"),
    ):
        with pytest.raises(hf_perturb.CheckpointError, match=re.escape(message)):
            compare_variants(*sides)
    with pytest.raises(SystemExit) as caught:
        main(["compare", "demo", str(many), "--plot", str(tmp_path / "out.png")])
    assert caught.value.code == 2
    assert (
        f"argument --plot: shows one variant, and {many} has 3: give {many / 'reinit-seed1'}" in capsys.readouterr().err
    )
    assert not (tmp_path / "out.png").exists()


def histogram_of(values):
    array = Tensor.of(values).values()
    width = bin_width([cast(array, np.dtype(np.float32))])
    counts = bin_counts(array, width)
    return Histogram.of(width, counts, counts)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    size=st.integers(1, 3000),
    scale=st.sampled_from((1e-30, 1e-3, 1.0, 1e20)),
    dtype=st.sampled_from(DTYPES[2:]),
)
def test_a_histogram_is_that_of_numpy(seed, size, scale, dtype):
    generator = torch.Generator().manual_seed(seed)
    values = (scale * torch.randn(size, generator=generator, dtype=torch.float64)).to(dtype)
    histogram = histogram_of(values)
    assert list(histogram.a) == np.histogram(values.numpy(), histogram.edges)[0].tolist()
    assert len(histogram.a) == len(histogram.edges) - 1 == BINS
    assert sum(histogram.a) + histogram.beyond_a == size
    assert histogram.beyond_a <= max(1, size / 1000)
    assert np.allclose(histogram.edges, -np.flip(histogram.edges), rtol=1e-15, atol=0)


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_a_histogram_of_half_a_float_is_that_of_its_values(dtype):
    values = (0.02 * torch.randn(5000, generator=torch.Generator().manual_seed(0))).to(dtype)
    assert histogram_of(values) == histogram_of(values.double())


def test_what_a_histogram_leaves_out_is_counted():
    bulk = torch.linspace(-0.5, 0.5, 10_001)
    far = torch.tensor([1000.0, NAN, math.inf, -math.inf, -3e38])
    histogram = histogram_of(torch.cat([bulk, far]))
    assert histogram.beyond_a == 5
    assert sum(histogram.a) == len(bulk)
    assert 0.5 <= histogram.edges[-1] < 10


def test_layer_norm_gains_have_room_beside_small_weights():
    generator = torch.Generator().manual_seed(0)
    weights, gains = 0.05 * torch.randn(100_000, generator=generator), 1 + 0.01 * torch.randn(500, generator=generator)
    assert 1 < histogram_of(torch.cat([weights, gains])).edges[-1] < 1.3
    assert histogram_of(weights).edges[-1] < 0.3


def test_zeros_are_about_zero():
    histogram = histogram_of(torch.cat([torch.zeros(500), -torch.zeros(500), torch.tensor([1.0, -1.0])]))
    middle = len(histogram.a) // 2
    assert histogram.a[middle] == 1000
    assert histogram.edges[middle] < 0 < histogram.edges[middle + 1]
    assert histogram_of(torch.zeros(3)).a[middle] == 3
    assert sum(histogram_of(torch.tensor([NAN])).a) == 0
    assert histogram_of(torch.ones(3)).a[-1] == 3, "the farthest is in a bin"


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_sample_of_a_network_finds_its_range(tmp_path, monkeypatch, scale):
    def scaled(tensors):
        for tensor in tensors.values():
            tensor.mul_(scale)

    base = saved(tmp_path / "base", edit=scaled)
    whole = compare_checkpoints(base, base).histogram
    monkeypatch.setattr(comparing, "SAMPLE", 2000)
    some = compare_checkpoints(base, base).histogram
    assert 0.5 < some.edges[-1] / whole.edges[-1] < 2
    assert some.beyond_a + sum(some.a) == whole.beyond_a + sum(whole.a)
    assert some.beyond_a < 0.01 * sum(some.a)
