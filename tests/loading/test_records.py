"""What a model says of itself is so: when it is made, after training, when it is saved, and when it is loaded."""

from __future__ import annotations

import copy
import json
import pickle
import shutil

import peft
import pytest
import torch
from accelerate import init_empty_weights, load_checkpoint_and_dispatch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.models import CONFIGS, model_class, small_model
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments

import hf_perturb
from hf_perturb import DigestError, PerturbationError, StackedPerturbationError
from hf_perturb.checkpoints.tensors import Tensor
from hf_perturb.cli.main import main
from hf_perturb.loading import record_now
from hf_perturb.perturbation import digest_of

NETWORKS = list(CONFIGS)
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
SAID = "resample (seed 42, rules documented), changed since"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a folder with a base and a control of every network: `esm1b-base`, `esm1b`."""
    parent = tmp_path_factory.mktemp("folders")
    for network in NETWORKS:
        small_model(network).save_pretrained(parent / f"{network}-base")
        hf_perturb.create_variant(parent / f"{network}-base", parent / network, "resample")
    return parent


@pytest.fixture
def control(folders, tmp_path):
    """Return a copy of the control of a CARP."""
    return shutil.copytree(folders / "carp", tmp_path / "control")


def load(folder, network="carp", head="ForMaskedLM", **given):
    return model_class(network, head).from_pretrained(folder, **given)


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def edit(folder, **changes):
    kept = {key: value for key, value in {**config_of(folder), **changes}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))


def edit_record(folder, **changes):
    record = {key: value for key, value in {**config_of(folder)["perturbation"], **changes}.items() if value is not ...}
    edit(folder, perturbation=record)


def header_of(file):
    with safe_open(file, "pt") as opened:
        return opened.metadata()


@torch.no_grad()
def train(model, part=""):
    """Change a tensor of a model as an optimiser does: its first one, or the first of a part."""
    next(parameter for name, parameter in model.named_parameters() if name.startswith(part)).add_(0.25)


# ---- born with a digest


@pytest.mark.parametrize("network", NETWORKS)
def test_a_control_is_born_with_the_digest_of_what_was_made(network, folders):
    made = small_model(network).perturb("reinit")
    loaded = load(folders / f"{network}-base", network, perturbation="resample")
    built = model_class(network)(CONFIGS[network](perturbation={"method": "reinit", "seed": 3}))
    for model in (made, loaded, built):
        assert model.config.perturbation.digest == digest_of(model.state_dict())
    stored = config_of(folders / network)["perturbation"]["digest"]
    assert loaded.config.perturbation.digest == load(folders / network, network).config.perturbation.digest == stored


@pytest.mark.parametrize("size", ["5GB", "60KB"], ids=["whole", "shards"])
def test_every_file_that_is_saved_says_what_its_weights_are(folders, size, tmp_path):
    load(folders / "carp").save_pretrained(tmp_path / "out", max_shard_size=size)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert (len(files) > 1) == (size != "5GB")
    for file in files:
        said = header_of(file)
        assert json.loads(said["perturbation"]) == config_of(tmp_path / "out")["perturbation"]
        assert json.loads(said["digests"]).keys() == load_file(file).keys()
        assert said["digest"] == config_of(tmp_path / "out")["perturbation"]["digest"]
    small_model("carp").save_pretrained(tmp_path / "base")
    assert header_of(tmp_path / "base" / "model.safetensors")["perturbation"] == "null"


def test_a_digest_of_an_edition_before_is_told_so(control):
    edit_record(control, digest="sha256:" + 64 * "0")
    with pytest.raises(hf_perturb.CheckpointError, match="of an edition before: make the folder again"):
        load(control)


def test_what_headers_state_is_looked_at_a_few_times_a_tensor(folders, monkeypatch):
    """Not once a tensor for each of the others, as loading a large network would have to wait for."""
    looks = []
    line = Tensor.stated_line.fget
    monkeypatch.setattr(Tensor, "stated_line", property(lambda tensor: looks.append(tensor) or line(tensor)))
    tensors = load(folders / "carp").state_dict()
    assert len(tensors) <= len(looks) <= 6 * len(tensors)


# ---- after training


def by_hand(model, folder):
    train(model)
    model.save_pretrained(folder)


def by_data(model, folder):
    next(model.parameters()).data[0] += 1
    model.save_pretrained(folder)


def by_a_state_dict(model, folder):
    model.save_pretrained(folder, state_dict={name: tensor + 1 for name, tensor in model.state_dict().items()})


def by_loading_others(model, folder):
    model.load_state_dict(small_model("carp").state_dict())
    model.save_pretrained(folder)


def by_merging(model, folder):
    adapter = peft.get_peft_model(model, peft.LoraConfig(target_modules=r".*sequence1\.\d\.conv", r=2))
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    assert record_now(model).changed is False, "an adapter changes no weight"
    adapter.merge_and_unload().save_pretrained(folder)


def by_the_trainer(model, folder):
    rows = [{"input_ids": IDS[0], "attention_mask": torch.ones_like(IDS[0]), "labels": IDS[0]}] * 8
    given = {"per_device_train_batch_size": 4, "max_steps": 2, "report_to": [], "save_strategy": "no", "use_cpu": True}
    trainer = Trainer(
        model, TrainingArguments(str(folder.parent / "runs"), learning_rate=0.1, **given), train_dataset=rows
    )
    trainer.train()
    trainer.save_model(str(folder))


def after_a_cast(model, folder):
    model.half()
    train(model)
    model.save_pretrained(folder)


def in_a_copy(model, folder):
    by_hand(copy.deepcopy(model), folder)


def in_a_pickled_copy(model, folder):
    by_hand(pickle.loads(pickle.dumps(model)), folder)


WAYS = [by_hand, by_data, by_a_state_dict, by_loading_others, by_merging, by_the_trainer, after_a_cast, in_a_copy]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("way", [*WAYS, in_a_pickled_copy], ids=lambda way: way.__name__)
def test_a_control_that_was_changed_says_so_for_good(way, folders, tmp_path, capsys):
    trained, digest = tmp_path / "trained", config_of(folders / "carp")["perturbation"]["digest"]
    way(load(folders / "carp"), trained)
    assert str(load(trained).config.perturbation) == SAID
    assert str(AutoModelForMaskedLM.from_pretrained(trained).config.perturbation) == SAID
    assert str(load(trained, config=AutoConfig.from_pretrained(trained)).config.perturbation) == SAID
    load(trained).save_pretrained(tmp_path / "again")
    hf_perturb.convert_checkpoint(trained, tmp_path / "converted")
    hf_perturb.convert_checkpoint(tmp_path / "converted", tmp_path / "half", dtype="float16")
    for folder in (trained, tmp_path / "again", tmp_path / "converted", tmp_path / "half"):
        record = config_of(folder)["perturbation"]
        assert record["changed"] is True
        assert record.get("digest") == (None if way is after_a_cast else digest)
        assert json.loads(header_of(folder / "model.safetensors")["perturbation"]) == record
        assert main(["verify", str(folder)]) == 1
        assert "trained further from a control" in capsys.readouterr().out
        with pytest.raises(StackedPerturbationError, match="changed since"):
            hf_perturb.create_variant(folder, tmp_path / "out", "reinit")
        for asked in ("resample", "reinit"):
            with pytest.raises(StackedPerturbationError, match="changed since"):
                load(folder, perturbation=asked)
        with pytest.raises(DigestError, match="trained or edited"):
            load(folder, verify=True)
    card = (tmp_path / "converted" / "README.md").read_text()
    assert "# Trained further from a control: " in card
    assert "A control, not a predictor" not in card


def test_what_was_changed_is_called_so_wherever_it_is_named(folders, tmp_path, capsys):
    by_hand(load(folders / "carp"), tmp_path / "trained")
    assert main(["list", str(tmp_path / "trained")]) == 0
    assert SAID in capsys.readouterr().err
    compared = hf_perturb.compare_checkpoints(folders / "carp", tmp_path / "trained")
    assert str(compared.b).endswith(", changed since")
    (tmp_path / "x.fasta").write_text(">a\nMKV\n")
    hf_perturb.embed(tmp_path / "trained", tmp_path / "x.fasta", tmp_path / "disk")
    live = load(folders / "carp")
    train(live)
    hf_perturb.embed(live, tmp_path / "x.fasta", tmp_path / "live")
    for folder in ("disk", "live"):
        assert '"changed": true' in (tmp_path / folder / "_manifest.json").read_text()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification"])
def test_a_head_that_was_trained_leaves_the_control_a_control(network, head, folders, tmp_path):
    model = load(folders / network, network, head, num_labels=3)
    train(model, "classifier.")
    model.save_pretrained(tmp_path / "out")
    assert "changed" not in config_of(tmp_path / "out")["perturbation"]
    for base in (None, folders / f"{network}-base"):
        assert hf_perturb.verify_variant(tmp_path / "out", base).ok
    again = load(tmp_path / "out", network, head, verify=True)
    assert again.config.perturbation.digest == digest_of(again.state_dict())
    train(again)
    assert str(record_now(again)) == str(again.config.perturbation)
    assert again.config.perturbation.changed


def test_a_trunk_that_was_cut_out_is_that_of_the_control(folders, tmp_path):
    load(folders / "esm1b", "esm1b", "Model").save_pretrained(tmp_path / "trunk")
    assert hf_perturb.verify_variant(tmp_path / "trunk", folders / "esm1b-base").ok


@pytest.mark.parametrize("cast", ["loaded", "half", "to", "edited"])
def test_a_cast_claims_no_digest_and_is_not_called_changed(cast, folders, control, tmp_path):
    if cast == "edited":
        edit(control, dtype="float16")
        model = load(control, verify=True)
    else:
        model = load(control, **({"dtype": torch.float16} if cast == "loaded" else {}))
    {"half": model.half, "to": lambda: model.to(torch.float16)}.get(cast, lambda: None)()
    assert model.dtype == torch.float16
    assert (model.config.perturbation.digest, model.config.perturbation.changed) == (None, False)
    model.save_pretrained(tmp_path / "out")
    record = config_of(tmp_path / "out")["perturbation"]
    assert not {"digest", "changed"} & record.keys()
    assert load(tmp_path / "out").config.perturbation == model.config.perturbation
    train(model)
    model.save_pretrained(tmp_path / "out")
    assert config_of(tmp_path / "out")["perturbation"]["changed"] is True


def cut_off(model):
    model.model.embedder.layers = model.model.embedder.layers[:2]
    model.config.num_hidden_layers = 2


def without_contacts(model):
    model.contact_head = None
    model.config.contact_head = False


@pytest.mark.parametrize(("network", "edit"), [("carp", cut_off), ("esm1b", without_contacts)])
def test_a_control_that_lost_tensors_is_called_changed(network, edit, folders, tmp_path):
    model = load(folders / network, network)
    edit(model)
    assert str(record_now(model)) == str(model.config.perturbation)
    model.save_pretrained(tmp_path / "out")
    assert config_of(tmp_path / "out")["perturbation"]["changed"] is True


def test_other_tensors_are_saved_with_their_own_record_and_leave_the_model_its(folders, tmp_path):
    model = load(folders / "carp")
    by_a_state_dict(model, tmp_path / "other")
    assert config_of(tmp_path / "other")["perturbation"]["changed"] is True
    assert (model.config.perturbation.changed, record_now(model).changed) == (False, False)
    model.save_pretrained(tmp_path / "own")
    assert hf_perturb.verify_variant(tmp_path / "own").ok


def test_a_base_keeps_its_digest_when_other_tensors_are_saved(folders, tmp_path):
    hf_perturb.convert_checkpoint(folders / "carp-base", tmp_path / "base")
    model = load(tmp_path / "base")
    digest = model.config.digest
    assert digest == digest_of(model.state_dict())
    by_a_state_dict(model, tmp_path / "other")
    assert model.config.digest == digest
    assert "digest" not in config_of(tmp_path / "other")
    model.save_pretrained(tmp_path / "own")
    assert config_of(tmp_path / "own")["digest"] == digest
    by_hand(model, tmp_path / "trained")
    assert "digest" not in config_of(tmp_path / "trained")


def test_what_was_cast_gets_no_digest_by_being_converted(folders, tmp_path, capsys):
    load(folders / "carp").half().float().save_pretrained(tmp_path / "rounded")
    hf_perturb.convert_checkpoint(tmp_path / "rounded", tmp_path / "converted")
    for folder in ("rounded", "converted"):
        assert "digest" not in config_of(tmp_path / folder)["perturbation"]
        assert main(["verify", str(tmp_path / folder)]) == 0
        assert "as recorded" not in capsys.readouterr().out
        assert main(["verify", str(tmp_path / folder), "--base", str(folders / "carp-base")]) == 1


@pytest.mark.parametrize("part", ["whole", "a layer"])
def test_a_control_that_is_on_a_disk_is_saved_as_it_is(part, folders, tmp_path):
    places = (
        {"": "disk"}
        if part == "whole"
        else {"model.embedder": "disk", "model.decoder": "cpu", "model.last_norm": "cpu"}
    )
    model = load(folders / "carp", device_map=places, offload_folder=tmp_path / "offloaded")
    with pytest.warns(UserWarning, match="offloaded"):
        model.save_pretrained(tmp_path / "out")
    assert hf_perturb.verify_variant(tmp_path / "out", folders / "carp-base").ok


# ---- every tensor from the checkpoint


@pytest.mark.parametrize("given", [{}, {"perturbation": "reinit"}, {"verify": True}], ids=str)
@pytest.mark.parametrize(
    "sizes",
    [{"kernel_size": 7}, {"hidden_size": 48}, {"vocab_size": 40}, {"num_hidden_layers": 3}, {"slim": False}],
    ids=str,
)
def test_no_tensor_of_a_control_is_drawn_by_loading(given, sizes, folders, control):
    folder = folders / "carp-base" if "perturbation" in given else control
    for others in ({}, {"ignore_mismatched_sizes": True}):
        with pytest.raises((hf_perturb.CheckpointError, ValueError), match=r"another shape|lacks|no place"):
            load(folder, **given, **sizes, **others)
    swap = {"layers.0": "layers.1"}
    with pytest.raises(hf_perturb.ModelInputError, match="key_mapping"):
        load(folder, **given, key_mapping=swap)


def test_another_classifier_is_no_other_control(folders, tmp_path):
    head = "ForSequenceClassification"
    load(folders / "carp", head=head, num_labels=3).save_pretrained(tmp_path / "out")
    for error in (hf_perturb.ShapeError, RuntimeError):  # Transformers' own
        with pytest.raises(error, match="another shape"):
            load(tmp_path / "out", head=head, num_labels=5)
    model = load(tmp_path / "out", head=head, num_labels=5, ignore_mismatched_sizes=True)
    assert (model.config.num_labels, record_now(model).changed) == (5, False)


def of_another_seed(control):
    hf_perturb.create_variant("demo", control.parent / "other", {"method": "resample", "seed": 7})
    shutil.copy(control.parent / "other" / "config.json", control)


def without_a_record(control):
    edit(control, perturbation=...)


def with_another_record(control):
    edit_record(control, seed=7)


def with_a_mark(control):
    edit_record(control, changed=True)


def with_the_weights_of_the_base(control):
    base = small_model("carp")
    base.save_pretrained(control.parent / "base")
    shutil.copy(control.parent / "base" / "model.safetensors", control)


def with_pickled_weights(control):
    torch.save(load_file(control / "model.safetensors"), control / "pytorch_model.bin")
    (control / "model.safetensors").unlink()


def with_two_keys(control):
    edit(control, digest="blake3:" + 64 * "0")


def with_weights_that_say_nothing_of_themselves(control):
    weights = {name: tensor + 1 for name, tensor in load_file(control / "model.safetensors").items()}
    save_file(weights, control / "model.safetensors")


def without_a_digest_anywhere(control):
    save_file(load_file(control / "model.safetensors"), control / "model.safetensors")
    edit_record(control, digest=...)


def with_a_mark_and_the_weights_of_the_base(control):
    by_hand(load(control), control)
    with_the_weights_of_the_base(control)


def with_a_mark_and_no_weights(control):
    by_hand(load(control), control)
    (control / "model.safetensors").unlink()


def with_shards_of_two_saves(control):
    """As a save that was cut short leaves a model that was trained twice: both are called changed."""
    model = load(control)
    for folder in ("one", "two"):
        for parameter in model.parameters():
            parameter.data.add_(1)
        model.save_pretrained(control.parent / folder, max_shard_size="30KB")
    shutil.rmtree(control)
    shutil.copytree(control.parent / "one", control)
    shutil.copy(max((control.parent / "two").glob("model-*")), control)


MIXED = [of_another_seed, without_a_record, with_another_record, with_a_mark, with_the_weights_of_the_base]
MIXED += [with_a_mark_and_the_weights_of_the_base, with_a_mark_and_no_weights, with_shards_of_two_saves]
SPOILT = [with_pickled_weights, with_two_keys, with_weights_that_say_nothing_of_themselves, without_a_digest_anywhere]


@pytest.mark.parametrize("spoil", [*MIXED, *SPOILT], ids=lambda spoil: spoil.__name__)
def test_a_configuration_beside_other_weights_is_refused_everywhere(spoil, control, tmp_path, capsys):
    spoil(control)
    uses = [
        lambda: load(control),
        lambda: AutoModelForMaskedLM.from_pretrained(control),
        lambda: load(control, perturbation="reinit"),
        lambda: hf_perturb.create_variant(control, tmp_path / "out", "reinit"),
        lambda: hf_perturb.convert_checkpoint(control, tmp_path / "out"),
        lambda: hf_perturb.compare_checkpoints("demo", control),
    ]
    for use in uses:
        with pytest.raises((OSError, ValueError)):
            use()
    assert not (tmp_path / "out").exists()
    assert main(["verify", str(control)]) == 1


def test_weights_that_say_nothing_are_compared_with_the_digest(control):
    save_file(load_file(control / "model.safetensors"), control / "model.safetensors")
    assert load(control).config.perturbation.digest == config_of(control)["perturbation"]["digest"]


def test_stale_weights_of_another_layout_are_refused_or_gone(folders, tmp_path):
    out = tmp_path / "out"
    stale = load(folders / "carp-base", perturbation={"method": "reinit", "seed": 5})
    stale.save_pretrained(out)
    torch.save(load_file(folders / "carp-base" / "model.safetensors"), out / "pytorch_model.bin")
    with pytest.raises(DigestError, match="pickle"):
        load(out, use_safetensors=False)
    load(folders / "carp").save_pretrained(out, max_shard_size="60KB")
    assert not (out / "pytorch_model.bin").exists()
    assert not (out / "model.safetensors").exists()
    assert load(out, verify=True).config.perturbation.seed == 42
    stale.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", out)  # which would be found before the shards
    with pytest.raises(DigestError, match="says of itself"):
        load(out)
    load(folders / "carp-base").save_pretrained(out)
    assert not list(out.glob("model-*")) + list(out.glob("*.index.json"))
    assert load(out).config.perturbation is None


@pytest.mark.parametrize("stop", range(4))
@pytest.mark.parametrize("over", ["base", "other", "shards"])
def test_a_save_that_was_cut_short_is_never_taken_for_another_model(stop, over, folders, tmp_path, monkeypatch):
    out = tmp_path / "out"
    before = {"base": {}, "other": {"perturbation": "reinit"}, "shards": {"perturbation": "reinit"}}[over]
    size = "60KB" if over == "shards" else "5GB"
    load(folders / "carp-base", **before).save_pretrained(out, max_shard_size=size)
    writes = iter(range(100))

    def full(write):
        def cut(*args, **kwargs):
            if next(writes) >= stop:
                raise OSError(28, "No space left on device")
            return write(*args, **kwargs)

        return cut

    monkeypatch.setattr("safetensors.torch.serialize_file", full(__import__("safetensors").serialize_file))
    model = load(folders / "carp")
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(out, max_shard_size="20KB")
    monkeypatch.undo()
    try:
        found = load(out)
    except (OSError, ValueError):
        return
    assert found.config.perturbation is None or found.config.perturbation.digest == digest_of(found.state_dict())


# ---- in memory


def built_empty(network, how, **fields):
    with torch.device("meta") if how == "meta" else init_empty_weights():
        return model_class(network)(CONFIGS[network](**fields))


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules:UserWarning")
@pytest.mark.parametrize("how", ["meta", "accelerate"])
@pytest.mark.parametrize("fill", ["state_dict", "dispatch"])
def test_a_model_that_was_built_empty_does_not_know_its_weights(how, fill, folders, tmp_path):
    record = config_of(folders / "carp")["perturbation"]
    model = built_empty("carp", how, perturbation=record)
    if fill == "dispatch":
        load_checkpoint_and_dispatch(model, str(folders / "carp" / "model.safetensors"), device_map={"": "cpu"})
    else:
        model.load_state_dict(load_file(folders / "carp" / "model.safetensors"), assign=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    uses = (
        lambda: model.perturb(record),
        lambda: model.save_pretrained(tmp_path / "out"),
        lambda: model.perturb("reinit"),
    )
    for use in uses:
        with pytest.raises(PerturbationError, match=r"record_as.*fresh=True"):
            use()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(DigestError, match="the record says"):
        model.record_as({**record, "digest": "blake3:" + 64 * "0"})
    assert model.record_as(record).config.perturbation.digest == record["digest"]
    model.save_pretrained(tmp_path / "out")
    assert hf_perturb.verify_variant(tmp_path / "out", folders / "carp-base").ok
    with pytest.raises(PerturbationError, match="knows its weights"):
        model.record_as(None)


def test_a_base_in_a_model_that_was_built_empty_is_no_control(folders, tmp_path):
    model = built_empty("carp", "meta", perturbation="reinit")
    model.load_state_dict(load_file(folders / "carp-base" / "model.safetensors"), assign=True)
    with pytest.raises(PerturbationError, match="record_as"):
        model.save_pretrained(tmp_path / "out")
    told = copy.deepcopy(model).record_as(None)
    told.save_pretrained(tmp_path / "base")
    assert "perturbation" not in config_of(tmp_path / "base")
    model.perturb("resample", fresh=True)
    assert model.config.perturbation.digest == config_of(folders / "carp")["perturbation"]["digest"]


@pytest.mark.parametrize("how", ["loaded", "moved", "emptied"])
def test_a_base_that_lost_its_values_does_not_know_its_weights(how, folders, tmp_path):
    model = load(folders / "carp-base", **({"device_map": "meta"} if how == "loaded" else {}))
    if how == "moved":
        model.to("meta")
    elif how == "emptied":
        model.to_empty(device="cpu")
    model.load_state_dict(load_file(folders / "carp" / "model.safetensors"), assign=True)
    for use in (lambda: model.perturb("resample"), lambda: model.save_pretrained(tmp_path / "out")):
        with pytest.raises(PerturbationError, match="record_as"):
            use()


def test_what_is_told_of_weights_must_not_be_otherwise_than_known(folders):
    record = config_of(folders / "carp")["perturbation"]
    model = built_empty("carp", "meta", perturbation=record)
    assert model.config.perturbation is None
    model.load_state_dict(load_file(folders / "carp" / "model.safetensors"), assign=True)
    with pytest.raises(DigestError, match="those of resample"):
        model.record_as(None)
    with pytest.raises(PerturbationError, match="a configuration that says resample"):
        model.record_as("reinit")


class ProbeConfig(PreTrainedConfig):
    model_type = "probe_of_a_carp"

    def __init__(self, trunk=None, **kwargs):
        self.trunk = trunk or {}
        super().__init__(**kwargs)


class Probe(PreTrainedModel):
    config_class = ProbeConfig

    def __init__(self, config):
        super().__init__(config)
        self.trunk = hf_perturb.CarpModel(hf_perturb.CarpConfig.from_dict(config.trunk))
        self.probe = torch.nn.Linear(4, 1)
        self.post_init()


def test_a_model_that_another_one_owns_knows_its_weights_only_where_it_drew_them(tmp_path):
    asked = {"perturbation": {"method": "reinit", "seed": 3}}
    probe = Probe(ProbeConfig({**CONFIGS["carp"]().to_dict(), **asked}))
    alone = hf_perturb.CarpModel(CONFIGS["carp"](**asked))
    record = record_now(probe.trunk)
    assert (record.seed, record.changed, record.digest) == (3, False, digest_of(probe.trunk.state_dict()))
    reinit = "model.embedder.layers.0.conv.weight"
    assert torch.equal(probe.trunk.state_dict()[reinit], alone.state_dict()[reinit])
    probe.save_pretrained(tmp_path / "probe")
    loaded = Probe.from_pretrained(tmp_path / "probe")
    with pytest.raises(PerturbationError, match="fresh=True"):
        loaded.trunk.perturb(asked["perturbation"])
    assert loaded.trunk.record_as(record).config.perturbation.digest == record.digest


def test_a_record_is_not_assigned_to_a_live_model(folders, tmp_path):
    for model in (small_model("carp"), load(folders / "carp"), copy.deepcopy(load(folders / "carp"))):
        before = model.config.perturbation
        for value in ("reinit", {"method": "resample", "seed": 1}, *([] if before is None else [None])):
            with pytest.raises(PerturbationError, match=r"perturb\(model"):
                model.config.perturbation = value
        model.config.perturbation = before  # says nothing new
        assert model.config.perturbation == before
    base = small_model("carp")
    base.config = CONFIGS["carp"](perturbation="reinit")
    for use in (lambda: base.perturb("reinit"), lambda: base.save_pretrained(tmp_path / "out")):
        with pytest.raises(PerturbationError, match="another configuration"):
            use()
    config = copy.deepcopy(load(folders / "carp").config)
    config.perturbation = "reinit"  # of no model
    assert hf_perturb.CarpForMaskedLM(config).config.perturbation.method == "reinit"


def test_a_digest_is_not_saved_beside_a_perturbation(tmp_path):
    config = CONFIGS["carp"](perturbation="reinit", digest="blake3:" + 64 * "0")
    with pytest.raises(PerturbationError, match="allowed: one of them"):
        config.save_pretrained(tmp_path)


def test_what_no_file_could_hold_is_refused_before_anything_is_written(folders, tmp_path):
    model = load(folders / "esm1b-base", "esm1b")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight + 1)
    for use in (lambda: model.save_pretrained(tmp_path / "out"), lambda: model.perturb("resample")):
        with pytest.raises(PerturbationError, match="tie_weights"):
            use()
    assert not (tmp_path / "out").exists()


def test_the_same_perturbation_is_not_granted_to_what_was_changed(folders):
    model = load(folders / "carp")
    assert model.perturb("resample") is model
    train(model)
    with pytest.raises(StackedPerturbationError, match="changed since"):
        model.perturb("resample")


@pytest.mark.parametrize("told", ["digest", "nothing"])
def test_a_state_dict_with_a_record_is_compared_or_refused(told, folders):
    state = load_file(folders / "carp" / "model.safetensors")
    config = hf_perturb.CarpConfig.from_pretrained(folders / "carp")
    if told == "nothing":
        config.perturbation = "resample"
        with pytest.raises(DigestError):
            hf_perturb.CarpForMaskedLM.from_pretrained(None, config=config, state_dict=state)
        return
    model = hf_perturb.CarpForMaskedLM.from_pretrained(None, config=config, state_dict=dict(state))
    assert record_now(model).digest == digest_of(model.state_dict())
    other = {name: tensor + 1 for name, tensor in state.items()}
    with pytest.raises(DigestError):
        hf_perturb.CarpForMaskedLM.from_pretrained(None, config=config, state_dict=other)
