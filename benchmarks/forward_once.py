"""Load one side's network, time forward passes of it, and print what they took; a process of `benchmark forward`.

Every side predicts tokens of the same sequences, read by its own tokenizer, in inference mode, with torch's own number
of threads and in full float32 where it runs in float32 (no TF32).

  python benchmarks/forward_once.py fair-esm my-base proteins.fasta
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from agreement import differences
from networks import read_fasta
from safetensors.torch import load_file, save_file

# a small network is run again until this many seconds are over, or this many times
_SECONDS, _PASSES = 1.0, 20


class Side(NamedTuple):
    """A network that is ready to run.

    Args:
        model: the module.
        tokenize: from sequences to a right-padded batch.
        predict: from a batch to logits.
        represent: from a batch to the last representation and the logits.
        first: place of a sequence's first residue.
    """

    model: torch.nn.Module
    tokenize: Callable[[list[str]], Any]
    predict: Callable[[Any], torch.Tensor]
    represent: Callable[[Any], tuple[torch.Tensor, torch.Tensor]]
    first: int


def load_original_side(base: Path, dtype: torch.dtype) -> Side:
    """Load fair-esm's or sequence-models' own class."""
    from original_networks import load_original

    model, config = load_original(base)
    if config["model_type"] == "carp":
        from sequence_models.collaters import SimpleCollater
        from sequence_models.constants import PROTEIN_ALPHABET

        collater = SimpleCollater(PROTEIN_ALPHABET, pad=True)
        run, first = partial(model, logits=True), 0

        def tokenize(sequences: list[str]) -> torch.Tensor:
            return collater([[sequence] for sequence in sequences])[0]
    else:
        from esm.data import Alphabet

        # that of ESM-2 is the same
        alphabet = "ESM-1" if config["model_version"] == "ESM-1" else "ESM-1b"
        converter = Alphabet.from_architecture(alphabet).get_batch_converter()
        run, first = model, 1

        def tokenize(sequences: list[str]) -> torch.Tensor:
            return converter([("", sequence) for sequence in sequences])[2]

    def represent(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        result = run(tokens, repr_layers=[config["num_hidden_layers"]])
        return result["representations"][config["num_hidden_layers"]], result["logits"]

    return Side(model.to(dtype), tokenize, lambda tokens: run(tokens, repr_layers=[])["logits"], represent, first)


def load_transformers_side(package: str, folder: Path, dtype: torch.dtype) -> Side:
    """Load Transformers' own ESM, or our class."""
    if package == "ours":
        from hf_perturb import CarpForMaskedLM, FairEsmForMaskedLM as EsmForMaskedLM
    else:
        from transformers import EsmForMaskedLM
    from transformers import AutoTokenizer

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    is_carp = config["model_type"] == "carp"
    model_class = CarpForMaskedLM if is_carp else EsmForMaskedLM
    model = model_class.from_pretrained(folder, dtype=dtype).eval()

    def represent(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = model(**batch, output_hidden_states=True)
        return outputs.hidden_states[-1], outputs.logits

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenize = partial(tokenizer, padding=True, return_tensors="pt")
    return Side(model, tokenize, lambda batch: model(**batch).logits, represent, int(not is_carp))


def batches(side: Side, sequences: list[str], size: int, device: str) -> list[Any]:
    """Tokenise sequences in batches, in the order given."""
    parts = [sequences[start : start + size] for start in range(0, len(sequences), size)]
    return [side.tokenize(part).to(device) for part in parts]


def seconds_of_a_pass(side: Side, pass_: list[Any], device: str) -> float:
    """Run every batch once."""
    begin = time.perf_counter()
    for batch in pass_:
        side.predict(batch)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def timings(side: Side, sequences: list[str], size: int, device: str, alone: bool) -> dict[str, Any]:
    """Time passes in the file's order and sorted by length, and on request without padding, in turn."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    passes = {
        "file": batches(side, sequences, size, device),
        "sorted": batches(side, sorted(sequences, key=len), size, device),
    }
    if alone:
        passes["alone"] = batches(side, sequences, 1, device)
    # on a GPU every shape is to be met once, and a pass costs little
    for pass_ in passes.values() if device == "cuda" else [passes["sorted"][:1]]:
        seconds_of_a_pass(side, pass_, device)
    seconds: dict[str, list[float]] = {order: [] for order in passes}
    while not seconds["file"] or (sum(map(sum, seconds.values())) < _SECONDS and len(seconds["file"]) < _PASSES):
        for order, pass_ in passes.items():
            seconds[order].append(seconds_of_a_pass(side, pass_, device))
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    name = torch.cuda.get_device_name() if device == "cuda" else None
    return {"seconds": seconds, "threads": torch.get_num_threads(), "device_peak_bytes": peak, "device_name": name}


def on_residues(side: Side, sequences: list[str], device: str) -> dict[str, torch.Tensor]:
    """Run one padded batch; return what it gave for residues, a row each, one sequence after another."""
    [batch] = batches(side, sequences, len(sequences), device)
    outputs = zip(("representation", "logits"), side.represent(batch), strict=True)
    ends = [side.first + len(sequence) for sequence in sequences]
    return {
        name: torch.cat([row[side.first : end] for row, end in zip(output, ends, strict=True)]).float().cpu()
        for name, output in outputs
    }


def shares_of_time(side: Side, sequences: list[str], size: int, device: str) -> dict[str, Any]:
    """Profile a sorted pass; return the operators that take the most time by themselves, and their shares of it."""
    activity = torch.profiler.ProfilerActivity
    pass_ = batches(side, sorted(sequences, key=len), size, device)
    seconds_of_a_pass(side, pass_[:1], device)
    with torch.profiler.profile(activities=[activity.CPU, *[activity.CUDA][: device == "cuda"]]) as profile:
        seconds_of_a_pass(side, pass_, device)
    key = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    # an operator has the time of its kernels, which are listed beside it
    events = [event for event in profile.key_averages() if event.device_type == torch.autograd.DeviceType.CPU]
    taken = sorted(((getattr(event, key), event.key, event.count) for event in events), reverse=True)
    whole = sum(time_ for time_, _, _ in taken)
    return {"profile": [{"operator": name, "share": time_ / whole, "calls": n} for time_, name, n in taken[:8]]}


def main() -> None:
    """Parse the command line, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=("fair-esm", "sequence-models", "transformers", "ours"))
    parser.add_argument("folder", type=Path, help="a base; for transformers, its export")
    parser.add_argument("fasta", type=Path)
    parser.add_argument("--batch", type=int, nargs="+", default=[8])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write outputs in place of timing")
    parser.add_argument("--reference", type=Path, metavar="FILE", help="compare outputs with those that --save wrote")
    parser.add_argument("--profile", action="store_true", help="print shares of time in place of seconds")
    parser.add_argument("--alone", action="store_true", help="time each sequence by itself too, so without padding")
    options = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False
    load = partial(load_transformers_side, options.side)
    load = load if options.side in ("transformers", "ours") else load_original_side
    side = load(options.folder, getattr(torch, options.dtype))
    side.model.to(options.device)
    sequences = [sequence for _, sequence in read_fasta(options.fasta)]
    with torch.inference_mode():
        if options.save:
            save_file(on_residues(side, sequences, options.device), options.save)
            return
        if options.reference:
            reference, outputs = load_file(options.reference), on_residues(side, sequences, options.device)
            print(json.dumps({name: differences(outputs[name], theirs) for name, theirs in reference.items()}))
            return
        what = shares_of_time if options.profile else partial(timings, alone=options.alone)
        print(json.dumps({size: what(side, sequences, size, options.device) for size in options.batch}))


if __name__ == "__main__":
    main()
