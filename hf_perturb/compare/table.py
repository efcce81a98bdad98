"""Comparisons as tables to print: by layer, by tensor, and of a matrix by variant."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hf_perturb.compare.compare import Comparison, Group, Row


def matrix_table(compared: Mapping[Path, Comparison]) -> list[dict[str, str]]:
    """Return a table with the totals of each variant of a matrix, whose columns are those of layers."""
    rows = [{"variant": folder.name, **_layer_cells(each.total)} for folder, each in compared.items()]
    return _without_notes([{title: cell for title, cell in row.items() if title != "layer"} for row in rows])


def comparison_table(comparison: Comparison, per: str = "layer") -> list[dict[str, str]]:
    """Return the rows of a table to print, the last of the whole network; `note` is left out where there is none.

    Args:
        comparison: what to show.
        per: `"layer"`, with the standard deviation of its weights, and distance and correlation of weights and of
            vectors (biases and layer norms), see `Likeness`; or `"tensor"`, the last two rows being all weights and all
            vectors.
    """
    if per == "layer":
        rows = [_layer_cells(group) for group in (*comparison.layers, comparison.total)]
    else:
        totals = {f"total {name}": part for name, part in comparison.total.parts.items()}
        named: dict[str, Row | Group] = {**{row.name: row for row in comparison.tensors}, **totals}
        rows = [{"tensor": name, "changed": _changed(of), **_cells(of), "note": of.note} for name, of in named.items()]
    return _without_notes(rows)


def _without_notes(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    noted = any(row["note"] for row in rows)
    return [{title: cell for title, cell in row.items() if noted or title != "note"} for row in rows]


def _layer_cells(group: Group) -> dict[str, str]:
    parts = {name: _cells(part) for name, part in group.parts.items()}
    stds = {title: parts["weights"][title] for title in ("std A", "std B")}
    split = {f"{what} {name}": cells[what] for name, cells in parts.items() for what in ("distance", "correlation")}
    return {"layer": group.name, "changed": _changed(group), **stds, **split, "note": group.note}


def _changed(of: Row | Group) -> str:
    if isinstance(of, Group):
        return f"{of.changed_tensors} of {of.tensors}"
    return f"only in {of.only_in.upper()}" if of.only_in else "yes" if of.changed else "no"


def _cells(of: Row | Group) -> dict[str, str]:
    """Return the statistics as a table shows them: `mean_a` as `mean A`, `standardized_distance` as `distance`."""
    cells = {}
    for key, number in of.numbers().items():
        if key in ("relative_distance", "cosine"):
            continue  # which call two norms alike whose gains are near 1, however they were shuffled
        title = key.removeprefix("standardized_").replace("_a", " A").replace("_b", " B")
        cells[title] = "-" if number is None else str(number) if isinstance(number, int) else f"{number:.4g}"
    return cells
