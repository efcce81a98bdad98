"""The table of the contract, section 3: what becomes of a request, next to what a checkpoint records of itself."""

from __future__ import annotations

import pytest

from hf_perturb import Perturbation, StackedPerturbationError
from hf_perturb.checkpoints.request import Record, decide
from hf_perturb.perturbation import Base

P = Perturbation("resample", seed=7)
Q = Perturbation("reinit", seed=7)
STORED, RECIPE = True, False

# the checkpoint's record, whether it has weights, what is asked for, what becomes of it
TABLE = [
    (None, STORED, None, "keep"),
    (None, STORED, P, "apply"),
    (P, STORED, None, "keep"),
    (P, STORED, P, "keep"),
    (P, STORED, Q, StackedPerturbationError),
    (P, RECIPE, None, "rebuild"),
    (P, RECIPE, P, "rebuild"),
    (P, RECIPE, Q, StackedPerturbationError),
]


@pytest.mark.parametrize("family", ["fair_esm", "carp"])
@pytest.mark.parametrize(("recorded", "has_weights", "asked", "result"), TABLE, ids=str)
def test_the_table_of_the_contract(recorded, has_weights, asked, result, family):
    record = Record("the checkpoint 'x'", family, recorded, has_weights)
    if isinstance(result, str):
        assert decide(record, asked) == result
        return
    with pytest.raises(result, match=r"the checkpoint 'x' is perturbed already, by .*do not stack") as caught:
        decide(record, asked)
    assert str(recorded) in str(caught.value)
    assert str(asked) in str(caught.value)


def test_provenance_does_not_tell_two_perturbations_apart():
    recorded = P.with_record(Base("demo", None, "blake3:" + 64 * "0"), "blake3:" + 64 * "1")
    assert decide(Record("x", "carp", recorded), P) == "keep"


@pytest.mark.parametrize(("family", "axis", "other"), [("fair_esm", "embedding", "all"), ("carp", "all", "embedding")])
def test_the_family_s_axis_may_be_spelled_out(family, axis, other):
    spelled = Perturbation("resample", seed=7, axis=axis)
    assert decide(Record("x", family, P), spelled) == decide(Record("x", family, spelled), P) == "keep"
    with pytest.raises(StackedPerturbationError):
        decide(Record("x", family, P), Perturbation("resample", seed=7, axis=other))
