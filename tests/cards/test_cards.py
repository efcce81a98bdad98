"""Model cards: their metadata is valid, their facts are those of the weights, and their snippets run."""

from __future__ import annotations

import html
import re
import shlex
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants
from support.models import batch_of, small_model
from support.spec_table import PARTS
from support.streamed import SIZES, in_hub_cache, weights_of, write_base

import hf_perturb
from hf_perturb import FairEsmConfig, FairEsmForMaskedLM, Perturbation, create_variant
from hf_perturb.cards.card import STUDY
from hf_perturb.checkpoints.catalog import CATALOG, published
from hf_perturb.checkpoints.network import Network
from hf_perturb.cli import main
from hf_perturb.perturbation import make_plan

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts"))
from render import published_card

ROOT = Path(__file__).parent.parent.parent
DOCUMENTED = [entry for entry in CATALOG.values() if entry.documented]
PUBLISHED = {
    "esm1": "esm1_t6_43M_UR50S",
    "esm1b": "esm1b_t33_650M_UR50S",
    "carp": "carp_600k",
    "esm2": "esm2_t6_8M_UR50D",
}
ASKED = {
    "reinit": Perturbation("reinit"),
    "resample": Perturbation("resample", seed=7),
    "rows": Perturbation("resample", axis="rows"),
    "reinit-published": Perturbation("reinit", rules="published"),
    "resample-published": Perturbation("resample", rules="published"),
    "scope": Perturbation("reinit", scope=["top:1", "feed_forward"]),
    "outputs": Perturbation("resample", axis="outputs"),
    "gaussian": Perturbation("gaussian"),
    "also-embeddings": Perturbation("gaussian", also=["embeddings"]),
    "also": Perturbation("reinit", also=["embeddings", "head"]),
    "globs": Perturbation("resample", include=["*layers.0.*", "*layers.1.*"], exclude=["*.bias"]),
}
HOSTILE = "a | b `c` \\| {{ 7 * 7 }} <b>\n---\n# Heading [x](y)\n| z |"


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def header_of(text: str) -> dict:
    """Return the metadata of a card, which two parsers have to agree on."""
    _, header, _ = text.split("---\n", 2)
    found = yaml.safe_load(header)
    assert ModelCard(text).data.to_dict() == found
    return found


def facts_of(text: str) -> dict[str, str]:
    return dict(re.findall(r"^\| ([^|`]+) \| (.*) \|$", text.split("\n## ")[0], flags=re.MULTILINE))


def rules_of(text: str) -> dict[str, tuple[str, int, int]]:
    """Return what a card says was done, to how many and of how many, by the tensors of a rule."""
    rows = re.findall(r"^\| `(\S+)` \| (.+) \| (\d+) of (\d+) \|$", text, flags=re.MULTILINE)
    return {pattern: (action, int(count), int(named)) for pattern, action, count, named in rows}


def alike_in(text: str) -> int:
    """Return how many tensors a card says were perturbed and came out as they were."""
    said = re.search(r"^Perturbed, but with the values that they had before: (.*)\.$", text, flags=re.MULTILINE)
    each = [] if said is None else re.findall(r"`[^`]+`(?: \((\d+) tensors\))?", said[1])
    return sum(int(count or 1) for count in each)


def changed_in(variant: Path, base: Path) -> set[str]:
    """Return the names of the tensors that are not those of the base."""
    old = weights_of(base)
    source = {"lm_head.weight": "embed_tokens.weight"} if "lm_head.weight" not in old else {}
    return {name for name, new in weights_of(variant).items() if not torch.equal(new, old[source.get(name, name)])}


@pytest.fixture
def base(network, tmp_path):
    return write_base(tmp_path / "base", network)


def in_catalogue(monkeypatch, name: str, network: str) -> dict:
    """Give a name of the catalogue the sizes of a small network, and return how a configuration says so."""
    config = small_model(network, **SIZES[network]).config
    monkeypatch.setitem(
        CATALOG, name, replace(CATALOG[name], sizes={k: getattr(config, k) for k in CATALOG[name].sizes})
    )
    return {"published_as": name}


@pytest.mark.parametrize("name", ASKED)
def test_the_card_of_a_variant_says_what_was_done(base, network, name, tmp_path):
    record = create_variant(base, tmp_path / "out", ASKED[name])
    text, changed = card_of(tmp_path / "out"), changed_in(tmp_path / "out", base)
    facts, rows, stored = facts_of(text), rules_of(text), weights_of(tmp_path / "out")
    assert facts["base"] == "`base`"
    assert (facts["method"], facts["seed"], facts["rules"]) == (record.method, str(record.seed), record.rules)
    assert (facts["base digest"], facts["digest of the weights"]) == (record.base.digest, record.digest)
    perturbed = sum(count for _, count, _ in rows.values())
    assert facts["tensors perturbed"] == f"{perturbed} of {len(stored)}"
    also = " and ".join(part for part in record.also if part == "embeddings" or network in ("esm1", "carp"))
    assert f"\n{perturbed} of its {len(stored)} tensors{also and f', {also} among them,'}\n" in text
    assert f", {record.method}{also and f', {also} too'}, seed {record.seed}\n" in text
    assert ("those of the base" in text) == (perturbed < len(stored))
    parameters = {key: value.numel() for key, value in stored.items() if not key.endswith((".inv_freq", "_tensor"))}
    assert facts["parameters"] == f"{sum(parameters.values()):,}"
    assert ("axis" in facts) == (record.method == "resample")
    for key in ("include", "exclude", "scope", "also"):
        assert (key in facts) == bool(getattr(record, key))
        assert all(f"`{said}`" in facts[key] for said in getattr(record, key))
    assert sum(named for _, _, named in rows.values()) == len(stored)
    assert perturbed == len(changed) + alike_in(text)
    assert all((action != "keep") == (count > 0) for action, count, _ in rows.values())
    for said in (STUDY, f"hf_perturb {hf_perturb.__version__}, numpy {np.__version__}", "not a predictor"):
        assert said in text
    assert (f"torch {torch.__version__}" in text) == (record.rules == "published"), "where torch drew"
    assert str(tmp_path) not in text


@pytest.mark.parametrize("name", ASKED)
def test_the_metadata_of_a_variant_is_valid(base, network, name, tmp_path):
    create_variant(base, tmp_path / "out", ASKED[name])
    family = "carp" if network == "carp" else "fair_esm"
    assert header_of(card_of(tmp_path / "out")) == {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["hf-perturb", "protein", "control", ASKED[name].method, family],
    }


def test_tensors_that_came_out_the_same_are_named(tmp_path):
    model = small_model("esm1b")
    with torch.no_grad():
        for layer in model.layers:
            layer.self_attn.out_proj.bias.zero_()
    model.save_pretrained(tmp_path / "base")
    create_variant(tmp_path / "base", tmp_path / "out", "reinit")
    text = card_of(tmp_path / "out")
    assert rules_of(text)["layers.*.self_attn.out_proj.bias"] == ("0", 3, 3)
    assert "values that they had before: `layers.*.self_attn.out_proj.bias` (3 tensors).\n" in text
    create_variant(tmp_path / "base", tmp_path / "all", Perturbation("reinit", exclude=["*.out_proj.bias"]))
    assert "had before" not in card_of(tmp_path / "all")


@pytest.mark.parametrize("rules", ["documented", "published"])
def test_a_tied_head_is_explained(rules, tmp_path):
    base = write_base(tmp_path / "base", "esm1b")
    create_variant(base, tmp_path / "out", Perturbation("reinit", rules=rules))
    text, head = card_of(tmp_path / "out"), "`xavier_uniform_()`"
    rows = rules_of(text)
    if rules == "documented":
        assert rows["lm_head.weight"] == (head, 1, 1)
        assert rows["embed_tokens.weight"] == ("keep", 0, 1)
        assert "(`tie_word_embeddings` is false)" in text
        assert "left these as trained: `layers.*.{self_attn,final}_layer_norm.weight`" in text
    else:
        assert rows["embed_tokens.weight"] == (f"{head}, as `lm_head.weight`, which is the same tensor", 1, 1)
        assert "lm_head.weight" not in rows
        assert "tie_word_embeddings" not in text
        assert "The rules are those of the study's own code." in text
    tied = Perturbation("reinit", exclude=["lm_head.weight"])
    create_variant(base, tmp_path / "tied", tied)
    assert "tie_word_embeddings" not in card_of(tmp_path / "tied")


@pytest.mark.parametrize("method", ["reinit", "resample", "gaussian"])
def test_a_head_that_is_no_longer_tied_is_explained(method, tmp_path):
    base = write_base(tmp_path / "base", "esm1b")
    for number, (keys, said) in enumerate(
        [
            ({}, "Here the first is perturbed and the second is kept, so"),
            ({"also": ["embeddings"]}, "Here each is perturbed on its own, so"),
            (
                {"also": ["embeddings"], "exclude": ["lm_head.*"]},
                "Here the second is perturbed and the first is kept, so",
            ),
        ]
    ):
        create_variant(base, tmp_path / str(number), Perturbation(method, **keys))
        text = card_of(tmp_path / str(number))
        assert f"are one tensor in this network. {said} they are two (`tie_word_embeddings` is false)" in text
        assert {"lm_head.weight", "embed_tokens.weight"} <= weights_of(tmp_path / str(number)).keys()


def test_a_network_that_predicts_nothing_says_so(tmp_path):
    base, said = write_base(tmp_path / "base", "esm1"), "The output weights (`embed_out`) are 0"
    for method, also, silent in (
        ("reinit", ["head"], True),
        ("reinit", ["embeddings"], False),
        ("resample", ["head"], False),
        ("gaussian", ["head"], False),
    ):
        out = tmp_path / f"{method}-{also[0]}"
        create_variant(base, out, Perturbation(method, also=also))
        assert (said in card_of(out)) == ("Such a network predicts nothing" in card_of(out)) == silent
        logits = FairEsmForMaskedLM.from_pretrained(out)(**batch_of("esm1")).logits
        assert bool(logits.eq(0).all()) == silent, "as the card has it"
    create_variant(write_base(tmp_path / "carp", "carp"), tmp_path / "out", Perturbation("reinit", also=["head"]))
    assert "predicts nothing" not in card_of(tmp_path / "out")


def test_what_a_control_leaves_is_what_the_card_says(base, network, tmp_path):
    """Of each method and axis what is left of a tensor, and of gaussian which tensors stay."""
    left = {
        ("reinit", None): "what the base learned in these tensors: the architecture and what was kept are enough.",
        ("gaussian", None): "beyond their means and deviations: those, the architecture and what was kept are enough.",
        ("resample", "all"): "arranged these weights: their statistics, the architecture and what was kept are enough.",
        ("resample", "rows"): "the statistics of their rows, the architecture",
        ("resample", "outputs"): "the rows of matrices (which moved whole), the architecture",
        ("resample", "embedding"): "the columns of matrices (which moved whole), the architecture",
    }
    for (method, axis), said in left.items():
        create_variant(base, tmp_path / f"{method}-{axis}", Perturbation(method, axis=axis))
        text = card_of(tmp_path / f"{method}-{axis}")
        assert said in text
        assert ("has no deviation and stays as it is" in text) == (method == "gaussian")
        assert ("whole rows of matrices changed places, as here" in text) == (axis == "outputs" and network != "carp")
    drawn = weights_of(tmp_path / "gaussian-None")
    stay = {"contact_head.regression.bias"} & drawn.keys()  # of one element
    text = card_of(tmp_path / "gaussian-None")
    assert ("stays as it is, here: `contact_head.regression.bias`." in text) == bool(stay)
    count = len(changed_in(tmp_path / "gaussian-None", base))
    assert f"\n{count} of its {len(drawn)} tensors\n" in text
    everything = {"also": ["embeddings", "head"]}
    create_variant(base, tmp_path / "everything", Perturbation("gaussian", **everything))
    # a bias of one element is kept in the others
    assert ("those and the architecture are enough." in card_of(tmp_path / "everything")) == (network == "carp")


@pytest.mark.parametrize("head", ["Model", "ForSequenceClassification", "ForTokenClassification"])
def test_other_heads_are_loaded_by_their_own_class(network, head, tmp_path):
    create_variant(write_base(tmp_path / "base", network, head), tmp_path / "out", "resample")
    text = card_of(tmp_path / "out")
    tasks = {"Model": "feature-extraction", "ForSequenceClassification": "text-classification"}
    assert header_of(text)["pipeline_tag"] == tasks.get(head, "token-classification")
    assert f"AutoModel{head.removeprefix('Model')}.from_pretrained(" in text
    assert 'pipeline("fill-mask"' not in text


def test_nothing_in_a_name_can_break_a_card(tmp_path):
    ordinary, hostile = write_base(tmp_path / "base", "carp"), write_base(tmp_path / HOSTILE, "carp")
    cards = {}
    for folder in (ordinary, hostile):
        create_variant(folder, tmp_path / "out", "reinit")
        hf_perturb.convert_checkpoint(folder, tmp_path / "converted")
        cards[folder] = [card_of(tmp_path / "out"), card_of(tmp_path / "converted")]
        for made in ("out", "converted"):
            (tmp_path / made).rename(tmp_path / f"{made}-{len(cards)}")
    for plain, odd in zip(cards[ordinary], cards[hostile], strict=True):
        assert header_of(odd) == header_of(plain)
        lines = [
            [(line[:2], line.count("|"), line.count("`") % 2) for line in text.splitlines()] for text in (odd, plain)
        ]
        assert lines[0] == lines[1]
        (said,) = {html.unescape(found) for found in re.findall("<code>(.*?)</code>", odd)}
        assert said == " ".join(HOSTILE.split()), "all of it, and nothing of it a template"


def test_a_recipe_says_that_it_has_no_weights_and_nothing_of_the_disk(base, tmp_path):
    create_variant(base, tmp_path / "out", "reinit", recipe=True)
    text = card_of(tmp_path / "out")
    assert str(tmp_path) not in text
    assert "a control without weights" in text
    assert "trust_remote_code" not in text
    assert 'hf-perturb create "this-folder"' in text


# where weights come from


@pytest.mark.parametrize("network", PUBLISHED)
@pytest.mark.parametrize("known", [True, False])
def test_licence_and_citation_come_with_the_name(network, known, tmp_path, monkeypatch):
    """But not with a name that is of other sizes, or of no checkpoint."""
    name = PUBLISHED[network]
    said = in_catalogue(monkeypatch, name, network) if known else {"published_as": name}
    write_base(tmp_path / "base", network, **said)
    hf_perturb.convert_checkpoint(tmp_path / "base", tmp_path / "converted")
    create_variant(tmp_path / "base", tmp_path / "control", "resample")
    for folder in ("converted", "control"):
        text, entry = card_of(tmp_path / folder), CATALOG[name]
        for fact in (entry.licence, entry.citation, entry.url):
            assert (fact in text) == known
        header, licence = header_of(text), "mit" if entry.licence == "MIT" else "other"
        assert header.get("license") == (licence if known else None)
        assert ("license_link" in header) == (known and network == "carp")
        stock = entry.stock if known and folder == "control" else None
        assert header.get("base_model") == stock
        assert header.get("base_model_relation") == ("finetune" if stock else None)
        assert (f"{name}: {entry.errata}." in text) == bool(known and entry.errata and folder == "control")
    create_variant(tmp_path / "base", tmp_path / "recipe", "resample", recipe=True)
    create_variant(tmp_path / "recipe", tmp_path / "whole")
    assert header_of(card_of(tmp_path / "whole")) == header_of(card_of(tmp_path / "control"))


def test_errata_are_told(tmp_path, monkeypatch):
    said = in_catalogue(monkeypatch, "carp_640M", "carp")
    create_variant(write_base(tmp_path / "base", "carp", **said), tmp_path / "out", "reinit")
    assert f"- Of carp_640M: {CATALOG['carp_640M'].errata}.\n" in card_of(tmp_path / "out")
    base = write_base(tmp_path / "esm1v", "esm1b", contact_head=False)
    create_variant(base, tmp_path / "control", "reinit")
    assert "- The contact head is absent: it came without weights" in card_of(tmp_path / "control")
    for source in (base, tmp_path / "control"):
        hf_perturb.export_checkpoint(source, tmp_path / f"{source.name}-out", "transformers")
        assert "absent: its weights are zeros, which predict 0.5" in card_of(tmp_path / f"{source.name}-out")


def test_the_demo_base_is_known_by_its_digest(tmp_path):
    create_variant("demo", tmp_path / "control", "reinit")
    hf_perturb.convert_checkpoint("demo", tmp_path / "base")
    create_variant(tmp_path / "base", tmp_path / "other", "reinit")
    write_base(tmp_path / "demo", "carp")
    create_variant(tmp_path / "demo", tmp_path / "impostor", "reinit")
    for folder in ("control", "base", "other", "impostor"):
        licence = None if folder == "impostor" else "cc-by-4.0"
        assert header_of(card_of(tmp_path / folder)).get("license") == licence
        assert ("The UniProt Consortium" in card_of(tmp_path / folder)) == (licence is not None)


@pytest.mark.parametrize("recipe", [False, True])
def test_a_name_of_the_hub_goes_from_the_base_to_its_variants(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    name = PUBLISHED["esm2"]
    in_catalogue(monkeypatch, name, "esm2")
    write_base(tmp_path / "ours", "esm2")
    hf_perturb.export_checkpoint(tmp_path / "ours", tmp_path / "copy", "transformers")
    in_hub_cache(tmp_path / "cache", CATALOG[name].stock, tmp_path / "copy", 40 * "b")
    record = create_variant(CATALOG[name].stock, tmp_path / "out", "reinit", recipe=recipe)
    config = FairEsmConfig.from_pretrained(tmp_path / "out")
    assert config.published_as == name
    header, text = header_of(card_of(tmp_path / "out")), card_of(tmp_path / "out")
    assert (header["base_model"], header["license"]) == (CATALOG[name].stock, "mit")
    assert facts_of(text)["base revision"] == f"`{record.base.revision}`" == f"`{40 * 'b'}`"
    if recipe:
        create_variant(tmp_path / "out", tmp_path / "whole", None)
        assert FairEsmConfig.from_pretrained(tmp_path / "whole").published_as == name
    else:
        hf_perturb.export_checkpoint(tmp_path / "out", tmp_path / "exported", "transformers")
        assert FairEsmConfig.from_pretrained(tmp_path / "exported").published_as == name
        assert header_of(card_of(tmp_path / "exported")) == header
    found = hf_perturb.verify_variant(tmp_path / "out", tmp_path / "ours")
    assert found.ok, "who published the base is no part of it"


def test_a_name_that_nobody_knows_is_ignored(tmp_path):
    for said in ("nobody", "esm1b_t33_650M_UR50S", "carp_600k"):
        assert published(said, Network.of("fair_esm", num_hidden_layers=2)) is None
    assert published("esm1b_t33_650M_UR50S", Network.of("fair_esm")).name == "esm1b_t33_650M_UR50S"
    assert "published_as" not in FairEsmConfig().to_dict()


# what convert writes


def test_a_converted_variant_has_the_facts_of_the_variant(base, tmp_path):
    record = create_variant(base, tmp_path / "out", {"method": "resample", "seed": 5})
    hf_perturb.convert_checkpoint(tmp_path / "out", tmp_path / "again")
    texts = [card_of(tmp_path / folder) for folder in ("out", "again")]
    facts, again = map(facts_of, texts)
    assert again == facts
    assert rules_of(texts[1]) == rules_of(texts[0])
    assert header_of(texts[0]) == header_of(texts[1])
    assert record.digest in texts[1]


def test_tensors_of_equal_values_are_not_counted_as_drawn(tmp_path):
    base, network = tmp_path / "base", small_model("esm1b")
    with torch.no_grad():
        network.layers[0].fc1.bias.fill_(0.5)
        network.lm_head.bias.fill_(0)
    network.save_pretrained(base)
    create_variant(base, tmp_path / "control", "gaussian")
    hf_perturb.convert_checkpoint(tmp_path / "control", tmp_path / "again")
    text, changed = card_of(tmp_path / "control"), changed_in(tmp_path / "control", base)
    stored = weights_of(tmp_path / "control")
    assert facts_of(text)["tensors perturbed"] == f"{len(changed)} of {len(stored)}"
    assert f"\n{len(changed)} of its {len(stored)} tensors\n" in text
    assert "stays as it is, here: `layers.*.fc1.bias`, `lm_head.bias`" in text.replace(
        "`contact_head.regression.bias`, ", ""
    )
    assert rules_of(text)["contact_head.regression.bias"] == ("keep", 0, 1)
    assert rules_of(card_of(tmp_path / "again"))["contact_head.regression.bias"] == ("keep", 0, 1), (
        "without the base too"
    )


def test_every_format_counts_the_same_tensors(tmp_path):
    """Also of a base whose norms and biases are as new, so that most of them come out as they were."""
    base, cards = tmp_path / "base", []
    FairEsmForMaskedLM(small_model("esm1b").config).save_pretrained(base)
    create_variant(base, tmp_path / "control", "reinit")
    create_variant(base, tmp_path / "recipe", "reinit", recipe=True)
    create_variant(tmp_path / "recipe", tmp_path / "whole")
    hf_perturb.convert_checkpoint(tmp_path / "control", tmp_path / "again")
    hf_perturb.convert_checkpoint(tmp_path / "control", tmp_path / "half", dtype="float16")
    hf_perturb.export_checkpoint(tmp_path / "control", tmp_path / "stock", "transformers")
    hf_perturb.convert_checkpoint(tmp_path / "stock", tmp_path / "back")
    for folder in ("control", "recipe", "whole", "again", "half", "stock", "back"):
        text = card_of(tmp_path / folder)
        cards.append(
            (facts_of(text)["tensors perturbed"], re.findall("^(.*) of its .* tensors$", text, re.M), rules_of(text))
        )
    assert all(card == cards[0] for card in cards)
    perturbed, changed = int(cards[0][1][0]), len(changed_in(tmp_path / "control", base))
    assert changed < perturbed == changed + alike_in(card_of(tmp_path / "control"))


# snippets


def run_snippets(folder: Path, monkeypatch, capsys) -> int:
    """Run what a card shows, where its folder is; return how many blocks ran."""
    monkeypatch.chdir(folder.parent)
    ran = 0
    for language, code in re.findall(r"^```(\w+)\n(.*?)^```$", card_of(folder), flags=re.DOTALL | re.MULTILINE):
        assert '"this-folder"' in code
        if "trust_remote_code" in code:
            continue
        code = code.replace("this-folder", folder.name)
        if language == "python":
            exec(compile(code, folder.name, "exec"), {})
        else:
            for line in code.splitlines():
                assert main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
        ran += 1
    return ran


@pytest.mark.parametrize("recipe", [False, True])
def test_the_snippets_of_a_variant_run(base, recipe, tmp_path, monkeypatch, capsys):
    create_variant(base, tmp_path / "control", "reinit", recipe=recipe)
    assert run_snippets(tmp_path / "control", monkeypatch, capsys) == 3 + recipe
    assert "reinit (seed 42, rules documented)" in capsys.readouterr().out
    assert ("trust_remote_code=True" in card_of(tmp_path / "control")) is not recipe


def test_the_snippets_of_a_base_run(base, tmp_path, monkeypatch, capsys):
    hf_perturb.convert_checkpoint(base, tmp_path / "converted")
    assert run_snippets(tmp_path / "converted", monkeypatch, capsys) == 3
    assert (tmp_path / "my-resample").is_dir()


@pytest.mark.parametrize("network", ["esm1b", "esm2"])
def test_the_snippets_of_what_is_exported_run(base, tmp_path, monkeypatch, capsys):
    create_variant(base, tmp_path / "control", "resample")
    for source in ("base", "control"):
        hf_perturb.export_checkpoint(tmp_path / source, tmp_path / f"{source}-out", "transformers")
        text = card_of(tmp_path / f"{source}-out")
        assert "import hf_perturb" not in text
        assert "trust_remote_code" not in text
        assert "stored as EsmForMaskedLM" in text
        assert header_of(text)["pipeline_tag"] == "fill-mask"
        assert run_snippets(tmp_path / f"{source}-out", monkeypatch, capsys) == 3
    assert "'seed': 42" in capsys.readouterr().out


# the cards of the documented checkpoints


@pytest.mark.parametrize("entry", DOCUMENTED, ids=[entry.name for entry in DOCUMENTED])
def test_the_card_of_a_documented_checkpoint(entry):
    text = published_card(entry)
    assert (ROOT / "model_cards" / f"{entry.name}.md").read_text(encoding="utf-8") == text, "run scripts/render.py"
    header = header_of(text)
    assert header["license"] == ("mit" if entry.licence == "MIT" else "other")
    for fact in (entry.url, entry.licence, entry.citation, entry.errata, entry.sha256 or "none is", STUDY):
        assert fact in text
    assert f"| parameters | {entry.parameters:,} |" in text
    rows = re.findall(r"^\| `\S+` \| (\d+) \| (.+) \| (.+) \| (.+) \|$", text, flags=re.MULTILINE)
    also = {row[1].split("`")[1] for row in rows if row[1].startswith("keep; also `")}
    assert also == ({"embeddings", "head"} if entry.sizes.get("model_version") != "ESM-1b" else {"embeddings"})
    shapes = entry.network().shapes
    for column, method in ((1, "reinit"), (2, "resample")):
        touched = sum(int(row[0]) for row in rows if not row[column].startswith("keep"))
        every = sum(int(row[0]) for row in rows if row[column] != "keep")
        assert every == len(make_plan(entry.family, shapes, Perturbation(method, also=PARTS)).steps)
        assert touched == len(make_plan(entry.family, shapes, Perturbation(method)).steps)
        assert f"each method perturbs {touched} of the {len(shapes)} tensors" in text
    other = len(make_plan(entry.family, shapes, Perturbation("reinit", rules="published")).steps)
    own = [(int(n), old if new == "the same" else new) for n, old, _, new in rows if not new.startswith("as `lm_head")]
    assert other == sum(n for n, new in own if not new.startswith("keep"))
    assert len(rows) - len(own) == int(entry.sizes.get("model_version") == "ESM-1b")
    assert f"reinit perturbs {other}." in text


def test_an_installed_package_has_the_templates(tmp_path):
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {f"hf_perturb/model_cards/{file.name}" for file in (ROOT / "model_cards").iterdir()} <= held
    assert not {name for name in held if name.startswith("model_cards/")}
