"""`hf-perturb study`: its words, and what it prints."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from typing import Any

import hf_perturb
from hf_perturb.cli import output
from hf_perturb.cli.arguments import BASE, add_long, add_perturbation, add_running, add_tokenizing, nonempty
from hf_perturb.cli.asked import asked_of
from hf_perturb.embedding.options import POOLS, EmbedOptions
from hf_perturb.studies.options import METHODS, PROBES, SAVED, SEEDS, StudyOptions
from hf_perturb.studies.task import TASKS

DESCRIPTION = """\
Is a result due to what the model learned? Probes of every layer of a base, of controls with several seeds and of plain
baselines, on your data: scores with 95% intervals, paired differences, the share that is there without training, a
picture, and a last line in words. The same command goes on where an interrupted one stopped.
Needs: pip install 'hf-perturb[study]'

  hf-perturb study demo gb1.csv my-study                       FLIP's columns: sequence, target, set, validation
  hf-perturb study my-base gb1.csv my-study --target fitness --layers 0,16,-1 --control reinit --seed 0-4
  hf-perturb study my-base proteins.fasta my-study --labels labels.tsv --split kfold:5 --metric balanced_accuracy
  hf-perturb study my-base proteins.fasta my-study --labels residues.fasta     a string of labels for each protein
  hf-perturb study Rostlab/prot_bert gb1.csv my-study --replace UZOB=X --control reinit --scope top:6
"""


def add_study(study: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    study.add_argument("model", type=nonempty, metavar="MODEL", help=f"the base: {BASE}")
    data = "FLIP's CSV or TSV, Parquet, or a FASTA with TARGET= and SET= in its headers; plain or packed with gzip"
    study.add_argument("data", type=nonempty, metavar="DATA", help=data)
    study.add_argument("out", type=nonempty, metavar="OUT", help="the folder to write")
    _add_data(study.add_argument_group("data"))
    _add_probes(study.add_argument_group("probes and figures"))
    group = study.add_argument_group("networks")
    numbers = "all (the default), last, or numbers with commas, 0 for the embedding (--layers=-2,-1: the last two)"
    group.add_argument("--layers", type=nonempty, default=StudyOptions.layers, metavar="WHICH", help=numbers)
    pool = "residues of a protein to one vector; cls: the token that begins a sequence, in ESM; default: %(default)s"
    group.add_argument("--pool", choices=POOLS, default=StudyOptions.pool, help=pool)
    there = "a folder of embeddings of these proteins, as embed writes it with --method, to use in place of new ones"
    group.add_argument("--embeddings", type=nonempty, metavar="FOLDER", help=there)
    saved = "keep the vectors of all residues that are made, in OUT/h5: a file a network and layer, for biotrainer"
    group.add_argument("--save-embeddings", choices=SAVED, help=saved)
    add_running(group)
    add_long(group)
    add_tokenizing(study.add_argument_group("encoders that are not ours"))
    study.add_argument("--force", action="store_true", help="if OUT holds another study, replace it")
    defaults = f"controls (default: {' and '.join(METHODS)})"
    add_perturbation(study.add_argument_group(defaults), "--control", "--method", seed=SEEDS[0])


def _add_data(group: Any) -> None:
    group.add_argument("--target", type=nonempty, metavar="COLUMN", help="what is to be predicted, if several could be")
    labels = "labels of a FASTA without: CSV or TSV by id, or a FASTA with a string of labels for each protein"
    group.add_argument("--labels", type=nonempty, metavar="FILE", help=labels)
    group.add_argument("--mask", type=nonempty, metavar="FASTA", help="0 and 1: which residues have a label")
    group.add_argument("--task", choices=TASKS, help="default: as the values tell; an error where they do not")
    bad = "leave out rows that cannot be used, and count them; default: an error that names the first"
    group.add_argument("--skip-bad", action="store_true", help=bad)
    split = (
        "column: as the data says; cluster:FILE, kfold:5, cluster:0.3 (needs MMseqs2); default: column, or kfold:5"
        " where the data has no test rows"
    )
    group.add_argument("--split", type=nonempty, metavar="WHICH", help=split)
    most = (
        "of a residue task, most residues to train on and to test with, sampled within proteins; default: %(default)s"
    )
    group.add_argument("--max-residues", type=int, default=StudyOptions.max_residues, metavar="N", help=most)


def _add_probes(group: Any) -> None:
    probe = "default: ridge for numbers, logistic for classes"
    group.add_argument("--probe", choices=PROBES, help=probe)
    metric = (
        "repeatable, the first chooses strengths and layers: spearman, r2, ndcg; auroc, mcc, balanced_accuracy,"
        " macro_f1; default: all of the task, the first of them first"
    )
    group.add_argument(
        "--metric", type=nonempty, action="append", dest="metrics", default=[], metavar="NAME", help=metric
    )
    plain = "leave out length, composition, one-hot, representation 0 and shuffled labels"
    group.add_argument("--no-baselines", action="store_false", dest="baselines", help=plain)
    wild = (
        "of a regression of mutants: their wild type, a FASTA or its sequence; score them without a probe, too, as"
        " hf-perturb score does"
    )
    group.add_argument("--zero-shot", type=nonempty, metavar="WILDTYPE", help=wild)
    draws = "resamples of the test proteins, for the intervals; default: %(default)s"
    group.add_argument("--resamples", type=int, default=StudyOptions.resamples, metavar="N", help=draws)
    seed = "of folds, samples and resamples; default: %(default)s (--seed is that of the controls)"
    group.add_argument("--study-seed", type=int, dest="study_seed", default=StudyOptions.seed, metavar="N", help=seed)


def run_study(options: argparse.Namespace) -> None:
    """Study a base, and print what was found: the last line in words."""
    from hf_perturb.studies.folder import WRITTEN
    from hf_perturb.studies.tables import report_of
    from hf_perturb.studies.words import last_line, summary_table

    names = {each.name for each in (*fields(StudyOptions), *fields(EmbedOptions))} - {"seed", "progress"}
    given = {name: getattr(options, name) for name in names if name in options}
    options.method, options.seed = options.method or [*METHODS], options.seed or [*SEEDS]
    asked = asked_of(options, options.model, options.revision)
    with output.progress_of({"embedding": "res", "probing": "layer", "resampling": "layer"}) as progress:
        places = (options.model, options.data, options.out)
        found = hf_perturb.study(*places, asked, **given, seed=options.study_seed, progress=progress)
    for note in found.notes:
        print(f"hf-perturb study: note: {note}", file=sys.stderr)
    for warning in found.warnings:
        print(f"hf-perturb study: warning: {warning}", file=sys.stderr)
    if options.json:
        output.print_json(report_of(found))
        return
    output.print_table(summary_table(found))
    print(f"\n{options.out}: {', '.join(WRITTEN)}")
    print(last_line(found))
