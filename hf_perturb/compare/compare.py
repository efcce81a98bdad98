"""Two checkpoints compared: what a perturbation did to every tensor, every layer and the whole network."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from pathlib import Path
from threading import Lock

import torch

from hf_perturb.checkpoints.bases import open_checkpoint
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.compare.histograms import BINS, Histogram, bit_counts
from hf_perturb.compare.rows import Comparison, Group, Row, Side, comparison_table
from hf_perturb.compare.statistics import PairStatistics, chunks
from hf_perturb.errors import CheckpointError
from hf_perturb.networks.layouts import is_parameter, layout, listed, tied
from hf_perturb.perturbation.parallel import for_each
from hf_perturb.variants.progress import Progress, counter

__all__ = ["Comparison", "compare_checkpoints", "comparison_table"]

_BIAS = re.compile(r"bias(_[kv])?$")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def compare_checkpoints(
    a: str | Path,
    b: str | Path,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare two checkpoints of one network, reading both once and holding a few chunks at a time.

    Tensors of one type count as changed by their bits, so that 0.0 is not -0.0 and one NaN is not another. Tensors of
    two types are compared by value: a cast changes the values that it rounds, and no others. Where one checkpoint has
    a tied head and the other a head of its own, the latter is compared with the tensor that the former is tied to.

    Args:
        a: a folder, a Hub id, an original `.pt` file, or `demo`; a base or a variant.
        b: the same; distances are relative to `a`.
        jobs: tensors at a time; `None` for one a processor.
        progress: called with the bytes that are done and those in all, of both.

    Raises:
        CheckpointError: if one cannot be used, or if they are of two families or a tensor is of two shapes.
    """
    if jobs is not None and jobs < 1:
        raise CheckpointError(f"jobs: got {jobs}; allowed: 1 or more")
    one, other = (open_checkpoint(str(name)).check() for name in (a, b))
    pairs = _pairs(one, other)
    found, histogram = _stream(pairs, jobs, progress)
    rows = tuple(pair.row(found.get(pair.name)) for pair in pairs)
    return Comparison(_side(one), _side(other), rows, _layers(rows), _group("total", rows), histogram)


def _side(checkpoint: Checkpoint) -> Side:
    place = Path(checkpoint.what)
    name = place.resolve().name if place.exists() else checkpoint.what
    return Side(name, checkpoint.revision, checkpoint.config.perturbation)


@dataclass(frozen=True)
class _Pair:
    """A tensor and where it is: on both sides, or on one."""

    name: str
    kind: str
    a: torch.Tensor | None
    b: torch.Tensor | None
    tied: dict[str, str] = field(default_factory=dict)

    def row(self, statistics: PairStatistics | None) -> Row:
        layer = _LAYER.search(self.name)
        present = [tensor for tensor in (self.a, self.b) if tensor is not None]
        return Row(
            name=self.name,
            layer=int(layer[1]) if layer else None,
            kind=self.kind,
            elements=present[0].numel(),
            dtype_a=None if self.a is None else str(self.a.dtype).removeprefix("torch."),
            dtype_b=None if self.b is None else str(self.b.dtype).removeprefix("torch."),
            tied=self.tied,
            statistics=statistics,
        )


def _pairs(a: Checkpoint, b: Checkpoint) -> list[_Pair]:
    """Pair the tensors of two checkpoints, in the order of the first."""
    if a.config.model_type != b.config.model_type:
        kinds = f"{a.what!r} is a {a.config.model_type}, {b.what!r} a {b.config.model_type}"
        raise CheckpointError(f"{kinds}; allowed: two checkpoints of one family")
    names = list(dict.fromkeys([*a.tensors, *b.tensors]))
    sides = {"a": dict(a.tensors), "b": dict(b.tensors)}
    sources: dict[str, dict[str, str]] = {}
    for side, checkpoint in (("a", a), ("b", b)):
        for name, source in tied(checkpoint.config).items():
            # a network without a head has none that could be tied
            if name in layout(checkpoint.config, checkpoint.architecture):
                sides[side][name] = checkpoint.tensors[source]
                sources.setdefault(name, {})[side] = source
    shapes = {name: [tuple(side[name].shape) for side in sides.values() if name in side] for name in names}
    if odd := [f"{name} {found[0]} and {found[1]}" for name, found in shapes.items() if len(set(found)) > 1]:
        raise CheckpointError(f"{a.what!r} and {b.what!r} are different networks; tensors of two shapes: {listed(odd)}")
    return [
        _Pair(name, _kind(name, shapes), sides["a"].get(name), sides["b"].get(name), sources.get(name, {}))
        for name in names
    ]


def _kind(name: str, shapes: dict[str, list[tuple[int, ...]]]) -> str:
    """Tell weights, biases, norms and buffers apart: in these networks only a norm's weight is a vector."""
    if not is_parameter(name):
        return "buffer"
    if len(shapes.get(f"{name.rpartition('.')[0]}.weight", [()])[0]) == 1:
        return "norm"
    return "bias" if _BIAS.search(name) else "weight"


def _group_name(name: str) -> str:
    """Return `layers.N`, or the module that a tensor outside of the layers belongs to."""
    if found := _LAYER.search(name):
        return f"layers.{found[1]}"
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "model" else parts[0]


def _layers(rows: tuple[Row, ...]) -> tuple[Group, ...]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_group_name(row.name), []).append(row)
    return tuple(_group(name, tuple(members)) for name, members in groups.items())


def _group(name: str, rows: tuple[Row, ...]) -> Group:
    compared = [row.statistics for row in rows if row.statistics is not None]
    return Group(
        name=name,
        layer=int(name.partition(".")[2]) if name.startswith("layers.") else None,
        tensors=len(compared),
        changed_tensors=sum(bool(found.differing) for found in compared),
        only_in_a=sum(row.only_in == "a" for row in rows),
        only_in_b=sum(row.only_in == "b" for row in rows),
        statistics=reduce(add, compared, PairStatistics()) if compared else None,
    )


def _stream(
    pairs: list[_Pair], jobs: int | None, progress: Progress | None
) -> tuple[dict[str, PairStatistics], Histogram]:
    """Read every pair once, several at a time, and return what was found by name."""
    both = [(pair, pair.a, pair.b) for pair in pairs if pair.a is not None and pair.b is not None]
    count = counter(sum(a.nbytes + b.nbytes for _, a, b in both), progress)
    found: dict[str, PairStatistics] = {}
    counts = torch.zeros(2, BINS, dtype=torch.int64)
    lock = Lock()

    def compare(job: tuple[_Pair, torch.Tensor, torch.Tensor]) -> None:
        pair, a, b = job
        counted = torch.zeros_like(counts)
        found[pair.name] = _compare(a, b, counted, count)
        if pair.kind != "buffer":
            with lock:
                counts.add_(counted)

    for_each(compare, both, jobs)
    return found, Histogram.of(counts[0], counts[1])


def _compare(a: torch.Tensor, b: torch.Tensor, counts: torch.Tensor, count: Callable[[int], None]) -> PairStatistics:
    """Read a pair of tensors, and add to the counts of their bits."""
    statistics = PairStatistics()
    for part in chunks(a, b):
        statistics += PairStatistics.of(*part)
        for side, values in enumerate(part):
            counts[side] += bit_counts(values)
        count(sum(values.nbytes for values in part))
    return statistics
