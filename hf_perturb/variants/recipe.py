"""Recipes on disk: variants without weights, made whole again from the base that they record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_perturb import demo
from hf_perturb.checkpoints.bases import find, open_base, read_config
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.errors import CheckpointError, DigestError, PerturbationError, StackedPerturbationError
from hf_perturb.networks.loading import has_no_weights
from hf_perturb.networks.recipes import MOVED, other_weights, refuse_author_s_disk
from hf_perturb.networks.record import parse_perturbation
from hf_perturb.perturbation import Perturbation

# what a variant's configuration may say otherwise than its base's; a perturbation that touches the head unties it
_OWN = (
    *("perturbation", "digest", "architectures", "auto_map", "dtype", "torch_version", "transformers_version"),
    *("tie_word_embeddings", "published_as"),
)


@dataclass(frozen=True)
class Recipe:
    """What a recipe says of itself.

    Args:
        name: its folder or Hub id.
        record: what is done, to which base.
        torch_version: of the torch that drew its weights.
        config: its configuration.
        revision: the commit on the Hub that it came from.
    """

    name: str
    record: Perturbation
    torch_version: str | None
    config: Any
    revision: str | None = None

    @property
    def base(self) -> str:
        """Name of the base: a folder, a Hub id or `demo`."""
        if self.record.base is None or self.record.base.name is None:
            raise CheckpointError(f"{self.name!r} has no weights, and its record names no base to rebuild them from")
        return self.record.base.name

    @property
    def base_revision(self) -> str | None:
        """Commit of a base on the Hub."""
        return self.record.base.revision if self.record.base is not None else None

    def open_base(self) -> Checkpoint:
        """Open the base at the recorded revision.

        Raises:
            CheckpointError: naming both, if it is missing or is no base.
        """
        base = self.base
        refuse_author_s_disk(self.name, self.record)
        try:
            return open_base(base, self.base_revision)
        except (OSError, StackedPerturbationError) as error:
            raise CheckpointError(f"the recipe {self.name!r} needs its base {base!r}: {error}{MOVED}") from error

    def check(self, made: Perturbation) -> None:
        """Compare the record of what was made with the recipe's own.

        Raises:
            DigestError: naming the digests and the versions of torch.
        """
        found = made.base.digest if made.base is not None else None
        known = self.record.base.digest if self.record.base is not None else None
        # a digest of the weights says all; without one, that of the base is the next best
        if self.record.digest not in (None, made.digest) or (self.record.digest is None and known not in (None, found)):
            raise DigestError(other_weights(self.name, self.record, self.torch_version, made.digest, found))


def open_recipe(name: str, revision: str | None = None) -> Recipe:
    """Find a recipe.

    Args:
        name: its folder or Hub id.
        revision: of a Hub id.

    Raises:
        CheckpointError: if there is nothing.
        PerturbationError: if it has weights, so that something must be asked for.
    """
    stored, hub = find(name, revision)
    record = parse_perturbation(stored.get("perturbation"))
    if record is None or not has_no_weights(name, hub):
        raise PerturbationError(
            f"perturbation: got none for {name!r}, which is no recipe; say --method reinit or resample"
        )
    config, _ = read_config(name, stored)
    return Recipe(name, record, stored.get("torch_version"), config, hub.get("revision"))


def other_sizes(config: Any, base: Any) -> list[str]:
    """Say what a variant's configuration has otherwise than its base's, but for what a variant says of itself."""
    ours, theirs = config.to_dict(), base.to_dict()
    keys = sorted((ours.keys() | theirs.keys()) - {*_OWN})
    differs = [key for key in keys if ours.get(key) != theirs.get(key)]
    return [f"config.json: {key} is {ours.get(key)!r}, the base has {theirs.get(key)!r}" for key in differs]


def recorded_name(base: str, recipe: bool) -> str:
    """Return what a record calls its base: a recipe needs its place, a variant need not tell whose disk it was on."""
    if base == demo.NAME or not Path(base).exists():
        return base
    return str(Path(base).resolve()) if recipe else Path(base).resolve().name


def refuse_recipe(checkpoint: Checkpoint) -> None:
    """Refuse what `from_pretrained` could not load again as `create` has it.

    Raises:
        CheckpointError: for originals, and for weights of several types or of another than the configuration says.
    """
    if checkpoint.origin in ("fair-esm", "sequence-models"):
        raise CheckpointError(
            f"{checkpoint.what} is an original; a recipe needs a base that from_pretrained can load: make one"
            " of it (hf-perturb convert), or leave --recipe out"
        )
    kinds = {str(dtype) for name, dtype in checkpoint.dtypes().items() if not name.endswith("rot_emb.inv_freq")}
    if checkpoint.config.dtype is not None:
        # from_pretrained goes by the configuration, not by the file
        kinds.add(str(checkpoint.config.dtype))
    if len(kinds) > 1:
        raise CheckpointError(
            f"{checkpoint.what} mixes {', '.join(sorted(kinds))} in its weights and its config.json; from_pretrained"
            " loads it as one type, so a recipe would give other weights; leave --recipe out, or convert the base to"
            " one --dtype"
        )
