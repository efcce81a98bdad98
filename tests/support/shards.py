"""A small folder of embeddings, as a run leaves it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from hf_perturb.embedding.manifest import Schema, Shard, read_manifest
from hf_perturb.embedding.store import Store, open_store, store_lock

TESTS = Path(__file__).parent.parent

INPUTS = {"model": "sha256:" + "a" * 64, "fasta": {"digest": "sha256:" + "b" * 64}, "layers": [6, 12], "pool": ["mean"]}
SCHEMA = Schema(("unknown",), {"layer6_mean": 5, "layer12_mean": 3}, nullable=True)
FIXED = replace(SCHEMA, nullable=False)
RESIDUES = Schema(residues={"layer6": 4}, nullable=True)


def plan(*records: int) -> list[Shard]:
    firsts = np.cumsum([0, *records]).tolist()
    return [Shard(i, first, n, 7 * n) for i, (first, n) in enumerate(zip(firsts, records, strict=False))]


def attach_store(out: Path) -> Store:
    return Store(out, read_manifest(out))


def start(out: Path, *records: int, schema: Schema = SCHEMA, force: bool = False, **inputs) -> Store:
    with store_lock(out):
        return open_store(out, {**INPUTS, **inputs}, {"name": "esm"}, plan(*records or (3, 3, 2)), schema, force)


def content(shard: Shard, schema: Schema = SCHEMA) -> dict:
    """What belongs in a shard; every fourth record of all has no residues."""
    rng, n = np.random.default_rng(shard.number), shard.records
    rows = np.arange(shard.first, shard.first + n)
    lengths = np.where(schema.nullable & (rows % 4 == 1), 0, rows % 7 + 1).astype(np.int32)
    columns = {"id": [f"seq{row}" for row in rows], "length": lengths}
    columns |= {name: rows.astype(np.int32) for name in schema.integers}
    columns |= {name: rng.standard_normal((n, width), np.float32) for name, width in schema.vectors.items()}
    for name, width in schema.residues.items():
        columns[name] = [rng.standard_normal((length, width), np.float32) for length in lengths]
    return columns


def fill(store: Store) -> Store:
    for shard in store.missing():
        store.write(shard, content(shard, store.manifest.schema))
    store.finish({"seconds": 1})
    return store


def numbers(shards: list[Shard]) -> list[int]:
    return [shard.number for shard in shards]


def child(code: str, *words: object) -> subprocess.CompletedProcess:
    """Run code in another process that has what is above here."""
    imports = "import os, signal\nfrom hf_perturb.embedding import store as module\nfrom support.shards import *\n"
    path = [sys.executable, "-c", imports + code, *map(str, words)]
    return subprocess.run(path, cwd=TESTS, capture_output=True, text=True, check=False)
