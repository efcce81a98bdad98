"""Variants on disk: what is in the folder, what is refused, and that nothing is ever half written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from support.models import small_model
from transformers import AutoModelForMaskedLM, AutoTokenizer

import hf_perturb
from hf_perturb import Perturbation
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.perturbation import digest_of
from hf_perturb.storage import folders
from hf_perturb.storage.folders import whole_folder
from hf_perturb.variants.create import create_variant, records_of


@pytest.fixture
def base(network, tmp_path):
    small_model(network).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_a_variant_folder_is_whole(base, network, tmp_path):
    record = create_variant(base, tmp_path / "out", {"method": "resample", "seed": 3})
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert Perturbation.parse(config["perturbation"]).to_dict() == record.to_dict()
    assert record.base.name == "base", "a name, not a place on somebody's disk"
    assert record.digest == digest_of(load_file(tmp_path / "out" / "model.safetensors"))
    assert record.base.digest == digest_of(load_file(base / "model.safetensors"))
    assert set(config["auto_map"]) == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForMaskedLM",
        "AutoModelForSequenceClassification",
        "AutoModelForTokenClassification",
    }
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.tags[:1] == ["hf-perturb"]
    assert record.digest in card.text
    alphabet_size = {"esm1": 35, "esm1b": 33, "esm2": 33, "carp": 30}[network]
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == alphabet_size
    assert sorted(os.listdir(tmp_path)) == ["base", "out"], "nothing is left behind"


def test_records_without_variants_are_those_of_variants(base, tmp_path):
    asked = [Perturbation("reinit"), Perturbation("resample", seed=3), Perturbation("gaussian", also=["embeddings"])]
    records = records_of(Checkpoint.open(base), asked)
    assert sorted(os.listdir(tmp_path)) == ["base"], "nothing is written"
    for number, (perturbation, record) in enumerate(zip(asked, records, strict=True)):
        assert record.to_dict() == create_variant(base, tmp_path / str(number), perturbation).to_dict()


def test_memory_and_disk_agree_to_the_bit(base, tmp_path):
    create_variant(base, tmp_path / "out", "reinit")
    stored = AutoModelForMaskedLM.from_pretrained(tmp_path / "out").state_dict()
    in_memory = AutoModelForMaskedLM.from_pretrained(base, perturbation="reinit").state_dict()
    assert list(stored) == list(in_memory)
    assert all(torch.equal(stored[name], in_memory[name]) for name in stored)


def test_an_existing_folder_is_kept_unless_forced(base, tmp_path):
    create_variant(base, tmp_path / "out", {"method": "reinit", "seed": 1})
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(hf_perturb.FolderExistsError, match=r"exists already.*--force"):
        create_variant(base, tmp_path / "out", {"method": "reinit", "seed": 2})
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    record = create_variant(base, tmp_path / "out", {"method": "reinit", "seed": 2}, force=True)
    assert digest_of(load_file(tmp_path / "out" / "model.safetensors")) == record.digest
    assert sorted(os.listdir(tmp_path)) == ["base", "out"]


def test_a_failure_leaves_nothing_and_keeps_the_old(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")

    def fail_half_way():
        with whole_folder(tmp_path / "out") as folder:
            (folder / "new").write_text("half")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way()
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["old"]


def test_a_full_disk_leaves_nothing(tmp_path):
    code = (
        "import resource, sys; from hf_perturb.cli import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "sys.exit(main(['create', 'demo', sys.argv[1], '--method', 'reinit']))"
    )
    arguments = [sys.executable, "-c", "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);" + code]
    done = subprocess.run([*arguments, str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_killed_process_leaves_no_folder_by_the_name(tmp_path):
    code = (
        "import os, signal, sys; from hf_perturb.variants import create as variants;"
        "variants.variant_card = lambda *a: os.kill(os.getpid(), signal.SIGKILL);"
        "variants.create_variant('demo', sys.argv[1], 'reinit')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda base: (base / "config.json").write_text('{"model_type": "none"}'),
            "model_type is 'none': transformers .* has none of it",
        ),
        (lambda base: (base / "config.json").write_text("{"), "config.json.*not valid JSON"),
        (
            lambda base: (base / "config.json").write_text('{"model_type": "carp", "kernel_size": 4}'),
            "kernel_size: got 4",
        ),
        (lambda base: (base / "config.json").write_text("[1]"), "got a JSON list; allowed: an object"),
        (lambda base: (base / "config.json").write_text('{"model_type": []}'), r"model_type: got \[\]; allowed"),
        (
            lambda base: (base / "config.json").write_text('{"model_type": "carp", "hidden_size": 64}'),
            r"another shape: model\.embedder\.up_embedder\.conv\.weight \(32, 8, 1\) instead of \(64, 8, 1\)",
        ),
        (lambda base: (base / "model.safetensors").write_bytes(b"no"), "model.safetensors"),
        (lambda base: shutil.rmtree(base), "no such file or folder"),
    ],
)
def test_bad_bases_are_refused(tmp_path, spoil, message):
    small_model("carp").save_pretrained(tmp_path / "base")
    spoil(tmp_path / "base")
    with pytest.raises(hf_perturb.CheckpointError, match=message):
        create_variant(tmp_path / "base", tmp_path / "out", "reinit")
    assert not (tmp_path / "out").exists()


def test_a_base_that_lacks_tensors_is_refused_by_name(tmp_path):
    model = small_model("carp")
    del model.model.last_norm.bias
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(hf_perturb.CheckpointError, match=r"missing tensors: model\.last_norm\.bias"):
        create_variant(tmp_path / "base", tmp_path / "out", "reinit")


def test_a_variant_is_no_base(base, tmp_path):
    create_variant(base, tmp_path / "out", "reinit")
    with pytest.raises(hf_perturb.StackedPerturbationError, match=r"is a variant already.*start from its base"):
        create_variant(tmp_path / "out", tmp_path / "again", "resample")


def test_force_replaces_variants_only(base, tmp_path):
    """`--force` must never cost anybody a base, or a folder that is not ours."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "notes.txt").write_text("irreplaceable")
    with pytest.raises(hf_perturb.FolderExistsError, match=r"holds notes\.txt, which is not ours to replace"):
        create_variant(base, tmp_path / "thesis", "reinit", force=True)
    create_variant(base, tmp_path / "trained", "reinit")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "trained")
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(tmp_path / "trained")
    (tmp_path / "link").symlink_to(tmp_path / "thesis")
    for out in ("trained", "link"):
        with pytest.raises(hf_perturb.FolderExistsError, match="so --force does not replace it"):
            create_variant(base, tmp_path / out, "reinit", force=True)
    before = sorted(os.listdir(base))
    for out in (base, tmp_path):
        with pytest.raises(hf_perturb.CheckpointError, match="is, or holds, the base"):
            create_variant(base, out, "reinit", recipe=True, force=True)
    assert sorted(os.listdir(base)) == before
    assert (tmp_path / "thesis" / "notes.txt").exists()


def test_an_interrupt_between_the_renames_keeps_the_old(tmp_path, monkeypatch):
    """On a file system that cannot swap two folders in one step."""
    monkeypatch.setattr(folders, "_exchange", lambda one, other: False)

    def fill(text):
        with whole_folder(tmp_path / "out") as folder:
            (folder / "config.json").write_text(text)

    fill("old")
    rename, calls = type(tmp_path).rename, []

    def interrupted(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fill("new")
    monkeypatch.undo()
    assert (tmp_path / "out" / "config.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_files_can_be_read_by_whoever_reads_the_folder(base, tmp_path):
    create_variant(base, tmp_path / "out", "reinit")
    assert len({file.stat().st_mode for file in (tmp_path / "out").iterdir()}) == 1
