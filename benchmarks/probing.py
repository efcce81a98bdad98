"""The probes of `scripts/probe`: embeddings of a base and its controls, and what can be read off every layer."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import RepeatedKFold, RepeatedStratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import hf_perturb
from hf_perturb.embedding.run import BASE

FASTA = Path(hf_perturb.demo.__file__).parent / "held_out.fasta.gz"
# which is which was read off the names of the organisms in the FASTA's headers
GROUPS = Path(__file__).with_name("held_out_groups.tsv")
HYDROPHOBIC = "AFILMVW"
METHODS = {"reinit": "random init", "resample": "stat transfer"}
SPLITS = {"n_splits": 5, "n_repeats": 4, "random_state": 0}


def embedded(base: str, seeds: Sequence[int], layers: str, work: Path) -> dict[str, list[Path]]:
    """Embed the sequences with a base and its controls; return the folders by what they are."""
    asked = [{"method": method, "seed": seed} for method in METHODS for seed in seeds]
    done = hf_perturb.embed_variants(base, FASTA, work, asked, layers=layers)
    folders = {"pretrained": [done.pop(BASE).path]}
    for method, name in METHODS.items():
        folders[name] = [each.path for folder, each in done.items() if folder.startswith(method)]
    return folders


def organism_accuracy(ids: Sequence[str], vectors: np.ndarray) -> float:
    """Return the balanced accuracy of telling bacteria from eukaryotes, on folds that the probe has not seen."""
    with GROUPS.open(encoding="utf-8", newline="") as file:
        groups = dict(csv.reader(file, delimiter="\t"))
    labels = np.array([groups[name] for name in ids])
    kept = np.isin(labels, ["bacterium", "eukaryote"])
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    folds = RepeatedStratifiedKFold(**SPLITS)
    return float(cross_val_score(probe, vectors[kept], labels[kept], cv=folds, scoring="balanced_accuracy").mean())


def composition_r2(shares: np.ndarray, vectors: np.ndarray) -> float:
    """Return the share of the variance of the hydrophobic share that is explained, on folds not seen."""
    probe = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 13)))
    return float(cross_val_score(probe, vectors, shares, cv=RepeatedKFold(**SPLITS), scoring="r2").mean())


def probe_all(folders: dict[str, list[Path]]) -> list[dict[str, Any]]:
    """Probe every layer of every network; return a row for each."""
    sequences = hf_perturb.demo.held_out_sequences()
    shares = np.array([sum(map(sequence.count, HYDROPHOBIC)) / len(sequence) for sequence in sequences])
    rows = []
    for kind, paths in folders.items():
        for path in paths:
            print(f"probe: {path.name}", file=sys.stderr)
            manifest = json.loads((path / "_manifest.json").read_text(encoding="utf-8"))
            for layer in manifest["inputs"]["layers"]:
                ids, vectors = hf_perturb.read_embeddings(path, f"mean_{layer}")
                scores = {"accuracy": organism_accuracy(ids, vectors), "r2": composition_r2(shares, vectors)}
                rows.append({"kind": kind, "network": path.name, "layer": layer, **scores})
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean over seeds, a row a layer."""
    table = []
    for layer in sorted({row["layer"] for row in rows}):
        cells: dict[str, Any] = {"layer": layer}
        for score in ("accuracy", "r2"):
            for kind in dict.fromkeys(row["kind"] for row in rows):
                found = [row[score] for row in rows if (row["kind"], row["layer"]) == (kind, layer)]
                cells[f"{score}, {kind}"] = f"{np.mean(found):.2f}"
        table.append(cells)
    return table
