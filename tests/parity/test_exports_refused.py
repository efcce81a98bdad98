"""What a format cannot hold is refused with the reason, nothing is overwritten, and nothing is half written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.models import small_model

import hf_perturb
from hf_perturb import CheckpointError, FolderExistsError, Perturbation, export_checkpoint
from hf_perturb.cli import main
from parity.sources import files_of, source_pair, write_source

GIVEN = {
    "esm1": lambda: source_pair("esm1")[1],
    "esm1b": lambda: source_pair("esm1b")[1],
    "esm1v": lambda: source_pair("esm1v")[1],
    "esm2": lambda: source_pair("esm2")[1],
    "carp": lambda: source_pair("carp")[1],
    "narrow esm2": lambda: small_model("esm2"),
    "sequence classifier": lambda: small_model("esm1b", "ForSequenceClassification"),
    "token classifier": lambda: small_model("esm2", "ForTokenClassification"),
    "esm trunk": lambda: small_model("esm1b", "Model"),
    "carp trunk": lambda: small_model("carp", "Model"),
    "carp classifier": lambda: small_model("carp", "ForSequenceClassification"),
}
REFUSED = [
    ("esm1", "transformers", "out", "its ESM has no ESM-1; allowed: ESM-1b, ESM-1v, ESM-2"),
    ("carp", "transformers", "out", "its ESM has no CARP"),
    ("sequence classifier", "transformers", "out", "stored as FairEsmForSequenceClassification; allowed: FairEsmForMa"),
    ("token classifier", "transformers", "out", "stored as FairEsmForTokenClassification; allowed: FairEsmForMaskedLM"),
    ("carp", "fair-esm", "out.pt", "stored as CarpForMaskedLM; allowed: FairEsmForMaskedLM"),
    ("sequence classifier", "fair-esm", "out.pt", "stored as FairEsmForSequenceClassification"),
    ("esm trunk", "fair-esm", "out.pt", "stored as FairEsmModel; allowed: FairEsmForMaskedLM"),
    ("narrow esm2", "fair-esm", "esm2_out.pt", "feed-forward layers of four times the width"),
    ("esm2", "fair-esm", "out.pt", r"out\.pt: fair-esm tells networks by the names.* must begin with 'esm2'"),
    ("esm1", "fair-esm", "esm2_out.pt", "this one must not begin with 'esm2'"),
    ("esm1b", "fair-esm", "esm2_out.pt", "this one must not begin with 'esm2'"),
    ("esm1v", "fair-esm", "out.pt", r"no contact head.*only if its name holds 'esm1v'"),
    ("esm1", "sequence-models", "out.pt", "it has no ESM; allowed: CARP"),
    ("esm2", "sequence-models", "out.pt", "it has no ESM; allowed: CARP"),
    ("carp trunk", "sequence-models", "out.pt", "stored as CarpModel; allowed: CarpForMaskedLM"),
    ("carp classifier", "sequence-models", "out.pt", "stored as CarpForSequenceClassification"),
    ("esm1b", "torch", "out", "to: got 'torch'; allowed: transformers, fair-esm, sequence-models"),
]
# a source and a name that each format takes
TAKEN = {"transformers": ("esm1b", "out"), "fair-esm": ("esm1b", "out.pt"), "sequence-models": ("carp", "out.pt")}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Callable[[str], Path]:
    """Return a function that gives a source's folder, written once."""
    made: dict[str, Path] = {}

    def give(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("sources") / "base"
            GIVEN[name]().save_pretrained(made[name])
        return made[name]

    return give


@pytest.mark.parametrize(("name", "to", "out", "message"), REFUSED, ids=lambda value: None)
def test_what_a_format_cannot_hold_is_refused(source, name, to, out, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        export_checkpoint(source(name), tmp_path / out, to)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["esm1b", "esm2"])
def test_a_head_of_its_own_is_refused_by_fair_esm(name, tmp_path):
    variant = write_source(tmp_path, source_pair(name)[1], "reinit")
    stem = "esm2_out" if name == "esm2" else "out"
    with pytest.raises(CheckpointError, match=r"one tensor for lm_head\.weight and embed_tokens\.weight") as caught:
        export_checkpoint(variant, tmp_path / f"{stem}.pt", "fair-esm")
    assert "exclude=['lm_head.weight'], and embeddings that are not perturbed also, keeps them together" in str(
        caught.value
    )
    # what the message proposes
    hf_perturb.create_variant(tmp_path / "base", tmp_path / "tied", Perturbation("reinit", exclude=["lm_head.weight"]))
    assert export_checkpoint(tmp_path / "tied", tmp_path / f"{stem}.pt", "fair-esm")[0].exists()


@pytest.mark.parametrize("is_folder", [True, False])
@pytest.mark.parametrize("to", TAKEN)
def test_what_exists_is_left_alone(source, to, is_folder, tmp_path):
    name, out = TAKEN[to]
    inside = tmp_path / out / "thesis.txt" if is_folder else tmp_path / out
    inside.parent.mkdir(exist_ok=True)
    inside.write_text("irreplaceable")
    before = files_of(tmp_path)
    with pytest.raises(FolderExistsError, match=f"{out} exists already"):
        export_checkpoint(source(name), tmp_path / out, to)
    assert files_of(tmp_path) == before
    assert os.listdir(tmp_path) == [out]


@pytest.mark.parametrize("to", TAKEN)
def test_a_link_to_nothing_is_left_alone(source, to, tmp_path):
    name, out = TAKEN[to]
    (tmp_path / out).symlink_to(tmp_path / "nowhere")
    with pytest.raises(FolderExistsError, match=f"{out} exists already"):
        export_checkpoint(source(name), tmp_path / out, to)
    assert os.listdir(tmp_path) == [out]
    assert (tmp_path / out).is_symlink()


def test_a_regression_that_exists_is_left_alone(source, tmp_path):
    regression = tmp_path / "out-contact-regression.pt"
    regression.write_text("of another network")
    with pytest.raises(FolderExistsError, match=r"out-contact-regression\.pt exists already"):
        export_checkpoint(source("esm1b"), tmp_path / "out.pt", "fair-esm")
    assert os.listdir(tmp_path) == [regression.name]
    assert regression.read_text() == "of another network"


def test_a_source_is_not_overwritten(source, tmp_path):
    folder = source("esm1b")
    before = files_of(folder)
    for out in (folder, folder.parent):
        with pytest.raises(CheckpointError, match="exists already"):
            export_checkpoint(folder, out, "transformers")
    original = export_checkpoint(folder, tmp_path / "out.pt", "fair-esm")[0]
    with pytest.raises(FolderExistsError):
        export_checkpoint(original, original, "fair-esm")
    assert files_of(folder) == before


def test_a_missing_or_damaged_source(source, tmp_path):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        export_checkpoint(tmp_path / "nothing", tmp_path / "out", "transformers")
    hf_perturb.create_variant(source("esm1b"), tmp_path / "recipe", "reinit", recipe=True)
    with pytest.raises(CheckpointError, match="is a recipe; give it its weights first"):
        export_checkpoint(tmp_path / "recipe", tmp_path / "out", "transformers")
    model = small_model("esm1b")
    del model.layers[1].fc1.bias
    model.save_pretrained(tmp_path / "lacking")
    with pytest.raises(CheckpointError, match=r"missing tensors: layers\.1\.fc1\.bias"):
        export_checkpoint(tmp_path / "lacking", tmp_path / "out", "transformers")
    assert sorted(os.listdir(tmp_path)) == ["lacking", "recipe"]


def test_a_full_disk_leaves_nothing(source, tmp_path):
    """A limit on the size of a file acts like a full disk: the write fails half way."""
    code = (
        "import json, resource, signal, sys; from hf_perturb.cli import main;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000));"
        "print([main(['convert', '--to', *words]) for words in json.loads(sys.argv[1])])"
    )
    (tmp_path / "out").mkdir()
    words = [[to, str(source(name)), str(tmp_path / "out" / out)] for to, (name, out) in TAKEN.items()]
    arguments = [sys.executable, "-c", code, json.dumps(words)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.stdout == "[1, 1, 1]\n", done.stderr
    assert done.stderr.count("nothing was written, because") == 3
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path / "out") == []


def test_an_interrupt_leaves_nothing(source, tmp_path, monkeypatch):
    """A regression without its network, or a network without its regression, would mislead fair-esm."""

    def interrupted(*arguments, **keywords):
        Path(arguments[1].name).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    for to in ("fair-esm", "sequence-models"):
        name, out = TAKEN[to]
        with pytest.raises(KeyboardInterrupt):
            export_checkpoint(source(name), tmp_path / out, to)
    assert os.listdir(tmp_path) == []


def test_a_failure_between_the_two_files_leaves_neither(source, tmp_path, monkeypatch):
    rename, calls = Path.rename, []

    def failing(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(CheckpointError, match="nothing was written, because"):
        export_checkpoint(source("esm1b"), tmp_path / "out.pt", "fair-esm")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("to", TAKEN)
def test_the_command_prints_the_files(source, to, tmp_path, capsys):
    name, out = TAKEN[to]
    place = tmp_path / "new" / "folders" / out
    expected = [str(place)]
    if to == "fair-esm":
        expected.append(str(place.with_name("out-contact-regression.pt")))
    assert main(["convert", "--to", to, str(source(name)), str(place)]) == 0
    assert capsys.readouterr().out.splitlines() == expected
    assert all(Path(path).exists() for path in expected)
    assert main(["convert", "--to", to, "--json", str(source(name)), str(tmp_path / "more" / out)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [Path(path).name for path in said["files"]] == [Path(path).name for path in expected]


def test_the_command_fails_with_1(source, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    for words, message in (
        (["transformers", source("esm1"), tmp_path / "out"], "its ESM has no ESM-1"),
        (["fair-esm", source("esm2"), tmp_path / "out.pt"], "must begin with 'esm2'"),
        (["sequence-models", source("esm2"), tmp_path / "out.pt"], "it has no ESM"),
        (["transformers", source("esm1b"), tmp_path / "there"], "exists already"),
        (["transformers", tmp_path / "nothing", tmp_path / "out"], "no such file or folder"),
    ):
        assert main(["convert", "--to", *map(str, words)]) == 1
        streams = capsys.readouterr()
        assert message in streams.err
        assert streams.err.startswith("hf-perturb convert: ")
        assert streams.out == ""
    assert os.listdir(tmp_path) == ["there"]


@pytest.mark.parametrize("option", [["--dtype", "float16"], ["--force"]])
def test_options_of_a_base_are_wrong_usage(source, option, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["convert", "--to", "fair-esm", *option, str(source("esm1b")), str(tmp_path / "out.pt")])
    assert caught.value.code == 2
    assert f"{option[0]}: not with --to" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["convert", "--to", "torch", str(source("esm1b")), str(tmp_path / "out.pt")])
    assert caught.value.code == 2
    assert os.listdir(tmp_path) == []
