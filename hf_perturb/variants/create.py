"""Variants on disk: built from a base tensor by tensor, any number in one pass, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hf_perturb import demo
from hf_perturb.cards.card import variant_card
from hf_perturb.checkpoints.catalog import published_name
from hf_perturb.checkpoints.checkpoint import Checkpoint, write_configuration
from hf_perturb.checkpoints.recipe import Recipe, other_sizes
from hf_perturb.checkpoints.request import decide
from hf_perturb.checkpoints.source import located
from hf_perturb.checkpoints.tokenizers import save_tokenizer
from hf_perturb.errors import CheckpointError, DigestError, PerturbationError
from hf_perturb.perturbation import Base, Perturbation
from hf_perturb.perturbation.digest import torch_dtype
from hf_perturb.storage.folders import allow_open_files, refuse_out, whole_folder
from hf_perturb.variants.blueprint import Blueprint, make_blueprint
from hf_perturb.variants.shards import Shards
from hf_perturb.variants.stream import Nowhere, Progress, Sources, Target, stream

# as long as a digest, for a header whose length must be known before there is one
_NO_DIGEST = "sha256:" + 64 * "0"


def create_variant(
    base: str | Path,
    out: str | Path,
    perturbation: Perturbation | dict[str, Any] | str | None = None,
    *,
    recipe: bool = False,
    force: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Perturbation:
    """Build a variant of a base and write it to a folder, whole or not at all.

    Args:
        base: a folder, a Hub id, an original `.pt` file, or `demo`; or a recipe, which is given its weights.
        out: the folder to write: config, weights, tokenizer and card.
        perturbation: what to do; a dict or a method name will do. `None` for a recipe, which says it itself.
        recipe: leave the weights out; `from_pretrained` rebuilds them from the base and checks their digest.
        force: replace the folder if it is a variant and nothing else.
        jobs: tensors at a time, the most that are in memory; `None` for one a processor.
        progress: called with the bytes that are done and those in all.

    Returns:
        The record that the variant's configuration holds: the perturbation with base and digests.

    Raises:
        FolderExistsError: if `out` exists and may not be replaced.
        FolderLockedError: if another process is writing `out`.
        CheckpointError: if the base is missing, is no base of a known family, or lacks tensors, or if the folder
            cannot be written.
        DigestError: if the base is not what it records, or a recipe's weights are not what it records.
        PerturbationError: if the perturbation is not valid, or the base is a variant itself.
    """
    options: dict[str, Any] = {"force": force, "jobs": jobs, "progress": progress}
    if perturbation is not None:
        return create_variants(base, {out: perturbation}, recipe=recipe, **options)[Path(out)]
    if recipe:
        raise PerturbationError("perturbation: got None; allowed: what the recipe is to do")
    source, out = str(base), Path(out)
    refuse_out(out, Path(source), force, "variant")
    opened = Checkpoint.open(source)
    if decide(opened.record_of(), None) != "rebuild":
        raise PerturbationError(
            f"perturbation: got none for {source!r}, which is no recipe; say --method reinit or resample"
        )
    found = Recipe.of(opened)
    checkpoint = found.open_base()
    if problems := other_sizes(opened, checkpoint):
        raise CheckpointError(f"the recipe {source!r} is for another network than its base: {'; '.join(problems)}")
    name = _recorded_name(found.base_name, recipe=False)

    def check(record: Perturbation) -> None:
        found.check(record.digest, None if record.base is None else record.base.digest)

    order = _Order(
        name, False, Path(source), published_name(found.base_name, checkpoint.network), check=check, **options
    )
    return _build(checkpoint, {out: found.record}, order)[out]


def create_variants(
    base: str | Path,
    wanted: Mapping[str | Path, Perturbation | dict[str, Any] | str],
    *,
    recipe: bool = False,
    force: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> dict[Path, Perturbation]:
    """Build several variants of a base in one pass: each of its tensors is read once.

    Args:
        base: a folder, a Hub id, an original `.pt` file, or `demo`.
        wanted: what to do, by the folder to write.
        recipe: as for `create_variant`, like all that follow.
        force: see there.
        jobs: see there.
        progress: see there.

    Returns:
        The record of each, by its folder.

    Raises:
        HfPerturbError: as `create_variant` does; then none is written, or what is there by then is whole.
    """
    if not wanted:
        raise PerturbationError("wanted: got no folder; allowed: one or more, with what to do")
    base, place = str(base), Path(located(str(base)))
    asked = {Path(out): Perturbation.parse(perturbation) for out, perturbation in wanted.items()}
    for out in asked:
        refuse_out(out, place, force, "variant")
    checkpoint = Checkpoint.open(base).base()
    if recipe:
        _refuse_recipe(checkpoint)
    published = published_name(base, checkpoint.network) or checkpoint.published_as
    order = _Order(_recorded_name(base, recipe), recipe, place, published, force, jobs, progress)
    return _build(checkpoint, asked, order)


@dataclass(frozen=True)
class _Order:
    """How variants are to be built.

    Args:
        name: what their records call the base.
        recipe: as for `create_variant`, like `force`, `jobs` and `progress`.
        place: where the base is.
        published: name of the published checkpoint that the base is, if it is known.
        force: see there.
        jobs: see there.
        progress: see there.
        check: raises if a record is not the one that was to come out.
    """

    name: str
    recipe: bool
    place: Path
    published: str | None
    force: bool
    jobs: int | None
    progress: Progress | None
    check: Callable[[Perturbation], None] = lambda record: None


@dataclass
class _Variant:
    """A variant on its way: `shards` is `None` for a recipe."""

    out: Path
    asked: Perturbation
    blueprint: Blueprint
    folder: Path
    target: Target
    shards: Shards | None


def _build(checkpoint: Checkpoint, asked: Mapping[Path, Perturbation], order: _Order) -> dict[Path, Perturbation]:
    blueprints = {out: make_blueprint(checkpoint, perturbation) for out, perturbation in asked.items()}
    allow_open_files(len(asked))
    sources, base = Sources.of(checkpoint), Base(order.name, checkpoint.revision, _NO_DIGEST)
    first, *more = asked
    try:
        with ExitStack() as stack:
            variants = []
            for out, blueprint in blueprints.items():
                folder = stack.enter_context(_folder(out, order))
                shards = None
                if not order.recipe:
                    unknown = _metadata(asked[out].with_record(base, _NO_DIGEST))
                    shards = stack.enter_context(Shards(folder, blueprint.shapes, unknown))
                target = Target.of(blueprint, shards or Nowhere())
                variants.append(_Variant(out, asked[out], blueprint, folder, target, shards))
            stream(sources, [variant.target for variant in variants], jobs=order.jobs, progress=order.progress)
            base = replace(base, digest=sources.digest())
            if (stated := checkpoint.stated_digest) not in (None, base.digest):
                raise DigestError(f"base {checkpoint.name!r} has digest {base.digest}, its config.json says {stated}")
            records = {variant.out: _finish(checkpoint, sources, variant, base, order) for variant in variants}
            for out in records:  # all of them before the first is put in place
                refuse_out(out, order.place, order.force, "variant")
            return records
    except CheckpointError:
        raise
    except OSError as error:
        others = f" and {len(more)} more" if more else ""
        raise CheckpointError(f"{first}{others}: nothing was written, because {error}") from error


def _folder(out: Path, order: _Order) -> AbstractContextManager[Path]:
    return whole_folder(out, lambda: refuse_out(out, order.place, order.force, "variant"))


def _finish(checkpoint: Checkpoint, sources: Sources, variant: _Variant, base: Base, order: _Order) -> Perturbation:
    """Write what is beside the weights, now that their digests are known."""
    made, blueprint = variant.target.digests, variant.blueprint
    changed = {name for name, output in blueprint.outputs.items() if made[name] != sources.digests[output.source]}
    if not changed:
        raise PerturbationError(
            f"{variant.asked} changes no tensor of {checkpoint.name!r}; take another axis, or widen include"
        )
    record = variant.asked.with_record(base, variant.target.digest())
    order.check(record)
    dtype = next(iter(sources.dtypes.values()))
    content = checkpoint.configuration(
        blueprint.network, record, dtype=dtype, published_as=order.published, torch_version=torch.__version__
    )
    write_configuration(variant.folder, content)
    save_tokenizer(blueprint.network.alphabet, variant.folder)
    card = variant_card(blueprint.network, record, order.published, changed, order.recipe)
    (variant.folder / "README.md").write_text(card, encoding="utf-8")
    if variant.shards is not None:
        variant.shards.finish(_metadata(record))
    return record


def _metadata(record: Perturbation) -> dict[str, str]:
    return {"perturbation": json.dumps(record.to_dict())}


def _recorded_name(base: str, recipe: bool) -> str:
    """Return what a record calls its base: a recipe needs its place, a variant need not tell whose disk it was on."""
    if base == demo.NAME or not Path(base).exists():
        return base
    return str(Path(base).resolve()) if recipe else Path(base).resolve().name


def _refuse_recipe(checkpoint: Checkpoint) -> None:
    """Raise if `from_pretrained` could not load a recipe of a base again as `create` has it.

    Raises:
        CheckpointError: for originals, and for weights of several types or of another than the configuration says.
    """
    if checkpoint.place is None:
        raise CheckpointError(
            f"{checkpoint.name} is an original; a recipe needs a base that from_pretrained can load: make one"
            " of it (hf-perturb convert), or leave --recipe out"
        )
    kinds = {kind for name, kind in checkpoint.dtypes().items() if not name.endswith("rot_emb.inv_freq")}
    # from_pretrained goes by the configuration, not by the file
    if checkpoint.stated_dtype is not None:
        kinds.add(checkpoint.stated_dtype)
    if len(kinds) > 1:
        raise CheckpointError(
            f"{checkpoint.name} mixes {', '.join(sorted(map(str, map(torch_dtype, kinds))))} in its weights and its"
            " config.json; from_pretrained loads it as one type, so a recipe would give other weights; leave --recipe"
            " out, or convert the base to one --dtype"
        )
