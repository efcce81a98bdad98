"""A fuzzer of `config.json`: whatever is written there, it works, or an error says why not.

By hand, for a number of mutations and a seed: `PYTHONPATH=tests python tests/support/fuzzing.py 20000 0`.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, EsmConfig, EsmForMaskedLM, PreTrainedConfig
from transformers.utils import logging

import hf_perturb
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.cli.main import main
from hf_perturb.networks.sizes import _FIELDS, CarpSizes, FairEsmSizes
from hf_perturb.variants.create import create_variant
from support.models import model_class, small_model

WORKS, REFUSED = "works", "says why not"
SECONDS, BYTES = 5, 2**30  # of processor time, which who else works here does not lengthen
PACKAGE = str(Path(hf_perturb.__file__).parent)
TINY = {"hidden_size": 8, "num_hidden_layers": 2}
TINY_ESM = {**TINY, "num_attention_heads": 2, "intermediate_size": 8}
# what Transformers reads of a configuration, or has read, and what somebody may think that it does
KEYS = [
    *(name for name in dir(PreTrainedConfig) if not name.startswith("__")),
    *("fusion_config", "attn_implementation", "_attn_implementation", "_attn_implementation_internal", "sub_configs"),
    *("_experts_implementation_internal", "experts_implementation", "rope_parameters", "rope_theta", "text_config"),
    *("distributed_config", "device_mesh", "device_map", "tp_plan", "disable_mmap", "transformers_weights"),
    *("configuration_files", "num_labels", "torch_dtype", "auto_map", "quantization_config", "_name_or_path"),
    *("name_or_path", "_commit_hash", "gradient_checkpointing", "layer_types", "mlp_layer_types", "use_cache"),
    *("per_layer_config", "_output_attentions", "output_attentions", "_from_auto", "return_unused_kwargs", "kwargs"),
    *("initializer_range", "pruned_heads", "max_length", "_read_as", "_pre_quantization_dtype", "vision_config"),
    *("torchscript", "task_specific_params", "is_decoder", "esmfold_config", "vocab_list", "adapter_kwargs"),
    *("backbone", "my_note", "", " ", "\u0000", "\ud800", "self", "cls", "__class__", "__dict__", "config_dict"),
]
VALUES = [
    *(None, True, False, 0, 1, -1, 2, 3, 5, 33, 10**6, 10**30, 10**400, -(10**20), 0.0, 0.5, -1.5, 1e308, 1e-320),
    *(float("nan"), float("inf"), float("-inf"), "", "x", "0", "nn", "float16", "bfloat16", "float64", "float32"),
    *("torch.float32", "int8", "auto", "None", "é", "\ud800", "\u0000", "x" * 100_000, "../x", "ESM-1", "esm", "carp"),
    *("fair_esm", "bert", "rotary", "gelu", "reinit", "regression", "a--b", "CarpModel", [], [None], [1, 2], ["x"]),
    *([[]], [{}], ["CarpForMaskedLM"], ["FairEsmModel"], ["EsmForMaskedLM"], ["EsmForTokenClassification"], {}),
    *({"": None}, {"x": 1}, {"0": "a", "1": "b"}, {"a": 0, "b": 1}, {"0": None}, {"-1": "x"}, {"1.5": "x"}),
    *({"0": "a", "x": "b"}, {"method": "reinit"}, {"method": "resample", "seed": 10**30}, {"method": []}),
    *({"__float__": "NaN"}, {"quant_method": "bitsandbytes"}, {"quant_method": 5}, {"quant_method": "fp8"}),
    *({"AutoModel": "x.Y"}, {"AutoModel": None}, {"AutoModel": "a/b--x.Y"}, {"AutoConfig": "modeling.Missing"}),
    *({"model_type": "carp"}, {"model_type": []}, {"dtype": 5}, {"dtype": {"": "x"}}, {"layers": {"x": {"y": [1]}}}),
]
FIELDS = [*CarpSizes.__dataclass_fields__, *FairEsmSizes.__dataclass_fields__, *_FIELDS]
EACH = ("[]", '{"x":}')


def subjects(folder: Path) -> list[Path]:
    """Write a checkpoint of every kind that has a `config.json`."""
    torch.manual_seed(0)
    small_model("carp", **TINY).save_pretrained(folder / "base")
    create_variant(folder / "base", folder / "carp", "resample")
    small_model("esm1", **TINY_ESM).save_pretrained(folder / "esm1")
    small_model("esm1b", "ForSequenceClassification", num_labels=3, **TINY_ESM).save_pretrained(folder / "esm1b")
    hf_perturb.convert_checkpoint(folder / "esm1", folder / "converted")
    alphabet = {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32, "position_embedding_type": "rotary"}
    EsmForMaskedLM(EsmConfig(**TINY_ESM, **alphabet)).save_pretrained(folder / "stock")
    create_variant("demo", folder / "recipe", "reinit", recipe=True)
    return [folder / name for name in ("carp", "esm1", "esm1b", "converted", "stock", "recipe")]


def nested(depth: int, pair: str) -> str:
    """Return JSON of so many levels of lists, `[]`, or of objects, `{"x":}`."""
    return pair[:-1] * depth + ("1" if len(pair) > 2 else "") + pair[-1] * depth


def mutated(random: random.Random, text: str) -> bytes:
    """Return what somebody else may have made of a `config.json`."""
    if random.random() < 0.1:
        return torn(random, text)
    content = json.loads(text)
    raw = {}
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        known, value = random.choice(list(content) or ["x"]), random.choice(VALUES)
        kind = random.random()
        if kind < 0.45:
            content[known] = value
        elif kind < 0.75:
            content[random.choice(random.choice((KEYS, FIELDS)))] = value
        elif kind < 0.85:
            content.pop(known, None)
        elif kind < 0.9:
            raw[random.choice((known, *KEYS))] = nested(random.choice((19, 21, 300, 990, 5000)), random.choice(EACH))
        elif isinstance(content.get(known), dict) and content[known]:
            content[known][random.choice([*content[known], "x"])] = value
        else:
            content[known] = {known: content.get(known)}
    said = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
    # a key that is there twice counts where it is last
    said += [f"{json.dumps(key)}: {value}" for key, value in raw.items()]
    random.shuffle(said)
    return ("{" + ", ".join(said) + "}").encode()


def torn(random: random.Random, text: str) -> bytes:
    """Return what is hardly JSON, or no object."""
    whole = text.encode()
    at = random.randrange(len(whole))
    return random.choice(
        (
            whole[:at],
            whole[:at] + bytes([random.randrange(256)]) + whole[at + 1 :],
            b"\xef\xbb\xbf" + whole,
            text.encode("utf-16"),
            text.encode("utf-32"),
            whole.replace(b'"', b"\xe9", 1),
            json.dumps(random.choice(VALUES)).encode(),
            nested(random.choice((990, 200_000)), random.choice(EACH)).encode(),
            b"9" * 5000,
            b'{"hidden_size": ' + b"9" * 5000 + b"}",
            whole + whole,
            b"",
        )
    )


def ways(folder: Path, random: random.Random) -> dict:
    """Return every way to read a folder, with one of the commands now and then."""
    network = "carp" if folder.name in ("carp", "recipe") else "esm1b"
    name, out = str(folder), folder.parent / "out"
    found = {
        "open": lambda: Checkpoint.open(name).check(),
        "class": lambda: model_class(network).from_pretrained(name),
        "configuration": lambda: model_class(network).config_class.from_pretrained(name),
    }
    if folder.name != "stock":  # the Auto classes load Transformers' own ESM with its own classes
        found["AutoConfig"] = lambda: AutoConfig.from_pretrained(name)
        found["AutoModel"] = lambda: AutoModel.from_pretrained(name)
    commands = (
        ["verify", name],
        ["list", name],
        ["create", name, str(out), "--method", "reinit", "--force"],
        ["convert", name, f"{out}-base", "--force"],
        ["push", name, "lab/model", "--dry-run"],
    )
    if random.random() < 0.2:
        words = random.choice(commands)
        found[words[0]] = lambda: main(words)
    return found


def outcome(call, quantised: bool) -> str:
    """Return what becomes of a call: it works, it is refused, or what is wrong with that."""
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = WORKS
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            result = REFUSED if call() == 1 else WORKS
    except (hf_perturb.HfPerturbError, ValueError, OSError) as error:
        result = REFUSED if str(error) else f"{type(error).__name__} without a message"
    except ImportError as error:
        result = REFUSED if quantised else str(error)  # it says what to install
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = any(frame.filename.startswith(PACKAGE) for frame in frames)
        last = frames[-1]
        said = f"{type(error).__name__}: {str(error)[:200]} ({Path(last.filename).name}:{last.lineno})"
        # what Transformers does before it asks a class of ours is not ours to say
        result = said if ours else f"before us: {type(error).__name__} ({Path(last.filename).name}:{last.lineno})"
    if (took := time.process_time() - start) > SECONDS:
        result = f"{took:.0f} s ({result})"
    if (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 > BYTES:
        result = f"more than 1 GB ({result})"
    return result


def fuzz(folder: Path, mutations: int, seed: int) -> tuple[Counter, dict[str, bytes]]:
    """Try mutations of every subject in every way.

    Args:
        folder: an empty one.
        mutations: how many.
        seed: of the mutations.

    Returns:
        How often each way came to what, and a `config.json` for each fault.
    """
    found, examples, draws = Counter(), {}, random.Random(seed)
    files = {path: (path / "config.json").read_text() for path in subjects(folder)}
    for _ in range(mutations):
        path = draws.choice(list(files))
        content = mutated(draws, files[path])
        (path / "config.json").write_bytes(content)
        for way, call in ways(path, draws).items():
            result = outcome(call, b"quant_method" in content)
            found[f"{way}: {result}"] += 1
            if result not in (WORKS, REFUSED):
                examples.setdefault(f"{way}: {result}", content)
        (path / "config.json").write_text(files[path])
    return found, examples


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        counts, faults = fuzz(Path(scratch), int(sys.argv[1]), int(sys.argv[2]))
    for line, times in counts.most_common():
        print(f"{times:7} {line}")
        if line in faults:
            print("        ", faults[line][:600])
