"""Time and memory of hf-perturb, each figure beside its peer's from the same run; tables on stdout, progress on stderr.

scripts/benchmark create                 create, verify and compare on a 650M, beside cp and the study's procedure
scripts/benchmark scale --plot scale.svg the same from 8M to 650M, with a figure; --sizes 3B for more
scripts/benchmark load                   stored variants and recipes, beside Transformers' own ESM and create
scripts/benchmark forward                forward passes, beside fair-esm, Transformers' own ESM and sequence-models
scripts/benchmark embed                  embeddings of a FASTA, beside the extraction scripts of the originals
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from benchmarking import GB, SIZES, VARIANTS, machine, write_json
from comparisons import base_folder, compare_load, compare_recipe, title
from create_comparison import run_create, run_plot, run_scale
from embed_comparison import add_embed_options, run_embed
from forward_comparison import add_forward_options, run_forward
from option_types import figure, positive, to_write


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
    common.add_argument("--only", nargs="+", choices=VARIANTS, default=VARIANTS, help="default: all of them")
    base = argparse.ArgumentParser(add_help=False, parents=[common])
    base.add_argument("--base", type=Path, metavar="FOLDER", help="a base of your own; default: a synthetic one")
    base.add_argument("--size", choices=SIZES, default="650M", help="of the synthetic one; default: %(default)s")

    _add(commands, "create", run_create, "--repeat 5 --json create.json", base).set_defaults(plot=None)
    scale = _add(commands, "scale", run_scale, "--sizes 8M 650M --plot scale.svg --json scale.json", common)
    sizes = [size for size in SIZES if size != "3B"]  # which takes 40 GB of disk
    scale.add_argument("--sizes", nargs="+", choices=SIZES, default=sizes, help="default: all but 3B")
    scale.add_argument("--plot", type=figure, metavar="FILE", help="draw time and memory; .svg, .pdf or .png")
    _add(commands, "load", run_load, "--base my-base", base)
    add_forward_options(_add(commands, "forward", run_forward, "--size 8M 600k --sequences 8 --profile", every))
    add_embed_options(_add(commands, "embed", run_embed, "--size 8M --sequences 50 --json embed.json", every))
    plot = _add(commands, "plot", run_plot, "scale.json scale.svg")
    plot.add_argument("data", type=Path, metavar="JSON", help="what create or scale wrote")
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
