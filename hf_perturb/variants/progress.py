"""How far a long job is, for whoever wants to show it."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

# called with the bytes that are done and those in all
Progress = Callable[[int, int], object]


def counter(total: int, progress: Progress | None) -> Callable[[int], None]:
    """Return a function that adds up bytes, from any thread, and tells `progress`."""
    lock, done = Lock(), 0

    def add(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            if progress is not None:
                progress(done, total)

    return add
