"""Two checkpoints compared: what a perturbation did to every tensor, every layer and the whole network."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hf_perturb.checkpoints.any_network import AnyNetwork
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.shapes import Shape, listed
from hf_perturb.checkpoints.tensors import Tensor
from hf_perturb.compare.statistics import BINS, Histogram, Likeness, PairStatistics, bin_counts, bin_width
from hf_perturb.errors import CheckpointError
from hf_perturb.perturbation import Perturbation
from hf_perturb.perturbation.floats import DTYPES, Array, cast
from hf_perturb.perturbation.parallel import for_each
from hf_perturb.perturbation.rules import Place
from hf_perturb.perturbation.spec import in_words
from hf_perturb.variants.matrix import folders_of
from hf_perturb.variants.stream import Progress, counter

_LOG = logging.getLogger("hf_perturb")
CHUNK = 1 << 16  # elements: in float64 a pair fits into a core's cache, and larger buffers come from the system anew
SAMPLE = 1 << 16  # elements of a network that say how wide the bins of its histogram are
_BIAS = re.compile(r"bias(_[kv])?$")
_PARTS = {"weights": ("weight",), "vectors": ("bias", "norm")}


@dataclass(frozen=True)
class Side:
    """One of the two checkpoints.

    Args:
        name: its folder's or file's name, or its Hub id.
        revision: the commit on the Hub.
        perturbation: its record, `None` for a base.
    """

    name: str
    revision: str | None
    perturbation: Perturbation | None

    def __str__(self) -> str:
        record = self.perturbation
        if record is None:
            return self.name
        return f"{self.name}, {in_words(record.to_dict())}{', changed since' if record.changed else ''}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {**vars(self), "perturbation": self.perturbation and self.perturbation.to_dict()}


@dataclass(frozen=True)
class Row:
    """One tensor.

    Args:
        name: its document name.
        layer: the number of its layer, `None` outside of the layers.
        stack: of layers, where the network has several, else `""`.
        kind: `weight`, `bias`, `norm` (weight or bias of one) or `buffer`.
        elements: in it.
        dtype_a: its type in A, `None` where A lacks it.
        dtype_b: its type in B, `None` where B lacks it.
        tied: of the sides where it is tied, the tensor that was read in its place.
        statistics: of no elements where one side lacks it.
        group: what its layer is called, or its module outside of the layers.
    """

    name: str
    layer: int | None
    stack: str
    kind: str
    elements: int
    dtype_a: str | None
    dtype_b: str | None
    tied: dict[str, str]
    statistics: PairStatistics
    group: str

    @property
    def only_in(self) -> str | None:
        """The one side that has it, `a` or `b`; `None` if both do."""
        return "a" if self.dtype_b is None else "b" if self.dtype_a is None else None

    @property
    def changed(self) -> bool | None:
        """Whether an element differs; `None` where there is nothing to compare."""
        return None if self.only_in else self.statistics.differing > 0

    @property
    def note(self) -> str:
        """What a reader of the table should know."""
        notes = [f"{side.upper()}: tied, {source}" for side, source in self.tied.items()]
        if self.only_in is None and self.dtype_a != self.dtype_b:
            notes.append(f"{self.dtype_a} and {self.dtype_b}, by value")
        return "; ".join(notes)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        facts = {key: value for key, value in vars(self).items() if key not in ("statistics", "group")}
        return {**facts, "only_in": self.only_in, "changed": self.changed, **self.numbers()}

    def numbers(self) -> dict[str, Any]:
        """Return the statistics as JSON has them, `None` where there is nothing to compare."""
        return _numbers(self.statistics, self.statistics.likeness)


@dataclass(frozen=True)
class Group:
    """Tensors of a layer, of a module outside of the layers, or all of them.

    Args:
        name: `layers.N`, of several stacks `encoder.layers.N`, the module, or `total`.
        layer: the number of the layer, if it is one.
        only_in_a: how many B lacks.
        only_in_b: how many A lacks.
        tensors: how many were compared.
        changed_tensors: how many of these have an element that differs.
        statistics: of those compared as if they were one vector.
        likeness: of those that changed, each about its own mean: what was kept says nothing of them; 1 if none did.
        parts: its `weights` and its `vectors`: pooled, layer-norm gains near 1 would hide what became of the weights.
    """

    name: str
    layer: int | None
    only_in_a: int
    only_in_b: int
    tensors: int
    changed_tensors: int
    statistics: PairStatistics
    likeness: Likeness
    parts: dict[str, Group]

    @classmethod
    def of(
        cls, name: str, layer: int | None, rows: Sequence[Row], parts: Mapping[str, Sequence[str]] = _PARTS
    ) -> Group:
        """Put tensors together, and those of some kinds apart."""
        alone, like = [row.only_in for row in rows], likeness_of(rows)
        changed = sum(bool(row.changed) for row in rows)
        statistics = sum((row.statistics for row in rows if row.only_in is None), PairStatistics())
        split = {part: cls.of(name, layer, [row for row in rows if row.kind in parts[part]], {}) for part in parts}
        return cls(name, layer, alone.count("a"), alone.count("b"), alone.count(None), changed, statistics, like, split)

    @property
    def note(self) -> str:
        """What a reader of the table should know."""
        alone = ((self.only_in_a, "A"), (self.only_in_b, "B"))
        return "; ".join(f"{count} only in {side}" for count, side in alone if count)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data: of all tensors, and under `weights` and `vectors` of these."""
        facts = {key: getattr(self, key) for key in ("name", "layer", "only_in_a", "only_in_b")}
        return {**facts, **self._counts(), **{name: part._counts() for name, part in self.parts.items()}}

    def _counts(self) -> dict[str, Any]:
        counts = {"tensors": self.tensors, "changed_tensors": self.changed_tensors}
        return {**counts, "elements": self.statistics.elements, **self.numbers()}

    def numbers(self) -> dict[str, Any]:
        """Return the statistics as JSON has them, `None` where there is nothing to compare."""
        return _numbers(self.statistics, self.likeness)


def likeness_of(rows: Iterable[Row]) -> Likeness:
    """Return what is left of the tensors that changed; of all that were compared where none did."""
    both = [row for row in rows if row.only_in is None]
    return sum((row.statistics.likeness for row in [row for row in both if row.changed] or both), Likeness())


def _numbers(statistics: PairStatistics, likeness: Likeness) -> dict[str, Any]:
    found = likeness.to_dict()
    return statistics.to_dict() | (found if statistics.elements else dict.fromkeys(found))


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints, side by side.

    Args:
        a: the first, which distances are relative to.
        b: the second.
        tensors: a row a tensor, in the order of A's original class; those that only B has come last.
        layers: one a layer, and one for every module outside of the layers.
        total: all tensors; a tied tensor that was compared with a head counts once more.
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
        return any(row.only_in or row.changed for row in self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data; `None` for what is not a number, such as a relative distance from zero."""
        whole = {"a": self.a.to_dict(), "b": self.b.to_dict(), "changed": self.changed, "total": self.total.to_dict()}
        each = {key: [one.to_dict() for one in getattr(self, key)] for key in ("layers", "tensors")}
        return {**whole, **each, "histogram": asdict(self.histogram)}


def compare_checkpoints(
    a: str | Path,
    b: str | Path,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
    trust_remote_code: bool = False,
) -> Comparison:
    """Compare two checkpoints of one network, reading both once, a chunk at a time.

    Tensors of one type count as changed by their bits, so that 0.0 is not -0.0 and one NaN is not another. Tensors of
    two types are compared by value: a cast changes the values that it rounds, and no others. Where one checkpoint has
    a tied head and the other a head of its own, the latter is compared with the tensor that the former is tied to.

    Args:
        a: a folder, a Hub id, an original `.pt` file, or `demo`; a base or a variant.
        b: the same; distances are relative to `a`.
        jobs: tensors at a time; `None` for one a processor.
        progress: called with the bytes that are done and those in all, of both.
        trust_remote_code: run the code that comes with a network that Transformers does not have.

    Raises:
        CheckpointError: if one cannot be used, or if they are of two families or a tensor is of two shapes.
    """
    if jobs is not None and jobs < 1:
        raise CheckpointError(f"jobs: got {jobs}; allowed: 1 or more")
    one, other = _opened(a, b, trust_remote_code)
    if one.network.family != other.network.family:
        kinds = f"{one.name!r} is a {one.network.family}, {other.name!r} a {other.network.family}"
        raise CheckpointError(f"{kinds}; allowed: two checkpoints of one family")
    rows, histogram = _compared(one, other.named_as(one), jobs, progress)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    layers = tuple(Group.of(name, members[0].layer, members) for name, members in groups.items())
    return Comparison(_side(one), _side(other), rows, layers, Group.of("total", None, rows), histogram)


def _opened(a: str | Path, b: str | Path, trust_remote_code: bool) -> list[Checkpoint]:
    """Open two checkpoints, a stock ESM as what the other is of: a network of ours, or one of Transformers."""
    open_one = partial(Checkpoint.open, trust_remote_code=trust_remote_code)
    opened = [open_one(name) for name in (a, b)]
    if len({isinstance(each.described, AnyNetwork) for each in opened}) == 2:
        opened = [open_one(name, rules="transformers") for name in (a, b)]
    return [each.check() for each in opened]


def compare_variants(
    a: str | Path,
    b: str | Path,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
    trust_remote_code: bool = False,
) -> dict[Path, Comparison | Exception]:
    """Compare each variant in a matrix folder with one checkpoint, also when one of them cannot be compared.

    Args:
        a: as for `compare_checkpoints`, or a folder of variants, as `create_variants` writes.
        b: the same; one of the two is such a folder.
        jobs: see there.
        progress: see there.
        trust_remote_code: see there.

    Returns:
        What was found by the folder of each variant, or the error that says why it cannot be compared.

    Raises:
        CheckpointError: if not one of the two is a folder of variants, or the other cannot be used.
    """
    in_a, in_b = folders_of(a), folders_of(b)
    if bool(in_a) == bool(in_b):
        raise CheckpointError(f"{a} and {b} are {'both' if in_a else 'no'} folders of variants; allowed: one of them")
    # what is wrong with it is no problem of a variant
    Checkpoint.open(a if in_b else b, trust_remote_code=trust_remote_code).check()
    found: dict[Path, Comparison | Exception] = {}
    for folder in in_a or in_b:
        try:
            sides = (folder, b) if in_a else (a, folder)
            given: dict[str, Any] = {"jobs": jobs, "progress": progress, "trust_remote_code": trust_remote_code}
            found[folder] = compare_checkpoints(*sides, **given)
        except (OSError, ValueError) as error:
            found[folder] = error
    return found


def _side(checkpoint: Checkpoint) -> Side:
    place = Path(checkpoint.name)
    name = place.resolve().name if place.exists() else checkpoint.name
    if checkpoint.has_changed:
        _LOG.warning("%s is %s: no control any more", name, checkpoint.record)
    return Side(name, checkpoint.revision, checkpoint.record)


def _compared(
    a: Checkpoint, b: Checkpoint, jobs: int | None, progress: Progress | None
) -> tuple[tuple[Row, ...], Histogram]:
    """Return a row for every tensor, in the order of the first checkpoint, and the histogram of all."""
    # a head that is tied in both is compared as what it is tied to
    shapes = {**a.shapes, **b.shapes}
    # without a head there is none that is tied
    tied_a, tied_b = (
        {name: of.network.tied[name] for name in of.network.tied.keys() & of.network.shapes} for of in (a, b)
    )
    in_a = {**a.tensors, **{name: a.tensors[source] for name, source in tied_a.items()}}
    in_b = {**b.tensors, **{name: b.tensors[source] for name, source in tied_b.items()}}
    pairs = {name: (in_a[name], in_b[name]) for name in shapes if name in in_a and name in in_b}
    if not pairs:
        raise CheckpointError(f"{a.name!r} and {b.name!r} are different networks; no tensor of one is in the other")
    if odd := [f"{name} {x.shape} and {y.shape}" for name, (x, y) in pairs.items() if x.shape != y.shape]:
        raise CheckpointError(f"{a.name!r} and {b.name!r} are different networks; tensors of two shapes: {listed(odd)}")
    parameters = {name for name in shapes if all(of.network.is_parameter(name) for of in (a, b) if name in of.tensors)}
    found, histogram = _statistics(pairs, parameters, jobs, progress)
    table = a.network.table()
    places = {name: table.place(name) for name in shapes}
    stacks = {place.stack.partition(".")[0] for place in places.values()}
    rows = []
    for name, shape in shapes.items():
        dtype_a, dtype_b = (DTYPES[of[name].dtype] if name in of else None for of in (in_a, in_b))
        tied = {side: of[name] for side, of in (("a", tied_a), ("b", tied_b)) if name in of}
        statistics = found.get(name, PairStatistics())
        place, kind = places[name], _kind(name, shapes) if name in parameters else "buffer"
        said = (name, place.layer, place.stack, kind, math.prod(shape), dtype_a, dtype_b, tied, statistics)
        rows.append(Row(*said, _group(place, stacks)))
    return tuple(rows), histogram


def _group(place: Place, stacks: Collection[str]) -> str:
    """Return what a layer is called, or a module outside of them, by its first word or the first two that tell it."""
    if place.layer is not None:
        return f"{place.stack}.layers.{place.layer}".removeprefix(".")
    first, *more = place.rest.split(".")
    return ".".join([first, *more[: first in ("model", *stacks)]])


def _kind(name: str, shapes: Mapping[str, Shape]) -> str:
    # in these networks only a norm's weight is a vector
    weight = shapes.get(f"{name.rpartition('.')[0]}.weight", ())
    return "norm" if len(weight) == 1 else "bias" if _BIAS.search(name) else "weight"


def _statistics(
    pairs: Mapping[str, tuple[Tensor, Tensor]], names: Collection[str], jobs: int | None, progress: Progress | None
) -> tuple[dict[str, PairStatistics], Histogram]:
    """Read every pair once, several at a time, and return the statistics by name, and the histogram of parameters."""
    parameters = [pair for name, pair in pairs.items() if name in names]
    width = bin_width(_sample(tensors) for tensors in zip(*parameters, strict=True))
    count = counter(sum(a.nbytes + b.nbytes for a, b in pairs.values()), progress)
    found: dict[str, PairStatistics] = {}
    bins: dict[str, Array] = {}

    def compare(name: str) -> None:
        statistics, counts = PairStatistics(), np.zeros((2, BINS + 2), np.int64)
        for a, b in chunks(*pairs[name]):
            part = PairStatistics.of(a, b)
            statistics += part
            if name in names:
                counted = bin_counts(a, width)
                counts += counted, bin_counts(b, width) if part.differing else counted
            count(a.nbytes + b.nbytes)
        found[name], bins[name] = statistics, counts

    for_each(compare, pairs, jobs)
    return found, Histogram.of(width, *np.sum(list(bins.values()), axis=0))


def chunks(a: Tensor, b: Tensor) -> Iterator[tuple[Array, Array]]:
    """Read two tensors of one shape, of any types, as pairs of vectors of at most `CHUNK` elements.

    A pair is good until the next one.
    """
    readers = _reader(a, CHUNK), _reader(b, CHUNK)
    for start in range(0, a.elements, CHUNK):
        first, second = (read(start, min(CHUNK, a.elements - start)) for read in readers)
        yield first, second


def _sample(tensors: Sequence[Tensor]) -> Array:
    """Read the middle of each tensor, as much as is its share in the network: some `SAMPLE` elements in all."""
    share = min(1.0, SAMPLE / sum(tensor.elements for tensor in tensors))
    parts = []
    for tensor in tensors:
        size = math.ceil(share * tensor.elements)
        parts.append(cast(_reader(tensor, size)((tensor.elements - size) // 2, size), np.dtype(np.float32)))
    return np.concatenate(parts)


def _reader(tensor: Tensor, most: int) -> Callable[[int, int], Array]:
    """Return what reads at most so many elements, from one on, as a vector that is good until the next."""
    region = tensor.region
    if region is None:
        flat = tensor.values().reshape(-1)
        return lambda start, size: flat[start : start + size]
    # read and not mapped, so that no page stays in memory
    vector = np.empty(min(most, tensor.elements), tensor.numpy_dtype)

    def read(start: int, size: int) -> Array:
        part = vector[:size]
        region.file.read_into(part.view(np.uint8).data, region.begin + start * part.itemsize)
        return part

    return read
