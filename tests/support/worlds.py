"""Virtual environments that have some of the installed packages, and no others: what users of a repository may have."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import hf_perturb

OURS = "hf-perturb"


class World:
    """A fresh virtual environment.

    Args:
        folder: where to make it.
        *names: the distributions that were asked for; what they require comes along, optional extras do not.
    """

    def __init__(self, folder: Path, *names: str) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        packages = next(folder.glob("lib/python*/site-packages"))
        self.distributions = required(names)
        for name, found in self.distributions.items():
            for source in [Path(hf_perturb.__file__).parent] if name == OURS else tops(found):
                target = packages / source.name
                if not target.exists():
                    target.symlink_to(source)

    def run(self, code: str, environment: dict[str, str], folder: Path, *, fails: bool = False) -> str:
        """Run a program in a process of its own, and return what it printed.

        Args:
            code: the program.
            environment: its variables.
            folder: where it runs.
            fails: whether it is to fail; then what it said on stderr is returned.
        """
        words = [str(self.python), "-W", "error::FutureWarning", "-c", code]
        done = subprocess.run(
            words, env=environment, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert bool(done.returncode) == fails, done.stdout + done.stderr
        return done.stderr if fails else done.stdout


def required(names: Iterable[str]) -> dict[str, Distribution]:
    """Return distributions and all that they require on this machine, by name."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # for another system, or another Python
        for line in found[name].requires or []:
            if "extra ==" not in line:
                waiting.append(re.match(r"[\w.-]+", line).group())
    return found


def tops(found: Distribution) -> list[Path]:
    """Return the files and folders that a distribution has in site-packages."""
    names = {path.parts[0] for path in found.files or [] if path.parts[0] not in ("..", "__pycache__")}
    return [Path(str(found.locate_file(name))) for name in sorted(names)]


def main() -> None:
    """Make one by hand: python tests/worlds.py FOLDER DISTRIBUTION..."""
    print(World(Path(sys.argv[1]), *sys.argv[2:]).python)


if __name__ == "__main__":
    main()
