"""A network of Transformers without values: names, parts and stacks, and each tensor drawn alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel

from hf_perturb.checkpoints.skeleton import Skeleton
from hf_perturb.errors import PerturbationError


def bert(model_class=BertModel) -> Skeleton:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return Skeleton.build(model_class, BertConfig(**sizes, vocab_size=50))


def test_a_class_with_a_head_and_without_agree_on_names_and_draws():
    alone, headed = bert(), bert(BertForMaskedLM)
    shared = headed.parameters & alone.parameters
    assert {name for name in alone.parameters if not name.startswith("pooler")} == shared
    assert all(np.array_equal(alone.draw(name, 42), headed.draw(name, 42)) for name in shared)


def test_a_buffer_is_not_drawn():
    with pytest.raises(PerturbationError, match="a name that the network lacks"):
        bert().draw("pooler.weight", 42)


def test_no_random_number_of_the_process_is_used():
    before = torch.random.get_rng_state()
    bert().draw("pooler.dense.weight", 42)
    assert torch.equal(before, torch.random.get_rng_state())
