"""The command `hf-perturb`: parse, call, print the result, exit code. What a command does not need is not imported.

Exit codes: 0 done, 1 the thing failed, 2 wrong usage, 130 interrupted (at a terminal by a death of the signal, which a
shell says as 130). Results go to stdout, errors and progress to stderr.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn

import hf_perturb
from hf_perturb import interrupts
from hf_perturb.cli import output
from hf_perturb.cli.arguments import make_parser
from hf_perturb.cli.asked import UsageError, asked_of, refuse_without_method
from hf_perturb.cli.study import run_study
from hf_perturb.cli.zero_shot import run_contacts, run_score
from hf_perturb.embedding.options import EmbedOptions
from hf_perturb.embedding.ranks import SaidElsewhereError, launched
from hf_perturb.storage.folders import NOWHERE
from hf_perturb.variants.matrix import folders, folders_of

# how things are when a command is interrupted
_LEFT = {
    "push": "the branch is as it was, or has all of it: the same command completes it, or says so",
    "embed": "every shard that is there is whole: the same command continues",
    "study": "what is embedded and probed is kept: the same command continues",
    "contacts": "every map that is there is whole: the same command continues",
}
# what is imported before anything is begun; the other commands take what they need in no time
_NEEDED = {
    "convert": ("convert_checkpoint",),
    "create": ("create_variants",),
    "verify": ("verify_variant",),
    "compare": ("compare_checkpoints",),
    "embed": ("embed",),
    "study": ("study",),
    "score": ("score",),
    "contacts": ("contacts",),
    "push": ("push_variant",),
}


def script() -> NoReturn:
    """Run the command as a process: a signal ends it after it has cleaned up, and its caller sees which."""
    interrupts.watch(always=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    code = main()
    interrupts.ignore()
    if code == interrupts.CODE:
        interrupts.end()
    sys.exit(code)


def _stop(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: words of the command line, those of the process if `None`.
    """
    try:
        return _run(arguments)
    except BaseException as error:
        if not (isinstance(error, KeyboardInterrupt) or interrupts.noticed()):
            raise
        name = next((word for word in (sys.argv[1:] if arguments is None else arguments) if word in _COMMANDS), "")
        left = _LEFT.get(name, "nothing is half written (a download goes on from there)")
        print(f"{f'hf-perturb {name}'.strip()}: interrupted; {left}", file=sys.stderr)
        return interrupts.CODE


def _run(arguments: Sequence[str] | None) -> int:
    parser, commands = make_parser()
    options = parser.parse_args(arguments)
    try:
        os.getcwd()
    except OSError as error:  # libraries die of it when they are imported
        print(f"hf-perturb {options.command}: {NOWHERE} ({error})", file=sys.stderr)
        return 1
    try:
        for name in _NEEDED.get(options.command, ()):
            getattr(hf_perturb, name)
    except hf_perturb.HfPerturbError as error:  # what it needs is not installed
        print(f"hf-perturb {options.command}: {error}", file=sys.stderr)
        return 1
    interrupts.raise_from_now_on()
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        if "transformers" in sys.modules:
            from transformers.utils import logging

            logging.disable_progress_bar()
    try:
        try:
            with output.notes_of(options.command):
                code = _COMMANDS[options.command](options)
        except UsageError as error:
            commands[options.command].error(str(error))
        sys.stdout.flush()
    except BrokenPipeError:
        # whoever read the output has gone (`| head`); keep the interpreter from flushing to them at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError, hf_perturb.HfPerturbError) as error:
        if interrupts.noticed():
            raise
        print(f"hf-perturb {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return code or 0


def run_list(options: argparse.Namespace) -> None:
    """Print the catalogue, or the tensors of a base."""
    from hf_perturb.variants.listing import catalogue_rows, tensor_rows

    rows = (
        catalogue_rows(options.json)
        if options.base is None
        else tensor_rows(options.base, options.json, options.rules, options.trust_remote_code)
    )
    output.print_json(rows, indent=1) if options.json else output.print_table(rows)


def run_convert(options: argparse.Namespace) -> None:
    """Make a base, or write another package's format."""
    if options.to is not None:
        for given in ("dtype", "force"):
            if getattr(options, given):
                raise UsageError(f"argument --{given}: not with --to")
        places, nonfinite = (options.source, options.out), options.allow_nonfinite
        files = hf_perturb.export_checkpoint(*places, options.to, allow_nonfinite=nonfinite, on_note=_note)
        output.print_json({"files": list(map(str, files))}) if options.json else print("\n".join(map(str, files)))
        return
    done = hf_perturb.convert_checkpoint(
        options.source,
        Path(options.out),
        dtype=options.dtype,
        allow_nonfinite=options.allow_nonfinite,
        force=options.force,
    )
    for note in done.notes:
        _note(note)
    if options.json:
        output.print_json({"path": options.out, **asdict(done)})
    else:
        print(f"{options.out}: {done.architecture} of {done.parameters:,} parameters\n{done.digest}")


def run_create(options: argparse.Namespace) -> None:
    """Build a variant, or a matrix of them."""
    out = Path(options.out)
    with output.progress_bar() as progress:
        shared = {"force": options.force, "jobs": options.jobs, "progress": progress}
        shared["trust_remote_code"] = options.trust_remote_code
        if options.method:
            asked = asked_of(options, options.base)
            wanted: dict[Any, Any] = {out: asked[0]} if len(asked) == 1 and not options.cascade else folders(out, asked)
            kept = [path for path in wanted if path.exists() and not options.force]
            records = hf_perturb.create_variants(options.base, wanted, recipe=options.recipe, **shared)
            for path in kept:
                print(f"hf-perturb create: note: {path} is there already, as asked for, and was kept", file=sys.stderr)
        else:
            refuse_without_method(options, "BASE is a recipe")
            try:
                records = {out: hf_perturb.create_variant(options.base, out, **shared)}
            except hf_perturb.PerturbationError as error:
                raise UsageError(str(error)) from error
    if options.json:
        rows = [{"path": str(path), "perturbation": record.to_dict()} for path, record in records.items()]
        output.print_json(rows[0] if len(rows) == 1 else rows)
    else:
        print("\n".join(f"{path}: {record}\n{record.digest}" for path, record in records.items()))


def run_verify(options: argparse.Namespace) -> int:
    """Compare a folder, or each of a matrix, with its record; 1 if one is not as recorded."""
    try:
        several = folders_of(options.path)
        with output.progress_bar() as progress:
            shared = {"jobs": options.jobs, "progress": progress, "trust_remote_code": options.trust_remote_code}
            if several:
                found = hf_perturb.verify_variants(options.path, options.base, **shared)
            else:
                found = [hf_perturb.verify_variant(options.path, options.base, revision=options.revision, **shared)]
    except hf_perturb.HfPerturbError as error:
        if options.json:
            # a script should see a damaged folder where it looks for one
            output.print_json({"ok": False, "path": options.path, "problems": [" ".join(str(error).split())]})
        raise
    if options.json:
        rows = [each.to_dict() for each in found]
        output.print_json(rows if several else rows[0])
    else:
        for each in found:
            output.print_verification(each, each.path if several else options.path)
    return int(not all(each.ok for each in found))


def run_compare(options: argparse.Namespace) -> int:
    """Print what differs between two checkpoints, or between one and each of a matrix; 1 if one cannot be compared."""
    from hf_perturb.compare.plot import plot_comparison
    from hf_perturb.compare.table import comparison_table
    from hf_perturb.storage.pictures import check_picture

    if options.plot:
        check_picture(options.plot)
    for side in (options.a, options.b):
        if several := folders_of(side):
            if options.plot:
                raise UsageError(
                    f"argument --plot: shows one variant, and {side} has {len(several)}: give {several[0]}"
                )
            return _compare_each(options)
    with output.progress_bar() as progress:
        shared = {"jobs": options.jobs, "progress": progress, "trust_remote_code": options.trust_remote_code}
        found = hf_perturb.compare_checkpoints(options.a, options.b, **shared)
    if options.plot:
        plot_comparison(found, options.plot)
    if options.json:
        output.print_json(found.to_dict())
    else:
        output.print_table(comparison_table(found, per=options.per or "layer"))
    return 0


def _compare_each(options: argparse.Namespace) -> int:
    from hf_perturb.compare.compare import Comparison
    from hf_perturb.compare.table import comparison_table, matrix_table

    with output.progress_bar() as progress:
        shared = {"jobs": options.jobs, "progress": progress, "trust_remote_code": options.trust_remote_code}
        found = hf_perturb.compare_variants(options.a, options.b, **shared)
    compared = {folder: each for folder, each in found.items() if isinstance(each, Comparison)}
    problems = {folder: " ".join(str(found[folder]).split()) for folder in found.keys() - compared.keys()}
    if options.json:
        said = {folder: {"problems": [problem]} for folder, problem in problems.items()}
        said |= {folder: each.to_dict() for folder, each in compared.items()}
        output.print_json([{"path": str(folder), **said[folder]} for folder in found])
    elif compared:
        for folder, each in compared.items() if options.per else ():
            print(folder)
            output.print_table(comparison_table(each, per=options.per))
            print()
        output.print_table(matrix_table(compared))
    for folder, problem in sorted(problems.items()):
        print(f"hf-perturb compare: {folder}: {problem}", file=sys.stderr)
    return int(bool(problems))


def run_embed(options: argparse.Namespace) -> int:
    """Embed a FASTA, with a network or with variants of it; of several processes, one has the word."""
    rank, *_ = launched()
    if rank:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    given = {each.name: getattr(options, each.name) for each in fields(EmbedOptions) if each.name in options}
    given["pool"] = options.pool or ([] if options.per_residue else EmbedOptions.pool)
    if not options.method:
        refuse_without_method(options, "MODEL is embedded as it is")
    places = (options.model, options.fasta, options.out)
    with output.progress_bar("res", shown=not rank) as progress:
        try:
            if options.method:
                asked = asked_of(options, options.model, options.revision)
                done = hf_perturb.embed_variants(*places, asked, **given, progress=progress)
            else:
                done = {"": hf_perturb.embed(*places, **given, progress=progress)}
        except SaidElsewhereError:
            return 1
    if not rank:
        output.print_embeddings(list(done.values()), options.json, several=bool(options.method))
    return 0


def run_push(options: argparse.Namespace) -> None:
    """Publish a folder, or say what that would change."""
    given = ("path", "repo_id", "private", "revision", "tag", "collection", "format", "force", "dry_run")
    with output.progress_bar() as progress:
        done = hf_perturb.push_variant(**{name: getattr(options, name) for name in given}, progress=progress)
    output.print_json(done.to_dict()) if options.json else output.print_push(done, options.dry_run)


def _note(note: str) -> None:
    print(f"hf-perturb convert: note: {note}", file=sys.stderr)


_COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "list": run_list,
    "convert": run_convert,
    "create": run_create,
    "verify": run_verify,
    "compare": run_compare,
    "embed": run_embed,
    "study": run_study,
    "score": run_score,
    "contacts": run_contacts,
    "push": run_push,
}
