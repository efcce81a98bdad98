"""Build the three controls of the demo base, load the four models, run pipelines, and study what is due to training."""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path

import torch
from evaluation import masked_lm_loss
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, pipeline, utils

import hf_perturb
from hf_perturb import demo
from hf_perturb.perturbation.spec import METHODS
from hf_perturb.studies.words import last_line
from hf_perturb.variants.create import create_variant

HELD_OUT = Path(demo.__file__).parent / "held_out.fasta.gz"
# which is which was read off the names of the organisms in the FASTA's headers
GROUPS = Path(__file__).with_name("held_out_groups.tsv")
TOLD_APART = ("bacterium", "eukaryote")
LAYERS = "0,4,8,12,16"


def build(folder: Path, seed: int) -> dict[str, Path]:
    """Build the variants; return the folders of the base and of each."""
    folders = {"base": demo.folder()}
    for method in METHODS:
        folders[method] = folder / f"demo-{method}-seed{seed}"
        create_variant(demo.NAME, folders[method], {"method": method, "seed": seed}, force=True)
    return folders


def changed_tensors(model: torch.nn.Module, base: torch.nn.Module) -> str:
    """Say how many tensors of a model differ from the base's."""
    old, new = base.state_dict(), model.state_dict()
    changed = [name for name in old if not torch.equal(old[name], new[name])]
    return f"{len(changed)} of {len(old)}"


def describe(folders: dict[str, Path]) -> None:
    """Print held-out losses and changed tensors, a row a model."""
    sequences = demo.held_out_sequences()
    base = AutoModelForMaskedLM.from_pretrained(folders["base"])
    print(f"\n{'model':<10}{'held-out masked-LM loss':>25}{'tensors changed':>18}")
    for name, folder in folders.items():
        model = AutoModelForMaskedLM.from_pretrained(folder)
        loss = masked_lm_loss(model, AutoTokenizer.from_pretrained(folder), sequences)
        print(f"{name:<10}{loss:>20.3f} nats{changed_tensors(model, base):>18}")
    kept = "the token embedding, its projection, the last norm and the decoder are kept, as the rules say"
    print(f"({len(sequences)} sequences; {kept})")


def run_pipelines(folders: dict[str, Path]) -> None:
    """Fill a mask and extract features with every model."""
    sequence = demo.held_out_sequences()[0][:40]
    masked = sequence[:20] + "#" + sequence[21:]
    print(f"\n{masked}   (# hides {sequence[20]})")
    for name, folder in folders.items():
        fill = pipeline("fill-mask", model=str(folder))
        guesses = ", ".join(f"{guess['token_str']} {guess['score']:.2f}" for guess in fill(masked)[:3])
        extract = pipeline("feature-extraction", model=AutoModel.from_pretrained(folder), tokenizer=fill.tokenizer)
        features = extract(sequence, return_tensors=True)
        print(f"{name:<10}fill-mask: {guesses:<28}feature-extraction: {tuple(features.shape)}")


def study_groups(folder: Path) -> None:
    """Ask of the proteins that the base has not seen: is telling bacteria from eukaryotes due to what it learned?"""
    with GROUPS.open(encoding="utf-8", newline="") as file:
        groups = dict(csv.reader(file, delimiter="\t"))
    data, out = folder / "groups.csv", folder / "study"
    with data.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "sequence", "target"])
        for header, sequence in demo.read_fasta(HELD_OUT):
            if (group := groups[header.split()[0]]) in TOLD_APART:
                writer.writerow([header.split()[0], sequence, group])
    controls = [{"method": method, "seed": seed} for method in ("reinit", "resample") for seed in range(3)]
    found = hf_perturb.study(demo.NAME, data, out, controls, split="kfold:5", layers=LAYERS, force=True)
    print(f"\nis it due to what the base learned? {' or '.join(TOLD_APART)}, by probes of its representations:")
    print(last_line(found))
    command = f"hf-perturb study demo {data} {out} --split kfold:5 --layers {LAYERS} --seed 0-2"
    print(f"{out / 'layers.png'}; the same by: {command}")


def main() -> None:
    """Parse the command line and run the five parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("quickstart"), help="where the variants go (%(default)s)")
    parser.add_argument("--seed", type=int, default=42, help="default: %(default)s")
    options = parser.parse_args()
    utils.logging.set_verbosity_error()
    utils.logging.disable_progress_bar()
    start = time.monotonic()
    folders = build(options.out, options.seed)
    for name, folder in folders.items():
        print(f"{name:<10}{folder}")
    describe(folders)
    run_pipelines(folders)
    study_groups(options.out)
    following = f"import hf_perturb; AutoModel.from_pretrained({str(folders['reinit'].resolve())!r})"
    print(f"\ndone in {time.monotonic() - start:.0f} s; next, in Python: {following}")


if __name__ == "__main__":
    sys.exit(main())
