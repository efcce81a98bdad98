"""All kernels give one digest: on any number of threads, with and without SIMD, and without what is not theirs."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
from perturbation.golden_draws import JOBS, digest, filled

from hf_perturb.perturbation.floats import as_integers
from hf_perturb.perturbation.parallel import for_each

# a failure is a finding: a seed no longer names the bits that others have
GOLDEN = "88d9078431ab0a2fabdb1f946b548d9fa13aab53f7ef536d008a1660d70556b7"
PROGRAM = Path(__file__).with_name("golden_draws.py")
SWITCHED_ON = [name for name in __cpu_dispatch__ if __cpu_features__[name]]

_SAYS_WHAT_IT_HAS = """
import runpy, sys
runpy.run_path(sys.argv[1], run_name="__main__")
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
print(*(name for name in __cpu_dispatch__ if __cpu_features__[name]))
print(*(name for name in sys.modules if name.partition(".")[0] in ("hf_perturb", "torch", "transformers", "scipy")))
"""


def child(**environment: str) -> list[str]:
    """Return what a process of the program says: the digest, the features of the processor that it used, imports."""
    # what it warns of is an error: a feature that there is none of, say
    words = [sys.executable, "-W", "error", "-c", _SAYS_WHAT_IT_HAS, str(PROGRAM)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def in_threads(jobs: int):
    """Return what is like `map`, in threads."""

    def apply(work, items):
        results = {}
        for_each(lambda item: results.update({item[0]: work(item[1])}), [*enumerate(items)], jobs)
        return [results[place] for place in range(len(results))]

    return apply


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_threads_draw_the_same_bits(jobs):
    assert digest(in_threads(jobs)) == GOLDEN


def test_the_order_of_tensors_does_not_matter():
    assert digest(lambda work, items: [*reversed([work(item) for item in reversed(items)])]) == GOLDEN


def test_the_kernels_need_nothing_but_their_own_modules():
    found, features, imported = child()
    assert (found, features.split()) == (GOLDEN, SWITCHED_ON)
    ours = {f"hf_perturb{name}" for name in ("", ".errors", ".perturbation")}
    assert set(imported.split()) == ours | {
        f"hf_perturb.perturbation.{name}" for name in ("floats", "kernels", "normals", "streams")
    }


@pytest.mark.skipif(not SWITCHED_ON, reason="numpy has no more for this processor than for every one of its kind")
def test_simd_draws_the_same_bits():
    """With all that numpy chooses by processor switched off, and with some of it, the newest last."""
    for count in {part * len(SWITCHED_ON) // 3 for part in range(3)}:
        found, features, _ = child(NPY_DISABLE_CPU_FEATURES=",".join(SWITCHED_ON[count:]))
        assert features.split() == SWITCHED_ON[:count]
        assert found == GOLDEN, f"without {SWITCHED_ON[count:]}"


def test_the_digest_sees_every_kernel_axis_shape_and_type():
    """No two jobs make the same bytes, but shuffles along axes that are one."""
    large = [job for job in JOBS if math.prod(job[2]) > 2]
    made = [as_integers(filled(job)).tobytes() for job in large]
    for one, other in combinations(range(len(made)), 2):
        if made[one] == made[other]:
            (kernel, _, shape, code), (another, *_) = large[one], large[other]
            assert kernel == another == "shuffle"
            assert (shape, code) == large[other][2:]
            assert len(shape) == 1 or shape[-1] == 1
