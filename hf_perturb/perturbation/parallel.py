"""Work on many tensors at once: numpy and BLAKE3 let go of the interpreter's lock, so threads are enough."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Lock
from typing import Any, TypeVar

from hf_perturb.errors import PerturbationError

Item = TypeVar("Item")

# torch has one number of threads for the process, so the last of several users puts it back
_lock, _users = Lock(), 0
_threads: int | None = None


def for_each(work: Callable[[Item], object], items: Iterable[Item], jobs: int | None = None) -> None:
    """Call `work` on every item, several at a time; the first error stops what has not begun.

    Args:
        work: must not depend on the order of its calls.
        items: taken by the calling thread, in order, when there is room for one more; what a generator makes is so
            bounded by the number of jobs.
        jobs: calls at a time; `None` for one a processor.

    Raises:
        PerturbationError: if that is none.
    """
    if jobs is None:
        jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if jobs < 1:
        raise PerturbationError(f"jobs: got {jobs}; allowed: 1 or more")
    with _one_thread_each():
        if jobs == 1:
            for item in items:
                work(item)
            return
        with ThreadPoolExecutor(jobs) as pool:
            running: set[Future[Any]] = set()
            try:
                for item in items:
                    running.add(pool.submit(work, item))
                    # one more than there are threads, so that none waits for the next item
                    if len(running) > jobs:
                        running = _finished(running)
                while running:
                    running = _finished(running)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _finished(running: set[Future[Any]]) -> set[Future[Any]]:
    done, running = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    return running


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Keep torch from starting threads of its own in every job: they would only wait for each other."""
    global _users, _threads
    with _lock:
        # who has not imported torch needs none of its threads
        if _threads is None and (torch := sys.modules.get("torch")):
            _threads = torch.get_num_threads()
            torch.set_num_threads(1)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users and _threads is not None:
                sys.modules["torch"].set_num_threads(_threads)
                _threads = None
