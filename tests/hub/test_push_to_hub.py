"""What Transformers' own ways to publish send of a control: what is true, or nothing."""

from __future__ import annotations

import json

import peft
import pytest
from huggingface_hub import ModelCard
from support.hub_client import quiet_uploads
from support.models import model_class, small_model
from support.owners import HoldsCarp
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments
from transformers.integrations import peft as integration

from hf_perturb import CheckpointError
from hf_perturb.cli.main import main

pytestmark = [quiet_uploads, pytest.mark.usefixtures("naps")]
SAID = {"perturbation-method:reinit", "perturbation-seed:42"}


@pytest.mark.parametrize("network", ["carp", "esm1b"])
def test_a_control_is_not_sent_without_what_hf_perturb_push_sends(network, hub, tmp_path):
    model = small_model(network).perturb("reinit")
    folder = tmp_path / "saved"
    for publish in (
        lambda: model.push_to_hub("lab/own"),
        lambda: model.save_pretrained(folder, push_to_hub=True, repo_id="lab/own"),
        lambda: model.save_pretrained(folder, True, None, True, repo_id="lab/own"),
    ):
        with pytest.raises(
            CheckpointError, match=r"save_pretrained\(FOLDER\).*hf-perturb convert.*hf-perturb push OUT"
        ):
            publish()
    assert hub.requests == []
    assert not folder.exists()


def test_what_the_message_names_does_it(hub, push, tmp_path):
    small_model("carp").perturb("reinit").save_pretrained(tmp_path / "saved")
    assert main(["convert", str(tmp_path / "saved"), str(tmp_path / "out")]) == 0
    push.capsys.readouterr()
    push(tmp_path / "out", repo_id="lab/own")
    assert {"README.md", "tokenizer.json", "modeling_carp.py"} <= hub.files("lab/own").keys()


def test_a_model_of_somebody_s_own_class_is_sent_with_tags_that_are_true(hub, folders):
    HoldsCarp.from_pretrained(folders / "carp").push_to_hub("lab/own")
    files = hub.files("lab/own")
    assert {*ModelCard(files["README.md"].decode()).data.tags} >= SAID
    config = json.loads(files["config.json"])
    assert config["perturbation"]["method"] == "reinit"
    assert "auto_map" not in config  # its code is somebody's, and not there
    assert HoldsCarp.from_pretrained("lab/own", verify=True).config.perturbation.seed == 42


def test_an_adapter_is_sent_with_tags_that_are_true(hub, folders, monkeypatch):
    monkeypatch.setattr(integration, "MIN_PEFT_VERSION", "0.18.0")
    model = model_class("carp").from_pretrained(folders / "carp")
    model.add_adapter(peft.LoraConfig(target_modules=["up_embedder.conv"], r=2))
    model.push_to_hub("lab/adapter")
    files = hub.files("lab/adapter")
    assert "model.safetensors" not in files
    assert {*ModelCard(files["README.md"].decode()).data.tags} >= SAID


def test_trainer_sends_tags_and_a_configuration_that_are_true(hub, folders, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(folders / "carp", num_labels=2)
    named = model.config.auto_map
    options = {"max_steps": 1, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    arguments = TrainingArguments(str(tmp_path), hub_model_id="lab/trained", hub_token=hub.WRITE, **options)
    trainer = Trainer(model, arguments, train_dataset=[{"input_ids": [5, 6, 7], "labels": 1}] * 4)
    trainer.train()
    trainer.push_to_hub()
    files = hub.files("lab/trained")
    assert {*SAID, "perturbation-changed:true"} <= {*ModelCard(files["README.md"].decode()).data.tags}
    config = json.loads(files["config.json"])
    assert config["perturbation"]["changed"]
    assert "auto_map" not in config  # it would ask for code that is not there
    assert model.config.auto_map == named
    assert AutoModelForSequenceClassification.from_pretrained("lab/trained").config.perturbation.changed
