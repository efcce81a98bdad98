"""`benchmark create` and `scale`: hf-perturb beside `cp` and `sync` of the same file, and beside the study's procedure.

Every round runs all of them once, as whole processes that end when what they wrote is on the disk.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarking import (
    GB,
    HERE,
    SIZES,
    VARIANTS,
    alternate,
    cold,
    figures,
    machine,
    measure,
    peer_fits,
    remove,
    say,
    warm,
    weights_of,
    write_json,
)
from comparisons import base_folder, create_command, title

COPY, CAT = "cp + sync", "cat, not in the page cache"
# the study's procedure shuffles all entries of a tensor, whatever ours does
STUDY = {"reinit": "study reinit", "resample": "study resample"}
# how many times `COPY` each may take, and how many times as fast as the study's procedure it is to be
AIMS = {
    "reinit": (1.3, 3.0),
    "resample --axis embedding": (1.0, 8.0),
    "resample --axis all": (4.0, 2.5),
    "gaussian": (4.0, None),
}
# how many times `CAT` each may take, beside a second
READERS = {"verify": 1.0, "compare": 3.0}
MEMORY = 0.5  # GB of anonymous memory that each may take, up to 650M parameters
# bytes of a base where starting up weighs little; on smaller ones we are to be faster than the study's, no more, and on
# the smallest to take less than a second
_SMALL, _LARGE, _LARGEST = 5e7, 1e9, 3e9


def run_create(options: Namespace) -> None:
    """Compare create, verify and compare with cp and sync, and with the study's procedure, on one base."""
    compare_sizes(options, [options.size], options.base)


def run_scale(options: Namespace) -> None:
    """Compare them on synthetic bases of several sizes, one after another, and draw the figure."""
    compare_sizes(options, sorted(options.sizes, key=SIZES.__getitem__), None)


def run_plot(options: Namespace) -> None:
    """Print the tables of earlier measurements and draw the figure."""
    data = json.loads(options.data.read_text(encoding="utf-8"))
    print_tables(data)
    draw_file(data, options.out)


def compare_sizes(options: Namespace, sizes: Sequence[str], given: Path | None) -> None:
    """Measure each size, and print the tables as Markdown.

    Args:
        options: of the command.
        sizes: of synthetic bases.
        given: a base of the user's, in place of a synthetic one.
    """
    variants = [name for name in VARIANTS if name in options.only]
    data: dict[str, Any] = {"machine": machine(), "repeat": options.repeat, "sizes": []}
    for size in sizes:
        with base_folder(given, size, options.work, outputs=2) as (base, folder):
            runs = compare_create(base, folder, options.repeat, variants)
            facts = {"size": given.resolve().name if given else size, **facts_of(weights_of(base))}
        data["sizes"].append({**facts, "runs": runs})
        write_json(data, options.json)  # after each: the last may take an hour
    print_tables(data)
    if options.plot:
        draw_file(data, options.plot)


def facts_of(weights: Path) -> dict[str, int]:
    """Return the size of a file of weights, and how many tensors are in it."""
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {"bytes": weights.stat().st_size, "tensors": len(header.keys() - {"__metadata__"})}


def compare_create(base: Path, folder: Path, repeat: int, variants: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Run everything in turn on the same base.

    Returns:
        Figures by name; the study's procedure is missing where it does not fit the memory.
    """
    weights, kept, out = weights_of(base), folder / "variant", folder / "out"
    sides = {COPY: ["cp", str(weights), str(out)]}
    methods = [VARIANTS[name] for name in variants]
    sides |= {title(*variant): create_command(base, out, *variant) for variant in methods}
    if peer_fits(weights.stat().st_size):
        study = [sys.executable, str(HERE / "study_procedure.py")]
        used = dict.fromkeys(method for method, _ in methods if method in STUDY)
        sides |= {STUDY[method]: [*study, method, str(weights), str(out)] for method in used}
    else:
        say("the study's procedure is left out: three times the file is more than this machine's memory")
    measure(create_command(base, kept, "reinit", None))
    # blocks of a virtual disk that nobody has written to yet are slow, and the first one to run would pay for them
    measure(sides[COPY], out)
    remove(out)
    sides[CAT] = ["sh", "-c", 'exec cat "$0" > /dev/null', str(weights)]
    hf_perturb = [sys.executable, "-m", "hf_perturb"]
    sides["verify"] = [*hf_perturb, "verify", str(kept)]
    sides["compare"] = [*hf_perturb, "compare", str(base), str(kept)]
    readers = {CAT, *READERS}

    def before(name: str) -> None:
        for path in (weights, weights_of(kept)) if name in readers else (weights,):
            (cold if name in readers else warm)(path)

    return {name: figures(runs) for name, runs in alternate(sides, repeat, before, out).items()}


def print_tables(data: dict[str, Any]) -> None:
    """Print all tables as Markdown, to be pasted into docs/performance.md."""
    how = f"best of {data['repeat']} (memory: the most); in brackets what is aimed at, **bold** where missed"
    print(f"{said_of(data['machine'])}; {how}\n")
    for size in data["sizes"]:
        print_table(table_of(size))
        print_table(table_of_readers(size))
    if len(data["sizes"]) > 1:
        print_table(table_of_sizes(data["sizes"]))


def said_of(machine: dict[str, Any]) -> str:
    """Name the processor, with the instruction sets that matter, and numpy."""
    sets = ", ".join(machine["instructions"])
    return f"{machine['processor']}, {machine['cores']} cores ({sets}), numpy {machine['versions']['numpy']}"


def table_of(size: dict[str, Any]) -> list[list[str]]:
    """Return the rows of a base: what was created, beside the copy and the study."""
    runs, large = size["runs"], size["bytes"] >= _LARGE
    copy = runs[COPY]["best_seconds"]
    head = ["seconds", f"times {COPY}", "study, s", "times as fast", "anonymous, GB", "study, GB"]
    rows = [[_name(size), *head], [COPY, f"{copy:.2f}", "1", "", "", "", ""]]
    for name, run in _created(runs).items():
        seconds, study = run["best_seconds"], runs.get(STUDY.get(name.split()[0], ""))
        slowest, fastest = AIMS.get(name, (None, None)) if large else (None, 1.0)
        cells = [
            _beside(seconds, 1.0 if size["bytes"] < _SMALL else None),
            _beside(seconds / copy, slowest),
            f"{study['best_seconds']:.2f}" if study else "",
            _beside(study["best_seconds"] / seconds, fastest, at_least=True) if study else "",
            _beside(run["anonymous_bytes"] / GB, MEMORY if size["bytes"] < _LARGEST else None),
            f"{study['anonymous_bytes'] / GB:.2f}" if study else "",
        ]
        rows.append([name, *cells])
    return rows


def table_of_readers(size: dict[str, Any]) -> list[list[str]]:
    """Return the rows of what reads a base from the disk, each with the seconds that it may take."""
    cat = size["runs"][CAT]["best_seconds"]
    rows = [[_name(size), "seconds"], [CAT, f"{cat:.2f}"]]
    for name, times in READERS.items():
        rows.append([f"{name} ({times:g} cat + 1 s)", _beside(size["runs"][name]["best_seconds"], times * cat + 1)])
    return rows


def table_of_sizes(sizes: list[dict[str, Any]]) -> list[list[str]]:
    """Return a row for each base: the seconds of everything, and the most memory that any of ours takes."""
    names = list(dict.fromkeys(name for size in sizes for name in size["runs"]))
    rows = [["seconds", *names, "anonymous, GB"]]
    for size in sizes:
        runs = size["runs"]
        seconds = [f"{runs[name]['best_seconds']:.2f}" if name in runs else "" for name in names]
        memory = max(run["anonymous_bytes"] for run in _created(runs).values())
        rows.append([_name(size), *seconds, f"{memory / GB:.2f}"])
    return rows


def print_table(rows: list[list[str]]) -> None:
    """Print rows as Markdown, the first one as head."""
    head, *rest = [f"| {' | '.join(row)} |" for row in rows]
    print("\n".join([head, f"|{' --- |' * len(rows[0])}", *rest]), end="\n\n", flush=True)


def draw_file(data: dict[str, Any], path: Path) -> None:
    """Draw the figure; imported late, because what measures must be small."""
    from plotting import draw

    draw(data, path, said_of(data["machine"]))


def _created(runs: dict[str, Any]) -> dict[str, Any]:
    """Return the runs of `hf-perturb create`."""
    return {name: run for name, run in runs.items() if name not in {COPY, CAT, *STUDY.values(), *READERS}}


def _name(size: dict[str, Any]) -> str:
    return f"{size['size']}: {size['bytes'] / GB:.3g} GB, {size['tensors']:,} tensors"


def _beside(value: float, aim: float | None, at_least: bool = False) -> str:
    """Return a figure with the most that is allowed beside it, or the least; bold where it is not met."""
    if aim is None:
        return f"{value:.2f}"
    text = f"{value:.2f} ({aim:.3g})"
    return text if (value >= aim if at_least else value <= aim) else f"**{text}**"
