"""`verify`: whether weights are the ones that their record names and, with the base, the ones that it describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from hf_perturb.checkpoints.bases import find, open_base, open_checkpoint, read_config
from hf_perturb.checkpoints.checkpoint import Checkpoint, auto_map
from hf_perturb.checkpoints.tokenizers import same_alphabet
from hf_perturb.errors import CheckpointError
from hf_perturb.networks.fetching import cached
from hf_perturb.networks.files import weight_paths
from hf_perturb.networks.inspection import other_records
from hf_perturb.networks.layouts import listed
from hf_perturb.networks.loading import has_no_weights
from hf_perturb.networks.record import base_location, recorded_digest
from hf_perturb.perturbation import Perturbation
from hf_perturb.perturbation.digest import digest_of_lines
from hf_perturb.variants.blueprint import Blueprint, make_blueprint, sources_of
from hf_perturb.variants.progress import Progress, counter
from hf_perturb.variants.rebuilding import Difference, Stored
from hf_perturb.variants.recipe import Recipe, open_recipe, other_sizes
from hf_perturb.variants.sources import Sources
from hf_perturb.variants.stream import Nowhere, Target, stream, total_bytes


@dataclass(frozen=True)
class Verification:
    """What `verify_variant` found.

    Args:
        path: what was verified.
        digest: of the weights, those that a recipe gives among them.
        recorded: the digest that the configuration states, `None` if it states none.
        base: the base that the tensors were rebuilt from, `None` if there was none.
        differences: tensors that are not what the base and the record give.
        problems: everything that is wrong, in words; empty for what is as recorded.
        nonfinite: tensors with NaN or infinite values, which may be as recorded.
    """

    path: str
    digest: str
    recorded: str | None
    base: str | None = None
    differences: tuple[Difference, ...] = ()
    problems: tuple[str, ...] = field(default=())
    nonfinite: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether all is as recorded."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return the same as JSON has it."""
        return {"ok": self.ok, **asdict(self)}


def verify_variant(
    path: str | Path,
    base: str | Path | None = None,
    *,
    revision: str | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Compare weights with the digest that their record states, and, with the base, with what the record describes.

    With a base every tensor is built again and compared, nothing being written. A recipe, which has no weights to look
    at, is always rebuilt, from the base that it records if none is given.

    Args:
        path: a variant, a recipe, or a base with a digest: a folder or a Hub id.
        base: what the variant was made from.
        revision: of a Hub id.
        jobs: tensors at a time; `None` for one a processor.
        progress: called with the bytes that are done and those in all.

    Raises:
        CheckpointError: if something cannot be read, or if there is nothing to compare with: no digest and no base.
    """
    path, work = str(path), _Work(jobs, progress)
    if (recipe := _recipe(path, revision)) is not None:
        opened = recipe.open_base() if base is None else open_base(str(base))
        found = _rebuild(path, recipe.record, opened, None, work)
        return replace(
            found,
            problems=(
                *found.problems,
                *other_sizes(recipe.config, opened.config),
                *_beside(path, recipe.revision, recipe.config, ()),
            ),
        )
    checkpoint = open_checkpoint(path, revision).check()
    record = checkpoint.config.perturbation
    if base is None:
        recorded = recorded_digest(checkpoint.config)
        if recorded is None:
            raise CheckpointError(
                f"{path!r} records no digest (trained, or saved by something else?): give its base to compare with"
            )
        dtypes = {name: tensor.dtype for name, tensor in checkpoint.tensors.items()}
        sources = Sources(checkpoint.tensors, dtypes, look=True)
        work.run(sources)
        problems = [*_another_digest(sources.digest(), recorded), *_stated(checkpoint)]
        nonfinite = tuple(sorted(sources.nonfinite))
        return Verification(path, sources.digest(), recorded, problems=tuple(problems), nonfinite=nonfinite)
    if record is None:
        raise CheckpointError(f"{path!r} is no variant: its config.json records no perturbation; leave the base out")
    opened = open_base(str(base))
    found = _rebuild(path, record, opened, Stored(checkpoint.tensors), work)
    others = other_sizes(checkpoint.config, opened.config)
    return replace(found, problems=(*found.problems, *others, *_stated(checkpoint)))


@dataclass(frozen=True)
class _Work:
    """How the tensors are read: `jobs` and `progress` of `verify_variant`."""

    jobs: int | None
    progress: Progress | None

    def run(self, sources: Sources, targets: Sequence[Target] = ()) -> None:
        """Read the sources, and make the targets."""
        stream(sources, targets, jobs=self.jobs, on_bytes=counter(total_bytes(sources, targets), self.progress))


def _recipe(path: str, revision: str | None) -> Recipe | None:
    """Return the recipe at a place, `None` for anything with weights."""
    if Path(base_location(path)).is_file():
        raise CheckpointError(f"{path}: a file records no digest; allowed: the folder of a variant, or its Hub id")
    stored, hub = find(path, revision)
    config, _ = read_config(path, stored)
    if config.perturbation is None or not has_no_weights(base_location(path), hub):
        return None
    return open_recipe(path, revision)


def _rebuild(path: str, record: Perturbation, base: Checkpoint, stored: Stored | None, work: _Work) -> Verification:
    """Build every tensor of a variant again, and compare it with what is stored, if anything is."""
    blueprint, sources = make_blueprint(base, record), sources_of(base)
    if stored is not None:
        _refuse_another_network(path, base, blueprint, stored.tensors)
    target = blueprint.target(stored or Nowhere())
    work.run(sources, [target])
    problems = []
    if record.base is not None and record.base.digest not in (None, sources.digest()):
        problems.append(f"the base {base.what} has digest {sources.digest()}, the record says {record.base.digest}")
    digest = target.digest() if stored is None else digest_of_lines(stored.digests)
    differences = () if stored is None else tuple(stored.differences[name] for name in sorted(stored.differences))
    if differences:
        names = listed(difference.name for difference in differences)
        problems.append(f"{len(differences)} tensors are not what the base and the record give: {names}")
    if stored is None and record.digest is None:
        raise CheckpointError(f"{path!r} is a recipe that records no digest, so there is nothing to compare with")
    problems += _another_digest(digest, record.digest)
    return Verification(path, digest, record.digest, base.what, differences, tuple(problems))


def _another_digest(found: str, recorded: str | None) -> list[str]:
    return [] if recorded in (None, found) else [f"the weights have digest {found}, the record says {recorded}"]


def _refuse_another_network(
    path: str, base: Checkpoint, blueprint: Blueprint, tensors: Mapping[str, torch.Tensor]
) -> None:
    made = {name: shape for name, (_, shape) in blueprint.shapes.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if odd := [name for name in {**made, **found} if made.get(name) != found.get(name)]:
        raise CheckpointError(
            f"{path!r} is no variant of {base.what!r}: there are tensors that only one of them has, or of another"
            f" shape: {listed(odd)}"
        )


def _stated(checkpoint: Checkpoint) -> list[str]:
    """Compare what the configuration says of the weights, and what is beside them."""
    kinds = {tensor.dtype for name, tensor in checkpoint.tensors.items() if not name.endswith("rot_emb.inv_freq")}
    hub = {} if checkpoint.revision is None else {"revision": checkpoint.revision}
    files = weight_paths(base_location(checkpoint.what), hub)
    problems = _beside(checkpoint.what, checkpoint.revision, checkpoint.config, files)
    # a file of several types has none that could be stated
    if len(kinds) == 1 and checkpoint.config.dtype not in (None, *kinds):
        problems.append(f"config.json: dtype is {checkpoint.config.dtype}, the weights are {kinds.pop()}")
    return problems


def _beside(path: str, revision: str | None, config: Any, weights: Sequence[Path]) -> list[str]:
    """Compare what is beside the weights: the code that is named, the record in the files' headers, the alphabet."""
    problems = []
    location, hub = base_location(path), {} if revision is None else {"revision": revision}
    if (named := getattr(config, "auto_map", None)) not in (None, auto_map(config.model_type)):
        problems.append(f"config.json: auto_map names other code than this package's: {named}")
    problems += other_records(config, weights)
    vocabulary = cached(location, "tokenizer.json", hub)
    if vocabulary is not None and not same_alphabet(Path(vocabulary), config):
        problems.append("tokenizer.json: not the alphabet of this network, whose tokens are part of it")
    return problems
