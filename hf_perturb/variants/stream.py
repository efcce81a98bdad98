"""Tensors from file to file: read once, perturbed, hashed and written by several threads, never all in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from blake3 import blake3

from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.tensors import Tensor, bytes_of
from hf_perturb.perturbation import Perturbation, Step
from hf_perturb.perturbation.digest import NO_DIGEST, bytes_of_values, digest_line, digest_of_lines, tensor_digest
from hf_perturb.perturbation.floats import Array, cast, dtype_code, numpy_dtype
from hf_perturb.perturbation.parallel import for_each
from hf_perturb.variants.blueprint import Blueprint, Output, document_shapes
from hf_perturb.variants.shards import Shards

if TYPE_CHECKING:
    from hf_perturb.perturbation.published import StudyGenerator

# called with the bytes that are done and those in all
Progress = Callable[[int, int], object]
# called by several threads with the name of a tensor and what it is to hold
Sink = Callable[[str, "Tensor | Made"], None]


@dataclass
class Sources:
    """The tensors to read.

    Args:
        tensors: by name, in the order of the network; each is read once.
        dtypes: the type that each is cast to before anything else, `F32`.
        digests: `dtype shape blake3` of every tensor, cast; filled in while they are read.
        nonfinite: names of tensors with NaN or infinite values; filled in if `look` is set.
        look: whether to look for such values.
    """

    tensors: Mapping[str, Tensor]
    dtypes: Mapping[str, str]
    digests: dict[str, str] = field(default_factory=dict)
    nonfinite: list[str] = field(default_factory=list)
    look: bool = False

    @classmethod
    def of(cls, base: Checkpoint) -> Sources:
        """Return the tensors of a base, in the order in which steps that share a generator have to come."""
        ties, order = base.network.tied, dict[str, None]()
        for name in document_shapes(base.network, "published"):
            source = ties.get(name, name)
            # a tied tensor is drawn when its last name comes
            order.pop(source, None)
            order[source] = None
        # what Transformers holds otherwise comes last, by the names that it is stored by
        names = [name for name in order if name in base.tensors]
        return cls({name: base.tensors[name] for name in dict.fromkeys([*names, *base.tensors])}, base.dtypes())

    def digest(self) -> str:
        """Return the digest of what was read."""
        return digest_of_lines(self.digests)

    def size(self, name: str) -> int:
        """Return the bytes of a tensor, cast."""
        return bytes_of(self.dtypes[name], self.tensors[name].shape)

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the type that a tensor is cast to."""
        return numpy_dtype(self.dtypes[name])

    def values(self, name: str) -> Array:
        """Return a tensor in memory, cast."""
        return cast(self.tensors[name].values(), self.dtype(name))


@dataclass
class Made:
    """A tensor that a step makes block by block while it is used, once, and that is hashed as it passes.

    Args:
        step: what is done.
        dtype: of the tensor.
        old: the values before, `None` for a step that reads none.
    """

    step: Step
    dtype: np.dtype[Any]
    old: Array | None
    region: ClassVar[None] = None  # in no file
    _line: str | None = None

    def chunks(self) -> Iterator[memoryview]:
        """Return the bytes; a chunk is good until the next one."""
        content = blake3()
        for block in self.step.blocks(self.old, self.dtype):
            data = bytes_of_values(block)
            content.update(data)
            yield data
        self._line = digest_line(dtype_code(self.dtype), self.step.shape, content.hexdigest())

    def values(self) -> Array:
        """Return the values whole."""
        made = self.step.run(self.old, self.dtype)
        self._line = tensor_digest(made)
        return made

    def digest(self) -> str:
        """Return `dtype shape blake3`, of what was used already, or is made for that."""
        if self._line is None:
            for _ in self.chunks():
                pass
        return str(self._line)


@dataclass
class Target:
    """One set of weights that comes from the sources.

    Args:
        outputs: by the name to write, in the order of the network.
        sink: where they go, `None` for who wants nothing but the digests.
        generator: the one that all steps share, `None` where each has its own.
        digests: `dtype shape blake3` of every tensor, as `tensor_digest` gives it; filled in while it is written.
    """

    outputs: Mapping[str, Output]
    sink: Sink | None
    generator: StudyGenerator | None = None
    digests: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, blueprint: Blueprint, sink: Sink | None) -> Target:
        """Return what a blueprint says, with a generator of its own at its beginning."""
        return cls(blueprint.outputs, sink, blueprint.plan.generator())

    def digest(self) -> str:
        """Return the digest of what was written."""
        return digest_of_lines(self.digests)


def stream(
    sources: Sources,
    targets: Sequence[Target] = (),
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Read the tensors of one checkpoint once, and make those of any number of targets of them.

    In memory are at most the tensors at hand: for each job the one that it reads and the one that it writes. Without
    targets, the sources are hashed. Progress is of the bytes of the sources and of all outputs.
    """
    names = [*sources.tensors, *(output.source for target in targets for output in target.outputs.values())]
    count = counter(sum(map(sources.size, names)), progress)
    for_each(lambda job: _run(sources, job, count), _jobs(sources, targets), jobs)


def counter(total: int, progress: Progress | None) -> Callable[[int], None]:
    """Return a function that adds up bytes, from any thread, and tells `progress`."""
    lock, done = Lock(), 0

    def add(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            if progress is not None:
                progress(done, total)

    return add


def write_weights(
    folder: Path,
    tensors: Mapping[str, Tensor],
    dtypes: Mapping[str, str],
    record: Perturbation | None = None,
    names: Mapping[str, str] | None = None,
) -> tuple[Sources, Perturbation | None]:
    """Write `model.safetensors`, or shards and their index, as `save_pretrained` names and cuts them.

    Args:
        folder: an existing folder.
        tensors: by the name to write.
        dtypes: the type that each is cast to, `F32`.
        record: what was done to them.
        names: by document name, those to write of the tensors that count in its digest; `None` where they agree.

    Returns:
        What was written, with its digests and the names of the tensors that are not numbers; and the record, with the
        digest of what was written, where there was one; weights that have changed since keep that of the control.
    """
    sources = Sources(tensors, dtypes, look=True)
    shapes = {name: (dtypes[name], tensor.shape) for name, tensor in tensors.items()}
    is_told = record is not None and record.digest is not None and not record.changed
    if record is not None and is_told:
        record = replace(record, digest=NO_DIGEST)
    with closing(Shards(folder, shapes, record)) as shards:
        stream(sources, [Target({name: Output(name) for name in tensors}, shards.write)])
        if record is not None and is_told:
            named = {name: name for name in tensors} if names is None else names
            lines = {ours: sources.digests[name] for ours, name in named.items()}
            record = replace(record, digest=digest_of_lines(lines))
        shards.finish(record, sources.digests)
    return sources, record


@dataclass(frozen=True)
class _Use:
    """An output that comes from a source: of which target, its name, its step, and what was drawn for it already."""

    target: Target
    name: str
    step: Step | None
    drawn: Array | None = None

    @property
    def reads(self) -> bool:
        """Whether values are needed for it still."""
        return self.step is not None and self.step.reads and self.drawn is None


# the name of a source, its values if they were read already, and what comes from it
_Job = tuple[str, Array | None, list[_Use]]


def _jobs(sources: Sources, targets: Sequence[Target]) -> Iterator[_Job]:
    """Make the jobs in the order of the sources; what shares a generator is drawn here, in turn."""
    uses: dict[str, list[_Use]] = {name: [] for name in sources.tensors}
    for target in targets:
        for name, output in target.outputs.items():
            uses[output.source].append(_Use(target, name, output.step))
    for source, used in uses.items():
        values, ready = None, []
        for use in used:
            step, generator = use.step, use.target.generator
            drawn = None
            if step is not None and generator is not None:
                if values is None and step.reads:
                    values = sources.values(source)
                drawn = step.run(values, sources.dtype(source), generator)
            ready.append(replace(use, drawn=drawn))
        yield source, values, ready


def _run(sources: Sources, job: _Job, count: Callable[[int], None]) -> None:
    name, values, uses = job
    stored = sources.tensors[name]
    # a tensor that is kept is copied by the kernel, and a draw needs no values: those are only looked at as they pass
    is_cast = stored.region is None or stored.dtype != sources.dtypes[name]
    if values is None and (is_cast or any(use.reads for use in uses)):
        values = sources.values(name)
    digest, finite = (stored if values is None else Tensor.of(values)).examine(sources.look)
    if not finite:
        sources.nonfinite.append(name)
    sources.digests[name] = digest
    count(sources.size(name))
    kept = Tensor.of(values) if is_cast and values is not None else stored
    for use in uses:
        made: Tensor | Made = kept
        if use.drawn is not None:
            made = Tensor.of(use.drawn)
        elif use.step is not None:
            made = Made(use.step, sources.dtype(name), values)
        if use.target.sink is not None:
            use.target.sink(use.name, made)
        use.target.digests[use.name] = digest if made is kept else made.digest()
        count(sources.size(name))
