"""A FASTA is cut into the same shards wherever it is read, and surveying it takes no memory to speak of."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import os
import random
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import example, given, settings, strategies as st

from hf_perturb.embedding.fasta import read_records
from hf_perturb.embedding.survey import LEAST_RESIDUES, SHARDS, Shard, ShardLimits, Survey, iterate_shards, survey
from hf_perturb.errors import FastaError

DEMO = Path(str(files("hf_perturb.demo") / "held_out.fasta.gz"))
WIDE = ShardLimits(records=10**9, residues=10**9, bytes=10**18)


def write(path: Path, records: list[tuple[str, str]], width: int = 60) -> Path:
    text = "".join(
        f">{name}\n" + "".join(f"{raw[i : i + width]}\n" for i in range(0, len(raw), width)) for name, raw in records
    )
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def survey_of(lengths: list[int], limits: ShardLimits) -> Survey:
    with tempfile.TemporaryDirectory() as folder:
        records = [(str(i), "M" * length) for i, length in enumerate(lengths)]
        return survey(write(Path(folder, "drawn.fasta"), records, 10**6), limits)


def test_the_demo():
    records = list(read_records(DEMO))
    found = survey(DEMO, WIDE)
    longest = max(records, key=lambda record: len(record.sequence))
    assert (found.records, found.longest, found.longest_name) == (len(records), len(longest.sequence), longest.id)
    assert found.residues == sum(len(record.sequence) for record in records)
    lines = "".join(f"{record.id}\t{record.sequence}\n" for record in records)
    assert found.digest == f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
    assert len(found.shards) > 1
    read = list(iterate_shards(DEMO, found.shards))
    assert tuple(shard for shard, _ in read) == found.shards
    assert [record for _, held in read for record in held] == records


limits_drawn = st.builds(
    ShardLimits,
    records=st.integers(1, 30),
    residues=st.integers(1, 60_000),
    bytes=st.integers(1, 100_000),
    record_bytes=st.integers(0, 2_000),
    residue_bytes=st.integers(0, 3),
)


@given(st.lists(st.integers(0, 3_000) | st.sampled_from([0, 16_384, 40_000]), min_size=1, max_size=60), limits_drawn)
@example([100, 50, 0, 50], ShardLimits(records=99, residues=60, bytes=10**9))
@example([10] * 5, ShardLimits(records=99, residues=20, bytes=10**9))
@settings(deadline=None)
def test_shards_partition_the_records_within_the_limits(lengths, limits):
    found = survey_of(lengths, limits)
    most = min(limits.residues, max(LEAST_RESIDUES, sum(lengths) // SHARDS))
    assert (found.records, found.residues, found.longest) == (len(lengths), sum(lengths), max(lengths))
    assert found.longest_name == str(lengths.index(max(lengths)))
    end = 0
    for number, shard in enumerate(found.shards):
        assert (shard.number, shard.first) == (number, end)
        assert shard.records > 0
        end += shard.records
        assert shard.residues == sum(lengths[shard.first : end])
        cost = shard.records * limits.record_bytes + shard.residues * limits.residue_bytes
        within = shard.records <= limits.records and shard.residues <= most and cost <= limits.bytes
        assert within or shard.records == 1
    assert end == len(lengths)


def test_residues_that_are_not_kept_cost_nothing(tmp_path):
    path, limits = write(tmp_path / "a.fasta", [(str(i), "M" * 50) for i in range(100)]), {"residues": 10**9}
    limits |= {"bytes": 1_000, "record_bytes": 10, "residue_bytes": 10}
    every = survey(path, ShardLimits(**limits))
    some = survey(path, ShardLimits(**limits), kept=lambda record: 50 if record.index < 10 else 4)
    assert [shard.records for shard in every.shards] == [1] * 100
    assert [shard.records for shard in some.shards] == [1] * 9 + [10] + [20] * 4 + [1]
    assert [shard.residues for shard in some.shards] == [50 * shard.records for shard in some.shards]


@given(st.lists(st.integers(0, 400), min_size=1, max_size=30), limits_drawn, st.integers(1, 99))
@settings(deadline=None, max_examples=30)
def test_packing_and_line_widths_do_not_matter(lengths, limits, width):
    records = [(f"r{i % 7}", "MKVL" * (length // 4) + "w*") for i, length in enumerate(lengths)]
    with tempfile.TemporaryDirectory() as folder:
        plain = survey(write(Path(folder, "one.fasta"), records), limits)
        assert survey(write(Path(folder, "other.gz"), records, width), limits) == plain


def test_content_does_matter(tmp_path):
    ways = [[("a", "MK"), ("b", "V")], [("b", "MK"), ("a", "V")], [("a", "M"), ("b", "KV")], [("a", "MK"), ("b", "W")]]
    digests = {survey(write(tmp_path / "a.fasta", records), WIDE).digest for records in ways}
    assert len(digests) == len(ways)


@pytest.mark.parametrize(
    ("records", "length", "residues", "shards"),
    [
        (1_000, 16, 10**9, 1),  # less than a device is busy with
        (64, LEAST_RESIDUES, 10**9, 64),
        (512, LEAST_RESIDUES // 2, 10**9, SHARDS),  # as many as serve some processes
        (512, LEAST_RESIDUES, 3 * LEAST_RESIDUES, 171),  # large: what was asked for
        (64, 100, 100, 64),
        (64, 100, 200, 32),
    ],
)
def test_small_files_are_cut_for_several_processes(records, length, residues, shards):
    limits = ShardLimits(records=10**9, residues=residues, bytes=10**18)
    assert len(survey_of([length] * records, limits).shards) == shards


def test_some_shards_are_read_in_one_pass_that_ends_with_the_last(tmp_path):
    path = write(tmp_path / "a.fasta", [(f"r{i}", "MKV" * (i % 5)) for i in range(200)])
    shards = survey(path, ShardLimits(records=7, residues=50, bytes=10**9)).shards
    assert len(shards) > 20
    with path.open("ab") as file:
        file.write(b">late\nM\xff\n" * 9_999)
    records = dict(enumerate(itertools.islice(read_records(path), 200)))
    for wanted in (shards, shards[1::3], shards[:1], shards[-1:], shards[5:9], ()):
        read = list(iterate_shards(path, wanted))
        assert [shard for shard, _ in read] == list(wanted)
        for shard, held in read:
            assert held == [records[i] for i in range(shard.first, shard.first + shard.records)]
    assert list(iterate_shards(tmp_path / "absent", ())) == []


def test_a_file_that_changes_is_noticed(tmp_path):
    path = write(tmp_path / "a.fasta", [(f"r{i}", "MKV") for i in range(40)])
    shards = survey(path, ShardLimits(records=10, residues=10**9, bytes=10**9)).shards
    write(path, [(f"r{i}", "MKV") for i in range(35)])
    read = iterate_shards(path, shards)
    assert [next(read)[0] for _ in range(3)] == list(shards[:3])
    with pytest.raises(FastaError, match=r"a.fasta changed .* 10 records from record 31 on had 30 .* now 5 have 15"):
        next(read)
    with pytest.raises(FastaError, match="changed while it was read"):
        list(iterate_shards(path, [Shard(9, 90, 10, 30)]))
    write(path, [(f"r{i}", "MKV" if i != 15 else "MK") for i in range(40)])
    read = iterate_shards(path, shards)
    next(read)
    with pytest.raises(FastaError, match=r"10 records from record 11 on had 30 residues, now 10 have 29"):
        next(read)


_PEAK = """
import re, sys
from pathlib import Path
from hf_perturb.embedding.survey import ShardLimits, iterate_shards, survey

def peak():  # MiB
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

limits = ShardLimits(records=1_000, residues=1_000_000, bytes=10**9)
survey(Path(sys.argv[1]), limits)
before = peak()
found = survey(Path(sys.argv[2]), limits)
for _ in iterate_shards(Path(sys.argv[2]), found.shards): pass
print(found.records, peak() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads its memory from /proc")
def test_memory_does_not_grow_with_the_file(tmp_path):
    pool = "".join(random.Random(0).choices("ACDEFGHIKLMNPQRSTVWY", k=200_000))
    with (tmp_path / "large.fasta").open("w") as file:
        file.writelines(f">r{i} of many\n{pool[i : i + 1_000]}\n" for i in range(100_000))
    small = write(tmp_path / "small.fasta", [("a", "MK")])
    command = [sys.executable, "-c", _PEAK, str(small), str(tmp_path / "large.fasta")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert told[0] == "100000"
    assert float(told[1]) < 15, "MiB, for 96 MiB of residues"
