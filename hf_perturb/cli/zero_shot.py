"""The commands of what a network says with no training of ours: `score` and `contacts`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import fields

import hf_perturb
from hf_perturb.cli import output
from hf_perturb.cli.arguments import add_perturbation, add_running, add_tokenizing, count, nonempty
from hf_perturb.cli.asked import UsageError, asked_of, refuse_without_method
from hf_perturb.zero_shot.contact_options import PICTURES, ContactOptions
from hf_perturb.zero_shot.options import ALL, LONG, MARGINALS, ScoreOptions

SCORE = """\
What a masked language model says of substitutions: log p(mutant) - log p(wild type), added up over the substitutions of
a mutant, with each position masked in turn (masked marginals), and of one pass without a mask (wild-type marginals).
Parquet comes out, a row a mutant and network. With --method also for variants of the base, made in memory; with a
measured column, the rank correlation of each network with it. Needs: pip install 'hf-perturb[embed]', and for the
correlation 'hf-perturb[study]'.

  hf-perturb score demo MKTAYIAKQRQISFVKSHFSRQ                            every single substitution, to scores.parquet
  hf-perturb score my-base wildtype.fasta --mutants DMS.csv --method reinit --seed 0-4 --out scores.parquet
  hf-perturb score my-base wildtype.fasta --mutants DMS.csv --offset 24 --measured DMS_score
"""
CONTACTS = """\
Which residues of each protein touch, by the contact head of an ESM (not CARP, nor ESM-1v): a file a protein,
OUT/base/000001.npy, float32 (length, length), named by its place in the FASTA, and OUT/base/index.json with the ids.
With --method also for variants of the base, made in memory, a folder each. The same command goes on where an
interrupted one stopped. Needs: pip install 'hf-perturb[embed]', and for --plot 'hf-perturb[plot]'

  hf-perturb contacts my-esm proteins.fasta my-maps
  hf-perturb contacts my-esm proteins.fasta my-maps --method reinit --seed 0-4 --exclude 'contact_head.*' --plot
"""


def add_commands(add: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    """Add both commands; `add` is given a name, what it is for, and its description."""
    add_score(add("score", "effects of substitutions", SCORE))
    add_contacts(add("contacts", "which residues touch", CONTACTS))


def add_score(score: argparse.ArgumentParser) -> None:
    """Say what `score` takes."""
    score.add_argument("model", type=nonempty, metavar="MODEL", help="as for embed; with --method, a base")
    wildtype = "the wild type: its sequence, or a FASTA, plain or packed with gzip; - for standard input"
    score.add_argument("wildtype", type=nonempty, metavar="FASTA_OR_WILDTYPE", help=wildtype)
    mutants = (
        "CSV, TSV or Parquet with a column mutant (A24G, A24G:T30S) or of whole sequences, and a column id where the"
        " FASTA has several records; all (the default): every single substitution"
    )
    score.add_argument("--mutants", type=nonempty, default=ALL, metavar="FILE", help=mutants)
    out = "the file to write; default: %(default)s"
    score.add_argument("--out", type=nonempty, default="scores.parquet", metavar="FILE", help=out)
    number = "the number of the first residue in mutants; default: 1"
    score.add_argument("--offset", type=int, default=ScoreOptions.offset, metavar="N", help=number)
    measured = "the column of what was measured; default: DMS_score, fitness, target or the like, if there is one"
    score.add_argument("--measured", type=nonempty, metavar="COLUMN", help=measured)
    marginal = "repeatable; default: both; wildtype alone takes one pass"
    score.add_argument("--marginal", choices=MARGINALS, action="append", help=marginal)
    add_running(score)
    long = "wild types longer than the network has positions for: each position in a window around it; default: refuse"
    score.add_argument("--long", choices=LONG, default=ScoreOptions.long, help=long)
    add_tokenizing(score.add_argument_group("networks that are not ours"))
    score.add_argument("--force", action="store_true", help="replace the file that is there, if it holds scores")
    add_perturbation(score.add_argument_group("variants of the base"))


def add_contacts(contacts: argparse.ArgumentParser) -> None:
    """Say what `contacts` takes."""
    contacts.add_argument("model", type=nonempty, metavar="MODEL", help="an ESM; with --method, a base")
    fasta = "plain or packed with gzip; - for standard input"
    contacts.add_argument("fasta", type=nonempty, metavar="FASTA", help=fasta)
    contacts.add_argument("out", type=nonempty, metavar="OUT", help="the folder to write: in it one for each network")
    plot = f"draw the maps of all networks side by side, to OUT/plots: of the first {PICTURES} proteins"
    contacts.add_argument("--plot", action="store_true", help=plot)
    contacts.add_argument("--pictures", type=count, metavar="N", help="draw so many proteins; goes with --plot")
    add_running(contacts, batched=False)
    add_tokenizing(contacts.add_argument_group("networks that are not ours"))
    contacts.add_argument("--force", action="store_true", help="if OUT holds other contact maps, remove them")
    add_perturbation(contacts.add_argument_group("variants of the base"))


def run_score(options: argparse.Namespace) -> None:
    """Score substitutions, with a network or with variants of it too."""
    given = {each.name: getattr(options, each.name) for each in fields(ScoreOptions) if each.name in options}
    given["marginal"] = options.marginal or MARGINALS
    if not options.method:
        refuse_without_method(options, "MODEL scores as it is")
    asked = asked_of(options, options.model, options.revision) if options.method else []
    with output.progress_bar("pos") as progress:
        done = hf_perturb.score(
            options.model,
            options.wildtype,
            options.mutants,
            options.out,
            perturbations=asked,
            **given,
            progress=progress,
        )
    for line in done.notes:
        print(f"hf-perturb score: note: {line}", file=sys.stderr)
    if options.json:
        output.print_json(done.to_dict())
    else:
        output.print_table(done.rows())
        print(f"{options.out}: {_count(done.mutants, 'mutant')}, {_count(len(done.networks), 'network')}")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s'[: number != 1]}"


def run_contacts(options: argparse.Namespace) -> None:
    """Predict contacts, with a network or with variants of it too."""
    given = {each.name: getattr(options, each.name) for each in fields(ContactOptions) if each.name in options}
    if options.pictures and not options.plot:
        raise UsageError("argument --pictures: says how many --plot draws, so it needs --plot")
    given["plot"] = options.pictures or options.plot
    if not options.method:
        refuse_without_method(options, "MODEL predicts as it is")
    asked = asked_of(options, options.model, options.revision) if options.method else []
    with output.progress_bar("res") as progress:
        done = hf_perturb.contacts(options.model, options.fasta, options.out, asked, **given, progress=progress)
    first, *_ = done.values()
    for line in first.notes:
        print(f"hf-perturb contacts: note: {line}", file=sys.stderr)
    if options.json:
        output.print_json([each.to_dict() for each in done.values()])
        return
    for each in done.values():
        new = f"{each.computed:,} of them made now" if each.computed else "nothing left to make"
        print(f"{each.path}: {each.records:,} maps, {each.residues:,} residues, {new}")
    if first.pictures:
        print(f"{first.pictures[0].parent}: {_count(len(first.pictures), 'picture')}")
