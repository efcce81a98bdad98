"""The tables: every tensor of every documented network has exactly one rule, the one that the contract gives it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from esm.model.esm2 import ESM2
from support.models import HEADS, model_class, small_model
from support.spec_table import (
    DEFAULT_AXIS,
    DOCUMENTED,
    PARTS,
    copied,
    differing,
    distribution,
    part_of,
    rule,
    shapes_of,
)

from hf_perturb import PerturbationError, RuleError
from hf_perturb.perturbation import FAMILIES, Perturbation, default_axis, make_plan
from hf_perturb.perturbation.rules import ZERO, Row


def documented_shapes(checkpoint: str, head: str) -> tuple[str, dict[str, tuple[int, ...]]]:
    config = DOCUMENTED[checkpoint][0]()
    with torch.device("meta"):
        model = model_class(config.model_type.removeprefix("fair_"), head)(config)
    return config.model_type, shapes_of(model)


def check_plan(
    family: str, shapes: dict[str, tuple[int, ...]], method: str, rules: str = "documented", also: tuple[str, ...] = ()
) -> None:
    """Hold a plan next to the second reading of the contract, tensor by tensor and in order."""
    plan = make_plan(family, shapes, Perturbation(method, rules=rules, also=also))
    expected = {}
    for name in shapes:
        # under the published rules too, everything that the document names is shuffled
        initialiser = rule(family, name, rules if method == "reinit" else "documented", also)
        if initialiser is None:
            continue
        if method == "resample":
            done = "shuffle", {"axis": "all" if rules == "published" else DEFAULT_AXIS[family]}
        elif method == "gaussian":
            done = "gaussian", {}
        else:
            kind, parameter = distribution(family, name, shapes, also)
            named = {"constant": "value", "uniform": "bound", "normal": "std"}[kind]
            arguments = dict(initialiser[1]) if initialiser[0] == "normal" else {named: parameter}
            done = kind, arguments
        expected[name] = (shapes[name], *done)
    assert {step.name: (step.shape, step.kernel, dict(step.arguments)) for step in plan.steps} == expected
    assert [step.name for step in plan.steps] == list(expected)
    # one generator for each tensor, or one for all
    assert (plan.seed is None, plan.generator() is None) == (rules == "documented",) * 2
    assert all((step.key is None) == (rules == "published") for step in plan.steps)


@pytest.mark.parametrize("checkpoint", DOCUMENTED)
def test_every_tensor_of_every_documented_network_follows_the_contract(checkpoint):
    for head in HEADS:
        family, shapes = documented_shapes(checkpoint, head)
        for name in shapes:
            rows = [row for row in FAMILIES[family].rows if row.names(name)]
            assert len(rows) == 1, f"{name}: {[row.pattern for row in rows]}"
            assert rows[0].part == part_of(family, name)
        for method in ("reinit", "resample", "gaussian"):
            for also in ((), ("embeddings",), ("head",), PARTS):
                check_plan(family, shapes, method, also=also)
        if head == "ForMaskedLM":
            check_plan(family, shapes, "reinit", "published")
            check_plan(family, shapes, "resample", "published")


@pytest.mark.parametrize("checkpoint", DOCUMENTED)
def test_the_sizes_above_are_those_that_the_names_state(checkpoint):
    """A check of the list itself: with the document's errata two of the eight would be a quarter too small."""
    _, shapes = documented_shapes(checkpoint, "ForMaskedLM")
    count = sum(math.prod(shape) for name, shape in shapes.items() if name != "lm_head.weight")
    assert count == pytest.approx(DOCUMENTED[checkpoint][1], rel=0.03)


def test_esm1v_and_esm2_are_covered():
    esm1v = shapes_of(small_model("esm1b", emb_layer_norm_before=False))
    assert "emb_layer_norm_before.weight" not in esm1v
    esm2 = shapes_of(ESM2(num_layers=2, embed_dim=32, attention_heads=4))
    assert "layers.1.self_attn.rot_emb.inv_freq" in esm2
    for shapes in (esm1v, esm2):
        for method in ("reinit", "resample", "gaussian"):
            check_plan("fair_esm", shapes, method, also=PARTS)


def test_default_axes_and_unknown_family():
    assert {family: default_axis(family) for family in FAMILIES} == DEFAULT_AXIS
    with pytest.raises(PerturbationError, match=r"'llama'.*allowed: fair_esm, carp"):
        make_plan("llama", {"weight": (2, 2)}, Perturbation("reinit"))


UNKNOWN = {
    "fair_esm": [
        "embed_tokens.bias",
        "Embed_tokens.weight",
        "embed_tokens.weight.0",
        "model.embed_tokens.weight",
        "layers.0.fc3.weight",
        "layers.0.self_attn.out_proj.scale",
        "layers.0.self_attn.bias_q",
        "layers.0.self_attn.rot_emb.cos",
        "emb_layer_norm_between.weight",
        "embed_positions.bias",
        "contact_head.bias",
        "lm_head.decoder.weight",
        "my_classifier.weight",
        "",
    ],
    "carp": [
        "embedder.weight",
        "model.embedder.layers.0.sequence1.1.weight",
        "model.embedder.layers.0.sequence2.3.bias",
        "model.embedder.layers.0.conv.scale",
        "model.embedder.layers.0.gate.conv.gain",
        "model.lm_head.weight",
        "lm_head.weight",
    ],
}


@pytest.mark.parametrize(("family", "name"), [(family, name) for family, names in UNKNOWN.items() for name in names])
@pytest.mark.parametrize("perturbation", [Perturbation("reinit"), Perturbation("resample", rules="published")], ids=str)
def test_a_tensor_without_a_rule_is_an_error(family, name, perturbation):
    shapes = shapes_of(small_model("carp" if family == "carp" else "esm1b")) | {name: (3,)}
    with pytest.raises(RuleError) as error:
        make_plan(family, shapes, perturbation)
    assert repr(name) in str(error.value)
    assert "no rule" in str(error.value)


def test_a_tensor_without_a_rule_is_an_error_even_where_it_is_not_asked_for():
    shapes = shapes_of(small_model("carp")) | {"model.adapter.weight": (3,)}
    with pytest.raises(RuleError, match=r"model\.adapter\.weight"):
        make_plan("carp", shapes, Perturbation("reinit", include=["model.embedder.layers.0.*"]))


@pytest.mark.parametrize("pattern", ["layers.0.fc1.*", "embed_tokens.{weight,bias}", "lm_head.weight"])
@pytest.mark.parametrize("keep", [True, False])
def test_a_tensor_with_two_rules_is_an_error(monkeypatch, pattern, keep):
    extra = Row(pattern, None if keep else ZERO, "a test")
    table = FAMILIES["fair_esm"]
    monkeypatch.setitem(FAMILIES, "fair_esm", replace(table, rows=(*table.rows, extra)))
    model = small_model("esm1b")
    before = copied(model)
    with pytest.raises(RuleError) as error:
        model.perturb("reinit")
    own = [row.pattern for row in table.rows if any(row.names(name) and extra.names(name) for name in before)]
    assert len(own) >= 1
    assert repr(pattern) in str(error.value)
    assert any(repr(name) in str(error.value) for name in own)
    assert not differing(before, copied(model))
    assert model.config.perturbation is None
