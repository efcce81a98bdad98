"""Run whole processes side by side, and measure what each takes. Standard library only, and that matters.

The peak resident memory that the system reports for a child is at least what its parent had when it started it, so
whoever measures must be small: torch is never imported here.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CREATE = [sys.executable, "-m", "hf_perturb", "create"]
# method and axis by what `--only` calls them
VARIANTS = {
    "reinit": ("reinit", None),
    **{f"resample-{axis}": ("resample", axis) for axis in ("embedding", "rows", "outputs", "all")},
    "gaussian": ("gaussian", None),
}
# what a synthetic base of each size takes on disk, in bytes; one of them has small tensors, but thousands
MANY = "35M-many"
SIZES = {"8M": 30e6, "35M": 134e6, MANY: 136e6, "150M": 593e6, "650M": 2610e6, "3B": 11357e6}
GB, MB = 1e9, 1e6
# of instruction sets, those that draws and digests are fast with
_INSTRUCTIONS = r"\b(?:sha_ni|avx2|avx512|sha2|asimd|sve)"
_POLL = 0.005  # seconds


@dataclass(frozen=True)
class Run:
    """One whole process: wall time in seconds, peak memory in bytes, and what it printed.

    Args:
        seconds: until it has ended, and what it wrote is on the disk.
        peak: resident memory, files that it mapped included.
        anonymous: memory that the system cannot drop and read again; 0 where there is no `/proc`.
        printed: on stdout.
    """

    seconds: float
    peak: int
    anonymous: int
    printed: str


def say(text: str) -> None:
    """Say what is being done, on stderr."""
    print(f"benchmark: {text}", file=sys.stderr, flush=True)


def measure(command: list[str], out: Path | None = None) -> Run:
    """Run a command to its end.

    Args:
        command: what to run.
        out: a file or folder that it may write, which is to be on the disk at the end.

    Raises:
        SystemExit: with the end of what it said, if it failed.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as errors:
        begin = time.perf_counter()
        child = subprocess.Popen(command, stdout=printed, stderr=errors, env=environment)
        seen = [0]
        threading.Thread(target=_watch, args=(child.pid, seen), daemon=True).start()
        try:
            _, status, usage = os.wait4(child.pid, 0)  # its own usage; getrusage has the largest of all children so far
        except BaseException:
            child.kill()
            child.wait()
            raise
        if out is not None:
            sync(out)
        seconds = time.perf_counter() - begin
        child.returncode = os.waitstatus_to_exitcode(status)
        printed.seek(0)
        errors.seek(0)
        if child.returncode:
            said = errors.read()[-2000:].strip()
            raise SystemExit(f"benchmark: exit code {child.returncode} from {' '.join(command)}\n{said}")
        unit = 1 if sys.platform == "darwin" else 1024
        return Run(seconds, usage.ru_maxrss * unit, max(seen), printed.read())


def _watch(process: int, seen: list[int]) -> None:
    """Note the anonymous memory of a process, again and again until it ends."""
    status = Path(f"/proc/{process}/status")
    try:
        while found := re.search(r"^RssAnon:\s+(\d+) kB", status.read_text(encoding="utf-8"), re.MULTILINE):
            seen.append(int(found[1]) * 1024)
            time.sleep(_POLL)
    except OSError:
        return


def alternate(
    sides: dict[str, list[str]], repeat: int, before: Callable[[str], object], out: Path | None = None
) -> dict[str, list[Run]]:
    """Run the sides in turn, `repeat` times over.

    Args:
        sides: commands by name.
        repeat: how often each is run.
        before: called with the name before each run.
        out: what any of them may write; it is synced to the disk, and removed after each run.
    """
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for _ in range(repeat):
        for name, command in sides.items():
            before(name)
            os.sync()  # it shall not wait for what another one left to write
            run = measure(command, out)
            if out is not None:
                remove(out)
            runs[name].append(run)
            say(f"  {name}: {run.seconds:.2f} s, {run.peak / MB:.0f} MB, {run.anonymous / MB:.0f} of them anonymous")
    return runs


def figures(runs: list[Run]) -> dict[str, Any]:
    """Return what the tables and the JSON hold of the runs of one side."""
    seconds = [run.seconds for run in runs]
    return {
        "seconds": seconds,
        "best_seconds": min(seconds),
        "median_seconds": statistics.median(seconds),
        "peak_bytes": max(run.peak for run in runs),
        "anonymous_bytes": max(run.anonymous for run in runs),
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


def cold(path: Path) -> None:
    """Drop a file from the page cache, so that the next process reads it from the disk."""
    sync(path)  # what is still to be written stays there
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sync(path: Path) -> None:
    """Wait until a file, or all files of a folder, are on the disk; nothing need be there."""
    for file in (path, *path.rglob("*")):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


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
    for name in ("hf-perturb", "numpy", "torch", "transformers", "safetensors", "fair-esm"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {**processor(), "cores": os.cpu_count(), "memory_bytes": memory(), "versions": versions}


def processor() -> dict[str, Any]:
    """Return the name of the processor, and those of its instruction sets that matter here."""
    try:
        said = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        said = ""
    name = re.search(r"^model name\s*: (.+)$", said, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*: (.+)$", said, re.MULTILINE)
    sets = re.findall(_INSTRUCTIONS, flags[1]) if flags else []
    return {"processor": name[1] if name else platform.machine(), "instructions": sorted({*sets})}


def write_json(data: dict[str, Any], path: Path | None) -> None:
    """Write the data where the user asked for it."""
    if path is not None:
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
