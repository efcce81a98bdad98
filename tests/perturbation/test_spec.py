"""`Perturbation` and the configuration field: what is accepted, what equals what, and how a mistake is named."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import pytest
from hypothesis import given, settings, strategies as st
from support.models import CONFIGS

from hf_perturb import HfPerturbError, Perturbation, PerturbationError
from hf_perturb.perturbation import Base
from hf_perturb.perturbation.spec import in_words

DIGEST = "blake3:" + "0123456789abcdef" * 4
BASE = {"name": "facebook/esm1b", "revision": "0" * 40, "digest": DIGEST}

globs = st.lists(st.text(min_size=1), max_size=4)
scopes = st.lists(st.sampled_from(["top:1", "top:12", "bottom:3", "layers:0-4", "attention", "keep_layer_norms"]))
parts = st.lists(st.sampled_from(["embeddings", "head"]))
digests = st.none() | st.text("0123456789abcdef", min_size=64, max_size=64).map("blake3:".__add__)
texts = st.none() | st.text()
seeds = st.integers(0, 2**63 - 1)
bases = st.none() | st.builds(Base, name=texts, revision=texts, digest=digests)
perturbations = st.one_of(
    st.builds(
        Perturbation,
        st.sampled_from(["reinit", "gaussian"]),
        seeds,
        include=globs,
        exclude=globs,
        scope=scopes,
        also=parts,
        base=bases,
        digest=digests,
    ),
    st.builds(
        Perturbation,
        st.just("resample"),
        seeds,
        axis=st.sampled_from([None, "embedding", "rows", "outputs", "all"]),
        include=globs,
        exclude=globs,
        scope=scopes,
        also=parts,
        base=bases,
        digest=digests,
    ),
    st.builds(
        Perturbation,
        st.sampled_from(["reinit", "resample"]),
        st.integers(0, 2**32 - 1),
        st.just("published"),
        base=bases,
    ),
)


@settings(deadline=None)
@given(perturbations)
def test_json_both_ways(perturbation):
    text = json.dumps(perturbation.to_dict(), allow_nan=False)
    back = Perturbation.parse(json.loads(text))
    assert back == perturbation
    assert hash(back) == hash(perturbation)
    # equality looks at neither of these
    assert (back.base, back.digest) == (perturbation.base, perturbation.digest)
    assert json.dumps(back.to_dict()) == text


@settings(deadline=None)
@given(perturbations, perturbations)
def test_equality_is_that_of_the_keys_without_provenance(one, other):
    keys = [{k: v for k, v in p.to_dict().items() if k not in ("base", "digest")} for p in (one, other)]
    assert (one == other) == (keys[0] == keys[1])
    assert one != one.to_dict()


@settings(deadline=None)
@given(perturbations, bases, digests)
def test_provenance_is_not_part_of_equality(perturbation, base, digest):
    recorded = perturbation.with_record(base, digest)
    assert recorded == perturbation
    assert len({recorded, perturbation}) == 1
    assert (recorded.base, recorded.digest) == (base, digest)


def test_every_other_key_is_part_of_equality():
    base = Perturbation("resample", 1)
    others = [
        Perturbation("reinit", 1),
        Perturbation("resample", 2),
        Perturbation("resample", 1, "published"),
        Perturbation("resample", 1, axis="rows"),
        Perturbation("resample", 1, include=["layers.*"]),
        Perturbation("resample", 1, exclude=["layers.*"]),
        Perturbation("resample", 1, scope=["top:1"]),
        Perturbation("gaussian", 1),
        Perturbation("resample", 1, axis="outputs"),
        Perturbation("resample", 1, also=["head"]),
        Perturbation("resample", 1, also=["embeddings"]),
        Perturbation("resample", 1, also=["embeddings", "head"]),
    ]
    assert len({base, *others}) == len(others) + 1


def test_defaults_and_shorthand():
    reinit = Perturbation.parse("reinit")
    assert reinit == Perturbation.parse({"method": "reinit"}) == Perturbation("reinit")
    assert Perturbation.parse(reinit) is reinit
    assert reinit.to_dict() == {"method": "reinit", "seed": 42}
    assert Perturbation("resample", include=None, exclude=[]).to_dict() == {"method": "resample", "seed": 42}
    record = Perturbation("resample", 0, axis="all", base=BASE, digest=DIGEST)
    assert record.base == Base(**BASE)
    assert record.to_dict()["base"] == BASE


def test_rules_are_left_open_until_the_network_is_known():
    left = Perturbation("resample", axis=None)
    spelt = {family: left.spelt_out(family) for family in ("fair_esm", "carp", "bert")}
    assert {family: (each.rules, each.axis) for family, each in spelt.items()} == {
        "fair_esm": ("documented", "embedding"),
        "carp": ("documented", "all"),
        "bert": ("transformers", "all"),
    }
    said = Perturbation("resample", rules="transformers")
    assert said.spelt_out("fair_esm").axis == "all"
    assert left == Perturbation("resample", rules="documented") != said
    assert hash(left) == hash(Perturbation("resample", rules="documented"))
    assert Perturbation.parse(left, "transformers") == said
    assert Perturbation.parse(said, "documented") == said
    for value in ("resample", {"method": "resample"}, {"method": "resample", "rules": None}):
        assert Perturbation.parse(value, "transformers") == said


def test_the_versions_that_drew_are_provenance():
    versions = {"transformers_version": "5.24.0", "code_revision": "abc"}
    record = Perturbation("reinit", rules="transformers", **versions)
    assert record == Perturbation("reinit", rules="transformers")
    assert Perturbation.parse(record.to_dict()).to_dict() == record.to_dict()
    assert record.to_dict().items() >= versions.items()
    with pytest.raises(PerturbationError, match="transformers_version: got 5"):
        Perturbation("reinit", transformers_version=5)


def test_globs_are_a_set():
    """The order and repeats of globs change no weight, so they must not make two perturbations differ."""
    assert Perturbation("reinit", include=["b", "a", "b"]) == Perturbation("reinit", include=("a", "b"))


def test_also_is_a_set_of_parts_and_one_as_shorthand():
    both = Perturbation("gaussian", also=["head", "embeddings", "head"])
    assert both == Perturbation("gaussian", also=("embeddings", "head"))
    assert both.to_dict()["also"] == ["embeddings", "head"]
    assert str(both) == "gaussian (seed 42, also ['embeddings', 'head'])"
    assert Perturbation("reinit", also="head") == Perturbation("reinit", also=["head"])
    for nothing in (None, [], ()):
        assert "also" not in Perturbation("reinit", also=nothing).to_dict()


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"method": "reinit"}, "reinit (seed 42)"),
        ({"method": "reinit", "seed": 0, "rules": "published"}, "reinit (seed 0, rules published)"),
        (
            {
                "method": "resample",
                "axis": "all",
                "scope": ["top:4"],
                "exclude": ["*.bias"],
                "also": ["embeddings", "head"],
            },
            "resample (seed 42, axis all, scope top:4, exclude *.bias, also embeddings and head)",
        ),
        ({"method": ["a"], "seed": None, "axis": {}, "also": 3, "digest": "x"}, "['a'] (seed None, axis {}, also 3)"),
    ],
)
def test_a_record_in_words_says_what_tells_it_from_others(record, words):
    assert in_words(record) == words


def test_immutable():
    include = ["layers.*"]
    perturbation = Perturbation("reinit", include=include, base=dict(BASE))
    before = (hash(perturbation), perturbation.to_dict())
    include.append("lm_head.*")
    perturbation.to_dict()["include"].append("lm_head.*")
    perturbation.to_dict()["base"]["name"] = "another"
    for key in (field.name for field in dataclasses.fields(Perturbation)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(perturbation, key, getattr(perturbation, key))
    with pytest.raises(dataclasses.FrozenInstanceError):
        perturbation.base.name = "another"
    assert (hash(perturbation), perturbation.to_dict()) == before
    for twin in (copy.deepcopy(perturbation), pickle.loads(pickle.dumps(perturbation))):
        assert (twin, twin.to_dict()) == (perturbation, before[1])


METHODS, RULES = ("'reinit'", "'resample'", "'gaussian'"), ("'documented'", "'published'", "'transformers'")
AXES, PARTS = ("'embedding'", "'rows'", "'outputs'", "'all'"), ("'embeddings'", "'head'")
SEEDS = ("0", str(2**63 - 1))
KEYS = ("method", "seed", "rules", "axis", "include", "exclude", "scope", "also", "base", "digest")
BAD = [
    # what is given, and what the message must name: key, value, allowed
    ({}, ("method", "missing", "reinit", "resample", "gaussian")),
    (None, ("None",)),
    (7, ("7", "dict")),
    (["reinit"], ("['reinit']", "dict")),
    ("", ("method", "''", *METHODS)),
    ("Reinit", ("method", "'Reinit'", *METHODS)),
    ("reinit+resample", ("method", "'reinit+resample'", *METHODS)),
    ({"method": None}, ("method", "None", *METHODS)),
    ({"method": ["reinit", "resample"]}, ("method", "['reinit', 'resample']", *METHODS)),
    ({"method": "reinit+resample"}, ("method", "'reinit+resample'", *METHODS)),
    ({"method": "reinit", "resample": True}, ("'resample'", *KEYS)),
    ({"method": "reinit", "sead": 1}, ("'sead'", *KEYS)),
    ({"method": "reinit", 1: 1}, ("key 1", *KEYS)),
    *[
        ({"method": "reinit", "seed": seed}, ("seed", repr(seed), *SEEDS))
        for seed in (True, False, -1, 2**63, 2**70, "42", 42.0, None, [42], float("nan"))
    ],
    *[({"method": "reinit", "rules": rules}, ("rules", repr(rules), *RULES)) for rules in ("study", ["published"])],
    *[({"method": "resample", "axis": axis}, ("axis", repr(axis), *AXES)) for axis in ("columns", "", 0, ["all"])],
    *[
        ({"method": method, "axis": axis}, ("axis", repr(axis), repr(method), "'resample'"))
        for method in ("reinit", "gaussian")
        for axis in ("embedding", "outputs", "all")
    ],
    *[
        ({"method": "gaussian", "also": also}, ("also", repr(value), *PARTS))
        for also, value in (
            ("heads", "heads"),
            (["head", "norms"], "norms"),
            ([""], ""),
            ([None], None),
            (3, 3),
            (True, True),
        )
    ],
    *[
        ({"method": method, key: value}, (key, repr(value), "list of globs"))
        for method in ("reinit", "resample")
        for key in ("include", "exclude")
        for value in ("layers.*", 3, {"layers.*": 1}, True)
    ],
    ({"method": "reinit", "include": ["layers.*", ""]}, ("include", "''", "non-empty strings")),
    ({"method": "reinit", "exclude": [3]}, ("exclude", "3", "non-empty strings")),
    *[
        (
            {"method": "reinit", "rules": "published", "seed": seed},
            ("seed", repr(seed), "0 to 4294967295", f"seed {same}"),
        )
        for seed, same in ((2**32, 0), (2**32 + 42, 42), (2**63 - 1, 2**32 - 1))
    ],
    ({"method": "resample", "rules": "published", "axis": "all"}, ("axis", "'all'", "'published'")),
    ({"method": "reinit", "rules": "published", "include": ["layers.*"]}, ("include", "layers.*", "'published'")),
    ({"method": "reinit", "rules": "published", "exclude": ["layers.*"]}, ("exclude", "layers.*", "'published'")),
    *[
        ({"method": "resample", "rules": "published", "also": also}, ("also", "head", "'published'"))
        for also in ("head", ["embeddings", "head"])
    ],
    ({"method": "gaussian", "rules": "published"}, ("method", "'gaussian'", "'published'", "reinit and resample")),
    ({"method": "reinit", "base": "demo"}, ("base", "'demo'", "dict of name, revision and digest")),
    ({"method": "reinit", "base": {"nam": "demo"}}, ("base", "'nam'", "name", "revision", "digest")),
    ({"method": "reinit", "base": {"name": 3}}, ("base.name", "3", "string")),
    ({"method": "reinit", "base": {"revision": 3}}, ("base.revision", "3", "string")),
    ({"method": "reinit", "base": {"digest": "0" * 64}}, ("base.digest", "0" * 64, "'blake3:'")),
    *[
        ({"method": "reinit", "digest": digest}, ("digest", repr(digest), "'blake3:'"))
        for digest in ("", "blake3:", DIGEST[:-1], DIGEST + "0", DIGEST + "\n", DIGEST.upper(), "md5:" + "0" * 32, 3)
    ],
]


@pytest.mark.parametrize(("value", "named"), BAD, ids=[str(value)[:60] for value, _ in BAD])
def test_a_mistake_names_the_key_the_value_and_what_is_allowed(value, named):
    with pytest.raises(PerturbationError) as error:
        Perturbation.parse(value)
    assert isinstance(error.value, ValueError)
    assert isinstance(error.value, HfPerturbError)
    missing = [part for part in (*named, "allowed") if part not in str(error.value)]
    assert not missing, f"{missing} not in {error.value}"


@pytest.mark.parametrize("value", [value for value, _ in BAD if value is not None], ids=lambda value: str(value)[:60])
def test_a_mistake_is_found_when_the_configuration_is_made_or_changed(value, network):
    with pytest.raises(ValueError, match="allowed"):
        CONFIGS[network](perturbation=value)
    config = CONFIGS[network]()
    with pytest.raises(ValueError, match="allowed"):
        config.perturbation = value
    assert config.perturbation is None


def test_the_configuration_field_is_parsed_and_written_as_json(network):
    for value in ("resample", {"method": "resample"}, Perturbation("resample")):
        config = CONFIGS[network](perturbation=value)
        assert config.perturbation == Perturbation("resample")
        assert json.loads(config.to_json_string())["perturbation"] == {
            "method": "resample",
            "seed": 42,
            "rules": "documented",
        }
        assert type(config).from_dict(config.to_dict()).perturbation == Perturbation("resample")
    assert "perturbation" not in json.loads(CONFIGS[network]().to_json_string())
