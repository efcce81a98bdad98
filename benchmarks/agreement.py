"""How far two sides' results are apart; as a script, the embeddings of `hf-perturb embed` and those of an original.

python benchmarks/agreement.py my-embeddings their-embeddings
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch


def differences(ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, float]:
    """Compare two matrices, a row a residue or a sequence.

    Returns:
        The root mean square of theirs as `scale`, the largest `difference` in units of it, and the lowest `cosine` of a
        row with its counterpart.
    """
    ours, theirs = ours.double(), theirs.double()
    scale = theirs.square().mean().sqrt()
    return {
        "scale": float(scale),
        "difference": float((ours - theirs).abs().max() / scale),
        "cosine": float(torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).min()),
    }


def main() -> None:
    """Parse the command line, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours", type=Path, help="what hf-perturb embed wrote")
    parser.add_argument("theirs", type=Path, help="what benchmarks/extract_procedure.py wrote")
    options = parser.parse_args()
    from hf_perturb import read_embeddings

    ids, vectors = read_embeddings(options.ours)
    theirs = []
    for name in ids:
        [mean] = torch.load(options.theirs / f"{name}.pt", weights_only=True)["mean_representations"].values()
        theirs.append(mean)
    if len(ids) != len(list(options.theirs.rglob("*.pt"))):
        raise SystemExit("the two sides have different sequences")
    print(json.dumps({"mean vector": differences(torch.from_numpy(vectors), torch.stack(theirs))}))


if __name__ == "__main__":
    main()
