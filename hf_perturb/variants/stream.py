"""Tensors from file to file: read once, perturbed, hashed and written by several threads, never all in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Protocol

import torch

from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.tensors import Region, Tensor, bytes_of, is_finite
from hf_perturb.perturbation.digest import digest_of_lines, tensor_digest, torch_dtype
from hf_perturb.perturbation.parallel import for_each
from hf_perturb.variants.blueprint import Blueprint, Output, document_shapes
from hf_perturb.variants.shards import MAX_SHARD_SIZE, Shards

# called with the bytes that are done and those in all
Progress = Callable[[int, int], object]


@dataclass
class Sources:
    """The tensors to read.

    Args:
        tensors: by name, in the order of the network; each is read once.
        dtypes: the type that each is cast to before anything else, `F32`.
        digests: `dtype shape sha256` of every tensor, cast; filled in while they are read.
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
        return cls({name: base.tensors[name] for name in order}, base.dtypes())

    def digest(self) -> str:
        """Return the digest of what was read."""
        return digest_of_lines(self.digests)

    def size(self, name: str) -> int:
        """Return the bytes of a tensor, cast."""
        return bytes_of(self.dtypes[name], self.tensors[name].shape)

    def values(self, name: str) -> torch.Tensor:
        """Return a tensor in memory, cast."""
        return self.tensors[name].values().to(torch_dtype(self.dtypes[name]))

    def region(self, name: str) -> Region | None:
        """Return where a tensor is stored as it is to be read, `None` if it is not."""
        tensor = self.tensors[name]
        return tensor.region if tensor.dtype == self.dtypes[name] else None


class Sink(Protocol):
    """Where tensors go; called by several threads."""

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Take the values of a tensor."""

    def copy(self, name: str, region: Region) -> None:
        """Take a tensor as it is stored in another file."""


class Nowhere:
    """A sink for who wants nothing but the digests."""

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Drop the values of a tensor."""

    def copy(self, name: str, region: Region) -> None:
        """Drop a tensor."""


@dataclass
class Target:
    """One set of weights that comes from the sources.

    Args:
        outputs: by the name to write, in the order of the network.
        sink: where they go.
        generator: the one that all steps share, `None` where each has its own.
        digests: `dtype shape sha256` of every tensor, as `tensor_digest` gives it; filled in while it is written.
    """

    outputs: Mapping[str, Output]
    sink: Sink = field(default_factory=Nowhere)
    generator: torch.Generator | None = None
    digests: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, blueprint: Blueprint, sink: Sink) -> Target:
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

    In memory are at most the tensors at hand: for each job the one that it reads and the one that it writes.

    Args:
        sources: what to read.
        targets: what becomes of it; without one, the sources are hashed.
        jobs: tensors at a time; `None` for one a processor.
        progress: called with the bytes that are done and those in all: those of the sources and of all outputs.
    """
    names = [*sources.tensors, *(output.source for target in targets for output in target.outputs.values())]
    count = counter(sum(map(sources.size, names)), progress)

    @torch.no_grad()
    def run(job: _Job) -> None:
        _run(sources, targets, job, count)

    for_each(run, _jobs(sources, targets), jobs)


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
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> Sources:
    """Write `model.safetensors`, or shards and their index, as `save_pretrained` names and cuts them.

    Args:
        folder: an existing folder.
        tensors: by name, in the order of the network.
        dtypes: the type that each is written in, `F32`.
        max_shard_size: bytes, or text such as `"5GB"`.

    Returns:
        What was written, with its digests and the names of the tensors that are not numbers.
    """
    sources = Sources(tensors, dtypes, look=True)
    shapes = {name: (dtypes[name], tensor.shape) for name, tensor in tensors.items()}
    with Shards(folder, shapes, {}, max_shard_size) as shards:
        stream(sources, [Target({name: Output(name) for name in tensors}, shards)])
        shards.finish({})
    return sources


@dataclass(frozen=True)
class _Job:
    """What comes from one source: index of the target and name of the output, and what was drawn for it already."""

    source: str
    uses: tuple[tuple[int, str], ...]
    values: torch.Tensor | None
    drawn: Mapping[tuple[int, str], torch.Tensor]


def _jobs(sources: Sources, targets: Sequence[Target]) -> Iterator[_Job]:
    """Make the jobs in the order of the sources; what shares a generator is drawn here, in turn."""
    uses: dict[str, list[tuple[int, str]]] = {name: [] for name in sources.tensors}
    for index, target in enumerate(targets):
        for name, output in target.outputs.items():
            uses[output.source].append((index, name))
    for source, used in uses.items():
        shared = {
            (index, name): (step, generator)
            for index, name in used
            if (step := targets[index].outputs[name].step) and (generator := targets[index].generator)
        }
        values = sources.values(source) if any(step.shuffles for step, _ in shared.values()) else None
        old = torch.empty(0, dtype=torch_dtype(sources.dtypes[source])) if values is None else values
        with torch.no_grad():
            drawn = {use: step.run(old, generator) for use, (step, generator) in shared.items()}
        yield _Job(source, tuple(used), values, drawn)


def _run(sources: Sources, targets: Sequence[Target], job: _Job, count: Callable[[int], None]) -> None:
    name, region = job.source, sources.region(job.source)
    steps = {(index, output): targets[index].outputs[output].step for index, output in job.uses}
    # a tensor that is kept is copied by the kernel, and a draw needs no values: those are only hashed as they pass
    shuffled = any(step is not None and step.shuffles and use not in job.drawn for use, step in steps.items())
    if region is None or shuffled or sources.look or job.values is not None:
        values = sources.values(name) if job.values is None else job.values
        digest = tensor_digest(values)
        if sources.look and not is_finite(values):
            sources.nonfinite.append(name)
    else:
        values = torch.empty(0, dtype=torch_dtype(sources.dtypes[name]))
        digest = sources.tensors[name].digest()
    sources.digests[name] = digest
    count(sources.size(name))
    for (index, output), step in steps.items():
        if step is not None:
            new = job.drawn[index, output] if (index, output) in job.drawn else step.run(values)
            targets[index].sink.write(output, new)
            targets[index].digests[output] = tensor_digest(new)
        else:
            if region is not None:
                targets[index].sink.copy(output, region)
            else:
                targets[index].sink.write(output, values)
            targets[index].digests[output] = digest
        count(sources.size(name))
