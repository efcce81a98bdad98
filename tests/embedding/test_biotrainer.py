"""biotrainer's autoeval evaluates a base and a control by our functions, where it is installed (1.4.0 and 2.1.1)."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from support.embedding import RESIDUES, draw

import hf_perturb

autoeval = pytest.importorskip("biotrainer.autoeval")
HYDROPHOBIC = frozenset("AILMFVW")
TASKS = ("scl", "secondary_structure")  # of a protein, and of its residues
pytestmark = pytest.mark.filterwarnings("ignore")  # it is none of ours


def write_tasks(folder: Path) -> list[str]:
    """Write two small tasks where autoeval looks for its own, and return their sequences."""
    sequences = draw(random.Random(0).choices(range(20, 41), k=60))
    for task in TASKS:
        lines = []
        for number, sequence in enumerate(sequences):
            states = "".join("H" if letter in HYDROPHOBIC else "C" for letter in sequence)
            share = states.count("H") / len(sequence)
            target = states if task == TASKS[1] else "inside" if share > len(HYDROPHOBIC) / len(RESIDUES) else "outside"
            kind = "train" if number < 40 else "val" if number < 50 else "test"
            lines.append(f">s{number} TARGET={target} SET={kind} VALIDATION={kind == 'val'}\n{sequence}\n")
        path = folder / "PBC" / "supervised" / task / f"{task}.fasta"
        path.parent.mkdir(parents=True)
        path.write_text("".join(lines))
    return sequences


def evaluate(name: str, functions: hf_perturb.EmbeddingFunctions, data: Path, out: Path):
    """Run autoeval as either generation of it is called."""
    if not hasattr(autoeval, "autoeval_pipeline"):
        evaluation = autoeval.AutoEval(name, out, custom_storage_path=data, custom_embedder=functions)
        return evaluation.pbc_supervised().run(device="cpu")
    given = {
        "custom_embedding_function_per_residue": functions.per_residue,
        "custom_embedding_function_per_sequence": functions.per_sequence,
    }
    steps = autoeval.autoeval_pipeline(name, "PBC", output_dir=out, custom_storage_path=data, device="cpu", **given)
    return [*steps][-1].final_report


def test_autoeval_evaluates_a_base_and_a_control(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    if hasattr(autoeval, "autoeval_pipeline"):
        from biotrainer.autoeval.pbc.pbc_data_handler import PBCDataHandler as Handler
    else:
        from biotrainer.autoeval.frameworks.pbc_supervised.pbc_supervised_data_handler import (
            PBCSupervisedDataHandler as Handler,
        )
    monkeypatch.setattr(Handler, "_get_all_dataset_and_split_names", lambda *_: [(task, None) for task in TASKS])
    sequences = write_tasks(tmp_path)
    for name, perturbation in {"demo": None, "demo-reinit-seed42": "reinit"}.items():
        functions = hf_perturb.embedding_functions("demo", layer=8, perturbation=perturbation)
        report = evaluate(name, functions, tmp_path, tmp_path / "out" / name)
        said = str(report.model_dump())
        assert all(f"{task}" in said for task in TASKS)
        for pattern, function in {"[!r]*": functions.per_residue, "reduced*": functions.per_sequence}.items():
            [file] = (tmp_path / "out" / name).rglob(f"{pattern}.h5")
            wanted = sorted((tensor.numpy() for _, tensor in function(sequences)), key=lambda each: each.tobytes())
            with h5py.File(file) as stored:
                found = sorted((dataset[()] for dataset in stored.values()), key=lambda each: each.tobytes())
            assert len(found) == len(sequences)
            for one, other in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(one, other)
