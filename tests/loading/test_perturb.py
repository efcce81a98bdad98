"""`perturb` and construction: applied exactly once, recorded, and nothing changes where it fails."""

from __future__ import annotations

import pytest
import torch
import transformers
from support.models import CONFIGS, TIED, model_class, small_model
from support.spec_table import copied, differing

import hf_perturb
from hf_perturb import Perturbation, StackedPerturbationError
from hf_perturb.perturbation import digest_of

PERTURBATIONS = [
    Perturbation("reinit"),
    Perturbation("resample", 7),
    Perturbation("resample", 7, axis="rows"),
    Perturbation("reinit", 0, "published"),
    Perturbation("resample", 0, "published"),
    Perturbation("resample", 7, axis="outputs"),
    Perturbation("gaussian", 7, also=["embeddings", "head"]),
    Perturbation("resample", exclude=["lm_head.weight", "*.bias"]),
]
# only ESM-1b has an lm_head.weight to name
FITTING = [
    (network, perturbation)
    for network in CONFIGS
    for perturbation in PERTURBATIONS
    if network in TIED or not perturbation.exclude
]
fitting = pytest.mark.parametrize(("network", "perturbation"), FITTING, ids=str)


def state_of(model) -> tuple:
    """Return all that a failed call must leave: weights, parameters, ties, record, configuration, mode."""
    parameters = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    return digest_of(model.state_dict()), parameters, model.config.to_dict(), dict(model.all_tied_weights_keys)


@fitting
def test_the_same_perturbation_twice_is_applied_once(network, perturbation):
    model = small_model(network)
    before = copied(model)
    assert hf_perturb.perturb(model, perturbation) is model
    once = state_of(model)
    assert differing(before, copied(model))
    assert model.config.perturbation == perturbation
    recorded = perturbation.with_record({"name": "demo"}, "blake3:" + "0" * 64)
    for again in (perturbation, perturbation.to_dict(), recorded):
        assert model.perturb(again) is model
        assert state_of(model) == once


def test_a_default_spelled_out_is_the_same_perturbation(network):
    model = small_model(network).perturb("resample")
    once = state_of(model)
    model.perturb({"method": "resample", "axis": "all" if network == "carp" else "embedding", "include": []})
    assert state_of(model) == once


@pytest.mark.parametrize(
    "another",
    [
        Perturbation("reinit", 43),
        Perturbation("reinit", rules="published"),
        Perturbation("resample"),
        Perturbation("reinit", include=["*.bias"]),
    ],
    ids=str,
)
def test_another_perturbation_on_top_is_refused(network, another):
    model = small_model(network).perturb("reinit")
    once = state_of(model)
    with pytest.raises(StackedPerturbationError) as error:
        model.perturb(another)
    assert isinstance(error.value, ValueError)
    for named in (Perturbation("reinit"), another, "do not stack"):
        said = named if isinstance(named, str) else Perturbation.parse(named, "documented")
        assert str(said) in str(error.value)
    assert state_of(model) == once


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "got None"),
        ("shuffle", "'shuffle'"),
        ({"method": "reinit", "seed": -1}, "seed"),
        ({"method": "reinit", "include": ["layer.*"]}, r"'layer\.\*'"),
        ({"method": "resample", "exclude": ["*"]}, "nothing to perturb"),
        ({"method": "reinit", "rules": "published", "include": ["*"]}, "published"),
    ],
    ids=str,
)
def test_a_wrong_perturbation_changes_nothing(network, wrong, message):
    model = small_model(network)
    before = state_of(model)
    with pytest.raises(ValueError, match=message):
        model.perturb(wrong)
    assert state_of(model) == before
    # and does not stand in the way of a right one
    assert not differing(copied(model.perturb("reinit")), copied(small_model(network).perturb("reinit")))


def test_a_tensor_without_a_rule_changes_nothing(network):
    model = small_model(network)
    model.register_parameter("adapter", torch.nn.Parameter(torch.ones(3)))
    before = state_of(model)
    with pytest.raises(hf_perturb.RuleError, match="'adapter'"):
        model.perturb("reinit")
    assert state_of(model) == before


@pytest.mark.parametrize("perturbation", PERTURBATIONS[:5], ids=str)
def test_weights_without_values_are_refused(network, perturbation):
    with torch.device("meta"):
        model = model_class(network)(CONFIGS[network]())
    tied = len(set(map(id, model.parameters())))
    for fresh in (False, True):
        with pytest.raises(ValueError, match="meta device"):
            model.perturb(perturbation, fresh=fresh)
    assert model.config.perturbation is None
    assert model.config.to_dict() == CONFIGS[network]().to_dict() | {"architectures": model.config.architectures}
    assert all(p.is_meta for p in model.parameters())
    assert len(set(map(id, model.parameters()))) == tied


@pytest.mark.parametrize("perturbation", PERTURBATIONS[:5], ids=str)
def test_one_layer_without_values_changes_nothing(network, perturbation):
    """As when Accelerate has put the last layers on disk."""
    model = small_model(network)
    layers = model.model.embedder.layers if network == "carp" else model.layers
    layers[-1].to("meta")
    here = {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_meta}
    before = {name: tensor.clone() for name, tensor in here.items()}
    with pytest.raises(ValueError, match=r"layers\.\d.*meta device"):
        model.perturb(perturbation)
    assert not differing(before, here)
    assert model.config.perturbation is None
    if network in TIED:
        assert model.lm_head.weight is model.embed_tokens.weight
        assert model.config.tie_word_embeddings is True


def test_an_original_module_is_told_to_be_wrapped():
    with pytest.raises(TypeError, match=r"Linear.*hf_perturb\.wrap"):
        hf_perturb.perturb(torch.nn.Linear(2, 2), "reinit")


AUTO = {
    "Model": transformers.AutoModel,
    "ForMaskedLM": transformers.AutoModelForMaskedLM,
    "ForSequenceClassification": transformers.AutoModelForSequenceClassification,
    "ForTokenClassification": transformers.AutoModelForTokenClassification,
}


@fitting
def test_a_configuration_with_a_perturbation_is_applied_exactly_once(network, perturbation, head):
    torch.manual_seed(3)
    expected = model_class(network, head)(CONFIGS[network]())
    drawn = torch.get_rng_state()
    before = copied(expected)
    expected = copied(expected.perturb(perturbation))
    assert differing(before, expected)
    for build in (model_class(network, head), AUTO[head].from_config):
        torch.manual_seed(3)
        model = build(CONFIGS[network](perturbation=perturbation))
        assert type(model) is model_class(network, head)
        assert not differing(expected, copied(model))
        assert model.config.perturbation == perturbation
        # what the application drew came from its own generators
        assert torch.equal(torch.get_rng_state(), drawn)
        once = copied(model)
        model.perturb(perturbation)
        assert not differing(once, copied(model))


def test_on_the_meta_device_nothing_is_drawn(network, head):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with torch.device("meta"):
        model = model_class(network, head)(CONFIGS[network](perturbation="resample"))
    assert all(p.is_meta for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_construction_fails_where_the_globs_match_nothing(network):
    config = CONFIGS[network](perturbation={"method": "reinit", "include": ["layer.*"]})
    for _ in range(2):  # the first failure must not take the order out of the configuration
        with pytest.raises(ValueError, match=r"'layer\.\*' matches no parameter"):
            model_class(network)(config)


def test_a_shared_configuration_records_for_one_model_only():
    config = CONFIGS["esm1b"](perturbation="resample")
    torch.manual_seed(0)
    one = model_class("esm1b")(config)
    torch.manual_seed(0)
    other = model_class("esm1b")(config)
    assert not differing(copied(one), copied(other))
    assert config.tie_word_embeddings is True, "the caller's configuration is left alone"
    plain = model_class("esm1b")(CONFIGS["esm1b"]())
    third = model_class("esm1b")(plain.config)
    third.perturb("reinit")
    assert plain.config.perturbation is None


def test_a_subclass_that_finishes_once_more_perturbs_once():
    class Extended(hf_perturb.CarpModel):
        def __init__(self, config):
            super().__init__(config)
            self.post_init()

    torch.manual_seed(0)
    plain = hf_perturb.CarpModel(CONFIGS["carp"]())
    torch.manual_seed(0)
    extended = Extended(CONFIGS["carp"](perturbation="resample"))
    assert not differing(copied(extended), copied(plain.perturb("resample")))


def test_provenance_is_not_taken_from_another_model(tmp_path):
    record = Perturbation("reinit").with_record(hf_perturb.perturbation.Base("elsewhere"), "blake3:" + 64 * "0")
    model = small_model("carp").perturb(record)
    own = {**Perturbation("reinit", rules="documented").to_dict(), "digest": digest_of(model.state_dict())}
    assert model.config.perturbation.to_dict() == own


def test_what_was_asked_for_on_the_meta_device_can_still_be_done():
    with torch.device("meta"):
        model = hf_perturb.CarpModel(CONFIGS["carp"](perturbation="reinit"))
    model.to_empty(device="cpu")
    model.load_state_dict(small_model("carp", "Model").state_dict())
    with pytest.raises(hf_perturb.PerturbationError, match="fresh=True"):
        model.perturb("reinit")
    model.perturb("reinit", fresh=True)
    assert not differing(copied(model), copied(small_model("carp", "Model").perturb("reinit")))


def test_a_perturbation_cut_short_is_not_passed_over(tmp_path, monkeypatch):
    model = small_model("carp")
    kernels = hf_perturb.perturbation.plan.KERNELS

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setitem(kernels, "uniform", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.perturb("reinit")
    monkeypatch.undo()
    for use in (lambda: model.perturb("reinit"), lambda: model.save_pretrained(tmp_path / "out")):
        with pytest.raises(ValueError, match=r"cut short.*load the base again"):
            use()
    assert not (tmp_path / "out").exists()
