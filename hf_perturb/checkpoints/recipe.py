"""Recipes: checkpoints without weights, which are made again from the base that their record names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hf_perturb.checkpoints.any_network import AnyNetwork
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.network import Network
from hf_perturb.demo import located
from hf_perturb.errors import CheckpointError, DigestError, StackedPerturbationError
from hf_perturb.perturbation.spec import Base, Perturbation

# what a variant's configuration may say otherwise than its base's; a perturbation that touches the head unties it
_OWN = {
    *("perturbation", "digest", "architectures", "auto_map", "dtype", "torch_dtype", "torch_version"),
    *("transformers_version", "tie_word_embeddings", "published_as", "_name_or_path"),
}
# and what follows from the class, where a variant is saved as another one of the same trunk
_OF_A_CLASS = {"is_encoder_decoder", "is_decoder", "use_cache"}
_HEADS = {"num_labels", "id2label", "label2id", "problem_type", "classifier_dropout"}
_MOVED = "; if the base is elsewhere now, perturbation.base.name in the recipe's config.json may be edited"


@dataclass(frozen=True)
class Recipe:
    """What a recipe says of itself.

    Args:
        checkpoint: its configuration and record.
        record: what is done, to which base.
        base: the base.
    """

    checkpoint: Checkpoint
    record: Perturbation
    base: Base

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Recipe:
        """Read a recipe.

        Args:
            checkpoint: one without weights.

        Raises:
            CheckpointError: if its record names no base.
        """
        record = checkpoint.record
        if record is None or record.base is None or record.base.name is None:
            raise CheckpointError(
                f"{checkpoint.name!r} has no weights, and its record names no base to rebuild them from"
            )
        return cls(checkpoint, record, record.base)

    @property
    def base_name(self) -> str:
        """Name of the base: a folder, a Hub id or `demo`."""
        return str(self.base.name)

    def open_base(self, hub: Mapping[str, Any] | None = None, trust_remote_code: bool = False) -> Checkpoint:
        """Open the base at the recorded revision.

        Args:
            hub: what finds a file on the Hub, but for the revision.
            trust_remote_code: whether the code that comes with it may be run.

        Raises:
            CheckpointError: naming both, if it is missing or is no base, or if it is a folder of somebody else's.
        """
        name, base = self.checkpoint.name, self.base_name
        if self.base.revision is None and located(base) == base and not Path(located(name)).is_dir():
            raise CheckpointError(
                f"the recipe {name!r} names its base {base!r} without a commit, as a folder of its author's; ask the"
                " author to publish the base, and a recipe of that"
            )
        try:
            more: dict[str, Any] = {"hub": hub, "rules": self.record.rules, "trust_remote_code": trust_remote_code}
            return Checkpoint.open(base, self.base.revision, **more).base()
        except DigestError:
            raise
        except (OSError, StackedPerturbationError) as error:
            raise CheckpointError(f"the recipe {name!r} needs its base {base!r}: {error}{_MOVED}") from error

    def check(self, digest: str | None, base_digest: Callable[[], str | None]) -> None:
        """Raise if the weights that were made are not those of the recipe.

        Args:
            digest: of the weights that came out.
            base_digest: returns that of the base as it is now; called only where it decides something.

        Raises:
            DigestError: naming the digests, and the versions of torch and Transformers where these draw.
        """
        # a digest of the weights says all; without one, that of the base is the next best
        if self.record.digest is not None and self.record.digest == digest:
            return
        known = self.base.digest
        found = None if known is None else base_digest()
        if self.record.digest is None and found == known:
            return
        if found != known:
            why = f"its base {self.base_name!r} has digest {found}, the record says {known}: it has changed"
        else:
            why = "its base is as recorded, so the record was edited"
        if (here := torch_version(self.record)) is not None:
            then = self.checkpoint.stored.get("torch_version") or "unknown"
            why += f", or torch draws differently here (torch {here} on this processor, torch {then} then)"
            then, here = self.record.transformers_version, version("transformers")
            if then not in (None, here):
                why += f", or Transformers initialises differently (transformers {here} here, {then} then)"
        raise DigestError(
            f"the recipe {self.checkpoint.name!r} gives weights with digest {digest}, its record says"
            f" {self.record.digest}; {why}"
        )


def open_base(
    source: str | Path,
    asked: Iterable[Perturbation],
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> Checkpoint:
    """Open and check a base, as a network of the kind that the rules are for; see `Checkpoint.open`."""
    return Checkpoint.open(source, revision, rules=only_rules(asked), trust_remote_code=trust_remote_code).base()


def only_rules(asked: Iterable[Perturbation]) -> str | None:
    """Return the rules of perturbations that all have the same, which say what kind of network is meant."""
    rules = {perturbation.rules for perturbation in asked}
    return rules.pop() if len(rules) == 1 else None


def with_versions(asked: object, network: Network) -> Perturbation:
    """Return a request as a network is to record it: its rules said, and by which classes they are those.

    Args:
        asked: a `Perturbation`, its dict, or a method name.
        network: that it is for.
    """
    perturbation = Perturbation.parse(asked, network.rules)
    if perturbation.rules != "transformers":
        return perturbation
    code = network.code_revision if isinstance(network, AnyNetwork) else None
    return replace(perturbation, transformers_version=version("transformers"), code_revision=code)


def torch_version(record: Perturbation) -> str | None:
    """Return the version of torch here if that is what draws under the rules of a record."""
    is_torchs = record.rules == "published" or (record.rules == "transformers" and record.method == "reinit")
    return version("torch") if is_torchs else None


def other_sizes(variant: Checkpoint, base: Checkpoint, *, heads: bool = True) -> list[str]:
    """Say where the configuration of a variant differs from its base's in what both must share.

    What only one of them states says nothing: the other leaves it at what everyone takes for granted.

    Args:
        variant: or a recipe.
        base: of it.
        heads: whether they share a downstream head; one that was trained on a control is its own.
    """
    ours, theirs = (_said(checkpoint) for checkpoint in (variant, base))
    own = _OWN if heads else _OWN | _HEADS
    if isinstance(variant.network, AnyNetwork) and variant.network.architecture != base.network.architecture:
        own = own | _OF_A_CLASS
    differs = [key for key in sorted((ours.keys() & theirs.keys()) - own) if ours[key] != theirs[key]]
    return [f"config.json: {key} is {ours[key]!r}, the base has {theirs[key]!r}" for key in differs]


def _said(checkpoint: Checkpoint) -> dict[str, Any]:
    network = checkpoint.network
    labels = {} if isinstance(network, AnyNetwork) else {"num_labels": network.labels}
    return {**checkpoint.stored, **network.to_dict(), **labels}
