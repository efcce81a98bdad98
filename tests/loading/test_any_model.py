"""Any `PreTrainedModel` in memory: the bits that `create` makes, a record that is true, and what is refused."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from support.any_folders import trained
from support.any_models import MODELS, any_class, any_model, noised
from support.models import small_model
from support.quantiser import rounded
from support.spec_table import copied, differing
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    BertForMaskedLM,
    BertModel,
    T5Config,
    Wav2Vec2Config,
    Wav2Vec2ForXVector,
)

import hf_perturb
from hf_perturb import PerturbationError, StackedPerturbationError, UnsupportedModuleError
from hf_perturb.loading.degenerate import warn_of_constant_output

TOKENS = torch.tensor([[3, 4, 5, 6]])
METHODS = ("reinit", "resample", "gaussian")


def live(kind: str, change=noised):
    """Return a small model with a head, whose every weight is a draw of its own."""
    return any_model(kind, head=True, change=change)


def saved(kind: str, folder):
    live(kind).save_pretrained(folder)
    return folder


OF_EACH = [*((kind, "reinit") for kind in MODELS), *((kind, "gaussian") for kind in ("bert", "qwen3_moe", "wav2vec2"))]


@pytest.mark.parametrize(("kind", "method"), OF_EACH)
def test_a_model_in_memory_has_the_bits_that_create_makes(kind, method, tmp_path):
    base, cls = saved(kind, tmp_path / "base"), any_class(kind, head=True)
    asked = {"method": method, "seed": 7, "rules": "transformers"}
    record = hf_perturb.create_variant(base, tmp_path / "variant", asked)
    model = cls.from_pretrained(base)
    assert hf_perturb.perturb(model, asked) is model
    made = cls.from_pretrained(tmp_path / "variant")
    assert not differing(copied(model), copied(made))
    assert model.config.perturbation == {**record.to_dict(), "base": {"name": "base"}}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_a_trunk_in_a_half_type_has_the_bits_of_the_variant_with_a_head(dtype, method, tmp_path):
    live("bert").to(dtype).save_pretrained(tmp_path / "base")
    hf_perturb.create_variant(tmp_path / "base", tmp_path / "variant", method)
    options = {"add_pooling_layer": False}
    trunk = hf_perturb.perturb(AutoModel.from_pretrained(tmp_path / "base", **options), method)
    assert not differing(copied(trunk), copied(AutoModel.from_pretrained(tmp_path / "variant", **options)))


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_what_is_kept_is_as_it_was_and_ties_hold(kind):
    model = live(kind)
    before, shared = copied(model), model.get_input_embeddings().weight
    hf_perturb.perturb(model, "reinit")
    moved = differing(copied(model), before)
    assert shared is model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert torch.equal(shared, before[next(name for name, x in model.named_parameters() if x is shared)])
    assert moved
    assert not [name for name in moved if "word_embeddings" in name or "shared" in name]


@pytest.mark.parametrize("method", METHODS)
def test_a_mode_changes_nothing_and_is_kept(method):
    expected = copied(hf_perturb.perturb(live("bert"), method))
    with torch.inference_mode():
        inside = hf_perturb.perturb(live("bert"), method)
        built_before = live("bert")
    model = live("bert").train()
    model.bert.encoder.layer[0].eval()  # somebody has frozen it
    state = torch.get_rng_state()
    hf_perturb.perturb(model, method)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert not model.bert.encoder.layer[0].training
    assert not differing(copied(inside), expected)
    assert not differing(copied(model), expected)
    assert not differing(copied(hf_perturb.perturb(built_before, method)), expected)
    model(TOKENS).logits.sum().backward()


@pytest.mark.parametrize("kind", MODELS)
def test_a_folder_that_transformers_saves_verifies_and_says_changed_once_it_was_trained(kind, tmp_path):
    model = hf_perturb.perturb(live(kind), {"method": "resample", "scope": []})
    model.save_pretrained(tmp_path / "control")
    assert hf_perturb.verify_variant(tmp_path / "control").ok
    again = any_class(kind, head=True).from_pretrained(tmp_path / "control")
    assert hf_perturb.perturb(again, "resample") is again
    assert not differing(copied(again), copied(model))
    with torch.no_grad():
        next(x for x in again.parameters() if x.ndim > 1).add_(1)
    again.save_pretrained(tmp_path / "trained")
    found = hf_perturb.verify_variant(tmp_path / "trained")
    assert not found.ok
    assert found.changed == "resample (seed 42, rules transformers)"
    with pytest.raises(StackedPerturbationError, match="trained, edited or cast since"):
        hf_perturb.perturb(again, "resample")


def test_the_record_is_plain_json_and_names_the_base_only_of_loaded_weights(tmp_path):
    base = saved("bert", tmp_path / "base")
    record = hf_perturb.perturb(AutoModelForMaskedLM.from_pretrained(base), "reinit").config.perturbation
    assert {*record} == {"method", "seed", "rules", "base", "digest", "transformers_version"}
    assert record["base"] == {"name": "base"}
    fresh = AutoModel.from_config(AutoModel.from_pretrained(base).config)
    assert fresh.name_or_path
    assert "base" not in hf_perturb.perturb(fresh, "reinit").config.perturbation


def test_what_a_class_does_not_save_counts_in_no_digest(tmp_path):
    model = live("bert")
    model._keys_to_ignore_on_save = {"cls.predictions.transform.dense.bias"}
    hf_perturb.perturb(model, "reinit").save_pretrained(tmp_path)
    assert hf_perturb.verify_variant(tmp_path).ok


def test_the_commit_of_the_code_of_a_class_is_in_the_record():
    commit = 40 * "c"
    own = type("Own", (BertModel,), {"__module__": f"transformers_modules.me.own_bert.{commit}.modeling_own"})
    assert hf_perturb.perturb(own(live("bert").config), "reinit").config.perturbation["code_revision"] == commit


def test_another_model_of_the_same_configuration_is_told_nothing():
    config = live("bert").config
    base, control = BertForMaskedLM(config), BertForMaskedLM(config)
    hf_perturb.perturb(control, "reinit")
    assert getattr(base.config, "perturbation", None) is None
    assert control.bert.config is control.config
    assert control.config.perturbation


def test_perturbations_do_not_stack_in_memory(tmp_path):
    model = hf_perturb.perturb(live("bert"), "reinit")
    for other in ("resample", {"method": "reinit", "seed": 1}):
        with pytest.raises(StackedPerturbationError, match="do not stack"):
            hf_perturb.perturb(model, other)
    assert hf_perturb.perturb(model, {"method": "reinit", "rules": "transformers"}) is model
    owner = live("bert")
    hf_perturb.perturb(owner.bert, "reinit")
    with pytest.raises(PerturbationError, match="holds a BertModel that is perturbed already"):
        hf_perturb.perturb(owner, "reinit")


def test_a_record_that_came_with_a_configuration_alone_can_be_denied():
    config = hf_perturb.perturb(live("bert"), "reinit").config
    model = BertModel(config)
    with pytest.raises(StackedPerturbationError, match=r"or were never they; .*fresh=True"):
        hf_perturb.perturb(model, "reinit")
    assert hf_perturb.perturb(model, "resample", fresh=True).config.perturbation["method"] == "resample"
    assert config.perturbation["method"] == "reinit"


def test_scope_globs_and_parts_choose_tensors_by_either_name():
    for given in ("bert.encoder.layer.1.*", "encoder.layer.1.*"):
        model, before = live("bert"), copied(live("bert"))
        hf_perturb.perturb(model, {"method": "reinit", "include": [given], "exclude": ["*.bias"]})
        moved = differing(copied(model), before)
        assert moved
        assert all(name.startswith("bert.encoder.layer.1.") for name in moved)
    model = hf_perturb.perturb(live("bert"), {"method": "gaussian", "scope": ["top:1"]})
    assert {name.split(".")[3] for name in differing(copied(model), copied(live("bert")))} == {"1"}
    model = hf_perturb.perturb(live("bert"), {"method": "resample", "also": ["embeddings", "head"]})
    assert "bert.embeddings.word_embeddings.weight" in differing(copied(model), copied(live("bert")))


def test_an_include_that_names_what_is_kept_says_so(caplog):
    hf_perturb.perturb(live("bert"), {"method": "reinit", "include": ["*"]})
    assert "parameters that the rules keep" in caplog.text


def refused(model, match, kind=PerturbationError, asked="reinit"):
    """Show that a model is refused, and left as it was."""
    before = {name: x.clone() for name, x in model.state_dict().items() if isinstance(x, torch.Tensor)}
    with pytest.raises(kind, match=match):
        hf_perturb.perturb(model, asked)
    after = model.state_dict()
    assert all(x.is_meta or torch.equal(x.nan_to_num(), after[name].nan_to_num()) for name, x in before.items())
    assert getattr(getattr(model, "config", None), "perturbation", None) is None


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # torch's own
def test_what_is_no_model_is_refused_and_the_model_inside_named():
    compiled = torch.compile(live("bert"))
    refused(compiled, r"got a OptimizedModule.*such as that which it holds, model\._orig_mod", UnsupportedModuleError)
    held = torch.nn.ModuleDict({"encoder": live("bert")})
    refused(held, r"model\.encoder", UnsupportedModuleError)
    refused(torch.nn.Linear(2, 2), "allowed: a PreTrainedModel of Transformers;", UnsupportedModuleError)
    with pytest.raises(UnsupportedModuleError, match="got a str"):
        hf_perturb.perturb("Rostlab/prot_bert", "reinit")


def test_quantised_weights_are_refused_by_name():
    refused(rounded(live("bert")), r"quantised weights \(bert\.encoder.*weight I8.*hf-perturb create")
    narrow = live("bert")
    narrow.bert.encoder.layer[0].output.dense.weight.data = torch.zeros(32, 64, dtype=torch.float8_e4m3fn)
    with pytest.raises(PerturbationError, match=r"output\.dense\.weight F8_E4M3"):
        hf_perturb.perturb(narrow, "reinit")


def test_weights_without_values_are_refused_by_name():
    refused(live("bert").to("meta"), r"without values.*word_embeddings.*hf-perturb create")
    one = live("bert")
    one.bert.embeddings.word_embeddings.to("meta")  # one that would be kept
    refused(one, r"without values.*word_embeddings\.weight")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT calls it so
def test_adapters_are_refused():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(live("bert"), peft.LoraConfig(target_modules=["query"]))
    with pytest.raises(UnsupportedModuleError, match=r"with adapters of PEFT.*merge_and_unload"):
        hf_perturb.perturb(model.base_model.model, "reinit")


def test_weights_that_the_loss_alone_uses_are_refused():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    ears = {"conv_dim": (16,), "conv_kernel": (3,), "conv_stride": (2,), "num_conv_pos_embeddings": 4}
    heads = {"tdnn_dim": (16,), "tdnn_kernel": (3,), "tdnn_dilation": (1,), "num_conv_pos_embedding_groups": 2}
    model = Wav2Vec2ForXVector(Wav2Vec2Config(**sizes, **ears, **heads))
    refused(model, r"its loss alone uses, objective \(AMSoftmaxLoss\)", UnsupportedModuleError)


def test_requests_that_do_not_fit_leave_the_model_as_it_was():
    for asked, said in (
        ({"method": "reinit", "rules": "documented"}, "'documented' for bert; allowed: 'transformers'"),
        ({"method": "reinit", "include": ["decoder.*"]}, "matches no parameter"),
        ({"method": "reinit", "scope": ["top:9"]}, "scope"),
        ({"method": "resample", "include": ["*.LayerNorm.weight"]}, "each of which is constant"),
    ):
        refused(live("bert", change=None), said, asked=asked)


def test_two_names_of_one_memory_are_refused():
    model = live("bert")
    model.bert.encoder.layer[1].output.dense.weight = model.bert.encoder.layer[0].output.dense.weight
    refused(model, r"could not save this BertForMaskedLM.*layer\.1\.output\.dense.*clone them")
    other = live("bert")
    layers = other.bert.encoder.layer
    layers[1].output.dense.weight.data = layers[0].output.dense.weight.data
    refused(other, "in memory, and each would be drawn on its own")


def test_a_perturbation_that_is_cut_short_leaves_no_record_that_is_false(monkeypatch):
    def stop(self, *args):
        raise KeyboardInterrupt

    model = live("bert")
    with monkeypatch.context() as patch:
        patch.setattr(hf_perturb.perturbation.plan.Step, "blocks", stop)
        with pytest.raises(KeyboardInterrupt):
            hf_perturb.perturb(model, "resample")
    assert model.config.perturbation["changed"]
    with pytest.raises(StackedPerturbationError, match="changed since"):
        hf_perturb.perturb(model, "resample")


@pytest.mark.parametrize("network", ["esm1", "esm1b", "esm2", "carp"])
def test_our_families_are_drawn_as_transformers_draws_them(network, tmp_path):
    model, base = small_model(network), small_model(network)
    hf_perturb.perturb(model, {"method": "reinit", "rules": "transformers"})
    assert model.config.perturbation.rules == "transformers"
    base.save_pretrained(tmp_path / "base")
    record = hf_perturb.create_variant(tmp_path / "base", tmp_path / "v", {"method": "reinit", "rules": "transformers"})
    assert record.with_record(None, record.digest).to_dict() == model.config.perturbation.to_dict()
    assert record.transformers_version
    layer = next(x for name, x in model.named_parameters() if name.endswith(("fc1.weight", "layers.0.conv.weight")))
    assert np.isclose(layer.std().item(), 0.02, rtol=0.1)
    model.save_pretrained(tmp_path / "saved")
    assert hf_perturb.verify_variant(tmp_path / "saved", tmp_path / "base").ok
    with pytest.raises(StackedPerturbationError):
        hf_perturb.perturb(model, "reinit")


def test_a_control_that_answers_all_inputs_alike_is_told(caplog):
    model = live("t5")
    with caplog.at_level(logging.WARNING, "hf_perturb"):
        hf_perturb.perturb(copy.deepcopy(model), "reinit")
        assert "to the last bit" not in caplog.text
        model.shared.weight.data.zero_()  # which is kept
        hf_perturb.perturb(model, "reinit")
    assert "T5ForConditionalGeneration answers two different inputs with the same output" in caplog.text


def test_a_model_that_draws_while_it_runs_leaves_the_random_state_alone():
    class Noisy(BertModel):
        def forward(self, input_ids, **kwargs):
            found = super().forward(input_ids, **kwargs)
            return (found[0] + torch.randn_like(found[0]) + torch.rand(1), *found[1:])

    model = Noisy(live("bert", change=None).config)
    before = torch.get_rng_state()
    hf_perturb.perturb(model, "reinit")
    assert torch.equal(before, torch.get_rng_state())


def test_hooks_of_others_do_not_see_the_look_at_the_output():
    seen = []
    model = live("bert")
    model.bert.encoder.layer[0].register_forward_hook(lambda *args: seen.append(args))
    hf_perturb.perturb(model, "reinit")
    assert not seen


@pytest.mark.parametrize("kind", MODELS)
def test_small_inputs_can_be_made_of_each_configuration(kind, caplog):
    with caplog.at_level(logging.DEBUG, "hf_perturb"):
        warn_of_constant_output(live(kind))
    assert caplog.text.count("is not known") < 2
    assert "to the last bit" not in caplog.text


def test_a_t5_configuration_is_recorded_once_for_both_stacks():
    model = hf_perturb.perturb(live("t5"), {"method": "reinit", "scope": ["encoder.top:1"]})
    assert isinstance(model.config, T5Config)
    assert model.config.perturbation["scope"] == ["encoder.top:1"]
    moved = differing(copied(model), copied(live("t5")))
    assert moved
    assert all(name.startswith("encoder.block.1.") for name in moved)


def test_a_network_that_does_not_say_which_of_its_parts_takes_text_is_perturbed_all_the_same():
    model = trained("musicgen")
    with pytest.raises(ValueError, match="Multiple valid text configs"):
        model.config.get_text_config()
    assert "changed" not in hf_perturb.perturb(model, "reinit").config.perturbation


def test_a_scope_names_the_stack_of_a_part_as_in_the_whole():
    whole = any_model("t5", head=True)
    part = any_class("t5_encoder")(whole.config)
    part.load_state_dict(whole.state_dict(), strict=False)
    for model in (whole, part):
        hf_perturb.perturb(model, {"method": "resample", "scope": ["encoder.top:1"]})
    state = whole.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in part.state_dict().items())
    with pytest.raises(PerturbationError, match=r"got 'decoder\.top:1'; allowed: one of 'top:1'"):
        hf_perturb.perturb(any_model("t5_encoder"), {"method": "resample", "scope": ["decoder.top:1"]})
