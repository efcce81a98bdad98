"""The random words of a tensor: a stream of its own, the same bits on every processor, system and version.

The contract is the algorithm, Philox4x64 of 10 rounds, and no library; numpy's bit generator is that.
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.random import Philox

from hf_perturb.perturbation.floats import Array


def stream_key(seed: int, name: str) -> int:
    """Return the key of a tensor's stream, of 128 bits: no other tensor and no order can change its draws."""
    return int.from_bytes(hashlib.sha256(f"hf_perturb/2/{seed}/{name}".encode()).digest()[:16], "big")


class Stream:
    """The words of one tensor, from the first; the counter of the first four is 1.

    Args:
        key: of 128 bits, from `stream_key`; its low half comes first.
    """

    def __init__(self, key: int):
        # not numpy's `Generator`, which is no faster, and may draw otherwise in another version
        self._bits = Philox(key=key)

    def words(self, count: int) -> Array:
        """Return the next words, `(count,)` of 64 bits."""
        return np.asarray(self._bits.random_raw(count), np.uint64)

    def halves(self, count: int) -> Array:
        """Return the next halves of words, `(count,)` of 32 bits, the low one first; what is left of a word goes."""
        halves = self.words(-(-count // 2)).astype("<u8", copy=False).view("<u4")
        return halves.astype(np.uint32, copy=False)[:count]
