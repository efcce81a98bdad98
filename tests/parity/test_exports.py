"""Exports for Transformers' own ESM load where our package is not, and compute what ours compute."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from support.models import build_tokenizer
from transformers import EsmForMaskedLM, EsmModel

import hf_perturb
from hf_perturb import Perturbation
from hf_perturb.checkpoints.network import ESM1B
from hf_perturb.perturbation import digest_of
from parity.originals import assert_close, draw_sequences
from parity.sources import CONTACTS, files_of, load_source, source_pair, write_source
from parity.stock import LAYOUTS, stock_model

# what is exported: a network, and what was done to it
SOURCES: dict[str, tuple[str, Perturbation | None]] = {
    "esm1b": ("esm1b", None),
    "esm1v": ("esm1v", None),
    "esm2": ("esm2", None),
    "esm1b reinit": ("esm1b", Perturbation("reinit", seed=1)),
    "esm1v resample": ("esm1v", Perturbation("resample", axis="rows")),
    "esm2 resample": ("esm2", Perturbation("resample")),
    "esm2 reinit, tied": ("esm2", Perturbation("reinit", exclude=["lm_head.weight"])),
}
FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
SEQUENCES = [*draw_sequences((40, 1, 13), "<mask>"), "mkT aXB\tuzo.-"]

# run in a process of its own, with nothing but Transformers
READ = """
import json, sys
from pathlib import Path

sys.modules["hf_perturb"] = None  # whoever imports it fails
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

root, resaved, sequences = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
results = {}
for folder in sorted(root.iterdir()):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(sequences, padding=True, return_tensors="pt")
    model, info = AutoModelForMaskedLM.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    trunk, trunk_info = AutoModel.from_pretrained(folder, output_loading_info=True)
    with torch.no_grad():
        outputs = model(**batch, output_hidden_states=True, output_attentions=True)
        contacts = model.predict_contacts(batch["input_ids"], batch["attention_mask"])
        last = trunk(**batch).last_hidden_state
    model.save_pretrained(resaved / folder.name)
    results[folder.name] = {
        "classes": [type(model).__name__, type(trunk).__name__],
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "missing from the trunk": sorted(trunk_info["missing_keys"]),
        "tied": model.lm_head.decoder.weight is model.esm.embeddings.word_embeddings.weight,
        "config": json.dumps(model.config.to_dict()),
        "batch": dict(batch),
        "specials": [tokenizer.pad_token_id, tokenizer.mask_token_id, tokenizer.model_max_length],
        "logits": outputs.logits,
        "hidden_states": list(outputs.hidden_states),
        "attentions": list(outputs.attentions),
        "contacts": contacts,
        "last": last,
    }
torch.save(results, resaved / "results.pt")
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, SimpleNamespace]:
    """Export every source, and read all of them in one process without our package."""
    root = tmp_path_factory.mktemp("exports")
    places = {name: root / "out" / name.replace(" ", "-").replace(",", "") for name in SOURCES}
    found = {}
    for name, (network, asked) in SOURCES.items():
        source = write_source(tmp_path_factory.mktemp(network), source_pair(network)[1], asked)
        written = hf_perturb.export_checkpoint(source, places[name], "transformers")
        found[name] = SimpleNamespace(
            source=source, out=places[name], written=written, record=asked, resaved=root / "again" / places[name].name
        )
    (root / "again").mkdir()
    arguments = [str(root / "out"), str(root / "again"), json.dumps(SEQUENCES)]
    done = subprocess.run([sys.executable, "-c", READ, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "hf_perturb" not in done.stderr
    results = torch.load(root / "again" / "results.pt", weights_only=True)
    for entry in found.values():
        entry.read = results[entry.out.name]
    return found


@pytest.fixture(params=SOURCES)
def entry(request, exported) -> SimpleNamespace:
    return exported[request.param]


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def test_a_folder_is_whole(entry):
    assert entry.written == (entry.out,)
    assert set(files_of(entry.out)) == FILES
    config = read_config(entry.out)
    assert (config["model_type"], config["architectures"]) == ("esm", ["EsmForMaskedLM"])
    assert "auto_map" not in config  # it would ask for code that is not there
    assert len({path.stat().st_mode for path in entry.out.iterdir()}) == 1


def test_stock_classes_find_every_tensor(entry):
    assert entry.read["classes"] == ["EsmForMaskedLM", "EsmModel"]
    assert entry.read["missing"] == []
    assert entry.read["unexpected"] == []
    # of no ESM has the pooler been trained
    assert [name for name in entry.read["missing from the trunk"] if not name.startswith("pooler.")] == []
    assert entry.read["tied"] is (entry.record is None or "lm_head.weight" in entry.record.exclude)


@torch.no_grad()
def test_stock_classes_compute_the_same(entry):
    model, read = load_source(entry.source), entry.read
    input_ids, mask = read["batch"]["input_ids"], read["batch"]["attention_mask"]
    inside = mask.bool()
    ours = model(input_ids, mask, output_hidden_states=True, output_attentions=True)
    assert_close(read["logits"][inside], ours.logits[inside], "logits")
    for i, (one, other) in enumerate(zip(read["hidden_states"], ours.hidden_states, strict=True)):
        assert_close(one[inside], other[inside], f"hidden state {i}")
    assert_close(read["last"][inside], ours.hidden_states[-1][inside], "representation")
    both = inside[:, None, :, None] & inside[:, None, None, :]
    for i, (one, other) in enumerate(zip(read["attentions"], ours.attentions, strict=True)):
        assert_close(one * both, other * both, f"attentions of layer {i}")
    if model.contact_head is None:
        assert torch.equal(read["contacts"], torch.full_like(read["contacts"], 0.5))
        return
    lengths = mask.sum(-1) - 2
    for one, other, n in zip(read["contacts"], model.predict_contacts(input_ids, mask), lengths, strict=True):
        assert_close(one[:n, :n], other[:n, :n], f"contacts of {n} residues")


def test_the_tokenizer_is_ours(entry):
    tokenizer = build_tokenizer(ESM1B)
    expected = tokenizer(SEQUENCES, padding=True, return_tensors="pt")
    assert entry.read["batch"].keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(entry.read["batch"][key], value), key
    pad, mask, longest = entry.read["specials"]
    assert (pad, mask) == (tokenizer.pad_token_id, tokenizer.mask_token_id)
    rotary = read_config(entry.out)["position_embedding_type"] == "rotary"
    assert longest > 10**6 if rotary else longest == 1024


def test_the_record_goes_along(entry):
    expected = read_config(entry.source).get("perturbation")
    assert read_config(entry.out).get("perturbation") == expected
    assert json.loads(entry.read["config"]).get("perturbation") == expected
    if entry.record is None:
        assert expected is None
        assert "digest" not in read_config(entry.out), "stock Transformers would keep it after training"
    else:
        assert Perturbation.parse(expected) == entry.record
        assert expected["digest"] is not None
        assert expected["base"]["digest"] == read_config(entry.source.parent / "base")["digest"]


def test_a_contact_head_that_is_absent_is_marked(entry):
    weights, config = load_file(entry.out / "model.safetensors"), read_config(entry.out)
    absent = config["position_embedding_type"] == "absolute" and not config["emb_layer_norm_before"]
    assert config["contact_head"] is not absent
    for name in CONTACTS:
        assert (not weights[f"esm.{name}"].any()) is absent


def test_the_card_says_what_it_is(entry):
    card = ModelCard.load(entry.out / "README.md")
    config = read_config(entry.source)
    assert card.data.tags[:2] == ["hf-perturb", "protein"]
    assert (config.get("perturbation") or config)["digest"] in card.text
    assert str(entry.source.parent) not in card.text


@pytest.mark.parametrize("place", ["out", "resaved"])
def test_converting_back_gives_the_same_weights_and_record(entry, place, tmp_path):
    """Also of what Transformers has written of the export."""
    done = hf_perturb.convert_checkpoint(getattr(entry, place), tmp_path / "back")
    ours, back = load_source(entry.source), load_source(tmp_path / "back")
    assert done.origin == "transformers"
    assert done.digest == digest_of(ours.state_dict()) == digest_of(back.state_dict())
    assert list(back.state_dict()) == list(ours.state_dict())
    for key in ("perturbation", "digest", "contact_head", "tie_word_embeddings", "model_version"):
        assert read_config(tmp_path / "back").get(key) == read_config(entry.source).get(key), key


def test_the_export_is_loaded_by_our_classes(entry):
    model, info = hf_perturb.FairEsmForMaskedLM.from_pretrained(entry.out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ours = load_source(entry.source)
    assert digest_of(model.state_dict()) == digest_of(ours.state_dict())
    assert model.config.perturbation == ours.config.perturbation == entry.record
    if entry.record is not None:
        with pytest.raises(hf_perturb.StackedPerturbationError, match="do not stack"):
            hf_perturb.FairEsmForMaskedLM.from_pretrained(entry.out, perturbation={"method": "reinit", "seed": 99})


def test_an_export_read_by_stock_classes_can_be_wrapped(entry):
    stock = EsmForMaskedLM.from_pretrained(entry.out)
    wrapped, ours = hf_perturb.wrap(stock), load_source(entry.source)
    assert wrapped.config.perturbation == ours.config.perturbation
    assert wrapped.config.tie_word_embeddings == ours.config.tie_word_embeddings
    for key, tensor in ours.state_dict().items():
        assert torch.equal(wrapped.state_dict()[key], tensor), key


@torch.no_grad()
def test_a_trunk(tmp_path):
    source_pair("esm2")[1].save_pretrained(tmp_path / "whole")
    hf_perturb.FairEsmModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "trunk")
    hf_perturb.export_checkpoint(tmp_path / "trunk", tmp_path / "out", "transformers")
    assert read_config(tmp_path / "out")["architectures"] == ["EsmModel"]
    stock, info = EsmModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert sorted(info["missing_keys"]) == ["pooler.dense.bias", "pooler.dense.weight"]
    assert not info["unexpected_keys"]
    ours = hf_perturb.FairEsmModel.from_pretrained(tmp_path / "trunk")
    batch = build_tokenizer(ESM1B)(SEQUENCES, padding=True, return_tensors="pt")
    inside = batch["attention_mask"].bool()
    assert_close(stock(**batch).last_hidden_state[inside], ours(**batch).last_hidden_state[inside], "representation")
    done = hf_perturb.convert_checkpoint(tmp_path / "out", tmp_path / "back")
    assert (done.architecture, done.digest) == ("FairEsmModel", digest_of(ours.state_dict()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_types_are_kept(dtype, tmp_path):
    source_pair("esm2")[1].to(dtype).save_pretrained(tmp_path / "base")
    hf_perturb.export_checkpoint(tmp_path / "base", tmp_path / "out", "transformers")
    stock, base = EsmForMaskedLM.from_pretrained(tmp_path / "out"), load_source(tmp_path / "base")
    assert stock.dtype == base.dtype == dtype
    assert torch.equal(stock.esm.encoder.layer[1].output.dense.weight, base.layers[1].fc2.weight)
    done = hf_perturb.convert_checkpoint(tmp_path / "out", tmp_path / "back")
    assert done.digest == digest_of(base.state_dict())


@pytest.mark.parametrize("name", ["esm1b", "esm2"])
def test_from_what_transformers_wrote(name, tmp_path):
    """A stock folder in a layout of old comes out in one that every release reads."""
    stock = stock_model(name)
    LAYOUTS["pickled"](stock, tmp_path / "stock")
    hf_perturb.export_checkpoint(tmp_path / "stock", tmp_path / "out", "transformers")
    read, info = EsmForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for key, tensor in stock.state_dict().items():
        assert torch.equal(read.state_dict()[key], tensor), key
