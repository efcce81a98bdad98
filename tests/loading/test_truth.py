"""What a model or a folder says of itself is so, whatever was done to it: random steps, each judged by the weights."""

from __future__ import annotations

import copy
import os
import shutil

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from support.machine import STEPS, Machine
from support.truth import base_model, twin

import hf_perturb

_SLOW = [*HealthCheck]


def run(steps: int, random: bool) -> int:
    """Run a number of steps, and return how many it was."""
    before, length = STEPS["steps"], 24
    chosen = settings(
        max_examples=-(-steps // length),
        stateful_step_count=length,
        derandomize=not random,
        database=None,
        deadline=None,
        suppress_health_check=_SLOW,
        phases=[Phase.generate, *([Phase.shrink] if os.environ.get("TRUTH_SHRINKS") else [])],
        print_blob=False,
    )
    run_state_machine_as_test(Machine, settings=chosen)
    return STEPS["steps"] - before


def test_what_is_said_of_weights_is_so_whatever_was_done_to_them():
    assert run(2_400, random=False) > 2_000


@pytest.mark.slow
def test_it_is_so_after_a_long_run_of_other_steps_each_time():
    steps = int(os.environ.get("TRUTH_STEPS", "50000"))
    assert run(steps, random=True) > 0.8 * steps


# ---- what the machine has found, step by step


def cast_control(seed: int):
    """Return a control that was cast, whose record says the same of every seed of its base."""
    return twin(base_model("carp", "ForMaskedLM", seed)).perturb("resample").half()


def test_shards_of_two_controls_that_were_cast_are_not_one(tmp_path):
    for seed in (0, 1):
        cast_control(seed).save_pretrained(tmp_path / str(seed), max_shard_size="1KB")
    first = "model-00001-of-00002.safetensors"
    assert type(base_model("carp", "ForMaskedLM", 0)).from_pretrained(tmp_path / "0").config.perturbation.digest is None
    (tmp_path / "0" / first).unlink()
    shutil.copy(tmp_path / "1" / first, tmp_path / "0" / first)
    with pytest.raises(hf_perturb.errors.DigestError, match="not written together"):
        type(base_model("carp", "ForMaskedLM", 0)).from_pretrained(tmp_path / "0")
    assert not hf_perturb.verify_variant(tmp_path / "0").ok


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
def test_a_control_that_lies_on_a_disk_in_part_is_saved_with_the_digest_of_all_of_it(tmp_path):
    control = twin(base_model("carp", "ForMaskedLM", 0)).perturb("reinit")
    control.save_pretrained(tmp_path / "control")
    places = {"model.embedder": "cpu", "model.decoder": "disk", "model.last_norm": "disk"}
    spread = type(control).from_pretrained(tmp_path / "control", device_map=places, offload_folder=tmp_path / "disk")
    assert any(tensor.is_meta for tensor in spread.state_dict().values())
    spread.save_pretrained(tmp_path / "saved")
    found = type(control).from_pretrained(tmp_path / "saved", verify=True)
    assert found.config.perturbation.digest == control.config.perturbation.digest


def test_what_was_loaded_by_other_names_is_saved_by_its_own(tmp_path):
    base = base_model("carp", "ForMaskedLM", 0)
    base.save_pretrained(tmp_path / "base")
    swapped = {r"layers\.0\.": "layers.9.", r"layers\.1\.": "layers.0.", r"layers\.9\.": "layers.1."}
    control = type(base).from_pretrained(tmp_path / "base", key_mapping=swapped).perturb("resample")
    control.save_pretrained(tmp_path / "control")
    assert hf_perturb.verify_variant(tmp_path / "control").ok
    found = type(base).from_pretrained(tmp_path / "control", verify=True).state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in control.state_dict().items())


def test_a_copy_whose_tied_head_has_memory_of_its_own_is_the_same_control(tmp_path):
    control = twin(base_model("esm1b", "ForMaskedLM", 0)).perturb({"method": "reinit", "exclude": ["lm_head.weight"]})
    control.load_state_dict(control.state_dict(), assign=True)
    copied = copy.deepcopy(control)
    assert copied.lm_head.weight.data_ptr() != copied.embed_tokens.weight.data_ptr()
    copied.save_pretrained(tmp_path)
    found = type(control).from_pretrained(tmp_path, verify=True)
    assert found.config.perturbation.digest == control.config.perturbation.digest
