"""Scopes: each names the tensors that it says, on every network, and changes nothing about how they are drawn."""

from __future__ import annotations

import json
import re
from functools import cache

import pytest
from esm.model.esm2 import ESM2
from hypothesis import given, settings, strategies as st
from support.models import CONFIGS, model_class, small_model
from support.spec_table import PARTS as SPEC_PARTS, copied, differing, rule, same_bits, shapes_of
from torch import nn

import hf_perturb
from hf_perturb import Perturbation, PerturbationError, StackedPerturbationError
from hf_perturb.cards.card import variant_card
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.tensors import Tensor
from hf_perturb.loading import network_of
from hf_perturb.loading.perturb import apply_plan
from hf_perturb.perturbation import cascade, depth_of, make_plan, scope_text
from hf_perturb.perturbation.rules import ZERO, Place, Row, Table
from hf_perturb.perturbation.scopes import PARTS, SPANS, in_scope
from hf_perturb.variants.blueprint import make_blueprint

# what the issue names, as it names it
ISSUE = {
    "the top or bottom k layers": ("top:1", "top:2", "top:3", "bottom:1", "bottom:2", "bottom:3"),
    "from layer i to j": ("layers:0-0", "layers:1-1", "layers:1-2", "layers:0-2"),
    "attention only": ("attention",),
    "feed-forward only": ("feed_forward",),
    "layer norms kept": ("keep_layer_norms",),
}
SCOPES = {"fair_esm": sum(ISSUE.values(), ())}
SCOPES["carp"] = (*(name for name in SCOPES["fair_esm"] if name != "attention"), "convolution", "top:9", "layers:7-8")
FITTING = [(net, name) for net in CONFIGS for name in SCOPES["carp" if net == "carp" else "fair_esm"]]
fitting = pytest.mark.parametrize(("network", "name"), FITTING)


def parts_of(model, name: str) -> list[nn.Module]:
    """Return the modules that a scope perturbs, or for `keep_layer_norms` keeps: a second reading, by modules."""
    layers = model.model.embedder.layers if model.config.model_type == "carp" else model.layers
    kind, _, numbers = name.partition(":")
    if numbers:
        first, last = {
            "top": lambda: (len(layers) - int(numbers), len(layers) - 1),
            "bottom": lambda: (0, int(numbers) - 1),
            "layers": lambda: map(int, numbers.split("-")),
        }[kind]()
        return [layer for i, layer in enumerate(layers) if first <= i <= last]
    if kind == "keep_layer_norms":
        return [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    found = {
        "attention": lambda layer: [layer.self_attn],
        "convolution": lambda layer: [layer.conv],
        "feed_forward": lambda layer: (
            [layer.sequence1["2"], layer.sequence2["2"]] if hasattr(layer, "sequence1") else [layer.fc1, layer.fc2]
        ),
    }[kind]
    return [module for layer in layers for module in found(layer)]


def expected(model, *names: str, also: tuple[str, ...] = ()) -> list[str]:
    """Return what scopes perturb, in order, from the modules of the network."""
    chosen = {name for name in model.state_dict() if rule(model.config.model_type, name, also=also) is not None}
    for name in names:
        memory = {id(tensor) for module in parts_of(model, name) for tensor in module.parameters()}
        inside = {n for n, tensor in model.named_parameters(remove_duplicate=False) if id(tensor) in memory}
        chosen = chosen - inside if name == "keep_layer_norms" else chosen & inside
    return [name for name in model.state_dict() if name in chosen]


def steps(model, perturbation: Perturbation) -> list[str]:
    whole = network_of(model).whole(perturbation.rules)
    plan = make_plan(model.config.model_type, shapes_of(model), perturbation, whole)
    return [step.name for step in plan.steps]


@fitting
def test_a_scope_is_the_modules_that_it_names(network, name, head):
    model = small_model(network, head)
    names = expected(model, name)
    assert names
    assert steps(model, Perturbation("reinit", scope=[name])) == names
    assert steps(model, Perturbation("resample", scope=[name])) == names


def test_layer_norms_are_kept_also_where_they_are_perturbed_also(network):
    model = small_model(network)
    names = expected(model, "keep_layer_norms", also=SPEC_PARTS)
    assert steps(model, Perturbation("gaussian", scope=["keep_layer_norms"], also=SPEC_PARTS)) == names


def test_every_scope_of_the_tables_is_tested_above():
    for family, parts in PARTS.items():
        assert {part.name for part in parts} == {name for name in SCOPES[family] if ":" not in name}
    assert {name.partition(":")[0] for name in SCOPES["carp"] if ":" in name} == set(SPANS)


def test_layers_are_counted_as_numbers_over_all_names():
    names = [f"layers.{i}.fc1.weight" for i in (3, 11, 0, 10, 2, 1, 9, 4, 8, 5, 7, 6)]
    for scope, layers in (("top:2", (10, 11)), ("bottom:2", (0, 1)), ("layers:9-10", (9, 10)), ("top:12", range(12))):
        assert in_scope("fair_esm", names, [scope]) == {f"layers.{i}.fc1.weight" for i in layers}
    # a layer counts though nothing in it is asked for
    assert steps(small_model("esm1"), Perturbation("reinit", scope="top:2", include=["layers.[01].fc1.bias"])) == [
        "layers.1.fc1.bias"
    ]


@cache
def network_and_tensors(network: str):
    model = small_model(network)
    return model, copied(model)


def perturbed(network: str, perturbation: Perturbation):
    model, base = network_and_tensors(network)
    tensors = {name: tensor.clone() for name, tensor in base.items()}
    apply_plan(make_plan(model.config.model_type, shapes_of(model), perturbation), tensors)
    return tensors


@st.composite
def scoped_networks(draw) -> tuple[str, dict[str, object], list[str]]:
    network = draw(st.sampled_from(sorted(CONFIGS)))
    method = draw(st.sampled_from(["reinit", "resample", "gaussian"]))
    keys: dict[str, object] = {"method": method, "seed": draw(st.integers(0, 2**63 - 1))}
    if method == "resample":
        keys["axis"] = draw(st.sampled_from([None, "embedding", "rows", "outputs", "all"]))
    allowed = SCOPES["carp" if network == "carp" else "fair_esm"]
    return network, keys, draw(st.lists(st.sampled_from(allowed), min_size=1, max_size=3))


@settings(deadline=None, max_examples=60)
@given(scoped_networks())
def test_a_draw_is_the_same_in_every_scope(asked):
    network, keys, scope = asked
    model, base = network_and_tensors(network)
    inside = expected(model, *scope)
    if not inside:
        with pytest.raises(PerturbationError, match="leaves nothing to perturb"):
            perturbed(network, Perturbation(**keys, scope=scope))
        return
    whole, scoped = perturbed(network, Perturbation(**keys)), perturbed(network, Perturbation(**keys, scope=scope))
    for name in base:
        assert same_bits(scoped[name], whole[name] if name in inside else base[name]), name


def test_scopes_include_and_exclude_all_have_to_hold(network):
    model = small_model(network)
    part = "convolution" if network == "carp" else "attention"
    both = expected(model, "bottom:2", part)
    assert both == [name for name in expected(model, part) if "layers.0." in name or "layers.1." in name]
    assert steps(model, Perturbation("reinit", scope=["bottom:2", part])) == both
    globs = {"include": ["*layers.[12].*"], "exclude": ["*.bias"]}
    chosen = [name for name in both if "layers.1." in name and not name.endswith(".bias")]
    assert steps(model, Perturbation("reinit", scope=["bottom:2", part], **globs)) == chosen != []
    assert steps(model, Perturbation("reinit", scope=[])) == expected(model)


@pytest.mark.parametrize(
    "keys",
    [
        {"scope": ["feed_forward", "FIRST"]},
        {"scope": ["top:1", "bottom:1"]},
        {"scope": ["layers:0-0"], "include": ["*layers.1.*"]},
        {"scope": ["layers:0-0"], "exclude": ["*layers.*"]},
    ],
    ids=str,
)
def test_a_choice_of_nothing_is_refused_before_anything_changes(network, keys):
    first = "convolution" if network == "carp" else "attention"
    keys = keys | {"scope": [first if name == "FIRST" else name for name in keys["scope"]]}
    model = small_model(network)
    before = copied(model)
    with pytest.raises(PerturbationError, match="leaves nothing to perturb; widen include or scope") as error:
        model.perturb({"method": "reinit", **keys})
    assert all(repr(name) in str(error.value) for name in keys["scope"])
    assert not differing(before, copied(model))
    assert model.config.perturbation is None


FORMS = ("'top:K'", "'bottom:K'", "'layers:I-J'")
PART_NAMES = ("'attention'", "'convolution'", "'feed_forward'", "'keep_layer_norms'")
WRITTEN_WRONG = [
    *("top", "top:", "top:0", "top:-1", "top:07", "top:1.5", "top: 2", "top:2 ", "top:2\n", "top:k", "TOP:2", "top:²"),
    *("top:1-2", "top:1234567", "top:" + 5000 * "9", "bottom:0", "bottom:00", "middle:2", "", "all", "ffn"),
    *(
        "layers",
        "layers:",
        "layers:3",
        "layers:2-1",
        "layers:-1",
        "layers:1-",
        "layers:01-2",
        "layers:0-1-2",
        "layers:٣-٤",
    ),
    *("Attention", "attention:2", "layer_norms", 3, None, True, ["top:2"], {"top": 2}),
]


@pytest.mark.parametrize("name", WRITTEN_WRONG, ids=lambda name: repr(name)[:40])
def test_what_no_family_has_is_refused_when_the_configuration_is_made(name):
    given_as = [[name], ("attention", name)] + ([name] if isinstance(name, str) else [])
    for value in given_as:
        with pytest.raises(PerturbationError) as error:
            Perturbation.parse({"method": "reinit", "scope": value})
        assert not [
            part for part in ("scope", repr(name), "allowed", *FORMS, *PART_NAMES) if part not in str(error.value)
        ]
    with pytest.raises(ValueError, match="perturbation scope"):
        CONFIGS["carp"](perturbation={"method": "reinit", "scope": [name]})


@pytest.mark.parametrize("value", [3, True, {"top:2": 1}, {"top:2"}], ids=str)
def test_what_is_no_list_is_refused(value):
    with pytest.raises(PerturbationError) as error:
        Perturbation("reinit", scope=value)
    assert not [part for part in ("scope", repr(value), "allowed: a list of", *FORMS) if part not in str(error.value)]


MISFITS = [
    *[
        (net, f"{kind}:{n}", ("K from 1 to 3", "3 layers"))
        for net in CONFIGS
        for kind, n in (("top", 4), ("bottom", 99))
    ],
    *[(net, name, ("I and J from 0 to 2", "3 layers")) for net in CONFIGS for name in ("layers:0-3", "layers:7-9")],
    *[(net, "convolution", ("'fair_esm'", "'attention'", *FORMS)) for net in CONFIGS if net != "carp"],
    ("carp", "attention", ("'carp'", "'convolution'", "'feed_forward'", "'keep_layer_norms'", *FORMS)),
]


@pytest.mark.parametrize(("network", "name", "allowed"), MISFITS)
def test_what_this_network_lacks_is_refused_before_anything_changes(network, name, allowed):
    model = small_model(network, num_hidden_layers=3)
    before = copied(model)
    for scope in ([name], ["keep_layer_norms", name]):
        with pytest.raises(PerturbationError) as error:
            model.perturb({"method": "resample", "scope": scope})
        text = str(error.value)
        assert not [part for part in ("perturbation scope", repr(name), "allowed", *allowed) if part not in text], text
        # what another family has is no remedy here
        assert repr(name) not in text.partition("allowed")[2]
    assert not differing(before, copied(model))


def test_published_rules_take_no_scope():
    with pytest.raises(PerturbationError, match=r"scope: got \('top:2',\); allowed: nothing with rules 'published'"):
        Perturbation("reinit", rules="published", scope=["top:2"])


def test_the_key_is_a_set_of_names_and_counts_in_equality():
    one = Perturbation("reinit", scope=["top:2", "attention", "top:2"])
    assert one == Perturbation("reinit", scope=("attention", "top:2"))
    assert hash(one) == hash(Perturbation("reinit", scope=["attention", "top:2"]))
    assert one.to_dict() == {
        "method": "reinit",
        "seed": 42,
        "scope": ["attention", "top:2"],
    }
    assert Perturbation.parse(json.loads(json.dumps(one.to_dict()))) == one
    assert Perturbation("reinit", scope="top:2") == Perturbation("reinit", scope=["top:2"])
    assert len({Perturbation("reinit", scope=s) for s in ("top:2", "top:1", "bottom:2", None)}) == 4
    for nothing in (None, [], ()):
        assert "scope" not in Perturbation("reinit", scope=nothing).to_dict()
        assert Perturbation("reinit", scope=nothing) == Perturbation("reinit")
    assert str(one) == "reinit (seed 42, scope ['attention', 'top:2'])"


def test_a_checkpoint_keeps_its_scope(network, tmp_path):
    part = "convolution" if network == "carp" else "attention"
    asked = {"method": "reinit", "scope": ["top:2", part]}
    cls, base = model_class(network), small_model(network)
    base.save_pretrained(tmp_path / "base")
    control = cls.from_pretrained(tmp_path / "base", perturbation=asked)
    assert set(differing(copied(base), copied(control))) == set(expected(base, "top:2", part))
    control.save_pretrained(tmp_path / "control")
    stored = json.loads((tmp_path / "control" / "config.json").read_text(encoding="utf-8"))
    assert stored["perturbation"]["scope"] == [part, "top:2"]
    for again in (None, asked, {"method": "reinit", "scope": [part, "top:2"]}):
        loaded = cls.from_pretrained(tmp_path / "control", **({"perturbation": again} if again else {}))
        assert not differing(copied(control), copied(loaded))
        assert loaded.config.perturbation == Perturbation(**asked)
    for other in ("reinit", {"method": "reinit", "scope": "top:2"}):
        with pytest.raises(StackedPerturbationError, match="top:2"):
            cls.from_pretrained(tmp_path / "control", perturbation=other)


def test_the_tied_head_is_separated_only_where_it_is_in_scope():
    for scope, tied in (("top:2", True), ("attention", True), ("keep_layer_norms", False)):
        model = small_model("esm1b").perturb({"method": "reinit", "scope": scope})
        assert model.config.tie_word_embeddings is tied
        assert (model.lm_head.weight is model.embed_tokens.weight) is tied


def test_a_wrapped_original_takes_a_scope():
    original = ESM2(num_layers=3, embed_dim=32, attention_heads=4)
    before = copied(original)
    hf_perturb.wrap(original).perturb({"method": "reinit", "scope": ["attention", "top:1"]})
    changed = differing(before, copied(original))
    assert changed
    assert all(name.startswith("layers.2.self_attn.") for name in changed)


def test_lists_are_compared_as_sets():
    stored = Perturbation("reinit", scope=["top:2", "attention"], include=["b", "a"]).to_dict()
    bare = {"method": "reinit"}
    same = [
        (stored, {"method": "reinit", "scope": ["top:2", "attention", "top:2"], "include": ["b", "a"]}),
        (bare | {"scope": ["top:2"]}, bare | {"scope": "top:2", "seed": 42}),
        (bare, bare | {"scope": [], "include": None}),
    ]
    different = [
        (bare, bare | {"scope": "top:2"}),
        (bare | {"scope": "top:1"}, bare | {"scope": "top:2"}),
        (stored, bare | {"scope": ["top:2"], "include": ["a", "b"]}),
    ]
    for pairs, equal in ((same, True), (different, False)):
        for pair in pairs:
            one, other = map(Perturbation.parse, pair)
            assert (one == other) is equal, pair


@pytest.mark.parametrize(("direction", "order"), [("top-down", lambda depth: range(depth)[::-1]), ("bottom-up", range)])
def test_a_cascade_takes_one_layer_more_at_each_step(network, direction, order):
    model, base = network_and_tensors(network)
    depth = depth_of(base)
    assert depth == model.config.num_hidden_layers
    places = "model.embedder.layers." if network == "carp" else "layers."
    scopes, seen = cascade(depth, direction), []
    assert len(scopes) == depth
    for scope in scopes:
        changed = differing(base, perturbed(network, Perturbation("reinit", scope=[scope])))
        layers = {int(name.removeprefix(places).split(".")[0]) for name in changed}
        assert all(name.startswith(places) for name in changed)
        (new,) = layers - set(seen)
        assert layers == {*seen, new}
        seen.append(new)
    assert seen == list(order(depth))


def test_a_cascade_in_words_and_its_mistakes():
    assert cascade(3, "top-down") == ["top:1", "top:2", "top:3"]
    assert cascade(2, "bottom-up") == ["bottom:1", "bottom:2"]
    for depth in (0, -1, True, 2.0, "3", None):
        with pytest.raises(PerturbationError, match=r"depth: got .*; allowed: .*1 or more") as error:
            cascade(depth, "top-down")
        assert repr(depth) in str(error.value)
    for direction in ("top", "down", "", None, ["top-down"]):
        with pytest.raises(PerturbationError, match="allowed: 'top-down', 'bottom-up'") as error:
            cascade(3, direction)
        assert repr(direction) in str(error.value)
    assert depth_of(["embed_tokens.weight", "lm_head.weight"]) == 0


def test_the_card_says_what_a_scope_is():
    bases = {}
    for network, family in (("esm1b", "fair_esm"), ("carp", "carp")):
        model = small_model(network)
        tensors = {name: Tensor.of(tensor) for name, tensor in model.state_dict().items()}
        bases[family] = Checkpoint("base", "hf_perturb", network_of(model), tensors).check()

    def row(family: str, scope: object) -> list[str]:
        blueprint = make_blueprint(bases[family], Perturbation("reinit", scope=scope))
        steps = {name: output.step for name, output in blueprint.outputs.items()}
        card = variant_card(blueprint.network, blueprint.asked, steps, None)
        return [line for line in card.splitlines() if line.startswith("| scope |")]

    assert row("carp", "top:4") == ["| scope | `top:4` (the 4 layers nearest the output) |"]
    assert row("carp", "bottom:1") == ["| scope | `bottom:1` (the layer nearest the input) |"]
    assert row("carp", "layers:3-3") == ["| scope | `layers:3-3` (layer 3, counted from 0 at the input) |"]
    both = "`attention` (attention only, without its layer norm) and `layers:1-2` (layers 1 to 2, counted from 0"
    assert row("fair_esm", ["layers:1-2", "attention"])[0].startswith("| scope | " + both)
    assert row("carp", None) == []
    for family, names in SCOPES.items():
        texts = [scope_text(family, name) for name in names]
        assert len(set(texts)) == len(names)
        assert all(text in row(family, name)[0] for name, text in zip(names, texts, strict=True))


class Two(Table):
    """The table of a network of an encoder of three layers and a decoder of two."""

    def row(self, name):
        return Row(name, ZERO, "a test")

    def place(self, name):
        stack, _, rest = name.partition(".layer.")
        number, _, rest = rest.partition(".")
        return Place(stack, int(number), rest) if number else Place("", None, name)


TWO = Two("two", ())
OF_TWO = ["shared.weight", *(f"encoder.layer.{i}.w" for i in range(3)), *(f"decoder.layer.{i}.w" for i in range(2))]


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("encoder.top:2", ["encoder.layer.1.w", "encoder.layer.2.w"]),
        ("encoder.bottom:1", ["encoder.layer.0.w"]),
        ("decoder.layers:1-1", ["decoder.layer.1.w"]),
        ("decoder.top:2", ["decoder.layer.0.w", "decoder.layer.1.w"]),
    ],
)
def test_a_scope_names_the_stack_of_layers_where_there_are_several(scope, expected):
    plan = make_plan(TWO, dict.fromkeys(OF_TWO, (4, 4)), Perturbation("resample", rules="documented", scope=scope))
    assert [step.name for step in plan.steps] == expected


@pytest.mark.parametrize(
    ("scope", "said"),
    [
        ("top:2", "one of 'encoder.top:2', 'decoder.top:2'"),
        ("middle.layers:0-1", "one of 'encoder.layers:0-1', 'decoder.layers:0-1'"),
        ("decoder.top:3", "K from 1 to 2"),
        ("encoder.layers:1-3", "I and J from 0 to 2"),
        ("attention", "for family 'two'"),
    ],
)
def test_a_scope_of_another_stack_names_those_that_there_are(scope, said):
    with pytest.raises(PerturbationError, match=re.escape(said)):
        in_scope(TWO, OF_TWO, [scope])


def test_a_cascade_goes_through_the_stack_that_it_names():
    depth = depth_of(OF_TWO, TWO, "decoder.top-down")
    assert cascade(depth, "decoder.top-down") == ["decoder.top:1", "decoder.top:2"]
    assert cascade(depth_of(OF_TWO, TWO, "encoder.bottom-up"), "encoder.bottom-up")[-1] == "encoder.bottom:3"
    with pytest.raises(PerturbationError, match=r"'encoder\.top-down', 'decoder\.top-down'"):
        depth_of(OF_TWO, TWO, "top-down")
    assert scope_text(TWO, "encoder.top:2") == "the 2 layers nearest the output of `encoder`"


@pytest.mark.parametrize(
    "scope", ["encoder.", ".top:2", "encoder..top:2", "enc oder.top:2", "encoder.attention", "a.top:0"]
)
def test_what_is_no_scope_of_a_stack_is_refused(scope):
    with pytest.raises(PerturbationError, match="scope"):
        Perturbation("reinit", scope=scope)
