"""Embeddings for evaluators that ask for functions: sequences in, and each with its representation out."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_perturb.embedding.batches import batches, embed_batch, units_of
from hf_perturb.embedding.fasta import Findings, Record, clean
from hf_perturb.embedding.model import Embedder, choose_device, choose_dtype, open_embedder, tokens_at_once
from hf_perturb.embedding.options import Choices, EmbedOptions
from hf_perturb.errors import EmbeddingsError, FastaError, ModelInputError
from hf_perturb.perturbation import Perturbation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HELD = 2**27  # bytes of representations that are in memory at a time
# options of `embed` that say something of files, or that the functions say themselves
_OTHERS = ("layers", "per_residue", "residues", "force", "progress")

Embedded = Generator[tuple[str, torch.Tensor], None, None]


class EmbeddingFunctions:
    """Two functions that embed sequences by one network, base or control, and one of its layers.

    Each takes sequences, and gives every one of them, as it was given and in that order, with its representation in
    float32 on the CPU. The network is loaded when the first is asked for, and let go after the last. Only so many
    representations are in memory as fit in 128 MiB.
    """

    def __init__(self, embedder: Embedder, options: EmbedOptions):
        self._embedder, self._options = embedder, options
        self._pooled = options.choices(embedder.encoder)
        if len(self._pooled.vectors) != 1:
            raise ModelInputError(
                f"got layers {options.layers!r} and pool {options.pool!r}; allowed: one layer and one pool"
            )
        self._dtype, self._device = choose_dtype(options.dtype, embedder), choose_device(options.device, embedder)

    def per_sequence(self, sequences: Iterable[str]) -> Embedded:
        """Give each sequence with its pooled representation, `(hidden_size,)`.

        Raises:
            FastaError: for a sequence that the network cannot take.
            EmbeddingsError: if the device has too little memory, or a representation is no number.
        """
        yield from self._embed(sequences, self._pooled)

    def per_residue(self, sequences: Iterable[str]) -> Embedded:
        """Give each sequence with the representations of its residues, `(length, hidden_size)`.

        Raises:
            ModelInputError: if the tokens of the network are no residues, or long sequences are to be cut off.
            HfPerturbError: for what `per_sequence` raises.
        """
        options = replace(self._options, pool=(), per_residue=True)
        if options.long == "truncate":
            raise ModelInputError("long: got 'truncate'; allowed for residues: refuse, window; each has a row")
        yield from self._embed(sequences, options.choices(self._embedder.encoder))

    def _embed(self, sequences: Iterable[str], choices: Choices) -> Embedded:
        encoder = self._embedder.encoder
        [column] = [*(name for name, _, _ in choices.vectors), *(name for name, _ in choices.residues)]
        with self._embedder.loaded(self._dtype, self._device) as model:
            budget = self._options.tokens or tokens_at_once(model)
            network, least = encoder.prepare(model, choices)
            for held in _portions(sequences, 4 * encoder.width, bool(choices.vectors)):
                records = [self._record(raw, choices) for raw in held]
                found: list[Any] = [None] * len(held)
                for batch in batches(units_of(records, choices, encoder), budget, encoder.special, least):
                    rows = [row for unit in batch for row in unit.rows]
                    values = embed_batch(network, batch, encoder, choices, budget)[column]
                    for row, value in zip(rows, values, strict=True):
                        if not np.isfinite(value).all():
                            what = f"sequence {records[row].id!r}: {column}"
                            raise EmbeddingsError(f"{what} is NaN or infinite; so are weights, or try dtype='float32'")
                        # a copy: the rows of a batch are one array, which one of them would keep
                        found[row] = torch.tensor(value, dtype=torch.float32)
                yield from zip(held, found, strict=True)

    def _record(self, raw: str, choices: Choices) -> Record:
        """Clean a sequence, whose letters have to stay in place, and see that the network can take it."""
        encoder, shown = self._embedder.encoder, f"{raw[:30]}..." if len(raw) > 30 else raw
        try:
            record = Record(0, shown, clean(raw, {}))
        except KeyError as error:
            raise FastaError(f"sequence {shown!r} has {error.args[0]!r}; allowed: a letter for each residue") from error
        if len(record.sequence) != len(raw) or not raw:
            raise FastaError(
                f"sequence {shown!r} has {len(raw)} characters and {len(record.sequence)} residues; allowed: a letter"
                " for each residue, and at least one; take out gaps, blanks and stops"
            )
        encoder.look(record, Findings())
        choices.refuse_long(len(raw), shown)
        return record


def embedding_functions(
    model: str | Path | PreTrainedModel,
    *,
    layer: int | str = "last",
    perturbation: Perturbation | Mapping[str, Any] | str | None = None,
    **options: Any,
) -> EmbeddingFunctions:
    """Return functions that embed sequences, such as biotrainer's autoeval takes, of a base or of a control of it.

    Args:
        model: a folder, a Hub id, an original `.pt`, `demo`, or a model of this package or of Transformers.
        layer: which representation, counted as `embed` counts: 0 for the embedding, `"last"`, negative from the end.
        perturbation: what to do to the weights first; see `Perturbation`.
        **options: those of `embed` that decide representations: `pool` (one), `dtype`, `device`, `tokens`, `long`,
            `overlap`, `tokenizer`, `separate`, `prefix`, `replace`, `revision`, `trust_remote_code`.

    Returns:
        The functions, `per_residue` and `per_sequence`.

    Raises:
        ModelInputError: a `ValueError`: if an option has a value that is not allowed.
        PerturbationError: a `ValueError`: if the perturbation cannot be applied to this base.
        CheckpointError: an `OSError`: if the model cannot be read.
        TypeError: if there is no such option.
    """
    if other := next((name for name in _OTHERS if name in options), None):
        raise TypeError(f"embedding_functions() got an unexpected option {other!r}: it is for files of embeddings")
    given = EmbedOptions(layers=layer, **options)
    asked = None if perturbation is None else Perturbation.parse(perturbation)
    network = open_embedder(model, given, [] if asked is None else [asked])
    return EmbeddingFunctions(network.perturbed(asked), given)


def _portions(sequences: Iterable[str], vector: int, pooled: bool) -> Iterator[list[str]]:
    """Divide sequences so that the representations of each part, of so many bytes a vector, fit, or it is one."""
    held: list[str] = []
    size = 0
    for sequence in sequences:
        more = len(sequence) + vector * (1 if pooled else len(sequence))
        if held and size + more > _HELD:
            yield held
            held, size = [], 0
        held.append(sequence)
        size += more
    if held:
        yield held
