"""`benchmark embed`: `hf-perturb embed` beside the extraction scripts of the originals, whole processes."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from benchmarking import MB, Run, alternate, figures, measure, remove, say, write_json
from forward_comparison import operations
from network_runs import add_network_options, demand_agreement, export, header, print_title, random_base, script
from networks import NETWORKS, choose, write_fasta
from option_types import positive

PEERS = {"esm": "fair-esm", "carp": "sequence-models"}


def add_embed_options(command: ArgumentParser) -> None:
    """Add the options of `embed`."""
    add_network_options(command, ["85M", "38M"], sequences=200)
    tokens = "of a batch, on our side and fair-esm's; default: what each has"
    command.add_argument("--tokens", type=positive, metavar="N", help=tokens)
    batch = "sequences of a batch of sequence-models; default: %(default)s, as its script has it"
    command.add_argument("--peer-batch", type=positive, default=1, metavar="N", help=batch)


def run_embed(options: Namespace) -> None:
    """Compare `hf-perturb embed` with the extraction scripts of fair-esm and sequence-models."""
    records = choose(options.fasta, options.sequences)
    data = {**header(options, records), "tokens": options.tokens, "peer_batch": options.peer_batch}
    for size in options.size:
        with random_base(size, options, copies=1) as (base, folder, facts):
            facts = {"network": NETWORKS[size].family, "size": size, **facts}
            print_title(facts, data, ", whole processes")
            fasta = write_fasta(records, folder / "sequences.fasta")
            facts.update(compare(base, fasta, folder, facts, options))
        done = operations(facts, [len(sequence) for _, sequence in records])
        for row in facts["rows"]:
            row["residues_per_second"] = data["residues"] / row["best_seconds"]
            row["peak_share"] = done / row["best_seconds"] / facts["peaks"][dtype_of(row)]
        print_rows(facts["rows"])
        data["networks"].append(facts)
        write_json(data, options.json)  # after each: the last may take an hour


def commands_of(base: Path, fasta: Path, folder: Path, peer: str, options: Namespace) -> dict[str, list[str]]:
    """Return the command of each side, which writes to a folder of the side's name."""
    # fair-esm tells networks by the names of their files
    version = json.loads((base / "config.json").read_text(encoding="utf-8")).get("model_version")
    model = export(base, peer, folder / ("esm2.pt" if version == "ESM-2" else "original.pt"))
    tokens = ["--tokens", str(options.tokens)] if options.tokens else []
    device = ["--device", options.device]
    theirs = [*tokens, *device, "--batch", options.peer_batch]
    commands = {peer: script("extract_procedure.py", peer, model, fasta, folder / peer, *theirs)}
    for dtype in options.dtype:
        ours = [sys.executable, "-m", "hf_perturb", "embed", str(base), str(fasta), str(folder / f"ours {dtype}")]
        commands[f"ours {dtype}"] = [*ours, "--layers", "last", "--dtype", dtype, *device, *tokens]
    return commands


def compare(base: Path, fasta: Path, folder: Path, facts: dict[str, Any], options: Namespace) -> dict[str, Any]:
    """Run the sides in turn; the results of the first round are compared before there is a second.

    Returns:
        The `agreement`, the `peaks` of this machine in operations a second by type, and the `rows`.

    Raises:
        SystemExit: if the results are not the same.
    """
    peer = PEERS[facts["network"]]
    commands = commands_of(base, fasta, folder, peer, options)

    def clear(name: str) -> None:
        remove(folder / name)

    say(f"embeddings by {facts['size']}, {options.repeat} of each")
    runs = alternate(commands, 1, clear)
    agreement = {name: agreement_of(folder / name, folder / peer) for name in commands if name != peer}
    for name, found in agreement.items():
        demand_agreement(name, peer, found, exact=name == "ours float32", device=options.device)
    more = alternate(commands, options.repeat - 1, clear)
    peaks = {
        dtype: json.loads(measure(script("matmul_peak.py", dtype, "--device", options.device)).printed)["flops"]
        for dtype in {"float32", *options.dtype}
    }
    return {
        "agreement": agreement,
        "peaks": peaks,
        "rows": rows_of({name: runs[name] + more[name] for name in commands}, peer),
    }


def agreement_of(ours: Path, theirs: Path) -> dict[str, dict[str, float]]:
    """Compare two folders of embeddings."""
    return json.loads(measure(script("agreement.py", ours, theirs)).printed)


def rows_of(runs: dict[str, list[Run]], peer: str) -> list[dict[str, Any]]:
    """Return a row for each side: its figures, and how many times as fast and as large as the peer it is."""
    rows = [{"side": name, **figures(taken)} for name, taken in runs.items()]
    [theirs] = [row for row in rows if row["side"] == peer]
    for row in rows:
        row["speedup"] = theirs["best_seconds"] / row["best_seconds"]
        row["memory_share"] = row["peak_bytes"] / theirs["peak_bytes"]
    return rows


def dtype_of(row: dict[str, Any]) -> str:
    """Return the type that a side computes in; the peers have one."""
    return row["side"].partition(" ")[2] or "float32"


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print the table of a network, a row a side."""
    print(f"{'':<18}{'seconds':>18}{'residues/s':>12}{'times as fast':>15}{'of peak':>9}{'MB':>8}{'share':>8}")
    for row in rows:
        seconds = f"{row['best_seconds']:.2f} ({row['median_seconds']:.2f})"
        rates = f"{row['residues_per_second']:>12.0f}{row['speedup']:>15.2f}{row['peak_share']:>9.1%}"
        memory = f"{row['peak_bytes'] / MB:>8.0f}{row['memory_share']:>8.2f}"
        print(f"{row['side']:<18}{seconds:>18}{rates}{memory}", flush=True)
