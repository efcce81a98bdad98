"""Models of somebody's own, which extend a class of ours or hold one: the record is the network's, the rest is kept."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.models import CONFIGS, small_model
from support.owners import (
    OWN,
    ExtendsCarp,
    ExtendsEsm,
    ExtendsEsmLM,
    HoldsCarp,
    HoldsEsm,
    Owner,
    OwnerConfig,
    network_tensors,
    plain_class,
)
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from transformers import AutoModel

import hf_perturb
from hf_perturb import (
    CarpConfig,
    CarpModel,
    CheckpointError,
    FairEsmForMaskedLM,
    FairEsmModel,
    UnsupportedModuleError,
)
from hf_perturb.checkpoints.network import Network
from hf_perturb.checkpoints.shapes import AUTO_CLASSES, PREFIXES
from hf_perturb.cli.main import main
from hf_perturb.loading import record_now
from hf_perturb.networks.modeling_carp import CarpPreTrainedModel
from hf_perturb.networks.modeling_fair_esm import FairEsmPreTrainedModel
from hf_perturb.networks.sizes import FIRST, is_of_network, tensors_of_network
from hf_perturb.perturbation.digest import digest_of

ASKED = {"method": "resample", "seed": 7}
CASES = [pytest.param(network, cls, id=f"{network}-{cls.__name__}") for network in OWN for cls in OWN[network]]
SOME = [("carp", HoldsCarp), ("esm1b", HoldsEsm), ("esm1b", ExtendsEsm), ("carp", ExtendsCarp)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a base and a control of every network, which nobody may change."""
    root = tmp_path_factory.mktemp("own")
    for network in OWN:
        small_model(network).save_pretrained(root / "saved" / network)
        hf_perturb.convert_checkpoint(root / "saved" / network, root / "base" / network)
        hf_perturb.create_variant(root / "base" / network, root / "control" / network, ASKED)
    return root


def same(some, others):
    return some.keys() == others.keys() and all(torch.equal(tensor, others[name]) for name, tensor in some.items())


def own_tensors(model):
    """Return copies of what is somebody's own in a model."""
    network = {tensor.data_ptr() for tensor in network_tensors(model).values()}
    return {name: x.clone() for name, x in model.state_dict().items() if x.data_ptr() not in network}


def train(model, part):
    """Take one step, of the head or of all."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part == "all" or "own_head" in name)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model(input_ids=torch.tensor([[5, 6, 7, 8]] * 2), labels=torch.tensor([0, 1])).loss.backward()
    torch.optim.SGD(weights, lr=0.5).step()
    return model


@pytest.mark.parametrize(("network", "cls"), CASES)
def test_the_network_is_loaded_perturbed_saved_and_loaded_again(network, cls, folders, tmp_path):
    base, control, plain = folders / "base" / network, folders / "control" / network, plain_class(cls)
    expected = plain.from_pretrained(control)
    expected.save_pretrained(tmp_path / "plain")
    digest = expected.config.perturbation.digest
    in_memory = cls.from_pretrained(base)
    assert in_memory.config.perturbation is None
    assert same(network_tensors(in_memory), plain.from_pretrained(base).state_dict())
    before = own_tensors(in_memory)
    assert in_memory.perturb(ASKED) is in_memory
    assert same(before, own_tensors(in_memory))
    ways = (cls.from_pretrained(control), cls.from_pretrained(base, perturbation=ASKED), in_memory)
    for number, model in enumerate(ways):
        assert same(network_tensors(model), expected.state_dict())
        out = tmp_path / str(number)
        model.save_pretrained(out, max_shard_size=["50GB", "20KB"][number % 2])
        assert model.config.perturbation.digest == digest
        again = cls.from_pretrained(out, verify=True)
        assert again.config.perturbation.digest == digest
        assert same(again.state_dict(), model.state_dict())
        assert hf_perturb.verify_variant(out).ok
        assert hf_perturb.verify_variant(out, base).ok


@pytest.mark.parametrize(("network", "cls"), SOME)
def test_to_train_a_head_leaves_the_control_and_to_train_the_network_marks_it(network, cls, folders, tmp_path):
    model = cls.from_pretrained(folders / "control" / network)
    head = own_tensors(model)
    train(model, "head").save_pretrained(tmp_path / "head")
    assert not same(head, own_tensors(model))
    found = cls.from_pretrained(tmp_path / "head", verify=True)
    assert not found.config.perturbation.changed
    assert found.config.perturbation.digest == hf_perturb.verify_variant(tmp_path / "head").digest
    assert same(found.state_dict(), model.state_dict())
    narrow = copy.deepcopy(model).half()
    narrow.own_head.weight.data.add_(1)
    assert not record_now(narrow).changed
    train(model, "all").save_pretrained(tmp_path / "all")
    assert str(record_now(model)).endswith("changed since")
    assert cls.from_pretrained(tmp_path / "all").config.perturbation.changed
    assert not hf_perturb.verify_variant(tmp_path / "all").ok


def test_modules_of_somebody_s_own_are_drawn_where_a_checkpoint_lacks_them(folders):
    for network, cls in (("esm1b", ExtendsEsm), ("carp", HoldsCarp)):
        for name, tensor in own_tensors(cls.from_pretrained(folders / "control" / network)).items():
            assert tensor.isfinite().all()
            assert tensor.flatten().std() > 0, name
            assert (tensor.reshape(len(tensor), -1) != 0).any(1).all(), name  # no row of zeros


@pytest.mark.parametrize("network", ["carp", "esm1b"])
def test_each_way_to_load_knows_the_record(network, folders, tmp_path):
    """From files, as a plain class, in another type, as a copy, and as a configuration asks for it."""
    cls = OWN[network][0]
    folder = tmp_path / "own"
    model = cls.from_pretrained(folders / "control" / network, device_map="cpu")
    expected = network_tensors(model)
    assert same(expected, plain_class(cls).from_pretrained(folders / "control" / network).state_dict())
    model.save_pretrained(folder)
    for options in ({}, {"device_map": "cpu"}, {"verify": True}):
        assert same(plain_class(cls).from_pretrained(folder, **options).state_dict(), expected)
        assert same(network_tensors(cls.from_pretrained(folder, **options)), expected)
    assert str(AutoModel.from_pretrained(folder).config.perturbation) == "resample (seed 7, rules documented)"
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert made.config is made.placed()[1].config
        assert record_now(made.half()).digest is None
        made.placed()[1].get_input_embeddings().weight.data.add_(1)
        assert record_now(made).changed
    with pytest.raises(hf_perturb.StackedPerturbationError):
        cls.from_pretrained(folder, perturbation="reinit")
    fresh = cls(CONFIGS[network](perturbation="reinit"))
    assert str(record_now(fresh)) == "reinit (seed 42, rules documented)"
    assert fresh.config.perturbation.digest == digest_of(network_tensors(fresh))


class Named(FairEsmModel):
    """Its own head is called as a part of the language head is, which it does not have."""

    def __init__(self, config):
        super().__init__(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()


@pytest.mark.parametrize("rules", ["documented", "published"])
def test_a_head_may_be_called_anything(rules, folders, tmp_path):
    base, asked = folders / "base" / "esm1b", {"method": "reinit", "rules": rules}
    expected = FairEsmModel.from_pretrained(base, perturbation=asked)
    expected.save_pretrained(tmp_path / "plain")
    in_memory = Named.from_pretrained(base)
    head = copy.deepcopy(in_memory.lm_head.state_dict())
    assert same(in_memory.perturb(asked).lm_head.state_dict(), head)
    for number, model in enumerate((in_memory, Named.from_pretrained(base, perturbation=asked))):
        assert same(network_tensors(model), expected.state_dict())
        assert torch.equal(model.lm_head.bias, head["bias"])  # of that name in the base, and not perturbed
        model.lm_head.weight.data.add_(1)
        model.save_pretrained(out := tmp_path / str(number))
        assert hf_perturb.verify_variant(out, base).digest == expected.config.perturbation.digest
        assert same(Named.from_pretrained(out, verify=True).lm_head.state_dict(), model.lm_head.state_dict())


def test_the_network_can_be_perturbed_where_it_stands(folders, tmp_path):
    model = HoldsEsm.from_pretrained(folders / "base" / "esm1b")
    hf_perturb.perturb(model.esm, ASKED)
    assert model.config.perturbation == hf_perturb.Perturbation.parse(ASKED)
    model.tie_weights()  # the head is one of its own now
    model.save_pretrained(tmp_path)
    assert hf_perturb.verify_variant(tmp_path, folders / "base" / "esm1b").ok


def test_what_was_built_empty_knows_nothing_until_it_is_told(folders):
    control = HoldsEsm.from_pretrained(folders / "control" / "esm1b")
    with torch.device("meta"):
        model = HoldsEsm(copy.deepcopy(control.config))
    model.load_state_dict(control.state_dict(), assign=True)
    with pytest.raises(hf_perturb.PerturbationError, match="built empty"):
        model.perturb("reinit")
    with pytest.raises(hf_perturb.PerturbationError, match="built empty"):
        model.save_pretrained("nowhere")
    record = control.config.perturbation
    assert model.record_as(record).config.perturbation.digest == record.digest


def test_what_wraps_modules_for_training_is_no_part_of_names(folders, tmp_path):
    model = HoldsCarp.from_pretrained(folders / "control" / "carp")
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, CarpModel))
    assert not isinstance(model.carp, CarpModel)
    train(model, "head").save_pretrained(tmp_path)
    assert HoldsCarp.from_pretrained(tmp_path, verify=True).config.perturbation.digest is not None


# ---- what is wrong with the network


def edited(folder, edit):
    file = folder / "model.safetensors"
    with safe_open(file, "pt") as opened:
        said = opened.metadata()
    tensors = load_file(file)
    edit(tensors)
    digests = json.loads(said["digests"])
    said["digests"] = json.dumps({name: digests.get(name, "0" * 64) for name in tensors})
    save_file(tensors, file, metadata=said)


EDITS = {
    "missing": lambda tensors, first: tensors.pop(first),
    "unexpected": lambda tensors, first: tensors.update({re.sub(r"layers\.0\.", "layers.9.", first): torch.ones(2)}),
    "misshapen": lambda tensors, first: tensors.update({first: torch.ones(2, 2)}),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("kind", ["base", "control"])
@pytest.mark.parametrize(("network", "cls"), SOME[:3])
def test_a_tensor_of_the_network_that_is_not_as_it_should_be_is_refused(network, cls, kind, edit, folders, tmp_path):
    cls.from_pretrained(folders / kind / network).save_pretrained(tmp_path)
    name = "carp.model.embedder.layers.0.conv.weight" if network == "carp" else "layers.0.fc1.weight"
    edited(tmp_path, lambda tensors: EDITS[edit](tensors, ("esm." if cls is HoldsEsm else "") + name))
    for load in (cls.from_pretrained, plain_class(cls).from_pretrained, hf_perturb.verify_variant):
        with pytest.raises(CheckpointError, match=r"layers\.[09]\.(conv|fc1)\.weight"):
            load(tmp_path)


def test_bits_of_the_network_that_differ_are_seen(folders, tmp_path):
    HoldsEsm.from_pretrained(folders / "control" / "esm1b").save_pretrained(tmp_path)
    edited(tmp_path, lambda tensors: tensors["esm.layers.1.fc1.bias"].add_(1))
    assert not hf_perturb.verify_variant(tmp_path).ok
    with pytest.raises(hf_perturb.DigestError):
        HoldsEsm.from_pretrained(tmp_path, verify=True)


def test_one_s_own_modules_may_be_missing_left_over_or_of_another_shape(folders, tmp_path):
    ExtendsEsmLM.from_pretrained(folders / "control" / "esm1b").save_pretrained(tmp_path)
    edited(tmp_path, lambda tensors: tensors.pop("own_head.bias"))
    edited(tmp_path, lambda tensors: tensors.update({"another.weight": torch.ones(3)}))
    edited(tmp_path, lambda tensors: tensors.update({"own_head.weight": torch.ones(3, 32)}))
    found = ExtendsEsmLM.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    assert found.config.perturbation.digest == hf_perturb.verify_variant(tmp_path).digest


# ---- models that no record could describe


class Siamese(CarpPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.one, self.other = CarpModel(config), CarpModel(config)
        self.post_init()


class Teacher(CarpModel):
    def __init__(self, config):
        super().__init__(config)
        self.teacher = CarpModel(config)
        self.post_init()


class Narrow(CarpPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.carp = CarpModel(CONFIGS["carp"](hidden_size=8))
        self.post_init()


def test_a_model_that_holds_two_networks_or_another_than_it_says_is_refused(folders):
    config = CONFIGS["carp"]()
    for cls, said in ((Siamese, "one, other"), (Teacher, "itself, teacher")):
        for build in (lambda cls=cls: cls(config), lambda cls=cls: cls.from_pretrained(folders / "base" / "carp")):
            with pytest.raises(
                UnsupportedModuleError, match=rf"{cls.__name__}: holds two networks \({said}\).*allowed"
            ):
                build()
    with pytest.raises(UnsupportedModuleError, match=r"built with another .*\(hidden_size\).*CarpModel\(self.config\)"):
        Narrow(config)


class Fetches(CarpPreTrainedModel):
    def __init__(self, config, folder):
        super().__init__(config)
        self.carp = CarpModel.from_pretrained(folder)
        self.post_init()


def test_a_model_may_hold_a_network_that_it_loads_itself(folders, tmp_path):
    folder = folders / "control" / "carp"
    expected = CarpModel.from_pretrained(folder)
    for read in ("control", "base"):
        model = Fetches(CarpConfig.from_pretrained(folders / read / "carp"), folder)
        assert model.config.perturbation == expected.config.perturbation
        assert same(model.carp.state_dict(), expected.state_dict())
    model.save_pretrained(tmp_path)
    assert hf_perturb.verify_variant(tmp_path, folders / "base" / "carp").ok


def test_a_folder_with_two_networks_says_so(folders, tmp_path):
    HoldsCarp.from_pretrained(folders / "base" / "carp").save_pretrained(tmp_path)
    edited(
        tmp_path,
        lambda tensors: tensors.update({name.replace("carp.", "b.", 1): x.clone() for name, x in [*tensors.items()]}),
    )
    for load in (CarpModel.from_pretrained, hf_perturb.verify_variant):
        with pytest.raises(CheckpointError, match=r"holds several networks, at 'b\.', 'carp\.'"):
            load(tmp_path)


def test_a_stock_model_that_holds_a_network_is_told_which_to_perturb():
    with pytest.raises(UnsupportedModuleError, match=r"got a Owner.*model\.inner"):
        hf_perturb.perturb(Owner(OwnerConfig()), "reinit")


class Boxed(FairEsmPreTrainedModel):
    """Holds a network with a tied head in a plain module."""

    def __init__(self, config):
        super().__init__(config)
        self.box = nn.ModuleList([FairEsmForMaskedLM(config)])
        self.post_init()


@pytest.mark.parametrize("network", ["esm1b", "esm2"])
def test_a_tied_head_is_tied_wherever_the_network_stands(network, folders, tmp_path):
    base, expected = folders / "base" / network, FairEsmForMaskedLM.from_pretrained(folders / "control" / network)
    model = Boxed.from_pretrained(base)
    assert model.box[0].lm_head.weight is model.box[0].embed_tokens.weight
    model.save_pretrained(tmp_path)
    for folder in (base, tmp_path):
        assert same(Boxed.from_pretrained(folder, perturbation=ASKED).box[0].state_dict(), expected.state_dict())


class TiedTwice(FairEsmForMaskedLM):
    _tied_weights_keys = dict.fromkeys(("lm_head.weight", "own_head.weight"), "embed_tokens.weight")

    def __init__(self, config):
        super().__init__(config)
        self.own_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()


class TiedBeside(FairEsmPreTrainedModel):
    _tied_weights_keys = dict.fromkeys(["own_head.weight"], "esm.embed_tokens.weight")

    def __init__(self, config):
        super().__init__(config)
        self.esm = FairEsmForMaskedLM(config)
        self.own_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()


@pytest.mark.parametrize("cls", [TiedTwice, TiedBeside])
def test_a_tied_head_of_one_s_own_is_kept_when_the_network_s_is_untied(cls, folders, tmp_path):
    model = cls.from_pretrained(folders / "base" / "esm1b")
    assert model.own_head.weight is model.get_input_embeddings().weight
    model.perturb(ASKED).save_pretrained(tmp_path)
    found = cls.from_pretrained(tmp_path, verify=True)
    assert same(found.state_dict(), model.state_dict())
    assert torch.equal(found.own_head.weight, found.get_input_embeddings().weight)


@pytest.mark.parametrize(("network", "cls"), CASES)
def test_the_embedding_is_exchanged_where_the_network_stands(network, cls):
    model = cls(CONFIGS[network]())
    new = torch.nn.Embedding.from_pretrained(2 * model.get_input_embeddings().weight.detach())
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is model.recorded.get_input_embeddings() is new


class WiderConfig(CarpConfig):
    model_type = "wider"
    own_width: int = 3


class Deep(CarpPreTrainedModel):
    """Holds a model that holds one, by a configuration of a type of its own."""

    config_class = WiderConfig

    def __init__(self, config):
        super().__init__(config)
        self.body = HoldsCarp(config)
        self.top = nn.Linear(2, config.own_width)
        self.post_init()


def test_a_model_may_hold_one_that_holds_one(folders, tmp_path):
    model = Deep.from_pretrained(folders / "control" / "carp")
    assert model.placed() == ("body.carp.", model.body.carp)
    model.save_pretrained(tmp_path / "deep")
    found = Deep.from_pretrained(tmp_path / "deep", verify=True)
    plain = CarpModel.from_pretrained(folders / "control" / "carp")
    assert same(found.body.carp.state_dict(), plain.state_dict())
    plain.save_pretrained(tmp_path / "plain")
    assert found.config.perturbation.digest == plain.config.perturbation.digest
    assert found.config.own_width == 3


# ---- the command, and where the package is not


def test_the_command_takes_such_a_folder_for_its_network(folders, tmp_path, capsys):
    base = folders / "base" / "esm1b"
    train(HoldsEsm.from_pretrained(folders / "control" / "esm1b"), "head").save_pretrained(tmp_path / "own")
    own = str(tmp_path / "own")
    assert main(["verify", own]) == 0
    assert main(["verify", own, "--base", str(base)]) == 0
    assert main(["list", own]) == 0
    capsys.readouterr()
    assert main(["push", own, "lab/own", "--dry-run"]) == 1
    assert f"hf-perturb convert {own} OUT" in capsys.readouterr().err
    assert main(["convert", own, str(tmp_path / "plain")]) == 0
    said = capsys.readouterr()
    assert "HoldsEsm's own: lm_head.bias, lm_head.weight, own_head" in said.out + said.err
    assert main(["verify", str(tmp_path / "plain"), "--base", str(base)]) == 0
    plain, control = (
        load_file(path / "model.safetensors") for path in (tmp_path / "plain", folders / "control" / "esm1b")
    )
    assert same(plain, control)
    assert main(["push", str(tmp_path / "plain"), "lab/own", "--dry-run"]) == 0


ALONE = """
import importlib.util, json, sys
sys.modules["hf_perturb"] = None  # what is not installed
from pathlib import Path
folder = "{networks}"
spec = importlib.util.spec_from_file_location("code", f"{folder}/__init__.py", submodule_search_locations=[folder])
sys.modules["code"] = module = importlib.util.module_from_spec(spec)
import torch
from torch import nn
from code.modeling_carp import CarpModel, CarpPreTrainedModel
from code.modeling_fair_esm import FairEsmModel

class HoldsCarp(CarpPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.carp = CarpModel(config)
        self.own_head = nn.Linear(config.hidden_size, 2, bias=False)
        self.post_init()

class ExtendsEsm(FairEsmModel):
    def __init__(self, config):
        super().__init__(config)
        self.own_head = nn.Linear(config.hidden_size, 2)
        self.layers[0].own = nn.Embedding(3, config.hidden_size)
        self.post_init()

for cls, network in ((HoldsCarp, "carp"), (ExtendsEsm, "esm1b")):
    root = Path(sys.argv[1])
    first = cls.from_pretrained(root / "control" / network)
    first.save_pretrained(root / "first" / network)
    own = cls.from_pretrained(root / "own" / network)
    with torch.no_grad():
        own.own_head.weight.add_(1)
    own.save_pretrained(root / "head" / network)
    again = cls.from_pretrained(root / "head" / network)
    with torch.no_grad():
        again.get_input_embeddings().weight.add_(1)
    again.save_pretrained(root / "all" / network)
    plain = (CarpModel if network == "carp" else FairEsmModel).from_pretrained(root / "own" / network)
    print(json.dumps([each.config.to_dict()["perturbation"] for each in (first, own, again, plain)]))
    try:
        plain.push_to_hub("lab/own")
    except OSError as error:
        assert "hf-perturb push" in str(error)
"""


def test_without_the_package_the_record_is_that_of_the_network_too(folders, tmp_path):
    classes = {"carp": HoldsCarp, "esm1b": ExtendsEsm}
    for network, cls in classes.items():
        (tmp_path / "control").mkdir(exist_ok=True)
        (tmp_path / "control" / network).symlink_to(folders / "control" / network)
        cls.from_pretrained(folders / "control" / network).save_pretrained(tmp_path / "own" / network)
    code = ALONE.replace("{networks}", str(Path(hf_perturb.__file__).parent / "networks"))
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for (network, cls), line in zip(classes.items(), done.stdout.splitlines(), strict=True):
        digest = json.loads((tmp_path / "own" / network / "config.json").read_text())["perturbation"]["digest"]
        said = json.loads(line)
        # what a digest is of another class's tensors, nobody can tell there
        assert [(record.get("digest"), record.get("changed")) for record in said] == [
            (None, None),
            (digest, None),
            (digest, True),
            (None, None),
        ]
        expected = network_tensors(cls.from_pretrained(folders / "control" / network))
        for kind in ("first", "head", "all"):
            found = cls.from_pretrained(tmp_path / kind / network)
            assert found.config.perturbation.changed == (kind == "all")
            assert same(network_tensors(found), expected) == (kind != "all")


# ---- names


def test_the_names_of_a_network_are_those_of_its_tensors_and_no_others():
    for family, sizes in itertools.product(PREFIXES, ({}, {"model_version": "ESM-1"}, {"model_version": "ESM-2"})):
        if sizes and family == "carp":
            continue
        for head in AUTO_CLASSES.values():
            shapes = Network.of(family, PREFIXES[family] + head, **sizes).shapes
            assert FIRST[family] in shapes
            heads = {name for name in shapes if name.startswith("classifier.")}
            assert {name for name in shapes if not is_of_network(family, name)} == heads
            assert {
                *tensors_of_network(family, [*shapes, "own.weight", "layers.0.own.weight"])
            } == shapes.keys() - heads
