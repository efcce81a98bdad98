"""Many variants in one pass over their base are those that are made one at a time, or none of them is made."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from support.models import CONFIGS, UNSTUDIED
from support.streamed import METHODS, SIZES, contents, counted_reads, no_waiting, weights_of, write_base, write_bases

import hf_perturb
from hf_perturb import Perturbation, PerturbationError
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.cli import main
from hf_perturb.variants.create import create_variant, create_variants
from hf_perturb.variants.matrix import folder_name, folders, folders_of, matrix, models_in
from hf_perturb.variants.stream import Sources
from hf_perturb.variants.verify import verify_variants

NAMES = {
    "reinit-seed42": Perturbation("reinit"),
    "reinit-seed7": Perturbation("reinit", seed=7),
    "resample-rows-seed42": Perturbation("resample", axis="rows"),
    "resample-rows-seed7": Perturbation("resample", seed=7, axis="rows"),
    "resample-all-seed42": Perturbation("resample", axis="all"),
    "resample-all-seed7": Perturbation("resample", seed=7, axis="all"),
}
WORDS = [f"--{key}={value}" for key, value in [("method", "reinit"), ("method", "resample"), ("seed", 42), ("seed", 7)]]
AXES = ["--axis=rows", "--axis=all"]


waiting = pytest.fixture(no_waiting, autouse=True)
bases = pytest.fixture(write_bases, scope="module")


@pytest.fixture
def base(bases, network) -> Path:
    return bases[network]


def tree(folder: Path) -> dict[str, dict[str, bytes]]:
    """Return the files of every folder in a folder."""
    return {inner.name: contents(inner) for inner in folder.iterdir()}


@pytest.mark.parametrize(("recipe", "jobs"), [(False, 1), (False, 3), (True, 3)])
def test_a_matrix_is_its_variants_one_at_a_time(base, network, recipe, jobs, tmp_path):
    wanted = folders(tmp_path / "at-once", matrix(["reinit", "resample"], [42, 7], ["rows", "all"]))
    published = [Perturbation(m, rules="published") for m in ("reinit", "resample") if network not in UNSTUDIED]
    wanted.update(folders(tmp_path / "at-once", published))
    records = create_variants(base, wanted, recipe=recipe, jobs=jobs)
    assert list(records) == list(wanted)
    for out, asked in wanted.items():
        assert create_variant(base, tmp_path / "single" / out.name, asked, recipe=recipe) == records[out] == asked
    made = tree(tmp_path / "at-once")
    assert made.keys() == {*NAMES, *map(folder_name, published)}
    assert made == tree(tmp_path / "single")
    digests = {record.digest for record in records.values()}
    assert len(digests) == len(wanted), "each is another network"
    assert {file for files in made.values() for file in files} >= {"README.md", "config.json", "tokenizer.json"}


@pytest.mark.parametrize("rules", ["documented", "published"])
def test_each_tensor_of_the_base_is_read_once(base, rules, tmp_path, monkeypatch):
    asked = matrix(["reinit", "resample"], [42, 7], ["rows", "all"] if rules == "documented" else [], rules=rules)
    sources = Sources.of(Checkpoint.open(base).base())
    expected = dict.fromkeys(sources.tensors, 1)
    regions = {name: sources.tensors[name].region for name in expected}
    counts = counted_reads(monkeypatch)
    create_variants(base, folders(tmp_path / "out", asked))
    assert counts == {(regions[name].file.path.name, regions[name].begin): count for name, count in expected.items()}


def test_progress_covers_every_variant(base, tmp_path):
    calls: list[tuple[int, int]] = []
    wanted = folders(tmp_path / "out", matrix(["reinit", "resample"], [42, 7]))
    create_variants(base, wanted, progress=lambda *call: calls.append(call))
    size = sum(tensor.nbytes for tensor in Checkpoint.open(base).base().tensors.values())
    done, totals = zip(*calls, strict=True)
    written = sum(tensor.nbytes for out in wanted for tensor in weights_of(out).values())
    assert set(totals) == {size + written}
    assert done[-1] == size + written
    assert list(done) == sorted(set(done))


def test_one_folder_that_exists_refuses_all(base, tmp_path, monkeypatch):
    wanted = folders(tmp_path / "out", NAMES.values())
    (tmp_path / "out" / "resample-rows-seed7").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "open", lambda *arguments: pytest.fail("the base was opened"))
        with pytest.raises(hf_perturb.FolderExistsError, match=r"resample-rows-seed7 exists already"):
            create_variants(base, wanted)
    assert os.listdir(tmp_path / "out") == ["resample-rows-seed7"]
    assert os.listdir(tmp_path / "out" / "resample-rows-seed7") == []


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (Perturbation("reinit", include=["nothing.*"]), "matches no parameter"),
        (Perturbation("resample", axis="rows", include=["contact_head.regression.bias"]), "leaves nothing to perturb"),
        (Perturbation("reinit", include=["layers.0.self_attn_layer_norm.weight"]), "changes no tensor"),
    ],
)
def test_one_that_cannot_be_made_refuses_all(last, message, tmp_path):
    """The last of these is known only when all are written."""
    model = hf_perturb.FairEsmForMaskedLM(CONFIGS["esm2"](**SIZES["esm2"]))
    model.layers[0].self_attn_layer_norm.weight.data.fill_(1)
    model.save_pretrained(tmp_path / "base")
    wanted = {tmp_path / "out" / "first": Perturbation("reinit"), tmp_path / "out" / "last": last}
    with pytest.raises(PerturbationError, match=message):
        create_variants(tmp_path / "base", wanted)
    assert os.listdir(tmp_path) == ["base"]


def test_a_failure_on_the_way_leaves_none_and_keeps_the_old(bases, tmp_path, monkeypatch):
    wanted = folders(tmp_path / "out", NAMES.values())
    create_variant(bases["esm2"], tmp_path / "out" / "reinit-seed7", {"method": "reinit", "seed": 1})
    before = tree(tmp_path / "out")
    pwrite, turns = os.pwrite, iter(range(1000))

    def fills_up(*arguments):
        if next(turns) > 100:
            raise OSError(28, "No space left on device")
        return pwrite(*arguments)

    monkeypatch.setattr(os, "pwrite", fills_up)
    with pytest.raises(hf_perturb.CheckpointError, match=r"and 5 more: nothing was written, because .*No space left"):
        create_variants(bases["esm2"], wanted, force=True)
    assert tree(tmp_path / "out") == before


def test_names_of_folders():
    assert {folder_name(perturbation): perturbation for perturbation in NAMES.values()} == NAMES
    scoped = Perturbation("reinit", seed=0, scope=["top:4", "keep_layer_norms"])
    assert folder_name(scoped) == "reinit-keep-layer-norms-top4-seed0"
    assert folder_name(Perturbation("reinit", scope="layers:0-11")) == "reinit-layers0-11-seed42"
    assert (
        folder_name(Perturbation("resample", rules="published", seed=2**32 - 1)) == "resample-published-seed4294967295"
    )
    assert folder_name(Perturbation("gaussian", also=["head", "embeddings"])) == "gaussian-also-embeddings-head-seed42"
    assert len({folder_name(perturbation) for perturbation in METHODS.values()}) == len(METHODS)
    assert folders(Path("out"), [scoped]) == {Path("out/reinit-keep-layer-norms-top4-seed0"): scoped}


def test_a_matrix_is_every_combination_and_an_axis_is_for_resample():
    assert matrix(["reinit", "resample"], [42, 7], ["rows", "all"]) == [
        NAMES[name]
        for name in (
            "reinit-seed42",
            "reinit-seed7",
            "resample-rows-seed42",
            "resample-all-seed42",
            "resample-rows-seed7",
            "resample-all-seed7",
        )
    ]
    assert matrix(["resample"], [42]) == [Perturbation("resample")]
    assert matrix(["resample", "gaussian"], [42], ["outputs"], also=["head"]) == [
        Perturbation("resample", axis="outputs", also=["head"]),
        Perturbation("gaussian", also=["head"]),
    ]
    scopes = [["top:1"], ["top:2", "attention"]]
    assert matrix(["reinit"], [3], scopes=scopes, exclude=["*.bias"]) == [
        Perturbation("reinit", 3, scope=scope, exclude=["*.bias"]) for scope in scopes
    ]


@pytest.mark.parametrize(
    ("said", "seeds"),
    [
        (["0-4"], [0, 1, 2, 3, 4]),
        (["0,1,2"], [0, 1, 2]),
        (["7,0-2", "3"], [7, 0, 1, 2, 3]),
        (["0-2", 1, "2-3, 2", 0], [0, 1, 2, 3]),
        (["5-5"], [5]),
        ([f"{2**63 - 2}-{2**63 - 1}"], [2**63 - 2, 2**63 - 1]),
        (["0-998", 999, "0-999"], list(range(1000))),
    ],
)
def test_seeds_are_numbers_and_ranges_and_each_counts_once(said, seeds):
    assert [asked.seed for asked in matrix(["reinit"], said)] == seeds


@pytest.mark.parametrize(
    "said", ["4-0", "1-", "-3", "a", "", "1,,2", "1-2-3", "1.5", "²", str(2**63), "0-" + "9" * 5000]
)
def test_what_is_no_seed_is_refused(said):
    with pytest.raises(
        PerturbationError, match=rf"seeds: got '{said}'; allowed: numbers from 0 to {2**63 - 1} and ranges"
    ):
        matrix(["reinit"], ["1", said])


@pytest.mark.parametrize("said", [["0-99999999"], [f"0-{2**63 - 1}"], ["0-999", "1000"], ["0-499,500-999", 1000]])
def test_more_seeds_than_anybody_means_are_refused(said):
    with pytest.raises(PerturbationError, match=rf"with '?{said[-1]}'? these are too many; allowed: 1,000 in one call"):
        matrix(["reinit"], said)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["resample", "resample"], [42]), r"resample \(seed 42\) is asked for twice"),
        ((["resample"], [42], ["all", "all"]), "asked for twice"),
        ((["reinit"], [42], ["all"]), "axis: got 'all'; allowed: nothing with method 'reinit'"),
        ((["reinit"], [42], [], [["top:1"], ["top:1"]]), "asked for twice"),
        ((["reinit", "shuffle"], [42]), "method: got 'shuffle'"),
        ((["reinit"], [-1]), "seed: got -1"),
    ],
)
def test_what_is_no_matrix_is_refused(arguments, message):
    with pytest.raises(PerturbationError, match=message):
        matrix(*arguments)


def test_create_makes_a_matrix(bases, tmp_path, capsys):
    base = str(bases["esm1"])
    assert main(["create", base, str(tmp_path / "out"), *WORDS, *AXES, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {Path(row["path"]).name: Perturbation.parse(row["perturbation"]) for row in rows} == NAMES
    create_variants(base, folders(tmp_path / "expected", NAMES.values()))
    assert tree(tmp_path / "out") == tree(tmp_path / "expected")
    # one more seed: what is there is kept, and said to be
    assert main(["create", base, str(tmp_path / "out"), *WORDS, *AXES, "--seed=8"]) == 0
    streams = capsys.readouterr()
    assert streams.err.count("is there already, as asked for, and was kept") == len(NAMES)
    made = tree(tmp_path / "out")
    assert {name: made[name] for name in NAMES} == tree(tmp_path / "expected")
    assert tree(tmp_path / "out").keys() == {*NAMES, "reinit-seed8", "resample-rows-seed8", "resample-all-seed8"}


def test_create_with_one_of_each_writes_the_folder_itself(bases, tmp_path, capsys):
    words = ["--method=resample", "--seed=7", "--axis=rows", "--json"]
    assert main(["create", str(bases["esm1"]), str(tmp_path / "out"), *words]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["path"] == str(tmp_path / "out")
    assert Perturbation.parse(row["perturbation"]) == NAMES["resample-rows-seed7"]
    assert "model.safetensors" in contents(tmp_path / "out")


@pytest.mark.parametrize(("direction", "scope"), [("top-down", "top"), ("bottom-up", "bottom")])
def test_create_makes_a_cascade(base, network, direction, scope, tmp_path, capsys):
    words = ["--method=reinit", "--seed=3", "--scope=feed_forward", "--cascade", direction, "--json"]
    assert main(["create", str(base), str(tmp_path / "out"), *words]) == 0
    rows = json.loads(capsys.readouterr().out)
    depth = SIZES[network]["num_hidden_layers"]
    # scopes are named in the order of the alphabet
    parts = ["-".join(sorted(["feed-forward", f"{scope}{count}"])) for count in range(1, depth + 1)]
    names = [f"reinit-{part}-seed3" for part in parts]
    assert [Path(row["path"]).name for row in rows] == names
    digests = []
    for count, name in enumerate(names, 1):
        asked = Perturbation("reinit", 3, scope=["feed_forward", f"{scope}:{count}"])
        record = create_variant(base, tmp_path / "single" / name, asked)
        assert record == Perturbation.parse(rows[count - 1]["perturbation"]) == asked
        digests.append(record.digest)
    assert len(set(digests)) == depth
    assert tree(tmp_path / "out") == tree(tmp_path / "single")


def test_a_cascade_of_one_depth_has_a_folder_of_its_own(tmp_path):
    write_base(tmp_path / "base", "esm1", num_hidden_layers=1)
    assert main(["create", str(tmp_path / "base"), str(tmp_path / "out"), "--method=reinit", "--cascade=top-down"]) == 0
    assert os.listdir(tmp_path / "out") == ["reinit-top1-seed42"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method=reinit", "--method=reinit"], "asked for twice"),
        (["--method=reinit", "--axis=all", "--axis=rows"], "an axis is for 'resample'"),
        (["--method=reinit", "--method=resample", "--rules=published", "--axis=all"], "axis: got 'all'"),
        (
            ["--method=reinit", "--rules=published", "--seed=42", f"--seed={2**32}"],
            "seed: got 4294967296; allowed: 0 to",
        ),
        (["--method=reinit", "--cascade=sideways"], "got 'sideways'; allowed: 'top-down', 'bottom-up'"),
        (["--method=reinit", "--cascade=top-down", "--rules=published"], "scope: got"),
    ],
)
def test_what_is_no_matrix_is_wrong_usage(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["create", "demo", str(tmp_path / "out"), *words])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


# what is in a folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("matrix") / "many"
    create_variants("demo", {folder / name: NAMES[name] for name in ("reinit-seed42", "reinit-seed7")})
    create_variant("demo", folder / "recipe", NAMES["resample-all-seed42"], recipe=True)
    return folder


@pytest.fixture
def many(made, tmp_path) -> Path:
    """Two variants and a recipe, and beside them what is none."""
    folder = Path(shutil.copytree(made, tmp_path / "many"))
    (folder / "notes.txt").write_text("mine")
    (folder / "logs").mkdir()
    shutil.copytree(folder / "recipe", folder / ".recipe.new")
    return folder


def test_the_folders_of_a_matrix_are_listed(many, tmp_path, monkeypatch):
    assert [folder.name for folder in folders_of(many)] == ["recipe", "reinit-seed7", "reinit-seed42"]
    for model in (many / "recipe", "demo", "lab/not-here", tmp_path / "nowhere", many / "notes.txt"):
        assert folders_of(model) == []
    (many / "reinit-seed7" / "config.json").unlink()
    assert many / "reinit-seed7" in folders_of(many), "weights without a configuration are a damaged variant"
    monkeypatch.chdir(many.parent)
    assert folders_of("many") == models_in(Path("many")) != []


@pytest.mark.parametrize("held", [[], ["logs"], ["logs/deeper"]])
def test_a_folder_that_is_neither(held, tmp_path, capsys):
    for name in held:
        (tmp_path / "folder" / name).mkdir(parents=True)
    (tmp_path / "folder").mkdir(exist_ok=True)
    message = f"{tmp_path / 'folder'}: no config.json in it, and no folder in it that has one; allowed: the folder of a"
    for words in (["verify", "FOLDER"], ["compare", "demo", "FOLDER"], ["compare", "FOLDER", "demo"]):
        assert main([word.replace("FOLDER", str(tmp_path / "folder")) for word in words]) == 1
        assert message in capsys.readouterr().err


def test_folders_come_in_the_order_of_their_numbers(tmp_path):
    names = [
        "a",
        "a-1",
        "layers2-seed0",
        "layers2-seed9",
        "layers2-seed10",
        "layers10-seed0",
        "top02",
        "top2",
        "top10",
        "¹",
    ]
    for name in sorted(names):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    assert [folder.name for folder in folders_of(tmp_path)] == names


@pytest.mark.parametrize("given", [[], ["--base", "demo"]])
def test_verify_answers_for_each_of_a_matrix(many, given, capsys):
    found = verify_variants(many, *given[1:])
    assert [(each.path, each.ok) for each in found] == [(str(folder), True) for folder in folders_of(many)]
    assert main(["verify", str(many), *given]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{many / 'recipe'}: no weights here")
    assert lines[1::2] == [each.digest for each in found]
    (many / "recipe" / "config.json").write_text("{")
    edit = bytearray((many / "reinit-seed42" / "model.safetensors").read_bytes())
    edit[-1] ^= 1
    (many / "reinit-seed42" / "model.safetensors").write_bytes(edit)
    assert [each.ok for each in verify_variants(many, *given[1:])] == [False, True, False]
    assert main(["verify", str(many), *given, "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [row["ok"] for row in rows] == [False, True, False]
    assert all(list(row) == list(rows[0]) for row in rows)
    assert "is not valid JSON" in rows[0]["problems"][0]
    assert main(["verify", str(many), *given]) == 1
    said = capsys.readouterr()
    assert all(f"{folder}: " in said.out for folder in folders_of(many))
    assert f"{many / 'reinit-seed7'}: weights as recorded" in said.out
    assert said.err == ""


def test_what_is_wrong_with_the_base_is_said_once(many, tmp_path, capsys):
    with pytest.raises(hf_perturb.CheckpointError, match=r"nowhere.*no such file"):
        verify_variants(many, tmp_path / "nowhere")
    with pytest.raises(hf_perturb.CheckpointError, match="no folder of variants; verify_variant takes one alone"):
        verify_variants(many / "recipe")
    assert main(["verify", str(many), "--base", str(many / "recipe")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
