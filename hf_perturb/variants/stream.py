"""Tensors from file to file: read once, perturbed, hashed and written by several threads, never all in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from hf_perturb.networks.weights import Region, is_finite
from hf_perturb.perturbation.digest import DTYPES, digest_line, digest_of_lines, tensor_digest
from hf_perturb.perturbation.parallel import for_each
from hf_perturb.perturbation.plan import Step
from hf_perturb.variants.shards import MAX_SHARD_SIZE, Shards
from hf_perturb.variants.sources import Sources, sha256_of


@dataclass(frozen=True)
class Output:
    """A tensor to write.

    Args:
        source: name of the tensor that it comes from.
        step: what is done to it, `None` to keep it.
    """

    source: str
    step: Step | None = None


class Sink(Protocol):
    """Where tensors go; called by several threads."""

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Take the values of a tensor."""

    def copy(self, name: str, region: Region, dtype: torch.dtype) -> None:
        """Take a tensor as it is stored in another file."""


class Nowhere:
    """A sink for who wants nothing but the digests."""

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Drop the values of a tensor."""

    def copy(self, name: str, region: Region, dtype: torch.dtype) -> None:
        """Drop a tensor."""


@dataclass
class Target:
    """One set of weights that comes from the sources.

    Args:
        outputs: by the name to write, in the order of the network.
        sink: where they go.
        generator: the one that all steps share, `None` where each has its own.
        digests: `dtype shape sha256` of every tensor, as `tensor_digests` gives them; filled in while it is written.
    """

    outputs: Mapping[str, Output]
    sink: Sink = field(default_factory=Nowhere)
    generator: torch.Generator | None = None
    digests: dict[str, str] = field(default_factory=dict)

    def digest(self) -> str:
        """Return the digest of what was written."""
        return digest_of_lines(self.digests)


def stream(
    sources: Sources,
    targets: Sequence[Target] = (),
    *,
    jobs: int | None = None,
    on_bytes: Callable[[int], object] = lambda count: None,
) -> None:
    """Read the tensors of one checkpoint once, and make those of any number of targets of them.

    In memory are at most the tensors at hand: for each job the one that it reads and the one that it writes.

    Args:
        sources: what to read.
        targets: what becomes of it; without one, the sources are hashed.
        jobs: tensors at a time; `None` for one a processor.
        on_bytes: called with the number of bytes that are done, from any thread; in all they are `total_bytes`.
    """

    @torch.no_grad()
    def run(job: _Job) -> None:
        _run(sources, targets, job, on_bytes)

    for_each(run, _jobs(sources, targets), jobs)


def total_bytes(sources: Sources, targets: Sequence[Target] = ()) -> int:
    """Return how many bytes `stream` will call out: those of the sources and of all outputs."""
    names = [*sources.tensors, *(output.source for target in targets for output in target.outputs.values())]
    return sum(map(sources.size, names))


def write_weights(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    dtypes: Mapping[str, torch.dtype],
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> Sources:
    """Write `model.safetensors`, or shards and their index, as `save_pretrained` names and cuts them.

    Args:
        folder: an existing folder.
        tensors: by name, in the order of the network.
        dtypes: the type that each is written in.
        max_shard_size: bytes, or text such as `"5GB"`.

    Returns:
        What was written, with its digests and the names of the tensors that are not numbers.
    """
    sources = Sources(tensors, dtypes, look=True)
    shapes = {name: (dtypes[name], tuple(tensor.shape)) for name, tensor in tensors.items()}
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
        old = torch.empty(0, dtype=sources.dtypes[source]) if values is None else values
        with torch.no_grad():
            drawn = {use: step.run(old, generator) for use, (step, generator) in shared.items()}
        yield _Job(source, tuple(used), values, drawn)


def _run(sources: Sources, targets: Sequence[Target], job: _Job, on_bytes: Callable[[int], object]) -> None:
    name, region = job.source, sources.region(job.source)
    dtype, shape = sources.dtypes[name], sources.tensors[name].shape
    steps = {(index, output): targets[index].outputs[output].step for index, output in job.uses}
    # a tensor that is kept is copied by the kernel, and a draw needs no values: those are only hashed as they pass
    shuffled = any(step is not None and step.shuffles and use not in job.drawn for use, step in steps.items())
    if region is None or shuffled or sources.look or job.values is not None:
        values = sources.values(name) if job.values is None else job.values
        digest = tensor_digest(values)
        if sources.look and not is_finite(values):
            sources.nonfinite.append(name)
    else:
        values = torch.empty(0, dtype=dtype)
        digest = digest_line(DTYPES[dtype], shape, sha256_of(region))
    sources.digests[name] = digest
    on_bytes(sources.size(name))
    for (index, output), step in steps.items():
        if step is not None:
            new = job.drawn[index, output] if (index, output) in job.drawn else step.run(values)
            targets[index].sink.write(output, new)
            targets[index].digests[output] = tensor_digest(new)
        else:
            if region is not None:
                targets[index].sink.copy(output, region, dtype)
            else:
                targets[index].sink.write(output, values)
            targets[index].digests[output] = digest
        on_bytes(sources.size(name))
