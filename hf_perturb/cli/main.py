"""The command `hf-perturb`: parse, call, exit code.

Exit codes: 0 done, 1 the thing failed, 2 wrong usage. Results go to stdout, errors and progress to stderr.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import hf_perturb
from hf_perturb.cli.arguments import make_parser

# how things are when a command is interrupted
_LEFT = {
    "push": "the branch is as it was, or has all of it: the same command completes it, or says so",
    "embed": "every shard that is there is whole: the same command continues",
}


def script() -> NoReturn:
    """Run the command as a process: a signal ends it after it has cleaned up, and its caller sees which."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    code = main()
    if code == 128 + signal.SIGINT:
        # a shell ends its own loop only if the command died of the signal
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    sys.exit(code)


def _stop(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: words of the command line, those of the process if `None`.
    """
    parser, commands = make_parser()
    options = parser.parse_args(arguments)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        from hf_perturb.cli import commands as calls

        try:
            code = getattr(calls, f"run_{options.command}")(options)
        except calls.UsageError as error:
            commands[options.command].error(str(error))
        sys.stdout.flush()
    except BrokenPipeError:
        # whoever read the output has gone (`| head`); keep the interpreter from flushing to them at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError, hf_perturb.HfPerturbError) as error:
        print(f"hf-perturb {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        left = _LEFT.get(options.command, "nothing is half written (a download goes on from there)")
        print(f"hf-perturb {options.command}: interrupted; {left}", file=sys.stderr)
        return 128 + signal.SIGINT
    return code or 0
