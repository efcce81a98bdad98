"""Processes that write folders, and may die of it: forked from one that has imported torch once.

Run as a program, this file is that one: it reads jobs from stdin, a line of JSON each, and answers in kind.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# what a process does to the disk on its way, as `sys.addaudithook` names it
_MOMENTS = {"open", "fcntl.flock", "tempfile.mkdtemp", "ctypes.dlsym", "shutil.rmtree"}
_MOMENTS |= {f"os.{call}" for call in ("mkdir", "rename", "chmod", "remove", "rmdir", "listdir", "scandir")}


class Children:
    """Starts and awaits them; a context manager."""

    def __enter__(self) -> Children:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        words = [sys.executable, __file__]
        self.alive: set[int] = set()
        # without a terminal, whoever runs the tests
        self.server = subprocess.Popen(words, stdin=-1, stdout=-1, text=True, env=environment, start_new_session=True)
        assert json.loads(self.server.stdout.readline()) == {"threads": 1}, "to fork, it must have no other thread"
        return self

    def __exit__(self, *error: object) -> None:
        for pid in self.alive:  # of tests that failed; one that is stopped would wait for ever
            os.kill(pid, signal.SIGKILL)
        self.server.communicate()

    def _ask(self, **question: Any) -> dict[str, Any]:
        self.server.stdin.write(json.dumps(question, default=str) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def start(self, job: str, *tricks: str, **arguments: Any) -> int:
        """Start a process and return its id.

        Args:
            job: name of a function of this file.
            *tricks: names of functions of this file, called before.
            **arguments: of the job.
        """
        pid = self._ask(job=job, tricks=tricks, arguments=arguments)["pid"]
        self.alive.add(pid)
        return pid

    def wait(self, pid: int) -> tuple[int | str, str]:
        """Wait until a process ends or stops, and return its exit code (`-9` if it was killed) and what it said.

        One that has stopped, and is to be waited for again, has the code `"stopped"`.
        """
        code, said = self._ask(wait=pid).values()
        if code != "stopped":
            self.alive.remove(pid)
        return code, said

    def run(self, job: str, *tricks: str, **arguments: Any) -> tuple[int | str, str]:
        """Start a process, and wait for it."""
        return self.wait(self.start(job, *tricks, **arguments))


def started_children() -> Iterator[Children]:
    """Give them to the tests of a module. It is `pytest.fixture(started_children, scope="module")`."""
    with Children() as started:
        yield started


def create(**arguments: Any) -> None:
    """Build a variant."""
    from hf_perturb.variants.create import create_variant

    create_variant(**arguments)


def command(words: list[str]) -> None:
    """Run the command."""
    from hf_perturb.cli import script

    sys.argv = ["hf-perturb", *words]
    script()


def command_that_dies(words: list[str], placed: int) -> None:
    """Run the command, and die when so many folders are in place."""
    from hf_perturb.storage import folders

    put, turns = folders._put_in_place, iter(range(placed))

    def put_or_die(fresh: Path, out: Path) -> None:
        if next(turns, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        put(fresh, out)

    folders._put_in_place = put_or_die
    command(words)


def fill(out: str, text: str, die_at: int | None = None) -> str:
    """Write a folder of two files; return how many moments that has, or die at one of them."""
    from hf_perturb.storage.folders import whole_folder

    moments: list[str] = []

    def count(event: str, arguments: object) -> None:
        if event in _MOMENTS:
            if len(moments) == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            moments.append(event)

    sys.addaudithook(count)
    with whole_folder(Path(out)) as folder:
        for file in ("config.json", "model.safetensors"):
            (folder / file).write_text(text)
    return str(len(moments))


def no_exchange() -> None:
    """As on a file system that cannot swap two folders."""
    from hf_perturb.storage import folders

    folders._exchange = lambda one, other: False


def die_between_renames() -> None:
    """Die when the old folder has been moved away."""
    no_exchange()
    rename = Path.rename

    def last(self: Path, target: Path) -> None:
        rename(self, target)
        os.kill(os.getpid(), signal.SIGKILL)

    Path.rename = last


def stop_at_card() -> None:
    """Stop when the weights are written."""
    from hf_perturb.variants import create as variants

    card = variants.variant_card

    def stop(*arguments: Any) -> str:
        os.kill(os.getpid(), signal.SIGSTOP)
        return card(*arguments)

    variants.variant_card = stop


def stop_in_stream() -> None:
    """Stop when the first tensor is read, in a thread."""
    from hf_perturb.checkpoints.tensors import Tensor

    examine = Tensor.examine

    def stop(tensor: Tensor, look: bool = False) -> tuple[str, bool]:
        Tensor.examine = examine
        os.kill(os.getpid(), signal.SIGSTOP)
        return examine(tensor, look)

    Tensor.examine = stop


def small_files() -> None:
    """Let no file have more than 100 000 bytes, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def die_of_big_files() -> None:
    """As a program in another language, which dies of it."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    small_files()


def _live(job: str, tricks: list[str], arguments: dict[str, Any], pipe: int) -> int:
    os.dup2(pipe, 1)
    os.dup2(pipe, 2)
    # a shell that runs the tests in the background has it ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for trick in tricks:
            globals()[trick]()
        print(globals()[job](**arguments) or "", end="")
    except SystemExit as error:
        return int(error.code or 0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", end="")
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as folder:
        create(base="demo", out=f"{folder}/out", perturbation="reinit", jobs=1)  # imports everything
    threads = len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 1
    print(json.dumps({"threads": threads}), file=answers, flush=True)
    pipes = {}
    for line in sys.stdin:
        question = json.loads(line)
        if (pid := question.get("wait")) is None:
            reading, writing = os.pipe()
            if (pid := os.fork()) == 0:
                os._exit(_live(**question, pipe=writing))
            os.close(writing)
            pipes[pid] = reading
            answer = {"pid": pid}
        else:
            _, status = os.waitpid(pid, os.WUNTRACED)
            if os.WIFSTOPPED(status):
                answer = {"code": "stopped", "said": ""}
            else:
                with os.fdopen(pipes.pop(pid)) as pipe:
                    answer = {"code": os.waitstatus_to_exitcode(status), "said": pipe.read()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
