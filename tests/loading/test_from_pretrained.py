"""Every cell of the table of the contract, section 3: a record is never an order, and never a lie."""

from __future__ import annotations

import shutil

import pytest
import torch
from support.models import CONFIGS, HEADS, build_tokenizer, model_class, small_model
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BitsAndBytesConfig,
    pipeline,
)

import hf_perturb
from hf_perturb import Perturbation
from hf_perturb.checkpoints.network import CARP, ESM1, ESM1B, ESM2
from hf_perturb.variants.create import create_variant

AUTO = dict(
    zip(
        HEADS,
        (AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoModelForTokenClassification),
        strict=True,
    )
)
TASKS = dict(
    zip(HEADS, ("feature-extraction", "fill-mask", "text-classification", "token-classification"), strict=True)
)
ALPHABETS = {"esm1": ESM1, "esm1b": ESM1B, "esm2": ESM2, "carp": CARP}
P = {"method": "resample", "seed": 7}
Q = {"method": "reinit", "seed": 7}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a function that gives a base folder and its variant by P, written once for a network, head and type."""
    made = {}

    def give(network, head, dtype=torch.float32):
        key = (network, head, dtype)
        if key not in made:
            base = tmp_path_factory.mktemp(f"{network}-{head}") / "base"
            small_model(network, head).to(dtype).save_pretrained(base)
            build_tokenizer(ALPHABETS[network]).save_pretrained(base)
            create_variant(base, base.parent / "variant", P)
            made[key] = base, base.parent / "variant"
        return made[key]

    return give


def through_class(network, head, folder, **kwargs):
    return model_class(network, head).from_pretrained(folder, **kwargs)


def through_auto(network, head, folder, **kwargs):
    return AUTO[head].from_pretrained(folder, **kwargs)


def through_pipeline(network, head, folder, **kwargs):
    return pipeline(TASKS[head], model=str(folder), model_kwargs=kwargs).model


def through_config(network, head, folder, perturbation=None, **kwargs):
    config = CONFIGS[network](perturbation=perturbation)
    return model_class(network, head).from_pretrained(folder, config=config, **kwargs)


WAYS = [through_class, through_auto, through_pipeline, through_config]


def same(one, other) -> bool:
    one, other = one.state_dict(), other.state_dict()
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def load(request):
    return request.param


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request):
    return request.param


def test_no_record_nothing_asked(folders, load, network, head):
    base, _ = folders(network, head)
    model = load(network, head, base)
    assert model.config.perturbation is None
    assert same(model, small_model(network, head))


def test_no_record_and_p(folders, load, network, head, dtype):
    base, variant = folders(network, head, dtype)
    model = load(network, head, base, perturbation=P)
    assert model.config.perturbation == Perturbation(**P)
    expected = hf_perturb.perturb(small_model(network, head).to(dtype), P)
    assert same(model, expected)
    assert same(model, through_class(network, head, variant))
    assert model.dtype == dtype


@pytest.mark.parametrize("asked", [None, P], ids=["nothing", "the-same"])
def test_record_p_and_nothing_or_p(folders, load, network, head, dtype, asked):
    base, variant = folders(network, head, dtype)
    model = load(network, head, variant, perturbation=asked)
    assert model.config.perturbation == Perturbation(**P)
    assert model.config.perturbation.digest is not None, "the record is the checkpoint's, with its provenance"
    assert same(model, hf_perturb.perturb(small_model(network, head).to(dtype), P))
    assert not same(model, through_class(network, head, base))


def test_record_p_and_q(folders, load, network, head):
    _, variant = folders(network, head)
    with pytest.raises(ValueError, match=r"resample \(seed 7.*reinit \(seed 7.*do not stack") as caught:
        load(network, head, variant, perturbation=Q)
    # a pipeline tries several classes and puts their errors into one of its own
    assert isinstance(caught.value, hf_perturb.StackedPerturbationError) or load is through_pipeline


@pytest.mark.parametrize("asked", [None, P], ids=["nothing", "the-same"])
def test_recipe(folders, load, network, head, dtype, tmp_path, asked):
    base, variant = folders(network, head, dtype)
    create_variant(base, tmp_path / "recipe", P, recipe=True)
    assert sum(file.stat().st_size for file in (tmp_path / "recipe").iterdir()) < 20_000
    model = load(network, head, tmp_path / "recipe", perturbation=asked)
    assert same(model, through_class(network, head, variant))
    assert model.dtype == dtype
    assert model.config.perturbation == Perturbation(**P)
    with pytest.raises(ValueError, match="do not stack"):
        load(network, head, tmp_path / "recipe", perturbation=Q)


def test_recipe_of_a_base_that_changed(folders, tmp_path):
    base, _ = folders("carp", "ForMaskedLM")
    shutil.copytree(base, tmp_path / "base")
    create_variant(tmp_path / "base", tmp_path / "recipe", P, recipe=True)
    small_model("carp", seed=1).save_pretrained(tmp_path / "base")
    with pytest.raises(hf_perturb.DigestError, match=r"blake3:.*blake3:.*has changed$"):
        AutoModel.from_pretrained(tmp_path / "recipe")


def test_loaded_saved_and_loaded_never_changes(folders, load, network, head, dtype, tmp_path):
    _, variant = folders(network, head, dtype)
    first = load(network, head, variant)
    first.save_pretrained(tmp_path / "again")
    build_tokenizer(ALPHABETS[network]).save_pretrained(tmp_path / "again")
    second = load(network, head, tmp_path / "again")
    assert same(first, second)
    assert second.config.perturbation == first.config.perturbation
    assert second.config.perturbation.to_dict() == first.config.perturbation.to_dict()


@pytest.mark.parametrize("head_of_load", HEADS)
def test_one_checkpoint_under_another_head(folders, network, head_of_load):
    """A variant of the masked LM has the same trunk under every head, and keeps its record."""
    base, variant = folders(network, "ForMaskedLM")
    cls = model_class(network, head_of_load)
    stored, asked = cls.from_pretrained(variant), cls.from_pretrained(base, perturbation=P)
    shared = [name for name in stored.state_dict() if not name.startswith("classifier")]
    assert shared
    for name in shared:
        assert torch.equal(stored.state_dict()[name], asked.state_dict()[name]), name
    assert stored.config.perturbation == asked.config.perturbation
    assert stored.config.tie_word_embeddings == asked.config.tie_word_embeddings


def test_a_config_of_another_checkpoint_cannot_lie(folders):
    """The config of a variant, handed to a base, asks for the variant; that of a base cannot hide a record."""
    base, variant = folders("esm1b", "ForMaskedLM")
    cls = hf_perturb.FairEsmForMaskedLM
    of_variant, of_base = (hf_perturb.FairEsmConfig.from_pretrained(folder) for folder in (variant, base))
    model = cls.from_pretrained(base, config=of_variant)
    assert same(model, cls.from_pretrained(variant))
    model = cls.from_pretrained(variant, config=of_base)
    assert model.config.perturbation == Perturbation(**P)
    assert model.config.tie_word_embeddings is False
    assert same(model, cls.from_pretrained(variant))
    assert of_base.perturbation is None, "the caller's config is left alone"


def test_a_state_dict_is_what_its_config_says(folders, network):
    _, variant = folders(network, "ForMaskedLM")
    cls = model_class(network)
    model = cls.from_pretrained(variant)
    again = cls.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert same(model, again)
    assert again.config.perturbation == model.config.perturbation


def test_a_state_dict_stays_the_caller_s():
    source = small_model("carp")
    model = hf_perturb.CarpForMaskedLM.from_pretrained(
        None, config=source.config, state_dict=source.state_dict(), perturbation="reinit"
    )
    assert model.config.perturbation == Perturbation("reinit")
    assert same(source, small_model("carp"))


def test_a_head_that_the_perturbation_names_and_the_file_lacks_is_refused(folders, tmp_path):
    base, _ = folders("esm1b", "ForMaskedLM")
    hf_perturb.FairEsmModel.from_pretrained(base, perturbation="reinit").save_pretrained(tmp_path / "trunk")
    with pytest.raises(OSError, match=r"lacks lm_head\.bias, .*lm_head\.weight, which reinit"):
        hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "trunk")
    trunk, _ = folders("esm1b", "Model")
    with pytest.raises(OSError, match=r"lacks lm_head\.bias"):
        hf_perturb.FairEsmForMaskedLM.from_pretrained(trunk, perturbation="resample")
    classifier = hf_perturb.FairEsmForTokenClassification.from_pretrained(tmp_path / "trunk", num_labels=3)
    assert classifier.classifier.out_proj.out_features == 3


def test_a_digest_that_is_not_true_any_more_is_not_stored(folders, tmp_path):
    _, variant = folders("carp", "ForMaskedLM")
    hf_perturb.CarpForMaskedLM.from_pretrained(variant, dtype=torch.bfloat16).save_pretrained(tmp_path / "cast")
    record = AutoModel.from_pretrained(tmp_path / "cast").config.perturbation
    assert record == Perturbation(**P)
    assert record.digest is None
    assert record.base is not None


def test_a_tie_is_the_checkpoint_s_to_decide(folders):
    base, variant = folders("esm1b", "ForMaskedLM")
    for folder, tied in ((base, True), (variant, False)):
        model = hf_perturb.FairEsmForMaskedLM.from_pretrained(folder, tie_word_embeddings=tied)
        assert model.config.tie_word_embeddings is tied
        with pytest.raises(ValueError, match="tie_word_embeddings: got"):
            hf_perturb.FairEsmForMaskedLM.from_pretrained(folder, tie_word_embeddings=not tied)


def test_a_recipe_takes_what_a_checkpoint_takes(folders, tmp_path):
    base, _ = folders("esm1b", "ForMaskedLM")
    create_variant(base, tmp_path / "recipe", P, recipe=True)
    model, info = hf_perturb.FairEsmForSequenceClassification.from_pretrained(
        tmp_path / "recipe", num_labels=3, dtype=torch.bfloat16, output_loading_info=True
    )
    assert model.classifier.out_proj.out_features == 3
    assert model.dtype == torch.bfloat16
    assert set(info["missing_keys"]) == {name for name in model.state_dict() if name.startswith("classifier.")}
    shutil.move(base, tmp_path / "moved")
    try:
        with pytest.raises(OSError, match=r"the recipe .* needs its base"):
            hf_perturb.FairEsmModel.from_pretrained(tmp_path / "recipe")
    finally:
        shutil.move(tmp_path / "moved", base)


def test_axis_spelled_out_is_the_same_perturbation(folders, network):
    _, variant = folders(network, "Model")
    axis = "all" if network == "carp" else "embedding"
    assert AutoModel.from_pretrained(variant, perturbation={**P, "axis": axis}).config.perturbation.axis is None
    with pytest.raises(ValueError, match="do not stack"):
        AutoModel.from_pretrained(variant, perturbation={**P, "axis": "rows"})


def test_quantised_and_disk_are_refused_with_the_remedy(folders):
    base, _ = folders("carp", "Model")
    quantised = BitsAndBytesConfig(load_in_8bit=True)
    for arguments in ({"quantization_config": quantised}, {"device_map": {"": "disk"}}):
        with pytest.raises(ValueError, match="build the variant first"):
            hf_perturb.CarpModel.from_pretrained(base, perturbation=P, **arguments)


def test_from_config_perturbs_once_and_meta_draws_nothing(network, head):
    torch.manual_seed(3)
    plain = model_class(network, head)(CONFIGS[network]())
    torch.manual_seed(3)
    asked = AUTO[head].from_config(CONFIGS[network](perturbation=P))
    assert asked.config.perturbation == Perturbation(**P)
    assert same(asked, hf_perturb.perturb(plain, P))
    with torch.device("meta"):
        meta = model_class(network, head)(CONFIGS[network](perturbation=P))
    assert all(parameter.is_meta for parameter in meta.parameters())


def test_loading_info_and_bad_values(folders):
    base, _ = folders("carp", "ForMaskedLM")
    model, info = hf_perturb.CarpForMaskedLM.from_pretrained(base, perturbation="reinit", output_loading_info=True)
    assert model.config.perturbation == Perturbation("reinit")
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with pytest.raises(ValueError, match="key 'sede' is unknown; allowed: method, seed"):
        AutoModel.from_pretrained(base, perturbation={"method": "reinit", "sede": 1})
    with pytest.raises(ValueError, match="method: got 'shuffle'; allowed: one of 'reinit', 'resample'"):
        hf_perturb.CarpModel.from_pretrained(base, perturbation="shuffle")
    with pytest.raises(OSError, match="no-such-folder"):
        hf_perturb.CarpModel.from_pretrained("./no-such-folder", perturbation="reinit")
