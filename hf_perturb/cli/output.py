"""How results and progress look: JSON and tables on stdout, a bar on stderr."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hf_perturb.checkpoints.shapes import listed

if TYPE_CHECKING:
    from hf_perturb import Embeddings, Push, Verification

_COLUMNS = 6  # that a line names


def print_json(value: Any, indent: int | None = None) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=indent, allow_nan=False))


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print rows of the same keys under these, in columns."""
    cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_verification(found: Verification, path: str) -> None:
    """Print what `verify` found."""
    if found.changed is not None:
        print(
            f"{path}: trained further from a control, or edited, after {found.changed}, so it is no control any more;"
            " for the control, make it again from its base; to publish this as what it is, hf-perturb convert it first"
        )
    for difference in found.differences:
        largest = "not a number" if difference.largest is None else f"{difference.largest:.6g}"
        print(f"{difference.name}: {difference.elements} elements differ, by {largest} at most")
    for problem in found.problems:
        print(f"{path}: {problem}")
    if found.nonfinite:
        print(f"hf-perturb verify: note: {path}: NaN or infinite weights in {listed(found.nonfinite)}", file=sys.stderr)
    if found.ok and found.rebuilt:
        print(f"{path}: no weights here, as in a recipe; built again from {found.base} they are as recorded")
        print(found.digest)
    elif found.ok:
        what = "weights as recorded" if found.recorded else "no digest is recorded, as of a cast; weights as saved"
        with_base = f", every tensor as {found.base} and the record give it" if found.base else ""
        print(f"{path}: {what}{with_base}\n{found.digest}")


def print_push(done: Push, dry_run: bool) -> None:
    """Print what `push` sent, or would send."""
    if dry_run:
        rows = [{"": change.action, "bytes": f"{change.size:,}", "file": change.path} for change in done.files]
        print_table([*rows, *({"": "stays here", "bytes": "", "file": name} for name in done.left_out)])
    sent = sum(change.size for change in done.changed)
    what = f"{len(done.changed)} of {len(done.files)} files, {sent:,} bytes"
    for line in done.unknown:
        print(f"hf-perturb push: could not look up {line}", file=sys.stderr)
    if done.unknown:
        print(f"{done.url}: {what} would be sent to {done.branch}, but for those that are there; nothing was touched")
    elif dry_run:
        new = "" if done.commit else "; there is none that this token can see, so it would be made"
        print(f"{done.url}: {what} would change on {done.branch}{new}; nothing was touched")
    elif not done.changed:
        print(f"{done.url}: nothing to send, {done.branch} has it all in commit {done.commit}")
    else:
        print(f"{done.url}: {what}, in commit {done.commit} on {done.branch}")
    for name in ("tag", "collection"):
        if getattr(done, name) and not dry_run:
            print(f"{name}: {getattr(done, name)}")


def print_embeddings(done: list[Embeddings], as_json: bool, several: bool) -> None:
    """Print what `embed` returned; what is to be known of the FASTA goes to stderr."""
    for line in done[0].notes:
        print(f"hf-perturb embed: note: {line}", file=sys.stderr)
    if as_json:
        rows = [each.to_dict() for each in done]
        print_json(rows if several else rows[0])
        return
    for each in done:
        new = f"{each.computed:,} of them computed now" if each.computed else "nothing left to compute"
        names = ", ".join(each.columns)
        if len(each.columns) > _COLUMNS:
            names = f"{', '.join(each.columns[:2])}, ..., {each.columns[-1]} ({len(each.columns)} columns)"
        print(f"{each.path}: {each.records:,} records, {each.residues:,} residues, {new}: {names}")


class _Notes(logging.Handler):
    """Print each note once, and beside a bar rather than into it."""

    def __init__(self, command: str):
        super().__init__()
        self.command = command
        self.told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        note = f"hf-perturb {self.command}: note: {record.getMessage()}"
        if note not in self.told:
            self.told.add(note)
            tqdm.write(note, file=sys.stderr)


@contextmanager
def notes_of(command: str) -> Iterator[None]:
    """Print what the package logs as notes of a command, on stderr."""
    logger, handler = logging.getLogger("hf_perturb"), _Notes(command)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def progress_bar(unit: str = "B", shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Show what is done, rate and time left on stderr; nothing where that is no terminal."""
    with progress_of({"": unit}, shown) as show:
        yield lambda done, total: show("", done, total)


@contextmanager
def progress_of(units: Mapping[str, str], shown: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """Show the same of one phase after another, each with its own unit."""
    from tqdm import tqdm

    said = ""
    with tqdm(unit_scale=True, disable=None if shown else True, leave=False) as bar:

        def show(phase: str, done: int, total: int) -> None:
            nonlocal said
            if done < bar.n or phase != said:  # another piece of work
                bar.reset()
                bar.set_description(phase, refresh=False)
            said, bar.unit, bar.total = phase, units[phase], total
            bar.update(done - bar.n)

        yield show
