"""`verify`: whether weights are the ones that their record names and, with the base, the ones that it describes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hf_perturb.checkpoints.any_network import AnyNetwork
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.evidence import differences, other_records, written_apart
from hf_perturb.checkpoints.recipe import Recipe, open_base, other_sizes
from hf_perturb.checkpoints.shapes import listed
from hf_perturb.checkpoints.tensors import Tensor, is_finite
from hf_perturb.demo import located
from hf_perturb.errors import CheckpointError
from hf_perturb.networks.sizes import is_of_network
from hf_perturb.perturbation import Perturbation
from hf_perturb.perturbation.digest import digest_of_lines, tensor_digest
from hf_perturb.perturbation.floats import DTYPES, as_integers, cast
from hf_perturb.variants.blueprint import Blueprint, make_blueprint
from hf_perturb.variants.matrix import folders_of
from hf_perturb.variants.stream import Made, Progress, Sources, Target, stream


@dataclass(frozen=True)
class Difference:
    """A tensor that is not what the base and the record give.

    Args:
        name: of the tensor.
        elements: that differ, by their bits.
        largest: difference between two of them; `None` where one is not a number.
    """

    name: str
    elements: int
    largest: float | None


@dataclass(frozen=True)
class Verification:
    """What `verify_variant` found.

    Args:
        path: what was verified.
        digest: of the weights, those that a recipe gives among them; `None` where they cannot be read.
        recorded: the digest that the configuration states, `None` if it states none.
        base: the base that the tensors were rebuilt from, `None` if there was none.
        differences: tensors that are not what the base and the record give.
        problems: everything that is wrong, in words; empty for what is as recorded.
        nonfinite: tensors with NaN or infinite values, which may be as recorded.
        changed: what was done to the weights before they were changed, in words; `None` for a control or a base.
        rebuilt: whether there are no weights, as in a recipe, and these were built again from the base.
    """

    path: str
    digest: str | None
    recorded: str | None
    base: str | None = None
    differences: tuple[Difference, ...] = ()
    problems: tuple[str, ...] = ()
    nonfinite: tuple[str, ...] = ()
    changed: str | None = None
    rebuilt: bool = False

    @property
    def ok(self) -> bool:
        """Whether the weights are as the record says that they were made; of what has changed since they are not."""
        return not self.problems and self.changed is None

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
    trust_remote_code: bool = False,
) -> Verification:
    """Compare weights with the digest that their record states, and, with the base, with what the record describes.

    The record is compared with what the files of weights say of themselves, too. With a base every tensor is built
    again and compared, nothing being written. A recipe, which has no weights to look at, is always rebuilt, from the
    base that it records if none is given. What was trained further from a control is not `ok`, and `changed` says
    what it was.

    Args:
        path: a variant, a recipe, or a base with a digest: a folder or a Hub id.
        base: what the variant was made from.
        revision: of a Hub id.
        jobs: tensors at a time; `None` for one a processor.
        progress: called with the bytes that are done and those in all.
        trust_remote_code: run the code that comes with a network that Transformers does not have, to build it again.

    Raises:
        CheckpointError: if something cannot be read, or if there is nothing to compare with: no digest and no base.
    """
    if Path(located(str(path))).is_file():
        raise CheckpointError(f"{path}: a file records no digest; allowed: the folder of a variant, or its Hub id")
    opened = Checkpoint.open(path, revision, trust_remote_code=trust_remote_code)
    return verify_checkpoint(opened, base, jobs=jobs, progress=progress, trust_remote_code=trust_remote_code)


def verify_variants(
    path: str | Path,
    base: str | Path | None = None,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
    trust_remote_code: bool = False,
) -> list[Verification]:
    """Verify each variant in a matrix folder, also when one of them cannot be read, which is a problem of that one.

    Args:
        path: a folder of variants, as `create_variants` writes.
        base: as for `verify_variant`, of each; like all that follow.
        jobs: see there.
        progress: see there.
        trust_remote_code: see there.

    Raises:
        CheckpointError: if there is no variant in the folder, or the base cannot be used.
    """
    folders = folders_of(path)
    if not folders:
        raise CheckpointError(f"{path}: no folder of variants; verify_variant takes one alone")
    shared: dict[str, Any] = {"jobs": jobs, "progress": progress, "trust_remote_code": trust_remote_code}
    if base is not None:
        records = filter(None, (_record_of(folder) for folder in folders))
        open_base(base, records, trust_remote_code)  # what is wrong with it is no problem of a variant
    found = []
    for folder in folders:
        try:
            found.append(verify_variant(folder, base, **shared))
        except (OSError, ValueError) as error:
            found.append(Verification(str(folder), None, None, problems=(" ".join(str(error).split()),)))
    return found


def _record_of(folder: Path) -> Perturbation | None:
    with suppress(OSError, ValueError):
        return Checkpoint.open(folder, weights=False).record
    return None


def verify_checkpoint(
    opened: Checkpoint,
    base: str | Path | None = None,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
    trust_remote_code: bool = False,
) -> Verification:
    """Verify a checkpoint that is opened; see `verify_variant`."""
    run = partial(stream, jobs=jobs, progress=progress)
    if opened.is_recipe:
        recipe = Recipe.of(opened)
        given: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        made_from = recipe.open_base(**given) if base is None else open_base(base, [recipe.record], **given)
        found = _rebuild(opened, recipe.record, made_from, run)
    elif base is None:
        # its digest says all of a stock folder, whatever its classes are
        is_any = isinstance(opened.described, AnyNetwork) and opened.record is not None
        return _compare_with_record(opened if is_any else opened.check(record=False), run)
    else:
        record = opened.check(record=False).record
        if record is None:
            problem = "is no variant: its config.json records no perturbation; leave the base out"
            raise CheckpointError(f"{opened.name!r} {problem}")
        made_from = open_base(base, [record], trust_remote_code)
        found = _rebuild(opened, record, made_from, run)
    return replace(found, problems=(*found.problems, *_stated(opened)))


def _compare_with_record(opened: Checkpoint, run: Callable[..., None]) -> Verification:
    recorded, stated = opened.stated_digest, _stated(opened)
    is_said = recorded is not None or (opened.record is not None and opened.stated_lines) or opened.has_changed
    if not is_said and not stated:
        raise CheckpointError(
            f"{opened.name!r} records no digest (trained, or saved by something else?): give its base to compare with"
        )
    dtypes = {name: tensor.dtype for name, tensor in opened.tensors.items()}
    sources = Sources(opened.tensors, dtypes, look=True)
    run(sources)
    digest, odd = sources.digest(), tuple(sorted(sources.nonfinite))
    problems = (*differences(opened, sources.digests), *stated)
    return Verification(opened.name, digest, recorded, None, (), problems, odd, _changed(opened))


def _changed(opened: Checkpoint) -> str | None:
    return str(replace(opened.record, changed=False)) if opened.record is not None and opened.has_changed else None


class _Stored:
    """What is stored, compared with what is built."""

    def __init__(self, tensors: Mapping[str, Tensor], family: str, is_cast: bool):
        self.tensors = tensors
        self.family = family
        self.is_cast = is_cast  # a cast of what is drawn or shuffled is what would be made in that type
        self.digests: dict[str, str] = {}
        self.differences: dict[str, Difference] = {}
        self.nonfinite: list[str] = []
        self.heads: dict[str, bool] = {}  # whether a tensor of a head on top is that of the base

    def compare(self, name: str, built: Tensor | Made) -> None:
        """Compare one tensor; called by several threads."""
        if name not in self.tensors:
            return  # a language head that was left out
        stored, made = self.tensors[name].values(), built.values()
        self.digests[name] = tensor_digest(stored)
        if not is_finite(stored):
            self.nonfinite.append(name)
        if not is_of_network(self.family, name):  # a head, which may be trained on a control
            self.heads[name] = self.digests[name] == tensor_digest(made)
            return
        if stored.dtype != made.dtype and not self.is_cast:
            self.differences[name] = Difference(name, made.size, None)
            return
        made = cast(made, stored.dtype)
        differs = as_integers(stored) != as_integers(made)
        if self.is_cast:  # which may rewrite a NaN
            differs &= ~(np.isnan(stored) & np.isnan(made))
        if count := int(np.count_nonzero(differs)):
            one, other = (cast(values[differs], np.dtype(np.float64)) for values in (stored, made))
            with np.errstate(invalid="ignore"):  # infinity from infinity
                largest = float(np.abs(one - other).max())
            self.differences[name] = Difference(name, count, largest if math.isfinite(largest) else None)


def _rebuild(opened: Checkpoint, record: Perturbation, base: Checkpoint, run: Callable[..., None]) -> Verification:
    """Build every tensor of a variant again, and compare it with what is stored, if anything is."""
    blueprint, sources = make_blueprint(base, record), Sources.of(base)
    is_cast = record.digest is None or (len(opened.kinds) == 1 and opened.kinds != base.kinds)
    named = opened if opened.is_recipe else opened.named_as(base)
    stored = _Stored(named.tensors, opened.network.family, is_cast)
    if not opened.is_recipe:
        _refuse_another_network(named, base, blueprint)
    elif record.digest is None:
        raise CheckpointError(
            f"{opened.name!r} is a recipe that records no digest, so there is nothing to compare with"
        )
    target = Target.of(blueprint, None if opened.is_recipe else stored.compare)
    run(sources, [target])
    problems = []
    if record.base is not None and record.base.digest not in (None, sources.digest()):
        problems.append(f"the base {base.name} has digest {sources.digest()}, the record says {record.base.digest}")
    if names := sorted(stored.differences):
        problems.append(f"{len(names)} tensors are not what the base and the record give: {listed(names)}")
        if record.method == "gaussian" and opened.kinds != base.kinds:
            here, there = (", ".join(sorted(DTYPES[kind] for kind in of.kinds)) for of in (opened, base))
            problems.append(
                f"the weights are {here}, the base is {there}: a gaussian is drawn after the values of a base in their"
                " own type; give the base in that of the weights (hf-perturb convert --dtype)"
            )
    lines, own_head = target.digests, False
    if not opened.is_recipe:
        own = dict(zip(named.tensors, opened.tensors, strict=True))
        added = {name: tensor.digest() for name, tensor in named.tensors.items() if name not in stored.digests}
        lines = {own[name]: line for name, line in {**stored.digests, **added}.items()}
        own_head = bool(added) or not all(stored.heads.values())
    problems += [*differences(opened, lines), *other_sizes(opened, base, heads=not own_head)]
    digest = digest_of_lines(lines)
    found = tuple(stored.differences[name] for name in names)
    said = (found, tuple(problems), tuple(sorted(stored.nonfinite)), _changed(opened), opened.is_recipe)
    return Verification(opened.name, digest, record.digest, base.name, *said)


def _refuse_another_network(opened: Checkpoint, base: Checkpoint, blueprint: Blueprint) -> None:
    """Raise if a variant has other tensors than its base gives, its heads apart."""
    made, found = {name: shape for name, (_, shape) in blueprint.shapes.items()}, opened.shapes
    heads = {name for name in made if name not in found and name in base.network.language_head}
    heads |= {name for name in {**made, **found} if not is_of_network(opened.network.family, name)}
    one, other = opened.network, base.network
    if isinstance(one, AnyNetwork) and isinstance(other, AnyNetwork):
        heads |= {name for name in made if name not in found and one.has_no_place_for(other, name)}
        heads |= {name for name in found if name not in made and other.has_no_place_for(one, name)}
    if odd := [name for name in {**made, **found} if made.get(name) != found.get(name) and name not in heads]:
        raise CheckpointError(
            f"{opened.name!r} is no variant of {base.name!r}: there are tensors that only one of them has, or of"
            f" another shape: {listed(odd)}"
        )


def _stated(opened: Checkpoint) -> list[str]:
    """Compare what is said beside the weights: the code, the record in the files' headers, the type."""
    problems = []
    stock = isinstance(opened.described, AnyNetwork)
    named = None if opened.owner or stock else opened.stored.get("auto_map")  # somebody's class has code of its own
    if named not in (None, opened.network.auto_map):
        problems.append(f"config.json: auto_map names other code than this package's: {named}")
    problems += dict.fromkeys([*other_records(opened), *written_apart(opened)])
    if "quantization_config" not in opened.stored:  # a quantiser has more to say there
        known = {"format": "pt", "perturbation": ..., "digests": ..., "digest": ...}
        for file, metadata in opened.headers.items():
            odd = {key: value for key, value in (metadata or {}).items() if known.get(key) not in (value, ...)}
            problems += [f"{file} says of itself {odd}, which nobody has written"] if odd else []
    kinds = opened.kinds
    # files of several types have none to be stated, a recipe has no file, and a stock one says what its base did
    if not stock and len(kinds) == 1 and opened.stated_dtype not in (None, *kinds):
        stated, stored = DTYPES[str(opened.stated_dtype)], DTYPES[kinds.pop()]
        problems.append(f"config.json: dtype is {stated}, the weights are {stored}")
    return problems
