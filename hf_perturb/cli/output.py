"""How results and progress look: JSON and tables on stdout, a bar on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

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


def print_embeddings(done: list[Any], as_json: bool, several: bool) -> None:
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


@contextmanager
def progress_bar(unit: str = "B", shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Show what is done, rate and time left on stderr; nothing where that is no terminal."""
    with tqdm(unit=unit, unit_scale=True, disable=None if shown else True, leave=False) as bar:

        def show(done: int, total: int) -> None:
            if done < bar.n:  # another piece of work
                bar.reset()
            bar.total = total
            bar.update(done - bar.n)

        yield show
