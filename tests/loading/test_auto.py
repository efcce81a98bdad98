"""Importing: nothing heavy before it is used, and the Auto classes know the families whatever came first."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOADS = (
    "import hf_perturb; from transformers import AutoModelForMaskedLM;"
    "assert type(AutoModelForMaskedLM.from_pretrained(hf_perturb.demo.folder())) is hf_perturb.CarpForMaskedLM"
)
RACE = """
import threading, transformers, hf_perturb
errors = []
def take(module, name):
    try:
        getattr(module, name)
    except BaseException as error:
        errors.append(error)
wanted = [(hf_perturb, "FairEsmForMaskedLM"), (hf_perturb, "CarpForMaskedLM"), (hf_perturb, "wrap")]
wanted += [(transformers, "AutoModelForMaskedLM")]
threads = [threading.Thread(target=take, args=each) for each in wanted]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not errors, errors
"""


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "first",
    [
        "from transformers import AutoModelForMaskedLM, pipeline",
        "from hf_perturb.networks.modeling_carp import CarpModel",
        "import hf_perturb; hf_perturb.CarpForMaskedLM",
        "import hf_perturb; from transformers import Trainer",
        RACE,
    ],
    ids=["transformers", "a model file", "a lazy name", "trainer", "several threads"],
)
def test_the_auto_classes_know_the_families_whatever_came_first(first):
    run(f"{first}\n{LOADS}")


def test_importing_takes_neither_torch_nor_transformers():
    run("import sys, hf_perturb, hf_perturb.cli; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)")


def test_creating_takes_none_of_transformers_models(tmp_path):
    out = str(tmp_path / "out")
    code = f"from hf_perturb.cli import main; assert main(['create', 'demo', {out!r}, '--method', 'reinit']) == 0"
    run(f"{code}; import sys; assert 'transformers.modeling_utils' not in sys.modules")
