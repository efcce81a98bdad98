"""A matrix that was killed between two placements is completed by the same command, and what is there is kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.children import started_children
from support.models import small_model
from support.refusals import tree
from support.streamed import no_waiting

import hf_perturb
from hf_perturb import FolderExistsError, create_variant, create_variants
from hf_perturb.cli import main
from hf_perturb.perturbation.plan import Step
from hf_perturb.variants.matrix import folders, matrix

WORDS = [f"--{key}={value}" for key, value in [("method", "reinit"), ("method", "resample"), ("seed", 1), ("seed", 2)]]
ASKED = matrix(["reinit", "resample"], [1, 2])
FIRST = "reinit-seed1"

waiting = pytest.fixture(no_waiting, autouse=True)


children = pytest.fixture(started_children, scope="module")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A base that states no digest."""
    folder = tmp_path_factory.mktemp("bases") / "base"
    small_model("carp").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory) -> Path:
    """The matrix, made in one go."""
    out = tmp_path_factory.mktemp("whole") / "out"
    create_variants(base, folders(out, ASKED))
    return out


@pytest.fixture
def out(whole, tmp_path) -> Path:
    """The matrix with one variant missing, in a folder that may be changed."""
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    shutil.rmtree(out / "resample-seed2")
    return out


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
@pytest.mark.parametrize("placed", [1, 3])
@pytest.mark.parametrize("more", [[], ["--recipe"]])
def test_a_killed_matrix_is_completed_by_the_same_command(children, base, tmp_path, placed, more):
    words = ["create", str(base), str(tmp_path / "out"), *WORDS, *more]
    assert main([*words[:2], str(tmp_path / "whole"), *words[3:]]) == 0
    assert children.run("command_that_dies", words=words, placed=placed)[0] == -9
    there = {path: path.stat().st_ino for path in (tmp_path / "out").glob("[!.]*")}
    assert len(there) == placed
    assert children.run("command", words=words)[0] == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert {path: path.stat().st_ino for path in there} == there
    assert sorted(os.listdir(tmp_path / "out")) == sorted(os.listdir(tmp_path / "whole")), "nothing hidden is left"


def test_what_is_there_is_not_computed_again(base, out, whole, monkeypatch):
    drawn, run = [], Step.run

    def count(step, *arguments):
        drawn.append(step.name)
        return run(step, *arguments)

    monkeypatch.setattr(Step, "run", count)
    records = create_variants(base, folders(out, ASKED), jobs=1)
    assert len(drawn) == len(set(drawn)), "of one variant alone"
    assert tree(out) == tree(whole)
    drawn.clear()
    assert create_variants(base, folders(out, ASKED)) == records
    assert list(records.values()) == ASKED
    assert not drawn


def test_the_command_says_what_it_kept(base, out, capsys):
    assert main(["create", str(base), str(out), *WORDS]) == 0
    streams = capsys.readouterr()
    assert f"note: {out / FIRST} is there already, as asked for, and was kept" in streams.err
    assert (streams.err.count("note: "), streams.out.count("blake3:")) == (3, 4)
    assert main(["create", str(base), str(out), *WORDS, "--force"]) == 0
    assert "note: " not in capsys.readouterr().err


def flip(folder: Path) -> None:
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)


def edit(folder: Path, **changes) -> None:
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stored, **changes}))


def of_another_base(folder: Path) -> None:
    small_model("carp", seed=5).save_pretrained(folder.parent / "base")
    create_variant(folder.parent / "base", folder, ASKED[0], force=True)


SPOILT: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "weights": (lambda base, folder: flip(folder), "the weights have digest"),
    "seed": (lambda base, folder: create_variant(base, folder, ASKED[1], force=True), "its seed is 2, not 1"),
    "scope": (
        lambda base, folder: create_variant(base, folder, {**ASKED[0].to_dict(), "scope": ["top:1"]}, force=True),
        "its scope is ['top:1'], not None",
    ),
    "base": (lambda base, folder: of_another_base(folder), "its base is"),
    "recipe": (lambda base, folder: create_variant(base, folder, ASKED[0], recipe=True, force=True), "it is a recipe"),
    "size": (lambda base, folder: edit(folder, kernel_size=3), "kernel_size is 3, the base has 5"),
    "card": (lambda base, folder: (folder / "README.md").unlink(), "it has no README.md"),
    "a cut header": (lambda base, folder: os.truncate(folder / "model.safetensors", 100), "model.safetensors"),
    "no record": (lambda base, folder: edit(folder, perturbation=None), "exists already; choose another folder"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_there_and_is_not_what_is_asked_for_is_refused(name, base, out, whole):
    spoil, message = SPOILT[name]
    spoil(base, out / FIRST)
    before = tree(out)
    with pytest.raises(FolderExistsError) as caught:
        create_variants(base, folders(out, ASKED))
    assert str(out / FIRST) in str(caught.value)
    assert message in str(caught.value)
    assert tree(out) == before
    if name != "no record":
        create_variants(base, folders(out, ASKED), force=True)
        made = tree(out)
        assert all(made[path] == content for path, content in tree(whole).items())


def test_a_link_and_one_variant_alone_are_refused(base, out, tmp_path):
    (out / FIRST).rename(tmp_path / "elsewhere")
    (out / FIRST).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FolderExistsError, match=f"{FIRST} exists already"):
        create_variants(base, folders(out, ASKED))
    with pytest.raises(FolderExistsError, match="elsewhere exists already"):
        create_variant(base, tmp_path / "elsewhere", ASKED[0])


def test_a_variant_that_is_being_written_is_locked(base, out):
    with (
        hf_perturb.storage.folders.scratch_folder(out / FIRST),
        pytest.raises(hf_perturb.FolderLockedError, match=FIRST),
    ):
        create_variants(base, folders(out, ASKED))
