"""The command `hf-perturb`: parse, call, exit code.

Exit codes: 0 done, 1 the thing failed, 2 wrong usage. Results go to stdout, errors and progress to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from transformers.utils import logging

import hf_perturb
from hf_perturb.checkpoints.convert import DTYPES, convert_checkpoint
from hf_perturb.checkpoints.exports import FORMATS, export_checkpoint
from hf_perturb.checkpoints.listing import catalogue_rows, tensor_rows
from hf_perturb.checkpoints.variants import create_variant
from hf_perturb.perturbation import spec

_CREATE = """\
Build a variant of a base: the same network with its weights re-initialised or shuffled.

  hf-perturb create demo my-control --method reinit --seed 42
  hf-perturb create ./my-base my-control --method resample --axis all --exclude 'contact_head.*'
"""
_CONVERT = """\
Make a base of a checkpoint of any origin, or write a base or a variant in another package's format.

  hf-perturb convert esm1b_t33_650M_UR50S my-base            a name of the catalogue: downloaded, checked, converted
  hf-perturb convert esm1b_t33_650M_UR50S.pt my-base         an original file, its -contact-regression.pt beside it
  hf-perturb convert facebook/esm2_t6_8M_UR50D my-base       Transformers' own ESM: a Hub id, or a folder
  hf-perturb convert --to transformers my-control stock      what Transformers loads with nothing of ours installed
  hf-perturb convert --to fair-esm my-control esm1b_control.pt
"""
_BASE = "a folder, a Hub id, an original .pt, or 'demo'"
_LIST = """\
Without BASE: the published checkpoints. With BASE: its tensors, and what the rules do to each.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: words of the command line, those of the process if `None`.
    """
    options = _parser().parse_args(arguments)
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # whoever read the output has gone (`| head`); keep the interpreter from flushing to them at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError) as error:
        print(f"hf-perturb {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"hf-perturb {options.command}: interrupted; nothing was written (a download goes on from there)",
            file=sys.stderr,
        )
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-perturb", description=hf_perturb.__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {hf_perturb.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    layout = argparse.RawDescriptionHelpFormatter

    listing = commands.add_parser(
        "list", help="the published checkpoints, or the tensors of a base", description=_LIST, allow_abbrev=False
    )
    listing.add_argument("base", nargs="?", type=_name, metavar="BASE", help=_BASE)
    listing.add_argument("--json", action="store_true", help="print data in place of a table")
    listing.set_defaults(run=_list)

    convert = commands.add_parser(
        "convert",
        help="make a base of a checkpoint",
        description=_CONVERT,
        formatter_class=layout,
        allow_abbrev=False,
    )
    source = "an original .pt, a name of the catalogue (hf-perturb list), a folder or a Hub id"
    convert.add_argument("source", type=_name, metavar="SOURCE", help=source)
    convert.add_argument("out", type=_name, metavar="OUT", help="the folder to write; a .pt file for the originals")
    convert.add_argument("--to", choices=FORMATS, help="write another package's format; default: a base of ours")
    stored = "default: float32 for originals, else as stored"
    convert.add_argument("--dtype", choices=DTYPES, help=f"type of the base's weights; {stored}")
    convert.add_argument("--allow-nonfinite", action="store_true", help="convert NaN and infinite weights too")
    convert.add_argument("--force", action="store_true", help="replace OUT if it is a base and nothing else")
    convert.add_argument("--json", action="store_true", help="print what was written as JSON")
    convert.set_defaults(run=_convert, usage_error=convert.error)

    create = commands.add_parser(
        "create", help="build a variant", description=_CREATE, formatter_class=layout, allow_abbrev=False
    )
    create.add_argument("base", type=_name, metavar="BASE", help=_BASE)
    create.add_argument("out", metavar="OUT", type=_name, help="the folder to write")
    create.add_argument("--method", required=True, choices=spec.METHODS)
    create.add_argument("--seed", type=int, action="append", metavar="N", help=f"default: {spec.DEFAULT_SEED}")
    create.add_argument("--rules", default="documented", choices=spec.RULES, help="default: %(default)s")
    create.add_argument("--axis", choices=spec.AXES, help="what resample shuffles; default: the family's")
    for option, what in (("--include", "perturb only these"), ("--exclude", "leave these as they are")):
        help_text = f"glob over tensor names, repeatable: {what}"
        create.add_argument(option, action="append", default=[], metavar="GLOB", help=help_text)
    create.add_argument("--recipe", action="store_true", help="leave the weights out; loading rebuilds them")
    create.add_argument("--force", action="store_true", help="replace OUT if it is a variant and nothing else")
    create.add_argument("--json", action="store_true", help="print the record as JSON")
    create.set_defaults(run=_create, usage_error=create.error)
    return parser


def _name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it is empty; give a name (is a shell variable not set?)")
    return text


def _convert(options: argparse.Namespace) -> None:
    if options.to is not None:
        for given in ("dtype", "force"):
            if getattr(options, given):
                options.usage_error(f"argument --{given.replace('_', '-')}: not with --to")
        nonfinite = options.allow_nonfinite
        files = export_checkpoint(options.source, options.out, options.to, allow_nonfinite=nonfinite, on_note=_note)
        print(json.dumps({"files": list(map(str, files))}) if options.json else "\n".join(map(str, files)))
        return
    done = convert_checkpoint(
        options.source,
        Path(options.out),
        dtype=options.dtype,
        allow_nonfinite=options.allow_nonfinite,
        force=options.force,
    )
    for note in done.notes:
        _note(note)
    if options.json:
        print(json.dumps({"path": str(options.out), **asdict(done)}))
    else:
        print(f"{options.out}: {done.architecture} of {done.parameters:,} parameters\n{done.digest}")


def _note(note: str) -> None:
    print(f"hf-perturb convert: note: {note}", file=sys.stderr)


def _create(options: argparse.Namespace) -> None:
    keys = ("method", "rules", "axis", "include", "exclude")
    seed, *more = options.seed or [spec.DEFAULT_SEED]
    if more:
        options.usage_error("argument --seed: given more than once; run create once for every seed")
    try:
        asked = hf_perturb.Perturbation(seed=seed, **{key: getattr(options, key) for key in keys})
    except hf_perturb.PerturbationError as error:
        options.usage_error(str(error))
    record = create_variant(options.base, Path(options.out), asked, recipe=options.recipe, force=options.force)
    if options.json:
        print(json.dumps({"path": str(options.out), "perturbation": record.to_dict()}))
    else:
        print(f"{options.out}: {record}\n{record.digest}")


def _list(options: argparse.Namespace) -> None:
    rows = catalogue_rows(options.json) if options.base is None else tensor_rows(options.base)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
