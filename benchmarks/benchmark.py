"""Time and memory of hf-perturb, each figure beside its peer's from the same run; tables on stdout, progress on stderr.

scripts/benchmark create                 reinit and resample of a 650M, beside the study's procedure
scripts/benchmark scale --plot scale.svg the same from 8M to 3B, with a figure
scripts/benchmark load                   stored variants and recipes, beside Transformers' own ESM and create
scripts/benchmark forward                forward passes, beside fair-esm, Transformers' own ESM and sequence-models
scripts/benchmark embed                  embeddings of a FASTA, beside the extraction scripts of the originals
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any

from benchmarking import GB, MB, SIZES, VARIANTS, machine, weights_of, write_json
from comparisons import base_folder, compare_create, compare_load, compare_recipe, title
from embed_comparison import add_embed_options, run_embed
from forward_comparison import add_forward_options, run_forward
from option_types import figure, positive, to_write


def run_create(options: argparse.Namespace) -> None:
    """Compare `create` with the study's procedure on one base."""
    with base_folder(options.base, options.size, options.work, outputs=1) as (base, folder):
        size = weights_of(base).stat().st_size
        rows = compare_create(base, folder, options.repeat, options.only)
    name = options.base.resolve().name if options.base else options.size
    print_create(name, size, options.repeat, rows)
    write_json(
        {"machine": machine(), "base": name, "bytes": size, "repeat": options.repeat, "rows": rows}, options.json
    )


def run_scale(options: argparse.Namespace) -> None:
    """Compare them on synthetic bases of several sizes, one after another."""
    data: dict[str, Any] = {"machine": machine(), "repeat": options.repeat, "sizes": []}
    for size in sorted(options.sizes, key=SIZES.__getitem__):
        with base_folder(None, size, options.work, outputs=1) as (base, folder):
            stored = weights_of(base).stat().st_size
            rows = compare_create(base, folder, options.repeat, options.only)
        print_create(size, stored, options.repeat, rows)
        data["sizes"].append({"size": size, "bytes": stored, "rows": rows})
        write_json(data, options.json)  # after each: the last may take an hour
    print_growth(data["sizes"])
    if options.plot:
        draw_file(data, options.plot)


def run_load(options: argparse.Namespace) -> None:
    """Compare loading with Transformers' own ESM, and recipes with `create`."""
    with base_folder(options.base, options.size, options.work, outputs=2) as (base, folder):
        stored = compare_load(base, folder, options.repeat)
        recipes = compare_recipe(base, folder, options.repeat, options.only)
    print(f"\na stored variant of {stored['bytes']['ours'] / GB:.3g} GB, best of {options.repeat}")
    print(f"{'':<28}{'Transformers, s':>16}{'ours, s':>10}{'ours / theirs':>15}")
    for key, what in (("load", "from_pretrained"), ("load_and_read", "and every weight read once")):
        row = stored[key]
        print(f"{what:<28}{row['best_transformers']:>16.2f}{row['best_ours']:>10.2f}{row['ratio']:>15.2f}")
    print(f"\nloading a recipe, whole process, best of {options.repeat}")
    print(f"{'':<22}{'create, s':>10}{'recipe, s':>11}{'recipe / create':>17}")
    for row in recipes:
        create, recipe = row["create"]["best_seconds"], row["recipe"]["best_seconds"]
        print(f"{title(row['method'], row['axis']):<22}{create:>10.2f}{recipe:>11.2f}{row['ratio']:>17.2f}")
    write_json({"machine": machine(), "repeat": options.repeat, "stored": stored, "recipes": recipes}, options.json)


def run_plot(options: argparse.Namespace) -> None:
    """Draw the figure of earlier measurements."""
    draw_file(json.loads(options.data.read_text(encoding="utf-8")), options.out)


def draw_file(data: dict[str, Any], path: Path) -> None:
    """Draw the figure of `scale`; imported late, because what measures must be small."""
    from plotting import draw

    draw(data, path)


def print_create(name: str, size: int, repeat: int, rows: list[dict[str, Any]]) -> None:
    """Print the table of a base, a row a variant."""
    print(f"\n{name}, {size / GB:.3g} GB, best (median) of {repeat}, whole processes")
    print(f"{'':<22}{'study, s':>18}{'ours, s':>18}{'times as fast':>15}{'study, MB':>11}{'ours, MB':>10}{'share':>8}")
    for row in rows:
        study, ours = row["study"], row["ours"]
        seconds = [
            f"{side['best_seconds']:.2f} ({side['median_seconds']:.2f})" if side else "-" for side in (study, ours)
        ]
        peaks = [f"{side['peak_bytes'] / MB:.0f}" if side else "-" for side in (study, ours)]
        ratio, share = (f"{row[key]:.2f}" if study else "-" for key in ("speedup", "memory_share"))
        cells = f"{seconds[0]:>18}{seconds[1]:>18}{ratio:>15}{peaks[0]:>11}{peaks[1]:>10}{share:>8}"
        print(f"{title(row['method'], row['axis']):<22}{cells}", flush=True)


def print_growth(sizes: list[dict[str, Any]]) -> None:
    """Print how our time and memory grow between the two largest sizes, where starting up weighs little."""
    if len(sizes) < 2:
        return
    small, large = sizes[-2:]
    print(f"\nours from {small['size']} to {large['size']}: {large['bytes'] / small['bytes']:.2f} times the bytes")
    for before, after in zip(small["rows"], large["rows"], strict=True):
        time, peak = (after["ours"][key] / before["ours"][key] for key in ("best_seconds", "peak_bytes"))
        print(f"{title(after['method'], after['axis']):<22}{time:.2f} times the time, {peak:.2f} times the memory")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    whole = argparse.ArgumentParser(
        prog="benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    every = argparse.ArgumentParser(add_help=False)
    repeat = "runs of each side; default: %(default)s"
    every.add_argument("--repeat", type=positive, default=3, metavar="N", help=repeat)
    room = "a folder on a disk with room; default: a temporary one"
    every.add_argument("--work", type=Path, metavar="DIR", help=room)
    every.add_argument("--json", type=to_write, metavar="FILE", help="write the figures as data too")
    common = argparse.ArgumentParser(add_help=False, parents=[every])
    common.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all three")
    base = argparse.ArgumentParser(add_help=False, parents=[common])
    base.add_argument("--base", type=Path, metavar="FOLDER", help="a base of your own; default: a synthetic one")
    base.add_argument("--size", choices=SIZES, default="650M", help="of the synthetic one; default: %(default)s")

    _add(commands, "create", run_create, "--repeat 5 --json create.json", base)
    scale = _add(commands, "scale", run_scale, "--sizes 8M 650M --plot scale.svg --json scale.json", common)
    scale.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="default: all of them")
    scale.add_argument("--plot", type=figure, metavar="FILE", help="draw time and memory; .svg, .pdf or .png")
    _add(commands, "load", run_load, "--base my-base", base)
    add_forward_options(_add(commands, "forward", run_forward, "--size 8M 600k --sequences 8 --profile", every))
    add_embed_options(_add(commands, "embed", run_embed, "--size 8M --sequences 50 --json embed.json", every))
    plot = _add(commands, "plot", run_plot, "scale.json scale.svg")
    plot.add_argument("data", type=Path, metavar="JSON", help="what scale wrote")
    plot.add_argument("out", type=figure, metavar="FILE", help="the figure to write; .svg, .pdf or .png")
    return whole


def _add(commands: Any, name: str, run: Any, example: str, *parents: argparse.ArgumentParser) -> Any:
    """Add a command, which says of itself what its function's docstring says."""
    what = run.__doc__.splitlines()[0]
    command = commands.add_parser(
        name,
        help=what,
        description=f"{what}\n\n  scripts/benchmark {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=parents,
        allow_abbrev=False,
    )
    command.set_defaults(run=run)
    return command


def main() -> None:
    """Parse the command line and run."""
    options = parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # gigabytes are to be removed then too
    try:
        options.run(options)
    except KeyboardInterrupt:
        raise SystemExit("benchmark: interrupted; what it wrote is removed") from None


if __name__ == "__main__":
    sys.exit(main())
