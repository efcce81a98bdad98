"""What somebody else's folder may say, and what becomes of it: refused in seconds, in the memory of a small network."""

from __future__ import annotations

import json
import resource
import shutil
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from support.models import model_class, small_model
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, pipeline

import hf_perturb
from hf_perturb import CheckpointError
from hf_perturb.variants.create import create_variant

NETWORKS = ("esm1", "esm1b", "carp")
SECONDS = 5
BYTES = 300 * 2**20

HOSTILE = {
    "a million layers": {"num_hidden_layers": 10**6},
    "a thousand layers": {"num_hidden_layers": 1000},
    "no layers": {"num_hidden_layers": 0},
    "one layer too many": {"num_hidden_layers": 4},
    "fewer layers": {"num_hidden_layers": 1},
    "a huge width": {"hidden_size": 131_072},
    "a width without end": {"hidden_size": 10**400},
    "a negative width": {"hidden_size": -32},
    "a fraction": {"hidden_size": 32.5},
    "words for a number": {"hidden_size": "all of them"},
    "a huge alphabet": {"vocab_size": 65_000},
    "a negative alphabet": {"vocab_size": -1},
    "a label for everyone": {"num_labels": 10**30},
    "fewer than no labels": {"num_labels": -1},
    "labels by the bit": {"num_labels": 10**400},
    "labels that are no dict": {"id2label": "LABEL"},
    "another method": {"perturbation": {"method": "rm -rf"}},
    "no method": {"perturbation": {"seed": 1}},
    "a list": {"perturbation": ["reinit"]},
    "a number": {"perturbation": 42},
    "a seed without end": {"perturbation": {"method": "reinit", "seed": 10**400}},
    "globs that are none": {"perturbation": {"method": "reinit", "include": 5}},
    "an unknown key": {"perturbation": {"method": "reinit", "run": "this"}},
    "a base that is a number": {"perturbation": {"method": "reinit", "base": 5}},
    "another family": {"model_type": "bert"},
}
ESM_ALONE = {
    "a million heads": {"num_attention_heads": 10**6},
    "a huge feed-forward": {"intermediate_size": 10**6},
    "a huge table": {"max_position_embeddings": 10**7},
    "a table without end": {"max_position_embeddings": 10**18},
    "another version": {"model_version": "ESM-9"},
}
CARP_ALONE = {
    "a huge kernel": {"kernel_size": 4095},
    "a kernel without end": {"kernel_size": 10**18 + 1},
    "a dilation without end": {"max_dilation": 10**300},
    "a huge embedding": {"embedding_size": 10**5},
}
CASES = [
    pytest.param(network, edit, id=f"{network}-{name}")
    for network in NETWORKS
    for name, edit in {**HOSTILE, **(CARP_ALONE if network == "carp" else ESM_ALONE)}.items()
    if not (network == "esm1" and "max_position_embeddings" in edit)
]


@pytest.fixture(scope="module")
def variants(tmp_path_factory):
    """Return a variant of every network, which nobody may change."""
    folder = tmp_path_factory.mktemp("variants")
    for network in NETWORKS:
        small_model(network).save_pretrained(folder / f"{network}-base")
        create_variant(folder / f"{network}-base", folder / network, "resample")
    return folder


@pytest.fixture
def copied(variants, tmp_path):
    """Return a function that copies a variant and edits its `config.json`."""

    def copy(network, **edit):
        shutil.copytree(variants / network, tmp_path / network)
        path = tmp_path / network / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **edit}))
        return str(tmp_path / network)

    return copy


def ways(network):
    """Return every way to load a folder."""
    return {
        "class": model_class(network).from_pretrained,
        "trunk": model_class(network, "Model").from_pretrained,
        "verified": lambda path: model_class(network).from_pretrained(path, verify=True),
        "auto": AutoModelForMaskedLM.from_pretrained,
        "pipeline": lambda path: pipeline("fill-mask", model=path),
        "verify": hf_perturb.verify_variant,
    }


@pytest.mark.parametrize(("network", "edit"), CASES)
def test_a_hostile_configuration_is_refused_at_once(network, edit, copied):
    path = copied(network, **edit)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for way, load in ways(network).items():
        if "model_type" in edit and way in ("auto", "pipeline"):
            continue  # Transformers loads what it says it is
        start = time.monotonic()
        with pytest.raises((OSError, ValueError, StrictDataclassError)):
            load(path)
        assert time.monotonic() - start < SECONDS, way
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES


def test_a_message_names_folder_field_and_what_is_allowed(copied):
    path = copied("carp", num_hidden_layers=10**6)
    with pytest.raises(CheckpointError, match=r"carp': its config.json .* CarpConfig.num_hidden_layers: got 1000000;"):
        hf_perturb.CarpModel.from_pretrained(path)


@pytest.mark.parametrize("network", NETWORKS)
def test_no_file_says_how_a_network_is_run(network, copied):
    path = copied(network, attn_implementation="somebody/kernels", _attn_implementation="somebody/kernels")
    for load in (model_class(network).from_pretrained, AutoModelForMaskedLM.from_pretrained):
        assert load(path).config._attn_implementation in ("sdpa", "eager")
    assert AutoConfig.from_pretrained(path)._attn_implementation is None


def edited_weights(path, edit):
    file = f"{path}/model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


FIRST = {"esm1": "layers.0.fc1.weight", "esm1b": "layers.0.fc1.weight", "carp": "model.embedder.layers.0.conv.weight"}
KEPT = {"esm1": "embed_out", "esm1b": "embed_tokens.weight", "carp": "model.decoder.conv.weight"}


@pytest.mark.parametrize("name", [FIRST, KEPT], ids=["perturbed", "kept"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_missing_tensor_is_an_error(network, name, copied):
    path = copied(network)
    edited_weights(path, lambda tensors: tensors.pop(name[network]))
    for load in (model_class(network).from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(CheckpointError, match=f"missing tensors: {name[network]}"):
            load(path)


@pytest.mark.parametrize("network", NETWORKS)
def test_an_unexpected_tensor_is_an_error(network, copied):
    path = copied(network)
    edited_weights(path, lambda tensors: tensors.update({"layers.77.fc1.weight": torch.ones(3)}))
    with pytest.raises(CheckpointError, match=r"tensors that this network does not have: layers\.77\.fc1\.weight"):
        model_class(network).from_pretrained(path)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_truncated_file_is_an_error_that_names_it(network, copied):
    path = copied(network)
    with open(f"{path}/model.safetensors", "r+b") as file:
        file.truncate(5000)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        model_class(network).from_pretrained(path)


@pytest.mark.parametrize("network", NETWORKS)
def test_part_of_a_variant_is_not_the_variant(network, copied):
    path = copied(network)
    # Transformers itself refuses the contact head, whose width is that of all layers
    with pytest.raises((CheckpointError, RuntimeError), match=r"has no|no place|of another shape: contact_head"):
        model_class(network).from_pretrained(path, num_hidden_layers=2)


@pytest.mark.parametrize("network", NETWORKS)
def test_other_heads_are_no_error(network, copied):
    path = copied(network)
    for head in ("Model", "ForSequenceClassification", "ForTokenClassification"):
        model = model_class(network, head).from_pretrained(path, num_labels=5)
        assert model.config.perturbation.method == "resample"
        model.save_pretrained(f"{path}-{head}")
        again = model_class(network, head).from_pretrained(f"{path}-{head}")
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("network", NETWORKS)
def test_a_class_of_another_family_is_refused(network, copied):
    other = hf_perturb.FairEsmForMaskedLM if network == "carp" else hf_perturb.CarpForMaskedLM
    with pytest.raises(CheckpointError, match="AutoModel finds the right class"):
        other.from_pretrained(copied(network))


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "..", "a/b.safetensors", 5, ""])
def test_an_index_stays_in_its_folder(shard, copied):
    path = copied("carp")
    tensors = load_file(f"{path}/model.safetensors")
    shutil.move(f"{path}/model.safetensors", f"{path}/../model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, shard)}
    with open(f"{path}/model.safetensors.index.json", "w") as file:
        json.dump(index, file)
    for load in ways("carp").values():
        with pytest.raises((OSError, ValueError), match=r"names .*; allowed: a file beside it|not beside it"):
            load(path)


# ---- verify=True


@pytest.mark.parametrize("network", NETWORKS)
def test_a_flipped_bit_is_found_on_request(network, copied):
    path = copied(network)
    cls = model_class(network)
    cls.from_pretrained(path, verify=True)
    with open(f"{path}/model.safetensors", "r+b") as file:
        file.seek(-3, 2)
        byte = file.read(1)
        file.seek(-3, 2)
        file.write(bytes([byte[0] ^ 1]))
    cls.from_pretrained(path)  # nobody notices
    for load in (cls.from_pretrained, AutoModel.from_pretrained, AutoModelForMaskedLM.from_pretrained):
        with pytest.raises(hf_perturb.DigestError, match=r"has weights with digest .* records? blake3|says blake3"):
            load(path, verify=True)
    with pytest.raises(ValueError, match="DigestError"):
        pipeline("fill-mask", model=path, model_kwargs={"verify": True})


def test_a_base_is_verified_before_it_is_perturbed(tmp_path):
    hf_perturb.convert_checkpoint("demo", tmp_path / "base")
    control = hf_perturb.CarpForMaskedLM.from_pretrained(tmp_path / "base", perturbation="reinit", verify=True)
    assert control.config.perturbation == hf_perturb.Perturbation("reinit")
    edited_weights(tmp_path / "base", lambda tensors: tensors["model.decoder.conv.bias"].mul_(2))
    with pytest.raises(hf_perturb.DigestError):
        hf_perturb.CarpForMaskedLM.from_pretrained(tmp_path / "base", perturbation="reinit", verify=True)


def test_without_a_digest_there_is_nothing_to_verify(tmp_path):
    small_model("carp").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="records no digest"):
        hf_perturb.CarpForMaskedLM.from_pretrained(tmp_path, verify=True)


def test_a_recipe_is_verified_anyway(tmp_path):
    create_variant("demo", tmp_path / "recipe", "reinit", recipe=True)
    model = hf_perturb.CarpForMaskedLM.from_pretrained(tmp_path / "recipe", verify=True)
    assert model.config.perturbation.digest is not None


def test_a_recipe_of_other_sizes_than_its_base_is_refused(tmp_path):
    create_variant("demo", tmp_path / "recipe", "reinit", recipe=True)
    path = tmp_path / "recipe" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 900}))
    with pytest.raises(CheckpointError, match=r"is not what its config\.json says: missing tensors"):
        hf_perturb.CarpForMaskedLM.from_pretrained(tmp_path / "recipe")


@pytest.mark.parametrize("network", ["esm1b", "esm2"])
def test_a_control_in_stock_format_is_verified_too(network, tmp_path):
    small_model(network).save_pretrained(tmp_path / "base")
    create_variant(tmp_path / "base", tmp_path / "control", "resample")
    # the head of the export is tied again only where the control's is
    hf_perturb.export_checkpoint(tmp_path / "control", tmp_path / "stock", "transformers")
    cls = hf_perturb.FairEsmForMaskedLM
    cls.from_pretrained(tmp_path / "stock", verify=True)
    edited_weights(tmp_path / "stock", lambda tensors: tensors["esm.encoder.layer.0.output.dense.bias"].add_(1))
    with pytest.raises(hf_perturb.DigestError):
        cls.from_pretrained(tmp_path / "stock", verify=True)


# ---- what lies beside the weights, and other ways to ask for them


def other_weights(path, name="other.safetensors"):
    tensors = {key: torch.zeros_like(tensor) for key, tensor in load_file(f"{path}/model.safetensors").items()}
    if name.endswith(".bin"):
        torch.save(tensors, f"{path}/{name}")
    else:
        save_file(tensors, f"{path}/{name}", metadata={"format": "pt"})


def are_zero(model):
    return all(bool((parameter == 0).all()) for parameter in model.parameters())


def test_the_configuration_does_not_say_where_the_weights_are(copied):
    path = copied("carp", transformers_weights="other.safetensors")
    other_weights(path)
    for load in (hf_perturb.CarpForMaskedLM.from_pretrained, AutoModelForMaskedLM.from_pretrained):
        for verify in (False, True):
            assert not are_zero(load(path, verify=verify))


def test_what_was_verified_is_what_is_loaded(copied):
    path = copied("carp")
    other_weights(path, "pytorch_model.bin")
    load = hf_perturb.CarpForMaskedLM.from_pretrained
    assert not are_zero(load(path, verify=True))
    assert not are_zero(load(path, verify=True, use_safetensors=True))
    for verify in (False, True):
        with pytest.raises(hf_perturb.DigestError, match="weights in a pickle"):
            load(path, use_safetensors=False, verify=verify)
    with pytest.raises(ValueError, match="gguf_file"):
        load(path, gguf_file="x.gguf", verify=True)
    plain, verified = load(path), load(path, verify=True)
    assert plain.config.to_dict() == verified.config.to_dict()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), verified.parameters(), strict=True))


def test_there_is_nothing_to_verify_without_a_checkpoint(tmp_path):
    model = small_model("carp")
    with pytest.raises(CheckpointError, match="records no digest"):
        type(model).from_pretrained(None, config=model.config, state_dict=model.state_dict(), verify=True)


@pytest.mark.parametrize(
    "options", [{"use_safetensors": True}, {"quantization_config": {"quant_method": "mxfp4"}}], ids=str
)
def test_no_keyword_or_key_switches_the_checks_off(options, copied):
    key = {name: value for name, value in options.items() if name == "quantization_config"}
    given = {name: value for name, value in options.items() if name not in key}
    path = copied("carp", **key)
    shutil.move(f"{path}/model.safetensors", f"{path}/../outside.safetensors")
    index = {"metadata": {}, "weight_map": {"model.last_norm.weight": "../outside.safetensors"}}
    with open(f"{path}/model.safetensors.index.json", "w") as file:
        json.dump(index, file)
    with pytest.raises(CheckpointError, match="allowed: a file beside it"):
        hf_perturb.CarpForMaskedLM.from_pretrained(path, **given)


def test_a_quantised_network_is_no_larger_than_its_file(copied):
    path = copied("carp", num_hidden_layers=900, hidden_size=2000, quantization_config={"quant_method": "mxfp4"})
    with pytest.raises(CheckpointError, match=r"a network of [\d,]+ weights, in [\d,]+ bits"):
        hf_perturb.CarpForMaskedLM.from_pretrained(path)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("edit", [{"seed": 7}, {"method": "reinit"}, {"base": {"name": "another"}}], ids=str)
def test_a_record_that_was_edited_is_found_on_request(edit, network, copied):
    path = copied(network)
    config = Path(path, "config.json")
    stored = json.loads(config.read_text())
    stored["perturbation"].update(edit)
    config.write_text(json.dumps(stored))
    with pytest.raises(hf_perturb.DigestError, match=r"model\.safetensors says of itself"):
        model_class(network).from_pretrained(path, verify=True)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_without_end(name, copied):
    path = copied("carp")
    if name != "config.json":
        shutil.move(f"{path}/model.safetensors", f"{path}/moved")
    with open(f"{path}/{name}", "w") as file:
        file.write('{"a": ' + 200_000 * "[" + 200_000 * "]" + "}")
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        hf_perturb.CarpForMaskedLM.from_pretrained(path)


def test_architectures_are_a_list(copied):
    with pytest.raises(CheckpointError, match=r"cannot be used|architectures is"):
        hf_perturb.CarpForMaskedLM.from_pretrained(copied("carp", architectures="CarpForMaskedLM"))


def test_a_class_that_somebody_derived_loads_what_ours_loads(copied, tmp_path):
    class MyConfig(hf_perturb.CarpConfig):
        model_type = "my_carp"

    class MyCarp(hf_perturb.CarpForMaskedLM):
        config_class = MyConfig

    model = MyCarp.from_pretrained(copied("carp"))
    assert model.config.perturbation.method == "resample"
    MyCarp(MyConfig(hidden_size=32, num_hidden_layers=3, slim=True)).save_pretrained(tmp_path / "mine")
    assert MyCarp.from_pretrained(tmp_path / "mine").config.model_type == "my_carp"


def test_stock_weights_may_lack_what_follows_from_the_sizes(tmp_path):
    small_model("esm2").save_pretrained(tmp_path / "base")
    hf_perturb.export_checkpoint(tmp_path / "base", tmp_path / "stock", "transformers")

    def without_frequencies(tensors):
        for name in [name for name in tensors if name.endswith("inv_freq")]:
            del tensors[name]

    edited_weights(tmp_path / "stock", without_frequencies)
    loaded = hf_perturb.FairEsmForMaskedLM.from_pretrained(tmp_path / "stock").state_dict()
    stored = load_file(tmp_path / "base" / "model.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in stored.items())


def test_what_was_verified_stays_what_it_was(copied):
    path = copied("carp")
    model = hf_perturb.CarpForMaskedLM.from_pretrained(path, verify=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with open(f"{path}/model.safetensors", "r+b") as file:
        file.seek(-5000, 2)
        file.write(5000 * b"x")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
