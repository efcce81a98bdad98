"""The processes of a run: one, or those that `accelerate launch` or `torchrun` started."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from heapq import heapify, heapreplace
from typing import Any, NoReturn, TypeVar, cast

import torch

from hf_perturb.embedding.launch import launched
from hf_perturb.embedding.manifest import Shard
from hf_perturb.errors import EmbeddingsError

# ranks wait for the slowest, which may have hours of work left
_PATIENCE = timedelta(days=30)
_LOOK = 0.05  # seconds between two looks whether the others are there

Result = TypeVar("Result")


class SaidElsewhereError(EmbeddingsError):
    """Another process failed, and says why."""


class Ranks:
    """One process by itself.

    Args:
        rank: the number of this one.
        size: how many there are.
        device: that of this process, `None` to choose freely.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: str | None = None):
        self.rank, self.size, self.device = rank, size, device

    def wait(self) -> None:
        """Wait until every process is here.

        Raises:
            EmbeddingsError: if one will not come any more.
        """

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank."""
        return [value]

    def together(self, do: Callable[[], Result], first_only: bool = False) -> Result:
        """Do something in every process; it fails everywhere if it fails anywhere.

        Args:
            do: what to do.
            first_only: let the first process do it, and give everybody its result.

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


class _Launched(Ranks):
    """Processes that talk through gloo, whatever their devices: they have words to exchange, and no tensors."""

    def __init__(self, size: int, cpu: bool):
        try:
            from accelerate import PartialState
        except ImportError as error:
            raise EmbeddingsError(
                f"several processes need accelerate ({error}): pip install 'hf-perturb[accelerate]'"
            ) from error
        begun = torch.distributed.is_initialized()
        # accelerate takes processes without an accelerator for strangers, unless it is told
        cpu = cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.accelerator.is_available()
        state = PartialState(cpu=cpu, timeout=_PATIENCE)
        if state.num_processes != size or not torch.distributed.is_initialized():
            raise EmbeddingsError(
                f"{size} processes were started, and accelerate finds {state.num_processes}; give --device cpu, start"
                " them with `accelerate launch --multi_gpu` or torchrun (on CPUs too), or start one"
            )
        if not begun:  # or torch complains at the end
            atexit.register(state.destroy_process_group)
        super().__init__(state.process_index, size, str(state.device))
        self._group = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)

    def wait(self) -> None:
        try:
            there = torch.distributed.barrier(group=self._group, async_op=True)
            # inside a blocking wait, no signal would be heard
            while not there.is_completed():
                time.sleep(_LOOK)
            there.wait()
        except RuntimeError as error:
            self._lost(error)

    def gather(self, value: Any) -> list[Any]:
        self.wait()
        values: list[Any] = [None] * self.size
        try:
            torch.distributed.all_gather_object(values, value, group=self._group)
        except RuntimeError as error:
            self._lost(error)
        return values

    def _lost(self, error: RuntimeError) -> NoReturn:
        if self.rank:
            raise SaidElsewhereError("another process ended before its work was done") from error
        raise EmbeddingsError(
            "another process failed or was killed before its work was done; every shard that is there is whole: the"
            " same command continues, on any number of processes"
        ) from error


@cache
def _launched(size: int, cpu: bool) -> Ranks:
    return _Launched(size, cpu)


def find_ranks(cpu: bool) -> Ranks:
    """Return the processes that this one belongs to.

    Args:
        cpu: whether they are to work on CPUs, whatever the machine has.

    Raises:
        EmbeddingsError: if there are several and accelerate is not installed, or does not know them.
    """
    _, size = launched()
    return _launched(size, cpu) if size > 1 else Ranks()


def split(work: Sequence[Shard], size: int) -> list[list[Shard]]:
    """Divide work so that all have about as many residues to do: the largest piece goes to whoever has least.

    Args:
        work: in order.
        size: how many share it.

    Returns:
        What each has to do, in order.
    """
    parts: list[list[int]] = [[] for _ in range(size)]
    loads = [(0, number) for number in range(size)]
    heapify(loads)
    for place in sorted(range(len(work)), key=lambda place: -work[place].residues):
        load, number = loads[0]
        parts[number].append(place)
        heapreplace(loads, (load + work[place].residues, number))
    return [[work[place] for place in sorted(part)] for part in parts]
