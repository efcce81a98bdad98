"""`benchmark forward`: forward passes of ours and of the peers, with the same weights on the same sequences."""

from __future__ import annotations

import json
import statistics
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarking import MB, Run, alternate, measure, say, warm, weights_of, write_json
from network_runs import DTYPES, add_network_options, demand_agreement, export, header, print_title, random_base, script
from networks import NETWORKS, SHOWN, choose, with_padding, write_fasta
from option_types import positive, to_write

# the first of each is what the others are compared with
PEERS = {"esm": ("fair-esm", "transformers"), "carp": ("sequence-models",)}


class Side(NamedTuple):
    """A network in one package and one type of numbers; `folder` has its weights."""

    who: str
    dtype: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.who} {self.dtype}"

    def command(self, fasta: Path, device: str, *more: object) -> list[str]:
        """Return the command that runs it."""
        fixed = ("--dtype", self.dtype, "--device", device)
        return script("forward_once.py", self.who, self.folder, fasta, *fixed, *more)


def add_forward_options(command: ArgumentParser) -> None:
    """Add the options of `forward`."""
    add_network_options(command, SHOWN, sequences=32)
    command.add_argument("--network", nargs="+", choices=PEERS, default=list(PEERS), help="default: both")
    batch = "sequences; several sizes have a table each; default: 8"
    command.add_argument("--batch", nargs="+", type=positive, default=[8], metavar="N", help=batch)
    kinds = "of the peers; default: float32"
    command.add_argument("--peer-dtype", nargs="+", choices=DTYPES, default=["float32"], help=kinds)
    markdown = "write a row for each network and batch, as docs/performance.md has them"
    command.add_argument("--markdown", type=to_write, metavar="FILE", help=markdown)
    command.add_argument("--profile", action="store_true", help="which operators take our side's time")


def run_forward(options: Namespace) -> None:
    """Compare forward passes with fair-esm, Transformers' own ESM and sequence-models."""
    records = choose(options.fasta, options.sequences)
    data = {**header(options, records), "batch": options.batch}
    for size in (size for size in options.size if NETWORKS[size].family in options.network):
        family = NETWORKS[size].family
        with random_base(size, options, copies=family == "esm") as (base, folder, facts):
            sides = sides_of(family, base, folder, options)
            facts = {"network": family, "size": size, **facts}
            print_title(facts, data, f" in batches of {', '.join(map(str, options.batch))}")
            reference = Side(PEERS[family][0], "float32", base)
            facts["agreement"] = check(reference, sides, records, folder, options.device)
            facts.update(compare(sides, facts, records, folder, options))
        print_rows(facts)
        data["networks"].append(facts)
        write_json(data, options.json)  # after each: the last may take an hour
        if options.markdown is not None:
            options.markdown.write_text(markdown(data), encoding="utf-8")


def sides_of(family: str, base: Path, folder: Path, options: Namespace) -> list[Side]:
    """Return the peers and then ours, each in the types asked for."""
    folders = dict.fromkeys((*PEERS[family], "ours"), base)
    if "transformers" in folders:
        folders["transformers"] = export(base, "transformers", folder / "transformers")
    return [
        Side(who, dtype, weights)
        for who, weights in folders.items()
        for dtype in (options.dtype if who == "ours" else options.peer_dtype)
    ]


def check(
    reference: Side, sides: list[Side], records: list[tuple[str, str]], folder: Path, device: str
) -> dict[str, Any]:
    """Compare every side with a reference on a padded batch.

    Raises:
        SystemExit: if one is too far from it.
    """
    fasta = write_fasta(with_padding(records), folder / "padded.fasta")
    outputs = folder / "outputs.safetensors"
    measure(reference.command(fasta, device, "--save", outputs))
    found = {}
    for side in (side for side in sides if side != reference):
        printed = measure(side.command(fasta, device, "--reference", outputs)).printed
        found[str(side)] = json.loads(printed)
        demand_agreement(str(side), str(reference), found[str(side)], side.dtype == "float32", device)
    return found


def compare(
    sides: list[Side], facts: dict[str, Any], records: list[tuple[str, str]], folder: Path, options: Namespace
) -> dict[str, Any]:
    """Time all sides in turn, and multiplications of large matrices with them.

    Returns:
        The `rows`, the `peaks` of this machine in operations a second by type, and on request the `profile`.
    """
    fasta = write_fasta(records, folder / "sequences.fasta")
    commands = {
        str(side): side.command(fasta, options.device, "--batch", *options.batch, *["--alone"][: side.who == "ours"])
        for side in sides
    }
    peaks = {dtype: f"matrices {dtype}" for dtype in dict.fromkeys(side.dtype for side in sides)}
    commands |= {name: script("matmul_peak.py", dtype, "--device", options.device) for dtype, name in peaks.items()}

    def before(_: str) -> None:
        for path in {weights_of(side.folder) for side in sides}:
            warm(path)

    say(f"forward passes of {facts['size']}, {options.repeat} of each")
    runs = {
        name: [(run, json.loads(run.printed)) for run in taken]
        for name, taken in alternate(commands, options.repeat, before).items()
    }
    flops = {dtype: max(printed["flops"] for _, printed in runs[name]) for dtype, name in peaks.items()}
    lengths, rows = [len(sequence) for _, sequence in records], []
    for batch in options.batch:
        of_batch = {str(side): [(run, printed[str(batch)]) for run, printed in runs[str(side)]] for side in sides}
        orders = {side: of_batch[str(side)][0][1]["seconds"] for side in sides}
        some = [
            {"batch": batch, **row(side, order, of_batch[str(side)], sum(lengths))}
            for side in sides
            for order in orders[side]
        ]
        add_ratios(some, operations(facts, lengths) / sum(lengths), flops)
        rows += some
    profiles = {side.dtype: commands[str(side)] for side in sides if side.who == "ours" and options.profile}
    profile = {dtype: profile_of(command, options.batch[0]) for dtype, command in profiles.items()}
    return {"rows": rows, "peaks": flops, "profile": profile}


def profile_of(command: list[str], batch: int) -> list[dict[str, Any]]:
    """Return which operators take the time of a side, in batches of one size."""
    return json.loads(measure([*command, "--batch", str(batch), "--profile"]).printed)[str(batch)]["profile"]


def row(side: Side, order: str, runs: list[tuple[Run, dict[str, Any]]], residues: int) -> dict[str, Any]:
    """Return the figures of one side in one order; the peaks of memory are those of both."""
    seconds = [taken for _, printed in runs for taken in printed["seconds"][order]]
    on_device = [printed["device_peak_bytes"] for _, printed in runs]
    return {
        "side": side.who,
        "dtype": side.dtype,
        "order": order,
        "seconds": seconds,
        "best_residues_per_second": residues / min(seconds),
        "median_residues_per_second": residues / statistics.median(seconds),
        "peak_bytes": max(run.peak for run, _ in runs),
        "device_peak_bytes": None if None in on_device else max(on_device),
        "threads": runs[0][1]["threads"],
        "device_name": runs[0][1]["device_name"],
    }


def side_of(r: dict[str, Any]) -> tuple[str, str]:
    """Return whose row it is, in which type."""
    return r["side"], r["dtype"]


def operations(facts: dict[str, Any], lengths: list[int]) -> float:
    """Return the floating-point operations that the residues of these sequences need, and nothing of padding."""
    attention = 4 * facts["layers"] * facts["width"] * facts["attention"]
    return 2 * facts["matrices"] * sum(lengths) + attention * sum(length**2 for length in lengths)


def add_ratios(rows: list[dict[str, Any]], operations_per_residue: float, flops: dict[str, float]) -> None:
    """Add to each row how many times as fast as the peers it is, and which share of the machine's peak it reaches."""
    # the first type of a peer, which is float32 if nobody asked for another
    peers = {f"{r['side']} {r['order']}": r for r in reversed(rows) if r["side"] != "ours"}
    for r in rows:
        rate = r["best_residues_per_second"]
        r["ratios"] = {name: rate / peers[name]["best_residues_per_second"] for name in reversed(peers)}
        r["peak_share"] = rate * operations_per_residue / flops[r["dtype"]]


def print_rows(facts: dict[str, Any]) -> None:
    """Print the table of a network, a row for each side, type and order; then what takes the time."""
    batches = dict.fromkeys(r["batch"] for r in facts["rows"])
    for batch in batches:
        if len(batches) > 1:
            print(f"in batches of {batch}:")
        print_batch([r for r in facts["rows"] if r["batch"] == batch])
    reached = ", ".join(f"{dtype} {rate / 1e9:.0f}" for dtype, rate in facts["peaks"].items())
    print(f"the peak is that of multiplying large matrices here, in 10^9 operations a second: {reached}")
    for dtype, profile in facts["profile"].items():
        shares = ", ".join(f"{it['operator'].removeprefix('aten::')} {it['share']:.1%}" for it in profile)
        print(f"time of ours {dtype}, sorted: {shares}", flush=True)


def print_batch(rows: list[dict[str, Any]]) -> None:
    """Print the rows of batches of one size."""
    peers = [name.split() for name in rows[0]["ratios"]]
    above, below = ("".join(f"{part[place]:>17}" for part in peers) for place in (0, 1))
    on_device = rows[0]["device_peak_bytes"] is not None
    print(f"{'':<33}{'':>18}{above if peers else ''}")
    print(
        f"{'':<33}{'residues/s':>18}{below}{'of peak':>9}{'MB':>8}{'on device, MB' if on_device else '':>15}".rstrip()
    )
    for r in rows:
        rate = f"{r['best_residues_per_second']:.0f} ({r['median_residues_per_second']:.0f})"
        ratios = "".join(f"{ratio:>16.2f}x" for ratio in r["ratios"].values())
        device = f"{r['device_peak_bytes'] / MB:>15.0f}" if on_device else ""
        cells = f"{rate:>18}{ratios}{r['peak_share']:>9.1%}{r['peak_bytes'] / MB:>8.0f}{device}"
        print(f"{r['side']:<16}{r['dtype']:<10}{r['order']:<7}{cells}", flush=True)
    for alone in (r for r in rows if r["order"] == "alone"):
        rates = {r["order"]: r["best_residues_per_second"] for r in rows if side_of(r) == side_of(alone)}
        said = ", ".join(f"{order} {rates[order] / rates['alone']:.0%}" for order in ("file", "sorted"))
        print(f"{' '.join(side_of(alone))}, of the rate of each sequence by itself, without padding: {said}")


def markdown(data: dict[str, Any]) -> str:
    """Return the table of docs/performance.md: the first peer in both orders, then ours in each type, in both mixed."""
    ours = list(dict.fromkeys(r["dtype"] for it in data["networks"] for r in it["rows"] if r["side"] == "ours"))
    titles = ["", "original", "original, sorted"]
    titles += [title for dtype in ours for title in (f"ours, {dtype}", "times the sorted")]
    lines = [titles, ["---"] * len(titles)]
    for facts in data["networks"]:
        peer = PEERS[facts["network"]][0]
        for batch in dict.fromkeys(r["batch"] for r in facts["rows"]):
            rates = {
                (*side_of(r), r["order"]): r["best_residues_per_second"] for r in facts["rows"] if r["batch"] == batch
            }
            [dtype, *_] = [dtype for side, dtype, _ in rates if side == peer]
            theirs = [rates[peer, dtype, order] for order in ("file", "sorted")]
            cells = [f"{facts['network'].upper()} {facts['size']}, {peer}, {batch}", *(f"{x:,.0f}" for x in theirs)]
            for dtype in ours:
                rate = rates["ours", dtype, "file"]
                cells += [f"{rate:,.0f}", f"{rate / theirs[1]:.1f}"]
            lines.append(cells)
    where = data["networks"][0]["rows"][0]["device_name"] or f"{data['machine']['cores']} cores"
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{table}\n\nResidues a second on {where}, the best of {data['repeat']}; the last number is the batch.\n"
