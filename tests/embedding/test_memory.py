"""Memory does not grow with the FASTA."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")
if not Path("/proc/self/status").exists():
    pytest.skip("the peak of a process is read from /proc", allow_module_level=True)

from support.embedding import RESIDUES, environment, write_carp

import hf_perturb

# 3 shards of 1 MiB, and 37 of the same
FEW, MANY = 2_000, 30_000
RESIDUES_EACH = 20
PEAK = """
import sys, hf_perturb
done = hf_perturb.embed(*sys.argv[1:], per_residue=True)
[line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(done.records, line.split()[1])
"""


def peak(base: Path, records: int) -> int:
    """Embed so many different records; return the most memory that the process had, in MiB."""
    fasta = base.with_name(f"{records}.fasta")
    with fasta.open("w") as file:
        for number in range(records):
            digits = [number // 20**place % 20 for place in range(RESIDUES_EACH)]
            file.write(f">record{number}\n{''.join(RESIDUES[digit] for digit in digits)}\n")
    call = [sys.executable, "-c", PEAK, *map(str, (base, fasta, fasta.with_suffix(".out")))]
    done = subprocess.run(call, capture_output=True, text=True, env=environment(), timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    count, kibibytes = map(int, done.stdout.split())
    assert count == records
    return kibibytes // 1024


def test_fifteen_times_the_records_take_no_more(tmp_path):
    base = write_carp(tmp_path / "base")
    few, many = peak(base, FEW), peak(base, MANY)
    shards = [len(list(tmp_path.glob(f"{count}.out/shard-*"))) for count in (FEW, MANY)]
    assert shards[1] >= 10 * shards[0] > 10
    # all vectors of the larger one are 38 MiB
    assert many - few < 12, f"{few} MiB for {FEW} records, {many} MiB for {MANY}"
    assert len(hf_perturb.read_embeddings(tmp_path / f"{MANY}.out", "mean_2")[0]) == MANY
