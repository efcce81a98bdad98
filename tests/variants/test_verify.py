"""`verify`: what is as recorded passes, and nothing else does: a changed bit is found, and named with the base."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import struct
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given as given_any, settings, strategies as st
from parity.original_files import original_data, write_original
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.models import TIED, model_class, small_model
from support.refusals import network as original_pair, tree
from transformers import AutoModelForMaskedLM

import hf_perturb
from hf_perturb import create_variant, verify_variant
from hf_perturb.cli import main
from hf_perturb.perturbation import digest_of
from hf_perturb.variants.verify import Difference

NETWORKS = ("esm1", "esm1b", "esm2", "carp")
ASKED = {
    "reinit": {"method": "reinit"},
    "resample": {"method": "resample", "seed": 5},
    "rows": {"method": "resample", "axis": "rows", "exclude": ["*.bias"]},
    "reinit-published": {"method": "reinit", "rules": "published"},
    "resample-published": {"method": "resample", "rules": "published"},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Path:
    """A folder of bases by the names of the networks."""
    folder = tmp_path_factory.mktemp("bases")
    for network in NETWORKS:
        small_model(network).save_pretrained(folder / network)
    return folder


@pytest.fixture
def base(bases, network) -> Path:
    return bases / network


@pytest.fixture(scope="module")
def small(bases, tmp_path_factory) -> Path:
    """A variant of the ESM-1b base that tests copy and spoil."""
    folder = tmp_path_factory.mktemp("small") / "variant"
    create_variant(bases / "esm1b", folder, "resample")
    return folder


@pytest.fixture
def spoiled(small, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(small, tmp_path / "variant"))


def assert_whole(path: Path, *bases: Path | str | None, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Assert that a variant is as recorded, with each base, `None` for none, and that nothing is written."""
    before = tree(path) if Path(path).exists() else None
    weights = load_file(Path(path) / "model.safetensors") if weights is None else weights
    for base in bases or (None,):
        found = verify_variant(path, base)
        assert found.problems == found.differences == ()
        assert found.ok
        assert found.digest == found.recorded == digest_of(weights)
        assert (found.base is None) == (base is None)
    assert before is None or tree(path) == before


def edit_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in {**config, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder: Path, edit) -> None:
    """Write the tensors as a function leaves them, under the metadata that were there."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata)


def problem_of(*arguments) -> str:
    """Return the one problem that is found."""
    found = verify_variant(*arguments)
    assert not found.ok
    [problem] = found.problems
    return problem


# what is as recorded


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_a_variant_is_as_recorded_with_its_base_and_without(base, asked, tmp_path):
    create_variant(base, tmp_path / "out", asked)
    assert_whole(tmp_path / "out", None, base)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_so_is_one_of_another_type(network, dtype, tmp_path):
    small_model(network).to(dtype).save_pretrained(tmp_path / "base")
    for method in ("reinit", "resample"):
        create_variant(tmp_path / "base", tmp_path / method, method)
        assert_whole(tmp_path / method, None, tmp_path / "base")


def test_so_is_every_head(network, head, tmp_path):
    small_model(network, head).save_pretrained(tmp_path / "base")
    create_variant(tmp_path / "base", tmp_path / "out", "resample")
    assert_whole(tmp_path / "out", None, tmp_path / "base")


@pytest.mark.parametrize("network", TIED)
@pytest.mark.parametrize("keys", [{}, {"exclude": ["lm_head.weight"]}], ids=["untied", "tied"])
@pytest.mark.parametrize("method", ["reinit", "resample"])
def test_so_is_a_head_of_its_own(bases, network, keys, method, tmp_path):
    create_variant(bases / network, tmp_path / "out", {"method": method, **keys})
    untied = "lm_head.weight" in load_file(tmp_path / "out" / "model.safetensors")
    assert untied == (not keys)
    assert_whole(tmp_path / "out", None, bases / network)


def test_so_are_shards(base, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_perturb.variants.shards.MAX_SHARD_SIZE", 40_000)
    create_variant(base, tmp_path / "ours", "resample")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs", max_shard_size=40_000)
    state = model.state_dict()
    shards = {folder: sorted((tmp_path / folder).glob("*.safetensors")) for folder in ("ours", "theirs")}
    for folder, files in shards.items():
        assert len(files) > 2
        assert_whole(tmp_path / folder, None, base, weights=state)
    # and a bit in the last of ours
    last = shards["ours"][-1]
    edited = bytearray(last.read_bytes())
    edited[-1] ^= 1
    last.write_bytes(edited)
    assert "the weights have digest" in problem_of(tmp_path / "ours")
    assert len(verify_variant(tmp_path / "ours", base).differences) == 1
    # and one that says another record of itself
    one = shards["theirs"][1]
    save_file(load_file(one), one, {"format": "pt", "perturbation": '{"method": "reinit"}'})
    assert problem_of(tmp_path / "theirs").startswith(f"{one.name} says of itself")


def test_so_is_a_base_with_a_digest(base, tmp_path):
    hf_perturb.convert_checkpoint(base, tmp_path / "converted")
    assert_whole(tmp_path / "converted")
    assert verify_variant(tmp_path / "converted").to_dict()["ok"] is True
    edit_weights(tmp_path / "converted", lambda tensors: next(iter(tensors.values())).mul_(-1))
    assert "the record says" in problem_of(tmp_path / "converted")
    with pytest.raises(hf_perturb.CheckpointError, match=r"is no variant: its config\.json records no perturbation"):
        verify_variant(tmp_path / "converted", base)


def test_so_is_the_demo_and_what_is_made_of_it(tmp_path):
    create_variant("demo", tmp_path / "out", "reinit")
    assert_whole(tmp_path / "out", None, "demo")
    assert_whole("demo", weights=load_file(hf_perturb.demo.folder() / "model.safetensors"))


@pytest.mark.parametrize("network", TIED)
def test_so_is_what_stock_transformers_loads(bases, network, tmp_path):
    create_variant(bases / network, tmp_path / "out", "resample")
    hf_perturb.export_checkpoint(tmp_path / "out", tmp_path / "stock", "transformers")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert_whole(tmp_path / "stock", None, bases / network, weights=weights)
    edit_weights(tmp_path / "stock", lambda tensors: tensors["esm.encoder.layer.1.output.dense.bias"].mul_(-1))
    assert "the weights have digest" in problem_of(tmp_path / "stock")
    assert [d.name for d in verify_variant(tmp_path / "stock", bases / network).differences] == ["layers.1.fc2.bias"]


@pytest.mark.parametrize("name", ["esm1", "carp"])
def test_so_is_what_was_made_of_an_original(name, tmp_path):
    (tmp_path / "original").mkdir()
    original = write_original(tmp_path / "original", name, original_data(original_pair(name)))
    create_variant(original, tmp_path / "out", "resample")
    assert_whole(tmp_path / "out", None, original)
    with pytest.raises(hf_perturb.CheckpointError, match="a file records no digest"):
        verify_variant(original)


def test_weights_that_torch_saved_are_not_believed(spoiled, bases):
    weights = load_file(spoiled / "model.safetensors")
    torch.save(weights, spoiled / "pytorch_model.bin")
    (spoiled / "model.safetensors").unlink()
    assert "weights in a pickle, which cannot say so themselves" in problem_of(spoiled)
    weights["layers.0.fc1.bias"][3] += 1
    torch.save(weights, spoiled / "pytorch_model.bin")
    [difference] = verify_variant(spoiled, bases / "esm1b").differences
    assert (difference.name, difference.elements) == ("layers.0.fc1.bias", 1)


def test_so_is_what_was_loaded_and_saved_again(base, network, tmp_path):
    create_variant(base, tmp_path / "out", "resample")
    model_class(network).from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "again")
    assert_whole(tmp_path / "again", None, base)


def test_nan_that_is_kept_is_no_difference(tmp_path):
    model = small_model("carp")
    bits = torch.tensor([0x7FC00001, -0x400000, 0x7F800001], dtype=torch.int32).view(torch.float32)
    with torch.no_grad():
        model.model.last_norm.bias[:3] = bits  # kept
        model.model.embedder.layers[0].conv.bias[:3] = bits  # shuffled
        model.model.last_norm.bias[3] = math.inf
    model.save_pretrained(tmp_path / "base")
    create_variant(tmp_path / "base", tmp_path / "out", "resample")
    assert_whole(tmp_path / "out", None, tmp_path / "base")
    edit_weights(tmp_path / "out", lambda tensors: tensors["model.last_norm.bias"].view(torch.int32)[1].add_(1))
    [difference] = verify_variant(tmp_path / "out", tmp_path / "base").differences
    assert difference == Difference("model.last_norm.bias", 1, None)


# recipes


def test_a_recipe_is_rebuilt(base, tmp_path):
    record = create_variant(base, tmp_path / "recipe", "resample", recipe=True)
    create_variant(base, tmp_path / "out", "resample")
    shutil.copytree(base, tmp_path / "moved")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    for given in (None, base, tmp_path / "moved"):
        found = verify_variant(tmp_path / "recipe", given)
        assert (found.ok, found.digest, found.recorded) == (True, digest_of(weights), record.digest)
        assert found.base == str(given or base)
    assert not list((tmp_path / "recipe").glob("*.safetensors"))


def test_a_recipe_of_another_base_is_found(tmp_path):
    small_model("carp").save_pretrained(tmp_path / "base")
    record = create_variant(tmp_path / "base", tmp_path / "recipe", "resample", recipe=True)
    small_model("carp", seed=1).save_pretrained(tmp_path / "base")
    for given in (None, tmp_path / "base"):
        found = verify_variant(tmp_path / "recipe", given)
        base_differs, differs = found.problems
        assert base_differs.startswith(f"the base {tmp_path / 'base'} has digest blake3:")
        assert base_differs.endswith(f"the record says {record.base.digest}")
        assert differs == f"the weights have digest {found.digest}, the record says {record.digest}"
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(hf_perturb.CheckpointError, match=r"the recipe '.*recipe' needs its base '.*base': .*no such"):
        verify_variant(tmp_path / "recipe")


def test_a_recipe_with_another_digest_is_found(bases, tmp_path):
    record = create_variant(bases / "carp", tmp_path / "recipe", "reinit", recipe=True)
    other = "blake3:" + 64 * "0"
    edit_config(tmp_path / "recipe", perturbation={**record.to_dict(), "digest": other})
    assert problem_of(tmp_path / "recipe") == f"the weights have digest {record.digest}, the record says {other}"


@pytest.mark.parametrize("given", [False, True], ids=["alone", "with its base"])
def test_the_sizes_of_a_recipe_count(bases, tmp_path, given):
    create_variant(bases / "esm1b", tmp_path / "recipe", "reinit", recipe=True)
    edit_config(tmp_path / "recipe", layer_norm_eps=1e-3)
    problem = problem_of(tmp_path / "recipe", *([bases / "esm1b"] if given else []))
    assert problem == "config.json: layer_norm_eps is 0.001, the base has 1e-05"


# a flipped bit


def places(folder: Path) -> tuple[int, dict[str, tuple[int, int]]]:
    """Return where the tensors of a file begin, and the first and last byte of each."""
    data = (folder / "model.safetensors").read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    del header["__metadata__"]
    return begin, {name: tuple(begin + end for end in entry["data_offsets"]) for name, entry in header.items()}


def flip(folder: Path, byte: int, bit: int) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[byte] ^= 1 << bit
    (folder / "model.safetensors").write_bytes(data)


@pytest.fixture(scope="module")
def flippable(bases, tmp_path_factory) -> dict[str, Path]:
    """Copies to flip bits in, which are flipped back."""
    folder, copies = tmp_path_factory.mktemp("flipped"), {}
    for network, dtype in (("esm1", torch.float32), ("carp", torch.bfloat16)):
        small_model(network).to(dtype).save_pretrained(folder / f"{network}-base")
        create_variant(folder / f"{network}-base", folder / network, "resample")
        copies[network] = folder / network
    return copies


unhurried = partial(settings, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("network", ["esm1", "carp"])
@given_any(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@example(place=0.0, bit=0)
@example(place=1 - 1e-12, bit=7)
@unhurried(max_examples=25)
def test_a_flipped_bit_anywhere_is_found_and_named(flippable, network, place, bit):
    folder = flippable[network]
    begin, tensors = places(folder)
    size = (folder / "model.safetensors").stat().st_size
    byte = begin + int(place * (size - begin))
    [(name, (first, _))] = [(name, ends) for name, ends in tensors.items() if ends[0] <= byte < ends[1]]
    before = load_file(folder / "model.safetensors")[name].flatten().clone()
    flip(folder, byte, bit)
    try:
        after = load_file(folder / "model.safetensors")[name].flatten().clone()  # no map of what is flipped back
        found, rebuilt = verify_variant(folder), verify_variant(folder, f"{folder}-base")
    finally:
        flip(folder, byte, bit)
    entry = (byte - first) // before.element_size()
    largest = abs(float(before[entry]) - float(after[entry]))
    assert not found.ok
    [problem] = found.problems
    assert problem == f"the weights have digest {found.digest}, the record says {found.recorded}"
    assert not rebuilt.ok
    assert rebuilt.differences == (Difference(name, 1, largest if math.isfinite(largest) else None),)
    assert rebuilt.digest == found.digest != found.recorded == rebuilt.recorded
    named, digest = rebuilt.problems
    assert named == f"1 tensors are not what the base and the record give: {name}"
    assert digest == problem


def assert_found(folder: Path) -> None:
    """Assert that there is an error of ours, or a problem."""
    try:
        found = verify_variant(folder)
    except hf_perturb.CheckpointError:
        return
    assert found.problems


@given_any(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@unhurried(max_examples=40)
def test_a_flipped_bit_in_the_header_is_found(flippable, place, bit):
    folder = flippable["carp"]
    byte = int(place * places(folder)[0])
    flip(folder, byte, bit)
    try:
        assert_found(folder)
    finally:
        flip(folder, byte, bit)


def test_a_flipped_bit_in_the_digest_that_a_header_states_is_found(flippable):
    folder = flippable["carp"]
    byte = (folder / "model.safetensors").read_bytes().index(b'"digest":"blake3:') + len('"digest":"blake3:')
    for place in (byte, byte + 63):
        flip(folder, place, 0)
        try:
            assert verify_variant(folder).problems == (
                "model.safetensors were not written together, or one is damaged",
            )
        finally:
            flip(folder, place, 0)


def test_every_flipped_bit_of_the_metadata_and_of_the_length_is_found(flippable):
    """Where most of the header is that is not about a tensor."""
    folder = flippable["carp"]
    data = (folder / "model.safetensors").read_bytes()
    end = data.index(b"}", data.index(b'"perturbation"'))
    for byte in [*range(8), *range(8, end + 4, 5)]:
        for bit in (byte % 8, (byte + 3) % 8):
            flip(folder, byte, bit)
            try:
                assert_found(folder)
            finally:
                flip(folder, byte, bit)
    assert (folder / "model.safetensors").read_bytes() == data
    for inside in (b'"format"', b'"pt"', b'"perturbation"', b'\\"method\\"', b'\\"seed\\"'):
        flip(folder, byte := data.index(inside) + len(inside) // 2, 1)
        try:
            assert_found(folder)
        finally:
            flip(folder, byte, 1)


@pytest.mark.parametrize(
    ("file", "size"),
    [("model.safetensors", 0), ("model.safetensors", 7), ("model.safetensors", -1), ("config.json", -9)],
)
def test_a_file_that_is_cut_short_is_an_error(spoiled, file, size):
    whole = (spoiled / file).read_bytes()
    (spoiled / file).write_bytes(whole[:size])
    with pytest.raises(hf_perturb.CheckpointError, match=file.replace(".", r"\.")):
        verify_variant(spoiled)


# what else may be wrong


@pytest.mark.parametrize("given", [False, True], ids=["alone", "with its base"])
def test_a_config_with_another_record_than_the_file_is_found(spoiled, bases, given):
    record = json.loads((spoiled / "config.json").read_text())["perturbation"]
    edit_config(spoiled, perturbation={**record, "seed": 43})
    found = verify_variant(spoiled, *([bases / "esm1b"] if given else []))
    assert found.problems[-1].startswith("model.safetensors says of itself")
    assert "43" in found.problems[-1]
    # with the base, the tensors tell as well; every one that was shuffled
    alone = ("embed_tokens.weight", "contact_head.regression.bias")  # kept, and of one entry
    shuffled = [name for name in load_file(spoiled / "model.safetensors") if name not in alone]
    assert [difference.name for difference in found.differences] == (sorted(shuffled) if given else [])


@pytest.mark.parametrize("metadata", ["no JSON", "[1]", "{", '{"method": "reinit"}', "null", "NaN", 5000 * "["])
def test_metadata_that_are_no_record_are_found(spoiled, metadata):
    tensors = load_file(spoiled / "model.safetensors")
    save_file(tensors, spoiled / "model.safetensors", {"format": "pt", "perturbation": metadata})
    assert problem_of(spoiled).startswith("model.safetensors says of itself")


def test_a_variant_that_calls_itself_a_base_is_found(spoiled):
    digest = json.loads((spoiled / "config.json").read_text())["perturbation"]["digest"]
    edit_config(spoiled, perturbation=None, digest=digest)
    assert problem_of(spoiled).startswith("model.safetensors says of itself")


def test_a_variant_without_tokenizer_is_no_problem(spoiled):
    (spoiled / "tokenizer.json").unlink()
    assert verify_variant(spoiled).ok


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("layer_norm_eps", 1e-3, "config.json: layer_norm_eps is 0.001, the base has 1e-05"),
        ("token_dropout", False, "config.json: token_dropout is False, the base has True"),
    ],
)
def test_a_network_that_runs_otherwise_than_the_base_is_found(spoiled, bases, key, value, message):
    edit_config(spoiled, **{key: value})
    assert problem_of(spoiled, bases / "esm1b") == message


def test_swapped_tensors_are_found(spoiled, bases):
    def swap(tensors):
        one, other = "layers.0.fc1.weight", "layers.1.fc1.weight"
        tensors[one], tensors[other] = tensors[other].clone(), tensors[one].clone()

    before = load_file(spoiled / "model.safetensors")
    edit_weights(spoiled, swap)
    assert "the weights have digest" in problem_of(spoiled)
    found = verify_variant(spoiled, bases / "esm1b")
    one, other = before["layers.0.fc1.weight"], before["layers.1.fc1.weight"]
    largest = float((one - other).abs().max())
    assert [(d.name, d.elements) for d in found.differences] == [
        ("layers.0.fc1.weight", int((one != other).sum())),
        ("layers.1.fc1.weight", int((one != other).sum())),
    ]
    assert all(d.largest == pytest.approx(largest, rel=1e-7) for d in found.differences)


def test_a_tensor_of_another_type_is_found(spoiled, bases):
    edit_weights(spoiled, lambda tensors: tensors.update({k: t.half() for k, t in tensors.items() if "fc1.bias" in k}))
    assert "the weights have digest" in problem_of(spoiled)
    found = verify_variant(spoiled, bases / "esm1b")
    assert found.differences == tuple(Difference(f"layers.{i}.fc1.bias", 64, None) for i in range(3))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("method", ["reinit", "resample", "gaussian"])
def test_a_variant_that_was_cast_is_what_its_base_gives_in_that_type(bases, method, dtype, tmp_path):
    hf_perturb.create_variant(bases / "esm1b", tmp_path / "whole", method)
    hf_perturb.convert_checkpoint(tmp_path / "whole", tmp_path / "cast", dtype=dtype)
    assert verify_variant(tmp_path / "cast", bases / "esm1b").ok
    # one entry by the least that the type can tell
    edit_weights(tmp_path / "cast", lambda tensors: tensors["layers.0.fc1.bias"].view(-1)[:1].mul_(1.01))
    assert [each.name for each in verify_variant(tmp_path / "cast", bases / "esm1b").differences] == [
        "layers.0.fc1.bias"
    ]


@pytest.mark.parametrize(("method", "is_same"), [("reinit", True), ("resample", True), ("gaussian", False)])
def test_a_variant_that_was_made_of_a_cast_is_told_where_that_is_another(bases, method, is_same, tmp_path):
    """A gaussian of a cast has other moments, so the base in another type cannot show it."""
    model = hf_perturb.FairEsmForMaskedLM.from_pretrained(bases / "esm1b", dtype=torch.bfloat16, perturbation=method)
    model.save_pretrained(tmp_path / "made")
    found = verify_variant(tmp_path / "made", bases / "esm1b")
    assert found.ok == is_same
    assert any("the base is float32: a gaussian is drawn after" in problem for problem in found.problems) != is_same


def test_what_changed_says_so_without_any_digest(spoiled, bases):
    """As one that was cast and trained where the package is not installed."""
    save_file(load_file(spoiled / "model.safetensors"), spoiled / "model.safetensors", {"format": "pt"})
    edit_config(spoiled, perturbation={"method": "resample", "changed": True})
    for given in ((), (bases / "esm1b",)):
        found = verify_variant(spoiled, *given)
        assert (found.ok, found.changed, found.recorded) == (False, "resample (seed 42, rules documented)", None)


def test_a_kept_tensor_that_changed_is_found(spoiled, bases):
    edit_weights(spoiled, lambda tensors: tensors["embed_tokens.weight"][3, :2].add_(0.5))
    [difference] = verify_variant(spoiled, bases / "esm1b").differences
    assert difference == Difference("embed_tokens.weight", 2, pytest.approx(0.5, rel=1e-5))


@pytest.mark.parametrize("given", [False, True], ids=["alone", "with its base"])
@pytest.mark.parametrize("edit", [lambda t: t.pop("layers.0.fc1.bias"), lambda t: t.update(extra=torch.ones(1))])
def test_tensors_that_are_missing_or_left_over_are_an_error(spoiled, bases, given, edit):
    edit_weights(spoiled, edit)
    with pytest.raises(hf_perturb.CheckpointError, match=r"(missing tensors: layers|does not have: extra)"):
        verify_variant(spoiled, *([bases / "esm1b"] if given else []))


# with the wrong base, or none


def test_a_base_of_other_sizes_is_an_error(spoiled, bases, tmp_path):
    small_model("esm1b", num_hidden_layers=2).save_pretrained(tmp_path / "shallow")
    small_model("esm1b", intermediate_size=32).save_pretrained(tmp_path / "narrow")
    for wrong in (tmp_path / "shallow", tmp_path / "narrow", bases / "esm1", bases / "carp", bases / "esm2"):
        with pytest.raises(hf_perturb.CheckpointError, match=r"variant' is no variant of '.*': there are tensors that"):
            verify_variant(spoiled, wrong)


def test_a_base_of_other_weights_is_told_from_its_digest(small, bases, tmp_path):
    model = small_model("esm1b")
    with torch.no_grad():
        model.layers[1].fc1.bias[7] += 1
        model.embed_tokens.weight[5, 5] -= 2
    model.save_pretrained(tmp_path / "other")
    found = verify_variant(small, tmp_path / "other")
    assert found.digest == found.recorded
    record = json.loads((small / "config.json").read_text())["perturbation"]
    base_differs, differs = found.problems
    other = digest_of(load_file(tmp_path / "other" / "model.safetensors"))
    assert (
        base_differs == f"the base {tmp_path / 'other'} has digest {other}, the record says {record['base']['digest']}"
    )
    # the head of a variant is the embedding of its base, shuffled
    names = ["embed_tokens.weight", "layers.1.fc1.bias", "lm_head.weight"]
    assert differs == f"3 tensors are not what the base and the record give: {', '.join(names)}"
    assert [d.name for d in found.differences] == names
    assert found.differences[0].elements == 1
    assert found.differences[0].largest == pytest.approx(2)


def test_a_base_that_is_a_variant_is_an_error(small):
    with pytest.raises(hf_perturb.StackedPerturbationError, match="start from its base"):
        verify_variant(small, small)


def test_a_variant_that_was_trained_is_compared_with_its_base(bases, network, tmp_path):
    create_variant(bases / network, tmp_path / "out", "resample")
    model = model_class(network).from_pretrained(tmp_path / "out")
    name, parameter = list(model.named_parameters())[5]
    with torch.no_grad():
        parameter.view(-1)[:2] += 0.25
    model.save_pretrained(tmp_path / "trained")
    record = json.loads((tmp_path / "out" / "config.json").read_text())["perturbation"]
    found = verify_variant(tmp_path / "trained")
    assert (found.ok, found.problems, found.recorded) == (False, (), record["digest"])
    assert found.changed == "resample (seed 42, rules documented)"
    found = verify_variant(tmp_path / "trained", bases / network)
    assert (found.ok, found.recorded) == (False, record["digest"])
    assert found.differences == (Difference(name, 2, pytest.approx(0.25, rel=1e-4)),)
    assert found.problems == (f"1 tensors are not what the base and the record give: {name}",)


def test_a_variant_that_lost_its_digest_is_what_the_base_gives(spoiled, bases):
    record = json.loads((spoiled / "config.json").read_text())["perturbation"]
    edit_weights_metadata(spoiled, None)
    edit_config(spoiled, perturbation={key: value for key, value in record.items() if key not in ("digest", "base")})
    found = verify_variant(spoiled, bases / "esm1b")
    assert (found.ok, found.recorded, found.digest) == (True, None, record["digest"])


def edit_weights_metadata(folder: Path, metadata: dict[str, str] | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, folder / "model.safetensors", {"format": "pt", **(metadata or {})})


def test_nothing_to_compare_with_is_an_error(base):
    with pytest.raises(hf_perturb.CheckpointError, match=r"records no digest .*give its base"):
        verify_variant(base)
    with pytest.raises(hf_perturb.CheckpointError, match="is no variant"):
        verify_variant(base, base)


# the command


def verified(capsys, *words: object) -> tuple[int, str, str]:
    code = main(["verify", *map(str, words)])
    streams = capsys.readouterr()
    return code, streams.out, streams.err


def as_json(value) -> object:
    return json.loads(json.dumps(value.to_dict()))


def test_the_command_says_that_all_is_well(small, bases, capsys):
    digest = verify_variant(small).digest
    assert verified(capsys, small) == (0, f"{small}: weights as recorded\n{digest}\n", "")
    base = bases / "esm1b"
    text = f"{small}: weights as recorded, every tensor as {base} and the record give it\n{digest}\n"
    assert verified(capsys, small, "--base", base, "--jobs", 1) == (0, text, "")


def test_the_command_prints_json(small, bases, spoiled, capsys):
    edit_weights(spoiled, lambda tensors: tensors["layers.0.fc1.bias"][:2].copy_(torch.tensor([math.nan, 1])))
    base = bases / "esm1b"
    for folder, code in ((small, 0), (spoiled, 1)):
        for given in ([], ["--base", base]):
            ended, out, err = verified(capsys, folder, *given, "--json")
            assert (ended, err) == (code, "")
            said = json.loads(out, parse_constant=pytest.fail)
            assert said == as_json(verify_variant(folder, *given[1:]))
            keys = ["path", "digest", "recorded", "base", "differences", "problems", "nonfinite", "changed", "rebuilt"]
            assert list(said) == ["ok", *keys]
            assert said["ok"] == (code == 0)
            assert said["nonfinite"] == (["layers.0.fc1.bias"] if folder == spoiled else [])
            assert said["rebuilt"] is False
    assert said["differences"] == [{"name": "layers.0.fc1.bias", "elements": 2, "largest": None}]


@pytest.mark.parametrize("given", [False, True])
def test_the_command_says_that_a_recipe_has_no_weights(tmp_path, capsys, given):
    """So it does of a control whose weights are not there."""
    for name in ("recipe", "lost"):
        create_variant("demo", tmp_path / name, "gaussian", recipe=name == "recipe")
    (tmp_path / "lost" / "model.safetensors").unlink()
    words = ["--base", "demo"] if given else []
    for name in ("recipe", "lost"):
        path = tmp_path / name
        digest = verify_variant(path).digest
        text = f"{path}: no weights here, as in a recipe; built again from demo they are as recorded\n{digest}\n"
        assert verified(capsys, path, *words) == (0, text, "")
        assert json.loads(verified(capsys, path, *words, "--json")[1])["rebuilt"] is True


@pytest.mark.parametrize("given", [False, True])
def test_the_command_tells_of_weights_that_are_not_numbers(tmp_path, capsys, given):
    model = small_model("carp")
    with torch.no_grad():
        model.model.last_norm.bias[3] = math.inf
    model.save_pretrained(tmp_path / "base")
    create_variant(tmp_path / "base", tmp_path / "out", "resample")
    code, out, err = verified(capsys, tmp_path / "out", *(["--base", tmp_path / "base"] if given else []))
    assert (code, "as recorded" in out) == (0, True)
    assert err == f"hf-perturb verify: note: {tmp_path / 'out'}: NaN or infinite weights in model.last_norm.bias\n"


def test_the_command_names_what_differs(bases, spoiled, capsys):
    before = verify_variant(spoiled).digest

    def edit(tensors):
        tensors["layers.0.fc1.bias"][0] = math.nan
        tensors["embed_tokens.weight"].fill_(0)[0, 0] = struct.unpack("f", struct.pack("f", 0.1))[0]

    embedding = load_file(bases / "esm1b" / "model.safetensors")["embed_tokens.weight"]
    edit_weights(spoiled, edit)
    code, out, err = verified(capsys, spoiled)
    digest = digest_of(load_file(spoiled / "model.safetensors"))
    problem = f"{spoiled}: the weights have digest {digest}, the record says {before}"
    note = f"hf-perturb verify: note: {spoiled}: NaN or infinite weights in layers.0.fc1.bias\n"
    assert (code, out, err) == (1, f"{problem}\n", note)
    code, out, err = verified(capsys, spoiled, "--base", bases / "esm1b")
    assert (code, err) == (1, note)
    after = torch.zeros_like(embedding)
    after[0, 0] = 0.1
    largest = float((embedding.double() - after.double()).abs().max())
    assert out.splitlines() == [
        f"embed_tokens.weight: {int((embedding != after).sum())} elements differ, by {largest:.6g} at most",
        "layers.0.fc1.bias: 1 elements differ, by not a number at most",
        f"{spoiled}: 2 tensors are not what the base and the record give: embed_tokens.weight, layers.0.fc1.bias",
        problem,
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no-such-variant"], "'no-such-variant': no such file or folder, and not to be had from the Hub"),
        (["/no/such/variant"], "/no/such/variant: no such file or folder"),
        (["EMPTY"], "no config.json in it"),
        (["carp_640M"], "is a name of the catalogue"),
        (["variant.pt"], "variant.pt: no such file"),
        (["SMALL/model.safetensors"], "a file records no digest; allowed: the folder of a variant"),
        (["SMALL", "--base", "no-such-base"], "'no-such-base': no such file or folder"),
        (["SMALL", "--base", "SMALL"], "is a variant already"),
        (["SMALL", "--base", "demo"], "is no variant of 'demo'"),
        (["BASE"], "records no digest"),
        (["BASE", "--json"], "records no digest"),
    ],
)
def test_what_cannot_be_verified_exits_1(small, bases, tmp_path, capsys, words, message):
    (tmp_path / "empty").mkdir()
    places = {"SMALL": str(small), "BASE": str(bases / "esm1b"), "EMPTY": str(tmp_path / "empty")}
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    code, out, err = verified(capsys, *words)
    assert code == 1
    if "--json" in words:
        said = json.loads(out)
        assert (said["ok"], said["path"]) == (False, words[0])
        assert message in said["problems"][0]
    else:
        assert out == ""
    assert err.startswith("hf-perturb verify: ")
    assert message in err
    assert err.count("\n") == 1
    assert os.listdir(tmp_path) == ["empty"]


@pytest.mark.parametrize(
    "words", [[], [""], ["a", "b"], ["a", "--base"], ["a", "--base", ""], ["a", "--bas", "b"], ["a", "--jobs", "0"]]
)
def test_wrong_usage_exits_2(capsys, words):
    with pytest.raises(SystemExit) as caught:
        main(["verify", *words])
    assert caught.value.code == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "usage: hf-perturb " in streams.err


@pytest.mark.parametrize("jobs", [1, 3])
def test_progress_counts_every_byte_once(small, bases, jobs):
    size = sum(tensor.nbytes for tensor in load_file(small / "model.safetensors").values())
    read = sum(tensor.nbytes for tensor in load_file(bases / "esm1b" / "model.safetensors").values())
    for given, expected in ([], size), ([bases / "esm1b"], read + size):
        calls: list[tuple[int, int]] = []
        verify_variant(small, *given, jobs=jobs, progress=lambda *call, calls=calls: calls.append(call))
        assert calls == sorted(calls)
        assert calls[-1] == (expected, expected)
        assert {total for _, total in calls} == {expected}


def test_what_was_found_cannot_be_changed(small):
    found = verify_variant(small)
    with pytest.raises(AttributeError):
        found.digest = "another"
    assert copy.deepcopy(found) == found


@pytest.mark.parametrize("method", ["reinit", "resample"])
def test_weights_that_are_not_finite_are_named_with_and_without_the_base(method, tmp_path):
    model = small_model("esm1b")
    model.embed_tokens.weight.data[3, 4] = float("nan")  # kept
    model.save_pretrained(tmp_path / "base")
    hf_perturb.create_variant(tmp_path / "base", tmp_path / "made", method)
    odd = {"embed_tokens.weight", *(["lm_head.weight"] if method == "resample" else [])}
    for base in (None, tmp_path / "base"):
        found = verify_variant(tmp_path / "made", base)
        assert (found.ok, set(found.nonfinite)) == (True, odd)
