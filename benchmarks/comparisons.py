"""The comparisons of `scripts/benchmark`: who runs against whom, on what, and which ratios come of it."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarking import (
    CREATE,
    GB,
    HERE,
    SIZES,
    VARIANTS,
    Run,
    alternate,
    demand_room,
    figures,
    measure,
    remove,
    say,
    warm,
    weights_of,
)

LOAD = [sys.executable, str(HERE / "load_once.py")]


@contextmanager
def base_folder(given: Path | None, size: str, work: Path | None, outputs: int) -> Iterator[tuple[Path, Path]]:
    """Give a base, made for the purpose if none is given, and an empty folder to write to; both are removed at the end.

    Args:
        given: a base of the user's, which is left alone.
        size: of a synthetic one.
        work: where the folders go; the system's folder for temporary files if `None`.
        outputs: how many files of the base's size lie there at the same time.
    """
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="hf-perturb-benchmark-", dir=work) as name:
        folder = Path(name)
        weights = weights_of(given).stat().st_size if given else SIZES[size]
        demand_room(folder, (outputs + (given is None)) * 1.1 * weights)
        base = given
        if base is None:
            base = folder / f"base-{size}"
            say(f"making a synthetic base of {size} parameters, {weights / GB:.2f} GB, in {folder}")
            measure([sys.executable, str(HERE / "synthetic.py"), size, str(base)])
        yield base, folder


def create_command(base: Path, out: Path, method: str, axis: str | None) -> list[str]:
    """Return the command that builds a variant."""
    return [*CREATE, str(base), str(out), "--method", method, *(["--axis", axis] if axis else [])]


def title(method: str, axis: str | None) -> str:
    """Return what a table calls a variant."""
    return f"{method} --axis {axis}" if axis else method


def compare_load(base: Path, folder: Path, repeat: int) -> dict[str, Any]:
    """Load a stored variant with our class and the same weights with Transformers' own, in turn.

    Returns:
        The seconds of `from_pretrained` alone, those until every weight was read too, and the ratios of the best.
    """
    ours, stock = folder / "variant", folder / "stock"
    say("making a variant, and Transformers' own ESM of the same weights")
    measure(create_command(base, ours, "reinit", None))
    measure([sys.executable, "-m", "hf_perturb", "convert", "--to", "transformers", str(ours), str(stock)])
    say(f"loading, {repeat} of each")

    def both_warm(_: str) -> None:
        warm(weights_of(ours))
        warm(weights_of(stock))

    sides = {"transformers": [*LOAD, "transformers", str(stock)], "ours": [*LOAD, "hf_perturb", str(ours)]}
    runs = alternate(sides, repeat, both_warm)
    sizes = {"transformers": weights_of(stock).stat().st_size, "ours": weights_of(ours).stat().st_size}
    remove(ours)
    remove(stock)
    return {"bytes": sizes, **{what: _seconds(runs, what) for what in ("load", "load_and_read")}}


def _seconds(runs: dict[str, list[Run]], what: str) -> dict[str, Any]:
    """Return what each side printed as the seconds of something, and the ratio of the best ones."""
    seconds = {side: [json.loads(run.printed)[what] for run in runs[side]] for side in runs}
    best = {f"best_{side}": min(taken) for side, taken in seconds.items()}
    return {"seconds": seconds, **best, "ratio": best["best_ours"] / best["best_transformers"]}


def compare_recipe(base: Path, folder: Path, repeat: int, only: Iterable[str]) -> list[dict[str, Any]]:
    """Build a variant with `create` and load its recipe in turn, both as whole processes; return a row a variant."""
    rows = []
    out, recipe = folder / "variant", folder / "recipe"
    for method, axis in (VARIANTS[name] for name in VARIANTS if name in only):
        say(f"recipe of {title(method, axis)}, {repeat} of each")
        create = create_command(base.resolve(), out, method, axis)
        measure([*create_command(base.resolve(), recipe, method, axis), "--recipe"])
        sides = {"create": create, "recipe": [*LOAD, "hf_perturb", str(recipe)]}
        runs = alternate(sides, repeat, lambda _: warm(weights_of(base)), out)
        remove(recipe)
        row = {"method": method, "axis": axis, **{side: figures(runs[side]) for side in sides}}
        rows.append({**row, "ratio": row["recipe"]["best_seconds"] / row["create"]["best_seconds"]})
    return rows
