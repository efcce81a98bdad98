"""Recipes: a few kB that give the bits of the stored variant, or say why they cannot."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from parity.original_files import original_data, write_original
from parity.originals import small_pair
from support.models import TIED, UNSTUDIED, build_tokenizer, model_class, small_model
from support.spec_table import copied, differing
from support.streamed import DTYPES, METHODS, contents, in_hub_cache, no_waiting, weights_of, write_base, write_bases
from transformers import AutoModel, AutoModelForMaskedLM, pipeline

import hf_perturb
from hf_perturb import Perturbation
from hf_perturb.checkpoints.network import CARP, ESM1, ESM1B, ESM2
from hf_perturb.cli import main
from hf_perturb.perturbation import digest_of
from hf_perturb.perturbation.published import StudyGenerator
from hf_perturb.variants.create import create_variant

ALPHABETS = {"esm1": ESM1, "esm1b": ESM1B, "esm2": ESM2, "carp": CARP}
CONTROLS = {
    **{name: asked for name, asked in METHODS.items() if name != "resample-embedding"},  # the default of ESM
    "tied": Perturbation("resample", exclude=["lm_head.weight"]),
    "scope": Perturbation("reinit", seed=5, scope=["top:1", "feed_forward"]),
}
PUBLISHED = [name for name, asked in CONTROLS.items() if asked.rules == "published"]
OTHER = "blake3:" + 64 * "0"


waiting = pytest.fixture(no_waiting, autouse=True)


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    """Bases with their tokenizers, which no test changes."""
    folders = write_bases(tmp_path_factory)
    for network, folder in folders.items():
        build_tokenizer(ALPHABETS[network]).save_pretrained(folder)
    return folders


@pytest.fixture
def own_base(bases, tmp_path) -> Path:
    """Return a base that a test may change."""
    return Path(shutil.copytree(bases["esm1b"], tmp_path / "base"))


def controls(network: str) -> dict[str, Perturbation]:
    lacking = {*(() if network in TIED else ("tied",)), *(PUBLISHED if network in UNSTUDIED else ())}
    return {name: asked for name, asked in CONTROLS.items() if name not in lacking}


def change_config(folder: Path, **keys) -> None:
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stored, **keys}))


def record_in(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())["perturbation"]


def change_tensor(base: Path, network: str = "esm1b") -> str:
    """Change one entry of one tensor; return the digest of the base then."""
    model = AutoModelForMaskedLM.from_pretrained(base)
    with torch.no_grad():
        next(parameter for name, parameter in model.named_parameters() if name.endswith("fc1.bias"))[0] += 1
    model.save_pretrained(base)
    return digest_of(model.state_dict())


def materialise(recipe: Path, out: Path) -> object:
    return create_variant(recipe, out)


def load(recipe: Path, out: Path) -> object:
    return AutoModel.from_pretrained(recipe)


both_ways = pytest.mark.parametrize("use", [materialise, load])


def refused(error: type[Exception], use, recipe: Path) -> str:
    """Return how a recipe is refused; nothing is written."""
    before = sorted(os.listdir(recipe.parent))
    with pytest.raises(error) as caught:
        use(recipe, recipe.parent / "out")
    assert sorted(os.listdir(recipe.parent)) == before
    return str(caught.value)


def test_a_recipe_given_its_weights_is_the_variant_made_directly(bases, network, tmp_path):
    for name, asked in controls(network).items():
        folders = [tmp_path / f"{name}-{kind}" for kind in ("stored", "recipe", "made")]
        stored, recipe, made = folders
        records = [
            create_variant(bases[network], stored, asked),
            create_variant(bases[network], recipe, asked, recipe=True),
            create_variant(recipe, made),
        ]
        assert contents(made) == contents(stored), name
        assert len({record.digest for record in records}) == len({record.base.digest for record in records}) == 1
        assert records[2].to_dict() == records[0].to_dict() == record_in(made)
        files = contents(recipe)
        assert files.keys() == contents(stored).keys() - {"model.safetensors"}
        assert sum(map(len, files.values())) < 20_000


def test_a_recipe_loads_as_the_stored_variant(bases, network, tmp_path):
    for name, asked in controls(network).items():
        create_variant(bases[network], tmp_path / name, asked)
        create_variant(bases[network], tmp_path / f"{name}-recipe", asked, recipe=True)
        stored = AutoModelForMaskedLM.from_pretrained(tmp_path / name)
        for model in (
            AutoModelForMaskedLM.from_pretrained(tmp_path / f"{name}-recipe"),
            pipeline("fill-mask", model=str(tmp_path / f"{name}-recipe")).model,
        ):
            assert not differing(copied(model), copied(stored)), name
            assert model.config.perturbation == asked
            assert model.config.perturbation.digest == stored.config.perturbation.digest
            assert model.config.tie_word_embeddings == stored.config.tie_word_embeddings
        trunk, whole = AutoModel.from_pretrained(tmp_path / f"{name}-recipe"), copied(stored)
        assert type(trunk) is model_class(network, "Model")
        assert not differing(copied(trunk), {name: whole[name] for name in trunk.state_dict()})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_recipe_keeps_the_type_of_its_base(network, dtype, tmp_path):
    write_base(tmp_path / "base", network, dtype=dtype)
    build_tokenizer(ALPHABETS[network]).save_pretrained(tmp_path / "base")
    for name in ("reinit", "resample"):
        create_variant(tmp_path / "base", tmp_path / name, name)
        create_variant(tmp_path / "base", tmp_path / f"{name}-recipe", name, recipe=True)
        create_variant(tmp_path / f"{name}-recipe", tmp_path / f"{name}-made")
        assert contents(tmp_path / f"{name}-made") == contents(tmp_path / name)
        model = AutoModelForMaskedLM.from_pretrained(tmp_path / f"{name}-recipe")
        assert model.dtype == dtype
        assert digest_of(model.state_dict()) == record_in(tmp_path / name)["digest"]


def test_the_place_of_the_base_is_in_the_recipe_alone(own_base, tmp_path, monkeypatch):
    """A recipe has to find its base from anywhere; a variant need not tell whose disk it was on."""
    monkeypatch.chdir(tmp_path)
    create_variant("base", "recipe", "reinit", recipe=True)
    create_variant("base", "stored", "reinit")
    monkeypatch.chdir("/")
    create_variant(tmp_path / "recipe", tmp_path / "made")
    assert record_in(tmp_path / "recipe")["base"]["name"] == str(own_base.resolve())
    assert record_in(tmp_path / "made")["base"]["name"] == "base"
    for folder in ("stored", "made"):
        assert not [name for name, file in contents(tmp_path / folder).items() if os.fsencode(tmp_path) in file]


def test_a_recipe_of_the_demo(tmp_path, capsys):
    assert main(["create", "demo", str(tmp_path / "recipe"), "--method=resample", "--seed=5", "--recipe"]) == 0
    assert main(["create", "demo", str(tmp_path / "stored"), "--method=resample", "--seed=5"]) == 0
    capsys.readouterr()
    assert main(["create", str(tmp_path / "recipe"), str(tmp_path / "made"), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["path"] == str(tmp_path / "made")
    assert row["perturbation"] == record_in(tmp_path / "made")
    assert row["perturbation"]["base"]["name"] == "demo"
    assert contents(tmp_path / "made") == contents(tmp_path / "stored")


def test_recipes_and_bases_on_the_hub(bases, tmp_path, monkeypatch):
    """The base is that of the recorded revision, though its repository has moved on."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    then, now = 40 * "a", 40 * "b"
    in_hub_cache(tmp_path / "cache", "someone/base", bases["esm1b"], then)
    record = create_variant("someone/base", "recipe", "resample", recipe=True)
    create_variant("someone/base", "stored", "resample")
    assert (record.base.name, record.base.revision) == ("someone/base", then)
    newer = Path(shutil.copytree(bases["esm1b"], tmp_path / "newer"))
    change_tensor(newer)
    in_hub_cache(tmp_path / "cache", "someone/base", newer, now)
    in_hub_cache(tmp_path / "cache", "someone/recipe", tmp_path / "recipe", now)
    assert create_variant("someone/base", "of-now", "resample").base.revision == now
    create_variant("someone/recipe", "made")
    assert contents(tmp_path / "made") == contents(tmp_path / "stored")
    for name in ("someone/recipe", "recipe"):
        for model in (
            AutoModelForMaskedLM.from_pretrained(name),
            pipeline("fill-mask", model=name).model,
        ):
            assert not differing(copied(model), copied(AutoModelForMaskedLM.from_pretrained("stored")))
    assert not differing(weights_of(tmp_path / "made"), weights_of(tmp_path / "stored"))


@both_ways
def test_a_base_that_changed_is_refused_with_both_digests(own_base, use, tmp_path):
    record = create_variant(own_base, tmp_path / "recipe", "resample", recipe=True)
    changed = change_tensor(own_base)
    would_be = digest_of(AutoModelForMaskedLM.from_pretrained(own_base, perturbation="resample").state_dict())
    message = refused(hf_perturb.DigestError, use, tmp_path / "recipe")
    assert f"gives weights with digest {would_be}, its record says {record.digest}" in message
    assert f"has digest {changed}, the record says {record.base.digest}: it has changed" in message


@both_ways
def test_a_record_that_was_edited_is_refused_with_both_digests(bases, use, tmp_path):
    record = create_variant(bases["carp"], tmp_path / "recipe", "reinit", recipe=True)
    change_config(tmp_path / "recipe", perturbation={**record.to_dict(), "digest": OTHER})
    message = refused(hf_perturb.DigestError, use, tmp_path / "recipe")
    assert f"gives weights with digest {record.digest}, its record says {OTHER}" in message
    assert "its base is as recorded, so the record was edited" in message
    assert "torch" not in message, "which draws nothing under these rules"


@both_ways
def test_published_weights_of_another_torch_are_refused_with_both_versions(bases, use, tmp_path, monkeypatch):
    asked = Perturbation("reinit", rules="published")
    record = create_variant(bases["carp"], tmp_path / "recipe", asked, recipe=True)
    draw = StudyGenerator._draw
    monkeypatch.setattr(StudyGenerator, "_draw", lambda *arguments: draw(*arguments)[::-1])
    drawn = digest_of(AutoModelForMaskedLM.from_pretrained(bases["carp"], perturbation=asked).state_dict())
    assert drawn != record.digest
    message = refused(hf_perturb.DigestError, use, tmp_path / "recipe")
    assert f"gives weights with digest {drawn}, its record says {record.digest}" in message
    assert "its base is as recorded, so the record was edited, or torch draws differently here" in message
    assert f"torch {torch.__version__} on this processor, torch {torch.__version__} then" in message


@both_ways
def test_a_base_that_changed_where_it_does_not_count_is_no_error(own_base, use, tmp_path):
    """The record of the base is then another; the weights, which count, are the recorded ones."""
    asked = Perturbation("reinit")
    create_variant(own_base, tmp_path / "recipe", asked, recipe=True)
    create_variant(own_base, tmp_path / "stored", asked)
    change_tensor(own_base)
    use(tmp_path / "recipe", tmp_path / "out")
    if use is materialise:
        assert not differing(weights_of(tmp_path / "out"), weights_of(tmp_path / "stored"))


@both_ways
def test_a_base_that_records_another_digest_than_it_has_is_refused(own_base, use, tmp_path):
    hf_perturb.convert_checkpoint(own_base, tmp_path / "converted")
    create_variant(tmp_path / "converted", tmp_path / "recipe", "resample", recipe=True)
    stated = json.loads((tmp_path / "converted" / "config.json").read_text())["digest"]
    changed = change_tensor(own_base)
    shutil.copy(own_base / "model.safetensors", tmp_path / "converted")
    message = refused(hf_perturb.DigestError, use, tmp_path / "recipe")
    assert changed in message
    assert stated in message


@both_ways
def test_a_base_that_is_gone_is_named(own_base, use, tmp_path):
    create_variant(own_base, tmp_path / "recipe", "resample", recipe=True)
    own_base.rename(tmp_path / "moved")
    message = refused(hf_perturb.CheckpointError, use, tmp_path / "recipe")
    assert f"{str(tmp_path / 'recipe')!r} needs its base {str(own_base)!r}: " in message
    assert "was it moved?" in message
    (tmp_path / "moved").rename(own_base)
    use(tmp_path / "recipe", tmp_path / "out")


@both_ways
def test_a_base_on_the_hub_that_is_gone_is_named(bases, use, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    in_hub_cache(tmp_path / "cache", "someone/base", bases["carp"], 40 * "a")
    create_variant("someone/base", tmp_path / "recipe", "reinit", recipe=True)
    shutil.rmtree(tmp_path / "cache")
    message = refused(hf_perturb.CheckpointError, use, tmp_path / "recipe")
    assert "recipe' needs its base 'someone/base': " in message


@both_ways
@pytest.mark.parametrize("base", [None, {"digest": OTHER}])
def test_a_recipe_that_names_no_base_is_refused(bases, use, base, tmp_path):
    record = create_variant(bases["carp"], tmp_path / "recipe", "reinit", recipe=True).to_dict()
    change_config(tmp_path / "recipe", perturbation={**record, "base": base})
    message = refused(hf_perturb.CheckpointError, use, tmp_path / "recipe")
    assert "has no weights, and its record names no base to rebuild them from" in message


@both_ways
@pytest.mark.parametrize(
    ("recipe", "message"),
    [(False, "is perturbed itself|is a variant already"), (True, "is perturbed itself|is a recipe")],
)
def test_a_base_that_has_become_a_control_itself_is_refused(own_base, use, recipe, message, tmp_path):
    create_variant(own_base, tmp_path / "recipe", "resample", recipe=True)
    create_variant(own_base, tmp_path / "control", "reinit", recipe=recipe)
    shutil.rmtree(own_base)
    (tmp_path / "control").rename(own_base)
    said = refused(hf_perturb.CheckpointError, use, tmp_path / "recipe")
    assert f"{str(tmp_path / 'recipe')!r} needs its base {str(own_base)!r}: " in said
    assert re.search(message, said)


def test_a_recipe_is_no_base(bases, tmp_path):
    create_variant(bases["carp"], tmp_path / "recipe", "reinit", recipe=True)
    remedy = rf"recipe' is a recipe; give it its weights first: hf-perturb create .*{tmp_path.name}/recipe OUT"
    for recipe in (True, False):
        with pytest.raises(hf_perturb.CheckpointError, match=remedy):
            create_variant(tmp_path / "recipe", tmp_path / "out", "resample", recipe=recipe)
    with pytest.raises(hf_perturb.PerturbationError, match="got None; allowed: what the recipe is to do"):
        create_variant(tmp_path / "recipe", tmp_path / "out", recipe=True)
    assert os.listdir(tmp_path) == ["recipe"]


def test_what_is_no_recipe_needs_a_perturbation(bases, tmp_path):
    create_variant(bases["carp"], tmp_path / "variant", "reinit")
    for name in (bases["carp"], tmp_path / "variant", "demo"):
        with pytest.raises(
            hf_perturb.PerturbationError, match="is no recipe; say --method reinit, resample or gaussian"
        ):
            create_variant(name, tmp_path / "out")
    assert os.listdir(tmp_path) == ["variant"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ["create", "RECIPE", "OUT", "--method=reinit"],
            1,
            "is a recipe; give it its weights first: hf-perturb create",
        ),
        (["create", "RECIPE", "OUT", "--method=reinit", "--recipe"], 1, "is a recipe; give it its weights first"),
        (["create", "RECIPE", "OUT", "--seed=1"], 2, "--seed: needs --method; without one, BASE is a recipe"),
        (["create", "RECIPE", "OUT", "--axis=all"], 2, "--axis: needs --method"),
        (["create", "RECIPE", "OUT", "--include=*"], 2, "--include: needs --method"),
        (["create", "RECIPE", "OUT", "--exclude=*"], 2, "--exclude: needs --method"),
        (["create", "RECIPE", "OUT", "--scope=top:1"], 2, "--scope: needs --method"),
        (["create", "RECIPE", "OUT", "--cascade=top-down"], 2, "--cascade: needs --method"),
        (["create", "RECIPE", "OUT", "--recipe"], 2, "--recipe: needs --method"),
        (["create", "RECIPE", "OUT", "--rules=published"], 2, "--rules: needs --method"),
        (["create", "RECIPE", "RECIPE", "--force"], 1, "is, or holds, the base"),
        (["create", "RECIPE", "BASE", "--force"], 1, "is no variant, so --force does not replace it"),
        (["convert", "RECIPE", "OUT"], 1, "is a recipe; give it its weights first: hf-perturb create"),
        (["convert", "RECIPE", "OUT", "--to=transformers"], 1, "is a recipe; give it its weights first"),
        (["convert", "RECIPE", "OUT.pt", "--to=fair-esm"], 1, "is a recipe; give it its weights first"),
        (["list", "RECIPE"], 1, "is a recipe; give it its weights first"),
        (["create", "BASE", "OUT"], 2, "is no recipe; say --method reinit, resample or gaussian"),
    ],
)
def test_the_command_says_what_to_do_with_a_recipe(own_base, words, code, message, tmp_path, capsys):
    recipe = tmp_path / "recipe"
    create_variant(own_base, recipe, "reinit", recipe=True)
    before = {folder: contents(folder) for folder in (own_base, recipe)}
    places = {"RECIPE": str(recipe), "OUT": str(tmp_path / "out"), "OUT.pt": str(tmp_path / "out.pt")}
    places["BASE"] = str(own_base)
    words = [places.get(word, word) for word in words]
    if code == 2:
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == code
    else:
        assert main(words) == code
    streams = capsys.readouterr()
    assert message in streams.err
    assert streams.out == ""
    assert sorted(os.listdir(tmp_path)) == ["base", "recipe"]
    assert {folder: contents(folder) for folder in before} == before


def test_a_recipe_can_be_replaced_by_its_variant_and_back(bases, tmp_path):
    """One kind of variant like the other, where `--force` is concerned."""
    create_variant(bases["carp"], tmp_path / "out", "reinit")
    expected = contents(tmp_path / "out")
    create_variant(bases["carp"], tmp_path / "out", "reinit", recipe=True, force=True)
    assert "model.safetensors" not in contents(tmp_path / "out")
    create_variant(bases["carp"], tmp_path / "recipe", "reinit", recipe=True)
    with pytest.raises(hf_perturb.FolderExistsError, match=r"exists already.*--force"):
        create_variant(tmp_path / "recipe", tmp_path / "out")
    create_variant(tmp_path / "recipe", tmp_path / "out", force=True)
    assert contents(tmp_path / "out") == expected


def test_a_base_that_from_pretrained_would_load_as_another_is_refused(tmp_path):
    original = write_original(tmp_path, "esm1", original_data(small_pair("esm1")))
    with pytest.raises(hf_perturb.CheckpointError, match=r"is an original; a recipe needs .*hf-perturb convert"):
        create_variant(original, tmp_path / "recipe", "reinit", recipe=True)
    model = small_model("carp")
    model.model.last_norm.half()
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(hf_perturb.CheckpointError, match=r"mixes float16, float32 in .*leave --recipe out"):
        create_variant(tmp_path / "base", tmp_path / "recipe", "reinit", recipe=True)
    small_model("esm1").bfloat16().save_pretrained(tmp_path / "half")
    create_variant(tmp_path / "half", tmp_path / "of-half", "reinit", recipe=True)
    change_config(tmp_path / "half", dtype="float32")
    with pytest.raises(hf_perturb.CheckpointError, match=r"mixes bfloat16, float32 in .*its config\.json"):
        create_variant(tmp_path / "half", tmp_path / "recipe", "reinit", recipe=True)
    assert "recipe" not in os.listdir(tmp_path)


def test_weights_that_a_recipe_gave_do_not_tell_where_the_base_is(tmp_path):
    small_model("carp").save_pretrained(tmp_path / "base")
    create_variant(tmp_path / "base", tmp_path / "recipe", "reinit", recipe=True)
    model = hf_perturb.CarpForMaskedLM.from_pretrained(tmp_path / "recipe")
    model.save_pretrained(tmp_path / "saved")
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()
    saved = hf_perturb.CarpForMaskedLM.from_pretrained(tmp_path / "saved", verify=True)
    assert saved.config.perturbation.base.name == "base"


@pytest.mark.parametrize("options", [{"use_safetensors": True}, {"gguf_file": None}], ids=str)
def test_keywords_about_weights_mean_nothing_to_a_recipe(options, tmp_path):
    create_variant("demo", tmp_path / "recipe", "reinit", recipe=True)
    model = hf_perturb.CarpForMaskedLM.from_pretrained(tmp_path / "recipe", **options)
    assert model.config.perturbation == Perturbation("reinit")


def test_a_recipe_without_a_base_is_told(tmp_path, capsys):
    create_variant("demo", tmp_path / "recipe", "reinit", recipe=True)
    path = tmp_path / "recipe" / "config.json"
    stored = json.loads(path.read_text())
    del stored["perturbation"]["base"]
    path.write_text(json.dumps(stored))
    assert main(["verify", str(tmp_path / "recipe")]) == 1
    assert "names no base to rebuild them from" in capsys.readouterr().err
