"""Which of several processes this one is, as its launcher says; torch is not needed to know that."""

from __future__ import annotations

import os

# torchrun and `accelerate launch`, and what MPI starts
_NAMES = (
    ("RANK", "WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
)


def launched() -> tuple[int, int]:
    """Return the number of this process, and how many there are."""
    for names in _NAMES:
        rank, size = (os.environ.get(name, "") for name in names)
        if rank.isdecimal() and size.isdecimal() and int(size) > 1:
            return int(rank), int(size)
    return 0, 1
