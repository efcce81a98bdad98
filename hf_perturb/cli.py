"""The command `hf-perturb`: parse, call, exit code.

Exit codes: 0 done, 1 the thing failed, 2 wrong usage. Results go to stdout, errors and progress to stderr.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import hf_perturb
from hf_perturb.checkpoints.formats import DTYPES, FORMATS
from hf_perturb.hub.formats import FORMATS as PUSH_FORMATS
from hf_perturb.perturbation import scopes, spec

_CREATE = """\
Build a variant of a base: the same network with its weights re-initialised or shuffled. --method, --seed and --axis may
be repeated: then OUT is a folder of folders, one for each combination, all built in one pass over the base.

  hf-perturb create demo my-control --method reinit --seed 42
  hf-perturb create ./my-base my-control --method resample --axis all --exclude 'contact_head.*'
  hf-perturb create ./my-base my-controls --method reinit --method resample --seed 42 --seed 0 --seed 12345
  hf-perturb create ./my-base my-control --method reinit --scope top:4 --scope attention
  hf-perturb create ./my-base my-cascade --method reinit --cascade top-down
  hf-perturb create ./my-recipe my-control                       a recipe is given its weights
"""
_CONVERT = """\
Make a base of a checkpoint of any origin, or write a base or a variant in another package's format.

  hf-perturb convert esm1b_t33_650M_UR50S my-base            a name of the catalogue: downloaded, checked, converted
  hf-perturb convert esm1b_t33_650M_UR50S.pt my-base         an original file, its -contact-regression.pt beside it
  hf-perturb convert facebook/esm2_t6_8M_UR50D my-base       Transformers' own ESM: a Hub id, or a folder
  hf-perturb convert --to transformers my-control stock      what Transformers loads with nothing of ours installed
  hf-perturb convert --to fair-esm my-control esm1b_control.pt
"""
_VERIFY = """\
Compare weights with the digest that their record names; with the base, build every tensor again and compare those.
Exit code 1 if anything is not as recorded.

  hf-perturb verify my-control
  hf-perturb verify my-control --base my-base
"""
_COMPARE = """\
Say what differs between two checkpoints of one network, by layer or by tensor. Distances are relative to A.

  hf-perturb compare my-base my-control
  hf-perturb compare my-base my-control --per tensor --json
  hf-perturb compare my-base my-control --plot distances.png     needs: pip install 'hf-perturb[plot]'
"""
_PUSH = """\
Publish a variant, a recipe or a base on the Hub: weights, configuration, tokenizer, card, and the code that loads them
where hf_perturb is not installed. The folder is verified first, and nothing else that is in it is sent; everything goes
into one commit, and what is there already is not sent again. The token is that of `hf auth login`, or HF_TOKEN.

  hf-perturb push my-control my-lab/esm1b-reinit-seed42 --dry-run
  hf-perturb push my-control my-lab/esm1b-reinit-seed42 --private --tag v1
  hf-perturb push my-control my-lab/esm1b-reinit-seed42-stock --format transformers
"""
_BASE = "a folder, a Hub id, an original .pt, or 'demo'"
_LIST = """\
Without BASE: the published checkpoints. With BASE: its tensors, and what the rules do to each.
"""


def script() -> NoReturn:
    """Run the command as a process: a signal ends it after it has cleaned up, and its caller sees which."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    code = main()
    if code == 128 + signal.SIGINT:
        # a shell ends its own loop only if the command died of the signal
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    sys.exit(code)


def _stop(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: words of the command line, those of the process if `None`.
    """
    parser, commands = _parser()
    options = parser.parse_args(arguments)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        from hf_perturb import commands as calls

        try:
            code = getattr(calls, f"run_{options.command}")(options)
        except calls.UsageError as error:
            commands[options.command].error(str(error))
        sys.stdout.flush()
    except BrokenPipeError:
        # whoever read the output has gone (`| head`); keep the interpreter from flushing to them at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError, hf_perturb.HfPerturbError) as error:
        print(f"hf-perturb {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        left = "nothing is half written (a download goes on from there)"
        if options.command == "push":
            left = "the branch is as it was, or has all of it: the same command completes it, or says so"
        print(f"hf-perturb {options.command}: interrupted; {left}", file=sys.stderr)
        return 128 + signal.SIGINT
    return code or 0


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(prog="hf-perturb", description=(hf_perturb.__doc__ or "").partition("\n")[0])
    parser.add_argument("--version", action="version", version=f"%(prog)s {hf_perturb.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made: dict[str, argparse.ArgumentParser] = {}

    def add(name: str, text: str, description: str) -> argparse.ArgumentParser:
        layout: Any = argparse.RawDescriptionHelpFormatter
        options: dict[str, Any] = {"formatter_class": layout, "allow_abbrev": False}
        made[name] = commands.add_parser(name, help=text, description=description, **options)
        made[name].add_argument("--json", action="store_true", help="print the result as JSON")
        return made[name]

    listing = add("list", "the published checkpoints, or the tensors of a base", _LIST)
    listing.add_argument("base", nargs="?", type=_name, metavar="BASE", help=_BASE)
    _add_convert(add("convert", "make a base of a checkpoint", _CONVERT))
    _add_create(add("create", "build a variant, or many", _CREATE))

    verify = add("verify", "compare a variant with its record", _VERIFY)
    verify.add_argument("--revision", type=_name, metavar="NAME", help="branch, tag or commit, if PATH is a Hub id")
    verify.add_argument("path", type=_name, metavar="PATH", help="a variant, a recipe or a base: a folder or a Hub id")
    verify.add_argument("--base", type=_name, metavar="BASE", help=f"what it was made from: {_BASE}")
    compare = add("compare", "what differs between two checkpoints", _COMPARE)
    compare.add_argument("a", type=_name, metavar="A", help=_BASE)
    compare.add_argument("b", type=_name, metavar="B", help="the same: a base or a variant")
    compare.add_argument("--per", choices=("layer", "tensor"), default="layer", help="a row for each; default: layer")
    compare.add_argument("--plot", type=_name, metavar="FILE", help="draw distances and histograms (.png, .pdf, .svg)")
    _add_push(add("push", "publish on the Hub", _PUSH))
    for command in (made["create"], verify, compare):
        command.add_argument("--jobs", type=_count, metavar="N", help="tensors at a time; default: one a processor")
    return parser, made


def _add_convert(convert: argparse.ArgumentParser) -> None:
    source = "an original .pt, a name of the catalogue (hf-perturb list), a folder or a Hub id"
    convert.add_argument("source", type=_name, metavar="SOURCE", help=source)
    convert.add_argument("out", type=_name, metavar="OUT", help="the folder to write; a .pt file for the originals")
    convert.add_argument("--to", choices=FORMATS, help="write another package's format; default: a base of ours")
    stored = "default: float32 for originals, else as stored"
    convert.add_argument("--dtype", choices=DTYPES, help=f"type of the base's weights; {stored}")
    convert.add_argument("--allow-nonfinite", action="store_true", help="convert NaN and infinite weights too")
    convert.add_argument("--force", action="store_true", help="replace OUT if it is a base and nothing else")


def _add_create(create: argparse.ArgumentParser) -> None:
    create.add_argument("base", type=_name, metavar="BASE", help=f"{_BASE}; or a recipe")
    create.add_argument("out", type=_name, metavar="OUT", help="the folder to write")
    many: dict[str, Any] = {"action": "append", "default": []}
    create.add_argument("--method", choices=spec.METHODS, help="repeatable; none for a recipe", **many)
    create.add_argument("--seed", type=int, metavar="N", help=f"repeatable; default: {spec.DEFAULT_SEED}", **many)
    create.add_argument("--rules", choices=spec.RULES, help=f"default: {spec.RULES[0]}")
    axis = "what resample shuffles, repeatable; default: the family's"
    create.add_argument("--axis", choices=spec.AXES, help=axis, **many)
    for option, what in (("--include", "perturb only these"), ("--exclude", "leave these as they are")):
        help_text = f"glob over tensor names, repeatable: {what}"
        create.add_argument(option, metavar="GLOB", help=help_text, **many)
    names = "top:K, bottom:K, layers:I-J, attention, feed_forward, convolution, keep_layer_norms"
    create.add_argument("--scope", metavar="SCOPE", help=f"perturb only a part, repeatable (all hold): {names}", **many)
    depths = "one variant for each depth, from the first layer on that side to all of them"
    create.add_argument("--cascade", choices=tuple(scopes.DIRECTIONS), help=depths)
    create.add_argument("--recipe", action="store_true", help="leave the weights out; loading rebuilds them")
    create.add_argument("--force", action="store_true", help="replace OUT if it is a variant and nothing else")


def _add_push(push: argparse.ArgumentParser) -> None:
    push.add_argument("path", type=_name, metavar="DIR", help="the folder of a variant, a recipe or a base")
    push.add_argument("repo_id", type=_name, metavar="REPO_ID", help="NAMESPACE/NAME; made if it is not there")
    push.add_argument("--private", action="store_true", help="make a private repository; refuse a public one")
    push.add_argument(
        "--revision", type=_name, metavar="BRANCH", default="main", help="default: main; made if not there"
    )
    push.add_argument("--tag", type=_name, metavar="NAME", help="name the commit; names are not moved")
    collection = "add it to a collection: a slug, or a title in the same namespace (made if it is not there)"
    push.add_argument("--collection", type=_name, metavar="SLUG|TITLE", help=collection)
    layout = "transformers: for stock Transformers, without code (ESM-1b, ESM-1v, ESM-2); default: %(default)s"
    push.add_argument("--format", choices=PUSH_FORMATS, default=PUSH_FORMATS[0], help=layout)
    push.add_argument("--force", action="store_true", help="replace another model there; it stays in the history")
    push.add_argument("--dry-run", action="store_true", help="say what would change, with sizes; touch nothing")


def _name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it is empty; give a name (is a shell variable not set?)")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: 1 or more")
    return int(text)
