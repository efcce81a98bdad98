"""Small data and networks for studies, and what is read of what a study wrote."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyarrow import parquet

import hf_perturb
from hf_perturb.checkpoints.tokenizers import save_tokenizer
from support.models import ALPHABETS, small_model

HYDROPHOBIC = "AVILMFWC"
SETS = ("test", "train", "validation", "train")


def proteins(count: int, shortest: int = 30) -> list[str]:
    """Cut real sequences short, each to a length of its own."""
    held = [sequence for sequence in hf_perturb.demo.held_out_sequences() if len(sequence) > shortest + 50]
    return [sequence[5 : 5 + shortest + number % 23] for number, sequence in enumerate(held[:count])]


def share(sequence: str, letters: str = HYDROPHOBIC) -> float:
    return sum(map(sequence.count, letters)) / len(sequence)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_regression(path: Path, count: int = 160) -> Path:
    """Write FLIP's columns, of how hydrophobic proteins are, and how charged their beginnings."""
    given = enumerate(proteins(count))
    rows = [
        (
            sequence,
            share(sequence) + share(sequence[:20], "KR"),
            "test" if number % 4 == 0 else "train",
            number % 4 == 1,
        )
        for number, sequence in given
    ]
    return write_csv(path, ["sequence", "target", "set", "validation"], rows)


def write_base(folder: Path, network: str = "carp", seed: int = 0) -> Path:
    """Write a small network with its tokenizer."""
    sizes = {"num_hidden_layers": 3} | ({"embedding_size": 8} if network == "carp" else {})
    small_model(network, seed=seed, **sizes).save_pretrained(folder)
    save_tokenizer(ALPHABETS[network], folder)
    return folder


@torch.no_grad()
def plain_states(model: Any, tokenizer: Any, sequences: Sequence[str]) -> list[list[np.ndarray]]:
    """Return the representations of residues, `(length, width)`, of each sequence, by layer."""
    states = []
    for sequence in sequences:
        given = tokenizer(sequence, return_tensors="pt", return_special_tokens_mask=True)
        kept = given.pop("special_tokens_mask")[0] == 0
        hidden = model(**given, output_hidden_states=True).hidden_states
        states.append([state[0, kept].double().numpy() for state in hidden])
        assert len(states[-1][0]) == len(sequence)
    return [list(layer) for layer in zip(*states, strict=True)]


def predictions(out: Path) -> list[dict[str, Any]]:
    return parquet.read_table(out / "predictions.parquet").to_pylist()


def snapshot(out: Path) -> dict[str, bytes]:
    """Return what a study wrote, but for embeddings, whose footers have times."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def times(out: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
