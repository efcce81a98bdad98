"""Effects of substitutions that a masked language model predicts by itself, with a base and its controls."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_perturb.embedding.fasta import Findings
from hf_perturb.embedding.options import with_options
from hf_perturb.errors import FastaError, ModelInputError
from hf_perturb.zero_shot.mutants import (
    STANDARD,
    WILDTYPE,
    Mutants,
    every_substitution,
    mutants_named,
    mutants_of,
    read_mutants,
    read_wildtypes as read_wildtypes,
)
from hf_perturb.zero_shot.networks import Asked, Networks, Scorer
from hf_perturb.zero_shot.options import ALL, MARGINALS, ScoreOptions
from hf_perturb.zero_shot.table import NetworkScores, Scores, Writer, placed, refuse_other, spearman

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@partial(with_options, kind=ScoreOptions)
def score(
    model: str | Path | PreTrainedModel,
    wildtype: str | Path,
    mutants: str | Path | Iterable[str] = ALL,
    out: str | Path | None = None,
    *,
    perturbations: Iterable[Asked] | Asked = (),
    **options: Any,
) -> Scores:
    """Score substitutions by what a masked language model says of them, with a base and with variants of it.

    The score of a mutant is the sum over its substitutions of log p(mutant) - log p(wild type), where all else is the
    wild type: below 0, the network expects what is there.

    Args:
        model: a folder, a Hub id, an original `.pt`, `demo`, or a model of this package or of Transformers.
        wildtype: a sequence, or a FASTA of one or several.
        mutants: a CSV, TSV or Parquet with a column of mutants (`A24G`, `A24G:T30S`) or of whole sequences; a list of
            mutants; or `"all"` for every single substitution.
        out: the Parquet to write, whole or not at all; `None` to keep the rows in memory.
        perturbations: what to do to the base for each control; see `Perturbation`.
        **options: those listed at the end.

    Raises:
        FastaError: a `ValueError`: if sequences or mutants cannot be read, or do not fit each other.
        ModelInputError: a `ValueError`: if an option has a value that is not allowed.
        UnsupportedModuleError: a `TypeError`: if the network has no masked-language head.
        PerturbationError: a `ValueError`: if a perturbation cannot be applied to this base, or comes twice.
        CheckpointError: an `OSError`: if the model cannot be read, or `out` is there already.
        TypeError: if there is no such option.
    """
    asked, findings = ScoreOptions(**options), Findings()
    place = None if out is None else Path(out)
    if place is not None:
        refuse_other(place, asked.force)
    networks = Networks.open(model, perturbations, asked)
    wildtypes = read_wildtypes(wildtype, findings, networks.encoder.look)
    work = _Work.read(mutants, wildtypes, asked)
    work.check(networks)
    with ExitStack() as held:
        file: Any = io.BytesIO() if place is None else held.enter_context(placed(place, asked.force))
        writer = held.enter_context(Writer(file, asked.marginals, work.measured is not None))
        found = [_network_scores(each, work, writer) for each in networks.loaded(work.places)]
        said = {"fasta": Path(wildtype).name if os.path.exists(wildtype) else None, **work.described()}
        writer.say({**networks.described(), **said, "networks": [vars(each) for each in found]})
    notes = (*networks.encoder.notes, *findings.lines())
    return Scores(place, work.mutants, tuple(found), work.measured, notes, file if place is None else place)


def substitution_scores(
    model: str | Path | PreTrainedModel,
    wildtype: str,
    sequences: Sequence[str],
    perturbations: Iterable[Asked] | Asked = (),
    *,
    marginal: str = "masked",
    **options: Any,
) -> dict[str, NDArray[np.float64]]:
    """Score whole sequences of the wild type's length by their substitutions, with a base and with variants of it.

    Args:
        model: as `score` takes it.
        wildtype: A-Z.
        sequences: A-Z; the wild type itself scores 0.
        perturbations: what to do to the base for each control.
        marginal: `"masked"` or `"wildtype"`.
        **options: those of `score`.

    Returns:
        A score a sequence, by the name of the network, the base first.

    Raises:
        FastaError: for a sequence of another length.
        HfPerturbError: for what `score` raises.
    """
    if marginal not in MARGINALS:
        raise ModelInputError(f"marginal: got {marginal!r}; allowed: one of {', '.join(MARGINALS)}")
    asked = ScoreOptions(**options, marginal=marginal)
    networks = Networks.open(model, perturbations, asked)
    work = _Work({WILDTYPE: wildtype}, {WILDTYPE: mutants_of(wildtype, sequences)}, asked)
    work.check(networks)
    return {
        each.network.network: each.score(wildtype, work.of(WILDTYPE))[marginal] for each in networks.loaded(work.places)
    }


@dataclass(frozen=True)
class _Work:
    """Wild types, and what of each is to be scored.

    Args:
        wildtypes: sequences by id.
        listed: the mutants of each that has some; `None` for every single substitution, made when it is needed.
        options: of the run.
        measured: the column of what was measured, if there is one.
        named: the file of the mutants.
    """

    wildtypes: Mapping[str, str]
    listed: Mapping[str, Mutants] | None
    options: ScoreOptions
    measured: str | None = None
    named: str | None = None

    @classmethod
    def read(cls, mutants: str | Path | Iterable[str], wildtypes: Mapping[str, str], options: ScoreOptions) -> _Work:
        """Read what is to be scored."""
        offset = options.offset
        if isinstance(mutants, str | Path) and str(mutants) != ALL:
            listed, measured = read_mutants(mutants, wildtypes, offset, options.measured)
            return cls(wildtypes, listed, options, measured, Path(mutants).name)
        if options.measured is not None:
            raise ModelInputError(f"measured: got {options.measured!r}; allowed: a column of a table of mutants")
        if isinstance(mutants, str | Path):
            return cls(wildtypes, None, options, named=ALL)
        if len(wildtypes) > 1:
            raise FastaError(f"mutants: got a list for {len(wildtypes)} wild types; allowed: a table with their ids")
        [(id_, wildtype)] = wildtypes.items()
        return cls(wildtypes, {id_: mutants_named(wildtype, list(mutants), offset)}, options)

    @property
    def ids(self) -> list[str]:
        """The wild types that have mutants."""
        return [id_ for id_ in self.wildtypes if self.listed is None or id_ in self.listed]

    def of(self, id_: str) -> Mutants:
        """Return the mutants of a wild type."""
        return every_substitution(self.wildtypes[id_], self.options.offset) if self.listed is None else self.listed[id_]

    @property
    def places(self) -> int:
        """How many positions are asked for."""
        if self.listed is not None:
            return sum(len(np.unique(mutants.places)) for mutants in self.listed.values())
        return sum(sequence.count(letter) for sequence in self.wildtypes.values() for letter in STANDARD)

    @property
    def mutants(self) -> int:
        """How many there are."""
        return (len(STANDARD) - 1) * self.places if self.listed is None else sum(map(len, self.listed.values()))

    def check(self, networks: Networks) -> None:
        """Raise a `FastaError` if networks cannot take all of it."""
        for id_ in self.ids:
            networks.check(self.wildtypes[id_], id_, None if self.listed is None else self.listed[id_])

    def described(self) -> dict[str, Any]:
        """Return what is said of it, as JSON."""
        lines = "".join(f"{id_}\t{sequence}\n" for id_, sequence in self.wildtypes.items())
        digest = f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
        wildtypes = {"records": len(self.wildtypes), "residues": sum(map(len, self.wildtypes.values()))}
        said = {"mutants": self.named, "measured": self.measured, "offset": self.options.offset}
        return {"wildtypes": {**wildtypes, "digest": digest}, **said}


def _network_scores(scorer: Scorer, work: _Work, writer: Writer) -> NetworkScores:
    """Score all mutants by one network, write them, and compare them with what was measured."""
    found: dict[str, dict[str, float | None]] = {}
    for id_ in work.ids:
        mutants = work.of(id_)
        scores = scorer.score(work.wildtypes[id_], mutants)
        writer.add(scorer.network, id_, mutants, scores)
        if mutants.measured is not None:
            for name, values in scores.items():
                found.setdefault(name, {})[id_] = spearman(values, mutants.measured)
    means = {
        name: float(np.mean(there)) if (there := [value for value in each.values() if value is not None]) else None
        for name, each in found.items()
    }
    return replace(scorer.network, spearman=means, by_wildtype=found if len(work.ids) > 1 else {})
