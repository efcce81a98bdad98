"""The command `hf-perturb`: parse, call, exit code.

Exit codes: 0 done, 1 the thing failed, 2 wrong usage. Results go to stdout, errors and progress to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMaskedLM
from transformers.utils import logging

import hf_perturb
from hf_perturb.checkpoints.bases import load_base
from hf_perturb.checkpoints.catalog import CATALOG, Entry
from hf_perturb.checkpoints.variants import create_variant
from hf_perturb.perturbation import make_plan, spec

_CREATE = """\
Build a variant of a base: the same network with its weights re-initialised or shuffled.

  hf-perturb create demo my-control --method reinit --seed 42
  hf-perturb create ./my-base my-control --method resample --axis all --exclude 'contact_head.*'
"""
_LIST = """\
Without BASE: the documented checkpoints. With BASE: its tensors, and what the rules do to each.
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
        print(f"hf-perturb {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"hf-perturb {options.command}: interrupted; nothing was written", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-perturb", description=hf_perturb.__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {hf_perturb.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    layout = argparse.RawDescriptionHelpFormatter

    listing = commands.add_parser(
        "list", help="the documented checkpoints, or the tensors of a base", description=_LIST, allow_abbrev=False
    )
    listing.add_argument("base", nargs="?", type=_name, metavar="BASE", help="a folder, a Hub id, or 'demo'")
    listing.add_argument("--json", action="store_true", help="print data in place of a table")
    listing.set_defaults(run=_list)

    create = commands.add_parser(
        "create", help="build a variant", description=_CREATE, formatter_class=layout, allow_abbrev=False
    )
    create.add_argument("base", type=_name, metavar="BASE", help="a folder, a Hub id, or 'demo'")
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
    rows = _bases() if options.base is None else _tensors(options.base)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _bases() -> list[dict[str, Any]]:
    return [_base_row(entry) for entry in [*CATALOG.values(), Entry("demo", "carp", CATALOG["carp_600k"].sizes)]]


def _base_row(entry: Entry) -> dict[str, Any]:
    config = entry.config()
    shipped = "shipped in the package, for demonstration" if entry.name == "demo" else entry.errata
    with torch.device("meta"):
        model = AutoModelForMaskedLM.from_config(config)
    return {
        "base": entry.name,
        "family": entry.family,
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "note": shipped,
    }


def _tensors(base: str) -> list[dict[str, Any]]:
    model, _ = load_base(base)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.document_tensors().items()}
    family, head = model.config.model_type, model.language_head_names()
    plans = {method: make_plan(family, shapes, hf_perturb.Perturbation(method), head) for method in spec.METHODS}
    steps = {method: {step.name: step for step in plan.steps} for method, plan in plans.items()}
    return [
        {
            "tensor": name,
            "shape": "x".join(map(str, shape)),
            **{method: _action(steps[method].get(name)) for method in spec.METHODS},
        }
        for name, shape in shapes.items()
    ]


def _action(step: Any) -> str:
    if step is None:
        return "keep"
    arguments = ", ".join(
        f"{key}={value:.6g}" if isinstance(value, float) else f"{value}" for key, value in step.arguments
    )
    return f"{step.kernel}({arguments})"
