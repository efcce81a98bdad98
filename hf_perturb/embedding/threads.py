"""Several batches at a time on a CPU, where a small network leaves processors idle between one layer and the next."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import torch

from hf_perturb.networks.encoder import EncoderPreTrainedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SMALL = 50_000_000  # parameters; with more, each product is enough for all processors
_MOST = 4  # Python itself runs one at a time
# how many threads torch has is one number for all of the process
_held = threading.Lock()

Job = TypeVar("Job")
Result = TypeVar("Result")


def workers_for(model: PreTrainedModel) -> int:
    """Return how many batches a network of ours, which nobody else has, is given at a time."""
    if not isinstance(model, EncoderPreTrainedModel) or model.device.type != "cpu":
        return 1
    if torch.is_autocast_enabled("cpu"):  # which is said to one thread alone
        return 1
    is_small = sum(parameter.numel() for parameter in model.parameters()) <= _SMALL
    return min(_MOST, torch.get_num_threads()) if is_small else 1


def side_by_side(do: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Generator[tuple[Job, Result]]:
    """Give each job with its result, in order; no more than one job waits beside those that are done.

    Torch has its threads divided among the workers meanwhile. Where another run has done so, jobs are done one by one.
    To be closed: then what was begun is waited for, and nothing else is begun.
    """
    if workers < 2 or not _held.acquire(blocking=False):
        for job in jobs:
            yield job, do(job)
        return
    threads, waiting = torch.get_num_threads(), deque[tuple[Job, Future[Result]]]()
    try:
        # a thread takes the number that it finds when it begins
        torch.set_num_threads(max(1, threads // workers))
        with ThreadPoolExecutor(workers, "hf_perturb") as pool:
            try:
                for job in jobs:
                    waiting.append((job, pool.submit(do, job)))
                    if len(waiting) > workers:
                        first, future = waiting.popleft()
                        yield first, future.result()
                while waiting:
                    first, future = waiting.popleft()
                    yield first, future.result()
            finally:
                for _, future in waiting:
                    future.cancel()
    finally:
        torch.set_num_threads(threads)
        _held.release()
