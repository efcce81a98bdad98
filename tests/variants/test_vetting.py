"""What is asked of a checkpoint before it is written anew, and what must not be lost or run on the way."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import small_model

import hf_perturb
from hf_perturb import convert_checkpoint, create_variant, export_checkpoint
from hf_perturb.cli import main
from hf_perturb.perturbation import digest_of


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder, name, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name] = change(tensors[name].clone())
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.fixture
def base(tmp_path):
    small_model("esm1b", intermediate_size=128).save_pretrained(tmp_path / "plain")
    convert_checkpoint(tmp_path / "plain", tmp_path / "base")
    return tmp_path / "base"


FORMATS = {"transformers": "stock", "fair-esm": "out.pt"}
every_format = pytest.mark.parametrize("to", FORMATS)


@every_format
def test_weights_that_are_not_numbers_are_not_exported_unless_asked_for(base, tmp_path, to):
    edit_weights(tmp_path / "plain", "layers.0.fc1.bias", lambda tensor: tensor / 0)
    with pytest.raises(hf_perturb.CheckpointError, match=r"NaN or infinite weights in layers\.0\.fc1\.bias"):
        export_checkpoint(tmp_path / "plain", tmp_path / FORMATS[to], to)
    words = ["convert", "--to", to, str(tmp_path / "plain"), str(tmp_path / FORMATS[to]), "--allow-nonfinite"]
    assert main(words) == 0


@every_format
def test_a_base_that_is_not_what_it_records_is_not_exported(base, tmp_path, to):
    edit_weights(base, "layers.0.fc1.bias", lambda tensor: tensor + 1)
    with pytest.raises(hf_perturb.DigestError, match="they have changed, or are damaged"):
        export_checkpoint(base, tmp_path / FORMATS[to], to)
    assert not (tmp_path / FORMATS[to]).exists()


def test_an_export_of_an_export_in_another_type_is_read_again(base, tmp_path):
    convert_checkpoint(base, tmp_path / "half", dtype="float16")
    create_variant(tmp_path / "half", tmp_path / "control", {"method": "reinit", "exclude": ["lm_head.weight"]})
    export_checkpoint(tmp_path / "control", tmp_path / "control.pt", "fair-esm")
    export_checkpoint(tmp_path / "control.pt", tmp_path / "stock", "transformers")
    done = convert_checkpoint(tmp_path / "stock", tmp_path / "back")
    assert json.loads((tmp_path / "stock" / "config.json").read_text())["perturbation"]["digest"] == done.digest
    assert not done.notes


def test_a_stock_model_that_was_trained_loses_its_digest_with_a_note(base, tmp_path):
    create_variant(base, tmp_path / "control", "resample")
    export_checkpoint(tmp_path / "control", tmp_path / "stock", "transformers")
    edit_weights(tmp_path / "stock", "lm_head.bias", lambda tensor: tensor + 1)
    done = convert_checkpoint(tmp_path / "stock", tmp_path / "back")
    assert "trained since then?" in done.notes[0]


@pytest.mark.parametrize(("key", "value"), [("layer_norm_eps", 0.1), ("bos_token_id", 3)])
def test_what_an_original_has_built_in_is_not_exported_otherwise(tmp_path, key, value):
    small_model("esm1b", **{key: value}).save_pretrained(tmp_path / "odd")
    with pytest.raises(hf_perturb.CheckpointError, match=f"its {key} is {value}; the class there has"):
        export_checkpoint(tmp_path / "odd", tmp_path / "odd.pt", "fair-esm")


def test_notes_of_an_export_are_told(base, tmp_path, capsys):
    export_checkpoint(base, tmp_path / "short.pt", "fair-esm")
    (tmp_path / "short-contact-regression.pt").unlink()
    assert main(["convert", "--to", "transformers", str(tmp_path / "short.pt"), str(tmp_path / "stock")]) == 0
    assert "without the head that predicts contacts" in capsys.readouterr().err


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("build", [convert_checkpoint, lambda *a, **k: create_variant(*a, "reinit", **k)])
def test_what_appears_meanwhile_is_kept(base, tmp_path, monkeypatch, build, force):
    """A download may take hours, and somebody may need the same place in between."""
    from hf_perturb.variants import convert, create as variants

    def meanwhile(*_):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "thesis.txt").write_text("irreplaceable")

    monkeypatch.setattr(convert, "write_companions", meanwhile)
    monkeypatch.setattr(variants, "write_companions", meanwhile)
    with pytest.raises(hf_perturb.FolderExistsError):
        build(base, tmp_path / "out", force=force)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "irreplaceable"


def test_no_code_of_a_folder_is_run(base, tmp_path, monkeypatch):
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    (base / "evil.py").write_text(code)
    tokenizer = json.loads((base / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
    (base / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    edit_config(base, attn_implementation="evil/kernel", auto_map={"AutoModel": "evil.Model"})
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    convert_checkpoint(base, tmp_path / "out")
    create_variant(base, tmp_path / "control", "reinit")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out" / "evil.py").exists()


def test_a_name_alone_is_no_provenance(tmp_path):
    small_model("esm2").save_pretrained(tmp_path / "esm2_t6_8M_UR50D")
    convert_checkpoint(tmp_path / "esm2_t6_8M_UR50D", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "published at" not in card
    assert "MIT" not in card


def test_a_digest_is_dropped_when_nobody_can_say_that_it_is_true(base, tmp_path):
    model = hf_perturb.FairEsmForMaskedLM.from_pretrained(base)
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "trained", state_dict=state)
    assert "digest" not in json.loads((tmp_path / "trained" / "config.json").read_text())
    model = hf_perturb.FairEsmForMaskedLM.from_pretrained(base)
    model.save_pretrained(tmp_path / "same", state_dict=model.state_dict())
    assert json.loads((tmp_path / "same" / "config.json").read_text())["digest"] == digest_of(model.state_dict())


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
def test_an_offloaded_base_is_saved(base, tmp_path):
    pytest.importorskip("accelerate")
    parts = [name for name, _ in hf_perturb.FairEsmForMaskedLM.from_pretrained(base).named_children()]
    places = {part: "disk" if part == "layers" else "cpu" for part in parts}
    model = hf_perturb.FairEsmForMaskedLM.from_pretrained(
        base, device_map=places, offload_folder=str(tmp_path / "offload")
    )
    model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert torch.equal(saved["layers.0.fc1.bias"], load_file(base / "model.safetensors")["layers.0.fc1.bias"])
