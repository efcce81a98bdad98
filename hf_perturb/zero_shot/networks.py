"""The networks that score: a base and its controls, opened once, and loaded one after another with their heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from hf_perturb import loading
from hf_perturb.embedding.encoder import AlphabetEncoder, Encoder
from hf_perturb.embedding.model import Embedder, choose_device, choose_dtype, open_embedder, tokens_at_once
from hf_perturb.embedding.options import EmbedOptions
from hf_perturb.embedding.run import BASE, networks_by_name
from hf_perturb.errors import FastaError, ModelInputError, UnsupportedModuleError
from hf_perturb.perturbation import Perturbation
from hf_perturb.variants.matrix import folder_name
from hf_perturb.zero_shot.marginals import Marginals
from hf_perturb.zero_shot.mutants import Mutants
from hf_perturb.zero_shot.options import ScoreOptions
from hf_perturb.zero_shot.table import NetworkScores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Asked: TypeAlias = "Perturbation | Mapping[str, Any] | str"


@dataclass(frozen=True)
class Networks:
    """A base and its controls, by what each is called.

    Args:
        each: the networks, the base first.
        options: of the run.
        limit: most residues that they take at once, `None` for any number.
        dtype: in which they compute.
        device: on which they do.
    """

    each: Mapping[str, Embedder]
    options: ScoreOptions
    limit: int | None
    dtype: torch.dtype
    device: str

    @classmethod
    def open(
        cls, model: str | Path | PreTrainedModel, perturbations: Iterable[Asked] | Asked, options: ScoreOptions
    ) -> Networks:
        """Open a model, and say what is done to it for each control.

        Raises:
            UnsupportedModuleError: if it has no head that predicts a masked residue.
            HfPerturbError: for what `embed` raises of a model.
        """
        each = embedders_of(model, perturbations, options.embedding, _refuse_headless)
        [network, *_] = each.values()
        limit = options.embedding.choices(network.encoder).limit
        dtype, device = choose_dtype(options.dtype, network), choose_device(options.device, network)
        return cls(each, options, limit, dtype, device)

    @property
    def first(self) -> Embedder:
        """The one that was opened."""
        return next(iter(self.each.values()))

    @property
    def encoder(self) -> Encoder:
        """What they read."""
        return self.first.encoder

    def check(self, wildtype: str, name: str, mutants: Mutants | None) -> None:
        """Raise if they cannot take a wild type or its mutants, if these are listed.

        Raises:
            FastaError: naming which.
        """
        self.options.embedding.choices(self.encoder).refuse_long(len(wildtype), name)
        if mutants is not None and (odd := self.encoder.odd(_letters(wildtype, mutants))):
            at = next(
                i for i, place in enumerate(mutants.places) if {wildtype[place], chr(mutants.letters[i])} & {*odd}
            )
            raise FastaError(
                f"mutant {mutants.names[mutants.owners[at]]!r} of {name!r}: this {self.encoder.kind} network has no"
                f" token of {', '.join(odd)}; leave it out"
            )

    def loaded(self, places: int) -> Iterator[Scorer]:
        """Load one after another.

        Args:
            places: how many positions are asked of each.
        """
        weights: str | None = self.first.digest()
        for name, embedder in self.each.items():
            with embedder.loaded(self.dtype, self.device, head=True) as model:
                record, digest = embedder.record, weights
                if embedder.perturbation is not None:
                    is_ours = isinstance(self.encoder, AlphabetEncoder)
                    record = loading.record_now(model) if is_ours else Perturbation.parse(model.config.perturbation)
                    digest = record.digest
                said = NetworkScores(name, digest, None if record is None else record.to_dict())
                marginals = Marginals(model, self.encoder, self.limit, self.options.tokens or tokens_at_once(model))
                yield Scorer(said, marginals, self.options, len(self.options.marginals) * places)

    def described(self) -> dict[str, Any]:
        """Return what is said of them, as JSON."""
        return {
            "model": self.first.described(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "marginals": list(self.options.marginals),
            "long": None if self.limit is None else {"long": self.options.long, "limit": self.limit},
            **self.encoder.to_dict(),
            "versions": {name: version(name) for name in ("hf-perturb", "torch", "transformers")},
        }


def embedders_of(
    model: str | Path | PreTrainedModel,
    perturbations: Iterable[Asked] | Asked,
    options: EmbedOptions,
    refuse: Callable[[Embedder], None],
) -> dict[str, Embedder]:
    """Open a network, and say what is done to it for each control, by what each is called.

    Args:
        model: the base, or a control, which then is called by its record.
        perturbations: what is done to it.
        options: of the network.
        refuse: raises if the network cannot do what is asked of it.
    """
    asked = networks_by_name(perturbations)
    network = open_embedder(model, options, [each for each in asked.values() if each is not None])
    refuse(network)
    if network.record is not None:  # a control that is given: a base it is not
        asked = {folder_name(network.record) if name == BASE else name: each for name, each in asked.items()}
    return {name: network.perturbed(perturbation) for name, perturbation in asked.items()}


class Scorer:
    """A network that is loaded, and what it says of mutants.

    Args:
        network: what is said of it.
        marginals: its log-probabilities.
        options: of the run.
        total: positions that it will be asked for, for the progress.
    """

    def __init__(self, network: NetworkScores, marginals: Marginals, options: ScoreOptions, total: int):
        self.network, self._marginals, self._options = network, marginals, options
        self._done, self._total = 0, total

    def score(self, wildtype: str, mutants: Mutants) -> dict[str, NDArray[np.float64]]:
        """Return the scores of the mutants of a wild type, `(mutants,)`, by marginal."""
        places, rows = np.unique(mutants.places, return_inverse=True)
        letters = _letters(wildtype, mutants)
        columns = np.zeros(128, np.int64)
        columns[[ord(letter) for letter in letters]] = np.arange(len(letters))
        was = columns[np.frombuffer(wildtype.encode(), np.uint8)[mutants.places]]
        found: dict[str, NDArray[np.float64]] = {}
        for marginal in self._options.marginals:
            table = np.zeros((0, 0))
            if len(places):
                table = self._marginals(wildtype, places, letters, marginal == "masked", self._advance)
            effects = table[rows, columns[mutants.letters]] - table[rows, was]
            found[marginal] = np.bincount(mutants.owners, effects, len(mutants)).astype(np.float64)
        return found

    def _advance(self, places: int) -> None:
        self._done += places
        if self._options.progress is not None:
            self._options.progress(self._done, self._total)


def _letters(wildtype: str, mutants: Mutants) -> str:
    """Return all residues whose probabilities are asked for."""
    there = np.frombuffer(wildtype.encode(), np.uint8)[mutants.places]
    return bytes(np.union1d(there, mutants.letters).astype(np.uint8)).decode()


def _refuse_headless(embedder: Embedder) -> None:
    """Raise if a network cannot say how probable a hidden residue is."""
    encoder, kind = embedder.encoder, embedder.architecture
    if not (kind.endswith("ForMaskedLM") or hasattr(embedder.source, "predict_tokens")):
        raise UnsupportedModuleError(
            f"model: {embedder.name!r} is a {kind}, without a language head that predicts a masked residue; allowed:"
            " masked language models (...ForMaskedLM), such as ESM, CARP and ProtBERT"
        )
    if encoder.mask is None:
        raise ModelInputError(
            f"tokenizer: that of {embedder.name!r} has no mask token; name that of the network with --tokenizer"
        )
    if not encoder.by_residue:
        raise ModelInputError(
            f"tokenizer: that of {embedder.name!r} makes tokens of several residues; allowed: one a residue"
        )
