"""Layouts against the classes that they describe, every network of the catalogue among them."""

from __future__ import annotations

import pytest
from support.models import CONFIGS, model_class

import hf_perturb
from hf_perturb.checkpoints.catalog import CATALOG
from hf_perturb.checkpoints.network import Network
from hf_perturb.checkpoints.shapes import is_parameter, language_head, layout

OPTIONS = {
    "esm1": ({}, {"final_bias": False}, {"contact_head": False}),
    "esm1b": ({}, {"emb_layer_norm_before": False}, {"contact_head": False}, {"tie_word_embeddings": False}),
    "esm2": ({}, {"contact_head": False}, {"tie_word_embeddings": False}),
    "carp": ({}, {"slim": False}, {"kernel_size": 3, "embedding_size": 4}),
}


def compare(config, cls):
    model = cls.without_weights(config)
    found = layout(model.config, cls.__name__, model.config.num_labels)
    assert list(found.items()) == [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    assert {name for name in found if is_parameter(name)} == parameters
    assert Network(model.config, cls.__name__).tied.items() >= model.all_tied_weights_keys.items()
    return model


@pytest.mark.parametrize("options", range(4))
def test_every_class_has_its_layout(network, head, options):
    if options >= len(OPTIONS[network]):
        pytest.skip("no more options")
    config = CONFIGS[network](num_labels=3, **OPTIONS[network][options])
    compare(config, model_class(network, head))
    whole = model_class(network).without_weights(config).state_dict()
    trunk = model_class(network, "Model").without_weights(config).state_dict()
    assert sorted(language_head(config)) == sorted(set(whole) - set(trunk))


@pytest.mark.parametrize("name", CATALOG)
def test_every_published_network_has_its_layout(name):
    entry = CATALOG[name]
    cls = hf_perturb.CarpForMaskedLM if entry.family == "carp" else hf_perturb.FairEsmForMaskedLM
    compare(cls.config_class(**entry.sizes), cls)
