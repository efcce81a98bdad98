"""The card of a variant of any Transformers model says what was done to its tensors, and how it is loaded."""

from __future__ import annotations

import re

import pytest
import yaml
from safetensors.torch import load_file
from support.any_folders import stored

from hf_perturb import Perturbation, create_variant
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.variants.blueprint import plan_for

METHODS = ("reinit", "resample", "gaussian")


def card_of(folder, base, asked, **options):
    create_variant(base, folder, asked, **options)
    return (folder / "README.md").read_text()


def tables(card):
    """Return the facts of a card, and the rows of its table of tensors."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in card.splitlines() if line[:1] == "|"]
    facts = {row[0].strip(): row[1].strip(" |") for row in rows if len(row) == 2}
    return facts, [row for row in rows if re.fullmatch(r"\d+ of \d+", row[2].strip(" |") if len(row) > 2 else "")]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["bert", "t5", "qwen3_moe", "vit", "mamba"])
def test_a_card_counts_the_tensors_of_the_plan(kind, method, tmp_path):
    stored(kind, tmp_path / "base")
    facts, rows = tables(card := card_of(tmp_path / "out", tmp_path / "base", method))
    checkpoint = Checkpoint.open(tmp_path / "base").check()
    every = load_file(tmp_path / "out" / "model.safetensors")
    counted = [tuple(map(int, re.findall(r"\d+", row[2])[:2])) for row in rows]
    # an expert a tensor is stored, and those of a layer are one when it is loaded
    is_stacked, whole = kind == "qwen3_moe", [name for name in every if ".experts." not in name]
    layers = {name.split(".")[2] for name in every if ".experts." in name}
    total = len(whole) + 2 * len(layers)
    assert sum(all_of for _, all_of in counted) == total
    assert sum(done for done, _ in counted) == len(plan_for(checkpoint.network, Perturbation(method)).steps)
    assert facts["tensors perturbed"] == f"{sum(done for done, _ in counted)} of {total}"
    assert ("held as one" in card) == is_stacked
    assert facts["method"] == method
    assert facts["digest of the weights"] == Checkpoint.open(tmp_path / "out").stated_digest
    assert facts["rules"] == "transformers"
    assert ("| by |" in card) == (method == "reinit")
    header = yaml.safe_load(card.split("---")[1])
    assert header["tags"] == ["hf-perturb", "control", method, checkpoint.network.family]


def test_a_card_says_what_draws_and_what_is_kept(tmp_path):
    stored("bert", tmp_path / "base")
    card = card_of(tmp_path / "out", tmp_path / "base", "reinit")
    assert "| `bert.encoder.layer.*.output.dense.weight` | `normal_(0, 0.02)` | 2 of 2 |" in card
    assert "| `bert.encoder.layer.*.output.dense.bias` | 0 | 2 of 2 |" in card
    assert "| `bert.embeddings.word_embeddings.weight` | keep | 0 of 1 |" in card
    assert "The input embedding (`bert.embeddings.word_embeddings.weight`) and the output head" in card
    card = card_of(tmp_path / "top", tmp_path / "base", {"method": "resample", "scope": ["top:1"]})
    assert "| `bert.encoder.layer.*.output.dense.weight` | shuffle | 1 of 2 |" in card
    assert "`top:1` (the layer nearest the output)" in card


def test_the_snippet_of_a_card_loads_the_control(tmp_path):
    stored("t5", tmp_path / "base")
    card = card_of(tmp_path / "out", tmp_path / "base", "resample")
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert "hf_perturb" not in code
    told: dict = {"print": print}
    exec(code.replace('"this-folder"', repr(str(tmp_path / "out"))), told)
    assert told["model"].config.perturbation["method"] == "resample"


def test_a_recipe_says_that_it_has_no_weights(tmp_path):
    stored("bert", tmp_path / "base")
    card = card_of(tmp_path / "out", tmp_path / "base", "reinit", recipe=True)
    assert "a recipe, without weights, for the network `base`" in card
    assert 'hf_perturb.from_pretrained("this-folder", auto_class="BertForMaskedLM")' in card


def test_a_name_from_outside_cannot_end_its_line(tmp_path):
    stored("bert", tmp_path / "a`b|c")
    card = card_of(tmp_path / "out", tmp_path / "a`b|c", "reinit")
    assert "a`b|c" not in card
    assert "a&#96;b&#124;c" in card
