"""One digest of every kernel, axis and type; as a program it needs numpy, `ml_dtypes` and `perturbation/` alone.

So it says on any machine whether it draws as the others do: `python tests/perturbation/golden_draws.py`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

if __name__ == "__main__":
    # the packages without what their `__init__` imports
    for package in ("hf_perturb", "hf_perturb.perturbation"):
        module = sys.modules[package] = ModuleType(package)
        module.__path__ = [str(Path(__file__).parents[2].joinpath(*package.split(".")))]

import numpy as np

from hf_perturb.perturbation.floats import as_integers, cast, numpy_dtype
from hf_perturb.perturbation.kernels import KERNELS, READERS, fill
from hf_perturb.perturbation.streams import Stream, stream_key

DTYPES = ("F32", "BF16", "F16", "F64")
# odd ones, rows of one, of a sorting network and beyond, and more than a chunk of every kernel
SHAPES = ((1,), (2,), (7, 1), (129,), (3, 4, 5), (4099, 8), (3641, 9), (211, 320), (2, 33001), (16385,))
CALLS = (
    *(("shuffle", {"axis": axis}) for axis in ("embedding", "rows", "outputs", "all")),
    ("constant", {"value": 1.0}),
    ("uniform", {"bound": 0.0883883461356163}),
    ("normal", {"std": 0.0395284704864025}),
    ("normal", {"std": 2.5, "mean": -0.75, "zero_row": 0}),
    ("gaussian", {}),
)
Job = tuple[str, dict[str, object], tuple[int, ...], str]
JOBS: tuple[Job, ...] = tuple(
    (kernel, arguments, shape, code) for kernel, arguments in CALLS for shape in SHAPES for code in DTYPES
)


def trained(shape: tuple[int, ...], code: str) -> np.ndarray:
    """Return values of no generator, exact in every type on every machine."""
    numbers = 48271 * np.arange(np.prod(shape, dtype=np.int64)) % 65537 % 511 - 255
    return cast((numbers / 256).astype(np.float32), numpy_dtype(code)).reshape(shape)


def filled(job: Job) -> np.ndarray:
    """Return what a kernel makes."""
    kernel, arguments, shape, code = job
    given = (trained(shape, code),) if kernel in READERS else ()
    out, stream = np.empty(shape, numpy_dtype(code)), Stream(stream_key(42, f"{kernel}.{len(shape)}"))
    return fill(out, KERNELS[kernel](shape, out.dtype, stream, *given, **arguments))


def digest(apply: Callable = map) -> str:
    """Return the SHA-256 of everything that the kernels make, worked out by `map` or by what is like it."""
    hashed = hashlib.sha256()
    for values in apply(filled, JOBS):
        integers = as_integers(values)
        hashed.update(integers.astype(integers.dtype.newbyteorder("<"), copy=False).tobytes())
    return hashed.hexdigest()


if __name__ == "__main__":
    print(digest())
