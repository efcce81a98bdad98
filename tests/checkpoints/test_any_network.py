"""A network of Transformers as its files have it: names, stacks, shapes, and what they cost for a large one."""

from __future__ import annotations

import subprocess
import sys
from math import prod

import pytest
import torch
from support.any_folders import stored

from hf_perturb import Perturbation
from hf_perturb.checkpoints.any_network import AnyNetwork
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.perturbation import make_plan

_7B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
}
_MEASURED = """
import sys
from pathlib import Path
from hf_perturb.checkpoints.checkpoint import Checkpoint
import hf_perturb

def anonymous():
    said = Path("/proc/self/status").read_text().partition("RssAnon:")[2]
    return int(said.split()[0]) * 1024

base, out, method = sys.argv[1:]
Checkpoint.open(base).base()
before, peak = anonymous(), 0

def look(done, total):
    global peak
    peak = max(peak, anonymous())

hf_perturb.create_variant(base, out, method, jobs=1, progress=look)
print(peak - before)
"""


def test_a_network_of_7b_is_planned_without_its_weights():
    network = AnyNetwork.of_config(_7B, "7b", None)
    plan = make_plan(network.table(), network.shapes, Perturbation("reinit", rules="transformers"))
    assert sum(prod(step.shape) for step in plan.steps) == 6_476_271_616
    kept = network.shapes.keys() - {step.name for step in plan.steps}
    assert kept == {"model.embed_tokens.weight", "lm_head.weight"}


def test_tensors_come_in_the_order_of_the_class(tmp_path):
    model = stored("qwen3_moe", tmp_path)
    network = Checkpoint.open(tmp_path).base().network
    assert list(network.shapes) == [name for name in model.state_dict() if name not in network.tied]
    assert {name: tuple(x.shape) for name, x in model.state_dict().items()} == network.shapes
    assert {network.table().place(f"model.layers.1.mlp.experts.{n}.up_proj.weight").layer for n in range(4)} == {1}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["reinit", "resample", "gaussian"])
def test_memory_is_that_of_the_tensors_at_hand(method, tmp_path):
    """Some 3 GB in shards, of which the largest tensor has 90 MB: in float32 that is twice as much."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {key: value for key, value in _7B.items() if key not in ("model_type", "architectures")}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**{**sizes, "num_hidden_layers": 6})).to(torch.bfloat16)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.view(-1)[::2] = 1
        parameter.data.view(-1)[1::2] = -1
    model.save_pretrained(tmp_path / "base", max_shard_size="1GB")
    del model
    command = [sys.executable, "-c", _MEASURED, str(tmp_path / "base"), str(tmp_path / "out"), method]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 0.7e9
