"""Many variants of one base: what is asked for, what their folders are called, and which are in a folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from hf_perturb.demo import located
from hf_perturb.errors import CheckpointError, PerturbationError
from hf_perturb.perturbation.spec import MAX_SEED, Perturbation

_MOST_SEEDS = 1000
_DIGITS = re.compile(r"\d+")
_SEEDS = re.compile(r"\s*([0-9]{1,19})(?:-([0-9]{1,19}))?\s*")


def matrix(
    methods: Sequence[str],
    seeds: Iterable[int | str],
    axes: Sequence[str] = (),
    scopes: Iterable[Sequence[str]] = ((),),
    **common: Any,
) -> list[Perturbation]:
    """Combine methods, seeds, axes and scopes; an axis is for resample alone.

    Args:
        methods: one or more.
        seeds: one or more; also as `"0-4"` or `"0-2,7"`; one that comes twice counts once.
        axes: none for the family's own.
        scopes: lists of scopes, one for each perturbation.
        **common: the other keys of each.

    Raises:
        PerturbationError: if one is not valid, or comes twice.
    """
    made: dict[Perturbation, None] = {}
    for method, scope, seed in product(methods, scopes, _each_seed(seeds)):
        # axes that no method takes are refused by `Perturbation`
        mixed = method != "resample" and "resample" in methods
        choices: Sequence[str | None] = [None] if mixed or not axes else axes
        for axis in choices:
            perturbation = Perturbation(method, seed, axis=axis, scope=tuple(scope), **common)
            if perturbation in made:
                raise PerturbationError(f"{perturbation} is asked for twice; give each method, scope and axis once")
            made[perturbation] = None
    return list(made)


def _each_seed(seeds: Iterable[int | str]) -> list[int]:
    """Return each seed once, in the order in which they are named."""
    found: dict[int, None] = {}
    for said in seeds:
        for part in said.split(",") if isinstance(said, str) else ():
            match = _SEEDS.fullmatch(part)
            first, last = map(int, (match[1], match[2] or match[1])) if match else (1, 0)
            if not first <= last <= MAX_SEED:
                allowed = f"numbers from 0 to {MAX_SEED} and ranges of them, with commas, such as 42, 0-4 or 0-2,7"
                raise PerturbationError(f"seeds: got {said!r}; allowed: {allowed}")
            found |= dict.fromkeys(range(first, min(last, first + _MOST_SEEDS) + 1))
        if not isinstance(said, str):
            found[said] = None
        if len(found) > _MOST_SEEDS:
            raise PerturbationError(f"seeds: with {said!r} these are too many; allowed: {_MOST_SEEDS:,} in one call")
    return list(found)


def folder_name(perturbation: Perturbation) -> str:
    """Return the name of a variant's folder in a matrix, such as `resample-all-seed42`; its globs are not named."""
    scope = [name.replace(":", "").replace("_", "-") for name in perturbation.scope]
    rules = [perturbation.rules] if perturbation.rules not in (None, "documented") else []
    axis = [perturbation.axis] if perturbation.axis is not None else []
    also = ["also", *perturbation.also] if perturbation.also else []
    return "-".join([perturbation.method, *rules, *axis, *scope, *also, f"seed{perturbation.seed}"])


def folders(parent: Path, perturbations: Iterable[Perturbation]) -> dict[Path, Perturbation]:
    """Return the folder of each variant of a matrix."""
    return {parent / folder_name(perturbation): perturbation for perturbation in perturbations}


def models_in(parent: Path) -> list[Path]:
    """Return the folders in a folder that hold a model, by name; one without its `config.json` is a damaged one.

    Numbers in names count as such: `top2` comes before `top10`.
    """
    files = (
        file
        for pattern in ("config.json", "model*.safetensors", "pytorch_model*.bin")
        for file in parent.glob(f"*/{pattern}")
    )
    # what is hidden is still being written
    found = {file.parent for file in files if not file.parent.name.startswith(".")}
    return sorted(found, key=lambda folder: (_DIGITS.sub(lambda digits: digits[0].zfill(20), folder.name), folder.name))


def folders_of(path: str | Path) -> list[Path]:
    """Return the folders of a matrix; none for a model, be it a folder, a file or a Hub id.

    Raises:
        CheckpointError: if it is a folder that is neither.
    """
    folder = Path(located(str(path)))
    if not folder.is_dir() or (folder / "config.json").exists():
        return []
    if found := models_in(folder):
        return found
    raise CheckpointError(
        f"{path}: no config.json in it, and no folder in it that has one; allowed: the folder of a model, or a folder"
        " of such folders, as create writes for several methods or seeds"
    )
