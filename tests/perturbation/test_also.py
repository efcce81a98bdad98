"""`also`: what the rules keep, perturbed all the same; and what becomes of a tied head."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
import torch
from support.models import CONFIGS, HEADS, TIED, model_class, small_model
from support.spec_table import PARTS, copied, differing, part_of, rule, same_bits
from transformers import AutoModelForMaskedLM

from hf_perturb import PerturbationError, StackedPerturbationError

METHODS = ("reinit", "resample", "gaussian")
CHOICES = ((), ("embeddings",), ("head",), PARTS)


@pytest.mark.parametrize("method", METHODS)
def test_also_perturbs_its_parts_and_changes_nothing_else(network, method):
    base, family = copied(small_model(network)), CONFIGS[network]().model_type
    plain = copied(small_model(network).perturb(method))
    for also in CHOICES:
        made = copied(small_model(network).perturb({"method": method, "also": also}))
        assert made.keys() == base.keys()
        for name, tensor in made.items():
            if part_of(family, name) is None:
                assert same_bits(tensor, plain[name]), f"{name}: the draws of others"
            elif tensor.numel() > 1:
                assert same_bits(tensor, base[name]) == (rule(family, name, also=also) is None), name


@pytest.mark.parametrize("head", HEADS)
def test_the_same_request_works_on_every_head(network, head):
    """A trunk has no part `head`; the network that it is a part of has."""
    asked = {"method": "gaussian", "also": PARTS}
    whole = copied(small_model(network))
    model = small_model(network, head)
    model.load_state_dict(whole, strict=False)
    made, expected = copied(model.perturb(asked)), copied(small_model(network).perturb(asked))
    shared = made.keys() & expected.keys()
    assert len(shared) > 40
    assert not differing(*({name: each[name] for name in shared} for each in (made, expected)))


# the tie: a tensor that is perturbed stands on its own


TIES = [
    # what is asked, and which of embedding and head are perturbed
    ({}, (False, True)),
    ({"exclude": ["lm_head.weight"]}, None),
    ({"also": ["head"]}, (False, True)),
    ({"also": ["embeddings"]}, (True, True)),
    ({"also": ["embeddings"], "exclude": ["lm_head.weight"]}, (True, False)),
    ({"also": ["embeddings"], "exclude": ["lm_head.*"]}, (True, False)),
    ({"also": ["embeddings"], "include": ["embed_tokens.weight"]}, (True, False)),
    ({"include": ["lm_head.weight"]}, (False, True)),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", TIED)
@pytest.mark.parametrize(("keys", "perturbed"), TIES, ids=[str(keys) for keys, _ in TIES])
def test_both_tensors_stand_on_their_own_where_one_is_perturbed(network, method, keys, perturbed):
    model = small_model(network)
    base = copied(model)
    model.perturb({"method": method, **keys})
    tied = model.lm_head.weight is model.embed_tokens.weight
    assert model.config.tie_word_embeddings is tied is (perturbed is None)
    for name, changed in zip(("embed_tokens.weight", "lm_head.weight"), perturbed or (False, False), strict=True):
        assert same_bits(model.state_dict()[name], base[name]) != changed
    trunk = small_model(network, "Model")
    trunk.load_state_dict(base, strict=False)
    trunk.perturb({"method": method, **keys})
    assert same_bits(trunk.embed_tokens.weight, model.embed_tokens.weight), "the same with and without a head"
    assert trunk.config.tie_word_embeddings is tied


def test_an_untied_embedding_and_head_are_drawn_and_shuffled_apart():
    """From the same trained values, each with words of its own."""
    for method in METHODS:
        model = small_model("esm1b").perturb({"method": method, "also": PARTS})
        embedding, head = model.embed_tokens.weight, model.lm_head.weight
        assert not torch.equal(embedding, head)
        if method == "resample":
            assert torch.equal(embedding.sort().values, head.sort().values)


# what cannot be meant


@pytest.mark.parametrize("method", METHODS)
def test_what_only_also_perturbs_is_named_by_it(network, method):
    kept = "model.embedder.embedder.weight" if network == "carp" else "embed_tokens.weight"
    model = small_model(network)
    with pytest.raises(PerturbationError) as error:
        model.perturb({"method": method, "include": [kept]})
    assert f"include: glob {kept!r} matches only tensors that the rules keep, which also: ['embeddings'] would" in str(
        error.value
    )
    model.perturb({"method": method, "include": [kept], "also": "embeddings"})
    assert differing(copied(small_model(network)), copied(model)) == {kept}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("keys", [{"scope": ["top:1"]}, {"exclude": ["*emb*"]}, {"include": ["*layers*"]}], ids=str)
def test_a_part_of_which_nothing_is_left_is_refused_before_anything_changes(network, part, keys):
    model = small_model(network)
    before = copied(model)
    if part == "head" and "exclude" in keys:
        keys = {"exclude": ["lm_head.*", "embed_out*", "model.decoder.*", "model.last_norm.*"]}
        keys = {"exclude": [glob for glob in keys["exclude"] if any(fnmatchcase(name, glob) for name in before)]}
    with pytest.raises(PerturbationError, match=f"also: got '{part}', and scope, include or exclude leave none of"):
        model.perturb({"method": "gaussian", "also": [part], **keys})
    assert not differing(before, copied(model))
    assert model.config.perturbation is None


def test_a_part_that_a_network_does_not_have_is_no_mistake():
    """The head of ESM-1b is `lm_head`, which the rules perturb; the same words build controls of every network."""
    for network in TIED:
        one, other = (small_model(network).perturb({"method": "reinit", "also": also}) for also in ((), ["head"]))
        assert not differing(copied(one), copied(other))


# loading


@pytest.mark.parametrize(
    "asked", [{"method": "gaussian"}, {"method": "reinit", "also": ["embeddings", "head"]}], ids=str
)
def test_what_is_loaded_perturbed_saved_and_built_is_the_same(network, asked, tmp_path):
    base, cls = small_model(network), model_class(network)
    base.save_pretrained(tmp_path / "base")
    control = cls.from_pretrained(tmp_path / "base", perturbation=asked)
    assert not differing(copied(control), copied(small_model(network).perturb(asked)))
    control.save_pretrained(tmp_path / "control")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "control", perturbation=asked)
    assert not differing(copied(control), copied(again))
    assert again.config.perturbation.to_dict() == control.config.perturbation.to_dict()
    for other in ("reinit", "resample", {**asked, "also": ["embeddings"]}):
        with pytest.raises(StackedPerturbationError, match="start from the base"):
            cls.from_pretrained(tmp_path / "control", perturbation=other)


@pytest.mark.parametrize("asked", [{"method": "gaussian"}, {"method": "resample", "also": ["embeddings"]}], ids=str)
def test_a_model_of_a_configuration_is_initialised_and_then_perturbed(network, asked):
    torch.manual_seed(3)
    plain = AutoModelForMaskedLM.from_config(CONFIGS[network]())
    before = copied(plain)
    torch.manual_seed(3)
    control = AutoModelForMaskedLM.from_config(CONFIGS[network](perturbation=asked))
    assert not differing(copied(control), copied(plain.perturb(asked)))
    norm = next(name for name in before if "norm.weight" in name or name.endswith("sequence1.0.weight"))
    assert same_bits(control.state_dict()[norm], before[norm]), "a constant has no deviation, and one order"
