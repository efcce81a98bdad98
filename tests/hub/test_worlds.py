"""Published variants in the worlds that they travel to, each a fresh virtual environment and a process of its own.

(a) hf_perturb is installed, (b) only torch and Transformers are, and the code comes with the weights, (c) the same, and
the weights are those of Transformers' own ESM.
"""

from __future__ import annotations

import hashlib
import json
import re

import pytest
import torch
from support.hub_client import connected, environment, quiet_uploads
from support.hub_server import HubServer
from support.models import HEADS, model_class
from support.worlds import OURS, World

import hf_perturb
from hf_perturb.loading.auto import AUTO_CLASSES
from hf_perturb.perturbation import digest

pytestmark = quiet_uploads

NETWORKS = ("carp", "esm1", "esm1b", "esm2")
STOCK = ("esm1b", "esm2")
RESIDUES = "MKTAYIAKQRQISFVKSHFSRQ"
IDS = [5, 7, 20, 4, 11, 9, 12]  # residues in every alphabet

# what every program does first: the weights as the parent compares them, line by line
BEGIN = f"""
import hashlib, json, sys
import torch
from transformers import *

def lines(model):
    kinds = {{torch.float32: "F32"}}
    return {{
        name: f"{{kinds[x.dtype]}} {{json.dumps(list(x.shape))}} {{hashlib.sha256(x.numpy().tobytes()).hexdigest()}}"
        for name, x in model.state_dict().items()
    }}

said, ids = {{}}, torch.tensor([{IDS}])
"""
LOAD = """
for repo, mask in {repos}.items():
    said[repo] = found = {{"classes": {{}}}}
    for name in {autos}:
        model = globals()[name].from_pretrained(repo, revision="v1", **options).eval()
        found["classes"][name] = type(model).__name__
        if name == "AutoModelForMaskedLM":
            found["logits"], found["lines"] = model(ids).logits.tolist(), lines(model)
            found["record"] = model.config.to_dict()["perturbation"]
            found["module"] = type(model).__module__
        if name == "AutoModel":
            found["states"] = model(ids)[0].tolist()
    found["tokens"] = AutoTokenizer.from_pretrained(repo, revision="v1", **options)("{residues}")["input_ids"]
    fill = pipeline("fill-mask", model=repo, revision="v1", **options)
    found["filled"] = fill("{residues}".replace("Q", mask, 1))
    features = pipeline("feature-extraction", model=repo, revision="v1", **options)
    found["features"] = features("{residues}")
"""
REFUSED = """
def refused(call, *arguments, **given):
    try:
        call(*arguments, **given)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""
END = "print('said', json.dumps(said))"


@pytest.fixture(scope="module")
def hub(folders, tmp_path_factory):
    """Publish every variant privately, with a tag, in both formats."""
    with HubServer() as hub, pytest.MonkeyPatch.context() as monkeypatch:
        connected(monkeypatch, hub, tmp_path_factory.mktemp("author"), hub.WRITE)
        for network in NETWORKS:
            hf_perturb.push_variant(folders / network, f"lab/{network}", private=True, tag="v1")
        for network in STOCK:
            done = {"format": "transformers", "private": True, "tag": "v1"}
            hf_perturb.push_variant(folders / network, f"lab/{network}-stock", **done)
        hf_perturb.push_variant(folders / "base", "lab/base", private=True)
        hf_perturb.push_variant(folders / "recipe", "lab/recipe", private=True)
        yield hub


@pytest.fixture(scope="module")
def with_package(tmp_path_factory):
    return World(tmp_path_factory.mktemp("a"), OURS)


@pytest.fixture(scope="module")
def without_package(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("b"), "torch", "transformers")
    assert {"hf-perturb", "fair-esm", "sequence-models", "wrapt", "lazy-loader"}.isdisjoint(world.distributions)
    return world


def told(world, hub, folder, program):
    """Run a program in a world, on a machine of its own, and return what it said."""
    printed = world.run(program, environment(hub, folder / "home", hub.READ), folder)
    return json.loads(printed.splitlines()[-1].removeprefix("said "))


def snippets(hub, network, trusting):
    """Return the Python of a published card that is for who trusts its code, or for who does not have to."""
    card = hub.files(f"lab/{network}")["README.md"].decode()
    found = re.findall(r"^```python\n(.*?)^```$", card, flags=re.DOTALL | re.MULTILINE)
    chosen = [code for code in found if ("trust_remote_code" in code) == trusting]
    assert chosen
    return "".join(chosen)


def mask_of(network):
    return "#" if network == "carp" else "<mask>"


def program(networks, options, before=""):
    repos = {f"lab/{network}": mask_of(network) for network in networks}
    load = LOAD.format(repos=repos, autos=list(AUTO_CLASSES), residues=RESIDUES)
    return f"{before}{BEGIN}options = {options}\n{load}"


def assert_as_built(found, network, folders):
    """Compare what another world saw with the folder that was published, and with its digest."""
    model = model_class(network).from_pretrained(folders / network).eval()
    assert torch.allclose(torch.tensor(found["logits"]), model(torch.tensor([IDS])).logits, atol=1e-5)
    trunk = model_class(network, "Model").from_pretrained(folders / network).eval()
    assert torch.allclose(torch.tensor(found["states"]), trunk(torch.tensor([IDS]))[0], atol=1e-5)
    record = json.loads((folders / network / "config.json").read_text())["perturbation"]
    assert found["record"] == record
    state = dict(model.state_dict())
    assert digest.digest_of(state) == record["digest"]
    assert found["lines"] == {name: sha256_line(tensor) for name, tensor in state.items()}
    assert len(found["features"][0]) == len(found["tokens"])
    assert found["filled"][0]["sequence"].replace(" ", "").startswith("MKTAYIAK")
    prefix = "Carp" if network == "carp" else "FairEsm"
    assert list(found["classes"].values()) == [prefix + head for head in HEADS]


def sha256_line(tensor):
    """Return what a world without BLAKE3 says of a tensor."""
    kind, shape = digest.dtype_code(tensor.dtype), json.dumps(list(tensor.shape))
    return f"{kind} {shape} {hashlib.sha256(tensor.numpy().tobytes()).hexdigest()}"


def test_a_the_package_is_installed(hub, with_package, folders, tmp_path):
    code = program(NETWORKS, {}, before="import hf_perturb\n")
    code += """
said["verified"] = hf_perturb.verify_variant("lab/carp").ok
said["recipe"] = AutoModel.from_pretrained("lab/recipe", verify=True).config.perturbation.digest
said["new"] = str(AutoModel.from_pretrained("lab/base", perturbation="reinit").config.perturbation)
"""
    code += "".join(snippets(hub, name, trusting=False) for name in (*NETWORKS, "base", "recipe"))
    said = told(with_package, hub, tmp_path, code + END)
    for network in NETWORKS:
        found = said[f"lab/{network}"]
        assert_as_built(found, network, folders)
        assert found["module"].startswith("hf_perturb.networks.")
    assert said["verified"] is True
    assert said["recipe"] == said["lab/carp"]["record"]["digest"]
    assert said["new"] == "reinit (seed 42, rules documented)"


def test_b_the_code_comes_with_the_weights(hub, without_package, folders, tmp_path):
    code = program(NETWORKS, {"trust_remote_code": True})
    code += REFUSED
    code += """
base = AutoModelForMaskedLM.from_pretrained("lab/base", **options)
said["perturb"] = refused(base.perturb, "reinit")
said["load"] = refused(AutoModel.from_pretrained, "lab/base", perturbation="reinit", **options)
said["verify"] = refused(AutoModel.from_pretrained, "lab/carp", verify=True, **options)
said["recipe"] = refused(AutoModel.from_pretrained, "lab/recipe", **options)
said["stacked"] = refused(AutoModel.from_pretrained, "lab/carp", perturbation="resample", **options)
said["layers"] = refused(AutoModel.from_pretrained, "lab/carp", num_hidden_layers=10**6, **options)
again = AutoModelForMaskedLM.from_pretrained("lab/carp", **options)
again.save_pretrained("again")
said["again"] = lines(AutoModelForMaskedLM.from_pretrained("again", **options)) == said["lab/carp"]["lines"]
configuration = type(again.config).from_pretrained("again")
with_config = type(again).from_pretrained("again", config=configuration)
said["config"] = lines(with_config) == lines(again)
said["config"] = said["config"] and with_config.config.perturbation == again.config.perturbation
configuration.perturbation = {"method": "resample", "seed": 3}
said["asked"] = refused(type(again).from_pretrained, "again", config=configuration)
said["another"] = refused(type(again).from_pretrained, "lab/base", config="again")
said["packages"] = sorted({"hf_perturb", "esm", "sequence_models", "wrapt"} & set(sys.modules))
"""
    code += "".join(snippets(hub, name, trusting=True) for name in (*NETWORKS, "base"))
    said = told(without_package, hub, tmp_path, code + END)
    for network in NETWORKS:
        found = said[f"lab/{network}"]
        assert_as_built(found, network, folders)
        assert found["module"].startswith("transformers_modules.lab.")
    for way in ("perturb", "load", "verify", "recipe"):
        assert said[way].startswith("ImportError: "), said[way]
        assert "pip install hf-perturb" in said[way]
    assert "perturbations do not stack" in said["stacked"]
    assert "num_hidden_layers: got 1000000" in said["layers"]
    assert said["again"] is True
    assert said["config"] is True
    assert "perturbations do not stack" in said["another"]
    assert "perturbations do not stack" in said["asked"]
    assert said["packages"] == []


DAMAGED = """
import shutil
from pathlib import Path
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file

def damaged(repo, edit, **config):
    folder = Path(f"{repo}-{edit.__name__}".replace("/", "-"))
    shutil.copytree(snapshot_download(repo), folder)
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)

def missing(tensors): del tensors[next(name for name in tensors if "layers.0" in name)]
def unexpected(tensors): tensors["layers.77.fc1.weight"] = torch.ones(3)
def misshapen(tensors): tensors[next(name for name in tensors if "layers.0" in name and "bias" in name)] = torch.ones(3)
def nothing(tensors): pass

for repo in repos:
    for edit in (missing, unexpected, misshapen):
        for name in ("AutoModel", "AutoModelForMaskedLM", "AutoModelForTokenClassification"):
            path = damaged(repo, edit)
            said[f"{repo} {edit.__name__} {name}"] = refused(globals()[name].from_pretrained, path, **options)
            shutil.rmtree(path)
    whole = AutoModelForMaskedLM.from_pretrained(damaged(repo, nothing), **options)
    whole.save_pretrained("shards", max_shard_size=40_000)
    assert len(list(Path("shards").glob("*.safetensors"))) > 1
    again = AutoModelForMaskedLM.from_pretrained("shards", **options)
    said[f"{repo} shards"] = lines(again) == lines(whole)
    shutil.rmtree("shards")
ours = type(AutoModelForMaskedLM.from_pretrained("lab/esm1b", **options))
said["foreign"] = refused(ours.from_pretrained, "lab/esm1b-stock")
"""


def test_b_what_is_damaged_or_foreign_is_refused(hub, without_package, tmp_path):
    repos = ["lab/carp", "lab/esm1b"]
    code = f"{BEGIN}options, repos = {{'trust_remote_code': True}}, {repos}\n{REFUSED}{DAMAGED}{END}"
    said = told(without_package, hub, tmp_path, code)
    for repo in repos:
        assert said[f"{repo} shards"] is True
        for name in ("AutoModel", "AutoModelForMaskedLM", "AutoModelForTokenClassification"):
            assert re.match(r"OSError: .* lacks .*layers\.0", said[f"{repo} missing {name}"]), said
            assert re.match(r"OSError: .* has layers\.77\.fc1\.weight", said[f"{repo} unexpected {name}"]), said
            assert re.match(r"ShapeError: .* of another shape: .*layers\.0", said[f"{repo} misshapen {name}"]), said
    assert said["foreign"].startswith("ImportError: reading Transformers' own ESM needs the package")


def test_b_nothing_runs_that_is_not_trusted(hub, without_package, tmp_path):
    code = "from transformers import AutoModel\nAutoModel.from_pretrained('lab/carp')"
    env = environment(hub, tmp_path / "home", hub.READ)
    assert "trust_remote_code=True" in without_package.run(code, env, tmp_path, fails=True)


def test_c_stock_transformers(hub, without_package, folders, tmp_path):
    code = program([f"{network}-stock" for network in STOCK], {})
    code += "".join(snippets(hub, f"{network}-stock", trusting=False) for network in STOCK)
    said = told(without_package, hub, tmp_path, code + END)
    for network in STOCK:
        found = said[f"lab/{network}-stock"]
        assert found["classes"] == {auto: f"Esm{head}" for auto, head in AUTO_CLASSES.items()}
        model = model_class(network).from_pretrained(folders / network).eval()
        assert torch.allclose(torch.tensor(found["logits"]), model(torch.tensor([IDS])).logits, atol=1e-5)
        assert found["record"]["digest"] == model.config.perturbation.digest
        assert len(found["features"][0]) == len(found["tokens"])
        assert found["filled"][0]["sequence"].replace(" ", "").startswith("MKTAYIAK")


def test_trusted_code_beside_the_package(hub, with_package, folders, tmp_path):
    """Who has the package may still say that the code is to be trusted; the two do not get in each other's way."""
    code = program(["carp"], {"trust_remote_code": True}, before="import hf_perturb\n")
    code += """
model = AutoModel.from_pretrained("lab/base", trust_remote_code=True, perturbation="reinit")
said["new"] = str(model.config.perturbation)
"""
    said = told(with_package, hub, tmp_path, code + END)
    assert_as_built(said["lab/carp"], "carp", folders)
    assert said["new"] == "reinit (seed 42, rules documented)"


def test_offline_afterwards(hub, without_package, tmp_path):
    code = "from transformers import AutoModel\nm = AutoModel.from_pretrained('lab/carp', trust_remote_code=True)\n"
    env = environment(hub, tmp_path / "home", hub.READ)
    without_package.run(code, env, tmp_path)
    asked = len(hub.requests)
    without_package.run(code, env | {"HF_HUB_OFFLINE": "1"}, tmp_path)
    assert len(hub.requests) == asked
