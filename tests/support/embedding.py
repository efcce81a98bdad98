"""FASTAs, small networks on disk, and the command in processes of its own."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

import hf_perturb

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"


def draw(lengths: Iterable[int], seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    return ["".join(generator.choices(RESIDUES, k=length)) for length in lengths]


def write_fasta(path: Path, sequences: Sequence[str]) -> Path:
    path.write_text("".join(f">s{i} of a test\n{sequence}\n" for i, sequence in enumerate(sequences)))
    return path


def write_carp(path: Path, seed: int = 0) -> Path:
    """Write a network that is done at once."""
    torch.manual_seed(seed)
    hf_perturb.CarpForMaskedLM(
        hf_perturb.CarpConfig(hidden_size=16, num_hidden_layers=2, embedding_size=4)
    ).save_pretrained(path)
    return path


def read_all(out: Path) -> dict[str, tuple[list[str], list[np.ndarray]]]:
    """Return ids and vectors of every column."""
    schema = hf_perturb.embedding.manifest.read_manifest(Path(out)).schema
    read = {name: hf_perturb.read_embeddings(out, name) for name in [*schema.vectors, *schema.residues]}
    return {name: (ids, list(vectors)) for name, (ids, vectors) in read.items()}


def assert_same(one: Path, other: Path) -> None:
    """Ids and lengths to the letter, vectors within 1e-5."""
    from pyarrow import parquet

    tables = [parquet.read_table(out, columns=["id", "length"]) for out in (one, other)]
    assert tables[0].equals(tables[1])
    ours, theirs = read_all(one), read_all(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        for left, right in zip(ours[name][1], theirs[name][1], strict=True):
            np.testing.assert_allclose(left, right, rtol=0, atol=1e-5, err_msg=name)


def environment(**more: object) -> dict[str, str]:
    path = os.pathsep.join([str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    ours = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return {**os.environ, **ours, **{name: str(value) for name, value in more.items()}}


def command(*words: object, **more: object) -> subprocess.CompletedProcess[str]:
    """Run `hf-perturb embed` in a process of its own."""
    call = [sys.executable, "-m", "hf_perturb", "embed", *map(str, words)]
    return subprocess.run(call, capture_output=True, text=True, check=False, env=environment(**more), timeout=120)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
