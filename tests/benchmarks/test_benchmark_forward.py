"""`benchmark forward` and `embed` run the same weights on the same sequences, and report nothing if results differ."""

from __future__ import annotations

import json

import pytest
import torch
from support.benchmarks import BENCHMARKS, run_script
from support.models import small_model

import hf_perturb
from hf_perturb.checkpoints.network import alphabet_of
from hf_perturb.checkpoints.tokenizers import save_tokenizer

SEQUENCES = ["MKTAYIAKQR", "GLSDGEWQLVLNVWGKVEADIPGHGQEVLIRLFKGHPETLEKFDKFKHLKS", "M"]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def write_base(folder, network, seed=0):
    # fair-esm's ESM-2 has no other width
    model = small_model(network, seed=seed, **({} if network == "carp" else {"intermediate_size": 128}))
    model.save_pretrained(folder)
    save_tokenizer(alphabet_of(model.config), folder)
    return folder


def outputs_of(who, folder):
    from forward_once import load_original_side, load_transformers_side, on_residues

    packaged = who in ("ours", "transformers")
    side = load_transformers_side(who, folder, torch.float32) if packaged else load_original_side(folder, torch.float32)
    with torch.inference_mode():
        return on_residues(side, SEQUENCES, "cpu")


def differences_of(ours, theirs):
    from agreement import differences

    return {what: differences(ours[what], theirs[what]) for what in theirs}


@pytest.mark.parametrize(
    ("network", "peer"),
    [("esm1", "fair-esm"), ("esm1b", "fair-esm"), ("esm2", "fair-esm"), ("carp", "sequence-models")],
)
def test_sides_with_the_same_weights_agree_and_others_are_refused(tmp_path, network, peer):
    from network_runs import demand_agreement

    base, other = write_base(tmp_path / "base", network), write_base(tmp_path / "other", network, seed=1)
    theirs = outputs_of(peer, base)
    assert {len(values) for values in theirs.values()} == {sum(map(len, SEQUENCES))}, "residues alone"
    same, different = (differences_of(outputs_of("ours", folder), theirs) for folder in (base, other))
    demand_agreement("ours", peer, same, exact=True)
    for exact in (True, False):
        with pytest.raises(SystemExit, match="differ, so nothing is reported"):
            demand_agreement("ours", peer, different, exact)
    broken = {"logits": {"scale": 1.0, "difference": float("nan"), "cosine": float("nan")}}
    with pytest.raises(SystemExit, match="differ"):
        demand_agreement("ours", peer, broken, exact=True)


@pytest.mark.parametrize("network", ["esm1b", "esm2"])
def test_stock_esm_is_the_same_network_too(tmp_path, network):
    base = write_base(tmp_path / "base", network)
    hf_perturb.export_checkpoint(base, tmp_path / "stock", "transformers")
    stock, original = outputs_of("transformers", tmp_path / "stock"), outputs_of("fair-esm", base)
    assert all(found["difference"] < 1e-5 for found in differences_of(stock, original).values())


def test_forward_is_timed_beside_the_peer(tmp_path):
    data = tmp_path / "forward.json"
    options = ["--size", "tiny-carp", "--sequences", 3, "--dtype", "float32", "--repeat", 1]
    done = run_script("benchmark.py", "forward", *options, "--work", tmp_path / "work", "--json", data)
    assert done.returncode == 0, done.stderr
    report = json.loads(data.read_text())
    assert (report["sequences"], report["residues"]) == (3, 222 + 346 + 505)
    [network] = report["networks"]
    assert (network["network"], network["layers"], network["width"]) == ("carp", 8, 32)
    assert network["agreement"]["ours float32"]["representation"]["difference"] < 1e-5
    rows = network["rows"]
    orders = {"sequence-models": ("file", "sorted"), "ours": ("file", "sorted", "alone")}
    pairs = [(side, order) for side in orders for order in orders[side]]
    assert [(row["side"], row["order"]) for row in rows] == pairs
    for row in rows:
        best = report["residues"] / min(row["seconds"])
        assert row["best_residues_per_second"] == best >= row["median_residues_per_second"]
        assert row["ratios"] == {
            f"sequence-models {other['order']}": best / other["best_residues_per_second"] for other in rows[:2]
        }
        assert row["threads"] == rows[0]["threads"]
        assert row["peak_share"] > 0
        assert 50e6 < row["peak_bytes"] < 2e9
    lines = done.stdout.splitlines()
    assert lines[1].startswith(
        "carp tiny-carp, 8 layers of 32; 3 sequences of 222 to 505 residues in batches of 8; cpu"
    )
    assert lines[2].startswith("ours float32 beside sequence-models float32, logits: largest difference")
    assert [tuple(line.split()[::2][:2]) for line in lines if " float32 " in line and "x" in line.split()[-3]] == pairs
    assert any(line.startswith("ours float32, of the rate of each sequence by itself") for line in lines)
    assert not any((tmp_path / "work").iterdir()), "bases are removed"


def test_forward_writes_the_table_of_the_documentation(tmp_path):
    data, table = tmp_path / "forward.json", tmp_path / "forward.md"
    options = ["--size", "tiny-esm", "--sequences", 5, "--batch", 2, 4, "--repeat", 1, "--profile"]
    done = run_script("benchmark.py", "forward", *options, "--json", data, "--markdown", table)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("in batches")] == [
        "in batches of 2:",
        "in batches of 4:",
    ]
    [network] = json.loads(data.read_text())["networks"]
    rates = {
        (row["batch"], row["side"], row["dtype"], row["order"]): row["best_residues_per_second"]
        for row in network["rows"]
    }
    title, _, *rows, _, note = table.read_text().splitlines()
    assert title == (
        "|  | original | original, sorted | ours, float32 | times the sorted | ours, bfloat16 | times the sorted |"
    )
    assert "Residues a second on" in note
    for batch, row in zip((2, 4), rows, strict=True):
        _, name, *cells, _ = (cell.strip() for cell in row.split("|"))
        assert name == f"ESM tiny-esm, fair-esm, {batch}"
        theirs = [rates[batch, "fair-esm", "float32", order] for order in ("file", "sorted")]
        ours = [rates[batch, "ours", dtype, "file"] for dtype in ("float32", "bfloat16")]
        expected = [*theirs, ours[0], ours[0] / theirs[1], ours[1], ours[1] / theirs[1]]
        assert [float(cell.replace(",", "")) for cell in cells] == pytest.approx(expected, rel=0.05, abs=0.5)


def test_embed_is_timed_beside_the_extraction_of_the_original(tmp_path):
    data = tmp_path / "embed.json"
    options = ["--size", "tiny-esm", "--sequences", 3, "--dtype", "float32", "--repeat", 1]
    done = run_script("benchmark.py", "embed", *options, "--work", tmp_path / "work", "--json", data)
    assert done.returncode == 0, done.stderr
    report = json.loads(data.read_text())
    [network] = report["networks"]
    assert network["agreement"]["ours float32"]["mean vector"]["difference"] < 1e-5
    theirs, ours = network["rows"]
    assert (theirs["side"], ours["side"]) == ("fair-esm", "ours float32")
    assert ours["speedup"] == theirs["best_seconds"] / ours["best_seconds"]
    assert ours["memory_share"] == ours["peak_bytes"] / theirs["peak_bytes"]
    assert ours["residues_per_second"] == report["residues"] / ours["best_seconds"]
    assert 0 < theirs["peak_share"] < ours["peak_share"] * 100
    assert [line.split("  ")[0] for line in done.stdout.splitlines()[4:]] == ["fair-esm", "ours float32"]


@pytest.mark.parametrize(("package", "network"), [("fair-esm", "esm2"), ("sequence-models", "carp")])
def test_the_extraction_procedures_average_residues(monkeypatch, tmp_path, package, network):
    import extract_procedure
    from networks import write_fasta

    fasta = write_fasta([(f"s{i}|x", sequence) for i, sequence in enumerate(SEQUENCES)], tmp_path / "some.fasta")
    base, out = write_base(tmp_path / "base", network), tmp_path / "out"
    hf_perturb.export_checkpoint(base, tmp_path / f"{network}.pt", package)
    arguments = ["", package, tmp_path / f"{network}.pt", fasta, out, "--batch", 2]
    monkeypatch.setattr("sys.argv", [str(argument) for argument in arguments])
    extract_procedure.main()
    rows = outputs_of("ours", base)["representation"].split([len(sequence) for sequence in SEQUENCES])
    for i, residues in enumerate(rows):
        [mean] = torch.load(out / f"s{i}|x.pt")["mean_representations"].values()
        torch.testing.assert_close(mean, residues.mean(0), rtol=0, atol=1e-5)


def test_a_profile_names_the_operators_that_take_the_time(tmp_path):
    from forward_once import load_transformers_side, shares_of_time

    side = load_transformers_side("ours", write_base(tmp_path / "base", "esm1b"), torch.float32)
    with torch.inference_mode():
        profile = shares_of_time(side, SEQUENCES, 2, "cpu")["profile"]
    shares = [it["share"] for it in profile]
    assert shares == sorted(shares, reverse=True)
    assert 0.5 < sum(shares) <= 1
    assert "aten::addmm" in {it["operator"] for it in profile}


def test_operations_are_those_of_matrices_and_attention():
    from forward_comparison import operations

    facts = {"matrices": 10, "layers": 2, "width": 3}
    assert operations({**facts, "attention": False}, [1, 2]) == 2 * 10 * 3
    assert operations({**facts, "attention": True}, [1, 2]) == 2 * 10 * 3 + 2 * 4 * 3 * (1 + 4)


def test_sequences_are_the_first_that_fit(tmp_path):
    from networks import choose, with_padding, write_fasta

    fasta = write_fasta([("a first", "MK"), ("long", "A" * 1023), ("empty", ""), ("b", "MKl")], tmp_path / "some.fasta")
    assert choose(fasta, 2) == [("a", "MK"), ("b", "MKL")]
    with pytest.raises(SystemExit, match="has 2 sequences of at most 1022 residues, fewer than --sequences"):
        choose(fasta, 3)
    assert len({len(sequence) for _, sequence in with_padding([("a", "MK")])}) == 2
