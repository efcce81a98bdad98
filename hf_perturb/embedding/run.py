"""FASTA to embeddings, with one network or with variants of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_perturb.embedding.choices import Choices, make_choices
from hf_perturb.embedding.devices import choose_device, choose_dtype
from hf_perturb.embedding.fasta import file_of
from hf_perturb.embedding.networks import Network, open_network
from hf_perturb.embedding.placing import MANIFEST
from hf_perturb.embedding.ranks import Ranks, find_ranks
from hf_perturb.embedding.store import refuse_foreign
from hf_perturb.embedding.survey import ShardLimits, Survey, stamp_of, survey
from hf_perturb.embedding.work import Embeddings, Progress, Work
from hf_perturb.errors import FastaError, FolderExistsError, ModelInputError, PerturbationError
from hf_perturb.perturbation import Perturbation
from hf_perturb.variants.matrix import folder_name

if TYPE_CHECKING:
    from hf_perturb.networks.perturbable import PerturbablePreTrainedModel

BASE = "base"  # the folder of what is not perturbed, beside those of its variants
_SHARD = {"records": 65_536, "residues": 262_144, "bytes": 128 * 2**20}


def embed(
    model: str | Path | PerturbablePreTrainedModel,
    fasta: str | Path,
    out: str | Path,
    *,
    layers: str | int | Iterable[int] = "last",
    pool: str | Iterable[str] = "mean",
    per_residue: bool = False,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    tokens: int | None = None,
    long: str = "refuse",
    overlap: int | None = None,
    revision: str | None = None,
    perturbation: Any = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Embeddings:
    """Embed the sequences of a FASTA, to a folder of Parquet; an interrupted run is continued by the same call.

    Started by `accelerate launch` on several processes, each embeds its share of the residues.

    Args:
        model: a folder, a Hub id, an original `.pt`, `demo`, or a model of this package.
        fasta: the FASTA, plain or packed with gzip; `-` for standard input.
        out: the folder; `read_embeddings` reads it, and so does whatever reads Parquet.
        layers: which representations: `"last"`, `"all"`, or numbers counted as in the originals, 0 for the embedding.
        pool: how the residues of a record become one vector: `"mean"`, `"max"`, `"cls"` (the token that begins a
            sequence, in ESM), or several of them. Special tokens are no residues, and padding is not there.
        per_residue: keep the vector of every residue too (`pool=()` for these alone).
        dtype: of weights and arithmetic; that of the checkpoint if `None`. Pooling is in float32, and so is what is
            stored.
        device: as torch names it; `"auto"` to spread the network over all there are; a GPU if there is one if `None`.
        tokens: most tokens of a batch, padding included; `None` for 4,096 on the CPU and 32,768 elsewhere.
        long: what to make of records of more residues than a network with learned positions takes: `"refuse"` them,
            `"truncate"` them, or slide a `"window"` along, whose representations are averaged where windows overlap.
        overlap: residues that neighbouring windows share; `None` for a quarter of a window.
        revision: of a Hub id.
        perturbation: what to do to the weights first; see `Perturbation`.
        force: if `out` is a folder of other embeddings, remove them and begin again.
        progress: called with the residues that are done and those that there are to do.

    Raises:
        FastaError: a `ValueError`: if the FASTA cannot be read, or has records that the network cannot take.
        ModelInputError: a `ValueError`: if an option is not one that is allowed.
        EmbeddingsError: an `OSError`: if `out` holds other embeddings, or cannot be written.
        CheckpointError: an `OSError`: if the model cannot be read.
    """
    run = _Run(layers, pool, per_residue, dtype, device, tokens, long, overlap, force, progress)
    folder = _path("out", out)
    wanted = {folder: None if perturbation is None else Perturbation.parse(perturbation)}
    return run.all(model, revision, fasta, wanted)[folder]


def embed_variants(
    base: str | Path,
    fasta: str | Path,
    out: str | Path,
    perturbations: Iterable[Any],
    *,
    revision: str | None = None,
    layers: str | int | Iterable[int] = "last",
    pool: str | Iterable[str] = "mean",
    per_residue: bool = False,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    tokens: int | None = None,
    long: str = "refuse",
    overlap: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Embeddings]:
    """Embed the sequences of a FASTA with a base and with variants of it, which are made in memory.

    Args:
        base: a folder, a Hub id, an original `.pt`, or `demo`.
        fasta: as for `embed`.
        out: a folder of folders: `base`, and one for each variant, named as `hf-perturb create` names them.
        perturbations: what to do to the base, each a `Perturbation`, its dict, or a method name; or one of them.
        revision: as for `embed`; so are the others.
        layers: see there.
        pool: see there.
        per_residue: see there.
        dtype: see there.
        device: see there.
        tokens: see there.
        long: see there.
        overlap: see there.
        force: see there.
        progress: see there; called for one folder after another.

    Returns:
        What was written, by the name of the folder, the base first.

    Raises:
        PerturbationError: a `ValueError`: if a perturbation cannot be applied to this base, or comes twice.
        OSError: as `embed` does; and so are the others.
    """
    run = _Run(layers, pool, per_residue, dtype, device, tokens, long, overlap, force, progress)
    parent = _path("out", out)
    if (parent / MANIFEST).exists():
        raise FolderExistsError(f"{out} holds embeddings, and is no folder of such folders; choose another")
    wanted: dict[Path, Perturbation | None] = {parent / BASE: None}
    listed = [perturbations] if isinstance(perturbations, (str, Mapping, Perturbation)) else perturbations
    for perturbation in map(Perturbation.parse, listed):
        path = parent / folder_name(perturbation)
        if path in wanted:
            raise PerturbationError(f"two variants would be called {path.name}; embed them in two calls")
        wanted[path] = perturbation
    return {path.name: done for path, done in run.all(base, revision, fasta, wanted).items()}


@dataclass(frozen=True)
class _Run:
    """The options of `embed`, for one folder or several."""

    layers: Any
    pool: Any
    per_residue: bool
    dtype: Any
    device: str | None
    tokens: int | None
    long: str
    overlap: int | None
    force: bool
    progress: Progress | None

    def all(
        self, model: Any, revision: str | None, fasta: str | Path, wanted: Mapping[Path, Perturbation | None]
    ) -> dict[Path, Embeddings]:
        """Embed one FASTA with a network, and with variants of it."""
        ranks = find_ranks(self.device == "cpu")
        networks, choices, dtype, device = ranks.together(lambda: self._prepare(model, revision, fasta, wanted, ranks))
        [network, *_] = networks.values()
        with file_of(fasta) as path:
            stamp = ranks.together(lambda: stamp_of(path))

            def look() -> tuple[Survey, str]:
                for out in wanted:
                    refuse_foreign(out)
                found = survey(path, _limits(choices, network.config.hidden_size))
                choices.refuse_long(found.longest, found.longest_name)
                return found, network.digest()

            found, weights = ranks.together(look, first_only=True)
            done = {}
            for out, each in networks.items():
                work = Work(out, path, stamp, str(fasta), found, each, weights, choices, dtype, device, ranks)
                done[out] = work.run(self.tokens, self.force, self.progress)
            return done

    def _prepare(
        self,
        model: Any,
        revision: str | None,
        fasta: str | Path,
        wanted: Mapping[Path, Perturbation | None],
        ranks: Ranks,
    ) -> tuple[dict[Path, Network], Choices, torch.dtype, str]:
        """Check all that can be checked before the FASTA is read."""
        if self.tokens is not None and (not isinstance(self.tokens, int) or self.tokens < 1):
            raise ModelInputError(f"tokens: got {self.tokens!r}; allowed: a number of at least 1")
        _path("fasta", fasta)
        if ranks.size > 1 and str(fasta) == "-":
            raise FastaError("fasta: got '-' on several processes, and only one has a standard input; name a file")
        network = open_network(model, revision)
        networks = {out: network.perturbed(perturbation) for out, perturbation in wanted.items()}
        choices = make_choices(network.config, self.layers, self.pool, self.per_residue, self.long, self.overlap)
        return networks, choices, choose_dtype(self.dtype, network), choose_device(self.device, network, ranks.device)


def _path(what: str, given: Any) -> Path:
    if not isinstance(given, (str, Path)):
        raise ModelInputError(f"{what}: got a {type(given).__name__}; allowed: the path of a file or folder")
    return Path(given)


def _limits(choices: Choices, width: int) -> ShardLimits:
    """Bound what a shard holds, and so what is in memory."""
    vector = 4 * width
    return ShardLimits(
        **_SHARD,
        record_bytes=64 + vector * len(choices.vectors),
        residue_bytes=1 + vector * len(choices.residues),
    )
