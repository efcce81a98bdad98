"""Downloads as a user has them: two processes at once, and a terminal."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.downloading import (
    CONTENT,
    cache_folder,
    count_naps,
    files_in,
    published,
    sum_of,
)
from support.file_server import serve

from hf_perturb.checkpoints.catalog import Entry

server = pytest.fixture(serve)
naps = pytest.fixture(count_naps)
folder = pytest.fixture(cache_folder)


PROGRAM = """\
import sys
from dataclasses import replace
from hf_perturb.checkpoints.catalog import CATALOG
from hf_perturb.checkpoints.downloads import download

print("ready", flush=True)
sys.stdin.readline()
url, sha256 = sys.argv[1:]
print(download(replace(CATALOG["carp_600k"], url=url, sha256=sha256)))
"""


def start(entry: Entry, cache: Path, stderr: int = subprocess.PIPE) -> subprocess.Popen:
    """Start a process that downloads, and waits for a line before it does."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_HUB", "TQDM"))}
    environment |= {"TORCH_HOME": str(cache), "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", PROGRAM, entry.url, entry.sha256]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=stderr, env=environment, text=True)


def test_two_processes_at_once_end_with_a_right_file(server, tmp_path):
    entry = published(server, checksum=sum_of(CONTENT))
    server.seconds = 1.0
    with start(entry, tmp_path / "cache") as one, start(entry, tmp_path / "cache") as other:
        processes = (one, other)
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        outputs = [process.communicate(timeout=60) for process in processes]
    folder = tmp_path / "cache" / "hub" / "checkpoints"
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert [out.strip() for out, _ in outputs] == [str(folder / "tiny.pt")] * 2
    assert (folder / "tiny.pt").read_bytes() == CONTENT
    assert files_in(folder) == ["tiny.pt"]


def set_width(terminal: int, columns: int) -> None:
    """Give a terminal a width: one without has no room for a progress bar."""
    import fcntl
    import struct
    import termios

    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal to write to")
def test_progress_is_shown_on_a_terminal_and_nowhere_else(server, tmp_path):
    entry = published(server, checksum=sum_of(CONTENT))
    screen, terminal = os.openpty()
    set_width(terminal, 100)
    with start(entry, tmp_path / "shown", terminal) as one, start(entry, tmp_path / "quiet") as other:
        os.close(terminal)
        processes = (one, other)
        _, silent = [process.communicate("go\n", timeout=60)[1] for process in processes]
    shown = os.read(screen, 1 << 16).decode()
    os.close(screen)
    assert [process.returncode for process in processes] == [0, 0], silent
    assert silent.count("\n") <= 1
    assert "%" not in silent
    assert re.search(r"tiny\.pt: +100%", shown), shown
