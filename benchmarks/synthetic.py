"""Write a base of a published network's size with random weights; the memory that it takes is that of one tensor.

python benchmarks/synthetic.py 650M my-base
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from benchmarking import MANY

from hf_perturb import FairEsmConfig, FairEsmForMaskedLM
from hf_perturb.checkpoints.catalog import CATALOG
from hf_perturb.checkpoints.network import alphabet_of
from hf_perturb.checkpoints.tensors import Tensor
from hf_perturb.checkpoints.tokenizers import save_tokenizer
from hf_perturb.perturbation.digest import digest_of_lines
from hf_perturb.variants.stream import write_weights

NAMES = {
    "8M": "esm2_t6_8M_UR50D",
    "35M": "esm2_t12_35M_UR50D",
    "150M": "esm2_t30_150M_UR50D",
    "650M": "esm1b_t33_650M_UR50S",
    "3B": "esm2_t36_3B_UR50D",
}
# the one with many small tensors has as many parameters as the 35M
_MANY = {"num_hidden_layers": 670, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 256}
NETWORKS = {
    **{size: CATALOG[name].sizes for size, name in NAMES.items()},
    MANY: {"model_version": "ESM-2", **_MANY},
}


def random_tensors(model: FairEsmForMaskedLM, seed: int) -> dict[str, torch.Tensor]:
    """Return random weights for a model on the meta device.

    Each is a view of one block of random numbers and begins one further on than the last: no two are alike, and
    together they take the memory of the largest.
    """
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name in model.all_tied_weights_keys:
        shapes.pop(name)
    length = max(shape.numel() for shape in shapes.values()) + len(shapes)
    block = torch.randn(length, generator=torch.Generator().manual_seed(seed)).mul_(0.05)
    views = enumerate(shapes.items())
    return {name: block[start : start + shape.numel()].view(shape) for start, (name, shape) in views}


def write_base(config: FairEsmConfig, out: Path, seed: int = 0) -> None:
    """Write a folder that `hf-perturb create` takes as a base.

    Args:
        config: the network.
        out: the folder; it must not exist.
        seed: of the weights.
    """
    model = FairEsmForMaskedLM.without_weights(config)
    tensors = random_tensors(model, seed)
    for name, module in model.named_modules():
        if name.endswith("rot_emb"):  # computed, not learned
            tensors[f"{name}.inv_freq"] = module.frequencies()
    out.mkdir(parents=True)
    found = {name: Tensor.of(tensor) for name, tensor in tensors.items()}
    written, _ = write_weights(out, found, dict.fromkeys(found, "F32"))
    config.digest = digest_of_lines(written.digests)
    config.architectures, config.dtype = [type(model).__name__], torch.float32
    config.save_pretrained(out)
    save_tokenizer(alphabet_of(config), out)


def main() -> None:
    """Parse the command line and write the base."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=NETWORKS)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    write_base(FairEsmConfig(**NETWORKS[options.size]), options.out)


if __name__ == "__main__":
    main()
