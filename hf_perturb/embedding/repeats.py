"""Texts that came before, found in temporary files: memory grows by a byte or so for each text."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from hf_perturb.errors import FastaError

_PARTS = 32  # files, each of them held in memory at the end; a power of two
_BATCH = 100_000  # texts between two visits of the files, 16 bytes each


class Repeats:
    """Finds which of the texts that it is given came before.

    Raises:
        FastaError: if there is no room for the temporary files, 16 bytes for each text.
    """

    def __init__(self) -> None:
        self._waiting = array("q")
        with ExitStack() as stack, _room():
            self._files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(_PARTS)]
            self._open = stack.pop_all()

    def add(self, text: str, place: int) -> None:
        """Remember a text; places ascend, and an empty text repeats nothing."""
        if not text:
            return
        # 64 bits, the same within this process: among 10 million texts one false repeat in 300,000 runs
        self._waiting.append(hash(text))
        self._waiting.append(place)
        if len(self._waiting) >= 2 * _BATCH:
            self._flush()

    def found(self) -> tuple[int, int]:
        """Return how many texts came before, and the place of the first of them (-1 if there is none)."""
        import numpy as np

        self._flush()
        count, first = 0, -1
        for file in self._files:
            with _room():
                file.seek(0)
                pairs = np.frombuffer(file.read(), np.int64).reshape(-1, 2)
            order = np.argsort(pairs[:, 0], kind="stable")  # equal ones stay in the order of their places
            hashes = pairs[order, 0]
            again = pairs[order[1:][hashes[1:] == hashes[:-1]], 1]
            if len(again):
                count += len(again)
                first = int(again.min()) if first < 0 else min(first, int(again.min()))
        return count, first

    def close(self) -> None:
        """Remove the temporary files."""
        with suppress(OSError):  # a full disk would be told twice
            self._open.close()

    def _flush(self) -> None:
        """Write what waits to the files; equal texts meet in the same one."""
        import numpy as np

        pairs = np.frombuffer(self._waiting, np.int64).reshape(-1, 2)
        parts = pairs[:, 0] % _PARTS
        with _room():
            for part, file in enumerate(self._files):
                file.write(pairs[parts == part].tobytes())
        self._waiting = array("q")


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FastaError(
            f"repeats cannot be looked for in temporary files: {error}; set TMPDIR to a folder that has room"
        ) from error
