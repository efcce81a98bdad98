"""Ctrl-C ends every command with 130 and one line, whatever it is at, and nothing else that imports the package."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from hf_perturb import interrupts
from hf_perturb.cli import main

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="signals of Unix")

COMMAND = [sys.executable, "-m", "hf_perturb"]
MATRIX = ["create", "demo", "out", "--method=reinit", "--method=resample", "--seed=0-149"]
BEGUN = 0.3  # seconds; before that Python itself begins, which is not ours to keep quiet


def interruptible() -> None:
    # a shell that runs the tests in the background has it ignored
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def started(*words: str, code: str = "", **options) -> subprocess.Popen:
    """Start the command, or a piece of Python, without a terminal."""
    call = [sys.executable, "-c", code, *words] if code else [*COMMAND, *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(call, **pipes, preexec_fn=interruptible, start_new_session=True, **options)


@pytest.mark.parametrize("seed", range(5))
def test_at_any_moment(seed, tmp_path):
    process = started(*MATRIX, cwd=tmp_path)
    time.sleep(random.Random(seed).uniform(BEGUN, 2))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert len(said.splitlines()) == 1
    assert "interrupted; nothing" in said
    assert not (tmp_path / "out").exists()


def test_at_a_terminal_it_dies_of_the_signal(tmp_path):
    """A shell, which says 130 of that, ends its own loop for nothing else."""
    pty = pytest.importorskip("pty")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        interruptible()
        os.execv(sys.executable, [*COMMAND, *MATRIX])
    time.sleep(1)
    os.write(terminal, b"\x03")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGINT
    assert os.listdir(tmp_path) == []


WAITING = """
import sys, time, hf_perturb
from hf_perturb import interrupts
from hf_perturb.cli import main, script
sys.argv[1:] = ["list"]
def wait(options):
    print("begun", flush=True)
    {}
main.__globals__["_COMMANDS"]["list"] = wait
script()
"""
TROUBLE = {
    "while it waits": "time.sleep(60)",
    "where a library makes another error of it": """
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        raise ImportError("numpy failed to import")""",
    "where a library makes an error of ours of it": """
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        raise ValueError("it was something else")""",
    "in what is thrown away": """
    class Thing:
        def __del__(self):
            time.sleep(60)
    Thing()
    time.sleep(60)""",
    "in an import": """
    from pathlib import Path
    Path("slow.py").write_text("import time\\nfor i in range(100): time.sleep(.01)\\nprint('whole', flush=True)")
    sys.path.insert(0, ".")
    import slow
    time.sleep(60)""",
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_nothing_swallows_it(trouble, tmp_path):
    process = started(code=WAITING.format(TROUBLE[trouble]), cwd=tmp_path)
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=30)
    assert (process.returncode, said.count("\n"), "interrupted" in said) == (130, 1, True), said
    assert out == ("whole\n" if trouble == "in an import" else "")


def test_who_imports_the_package_keeps_his_own_signals():
    code = "import signal, hf_perturb, hf_perturb.cli; print(signal.getsignal(2) is signal.default_int_handler)"
    out, _ = started(code=code).communicate(timeout=60)
    assert out == "True\n"
    before = signal.getsignal(signal.SIGINT)
    assert main(["list"]) == 0
    assert signal.getsignal(signal.SIGINT) is before
    assert not interrupts.noticed()


def test_while_the_words_are_read(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setitem(main.__globals__, "make_parser", interrupted)
    assert main(["verify", "demo"]) == 130
    assert capsys.readouterr().err.startswith("hf-perturb verify: interrupted; ")
