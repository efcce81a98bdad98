"""What a comparison of two checkpoints says, as data, as JSON and as a table."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from hf_perturb.compare.histograms import Histogram
from hf_perturb.compare.statistics import PairStatistics
from hf_perturb.perturbation import Perturbation

SIDES = ("a", "b")


@dataclass(frozen=True)
class Side:
    """One of the two checkpoints.

    Args:
        name: its folder's or file's name, or its Hub id.
        revision: the commit on the Hub.
        perturbation: its record, `None` for a base.
    """

    name: str
    revision: str | None = None
    perturbation: Perturbation | None = None

    def __str__(self) -> str:
        record = self.perturbation
        if record is None:
            return self.name
        rules = "" if record.rules == "documented" else f", rules {record.rules}"
        return f"{self.name}, {record.method} (seed {record.seed}{rules})"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        record = None if self.perturbation is None else self.perturbation.to_dict()
        return {"name": self.name, "revision": self.revision, "perturbation": record}


@dataclass(frozen=True)
class Row:
    """One tensor.

    Args:
        name: its document name.
        layer: the number of its layer, `None` outside of the layers.
        kind: `weight`, `bias`, `norm` (weight or bias of one) or `buffer`.
        elements: in it.
        dtype_a: its type in A, `None` where A lacks it.
        dtype_b: its type in B, `None` where B lacks it.
        tied: of the sides where it is tied, the tensor that was read in its place.
        statistics: `None` where one side lacks it.
    """

    name: str
    layer: int | None
    kind: str
    elements: int
    dtype_a: str | None
    dtype_b: str | None
    tied: dict[str, str] = field(default_factory=dict)
    statistics: PairStatistics | None = None

    @property
    def only_in(self) -> str | None:
        """The one side that has it, `a` or `b`; `None` if both do."""
        if self.dtype_b is None:
            return "a"
        return "b" if self.dtype_a is None else None

    @property
    def changed(self) -> bool | None:
        """Whether an element differs; `None` where there is nothing to compare."""
        return None if self.statistics is None else self.statistics.differing > 0

    @property
    def note(self) -> str:
        """What a reader of the table should know."""
        notes = [f"{side.upper()}: tied, {source}" for side, source in self.tied.items()]
        if self.only_in is None and self.dtype_a != self.dtype_b:
            notes.append(f"{self.dtype_a} and {self.dtype_b}, by value")
        return "; ".join(notes)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        keys = ("name", "layer", "kind", "elements", "dtype_a", "dtype_b", "tied", "only_in", "changed")
        return {**{key: getattr(self, key) for key in keys}, **_numbers(self.statistics)}


@dataclass(frozen=True)
class Group:
    """Tensors of a layer, of a module outside of the layers, or all of them.

    Args:
        name: `layers.N`, the module, or `total`.
        layer: N, or `None`.
        tensors: how many were compared.
        changed_tensors: how many of these have an element that differs.
        only_in_a: how many B lacks.
        only_in_b: how many A lacks.
        statistics: of those compared as if they were one vector, `None` if there are none.
    """

    name: str
    layer: int | None
    tensors: int
    changed_tensors: int
    only_in_a: int
    only_in_b: int
    statistics: PairStatistics | None

    @property
    def note(self) -> str:
        """What a reader of the table should know."""
        alone = ((self.only_in_a, "A"), (self.only_in_b, "B"))
        return "; ".join(f"{count} only in {side}" for count, side in alone if count)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        keys = ("name", "layer", "tensors", "changed_tensors", "only_in_a", "only_in_b")
        elements = 0 if self.statistics is None else self.statistics.elements
        return {**{key: getattr(self, key) for key in keys}, "elements": elements, **_numbers(self.statistics)}


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints, side by side.

    Args:
        a: the first, which distances are relative to.
        b: the second.
        tensors: a row a tensor, in the order of A's original class; those that only B has come last.
        layers: a row a layer, and one for every module outside of the layers.
        total: of all tensors; a tied tensor that was compared with a head counts once more.
        histogram: of the values of all tensors that were compared, without buffers.
    """

    a: Side
    b: Side
    tensors: tuple[Row, ...]
    layers: tuple[Group, ...]
    total: Group
    histogram: Histogram

    @property
    def changed(self) -> bool:
        """Whether the checkpoints hold other weights: an element differs, or one lacks a tensor."""
        return self.total.changed_tensors + self.total.only_in_a + self.total.only_in_b > 0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data; `None` for what is not a number, such as a relative distance from zero."""
        return {
            **{side: getattr(self, side).to_dict() for side in SIDES},
            "changed": self.changed,
            "total": self.total.to_dict(),
            "layers": [group.to_dict() for group in self.layers],
            "tensors": [row.to_dict() for row in self.tensors],
            "histogram": asdict(self.histogram),
        }


def comparison_table(comparison: Comparison, per: str = "layer") -> list[dict[str, str]]:
    """Return the rows of a table to print, the last one the total.

    Args:
        comparison: what to show.
        per: `"layer"` or `"tensor"`.

    Raises:
        ValueError: if `per` is anything else.
    """
    if per not in ("layer", "tensor"):
        raise ValueError(f"per: got {per!r}; allowed: layer, tensor")
    if per == "tensor":
        rows = [{"tensor": row.name, "changed": _changed(row), **_cells(row)} for row in comparison.tensors]
    else:
        rows = [{"layer": group.name, "changed": _share(group), **_cells(group)} for group in comparison.layers]
    return [*rows, {per: "total", "changed": _share(comparison.total), **_cells(comparison.total)}]


def _changed(row: Row) -> str:
    if row.only_in is not None:
        return f"only in {row.only_in.upper()}"
    return "yes" if row.changed else "no"


def _share(group: Group) -> str:
    return f"{group.changed_tensors} of {group.tensors}"


def _cells(row: Row | Group) -> dict[str, str]:
    numbers = _numbers(row.statistics)
    titles = {
        **{f"{what}_{side}": f"{what} {side.upper()}" for what in ("mean", "std", "norm") for side in SIDES},
        "relative_distance": "distance",
        "cosine": "cosine",
    }
    cells = {title: "-" if (value := numbers[key]) is None else f"{value:.4g}" for key, title in titles.items()}
    return {"differing": "-" if row.statistics is None else str(row.statistics.differing), **cells, "note": row.note}


def _numbers(found: PairStatistics | None) -> dict[str, Any]:
    """Return the statistics as JSON can write them."""
    values: dict[str, Any] = {"differing": None if found is None else found.differing}
    for what in ("mean", "std", "norm"):
        for side in SIDES:
            moments = None if found is None or not found.elements else getattr(found, side)
            values[f"{what}_{side}"] = None if moments is None else _finite(getattr(moments, what))
    for key, name in (("relative_distance", "distance"), ("cosine", "cosine")):
        values[key] = None if found is None else _finite(getattr(found, name))
    return values


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
