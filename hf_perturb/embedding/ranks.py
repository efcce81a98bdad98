"""The processes of a run: one, or those that `accelerate launch`, `torchrun` or MPI started. Imports without torch."""

from __future__ import annotations

import atexit
import ctypes
import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from hf_perturb.embedding.manifest import Shard
from hf_perturb.errors import EmbeddingsError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Work

# torchrun and `accelerate launch`, and what MPI starts: number of the process, on its machine, and of all
_NAMES = (
    ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_SIZE"),
)
# ranks wait for the slowest, which may have hours of work left
_PATIENCE = timedelta(days=30)
_LOOK = 0.05  # seconds between two looks whether the others are there

Result = TypeVar("Result")


class SaidElsewhereError(EmbeddingsError):
    """Another process failed, and says why."""


class Ranks:
    """The processes of a run, which talk through `group`, in words and no tensors; by default this one by itself.

    `rank` is the number of this one, and `device` its own, `None` to choose freely.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: str | None = None, group: ProcessGroup | None = None):
        self.rank, self.size, self.device, self._group = rank, size, device, group
        self._awaited: Work | None = None

    def gather(self, value: Any) -> list[Any]:
        """Wait for every process, and return the values of all, by rank.

        Raises:
            EmbeddingsError: if one will not come any more; a `SaidElsewhereError` in all processes but the first.
        """
        if self.size == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.size
        try:
            self._awaited = there = distributed.barrier(group=self._group, async_op=True)
            # inside a blocking wait, no signal would be heard
            while not there.is_completed():
                time.sleep(_LOOK)
            there.wait()
            distributed.all_gather_object(values, value, group=self._group)
        except RuntimeError as error:
            if self.rank:
                raise SaidElsewhereError("another process ended before its work was done") from error
            raise EmbeddingsError(
                "another process failed or was killed before its work was done; every shard that is there is whole: the"
                " same command continues, on any number of processes"
            ) from error
        return values

    def together(self, do: Callable[[], Result], first_only: bool = False) -> Result:
        """Do something in every process, or in the first for all; it fails everywhere if it fails anywhere.

        Raises:
            SaidElsewhereError: if only others failed, or a process of lower rank too.
            Exception: what `do` raised.
        """
        value, failure = None, None
        if self.rank == 0 or not first_only:
            try:
                value = do()
            except Exception as error:  # whoever is interrupted leaves at once
                failure = error
        outcomes = self.gather((failure is not None, value if first_only else None))
        failed = [rank for rank, (was, _) in enumerate(outcomes) if was]
        if failed and failed[0] != self.rank:
            raise SaidElsewhereError(f"process {failed[0]} failed, and says why") from failure
        if failure is not None:
            raise failure
        return cast(Result, outcomes[0][1] if first_only else value)

    def leave(self) -> None:
        """Let go of the group, and so end its threads: one that frees a tensor as Python ends aborts the process."""
        if self._awaited is not None and not self._awaited.is_completed():
            # the end of a group waits for its work, and so for the others; whoever was interrupted has to go
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._group))
        self._group = None


def launched() -> tuple[int, int, int]:
    """Return the number of this process, that on its machine, and how many there are in all."""
    for names in _NAMES:
        rank, local, size = (os.environ.get(name, "") for name in names)
        if rank.isdecimal() and size.isdecimal() and int(size) > 1:
            return int(rank), int(local if local.isdecimal() else rank), int(size)
    return 0, 0, 1


@cache
def find_ranks(cpu: bool) -> Ranks:
    """Return the processes that this one belongs to, once they have found each other; on CPUs if `cpu`.

    Raises:
        EmbeddingsError: if they cannot find each other.
    """
    rank, local, size = launched()
    if size == 1:
        return Ranks()
    from torch import distributed

    try:
        if not distributed.is_initialized():
            os.environ.setdefault("MASTER_PORT", "29500")  # MPI names none
            distributed.init_process_group("gloo", rank=rank, world_size=size)
            atexit.register(distributed.destroy_process_group)  # or torch complains at the end
        group = distributed.new_group(backend="gloo", timeout=_PATIENCE)  # whatever the devices are
    except (RuntimeError, ValueError) as error:
        raise EmbeddingsError(
            f"{size} processes were started, and process {rank} cannot find the others: {error}; start them with"
            " `accelerate launch --multi_gpu` or torchrun (on CPUs too), or start one"
        ) from error
    cpu = cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    ranks = Ranks(rank, size, "cpu" if cpu else _own_device(local), group)
    atexit.register(ranks.leave)
    return ranks


def _own_device(local: int) -> str:
    """Choose the device of a process by its number on its machine, and let what torch allocates by itself go there."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return "cpu"
    index = local % torch.accelerator.device_count()
    torch.accelerator.set_device_index(index)
    return f"{accelerator.type}:{index}"


def split(work: Sequence[Shard], size: int) -> list[list[Shard]]:
    """Divide work so that all have about as many residues to do: the largest piece goes to whoever has least."""
    parts: list[list[Shard]] = [[] for _ in range(size)]
    loads = [0] * size
    for shard in sorted(work, key=lambda shard: -shard.residues):
        least = loads.index(min(loads))
        parts[least].append(shard)
        loads[least] += shard.residues
    return [sorted(part, key=lambda shard: shard.number) for part in parts]
