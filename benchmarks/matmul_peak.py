"""Print how many floating-point operations a second a linear layer reaches here, the best of a few sizes.

python benchmarks/matmul_peak.py float32 --device cpu
"""

from __future__ import annotations

import argparse
import json
import time

import torch

_SIZES = (512, 1024, 2048, 4096, 8192)
# of one multiplication; a type of numbers that the machine is slow at need not take minutes to show it
_LONGEST_SECONDS = 1.5
# a size is multiplied again until this many are over: on a busy machine a short one may have it to itself
_SECONDS = 0.5


def rate(size: int, dtype: torch.dtype, device: str) -> float:
    """Return the rate of multiplying two square matrices, the best of at least three."""
    x, weight = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds: list[float] = []
    while len(seconds) < 3 or sum(seconds) < _SECONDS:
        begin = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / min(seconds)


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dtype")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    best = 0.0
    with torch.inference_mode():
        for size in _SIZES:
            if best and 2 * size**3 / best > _LONGEST_SECONDS:
                break
            best = max(best, rate(size, getattr(torch, options.dtype), options.device))
    print(json.dumps({"flops": best}))


if __name__ == "__main__":
    main()
