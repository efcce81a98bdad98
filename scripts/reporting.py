"""What scripts that do many things say of them: a line as each is done, and at the end a sum, or all of it as JSON."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any


def failed(error: Exception) -> str:
    """Return the status of what failed, on one line."""
    return f"failed: {' '.join(str(error).split())}"


def report(
    results: Iterable[Any], expected: int, line: Callable[[Any], str], kept: str, summary: str, as_json: bool
) -> int:
    """Do what the results come from, and say what became of it.

    Args:
        results: dataclasses with an `ok` and the `seconds` that it took.
        expected: how many there should be.
        line: what is said of one.
        kept: how things are when one is interrupted.
        summary: what is said of all, with the number of good ones in front.
        as_json: print the results instead.

    Returns:
        The exit code: 0 if all are there and good.
    """
    done = []
    try:
        for result in results:
            done.append(result)
            print(f"{line(result)} ({result.seconds:.1f} s)", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"interrupted; what is listed above is {kept}, and the next run goes on from there", file=sys.stderr)
        return 128 + signal.SIGINT
    good = sum(result.ok for result in done)
    print(json.dumps([asdict(result) for result in done], indent=1) if as_json else f"{good} of {expected} {summary}")
    return int(good != expected)
