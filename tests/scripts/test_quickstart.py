"""The main job: what the README's first command runs after its set-up."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

from hf_perturb import demo

QUICKSTART = Path(__file__).parent.parent.parent / "scripts" / "quickstart.py"


def test_the_main_job(tmp_path):
    done = subprocess.run(
        [sys.executable, QUICKSTART, "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    losses = {name: float(loss) for name, loss in re.findall(r"^(\w+) +([\d.]+) nats", done.stdout, re.MULTILINE)}
    changed = dict(re.findall(r"^(\w+) .*nats +(\d+) of \d+$", done.stdout, re.MULTILINE))
    # the base predicts better than residue frequencies (2.89 nats), a control no better than they do
    assert losses["base"] < 2.85
    assert losses["reinit"] > losses["base"] + 0.05
    assert losses["resample"] > losses["base"] + 0.05
    assert losses["gaussian"] > losses["base"] + 0.05
    assert changed == {"base": "0", "reinit": "192", "resample": "192", "gaussian": "192"}
    assert done.stdout.count("fill-mask:") == 4
    assert done.stdout.count("feature-extraction: (1, 40, 128)") == 4
    assert done.stderr == "", "nothing but the table is said"
    # of what tells bacteria from eukaryotes, much is there without training, and not all
    scores = re.search(r"reach(?:es)? AUROC (0\.\d+).*re-initialised networks (0\.\d+)", done.stdout)
    assert 0.7 < float(scores[2]) < float(scores[1]) < 1
    assert (tmp_path / "study" / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_every_held_out_sequence_has_a_group():
    with (QUICKSTART.parent / "held_out_groups.tsv").open(newline="") as file:
        groups = dict(csv.reader(file, delimiter="\t"))
    records = demo.read_fasta(Path(demo.__file__).parent / "held_out.fasta.gz")
    assert list(groups) == [header.split()[0] for header, _ in records]
    assert {*groups.values()} == {"bacterium", "eukaryote", "archaea", "virus"}
