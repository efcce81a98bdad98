"""Variants on disk: built from a base tensor by tensor, any number in one pass, written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from hf_perturb import demo
from hf_perturb.cards.card import variant_card
from hf_perturb.checkpoints.catalog import published_name
from hf_perturb.checkpoints.checkpoint import Checkpoint, write_configuration
from hf_perturb.checkpoints.companions import may_be_companion, names_beside, write_companions
from hf_perturb.checkpoints.recipe import Recipe, open_base, other_sizes, torch_version, with_versions
from hf_perturb.demo import located
from hf_perturb.errors import (
    CheckpointError,
    DigestError,
    FolderExistsError,
    FolderLockedError,
    HfPerturbError,
    PerturbationError,
)
from hf_perturb.perturbation import Base, Perturbation
from hf_perturb.perturbation.digest import NO_DIGEST
from hf_perturb.perturbation.floats import DTYPES
from hf_perturb.storage.folders import (
    allow_open_files,
    nothing_written,
    refuse_out,
    resolved,
    scratch_folder,
    whole_folder,
)
from hf_perturb.variants.blueprint import Blueprint, Output, make_blueprint
from hf_perturb.variants.shards import Shards
from hf_perturb.variants.stream import Progress, Sources, Target, stream
from hf_perturb.variants.verify import verify_checkpoint


def create_variant(
    base: str | Path,
    out: str | Path,
    perturbation: Perturbation | dict[str, Any] | str | None = None,
    *,
    recipe: bool = False,
    force: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
    trust_remote_code: bool = False,
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
        trust_remote_code: run the code that comes with a network that Transformers does not have.

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
    if perturbation is not None:
        wanted = {out: perturbation}
        shared: dict[str, Any] = {"jobs": jobs, "progress": progress, "trust_remote_code": trust_remote_code}
        return create_variants(base, wanted, recipe=recipe, force=force, **shared)[Path(out)]
    if recipe:
        raise PerturbationError("perturbation: got None; allowed: what the recipe is to do")
    source, out = str(base), Path(out)
    check_out = partial(refuse_out, source=Path(source), force=force, kind="variant", beside=may_be_companion)
    check_out(out)
    opened = Checkpoint.open(source, trust_remote_code=trust_remote_code)
    if not opened.is_recipe:
        raise PerturbationError(
            f"perturbation: got none for {source!r}, which is no recipe; say --method reinit, resample or gaussian"
        )
    given = Recipe.of(opened)
    checkpoint = given.open_base(trust_remote_code=trust_remote_code)
    if problems := other_sizes(opened, checkpoint):
        raise CheckpointError(f"the recipe {source!r} is for another network than its base: {'; '.join(problems)}")
    builder = _Builder(checkpoint, given.base_name, check_out, given=given)
    return builder.build({out: given.record}, jobs, progress)[out]


def create_variants(
    base: str | Path,
    wanted: Mapping[str | Path, Perturbation | dict[str, Any] | str],
    *,
    recipe: bool = False,
    force: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
    trust_remote_code: bool = False,
) -> dict[Path, Perturbation]:
    """Build several variants of a base in one pass: each of its tensors is read once.

    Of several, those that are there already are verified and kept: the same call completes what was interrupted. With
    `force` all are made anew.

    Args:
        base: a folder, a Hub id, an original `.pt` file, or `demo`.
        wanted: what to do, by the folder to write.
        recipe: as for `create_variant`, like all that follow.
        force: see there.
        jobs: see there.
        progress: see there.
        trust_remote_code: see there.

    Returns:
        The record of each, by its folder.

    Raises:
        HfPerturbError: as `create_variant` does; then none is written, or what is there by then is whole.
    """
    if not wanted:
        raise PerturbationError("wanted: got no folder; allowed: one or more, with what to do")
    base, place = str(base), Path(located(str(base)))
    parsed = {Path(out): Perturbation.parse(perturbation) for out, perturbation in wanted.items()}
    check_out = partial(refuse_out, source=place, force=force, kind="variant", beside=may_be_companion)
    for out in parsed:
        check_out(out, keep=len(parsed) > 1)
    checkpoint = open_base(base, parsed.values(), trust_remote_code)
    checkpoint.tell()
    asked = {out: with_versions(perturbation, checkpoint.network) for out, perturbation in parsed.items()}
    here = {out: perturbation for out, perturbation in asked.items() if out.exists() and not force}
    if recipe:
        _refuse_recipe(checkpoint)
    builder = _Builder(checkpoint, base, check_out, recipe)
    records = builder.keep(here, jobs, progress) if here else {}
    if missing := {out: perturbation for out, perturbation in asked.items() if out not in here}:
        records |= builder.build(missing, jobs, progress)
    return {out: records[out] for out in asked}


def records_of(
    checkpoint: Checkpoint, asked: Sequence[Perturbation], jobs: int | None = None, progress: Progress | None = None
) -> list[Perturbation]:
    """Return the records that variants of a base would have, with their digests, and write nothing.

    Raises:
        PerturbationError: if a perturbation cannot be applied, or changes nothing.
        DigestError: if the base is not what it records.
    """
    blueprints = [make_blueprint(checkpoint, with_versions(each, checkpoint.network)) for each in asked]
    sources, targets = Sources.of(checkpoint), [Target.of(blueprint, None) for blueprint in blueprints]
    stream(sources, targets, jobs=jobs, progress=progress)
    base = Base(_recorded_name(checkpoint.name), checkpoint.revision, _digest_of(checkpoint, sources))
    pairs = list(zip(blueprints, targets, strict=True))
    for blueprint, target in pairs:
        _changed(blueprint, target, sources, checkpoint)
    return [blueprint.asked.with_record(base, target.digest()) for blueprint, target in pairs]


def _digest_of(checkpoint: Checkpoint, sources: Sources) -> str:
    """Return the digest of a base whose tensors were read, which has to be the one that it states."""
    digest = sources.digest()
    if (stated := checkpoint.stated_digest) not in (None, digest):
        raise DigestError(f"base {checkpoint.name!r} has digest {digest}, its config.json says {stated}")
    return digest


def _changed(blueprint: Blueprint, target: Target, sources: Sources, checkpoint: Checkpoint) -> set[str]:
    """Return the tensors of a variant that are drawn and other than the base's, of which there has to be one."""
    drawn = {name: output for name, output in blueprint.outputs.items() if output.step is not None}
    other = {name for name, output in drawn.items() if target.digests[name] != sources.digests[output.source]}
    if not other:
        raise PerturbationError(
            f"{blueprint.asked} changes no tensor of {checkpoint.name!r}; take another axis, or widen include"
        )
    return other


@dataclass
class _Variant:
    """A variant on its way: `shards` is `None` for a recipe."""

    blueprint: Blueprint
    folder: Path
    target: Target
    shards: Shards | None


@dataclass(frozen=True)
class _Builder:
    """What is to be known to build variants of a base.

    Args:
        checkpoint: the base.
        name: that it was opened by.
        check_out: raises if a folder must not be written.
        recipe: whether the weights are left out.
        given: the recipe that is given its weights, if so.
    """

    checkpoint: Checkpoint
    name: str
    check_out: Callable[..., None]
    recipe: bool = False
    given: Recipe | None = None

    def keep(
        self, asked: Mapping[Path, Perturbation], jobs: int | None, progress: Progress | None
    ) -> dict[Path, Perturbation]:
        """Return the records of variants that are there already.

        Raises:
            FolderExistsError: if one is not what would be made.
        """
        digest, sources = self.checkpoint.stated_digest, Sources.of(self.checkpoint)
        if digest is None:
            stream(sources, jobs=jobs, progress=progress)
            digest = sources.digest()
        base, records = Base(_recorded_name(self.name, self.recipe), self.checkpoint.revision, digest), {}
        for out, perturbation in asked.items():
            try:
                # locked, and rid of what the killed process had not swept
                with scratch_folder(resolved(out.parent) / out.name):
                    found = Checkpoint.open(out)
                    problems = self._other_than(found, perturbation.with_record(base, None))
                    problems = problems or list(verify_checkpoint(found, jobs=jobs, progress=progress).problems)
            except FolderLockedError:
                raise
            except HfPerturbError as error:
                problems = [str(error)]
            if problems or found.record is None:
                raise FolderExistsError(
                    f"{out} exists already, and is not what is asked for: {'; '.join(problems)}; choose another folder,"
                    " or replace it, and all the others, with --force (force=True)"
                )
            records[out] = found.record
        return records

    @cached_property
    def _beside(self) -> list[str]:
        """Names of the files beside the weights and their configuration."""
        return ["README.md", *names_beside(self.checkpoint)]

    def _check_out(self, out: Path) -> None:
        self.check_out(out, beside=lambda file: file.name in self._beside)

    def _other_than(self, found: Checkpoint, asked: Perturbation) -> list[str]:
        """Say where a variant is not the one that is asked for, as far as that takes no weights."""
        record = {} if found.record is None else {**found.record.to_dict(), "digest": None}
        wanted = {**asked.to_dict(), "digest": None}
        keys = [key for key in {**record, **wanted} if record.get(key) != wanted.get(key)]
        problems = [f"its {key} is {record.get(key)}, not {wanted.get(key)}" for key in keys]
        if found.is_recipe != self.recipe:
            problems.append("it is a recipe" if found.is_recipe else "it has weights, and a recipe is asked for")
        absent = [name for name in self._beside if not Path(found.name, name).is_file()]
        return [*problems, *(f"it has no {name}" for name in absent), *other_sizes(found, self.checkpoint)]

    def build(
        self, asked: Mapping[Path, Perturbation], jobs: int | None, progress: Progress | None
    ) -> dict[Path, Perturbation]:
        """Write a variant to each folder, and return their records."""
        checkpoint = self.checkpoint
        blueprints = {out: make_blueprint(checkpoint, perturbation) for out, perturbation in asked.items()}
        checkpoint.network.tell_what_is_kept(asked.values())
        allow_open_files(len(asked))
        sources = Sources.of(checkpoint)
        base = Base(_recorded_name(self.name, self.recipe), checkpoint.revision, NO_DIGEST)
        first, *more = asked
        what = f"{first} and {len(more)} more" if more else first
        with nothing_written(what), ExitStack() as stack:
            variants = {out: self._begin(stack, out, blueprint, base) for out, blueprint in blueprints.items()}
            stream(sources, [variant.target for variant in variants.values()], jobs=jobs, progress=progress)
            base = replace(base, digest=_digest_of(checkpoint, sources))
            records = {out: self._finish(variant, sources, base) for out, variant in variants.items()}
            for out in records:  # all of them before the first is put in place
                self._check_out(out)
        return records

    def _begin(self, stack: ExitStack, out: Path, blueprint: Blueprint, base: Base) -> _Variant:
        folder = stack.enter_context(whole_folder(out, self._check_out))
        if self.recipe:
            return _Variant(blueprint, folder, Target.of(blueprint, None), None)
        record = blueprint.asked.with_record(base, NO_DIGEST)
        shards = stack.enter_context(closing(Shards(folder, blueprint.shapes, record)))
        return _Variant(blueprint, folder, Target.of(blueprint, shards.write), shards)

    def _finish(self, variant: _Variant, sources: Sources, base: Base) -> Perturbation:
        """Write what is beside the weights, now that their digests are known."""
        checkpoint, blueprint, made = self.checkpoint, variant.blueprint, variant.target.digests
        drawn = {name: output for name, output in blueprint.outputs.items() if output.step is not None}
        other = _changed(blueprint, variant.target, sources, checkpoint)
        network, record = blueprint.network, blueprint.asked.with_record(base, variant.target.digest())
        if self.given is not None:
            self.given.check(record.digest, lambda: base.digest)
        published = published_name(self.name, checkpoint.network) or checkpoint.published_as
        dtype = next(iter(sources.dtypes.values()))
        content = checkpoint.configuration(
            network, record, dtype=dtype, published_as=published, torch_version=torch_version(record)
        )
        write_configuration(variant.folder, content)
        write_companions(checkpoint, variant.folder)
        alike = _of(drawn, drawn.keys() - other) - _of(drawn, other)
        card = variant_card(network, record, blueprint.steps, published, alike, self.recipe)
        (variant.folder / "README.md").write_text(card, encoding="utf-8")
        if variant.shards is not None:
            variant.shards.finish(record, made)
        return record


def _recorded_name(name: str, recipe: bool = False) -> str:
    """Return what a record calls the base: a recipe needs its place, a variant need not tell whose disk it is."""
    place = Path(name)
    if name == demo.NAME or not place.exists():
        return name
    return str(place.resolve()) if recipe else place.resolve().name


def _of(outputs: Mapping[str, Output], names: Collection[str]) -> set[str]:
    """Return the tensors of the network that some outputs are of."""
    return {held for name in names for held in outputs[name].held or (name,)}


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
    kinds = checkpoint.kinds
    # from_pretrained goes by the configuration, not by the file
    if checkpoint.stated_dtype is not None:
        kinds.add(checkpoint.stated_dtype)
    if len(kinds) > 1:
        raise CheckpointError(
            f"{checkpoint.name} mixes {', '.join(sorted(DTYPES[kind] for kind in kinds))} in its weights and its"
            " config.json; from_pretrained loads it as one type, so a recipe would give other weights; leave --recipe"
            " out, or convert the base to one --dtype"
        )
