"""The peers of `benchmark embed`: the extraction scripts of the originals as whole processes, mean vectors as files.

For fair-esm the procedure of its scripts/extract.py, for sequence-models that of its scripts/extract.py, each with its
package's own loader, batches and default sizes of batches. Two things are kinder than there: sequence-models' script
records gradients, this one does not; and both may be given larger batches. Nothing of hf_perturb or Transformers is
imported.

  python benchmarks/extract_procedure.py fair-esm model.pt proteins.fasta out
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch


def extract_fair_esm(model_file: Path, fasta: Path, out: Path, tokens: int, device: str) -> None:
    """Extract with fair-esm, in batches by length, sequences of more than 1022 residues cut."""
    from esm import FastaBatchedDataset, pretrained

    longest = 1022
    # its loader is older than torch's refusal of classes in files
    with torch.serialization.safe_globals([argparse.Namespace]):
        model, alphabet = pretrained.load_model_and_alphabet(str(model_file))
    model = model.eval().to(device)
    dataset = FastaBatchedDataset.from_file(fasta)
    loader = torch.utils.data.DataLoader(
        dataset,
        collate_fn=alphabet.get_batch_converter(longest),
        batch_sampler=dataset.get_batch_indices(tokens, extra_toks_per_seq=1),
    )
    last = model.num_layers
    for labels, sequences, batch in loader:
        result = model(batch.to(device, non_blocking=True), repr_layers=[last], return_contacts=False)
        representations = result["representations"][last].to("cpu")
        for label, sequence, representation in zip(labels, sequences, representations, strict=True):
            mean = representation[1 : min(longest, len(sequence)) + 1].mean(0).clone()
            save(label, last, mean, out)


def extract_sequence_models(model_file: Path, fasta: Path, out: Path, batch: int, device: str) -> None:
    """Extract with sequence-models, in the file's order."""
    from sequence_models.pretrained import load_model_and_alphabet
    from sequence_models.utils import parse_fasta

    model, collater = load_model_and_alphabet(str(model_file))
    model = model.to(device)
    sequences, names = parse_fasta(fasta, return_names=True)
    last = len(model.model.embedder.layers)
    for start in range(0, len(sequences), batch):
        part = slice(start, start + batch)
        tokens = collater([[sequence] for sequence in sequences[part]])[0].to(device)
        representations = model(tokens, repr_layers=[last], logits=False)["representations"][last]
        for name, sequence, representation in zip(names[part], sequences[part], representations, strict=True):
            save(name, last, representation[: len(sequence)].mean(0).cpu(), out)


def save(label: str, layer: int, mean: torch.Tensor, out: Path) -> None:
    """Save one sequence."""
    file = out / f"{label}.pt"
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"label": label, "mean_representations": {layer: mean}}, file)


def main() -> None:
    """Parse the command line and extract."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", choices=("fair-esm", "sequence-models"))
    parser.add_argument("model", type=Path, help="a .pt file that the package's own loader reads")
    parser.add_argument("fasta", type=Path, help="plain FASTA")
    parser.add_argument("out", type=Path, help="a folder for one file a sequence")
    parser.add_argument("--tokens", type=int, default=4096, help="of a batch, for fair-esm; default: %(default)s")
    parser.add_argument("--batch", type=int, default=1, help="sequences, for sequence-models; default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        if options.package == "fair-esm":
            extract_fair_esm(options.model, options.fasta, options.out, options.tokens, options.device)
        else:
            extract_sequence_models(options.model, options.fasta, options.out, options.batch, options.device)


if __name__ == "__main__":
    main()
