"""What Transformers draws for each tensor is what it was when the golden table was written.

A failure is a finding: this Transformers initialises otherwise, and a seed names other weights. If that is meant,
write the table anew: `PYTHONPATH=.:tests python tests/checkpoints/test_golden_initialisation.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.any_models import MODELS, any_class, any_config

from hf_perturb.checkpoints.skeleton import Skeleton

GOLDEN = Path(__file__).with_name("golden_initialisation.json")


def table(name: str) -> dict[str, str]:
    """Return what is drawn for the tensors of each pattern, in the class with a head and in the trunk."""
    rows: dict[str, str] = {}
    for of in (Skeleton.build(any_class(name, head), any_config(name)) for head in (True, False)):
        for each in of.shapes:
            if each in of.parameters and (pattern := re.sub(r"\b\d+\b", "*", each)) not in rows:
                told = of.told(each)
                rows[pattern] = f"{told.initialiser.text} by {told.source}"
    return rows


@pytest.mark.parametrize("name", MODELS)
def test_what_is_drawn_for_each_tensor_is_as_it_was(name):
    assert table(name) == json.loads(GOLDEN.read_text(encoding="utf-8"))[name]


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: table(name) for name in MODELS}, indent=1) + "\n", encoding="utf-8")
