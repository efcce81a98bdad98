"""Build a matrix of variants from a file that names bases, methods and seeds; what is there and verified is skipped.

  python scripts/build_variants.py                        the study's 8 bases x 2 methods x 3 seeds, into ./variants
  python scripts/build_variants.py --only carp_600k       one of them
  python scripts/build_variants.py mine.yaml --out mine   another matrix

Each base is converted once (from its publisher, if the catalogue knows it), and its missing variants are built in one
pass. Interrupted, it goes on where it was: a variant is there whole or not at all. The exit code is 0 if at
the end every variant is there and verified.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from reporting import failed, report

import hf_perturb
from hf_perturb.checkpoints.catalog import CATALOG
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.perturbation import Perturbation
from hf_perturb.variants.matrix import folders, matrix

_KEYS = {"bases", "methods", "seeds", "axes", "scopes", "rules", "include", "exclude", "also"}


@dataclass(frozen=True)
class Result:
    """What became of one variant: `built`, `verified`, or what is wrong."""

    path: str
    status: str
    seconds: float
    digest: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the variant is there as it should be."""
        return self.status in ("built", "verified")


def read_matrix(path: Path) -> tuple[dict[str, str], list[Perturbation]]:
    """Return the bases, where each comes from by its name, and what is done to each.

    Raises:
        ValueError: naming the file and the key that is wrong.
    """
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(said, dict):
        raise ValueError(f"{path}: got a {type(said).__name__}; allowed: the keys {', '.join(sorted(_KEYS))}")
    if unknown := said.keys() - _KEYS:
        raise ValueError(f"{path}: key {sorted(unknown)[0]!r} is unknown; allowed: {', '.join(sorted(_KEYS))}")
    said = {"bases": None, "methods": ["reinit", "resample"], "seeds": [42], **said}
    for key in ("bases", "methods", "seeds", "axes", "scopes"):
        lists = isinstance(said.get(key, []), list) and (said.get(key) or key in ("axes", "scopes"))
        if not lists or (key == "scopes" and not all(isinstance(scope, list) for scope in said.get(key, []))):
            raise ValueError(f"{path}: {key!r} is {said.get(key)!r}; allowed: a list{' of lists' * (key == 'scopes')}")
    bases: dict[str, str] = {}
    for each in said.pop("bases"):
        for name, source in each.items() if isinstance(each, dict) else [(str(each).rpartition("/")[2], each)]:
            if str(name) in bases:
                raise ValueError(f"{path}: base {name!r} comes twice")
            bases[str(name)] = str(source)
    try:
        return bases, matrix(**said)
    except (hf_perturb.PerturbationError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def build(
    bases: Mapping[str, str], asked: list[Perturbation], out: Path, force: bool = False, jobs: int | None = None
) -> Iterator[Result]:
    """Build what is missing, base by base; a base that fails does not stop the others."""
    for name, source in bases.items():
        wanted = folders(out / name, asked)
        start = time.monotonic()
        try:
            base = _base(source, out / "bases" / name)
            digest = Checkpoint.open(base, weights=False).stated_digest
            found = {path: _state(path, wanted[path], digest) for path in wanted if path.exists()}
        except (hf_perturb.HfPerturbError, OSError) as error:
            yield Result(str(out / name), failed(error), time.monotonic() - start)
            continue
        spoilt = [path for path, result in found.items() if force and not result.ok]
        yield from (result for path, result in found.items() if path not in spoilt)
        # what is missing in one pass; what is replaced one by one, for one that may not be must not stop the others
        for some in [[path for path in wanted if path not in found], *([path] for path in spoilt)]:
            if some:
                yield from _create(base, {path: wanted[path] for path in some}, force, jobs)


def _create(base: str, wanted: Mapping[Path, Perturbation], force: bool, jobs: int | None) -> list[Result]:
    start = time.monotonic()
    try:
        records = hf_perturb.create_variants(base, dict(wanted), force=force, jobs=jobs)
        digests = {path: record.digest for path, record in records.items()}
        status = "built"
    except (hf_perturb.HfPerturbError, OSError) as error:
        digests, status = dict.fromkeys(wanted), failed(error)
    return [Result(str(path), status, time.monotonic() - start, digest) for path, digest in digests.items()]


def _base(source: str, folder: Path) -> str:
    """Return the base: what the catalogue knows is converted first, once."""
    if source not in CATALOG or Path(source).exists():
        return source
    if not folder.exists():
        print(f"{source}: fetching and converting", file=sys.stderr)
        hf_perturb.convert_checkpoint(source, folder)
    return str(folder)


def _state(path: Path, asked: Perturbation, base: str | None) -> Result:
    """Say whether a folder is the variant that is asked for, of the base with that digest, as it was built."""
    start = time.monotonic()
    try:
        found = hf_perturb.verify_variant(path)
        opened = Checkpoint.open(path, weights=False)
        record, family = opened.record, opened.network.family
        status = "verified" if found.ok else "; ".join(found.problems) or "its weights have changed since"
        if record is None or record.spelt_out(family) != asked.spelt_out(family):
            status = f"another variant is there, {record}"
        elif base is not None and record.base is not None and record.base.digest not in (None, base):
            status = "a variant of another base is there"
        return Result(str(path), status, time.monotonic() - start, found.digest)
    except (hf_perturb.HfPerturbError, OSError, ValueError) as error:
        return Result(str(path), f"damaged ({failed(error)}); --force replaces it", time.monotonic() - start)


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, build, and report; 0 if everything is there."""
    layout: Any = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    default = Path(__file__).with_name("variants.yaml")
    parser.add_argument("matrix", nargs="?", type=Path, default=default, help="default: the study's, variants.yaml")
    parser.add_argument("--out", type=Path, default=Path("variants"), help="where they go (%(default)s)")
    parser.add_argument("--only", action="append", metavar="BASE", help="one base of the matrix, repeatable")
    parser.add_argument("--force", action="store_true", help="replace variants that are not as they should be")
    parser.add_argument("--jobs", type=int, help="tensors at a time; default: one a processor")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)
    try:
        bases, asked = read_matrix(options.matrix)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if unknown := set(options.only or ()) - bases.keys():
        parser.error(f"argument --only: {sorted(unknown)[0]!r} is no base of {options.matrix}: {', '.join(bases)}")
    chosen = {name: source for name, source in bases.items() if not options.only or name in options.only}
    return report(
        build(chosen, asked, options.out, options.force, options.jobs),
        len(chosen) * len(asked),
        line=lambda result: f"{result.path}: {result.status}",
        kept="whole",
        summary=f"variants are there and verified, in {options.out}",
        as_json=options.json,
    )


if __name__ == "__main__":
    sys.exit(main())
