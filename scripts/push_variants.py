"""Push a matrix of variants, as scripts/build_variants.py builds it, to the Hub: one repository for each.

  python scripts/push_variants.py --namespace my-lab --dry-run            what ./variants would change there
  python scripts/push_variants.py --namespace my-lab --private --tag v1 --collection Controls
  python scripts/push_variants.py mine --namespace my-lab --only 'carp_600k/*' --bases

The variant BASE/VARIANT becomes NAMESPACE/BASE-VARIANT. What is there already is not sent again, so a run that was
interrupted is simply repeated; one that fails does not stop the others. The exit code is 0 if at the end all are there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from reporting import failed, report

import hf_perturb
from hf_perturb.checkpoints.formats import PUSH_FORMATS
from hf_perturb.variants.matrix import models_in

_BASES = "bases"  # where build_variants.py keeps them


@dataclass(frozen=True)
class Result:
    """What became of one folder: `pushed`, `there already`, `would change`, or what is wrong."""

    repo_id: str
    status: str
    seconds: float
    files: int = 0
    bytes: int = 0
    commit: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the repository is, or with a dry run would be, as it should be."""
        return not self.status.startswith("failed")


def repositories(parent: Path, namespace: str, only: list[str], bases: bool) -> dict[str, Path]:
    """Return the folder of each repository, in the order of their names.

    Args:
        parent: a folder of folders of variants.
        namespace: user or organisation.
        only: globs over `BASE/VARIANT`; none for all.
        bases: whether the bases go too, as `NAMESPACE/BASE`.

    Raises:
        ValueError: if two folders would be one repository.
    """
    found = {}
    for folder in (folder for base in sorted(parent.glob("*")) for folder in models_in(base)):
        base, variant = folder.relative_to(parent).parts
        chosen = not only or any(fnmatch(f"{base}/{variant}", glob) for glob in only)
        if chosen and (bases or base != _BASES):
            repo_id = f"{namespace}/{variant if base == _BASES else f'{base}-{variant}'}"
            if repo_id in found:
                raise ValueError(f"{found[repo_id]} and {folder} would both be {repo_id}; rename one of them")
            found[repo_id] = folder
    return found


def push_all(folders: Mapping[str, Path], options: dict[str, Any]) -> Iterator[Result]:
    """Push one after the other; `options` are those of `push_variant`."""
    for repo_id, folder in folders.items():
        start = time.monotonic()
        try:
            done = hf_perturb.push_variant(folder, repo_id, **options)
        except Exception as error:  # whatever it is, the others have nothing to do with it
            yield Result(repo_id, failed(error), time.monotonic() - start)
            continue
        status = "there already" if not done.changed else "would change" if done.dry_run else "pushed"
        if done.unknown:
            status = f"would be sent, but for what is there; could not look up {'; '.join(done.unknown)}"
        size = sum(change.size for change in done.changed)
        yield Result(repo_id, status, time.monotonic() - start, len(done.changed), size, done.commit)


def line(result: Result) -> str:
    """Return what is said of one folder."""
    sent = f", {result.files} files, {result.bytes:,} bytes" if result.files else ""
    return f"{result.repo_id}: {result.status}{sent}"


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, push, and report; 0 if everything is there."""
    layout: Any = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument(
        "parent", nargs="?", type=Path, default=Path("variants"), metavar="PARENT", help="default: %(default)s"
    )
    parser.add_argument("--namespace", required=True, help="your user name, or an organisation")
    parser.add_argument("--only", action="append", default=[], metavar="GLOB", help="over BASE/VARIANT, repeatable")
    parser.add_argument("--bases", action="store_true", help="push what is in PARENT/bases too")
    parser.add_argument("--private", action="store_true", help="make private repositories; refuse public ones")
    parser.add_argument("--revision", default="main", metavar="BRANCH", help="default: %(default)s")
    parser.add_argument("--tag", help="name the commits; names are not moved")
    parser.add_argument("--collection", metavar="SLUG|TITLE", help="add them to a collection")
    parser.add_argument("--format", choices=PUSH_FORMATS, default=PUSH_FORMATS[0], help="default: %(default)s")
    parser.add_argument("--force", action="store_true", help="replace other models there")
    parser.add_argument("--dry-run", action="store_true", help="touch nothing, say what would change")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)
    try:
        folders = repositories(options.parent, options.namespace, options.only, options.bases)
    except ValueError as error:
        parser.error(str(error))
    if not folders:
        chosen = f" that {' or '.join(options.only)} names" if options.only else ""
        parser.error(f"{options.parent}: there is no variant{chosen}; build some with scripts/build_variants.py")
    given = ("private", "revision", "tag", "collection", "format", "force", "dry_run")
    what = "would be there; nothing was touched" if options.dry_run else "are there"
    return report(
        push_all(folders, {name: getattr(options, name) for name in given}),
        len(folders),
        line=line,
        kept="there",
        summary=f"repositories {what}, in {options.namespace}",
        as_json=options.json,
    )


if __name__ == "__main__":
    sys.exit(main())
