"""Adapters of PEFT: they work on every layer, and say on which control they were trained."""

from __future__ import annotations

import copy
import json
import pickle

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from support.models import batch_of, model_class, small_model
from support.owners import HoldsCarp
from torch import nn
from transformers.integrations import peft as integration

import hf_perturb
from hf_perturb import UnsupportedModuleError
from hf_perturb.networks.modeling_carp import CarpConvolution

SAID = ["perturbation-method:resample", "perturbation-rules:documented", "perturbation-seed:7"]
TARGETS = {"esm1b": ["q_proj", "v_proj"], "carp": r".*sequence1\.\d\.conv"}

# PEFT prints what Transformers calls by an old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(params=["esm1b", "carp"])
def control(request, tmp_path):
    """Return a control as it is loaded, with a digest in its record, and where it is."""
    small_model(request.param).perturb({"method": "resample", "seed": 7}).save_pretrained(tmp_path / "control")
    return model_class(request.param).from_pretrained(tmp_path / "control"), TARGETS[request.param]


def wrapped(model, targets, **keywords):
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, r=2, **keywords))


def card_of(folder):
    return ModelCard.load(folder / "README.md")


def assert_says_so(card, folder):
    digest = json.loads((folder / "config.json").read_text())["perturbation"]["digest"]
    assert {*SAID, f"perturbation-digest:{digest}"} <= {*card.data.tags}
    assert not any("changed" in tag for tag in card.data.tags)
    assert card.data.base_model == str(folder)
    assert card.data.library_name == "peft"


@pytest.mark.parametrize("task", [None, "FEATURE_EXTRACTION"])
def test_the_card_that_peft_writes_names_the_control(control, tmp_path, task):
    model, targets = control
    adapter = wrapped(model, targets, task_type=task)
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:  # trained
            torch.nn.init.ones_(parameter)
    adapter.save_pretrained(tmp_path / "adapter")
    assert_says_so(card_of(tmp_path / "adapter"), tmp_path / "control")
    stated = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert stated["base_model_name_or_path"] == str(tmp_path / "control")


@pytest.fixture
def any_peft(monkeypatch):
    """Let Transformers take the PEFT that is here, which may be older than the one it asks for."""
    monkeypatch.setattr(integration, "MIN_PEFT_VERSION", "0.18.0")


def test_the_adapter_that_transformers_writes_has_such_a_card(control, tmp_path, any_peft):
    model, targets = control
    model.add_adapter(peft.LoraConfig(target_modules=targets, r=2))
    model.save_pretrained(tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert_says_so(card_of(tmp_path / "adapter"), tmp_path / "control")
    assert "a control: resample (seed 7, rules documented)" in card_of(tmp_path / "adapter").text
    # what is under the adapter is still the control


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_an_adapter_may_train_the_embedding_but_not_replace_the_head():
    """PEFT takes a tied head for a projection alone, and would leave out what comes before it."""
    model, batch = small_model("esm1b"), batch_of("esm1b")
    expected = model(**batch).logits
    adapter = wrapped(model, ["q_proj"], modules_to_save=["embed_tokens"])
    torch.testing.assert_close(adapter(**batch).logits, expected)
    for modules in (["embed_tokens"], ["lm_head"]):
        adapter = wrapped(small_model("esm1b"), ["q_proj"], modules_to_save=modules, ensure_weight_tying=True)
        with pytest.raises(hf_perturb.ModelInputError, match=r"a projection alone in the place of lm_head"):
            adapter(**batch)
    adapter = wrapped(small_model("esm1"), ["q_proj"], modules_to_save=["embed_tokens"])
    adapter(**batch_of("esm1"))


def test_a_card_that_is_there_keeps_its_text_and_tags(control, tmp_path, any_peft):
    model, targets = control
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "README.md").write_text("---\ntags:\n- mine\n---\n\n# My adapter\n", encoding="utf-8")
    model.add_adapter(peft.LoraConfig(target_modules=targets, r=2))
    model.save_pretrained(tmp_path / "adapter")
    card = card_of(tmp_path / "adapter")
    assert {"mine", *SAID} <= {*card.data.tags}
    assert "# My adapter" in card.text


def test_an_adapter_of_a_base_names_no_control(tmp_path, any_peft):
    for save in ("peft", "transformers"):
        model = small_model("esm1b")
        if save == "peft":
            wrapped(model, TARGETS["esm1b"]).save_pretrained(tmp_path / save)
            assert not [tag for tag in card_of(tmp_path / save).data.tags if tag.startswith("perturbation")]
        else:
            model.add_adapter(peft.LoraConfig(target_modules=TARGETS["esm1b"], r=2))
            model.save_pretrained(tmp_path / save)
            assert not (tmp_path / save / "README.md").exists()


def test_tags_follow_the_record_and_keep_what_is_added():
    model = small_model("carp")
    assert model.model_tags == []
    model.add_model_tags("mine")
    model.add_model_tags(["mine", "yours"])
    model.perturb({"method": "reinit", "seed": 3, "exclude": ["*.bias"]})
    assert model.model_tags[:2] == ["mine", "yours"]
    assert {"perturbation-method:reinit", "perturbation-seed:3", 'perturbation-exclude:["*.bias"]'} <= {
        *model.model_tags
    }
    model.model_tags = [*model.model_tags, "theirs"]
    assert [tag for tag in model.model_tags if not tag.startswith("perturbation-")] == ["mine", "yours", "theirs"]
    model.model_tags = None
    assert all(tag.startswith("perturbation-") for tag in model.model_tags)


CONVOLUTIONS = [
    {"kernel_size": 1},
    {"kernel_size": (1,), "bias": False},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 1, "padding": 3},
    {"kernel_size": 1, "groups": 2},
    {"kernel_size": 5, "padding": 8, "dilation": 4},
    {"kernel_size": 5, "padding": 4},
    {"kernel_size": 3, "padding": "same", "dilation": 2},
    {"kernel_size": 3, "padding": 2, "padding_mode": "circular", "bias": False},
    {"kernel_size": 4, "stride": 3, "dtype": torch.float64},
]


@pytest.mark.parametrize("given", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("batch", [(3,), ()], ids=["batch", "no batch"])
def test_a_convolution_of_carp_is_one_of_torch(given, batch):
    ours, theirs = CarpConvolution(4, 6, **given), nn.Conv1d(4, 6, **given)
    theirs.load_state_dict(ours.state_dict())
    assert repr(ours).removeprefix("Carp").replace("Convolution", "Conv1d") == repr(theirs)
    x = torch.randn(*batch, 4, 20, dtype=theirs.weight.dtype)
    for each in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        torch.testing.assert_close(each(x), theirs(x), rtol=0, atol=1e-6)


METHODS = {
    "lora": lambda **which: peft.LoraConfig(r=2, **which),
    "rslora": lambda **which: peft.LoraConfig(r=2, use_rslora=True, **which),
    "dora": lambda **which: peft.LoraConfig(r=2, use_dora=True, **which),
    "loha": lambda **which: peft.LoHaConfig(r=2, use_effective_conv2d=True, **which),
    "lokr": lambda **which: peft.LoKrConfig(r=2, **which),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("slim", [True, False])
@pytest.mark.parametrize("targets", [["conv"], r".*sequence\d\.2\.conv", r".*layers\.\d\.conv"], ids=str)
def test_an_adapter_of_convolutions_is_what_it_merges_to(method, slim, targets, tmp_path):
    """Dilations, channels in and out that are equal and not, layers of one tap and of several."""
    tokens = torch.randint(0, 20, (3, 30), generator=torch.Generator().manual_seed(0))
    model = peft.get_peft_model(
        small_model("carp", slim=slim, num_hidden_layers=3), METHODS[method](target_modules=targets)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    adapted = model(tokens).logits
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(small_model("carp", slim=slim, num_hidden_layers=3), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)
    base = small_model("carp", slim=slim, num_hidden_layers=3)(tokens).logits
    size = adapted.abs().max()
    assert (adapted - base).abs().max() > 1e-3 * size
    torch.testing.assert_close(model.merge_and_unload()(tokens).logits, adapted, rtol=0, atol=1e-5 * size.item())
    adapted.sum().backward()


# ---- what has adapters is not perturbed


def injected(model, targets):
    return peft.inject_adapter_in_model(peft.LoraConfig(target_modules=targets, r=2), model)


def added(model, targets):
    model.add_adapter(peft.LoraConfig(target_modules=targets, r=2))
    return model


def base_of(model, targets):
    wrapped(model, targets)
    return model


FIRST_THEN = r"with adapters of PEFT.*perturb first, then add adapters.*merge_and_unload"


@pytest.mark.parametrize("way", [wrapped, injected, added, base_of])
@pytest.mark.parametrize("network", ["esm1", "esm1b", "esm2", "carp"])
def test_a_model_with_adapters_is_to_be_perturbed_first(network, way, any_peft):
    model = small_model(network)
    found = way(model, TARGETS.get(network, TARGETS["esm1b"]))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for perturb in (hf_perturb.perturb, lambda model, asked: model.perturb(asked)):
        with pytest.raises(UnsupportedModuleError, match=FIRST_THEN):
            perturb(found, "reinit")
    assert model.config.perturbation is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(UnsupportedModuleError, match=r"wrap: .*with adapters of PEFT"):
        hf_perturb.wrap(found)


def test_a_prompt_is_an_adapter_too():
    options = {"num_virtual_tokens": 2, "num_layers": 3, "token_dim": 32, "num_attention_heads": 4}
    config = peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", **options)
    with pytest.raises(UnsupportedModuleError, match=FIRST_THEN):
        hf_perturb.perturb(peft.get_peft_model(small_model("esm1b"), config), "reinit")


def test_a_control_with_adapters_is_still_that_control_and_a_merged_base_can_be_perturbed(control):
    model, targets = control
    adapter = wrapped(model, targets)
    assert model.perturb({"method": "resample", "seed": 7}) is model
    assert adapter.unload().config.perturbation.seed == 7
    base = small_model("carp")
    merged = wrapped(base, TARGETS["carp"]).merge_and_unload()
    assert hf_perturb.perturb(merged, "reinit").config.perturbation.method == "reinit"


def test_adapters_in_a_model_of_somebody_s_own_leave_its_network_a_control(tmp_path):
    targets = TARGETS["carp"]
    small_model("carp").perturb({"method": "resample", "seed": 7}).save_pretrained(tmp_path / "control")
    own = HoldsCarp.from_pretrained(tmp_path / "control")
    copied = wrapped(HoldsCarp.from_pretrained(tmp_path / "control"), ["own_head"], modules_to_save=["carp"])
    assert {*SAID} <= {*copied.get_base_model().model_tags}
    adapter = wrapped(own, targets, modules_to_save=["own_head"])
    adapter.save_pretrained(tmp_path / "adapter")
    assert {*SAID} <= {*card_of(tmp_path / "adapter").data.tags}
    with pytest.raises(UnsupportedModuleError, match=FIRST_THEN):
        hf_perturb.perturb(injected(HoldsCarp(small_model("carp").config), targets), "reinit")
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    adapter.merge_and_unload().save_pretrained(tmp_path / "merged")
    assert HoldsCarp.from_pretrained(tmp_path / "merged").config.perturbation.changed
