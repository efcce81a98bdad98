"""What `convert` does not write over, what it leaves behind when it fails, and which folders it does not take."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from support.refusals import edited, refuse, replaced, tree
from transformers import AutoModelForMaskedLM

import hf_perturb
from hf_perturb.perturbation import digest_of
from hf_perturb.variants import convert
from hf_perturb.variants.convert import convert_checkpoint

FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
WRONG = "blake3:" + "0" * 64


@pytest.fixture
def base(tmp_path):
    convert_checkpoint(edited(tmp_path, "carp"), tmp_path / "base")
    return tmp_path / "base"


def edit_config(folder, **changes):
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stored, **changes}))


def nan(weight):
    return torch.full_like(weight, float("nan"))


# folders to write


def test_a_base_folder_is_whole(tmp_path):
    path = edited(tmp_path, "esm1b")
    before = set(os.listdir(tmp_path))
    convert_checkpoint(path, tmp_path / "deep" / "base")
    assert set(os.listdir(tmp_path)) == before | {"deep"}
    assert os.listdir(tmp_path / "deep") == ["base"]
    assert set(os.listdir(tmp_path / "deep" / "base")) == FILES
    assert len({file.stat().st_mode for file in (tmp_path / "deep" / "base").iterdir()}) == 1


def test_an_existing_folder_is_kept_byte_for_byte(tmp_path, base):
    path = edited(tmp_path, "esm1b")
    refuse(path, tmp_path, r"base exists already; .*--force \(force=True\)", out="base")
    (tmp_path / "empty").mkdir()
    refuse(path, tmp_path, "empty exists already", out="empty")
    refuse(path, tmp_path, "is, or holds, the base", out=path.name)
    (tmp_path / "file").write_text("x")
    refuse(path, tmp_path, "file exists already", out="file")


def test_force_replaces_a_base(tmp_path, base):
    path = edited(tmp_path, "esm1b")
    done = convert_checkpoint(path, base, force=True)
    assert set(os.listdir(base)) == FILES
    assert digest_of(load_file(base / "model.safetensors")) == done.digest
    assert AutoModelForMaskedLM.from_pretrained(base).config.model_type == "fair_esm"
    assert not [file for file in os.listdir(tmp_path) if file.startswith(".")]


def test_a_forced_failure_keeps_the_old(tmp_path, base):
    path = edited(tmp_path, "esm1b", replaced(**{"encoder.lm_head.bias": nan}))
    refuse(path, tmp_path, r"NaN .* in lm_head\.bias", out="base", force=True)


def test_force_replaces_nothing_but_a_base_that_convert_wrote(tmp_path, base):
    path = edited(tmp_path, "esm1b")
    hf_perturb.create_variant(base, tmp_path / "variant", "reinit")
    hf_perturb.create_variant(base, tmp_path / "recipe", "reinit", recipe=True)
    trained = AutoModelForMaskedLM.from_pretrained(base)
    with torch.no_grad():
        next(trained.parameters()).add_(1)
    trained.save_pretrained(tmp_path / "trained")
    (tmp_path / "link").symlink_to(base)
    (tmp_path / "file").write_text("x")
    convert_checkpoint(base, tmp_path / "annotated")
    (tmp_path / "annotated" / "notes.txt").write_text("irreplaceable")
    convert_checkpoint(base, tmp_path / "shared")
    (tmp_path / "shared" / "runs").mkdir()
    for out in ("variant", "recipe", "trained"):
        refuse(path, tmp_path, f"{out} is no base, so --force does not replace it", out=out, force=True)
    for out in ("link", "file"):
        refuse(path, tmp_path, f"{out} is no folder, so --force does not replace it", out=out, force=True)
    refuse(path, tmp_path, r"annotated holds notes\.txt, which is not ours to replace", out="annotated", force=True)
    refuse(path, tmp_path, r"shared holds runs, which is not ours to replace", out="shared", force=True)


@pytest.mark.parametrize("force", [False, True])
def test_the_source_is_never_written_over(tmp_path, base, force):
    path = edited(tmp_path, "carp")
    (tmp_path / "link").symlink_to(base)
    for source, out in ((base, "base"), (base, "link"), (base, "."), (tmp_path / "link", "base"), (path, ".")):
        refuse(source, tmp_path, "is, or holds, the base", out=out, force=force)


def test_a_place_that_cannot_be_made(tmp_path):
    path = edited(tmp_path, "carp")
    (tmp_path / "file").write_text("x")
    refuse(path, tmp_path, "file cannot be made", out="file/below")


def test_a_refusal_leaves_no_parents_of_the_folder(tmp_path):
    path = edited(tmp_path, "carp", replaced(**{"last_norm.bias": nan}))
    refuse(path, tmp_path, "NaN", out="deep/er/out")


@pytest.mark.parametrize("stage", ["write_weights", "base_card"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "ctrl-c"])
def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch, stage, error):
    path = edited(tmp_path, "carp")

    def fail(*_):
        raise error

    monkeypatch.setattr(convert, stage, fail)
    before = tree(tmp_path)
    if isinstance(error, OSError):
        refuse(path, tmp_path, "out: nothing was written, because .*No space left")
    else:
        with pytest.raises(KeyboardInterrupt):
            convert_checkpoint(path, tmp_path / "out")
    assert tree(tmp_path) == before


def test_a_full_disk_leaves_nothing(tmp_path):
    path = edited(tmp_path, "esm1b")
    code = (
        "import resource, signal, sys; from hf_perturb.cli import main;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "sys.exit(main(['convert', *sys.argv[1:]]))"
    )
    before = tree(tmp_path)
    assert max(map(len, before.values())) > 200_000
    arguments = [sys.executable, "-c", code, str(path), str(tmp_path / "out")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "nothing was written, because" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert tree(tmp_path) == before


def test_a_killed_process_leaves_no_folder_by_the_name(tmp_path):
    """And an original is read without the package that it is of."""
    path = edited(tmp_path, "esm1b")
    code = (
        "import os, signal, sys; from hf_perturb.variants import convert;"
        "loaded = lambda: {'esm', 'sequence_models', 'fairseq'} & set(sys.modules);"
        "convert.base_card = lambda *a: sys.exit(3) if loaded() else os.kill(os.getpid(), signal.SIGKILL);"
        "convert.convert_checkpoint(*sys.argv[1:])"
    )
    arguments = [sys.executable, "-c", code, str(path), str(tmp_path / "out")]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    convert_checkpoint(path, tmp_path / "out")
    assert set(os.listdir(tmp_path / "out")) == FILES


# folders to read


def test_a_recipe_is_no_source(tmp_path, base):
    hf_perturb.create_variant(base, tmp_path / "recipe", "reinit", recipe=True)
    refuse(tmp_path / "recipe", tmp_path, "is a recipe; give it its weights first: hf-perturb create")


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_wrong_digest_is_an_error(tmp_path, base, dtype):
    """A cast must not turn damaged weights into a base with a digest of its own."""
    stored = json.loads((base / "config.json").read_text())["digest"]
    edit_config(base, digest=WRONG)
    said = refuse(base, tmp_path, f"{stored}.*{WRONG}", dtype=dtype)
    assert "the record says" in said
    with pytest.raises(hf_perturb.DigestError):
        convert_checkpoint(base, tmp_path / "out", dtype=dtype)


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_a_changed_bit_is_an_error(tmp_path, base, dtype):
    content = bytearray((base / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (base / "model.safetensors").write_bytes(content)
    refuse(base, tmp_path, "the weights have digest", dtype=dtype)


@pytest.mark.parametrize("name", ["esm1b", "carp"])
@pytest.mark.parametrize("method", ["reinit", "resample"])
def test_a_variant_keeps_its_record(tmp_path, name, method):
    convert_checkpoint(edited(tmp_path, name), tmp_path / "base")
    record = hf_perturb.create_variant(tmp_path / "base", tmp_path / "variant", method)
    done = convert_checkpoint(tmp_path / "variant", tmp_path / "out")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert model.config.perturbation.to_dict() == record.to_dict()
    assert done.digest == record.digest == digest_of(model.state_dict())
    assert model.config.digest is None
    assert digest_of(load_file(tmp_path / "out" / "model.safetensors")) == record.digest
    assert method in (tmp_path / "out" / "README.md").read_text()
    # of a cast, the digest is that of the weights as they are now, and the tool may replace what it wrote
    convert_checkpoint(tmp_path / "variant", tmp_path / "cast", dtype="bfloat16")
    cast = AutoModelForMaskedLM.from_pretrained(tmp_path / "cast").config.perturbation
    assert cast == record
    assert cast.base == record.base
    assert cast.digest == digest_of(load_file(tmp_path / "cast" / "model.safetensors")) != record.digest
    convert_checkpoint(tmp_path / "variant", tmp_path / "cast", force=True)
    assert "hf-perturb create" not in (tmp_path / "cast" / "README.md").read_text()


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_variant_with_a_wrong_digest_is_an_error(tmp_path, base, dtype):
    record = hf_perturb.create_variant(base, tmp_path / "variant", "reinit")
    edit_config(tmp_path / "variant", perturbation={**record.to_dict(), "digest": WRONG})
    refuse(tmp_path / "variant", tmp_path, f"{record.digest}.*{WRONG}", dtype=dtype)


def test_one_file_of_a_folder(tmp_path, base):
    refuse(base / "model.safetensors", tmp_path, "is one file of a folder; give the folder")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, r"model_type is 'bert'; allowed: fair_esm, carp, esm"),
        ({"model_type": None}, "model_type is None; allowed"),
        ({"model_type": "fair_esm"}, "base"),
        ({"digest": 5}, "config.json cannot be used.*digest"),
        ({"perturbation": "shuffle"}, "config.json cannot be used.*shuffle"),
        ({"num_hidden_layers": "9"}, "config.json cannot be used.*num_hidden_layers"),
        ({"num_hidden_layers": 10}, r"missing tensors: model\.embedder\.layers\.9\."),
        ({"num_hidden_layers": 8}, r"does not have: model\.embedder\.layers\.8\."),
        ({"hidden_size": 10**30}, "base"),
    ],
    ids=str,
)
def test_a_configuration_of_something_else(tmp_path, base, changes, message):
    edit_config(base, **changes)
    refuse(base, tmp_path, message)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_damaged_file_of_a_folder(tmp_path, base, file):
    (base / file).write_bytes((base / file).read_bytes()[:-20])
    refuse(base, tmp_path, file.replace(".", r"\."))


def test_folders_without_weights_or_configuration(tmp_path, base):
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", tmp_path, r"empty': no config\.json in it")
    (base / "model.safetensors").unlink()
    refuse(base, tmp_path, "has no weights")
