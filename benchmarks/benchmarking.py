"""Run whole processes side by side, and measure what each takes. Standard library only, and that matters.

The peak memory that the system reports for a child is at least what its parent had when it started it, so whoever
measures must be small: torch is never imported here.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CREATE = [sys.executable, "-m", "hf_perturb", "create"]
# method and axis by what `--only` calls them; without an axis, the family's default
VARIANTS = {"reinit": ("reinit", None), "resample": ("resample", None), "resample-all": ("resample", "all")}
# what a synthetic base of each size takes on disk, in bytes
SIZES = {"8M": 30e6, "85M": 341e6, "650M": 2610e6, "3B": 11357e6}
GB, MB = 1e9, 1e6


@dataclass(frozen=True)
class Run:
    """One whole process: wall time in seconds, peak resident memory in bytes, and what it printed."""

    seconds: float
    peak: int
    printed: str


def say(text: str) -> None:
    """Say what is being done, on stderr."""
    print(f"benchmark: {text}", file=sys.stderr, flush=True)


def measure(command: list[str]) -> Run:
    """Run a command to its end.

    Raises:
        SystemExit: with the end of what it said, if it failed.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        begin = time.perf_counter()
        child = subprocess.Popen(command, stdout=out, stderr=errors, env=environment)
        try:
            _, status, usage = os.wait4(child.pid, 0)  # its own usage; getrusage has the largest of all children so far
        except BaseException:
            child.kill()
            child.wait()
            raise
        seconds = time.perf_counter() - begin
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        if child.returncode:
            said = errors.read()[-2000:].strip()
            raise SystemExit(f"benchmark: exit code {child.returncode} from {' '.join(command)}\n{said}")
        unit = 1 if sys.platform == "darwin" else 1024
        return Run(seconds, usage.ru_maxrss * unit, out.read())


def alternate(
    sides: dict[str, list[str]], repeat: int, before: Callable[[], None], after: Callable[[], None]
) -> dict[str, list[Run]]:
    """Run the sides in turn, `repeat` times over.

    Args:
        sides: commands by name.
        repeat: how often each is run.
        before: called before each round.
        after: called after each run, to remove what it wrote.
    """
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for _ in range(repeat):
        before()
        for name, command in sides.items():
            runs[name].append(measure(command))
            after()
            os.sync()  # the next one shall not wait for what this one left to write
            say(f"  {name}: {runs[name][-1].seconds:.2f} s, {runs[name][-1].peak / MB:.0f} MB")
    return runs


def figures(runs: list[Run]) -> dict[str, Any]:
    """Return what the tables and the JSON hold of the runs of one side."""
    seconds = [run.seconds for run in runs]
    return {
        "seconds": seconds,
        "best_seconds": min(seconds),
        "median_seconds": statistics.median(seconds),
        "peak_bytes": max(run.peak for run in runs),
    }


def weights_of(base: Path) -> Path:
    """Return the weights file of a base.

    Raises:
        SystemExit: if there is not exactly one.
    """
    path = base / "model.safetensors"
    if not path.is_file() or not (base / "config.json").is_file():
        raise SystemExit(f"benchmark: {base} has no config.json and model.safetensors (the peer cannot read shards)")
    return path


def warm(path: Path) -> None:
    """Read a file, so that every process finds it in the page cache."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass


def remove(path: Path) -> None:
    """Remove a file or a folder that may be there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def demand_room(folder: Path, needed: float) -> None:
    """Refuse to start when the disk has too little room.

    Raises:
        SystemExit: if less than `needed` bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SystemExit(
            f"benchmark: {folder} has {free / GB:.1f} GB free, {needed / GB:.1f} GB are needed; give another --work"
        )


def peer_fits(size: int) -> bool:
    """Whether the study's procedure, which holds the weights two to three times, fits this machine's memory."""
    return 3 * size <= memory()


def memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    versions = {}
    for name in ("hf-perturb", "torch", "transformers", "safetensors", "fair-esm"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {"cores": os.cpu_count(), "memory_bytes": memory(), "versions": versions}


def write_json(data: dict[str, Any], path: Path | None) -> None:
    """Write the data where the user asked for it."""
    if path is not None:
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
