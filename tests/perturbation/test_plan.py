"""Plans: which tensors, in which order and from which stream, and how globs choose among them."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings, strategies as st
from support.models import small_model
from support.spec_table import DEFAULT_AXIS, rule, shapes_of

from hf_perturb import Perturbation, PerturbationError
from hf_perturb.loading import network_of
from hf_perturb.perturbation import make_plan
from hf_perturb.perturbation.streams import stream_key

METHODS = ("reinit", "resample", "gaussian")


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), st.text(max_size=40))
def test_the_key_of_a_stream_is_the_contract_s_formula(seed, name):
    text = hashlib.sha256(f"hf_perturb/2/{seed}/{name}".encode()).hexdigest()
    assert f"{stream_key(seed, name):032x}" == text[:32]


def test_the_key_of_a_stream_in_numbers():
    """From `printf hf_perturb/2/42/lm_head.weight | sha256sum`."""
    assert stream_key(42, "lm_head.weight") == 0x404696023F5701E85824C85E4650E3A8
    assert stream_key(0, "model.embedder.layers.0.conv.weight") == 0xF87F9DCB5C2D85A65CC8098FFF87364D


def test_include_and_exclude_choose_the_steps(network):
    shapes = shapes_of(small_model(network))
    family = "carp" if network == "carp" else "fair_esm"
    every = [name for name in shapes if rule(family, name) is not None]

    def names(**globs) -> list[str]:
        return [step.name for step in make_plan(family, shapes, Perturbation("resample", **globs)).steps]

    assert names() == every
    assert names(include=["*"]) == every
    assert names(include=["*.bias"]) == [name for name in every if name.endswith(".bias")]
    assert names(exclude=["*.bias"]) == [name for name in every if not name.endswith(".bias")]
    assert names(include=["*.bias", every[0]], exclude=["*layers.[01].*"]) == [
        n for n in every if n.endswith(".bias") and "layers.0." not in n and "layers.1." not in n
    ]
    axis = {dict(step.arguments)["axis"] for step in make_plan(family, shapes, Perturbation("resample")).steps}
    assert axis == {DEFAULT_AXIS[family]}


WRONG = [
    ({"include": ["layer.*"]}, ("include", "'layer.*'", "matches no parameter", "allowed")),
    ({"exclude": ["layer.*"]}, ("exclude", "'layer.*'", "matches no parameter", "allowed")),
    ({"include": ["*.bias", "*.biases"]}, ("include", "'*.biases'", "matches no parameter")),
    ({"include": ["*layers.99.*"]}, ("include", "'*layers.99.*'", "matches no parameter")),
    ({"include": ["*.BIAS"]}, ("include", "'*.BIAS'", "matches no parameter")),
    ({"exclude": ["*"]}, ("exclude ['*']", "nothing to perturb")),
    (
        {"include": ["*.bias"], "exclude": ["*.bia?"]},
        ("include ['*.bias']", "exclude ['*.bia?']", "nothing to perturb"),
    ),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("globs", "named"), WRONG, ids=[str(globs) for globs, _ in WRONG])
def test_globs_that_choose_nothing_are_named(network, method, globs, named):
    model = small_model(network)
    with pytest.raises(PerturbationError) as error:
        make_plan(model.config.model_type, shapes_of(model), Perturbation(method, **globs))
    assert not [part for part in named if part not in str(error.value)], str(error.value)


KEPT = {
    "fair_esm": ["embed_tokens.weight", "embed_*tokens*", "embed_out*", "embed_positions._float_tensor"],
    "carp": ["model.embedder.embedder.*", "*up_embedder*", "*last_norm.bias", "model.decoder.conv.weight"],
}


@pytest.mark.parametrize(("family", "glob"), [(family, glob) for family, globs in KEPT.items() for glob in globs])
def test_including_what_the_rules_keep_is_refused(family, glob):
    shapes = shapes_of(small_model("carp" if family == "carp" else "esm1"))
    for include in ([glob], ["*.bias", glob]):
        with pytest.raises(PerturbationError) as error:
            make_plan(family, shapes, Perturbation("reinit", include=include))
        assert not [part for part in ("include", repr(glob), "keep", "allowed") if part not in str(error.value)]
    # to leave out what is left anyway is no mistake
    whole = make_plan(family, shapes, Perturbation("reinit"))
    assert make_plan(family, shapes, Perturbation("reinit", exclude=[glob])) == whole


def test_what_globs_name_beside_and_the_rules_keep_is_found(network):
    model = small_model(network)
    kept = {
        "esm1": ["embed_out", "embed_out_bias", "embed_tokens.weight"],
        "carp": sorted(name for name in shapes_of(model) if ".layers." not in name),
    }.get(network, ["embed_tokens.weight"])

    def found(model=model, **globs) -> list[str]:
        return sorted(network_of(model).named_and_kept(Perturbation("reinit", **globs)))

    assert found(include=["*"]) == kept
    assert found(small_model(network, "Model"), include=["*"]) == kept, "the language head's too"
    assert found(include=["*bias", "*"], exclude=["*emb*"]) == [name for name in kept if "emb" not in name]
    assert found() == found(include=["*layers*"]) == found(include=["*"], exclude=kept) == [], (
        "buffers are no parameters"
    )
    assert found(include=["*"], scope=["top:1"]) == []


def test_to_name_what_is_kept_is_told_and_no_warning(recwarn, caplog):
    model = small_model("carp")
    model.perturb({"method": "reinit", "include": ["*.bias"], "seed": 3})
    (note,) = caplog.messages
    assert note.startswith(
        "include ['*.bias'] also names 3 parameters that the rules keep, and that stay as they are: "
    )
    assert "model.last_norm.bias; `also` perturbs embeddings and heads all the same, and narrower globs" in note
    model = small_model("carp")
    model.perturb({"method": "reinit", "include": ["*.layers.*.bias"]})
    assert caplog.messages == [note]
    assert not recwarn.list


def test_a_head_that_a_network_does_not_have_matches_nothing():
    with pytest.raises(PerturbationError, match=r"exclude: glob 'lm_head\.weight' matches no parameter"):
        small_model("esm1").perturb({"method": "reinit", "exclude": ["lm_head.weight"]})
    # nothing of this class is named, but the network it is a part of has it
    trunk = small_model("esm1b", "Model")
    before = shapes_of(trunk)
    trunk.perturb({"method": "reinit", "include": ["lm_head.*"]})
    assert shapes_of(trunk) == before
    assert trunk.config.tie_word_embeddings is False


def test_the_globs_of_carp_s_decoder_are_valid_without_it(head):
    model = small_model("carp", head).perturb({"method": "reinit", "exclude": ["model.decoder.conv.weight"]})
    assert model.config.perturbation.exclude == ("model.decoder.conv.weight",)


def test_a_shuffle_that_can_move_nothing_is_refused():
    model = small_model("carp")
    with pytest.raises(PerturbationError, match=r"leaves nothing to perturb.*another axis"):
        model.perturb({"method": "resample", "axis": "rows", "include": ["*.sequence?.2.conv.weight"]})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("globs", [{"include": ["layers.*", "lm_head.dense.*"]}, {"exclude": ["lm_head.weight"]}])
def test_globs_for_the_language_head_are_valid_without_it(head, method, globs):
    model = small_model("esm1b", head)
    plan = make_plan("fair_esm", shapes_of(model), Perturbation(method, **globs), network_of(model).whole("documented"))
    names = [step.name for step in plan.steps]
    assert "lm_head.weight" not in names
    assert ("lm_head.dense.weight" in names) == (head == "ForMaskedLM")
    assert "layers.0.fc1.weight" in names
