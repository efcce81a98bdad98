"""The words of the command line: commands, options and what they are for."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

import hf_perturb
from hf_perturb.checkpoints.formats import DTYPES, FORMATS, PUSH_FORMATS
from hf_perturb.embedding.options import LONG, POOLS, EmbedOptions
from hf_perturb.embedding.ranks import launched
from hf_perturb.perturbation import rules, scopes, spec

_CREATE = """\
Build a variant of a base: the same network with its weights re-initialised (reinit), shuffled within each tensor
(resample), or drawn from a normal distribution with the mean and deviation of each tensor (gaussian). --method, --seed
and --axis may be repeated: then OUT is a folder of folders, one for each combination, all built in one pass over the
base. Those that are there already are verified and kept: the same command completes what was interrupted.

  hf-perturb create demo my-control --method reinit --seed 42
  hf-perturb create ./my-base my-control --method resample --axis all --exclude 'contact_head.*'
  hf-perturb create ./my-base my-controls --method reinit --method resample --seed 0-4
  hf-perturb create ./my-base my-control --method reinit --scope top:4 --scope attention
  hf-perturb create ./my-base my-control --method gaussian --also embeddings --also head
  hf-perturb create ./my-base my-cascade --method reinit --cascade top-down
  hf-perturb create Rostlab/prot_bert my-controls --method reinit --seed 0-4     any model that Transformers loads
  hf-perturb create ./my-recipe my-control                       a recipe is given its weights
"""
_CONVERT = """\
Make a base of a checkpoint of any origin, or write a base or a variant in another package's format. Of a variant a
variant is made, with its record; one that was trained further stays marked as changed, and gets a card that says so.

  hf-perturb convert esm1b_t33_650M_UR50S my-base            a name of the catalogue: downloaded, checked, converted
  hf-perturb convert esm1b_t33_650M_UR50S.pt my-base         an original file, its -contact-regression.pt beside it
  hf-perturb convert facebook/esm2_t6_8M_UR50D my-base       Transformers' own ESM: a Hub id, or a folder
  hf-perturb convert --to transformers my-control stock      what Transformers loads with nothing of ours installed
  hf-perturb convert --to fair-esm my-control esm1b_control.pt
"""
_VERIFY = """\
Compare weights with the digest that their record names, and the record with what the files of weights say; with the
base, build every tensor again and compare those. Exit code 1 if anything is not as recorded, and for what was trained
further from a control.

  hf-perturb verify my-control
  hf-perturb verify my-control --base my-base
  hf-perturb verify my-controls                                  each of a folder of variants, as create writes it
"""
_COMPARE = """\
Say what differs between two checkpoints of one network, by layer or by tensor, and how much of A is left in the tensors
that changed: distance is in standard deviations of A (1.41 for a shuffle, and for values drawn from a normal
distribution with each tensor's own mean and deviation), correlation 1 for all of it and about 0 for nothing. One of the
two may be a folder of variants: then a row for each, and with --per their tables too.

  hf-perturb compare my-base my-control
  hf-perturb compare my-base my-control --per tensor --json
  hf-perturb compare my-base my-controls
  hf-perturb compare my-base my-control --plot distances.png     needs: pip install 'hf-perturb[plot]'
"""
_PUSH = """\
Publish a variant, a recipe or a base on the Hub: weights, configuration, tokenizer, card, and the code that loads them
where hf_perturb is not installed. The folder is verified first, and nothing else that is in it is sent; everything goes
into one commit, and what is there already is not sent again. What was trained further from a control needs a card
that says so, which `hf-perturb convert` writes. The token is that of `hf auth login`, or HF_TOKEN.

  hf-perturb push my-control my-lab/esm1b-reinit-seed42 --dry-run
  hf-perturb push my-control my-lab/esm1b-reinit-seed42 --private --tag v1
  hf-perturb push my-control my-lab/esm1b-reinit-seed42-stock --format transformers
"""
_EMBED = """\
FASTA to representations, as Parquet: a row a record, in the order of the FASTA, with one vector for each pooling and
layer. Records are batched by length and results written in shards; the same command goes on where an interrupted one
stopped. With --method also variants of the base, made in memory: OUT/base, and one folder for each.
On several processes or nodes, CPUs too: torchrun --nproc-per-node N -m hf_perturb embed ...
Needs: pip install 'hf-perturb[embed]'

  hf-perturb embed demo proteins.fasta my-embeddings
  hf-perturb embed my-base proteins.fasta.gz my-embeddings --layers all --dtype bfloat16
  hf-perturb embed my-base proteins.fasta my-embeddings --layers 0,6,-1 --pool mean --pool max --long window
  hf-perturb embed my-base proteins.fasta my-matrix --layers all --method reinit --method resample
  hf-perturb embed Rostlab/ProstT5 proteins.fasta my-prostt5 --prefix '<AA2fold>' --replace UZOB=X
"""
BASE = "a folder or Hub id of any Transformers model, an original .pt, or 'demo'"
_VERIFIED = "a variant, a recipe or a base: a folder or a Hub id"
_LIST = """\
Without BASE: the published checkpoints. With BASE: its tensors, what each method does to them by the rules, and
which part --also names it by, where the rules keep it. Of a variant also what was done to each (done) and, with --json,
its record (perturbation).
"""


def make_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser, and those of the commands by name."""
    from hf_perturb.cli import study, zero_shot  # which take words of this module

    parser = _Parser(prog="hf-perturb", description=(hf_perturb.__doc__ or "").partition("\n")[0])
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
    listing.add_argument("base", nargs="?", type=nonempty, metavar="BASE", help=BASE)
    _add_rules(listing)
    _add_convert(add("convert", "make a base of a checkpoint", _CONVERT))
    _add_create(add("create", "build a variant, or many", _CREATE))

    _add_verify(add("verify", "compare a variant with its record", _VERIFY))
    _add_compare(add("compare", "what differs between two checkpoints", _COMPARE))
    _add_embed(add("embed", "FASTA to representations", _EMBED))
    study.add_study(add("study", "is it due to what the model learned?", study.DESCRIPTION))
    zero_shot.add_commands(add)
    _add_push(add("push", "publish on the Hub", _PUSH))
    trusted = "run the code that comes with a network that Transformers does not have; read it first"
    for name in ("list", "create", "verify", "compare", "embed", "study", "score", "contacts"):
        made[name].add_argument("--trust-remote-code", action="store_true", help=trusted)
    for name in ("create", "verify", "compare"):
        made[name].add_argument("--jobs", type=count, metavar="N", help="tensors at a time; default: one a processor")
    return parser, made


def _add_verify(verify: argparse.ArgumentParser) -> None:
    verify.add_argument("--revision", type=nonempty, metavar="NAME", help="branch, tag or commit, if PATH is a Hub id")
    verify.add_argument("path", type=nonempty, metavar="PATH", help=f"{_VERIFIED}; or a folder of variants")
    verify.add_argument("--base", type=nonempty, metavar="BASE", help=f"what it was made from: {BASE}")


def _add_compare(compare: argparse.ArgumentParser) -> None:
    compare.add_argument("a", type=nonempty, metavar="A", help=BASE)
    compare.add_argument("b", type=nonempty, metavar="B", help="the same; or one of them a folder of variants")
    compare.add_argument("--per", choices=("layer", "tensor"), help="a row for each; default: layer")
    pictured = "draw distances and histograms (.png, .pdf, .svg)"
    compare.add_argument("--plot", type=nonempty, metavar="FILE", help=pictured)


def _add_convert(convert: argparse.ArgumentParser) -> None:
    source = "an original .pt, a name of the catalogue (hf-perturb list), a folder or a Hub id"
    convert.add_argument("source", type=nonempty, metavar="SOURCE", help=source)
    convert.add_argument("out", type=nonempty, metavar="OUT", help="the folder to write; a .pt file for the originals")
    convert.add_argument("--to", choices=FORMATS, help="write another package's format; default: a base of ours")
    stored = "default: float32 for originals, else as stored"
    convert.add_argument("--dtype", choices=DTYPES, help=f"type of the weights; {stored}")
    convert.add_argument("--allow-nonfinite", action="store_true", help="convert NaN and infinite weights too")
    convert.add_argument("--force", action="store_true", help="replace OUT if it is a base and nothing else")


def _add_create(create: argparse.ArgumentParser) -> None:
    create.add_argument("base", type=nonempty, metavar="BASE", help=f"{BASE}; or a recipe")
    create.add_argument("out", type=nonempty, metavar="OUT", help="the folder to write")
    add_perturbation(create)
    create.add_argument("--recipe", action="store_true", help="leave the weights out; loading rebuilds them")
    create.add_argument("--force", action="store_true", help="replace OUT if it is a variant and nothing else")


def _add_embed(embed: argparse.ArgumentParser) -> None:
    embed.add_argument("model", type=nonempty, metavar="MODEL", help=f"{BASE}; with --method, a base")
    embed.add_argument("fasta", type=nonempty, metavar="FASTA", help="plain or packed with gzip; - for standard input")
    embed.add_argument("out", type=nonempty, metavar="OUT", help="the folder to write")
    numbers = "last (the default), all, or numbers with commas, 0 for the embedding (--layers=-2,-1: the last two)"
    embed.add_argument("--layers", type=nonempty, default=EmbedOptions.layers, metavar="WHICH", help=numbers)
    pool = "residues to one vector, repeatable; cls: the token that begins a sequence, in ESM; default: mean"
    embed.add_argument("--pool", choices=POOLS, action="append", help=pool)
    each = "the vector of every residue too; without --pool, these alone"
    embed.add_argument("--per-residue", action="store_true", help=each)
    add_running(embed)
    add_long(embed)
    add_tokenizing(embed.add_argument_group("encoders that are not ours"))
    embed.add_argument("--force", action="store_true", help="if OUT holds other embeddings, remove them")
    add_perturbation(embed.add_argument_group("variants of the base"))


def add_long(parser: Any) -> None:
    """Say what to make of records that are too long for a network."""
    long = "records longer than the network has positions for (ESM-1b: 1022 residues); default: refuse"
    parser.add_argument("--long", choices=LONG, default=EmbedOptions.long, help=long)
    shared = "residues that neighbouring windows share, with --long window; default: a quarter of a window"
    parser.add_argument("--overlap", type=int, metavar="N", help=shared)


def add_running(parser: Any, batched: bool = True) -> None:
    """Say how a network is loaded and run, in batches or not."""
    parser.add_argument("--dtype", choices=DTYPES, help="type of weights and arithmetic; default: the checkpoint's")
    device = "cpu, cuda, ...; auto: spread over all there are; default: a GPU if there is one"
    parser.add_argument("--device", type=nonempty, metavar="NAME", help=device)
    if batched:
        tokens = "most tokens of a batch; default: 2048 on the CPU, 32768 elsewhere"
        parser.add_argument("--tokens", type=count, metavar="N", help=tokens)
    parser.add_argument("--revision", type=nonempty, metavar="NAME", help="branch, tag or commit, if MODEL is a Hub id")


def add_tokenizing(group: Any) -> None:
    """Say how a network that is not ours is given sequences."""
    given = "folder or Hub id of the tokenizer; default: the one beside the weights"
    group.add_argument("--tokenizer", type=nonempty, metavar="NAME", help=given)
    blanks = "give it residues separated by blanks, or not; default: found out"
    group.add_argument("--separate", action=argparse.BooleanOptionalAction, help=blanks)
    first = "what it is given before each sequence, such as '<AA2fold>'"
    group.add_argument("--prefix", type=nonempty, metavar="TEXT", help=first)
    letters = "letters to read as another: UZOB=X, several with commas"
    group.add_argument("--replace", type=nonempty, metavar="LETTERS=LETTER", help=letters)


def add_perturbation(parser: Any, *words: str, seed: int | str = spec.DEFAULT_SEED) -> None:
    """Say what is done to the weights; `words` name the option of the method, `--method` by itself."""
    words = words or ("--method",)
    many: dict[str, Any] = {"action": "append", "default": []}
    parser.add_argument(*words, dest="method", choices=spec.METHODS, help="repeatable", **many)
    seeds = f"42, a range 0-4, or several 0-2,7; repeatable; default: {seed}"
    parser.add_argument("--seed", type=nonempty, metavar="N", help=seeds, **many)
    _add_rules(parser)
    axis = "what resample shuffles (outputs: whole rows change places), repeatable; default: the family's"
    parser.add_argument("--axis", choices=spec.AXES, help=axis, **many)
    for option, what in (("--include", "perturb only these"), ("--exclude", "leave these as they are")):
        help_text = f"glob over tensor names, repeatable: {what}"
        parser.add_argument(option, metavar="GLOB", help=help_text, **many)
    names = (
        "top:K, bottom:K, layers:I-J (encoder.top:K, where there are several stacks of layers); of ESM and CARP also"
        " attention, feed_forward, convolution, keep_layer_norms"
    )
    parser.add_argument("--scope", metavar="SCOPE", help=f"perturb only a part, repeatable (all hold): {names}", **many)
    kept = "perturb a part that the rules keep, too, repeatable"
    parser.add_argument("--also", choices=rules.PARTS, help=kept, **many)
    depths = (
        "top-down or bottom-up (encoder.top-down, where there are several stacks of layers): one variant for each"
        " depth, from the first layer on that side to all of them"
    )
    parser.add_argument("--cascade", type=_direction, metavar="DIRECTION", help=depths)


def _add_rules(parser: Any) -> None:
    published = (
        "documented, for ESM and CARP their default; published: as the study's code did, for ESM-1, ESM-1b and CARP;"
        " transformers: the network's own _init_weights, the default for any other"
    )
    parser.add_argument("--rules", choices=spec.RULES, help=published)


def _add_push(push: argparse.ArgumentParser) -> None:
    push.add_argument("path", type=nonempty, metavar="DIR", help="the folder of a variant, a recipe or a base")
    push.add_argument("repo_id", type=nonempty, metavar="REPO_ID", help="NAMESPACE/NAME; made if it is not there")
    push.add_argument("--private", action="store_true", help="make a private repository; refuse a public one")
    push.add_argument(
        "--revision", type=nonempty, metavar="BRANCH", default="main", help="default: main; made if not there"
    )
    push.add_argument("--tag", type=nonempty, metavar="NAME", help="name the commit; names are not moved")
    collection = "add it to a collection: a slug, or a title in the same namespace (made if it is not there)"
    push.add_argument("--collection", type=nonempty, metavar="SLUG|TITLE", help=collection)
    layout = "transformers: for stock Transformers, without code (ESM-1b, ESM-1v, ESM-2); default: %(default)s"
    push.add_argument("--format", choices=PUSH_FORMATS, default=PUSH_FORMATS[0], help=layout)
    push.add_argument("--force", action="store_true", help="replace another model there; it stays in the history")
    push.add_argument("--dry-run", action="store_true", help="say what would change, with sizes; touch nothing")


class _Parser(argparse.ArgumentParser):
    """Of several processes that are all wrongly called, one says so."""

    def error(self, message: str) -> NoReturn:
        if launched()[0] and self.prog.endswith(" embed"):
            self.exit(2)
        super().error(message)


def nonempty(text: str) -> str:
    """Return a word of the command line that is a name."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; give a name (is a shell variable not set?)")
    return text


def _direction(text: str) -> str:
    try:
        scopes.cascade(1, text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def count(text: str) -> int:
    """Return a number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: 1 or more")
    return int(text)
