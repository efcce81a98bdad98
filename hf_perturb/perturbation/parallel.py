"""Work on many tensors at once: numpy and BLAKE3 let go of the interpreter's lock, so threads are enough."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event, Lock
from typing import TypeVar, cast

from hf_perturb.errors import PerturbationError

Item = TypeVar("Item")


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def for_each(work: Callable[[Item], object], items: Iterable[Item], jobs: int | None = None) -> None:
    """Call `work` on every item, several at a time; the first error stops what has not begun.

    Args:
        work: must not depend on the order of its calls.
        items: taken in order, one when a call is done; what a generator makes is so bounded by the number of jobs.
        jobs: calls at a time; `None` for one a processor.

    Raises:
        PerturbationError: if that is none.
    """
    jobs = processors() if jobs is None else jobs
    if jobs < 1:
        raise PerturbationError(f"jobs: got {jobs}; allowed: 1 or more")
    left, taking, stopped, end = iter(items), Lock(), Event(), object()

    def run() -> None:
        try:
            while not stopped.is_set():
                with taking:
                    item = next(left, end)
                if item is end:
                    return
                work(cast(Item, item))
        except BaseException:
            stopped.set()
            raise

    if jobs == 1:
        return run()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for each in as_completed([pool.submit(run) for _ in range(jobs)]):
                each.result()
        finally:
            stopped.set()
