"""Write a base with the random weights of the originals' own constructors, so that activations are of order 1.

Prints as JSON what floating-point operations are counted by: its layers, its width, the parameters in its matrices, and
whether it has attention.

  python benchmarks/random_base.py 85M my-base
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from networks import NETWORKS

from hf_perturb import CarpConfig, CarpForMaskedLM, FairEsmConfig, FairEsmForMaskedLM
from hf_perturb.checkpoints.network import alphabet_of
from hf_perturb.checkpoints.tokenizers import save_tokenizer
from hf_perturb.perturbation import digest_of

# what is looked up, and what a forward pass leaves out
_NOT_MULTIPLIED = ("embed_positions", "embedder.embedder", "contact_head")
_CLASSES = {"esm": (FairEsmConfig, FairEsmForMaskedLM), "carp": (CarpConfig, CarpForMaskedLM)}


def main() -> None:
    """Parse the command line, write the base and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=NETWORKS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, help="default: what the network is measured with")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    network = NETWORKS[options.size]
    layers = options.layers or network.layers or network.sizes["num_hidden_layers"]
    config_class, model_class = _CLASSES[network.family]
    torch.manual_seed(options.seed)
    model = model_class(config_class(**{**network.sizes, "num_hidden_layers": layers}))
    model.config.digest = digest_of(model.state_dict())
    model.save_pretrained(options.out)
    save_tokenizer(alphabet_of(model.config), options.out)
    matrices = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and not any(part in name for part in _NOT_MULTIPLIED)
    )  # the embedding of an ESM counts, once: it is the output head
    facts = {"layers": layers, "width": model.config.hidden_size, "matrices": matrices}
    print(json.dumps({**facts, "attention": network.family == "esm"}))


if __name__ == "__main__":
    main()
