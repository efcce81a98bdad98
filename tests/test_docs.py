"""Every snippet of README, docs/ and the demo base's card runs, its output is the one shown, links lead somewhere."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.any_encoders import write_encoder
from support.hub_client import connected, quiet_uploads
from support.hub_repos import User
from support.hub_server import serve
from support.models import small_model
from support.pages import PAGES, README, ROOT, snippets

import hf_perturb
from hf_perturb.cli import main

hub = pytest.fixture(serve)

ARCHITECTURE = ROOT / "docs" / "architecture.md"
RUNNABLE = [page for page in [*PAGES, hf_perturb.demo.folder() / "README.md"] if snippets(page)]


def original_module():
    """Return what docs/convert.md calls `original`: a small, untrained ESM-1b."""
    from esm.data import Alphabet
    from esm.model.esm1 import ProteinBertModel

    sizes = {"arch": "roberta_large", "layers": 2, "embed_dim": 32, "ffn_embed_dim": 64, "attention_heads": 4}
    options = {"max_positions": 1024, "token_dropout": True, "emb_layer_norm_before": True}
    return ProteinBertModel(argparse.Namespace(**sizes, **options), Alphabet.from_architecture("roberta_large"))


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Make a folder with small networks where the commands look for published ones, and a FASTA."""
    folder = tmp_path_factory.mktemp("published")
    names = {"esm1b": "esm1b_t33_650M_UR50S.pt", "esm2": "hub/checkpoints/esm2_t6_8M_UR50D.pt"}
    (folder / "hub" / "checkpoints").mkdir(parents=True)
    for network, name in names.items():
        small_model(network, intermediate_size=128).save_pretrained(folder / network)
        hf_perturb.export_checkpoint(folder / network, folder / name, "fair-esm")
    hf_perturb.export_checkpoint(folder / "esm2", folder / "facebook" / "esm2_t6_8M_UR50D", "transformers")
    for name, encoder in {"prot_bert": "bert-lm", "ProstT5": "t5"}.items():
        write_encoder(folder / "Rostlab" / name, encoder, max_position_embeddings=1024)
    records = [f">{i}\n{sequence}\n" for i, sequence in enumerate(hf_perturb.demo.held_out_sequences()[:3])]
    (folder / "proteins.fasta").write_text("".join(records))
    parts = [sequence[:30] for sequence in hf_perturb.demo.held_out_sequences()[:40]]
    shares = [sum(map(each.count, "AILMFVW")) / len(each) for each in parts]
    rows = [
        f"{each},{share},{('train', 'test')[i % 2]}" for i, (each, share) in enumerate(zip(parts, shares, strict=True))
    ]
    (folder / "proteins.csv").write_text("\n".join(["sequence,target,set", *rows]))
    return folder


def extras() -> set[str]:
    """Return the names of the extras, as pyproject.toml has them."""
    section = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project.optional-dependencies]")[1]
    return set(re.findall(r"^([a-z0-9]+) = \[", section.split("\n[")[0], flags=re.MULTILINE))


def run_shell(code: str) -> None:
    """Run our command as it is shown; of others, look whether they are there."""
    for line in code.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["hf-perturb"]:
            assert main(words[1:]) == 0, line
        elif words[:2] == ["pip", "install"]:
            assert {*re.findall(r"\w+", words[2].partition("[")[2])} <= extras(), line
        elif words:
            assert (ROOT / words[0]).is_file(), line


@quiet_uploads
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT calls it so
@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_snippet_runs_and_prints_what_is_shown(page, published, tmp_path, monkeypatch, capsys, hub):
    connected(monkeypatch, hub, tmp_path / "home", hub.WRITE)
    hub.users[hub.WRITE] = User("me", "write", ("my-lab",))
    work = shutil.copytree(published, tmp_path / "work")
    monkeypatch.chdir(work)
    monkeypatch.setenv("TORCH_HOME", str(work))
    names = {"original": original_module()}
    said = printed = ""
    for language, code in snippets(page):
        if language == "text":
            assert printed == code
        elif language == "python":
            exec(compile(code, page.name, "exec"), names)
        else:
            assert language == "sh", "a snippet is python or sh, so that this test runs it, or the text that one prints"
            run_shell(code)
        printed = capsys.readouterr().out
        said += printed
    for shown in re.findall(r"print\(.*\) +# (.*)", page.read_text(encoding="utf-8")):
        assert shown.split(":")[0] in said, f"the page shows {shown!r}"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the Hub make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place) if place else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_every_page_of_docs_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\((docs/\w[\w-]*\.md)", README.read_text(encoding="utf-8")))
    assert linked == {f"docs/{page.name}" for page in ROOT.glob("docs/*.md")}


def test_the_readme_is_a_page():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 170


@pytest.mark.parametrize("page", [ARCHITECTURE, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_every_file_that_is_named_is_there(page):
    named = re.findall(r"`([\w./-]+(?:\.py|/))`", page.read_text(encoding="utf-8"))
    assert len(named) > 5
    for name in named:
        assert any((folder / name).exists() for folder in (ROOT, ROOT / "hf_perturb")), f"{page.name}: {name}"


def test_the_tables_are_current():
    done = subprocess.run([sys.executable, ROOT / "scripts" / "render.py", "--check"], check=False)
    assert done.returncode == 0


def test_the_version_is_the_same_everywhere():
    assert f"## {hf_perturb.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == hf_perturb.__version__
    assert [author["name"] for author in citation["authors"]] == ["The hf_perturb authors"]
