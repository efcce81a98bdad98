"""Files that `convert` refuses: damaged, or with code in them, or the checkpoint of something else."""

from __future__ import annotations

import os
import pickle
import sys
import types
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.original_files import CONTACTS, REGRESSION
from support.refusals import edited, network, refuse
from torch import nn


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("MKTAYIAKQR\n"), r"x\.pt is damaged, or no checkpoint that torch saved"),
        (lambda path: path.write_bytes(b""), r"x\.pt is damaged, or no checkpoint that torch saved"),
        (lambda path: path.write_bytes(b"PK\x03\x04"), r"x\.pt is damaged, or no checkpoint that torch saved"),
        (lambda path: path.mkdir(), r"x\.pt'?: no config\.json in it"),
        (lambda path: None, r"x\.pt'?: no such file"),
    ],
    ids=["text", "empty", "zip without content", "folder", "missing"],
)
def test_no_checkpoint(tmp_path, make, message):
    make(tmp_path / "x.pt")
    refuse(tmp_path / "x.pt", tmp_path, message)


@pytest.mark.parametrize("name", ["esm1b", "carp"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.001, 0.01, 0.3, 0.9, 0.999])
def test_truncated_file(tmp_path, name, legacy, share):
    path = edited(tmp_path, name, legacy=legacy)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refuse(path, tmp_path, f"{path.name} is damaged")


class Harm:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def write_harm(path: Path, data: Any, how: str | int) -> None:
    if isinstance(how, int):
        path.write_bytes(pickle.dumps(data, protocol=how))
    else:
        torch.save(data, path, _use_new_zipfile_serialization=how == "zip")


every_pickle = pytest.mark.parametrize("how", ["zip", "legacy", 0, 2, 4])
CODE = r"{}( holds .*mkdir, so it was not opened and nothing in it was run| is damaged, or no checkpoint)"


@every_pickle
def test_code_is_not_run(tmp_path, how):
    harm = Harm(tmp_path / "harm")
    write_harm(tmp_path / "x.pt", {"args": Namespace(arch="roberta_large"), "model": {"weight": harm}}, how)
    refuse(tmp_path / "x.pt", tmp_path, CODE.format("x.pt"))
    torch.load(tmp_path / "x.pt", weights_only=False) if isinstance(how, str) else pickle.loads(
        (tmp_path / "x.pt").read_bytes()
    )
    assert (tmp_path / "harm").exists(), "the file would have done harm"


@every_pickle
def test_code_in_the_contact_regression_is_not_run(tmp_path, how):
    path = edited(tmp_path, "esm1b")
    regression = path.with_name(path.stem + REGRESSION)
    write_harm(regression, {"model": {CONTACTS[0]: Harm(tmp_path / "harm")}}, how)
    refuse(path, tmp_path, CODE.format(regression.name))


def test_regression_may_hold_tensors_only(tmp_path):
    path = edited(tmp_path, "esm1b")
    regression = path.with_name(path.stem + REGRESSION)
    torch.save({"model": torch.load(regression)["model"], "args": Namespace(arch="roberta_large")}, regression)
    refuse(path, tmp_path, rf"{REGRESSION} holds argparse\.Namespace.*allowed: tensors, plain containers$")


def test_foreign_class_is_named(tmp_path, monkeypatch):
    class DictConfig(dict):
        pass

    DictConfig.__module__, DictConfig.__qualname__ = "omegaconf.dictconfig", "DictConfig"
    module = types.ModuleType("omegaconf.dictconfig")
    module.DictConfig = DictConfig
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, "omegaconf.dictconfig", module)
    path = edited(tmp_path, "esm2", lambda data: data.update(cfg=DictConfig(data["cfg"])))
    message = r"holds omegaconf\.dictconfig\.DictConfig, so it was not opened.*allowed: .*argparse\.Namespace"
    refuse(path, tmp_path, message)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_archive(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "x.pt"))
    refuse(tmp_path / "x.pt", tmp_path, r"x\.pt .*TorchScript")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: network("esm1b").original.state_dict(), r"bare state_dict, which does not say its sizes.*wrap"),
        (lambda: network("carp").original.state_dict(), r"bare state_dict.*hf_perturb\.wrap"),
        (lambda: network("esm1b").original, r"holds esm\.model\.esm1\.ProteinBertModel, so it was not opened"),
        (lambda: [torch.zeros(2)], "it holds a list; allowed: ESM-1, ESM-1b, ESM-1v and ESM-2.*CARP"),
        (lambda: torch.zeros(2), "it holds a Tensor; allowed"),
        (lambda: {"epoch": 3, "optimizer": {}}, "it holds epoch, optimizer; allowed"),
        (dict, "it is empty; allowed"),
        (lambda: {"args": Namespace(arch="roberta_large"), "model": [1]}, "its 'model' is not a state_dict"),
        (lambda: {"args": None, "model": {}}, r"x\.pt"),
        (lambda: {"cfg": None, "model": {}}, r"x\.pt"),
        (lambda: {"cfg": {}, "model": {}}, r"x\.pt.*'model'"),
        (lambda: {"model_state_dict": {"weight": 1}}, "its 'model_state_dict' is not a state_dict"),
        (
            lambda: {"model_state_dict": {"classifier.weight": torch.zeros(2)}},
            r"is no CARP: it holds classifier\.weight",
        ),
    ],
)
def test_another_content(tmp_path, content, message):
    torch.save(content(), tmp_path / "x.pt")
    refuse(tmp_path / "x.pt", tmp_path, message)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("msa_transformer", "is an MSA Transformer .*alignments; allowed"),
        ("vt_medium_with_invariant_gvp", "is ESM-IF1.*structures.*; allowed"),
        ("roberta_small", "its architecture is 'roberta_small'; allowed: ESM-1, ESM-1b, ESM-1v and ESM-2"),
        (None, "its architecture is None; allowed"),
    ],
)
def test_relatives_of_esm(tmp_path, arch, message):
    refuse(edited(tmp_path, "esm1b", lambda data: setattr(data["args"], "arch", arch)), tmp_path, message)


def test_file_without_an_architecture(tmp_path):
    refuse(edited(tmp_path, "esm1b", lambda data: delattr(data["args"], "arch")), tmp_path, "arch")


@pytest.mark.parametrize(
    ("name", "message"),
    [("mif", "is MIF"), ("mif-st", "MIF-ST"), ("bigcarp_esm1b_frozen", "is BiGCARP, which reads domains")],
)
def test_relatives_of_carp(tmp_path, name, message):
    refuse(edited(tmp_path, "carp", lambda data: data.update(model=name)), tmp_path, f"{message}.*; allowed: .*CARP")
