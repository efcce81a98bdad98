"""Streaming from file to file gives the bits of the model in memory, whatever the base, the types and the threads."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from parity.original_files import original_data, state_of, write_original
from parity.originals import FAIR_ESM, small_pair
from parity.stock import LAYOUTS, STOCKS, stock_model
from safetensors.torch import save_file
from support.models import CONFIGS, HEADS, UNSTUDIED, model_class, small_model
from support.spec_table import same_bits
from support.streamed import (
    DTYPES,
    METHODS,
    SIZES,
    assert_as_saved,
    assert_streamed_as_in_memory,
    contents,
    file_parts,
    in_hub_cache,
    no_waiting,
    weights_of,
    write_base,
    write_tensors,
)
from transformers import AutoModelForMaskedLM

import hf_perturb
from hf_perturb import Perturbation
from hf_perturb.checkpoints import tensors
from hf_perturb.perturbation import digest_of
from hf_perturb.variants import create as variants, stream
from hf_perturb.variants.create import create_variant
from hf_perturb.variants.stream import counter

SHARD = 10_000  # bytes; no tensor of a small network has more
SOME = {name: METHODS[name] for name in ("reinit", "reinit-published", "resample", "resample-published")}


def some(network: str) -> dict[str, Perturbation]:
    return {name: asked for name, asked in SOME.items() if network not in UNSTUDIED or asked.rules != "published"}


_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


waiting = pytest.fixture(no_waiting, autouse=True)


@pytest.fixture(scope="module")
def base_of(tmp_path_factory):
    """Return a function that gives a base folder, written once for a network, head, type and configuration."""
    made: dict[object, Path] = {}

    def give(network: str, head: str = "ForMaskedLM", dtype: torch.dtype = torch.float32, **config) -> Path:
        key = (network, head, dtype, *config.items())
        if key not in made:
            made[key] = write_base(tmp_path_factory.mktemp(network) / "base", network, head, dtype, **config)
        return made[key]

    return give


@pytest.fixture(params=METHODS.values(), ids=METHODS)
def asked(request) -> Perturbation:
    return request.param


@pytest.fixture
def inputs(base_of) -> tuple[Path, Perturbation]:
    """Return a base and what is done to it, some of its tensors kept, some drawn, some shuffled."""
    return base_of("esm2"), Perturbation("resample", axis="rows", exclude=["layers.0.*"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_disk_is_as_memory_in_every_type(base_of, network, dtype, asked, tmp_path):
    assert_streamed_as_in_memory(base_of(network, dtype=dtype), tmp_path, asked, network)


@pytest.mark.parametrize("head", [head for head in HEADS if head != "ForMaskedLM"])
def test_disk_is_as_memory_under_every_head(base_of, network, head, asked, tmp_path):
    assert_streamed_as_in_memory(base_of(network, head, torch.bfloat16), tmp_path, asked, network, head)


@pytest.mark.parametrize("method", ["reinit", "resample", "gaussian"])
@pytest.mark.parametrize(
    ("network", "head", "keys"),
    [
        ("esm1b", "ForMaskedLM", {"exclude": ["lm_head.weight"]}),
        ("esm2", "ForMaskedLM", {"include": ["lm_head.weight"]}),
        ("esm2", "ForMaskedLM", {"include": ["lm_head.dense.*", "layers.1.*"], "exclude": ["*.bias"]}),
        ("esm1b", "Model", {"exclude": ["lm_head.weight"]}),
        ("esm1b", "Model", {"exclude": ["lm_head.*"]}),
        ("esm1", "ForMaskedLM", {"include": ["layers.*.bias_[kv]"]}),
        ("esm2", "ForSequenceClassification", {"scope": ["top:1", "attention"]}),
        ("carp", "ForMaskedLM", {"exclude": ["*.conv.weight"], "scope": ["bottom:2"]}),
        ("esm1b", "ForMaskedLM", {"also": ["embeddings"], "exclude": ["lm_head.weight"]}),
        ("esm2", "ForMaskedLM", {"also": ["embeddings"], "include": ["embed_tokens.weight"]}),
        ("esm1b", "Model", {"also": ["embeddings"], "exclude": ["lm_head.*"]}),
        ("esm1b", "Model", {"also": ["embeddings"]}),
        ("esm1", "Model", {"also": ["head"]}),
        ("carp", "ForMaskedLM", {"also": ["head"], "include": ["model.decoder.*", "model.last_norm.*"]}),
        ("carp", "ForTokenClassification", {"also": ["embeddings", "head"], "scope": ["keep_layer_norms"]}),
    ],
)
def test_disk_is_as_memory_for_a_part_of_the_network(base_of, network, head, keys, method, tmp_path):
    base = base_of(network, head)
    assert_streamed_as_in_memory(base, tmp_path, Perturbation(method, seed=3, **keys), network, head)


def test_a_tie_is_kept_or_undone_as_in_memory(base_of, tmp_path):
    base = base_of("esm1b")
    before = weights_of(base)
    assert "lm_head.weight" not in before
    whole, kept, published = (
        weights_of(Path(tmp_path, name))
        for name, asked in {
            "whole": Perturbation("resample"),
            "kept": Perturbation("resample", exclude=["lm_head.weight"]),
            "published": Perturbation("resample", rules="published"),
        }.items()
        if create_variant(base, tmp_path / name, asked)
    )
    assert whole.keys() == before.keys() | {"lm_head.weight"}
    assert same_bits(whole["embed_tokens.weight"], before["embed_tokens.weight"])
    assert not same_bits(whole["lm_head.weight"], before["embed_tokens.weight"])
    assert kept.keys() == published.keys() == before.keys()
    assert same_bits(kept["embed_tokens.weight"], before["embed_tokens.weight"])
    assert not same_bits(published["embed_tokens.weight"], before["embed_tokens.weight"])
    ties = {
        name: json.loads((tmp_path / name / "config.json").read_text()).get("tie_word_embeddings", True)
        for name in ("whole", "kept", "published")
    }
    assert ties == {"whole": False, "kept": True, "published": True}


@pytest.mark.parametrize("asked", some("esm2").values(), ids=some("esm2"))
@pytest.mark.parametrize("network", ["esm1b", "esm2"])
def test_disk_is_as_memory_for_an_untied_base(base_of, network, asked, tmp_path):
    base = base_of(network, tie_word_embeddings=False)
    assert "lm_head.weight" in weights_of(base)
    assert_streamed_as_in_memory(base, tmp_path, asked, network)


@pytest.mark.parametrize("asked", SOME.values(), ids=SOME)
def test_disk_is_as_memory_for_a_base_without_contact_head(base_of, asked, tmp_path):
    base = base_of("esm1b", contact_head=False)
    assert not [name for name in weights_of(base) if name.startswith("contact_head")]
    assert_streamed_as_in_memory(base, tmp_path, asked, "esm1b")


@pytest.mark.parametrize("asked", SOME.values(), ids=SOME)
@pytest.mark.parametrize(
    ("network", "config"),
    [
        ("carp", {"hidden_size": 2, "embedding_size": 1}),
        ("esm1", {"num_hidden_layers": 1, "hidden_size": 4, "num_attention_heads": 1, "intermediate_size": 1}),
        ("esm2", {"num_hidden_layers": 1, "hidden_size": 2, "num_attention_heads": 1, "intermediate_size": 1}),
    ],
)
def test_disk_is_as_memory_for_tensors_of_one_element(base_of, network, config, asked, tmp_path):
    base = base_of(network, **config)
    assert sum(tensor.numel() == 1 for tensor in weights_of(base).values()) >= 3
    assert_streamed_as_in_memory(base, tmp_path, asked, network)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_rotary_frequencies_are_widened_as_in_memory(dtype, tmp_path):
    base = write_base(tmp_path / "base", "esm2", dtype=dtype)
    narrow = {name: tensor.to(dtype) for name, tensor in weights_of(base).items()}
    save_file(narrow, base / "model.safetensors", {"format": "pt"})
    record = create_variant(base, tmp_path / "ours", "resample")
    loaded = AutoModelForMaskedLM.from_pretrained(base)
    assert record.base.digest == digest_of(loaded.state_dict()) != digest_of(narrow)
    hf_perturb.perturb(loaded, "resample").save_pretrained(tmp_path / "theirs")
    assert_as_saved(tmp_path / "ours", tmp_path / "theirs")


@pytest.mark.parametrize("axis", ["embedding", "rows", "all"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_bit_of_a_nan_survives(dtype, axis, tmp_path):
    """Signalling and quiet, of either sign, with payloads: no two of them the same."""
    model = small_model("carp", num_hidden_layers=1).to(dtype)
    integer = _BITS[dtype]
    infinity = torch.tensor(torch.inf, dtype=dtype).view(integer).item()
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.view(-1)[: min(4, parameter.numel())]
            odd = [infinity + 1, infinity + 5, -1, torch.iinfo(integer).max - 2][: len(flat)]
            flat.view(integer).copy_(torch.tensor(odd, dtype=integer))
    model.save_pretrained(tmp_path / "base")
    before = weights_of(tmp_path / "base")
    assert all(tensor.isnan().any() for tensor in before.values())
    assert_streamed_as_in_memory(tmp_path / "base", tmp_path, Perturbation("resample", axis=axis), "carp")
    for name, tensor in weights_of(tmp_path / "ours").items():
        one, other = (x.contiguous().view(integer).flatten().sort().values for x in (before[name], tensor))
        assert torch.equal(one, other), name


def backwards(work, items, jobs=None):
    """In place of `for_each`: what is drawn in order is drawn, then all is run from the last to the first."""
    for item in reversed(list(items)):
        work(item)


@pytest.mark.parametrize("network", ["esm1b", "carp"])
def test_neither_the_number_nor_the_order_of_threads_counts(base_of, network, asked, tmp_path, monkeypatch):
    base = base_of(network)
    for jobs in (1, 4, 50):
        create_variant(base, tmp_path / str(jobs), asked, jobs=jobs)
    monkeypatch.setattr(stream, "for_each", backwards)
    create_variant(base, tmp_path / "backwards", asked)
    expected = contents(tmp_path / "1")
    for other in ("4", "50", "backwards"):
        assert contents(tmp_path / other) == expected


@pytest.mark.parametrize("method", ["reinit", "resample"])
def test_published_rules_draw_one_after_another_though_threads_are_late(base_of, method, tmp_path, monkeypatch):
    base, asked = base_of("esm1b"), Perturbation(method, rules="published")
    in_memory = hf_perturb.perturb(AutoModelForMaskedLM.from_pretrained(base), asked)
    digest, turns = tensors.tensor_digest, iter(range(1000))

    def late(tensor):
        # every third is overtaken by those that come after it
        if next(turns) % 3 == 0:
            threading.Event().wait(0.005)
        return digest(tensor)

    monkeypatch.setattr(tensors, "tensor_digest", late)
    record = create_variant(base, tmp_path / "out", asked, jobs=4)
    assert next(turns) > 20
    assert record.digest == digest_of(in_memory.state_dict()) == digest_of(weights_of(tmp_path / "out"))


@pytest.mark.parametrize("asked", SOME.values(), ids=SOME)
def test_a_sharded_base_is_like_a_whole_one(base_of, network, asked, tmp_path):
    model = AutoModelForMaskedLM.from_pretrained(base_of(network))
    model.save_pretrained(tmp_path / "base", max_shard_size=SHARD)
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 3
    create_variant(base_of(network), tmp_path / "of-whole", asked)
    create_variant(tmp_path / "base", tmp_path / "of-shards", asked)
    assert contents(tmp_path / "of-shards") == contents(tmp_path / "of-whole")


@pytest.mark.parametrize("asked", [METHODS["reinit"], METHODS["resample-published"]], ids=["reinit", "published"])
def test_shards_are_those_of_save_pretrained(base_of, network, asked, tmp_path, monkeypatch):
    base = base_of(network)
    monkeypatch.setattr("hf_perturb.variants.shards.MAX_SHARD_SIZE", SHARD)
    record = create_variant(base, tmp_path / "ours", asked)
    # of a model that it has loaded itself, Transformers cuts the tensors in the order of their names
    model = hf_perturb.perturb(small_model(network, **SIZES[network]), asked)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=SHARD)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 3
    assert_as_saved(tmp_path / "ours", tmp_path / "theirs")
    index = "model.safetensors.index.json"
    ours, theirs = (json.loads((tmp_path / side / index).read_text()) for side in ("ours", "theirs"))
    assert ours["weight_map"] == theirs["weight_map"]
    assert ours["metadata"]["total_size"] == theirs["metadata"]["total_size"]
    loaded = model_class(network).from_pretrained(tmp_path / "ours")
    assert digest_of(loaded.state_dict()) == record.digest


def assert_as_converted(source: Path, scratch: Path, network: str) -> None:
    """Compare the variants of a checkpoint with those of the base that `convert` makes of it."""
    hf_perturb.convert_checkpoint(source, scratch / "base")
    for name, asked in some(network).items():
        direct = create_variant(source, scratch / f"{name}-direct", asked)
        converted = create_variant(scratch / "base", scratch / f"{name}-converted", asked)
        assert (direct.digest, direct.base.digest) == (converted.digest, converted.base.digest)
        assert (direct.base.name, converted.base.name) == (source.name, "base")
        one, other = (contents(scratch / f"{name}-{way}") for way in ("direct", "converted"))
        assert one.keys() == other.keys()
        for file in ("model.safetensors", "config.json", "README.md"):
            text = one.pop(file)[8:].replace(source.name.encode(), b"base"), other.pop(file)[8:]
            # the header is filled up with blanks to a multiple of eight bytes
            assert text[0].replace(b" ", b"") == text[1].replace(b" ", b"")
        assert one == other


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stock_esm_is_streamed_as_if_converted(layout, tmp_path):
    for name in STOCKS:
        (tmp_path / name).mkdir()
        LAYOUTS[layout](stock_model(name, max_position_embeddings=64), tmp_path / name / "stock")
        assert_as_converted(tmp_path / name / "stock", tmp_path / name, name)


@pytest.mark.parametrize("half", [False, True], ids=["as-published", "half"])
@pytest.mark.parametrize("name", [*FAIR_ESM, "carp"])
def test_originals_are_streamed_as_if_converted(name, half, tmp_path):
    data = original_data(small_pair(name))
    if half:
        state = state_of(data)
        state.update({key: tensor.half() for key, tensor in state.items()})
    source = write_original(tmp_path, name, data)
    assert_as_converted(source, tmp_path, name)
    assert {tensor.dtype for tensor in weights_of(tmp_path / "reinit-direct").values()} == {torch.float32}


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_that_torch_saved_are_streamed_like_safetensors(base_of, network, zipped, tmp_path):
    model = AutoModelForMaskedLM.from_pretrained(base_of(network))
    model.config.save_pretrained(tmp_path / "base")
    torch.save(model.state_dict(), tmp_path / "base" / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    for name, asked in some(network).items():
        create_variant(base_of(network), tmp_path / f"{name}-safe", asked)
        create_variant(tmp_path / "base", tmp_path / f"{name}-torch", asked)
        assert contents(tmp_path / f"{name}-torch") == contents(tmp_path / f"{name}-safe")


def test_a_base_on_the_hub_is_read_from_its_cache(base_of, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    base, commit = base_of("esm1b"), 40 * "a"
    in_hub_cache(tmp_path / "cache", "someone/base", base, commit)
    for name, asked in SOME.items():
        record = create_variant("someone/base", tmp_path / f"{name}-hub", asked)
        local = create_variant(base, tmp_path / f"{name}-local", asked)
        assert (record.base.name, record.base.revision) == ("someone/base", commit)
        assert (record.digest, record.base.digest) == (local.digest, local.base.digest)
        one, other = (file_parts(tmp_path / f"{name}-{w}" / "model.safetensors")[1:] for w in ("hub", "local"))
        assert one == other
        assert "base_model: someone/base\n" in (tmp_path / f"{name}-hub" / "README.md").read_text()


@pytest.fixture
def moved(monkeypatch) -> dict[str, int]:
    """Return how many bytes the kernel copies, and how many are written from Python, from now on."""
    counts = {"kernel": 0, "python": 0}
    copy_file_range, pwrite = os.copy_file_range, os.pwrite

    def counted_copy(*arguments):
        counts["kernel"] += (done := copy_file_range(*arguments))
        return done

    def counted_write(*arguments):
        counts["python"] += (done := pwrite(*arguments))
        return done

    monkeypatch.setattr(os, "copy_file_range", counted_copy)
    monkeypatch.setattr(os, "pwrite", counted_write)
    return counts


copies_in_kernel = pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="the system has no copy_file_range")


@copies_in_kernel
@pytest.mark.parametrize("keys", [{"include": ["layers.1.*"]}, {"exclude": ["layers.1.*"]}])
@pytest.mark.parametrize("method", ["reinit", "resample"])
def test_kept_tensors_are_copied_by_the_kernel(base_of, network, method, keys, moved, tmp_path):
    if network == "carp":
        keys = {key: ["model.embedder." + glob for glob in globs] for key, globs in keys.items()}
    base, asked = base_of(network), Perturbation(method, **keys)
    create_variant(base, tmp_path / "out", asked, jobs=1)
    model = AutoModelForMaskedLM.from_pretrained(base)
    tensors = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    steps = {step.name for step in hf_perturb.perturbation.make_plan(model.config.model_type, tensors, asked).steps}
    written = weights_of(tmp_path / "out")
    kept = sum(tensor.nbytes for name, tensor in written.items() if name not in steps)
    header = (tmp_path / "out" / "model.safetensors").stat().st_size - sum(t.nbytes for t in written.values())
    assert moved == {"kernel": kept, "python": sum(t.nbytes for t in written.values()) - kept + header}
    assert kept > 1000


def refusing(number: int):
    """Return a system call that fails."""

    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    return fail


def in_pieces(copy_file_range, pieces: list[int], then=None):
    """Return a `copy_file_range` that copies a few bytes at a time, and after some calls does something else."""

    def copy(source, target, count, *offsets):
        pieces.append(count)
        if then is not None and len(pieces) > 7:
            return then(source, target, count, *offsets)
        return copy_file_range(source, target, min(count, 100), *offsets)

    return copy


@copies_in_kernel
@pytest.mark.parametrize(
    "broken",
    [
        lambda real, calls: refusing(errno.EXDEV),
        lambda real, calls: refusing(errno.EOPNOTSUPP),
        lambda real, calls: lambda *arguments: 0,
        in_pieces,
        partial(in_pieces, then=refusing(errno.EXDEV)),
        partial(in_pieces, then=lambda *arguments: 0),
        None,
    ],
    ids=["two-disks", "refused", "nothing", "pieces", "pieces-then-refused", "pieces-then-nothing", "missing"],
)
def test_a_kernel_that_copies_less_gives_the_same_file(inputs, broken, tmp_path, monkeypatch):
    base, asked = inputs
    create_variant(base, tmp_path / "expected", asked)
    calls: list[int] = []
    if broken is None:
        monkeypatch.delattr(os, "copy_file_range")
    else:
        monkeypatch.setattr(os, "copy_file_range", broken(os.copy_file_range, calls))
    create_variant(base, tmp_path / "out", asked)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    assert len(calls) > 7 or "in_pieces" not in repr(broken)


def test_short_writes_are_continued(inputs, tmp_path, monkeypatch):
    base, asked = inputs
    create_variant(base, tmp_path / "expected", asked)
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda target, data, offset: pwrite(target, data[:333], offset))
    create_variant(base, tmp_path / "out", asked)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, None])
def test_a_file_system_that_reserves_no_room_will_do(inputs, number, tmp_path, monkeypatch):
    base, asked = inputs
    create_variant(base, tmp_path / "expected", asked)
    if number is None:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    else:
        monkeypatch.setattr(os, "posix_fallocate", refusing(number), raising=False)
    create_variant(base, tmp_path / "out", asked)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


@pytest.mark.parametrize("jobs", [1, 4])
@pytest.mark.parametrize("calls", [["posix_fallocate"], ["pwrite"], ["copy_file_range", "pwrite"], ["fsync"]])
def test_a_full_disk_is_an_error_that_leaves_nothing(inputs, calls, jobs, tmp_path, monkeypatch):
    base, asked = inputs
    for call in calls:
        monkeypatch.setattr(os, call, refusing(errno.ENOSPC), raising=False)
    with pytest.raises(hf_perturb.CheckpointError, match=r"nothing was written, because .*No space left on device"):
        create_variant(base, tmp_path / "sub" / "out", asked, jobs=jobs)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


def test_a_disk_that_is_full_half_way_is_an_error_that_leaves_the_old(inputs, tmp_path, monkeypatch):
    base, asked = inputs
    create_variant(base, tmp_path / "out", "reinit")
    before = contents(tmp_path / "out")
    pwrite, turns = os.pwrite, iter(range(1000))

    def fills_up(*arguments):
        return pwrite(*arguments) if next(turns) < 20 else refusing(errno.ENOSPC)()

    monkeypatch.setattr(os, "pwrite", fills_up)
    with pytest.raises(hf_perturb.CheckpointError, match="No space left on device"):
        create_variant(base, tmp_path / "out", asked, force=True)
    assert os.listdir(tmp_path) == ["out"]
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("asked", [METHODS["reinit"], METHODS["resample"]], ids=["reinit", "resample"])
def test_a_base_that_is_cut_short_meanwhile_is_an_error(base_of, asked, tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    for name, content in contents(base_of("carp")).items():
        (tmp_path / "base" / name).write_bytes(content)
    make_blueprint = variants.make_blueprint

    def cut(*arguments):
        os.truncate(tmp_path / "base" / "model.safetensors", 20_000)
        return make_blueprint(*arguments)

    monkeypatch.setattr(variants, "make_blueprint", cut)
    with pytest.raises(hf_perturb.CheckpointError, match="was written into while it was read"):
        create_variant(tmp_path / "base", tmp_path / "out", asked)
    assert os.listdir(tmp_path) == ["base"]


_PEAK = """
import json, sys, torch
from pathlib import Path
from hf_perturb.variants.create import create_variant

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

torch.set_num_threads(1)
folder = Path(sys.argv[1])
create_variant("demo", folder / "first", "resample")
before = peak()
for number, asked in enumerate(json.loads(sys.argv[2])):
    create_variant(folder / "base", folder / str(number), asked, jobs=2)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell the peak of a process")
def test_memory_is_that_of_a_few_tensors(tmp_path):
    """A file of 100 tensors of 4 MB, and two jobs: each has one tensor that it reads and one that it writes."""
    config = CONFIGS["esm1b"](
        num_hidden_layers=16, hidden_size=1024, intermediate_size=1024, max_position_embeddings=64
    )
    config.architectures = ["FairEsmModel"]
    config.save_pretrained(tmp_path / "base")
    values = torch.rand(1024 * 1024, generator=torch.Generator().manual_seed(0))
    tensors = {
        name: values[: torch.Size(shape).numel()].view(shape)
        for name, shape in hf_perturb.checkpoints.shapes.layout(config, "FairEsmModel", 2).items()
    }
    write_tensors(tmp_path / "base", tensors)
    size, largest = (tmp_path / "base" / "model.safetensors").stat().st_size, 4 * 1024 * 1024
    assert size > 96 * largest
    asked = [{"method": "resample"}, {"method": "reinit", "rules": "published"}]
    words = [sys.executable, "-c", _PEAK, str(tmp_path), json.dumps(asked)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 25 * largest < size / 3.5


@pytest.mark.parametrize("jobs", [1, 4])
def test_progress_grows_to_the_end(inputs, jobs, tmp_path):
    base, asked = inputs
    calls: list[tuple[int, int, int]] = []
    create_variant(
        base,
        tmp_path / "out",
        asked,
        jobs=jobs,
        progress=lambda done, total: calls.append((done, total, threading.get_ident())),
    )
    done, totals, threads = zip(*calls, strict=True)
    size = sum(tensor.nbytes for folder in (base, tmp_path / "out") for tensor in weights_of(folder).values())
    assert set(totals) == {size}, "what is read and what is written"
    assert list(done) == sorted(set(done))
    assert done[-1] == size
    assert len(done) > 50
    assert (threading.get_ident() in threads) == (jobs == 1)


def test_progress_of_several_threads_is_added_up():
    calls: list[tuple[int, int]] = []
    add, start = counter(4000, lambda *call: calls.append(call)), threading.Barrier(4)

    def work():
        start.wait()
        for _ in range(1000):
            add(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [(done, 4000) for done in range(1, 4001)]


@pytest.mark.parametrize("jobs", [1, 4])
def test_what_progress_raises_stops_the_work_and_leaves_nothing(inputs, jobs, tmp_path):
    base, asked = inputs
    calls: list[int] = []

    def stop(done, total):
        calls.append(done)
        if len(calls) > 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_variant(base, tmp_path / "out", asked, jobs=jobs, progress=stop)
    assert len(calls) < 40
    assert os.listdir(tmp_path) == []
