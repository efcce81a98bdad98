"""Variants of any Transformers model: the folder is a stock one, and its tensors are those of the plan in memory."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from support.any_folders import OTHERS, loaded, made_in_memory, restored, stored
from support.any_models import MODELS
from support.models import small_model
from transformers import BertForMaskedLM, BertModel, Wav2Vec2Config, Wav2Vec2ForXVector

from hf_perturb import (
    FairEsmForMaskedLM,
    Perturbation,
    convert_checkpoint,
    create_variant,
    create_variants,
    export_checkpoint,
    verify_variant,
)
from hf_perturb.errors import CheckpointError, DigestError, FolderExistsError, PerturbationError, UnsupportedModuleError

METHODS = [Perturbation(method, 3, rules="transformers") for method in ("reinit", "resample", "gaussian")]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def check(base, out, model, asked) -> None:
    """Make a variant: it is what the plan gives in memory, it loads as that, and it is as recorded."""
    create_variant(base, out, asked)
    assert same(loaded(out, type(model)), made_in_memory(model, asked))
    assert verify_variant(out).ok
    assert verify_variant(out, base).ok


@pytest.mark.parametrize("asked", METHODS, ids=lambda asked: asked.method)
@pytest.mark.parametrize("kind", [*MODELS, *OTHERS])
def test_a_variant_on_disk_is_the_one_in_memory(kind, asked, tmp_path):
    model = stored(kind, tmp_path / "base")
    check(tmp_path / "base", tmp_path / "out", model, asked)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["bert", "qwen3_moe"])
@pytest.mark.parametrize("asked", METHODS, ids=lambda asked: asked.method)
def test_half_types_and_shards_change_no_draw(kind, dtype, asked, tmp_path):
    model = stored(kind, tmp_path / "base", dtype, max_shard_size="10kB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    check(tmp_path / "base", tmp_path / "out", model, asked)


def test_a_pickle_gives_the_same_variant(tmp_path):
    model = stored("bert", tmp_path / "base")
    torch.save(model.state_dict(), tmp_path / "base" / "pytorch_model.bin")
    (tmp_path / "base" / "model.safetensors").unlink()
    for asked in METHODS:
        check(tmp_path / "base", tmp_path / asked.method, model, asked)


def test_names_lack_the_prefix_of_the_class_or_have_one_too_many(tmp_path):
    """A trunk stored under the name of a class with a head, and the other way; both draws are the same."""
    model = stored("bert_trunk", tmp_path / "bare")
    restored(tmp_path / "bare", lambda tensors: tensors, architectures=["BertModel"])
    stored("bert_trunk", tmp_path / "named")
    restored(tmp_path / "named", lambda tensors: {f"bert.{name}": tensor for name, tensor in tensors.items()})
    for asked in METHODS:
        for form in ("bare", "named"):
            check(tmp_path / form, tmp_path / f"{form}-{asked.method}", model, asked)


def test_a_trunk_under_the_name_of_a_class_with_a_head_is_a_base(tmp_path, caplog):
    """Whoever loads it with a head has a new one, of the variant as of the base."""
    model = stored("bert_trunk", tmp_path / "base")
    restored(tmp_path / "base", lambda tensors: tensors, architectures=["BertForMaskedLM"])
    check(tmp_path / "base", tmp_path / "out", model, METHODS[0])
    assert "cls.predictions" in caplog.text


def test_what_no_class_has_is_left_out_and_said(tmp_path, caplog):
    model = stored("bert_pretraining", tmp_path / "base")
    restored(tmp_path / "base", lambda tensors: tensors, architectures=["BertForMaskedLM"])
    create_variant(tmp_path / "base", tmp_path / "out", METHODS[0])
    assert re.search("left out, .*BertForMaskedLM.*cls.seq_relationship.bias", caplog.text)
    made = made_in_memory(model, METHODS[0])
    for model_class, without in ((BertForMaskedLM, ("bert.pooler.",)), (BertModel, ("cls.",))):
        model, info = model_class.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not info["missing_keys"]
        assert all(name.startswith(without) for name in info["unexpected_keys"])
        state = {
            (name if model_class is BertForMaskedLM else f"bert.{name}"): x for name, x in model.state_dict().items()
        }
        assert all(torch.equal(tensor, made[name]) for name, tensor in state.items())


def test_the_second_name_of_a_tied_tensor_is_not_stored_again(tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    model = stored("t5", base)
    names = {name for name in model.state_dict() if name.endswith("embed_tokens.weight")} | {"lm_head.weight"}
    restored(base, lambda tensors: tensors | {name: tensors["shared.weight"].clone() for name in names})
    check(base, out, model, Perturbation("resample", 3, rules="transformers", also=("embeddings", "head")))
    assert {"shared.weight"} == {*load_file(out / "model.safetensors")} & {*names, "shared.weight"}


def test_tied_tensors_that_differ_are_refused(tmp_path):
    stored("bert", tmp_path / "base")
    other = {"cls.predictions.decoder.weight": torch.zeros(33, 16)}
    restored(tmp_path / "base", lambda tensors: tensors | other)
    with pytest.raises(CheckpointError, match=r"decoder.weight and .*tie_word_embeddings false"):
        create_variant(tmp_path / "base", tmp_path / "out", "reinit")


@pytest.mark.parametrize("asked", METHODS, ids=lambda asked: asked.method)
def test_old_names_stay_and_draws_go_by_those_of_the_class(asked, tmp_path):
    model = stored("bert", tmp_path / "base")
    old = {"weight": "gamma", "bias": "beta"}
    restored(
        tmp_path / "base",
        lambda tensors: {
            re.sub(r"(?<=LayerNorm\.)\w+", lambda found: old[found[0]], name): x for name, x in tensors.items()
        },
    )
    check(tmp_path / "base", tmp_path / "out", model, asked)


@pytest.mark.parametrize("asked", METHODS, ids=lambda asked: asked.method)
def test_a_weight_norm_of_before_is_read_as_the_one_of_today(asked, tmp_path):
    model = stored("wav2vec2", tmp_path / "base")
    restored(
        tmp_path / "base",
        lambda tensors: {
            name.replace(".parametrizations.weight.original0", ".weight_g").replace(
                ".parametrizations.weight.original1", ".weight_v"
            ): tensor
            for name, tensor in tensors.items()
        },
    )
    check(tmp_path / "base", tmp_path / "out", model, asked)


def test_experts_are_one_tensor(tmp_path, caplog):
    """A part of a stack may be kept; what stays does so to the bit, in the files as well."""
    model = stored("mixtral", tmp_path / "base")
    asked = Perturbation("resample", 3, rules="transformers", include=("*.experts.gate_up_proj",))
    check(tmp_path / "base", tmp_path / "out", model, asked)
    assert "18 tensors are 4 others once they are loaded" in caplog.text
    half = Perturbation("gaussian", 3, rules="transformers", exclude=("*.experts.down_proj",))
    check(tmp_path / "base", tmp_path / "half", model, half)


def test_an_expert_that_is_missing_is_named(tmp_path):
    stored("mixtral", tmp_path / "base")
    restored(
        tmp_path / "base",
        lambda tensors: {name: x for name, x in tensors.items() if "0.block_sparse_moe.experts.2.w2" not in name},
    )
    with pytest.raises(CheckpointError, match=r"another shape: layers.0.mlp.experts.down_proj \(2, "):
        create_variant(tmp_path / "base", tmp_path / "out", "reinit")


def test_integers_among_the_buffers_do_not_matter(tmp_path):
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    model = ResNetForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "base")
    check(tmp_path / "base", tmp_path / "out", model, METHODS[1])


def test_weights_of_a_quantiser_are_refused(tmp_path):
    stored("bert", tmp_path / "base")
    restored(tmp_path / "base", lambda tensors: {n: x.to(torch.int8) if x.dim() > 1 else x for n, x in tensors.items()})
    with pytest.raises(CheckpointError, match=r"types that are not perturbed: .*query.weight I8"):
        create_variant(tmp_path / "base", tmp_path / "out", "reinit")


def test_force_replaces_what_a_variant_has_from_its_base_and_nothing_else(tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    stored("bert", base)
    (base / "vocab.txt").write_text("[PAD]\n")
    first = create_variant(base, out, "reinit")
    assert (out / "vocab.txt").read_bytes() == (base / "vocab.txt").read_bytes()
    assert create_variant(base, out, {"method": "reinit", "seed": 5}, force=True).digest != first.digest
    (out / "notes.txt").write_text("mine")
    with pytest.raises(FolderExistsError, match=r"holds notes.txt, which is not ours"):
        create_variant(base, out, "reinit", force=True)
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("part", ["embeddings", "head"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5", "bart"])
def test_parts_that_are_one_tensor_are_named_together(kind, part, tmp_path):
    base = tmp_path / "base"
    model = stored(kind, base)
    asked = Perturbation("resample", 3, rules="transformers", also=(part,))
    with pytest.raises(PerturbationError, match="of the embeddings and of the head, which are one tensor"):
        create_variant(base, tmp_path / "out", asked)
    check(base, tmp_path / "out", model, replace(asked, also=("embeddings", "head")))


def test_a_tied_tensor_may_stay_where_the_rest_of_the_head_does_not(tmp_path):
    model = stored("bert", tmp_path / "base")
    asked = Perturbation("gaussian", 3, rules="transformers", also=("head",), exclude=("*.word_embeddings.weight",))
    check(tmp_path / "base", tmp_path / "out", model, asked)
    before, after = (load_file(tmp_path / each / "model.safetensors") for each in ("base", "out"))
    assert not torch.equal(before["cls.predictions.bias"], after["cls.predictions.bias"])


def test_parts_that_are_two_tensors_are_named_apart(tmp_path):
    model = stored("llama", tmp_path / "base")
    for part in ("embeddings", "head"):
        asked = Perturbation("reinit", 3, rules="transformers", also=(part,))
        check(tmp_path / "base", tmp_path / part, model, asked)


def test_a_control_by_the_rules_of_transformers_keeps_its_format(tmp_path):
    """Names decide draws, and those of a stock ESM are others than ours."""
    stored("esm2", tmp_path / "base")
    asked = {"method": "reinit", "rules": "transformers"}
    create_variant(tmp_path / "base", tmp_path / "stock", asked)
    with pytest.raises(CheckpointError, match="of Transformers' own ESM: AutoModel, or hf_perturb"):
        FairEsmForMaskedLM.from_pretrained(tmp_path / "stock")
    with pytest.raises(CheckpointError, match="which Transformers loads as it is"):
        export_checkpoint(tmp_path / "stock", tmp_path / "out", "transformers")
    small_model("esm2").save_pretrained(tmp_path / "ours")
    create_variant(tmp_path / "ours", tmp_path / "control", asked)
    with pytest.raises(CheckpointError, match="make that control of a base in Transformers' format"):
        export_checkpoint(tmp_path / "control", tmp_path / "out", "transformers")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("files", "change", "message"),
    [
        ({"model.Q4.gguf": b""}, None, r"no config.json in it, but model.Q4.gguf, whose weights are quantised"),
        ({"adapter_config.json": b"{}"}, None, r"but an adapter \(adapter_config.json\): .* perturb the base"),
        ({"m.gguf": b""}, {}, r"has no weights; looked for model.safetensors, .*, but m.gguf, whose weights are"),
        ({}, {"model_type": "blurb"}, r"model_type is 'blurb': transformers \d.* has none of it"),
        ({}, {"model_type": "blurb", "auto_map": {"AutoConfig": "x.Y"}}, r"say --trust-remote-code"),
        ({}, {"quantization_config": {"quant_method": "gptq"}}, r"quantised \(gptq\), .*use what they were made from"),
        ({}, {"quantization_config": "gptq"}, r"quantised \(unknown\)"),
        ({}, {"architectures": ["T5Model"]}, r"config.json cannot be used \(AttributeError: .*'d_model'"),
        ({}, {"hidden_act": "blurb"}, r"config.json cannot be used \(KeyError: 'blurb'\)"),
        ({}, {"initializer_range": "0.02"}, r"config.json cannot be used \(Strict.*'initializer_range'"),
        ({}, {"architectures": ["BertForNothing"], "model_type": "albert"}, r"missing tensors: albert|missing tensors"),
    ],
)
def test_what_is_no_base_is_refused(files, change, message, tmp_path, bert_folder):
    folder = tmp_path / "base"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    if change is not None:
        config = json.loads((bert_folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        if not files:
            (folder / "model.safetensors").write_bytes((bert_folder / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=message):
        create_variant(folder, tmp_path / "out", "reinit")


def test_a_recipe_that_gives_other_weights_says_by_which_versions(bert_folder, tmp_path):
    create_variant(bert_folder, tmp_path / "recipe", "reinit", recipe=True)
    said = json.loads((tmp_path / "recipe" / "config.json").read_text())
    said["perturbation"] |= {"transformers_version": "5.0.0", "digest": f"blake3:{0:064}"}
    (tmp_path / "recipe" / "config.json").write_text(json.dumps(said))
    with pytest.raises(DigestError, match=r"torch draws .*, or Transformers initialises .* here, 5\.0\.0 then\)"):
        create_variant(tmp_path / "recipe", tmp_path / "out")


def test_what_is_no_matter_of_tensors_is_no_obstacle(bert_folder, tmp_path):
    """A library that is not here, no quantiser, and code that is not needed."""
    said = {"_attn_implementation": "flash_attention_2", "quantization_config": None, "auto_map": "modeling_x.X"}
    shutil.copytree(bert_folder, tmp_path / "base")
    restored(tmp_path / "base", lambda tensors: tensors, **said)
    records = [
        create_variant(base, tmp_path / f"{base.name}-out", "reinit") for base in (tmp_path / "base", bert_folder)
    ]
    assert records[0].digest == records[1].digest


def test_what_tells_of_training_is_not_taken_over(bert_folder, tmp_path):
    """A control has the tokenizer of its base, not what that scored."""
    base, out = shutil.copytree(bert_folder, tmp_path / "base"), tmp_path / "out"
    kept = ["vocab.txt", "merges.txt", "spiece.model", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    kept += ["special_tokens_map.json", "preprocessor_config.json", "entity_vocab.json"]
    left = ["eval_results.txt", "eval_results_mnli.txt", "all_results.json", "metrics.json", "train_metrics.json"]
    left += [
        "trainer_log.jsonl",
        "trainer_state.json",
        "test_predictions.txt",
        "log_history.json",
        "wandb-summary.json",
    ]
    left += ["model.safetensors.index.json", "adapter_config.json", "requirements.txt", "LICENSE.txt"]
    for name in (*kept, *left):
        (base / name).write_text("{}")
    create_variant(base, out, "reinit")
    written = {"config.json", "model.safetensors", "README.md"}
    assert {path.name for path in out.iterdir()} - written == {*kept}


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    stored("bert", folder)
    return folder


def test_no_package_of_ours_has_such_a_network(bert_folder, tmp_path):
    create_variant(bert_folder, tmp_path / "out", "resample")
    with pytest.raises(CheckpointError, match=r"create takes it as it is"):
        convert_checkpoint(bert_folder, tmp_path / "base")
    for to in ("fair-esm", "transformers"):
        with pytest.raises(CheckpointError, match="which Transformers loads as it is"):
            export_checkpoint(tmp_path / "out", tmp_path / "other", to)
    assert convert_checkpoint(tmp_path / "out", tmp_path / "half", dtype="bfloat16").architecture == "BertForMaskedLM"
    convert_checkpoint(tmp_path / "out", tmp_path / "half", dtype="bfloat16", force=True)
    assert verify_variant(tmp_path / "half", bert_folder).ok


def test_a_matrix_that_was_interrupted_is_completed(tmp_path):
    """What a base has no tokenizer of is not asked of its variants."""
    stored("mixtral", tmp_path / "base")
    asked = {tmp_path / f"seed{seed}": {"method": "gaussian", "seed": seed} for seed in (1, 2)}
    first = create_variants(tmp_path / "base", asked)
    shutil.rmtree(tmp_path / "seed2")
    kept = (tmp_path / "seed1" / "model.safetensors").stat().st_mtime_ns
    assert {out: each.digest for out, each in create_variants(tmp_path / "base", asked).items()} == {
        out: each.digest for out, each in first.items()
    }
    assert (tmp_path / "seed1" / "model.safetensors").stat().st_mtime_ns == kept


def test_weights_that_the_loss_alone_uses_are_refused_on_disk_as_in_memory(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    speech = {"conv_dim": (8, 8), "conv_stride": (2, 2), "conv_kernel": (3, 3), "num_feat_extract_layers": 2}
    tdnn = {"tdnn_dim": (8, 8), "tdnn_kernel": (3, 1), "tdnn_dilation": (1, 1), "xvector_output_dim": 8}
    convolution = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    config = Wav2Vec2Config(**sizes, **speech, **tdnn, **convolution)
    Wav2Vec2ForXVector(config).save_pretrained(tmp_path / "base")
    with pytest.raises(UnsupportedModuleError, match=r"its loss alone uses, objective \(AMSoftmaxLoss\)"):
        create_variant(tmp_path / "base", tmp_path / "out", "resample")
    assert not (tmp_path / "out").exists()
