"""Ctrl-C in the command: one line on stderr and 130, from the first import to the end, and never a traceback.

Where the package is imported by anything else, nothing here touches the signals of the process.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # until the first signal is caught, every import counts
    from types import FrameType
    from typing import Any, NoReturn

CODE = 128 + signal.SIGINT
_SOON = 0.02  # seconds
_noticed = False


def watch(always: bool = False) -> None:
    """End at once on Ctrl-C, in the command's own process: while it begins, there is nothing to clean up.

    Args:
        always: whether this is known to be the command, however it was started.
    """
    words = sys.orig_argv
    is_module = "-m" in words and words[words.index("-m") + 1 :][:1] == ["hf_perturb"]
    is_script = os.path.basename(sys.argv[0]) in ("hf-perturb", "hf-perturb.exe")
    # a shell has it ignored in what it runs in the background, and so it stays
    if (always or is_module or is_script) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)


def raise_from_now_on() -> None:
    """Where Ctrl-C is watched, let it raise `KeyboardInterrupt`, as something is to be cleaned up now."""
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, _raise)
        signal.signal(signal.SIGALRM, _raise)
        sys.unraisablehook = _raise_again


def noticed() -> bool:
    """Whether there was a Ctrl-C, whatever a library made of it."""
    return _noticed


def ignore() -> None:
    """Let no Ctrl-C disturb a command that is done."""
    for number in (signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)


def end() -> NoReturn:
    """End as whoever was interrupted.

    At a terminal that is a death by the signal: a shell, which says 130 of it, ends its own loop only for that. For a
    program that has started this one, it is the exit code.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):  # nobody reads it
            continue
    if _is_at_a_terminal():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(CODE)


def _end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, b"hf-perturb: interrupted; nothing was begun\n")
    end()


def _raise(number: int, frame: FrameType | None) -> None:
    """Raise, but from no import: libraries in other languages die of it."""
    global _noticed
    first, _noticed = not _noticed, True
    if (first or number == signal.SIGALRM) and _is_importing(frame):
        _again_soon()
    else:
        raise KeyboardInterrupt


def _raise_again(found: Any) -> None:
    """Raise once more what came while something was thrown away, where Python would only print it."""
    if isinstance(found.exc_value, KeyboardInterrupt):
        _again_soon()
    else:
        sys.__unraisablehook__(found)


def _again_soon() -> None:
    signal.setitimer(signal.ITIMER_REAL, _SOON)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and "importlib._bootstrap" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None


def _is_at_a_terminal() -> bool:
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
