"""What is asked of a folder, of the names and of the token before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import ModelCard, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_perturb import demo
from hf_perturb.checkpoints.bases import find, read_config
from hf_perturb.checkpoints.checkpoint import auto_map
from hf_perturb.errors import CheckpointError, HubError
from hf_perturb.hub.errors import redacted
from hf_perturb.hub.files import Stage, is_weights, stage, travelling_code
from hf_perturb.hub.formats import OURS
from hf_perturb.networks.fetching import strange_token
from hf_perturb.networks.files import shards_of, weight_files
from hf_perturb.networks.layouts import listed
from hf_perturb.networks.record import base_location, recorded_digest
from hf_perturb.networks.stock_esm import is_stock
from hf_perturb.variants.exports import export_checkpoint
from hf_perturb.variants.progress import Progress
from hf_perturb.variants.recipe import open_recipe, other_sizes
from hf_perturb.variants.verify import verify_variant

# what git takes for a name, but for a few that nobody misses
_REF = re.compile(r"(?!.*(\.\.|//|/\.|\.lock(/|$)))[A-Za-z0-9][\w./-]*(?<![./])", re.ASCII)
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
# what a config.json of ours may hold beside the fields of its class
_WRITTEN = {
    *("model_type", "auto_map", "torch_version", "torch_dtype", "transformers_version"),
    *("output_attentions", "use_cache"),
}


def refuse_names(repo_id: str, branch: str, tag: str | None) -> None:
    """Raise if the Hub would refuse a name, which it would do only when the files are there.

    Raises:
        HubError: naming what is allowed.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(redacted(f"repo_id: got {repo_id!r}; allowed: NAMESPACE/NAME ({error})")) from error
    if repo_id.count("/") != 1:
        allowed = "NAMESPACE/NAME, such as my-lab/esm1b-reinit-seed42"
        raise HubError(redacted(f"repo_id: got {repo_id!r}; allowed: {allowed}"))
    if constants.REGEX_COMMIT_OID.fullmatch(branch):
        raise HubError(f"revision: got {branch!r}; allowed: a branch; a commit cannot be pushed to")
    for what, name in (("revision", branch), ("tag", tag)):
        if name is not None and not _REF.fullmatch(name):
            allowed = "letters, digits and . _ - / as git has them in names"
            raise HubError(redacted(f"{what}: got {name!r}; allowed: {allowed}"))


def usable_token(repo_id: str, given: str | None, dry_run: bool) -> str | None:
    """Return the token to push with: the one that is given, or the one that is logged in.

    Raises:
        HubError: if there is none and one is needed, or if it cannot be one.
    """
    token = given or get_token()
    if not token and not dry_run:
        raise HubError(f"{repo_id}: to push needs a token of the Hub: log in with `hf auth login`, or set HF_TOKEN")
    if problem := strange_token(token):
        raise HubError(problem)
    return token


@contextmanager
def checked_files(
    path: str | Path, repo_id: str, form: str, token: str | None, progress: Progress | None
) -> Iterator[Stage]:
    """Give the files to publish, of a folder that is as it says it is.

    Args:
        path: the folder.
        repo_id: the repository, which the card calls itself by.
        form: the format to publish in; another than ours is written anew in a place that is gone afterwards.
        token: of the Hub, for the base of a recipe.
        progress: called with the bytes that are verified and those in all.

    Raises:
        CheckpointError: if its card or its weights are not as they should be, or if nobody else could load it.
    """
    source = _existing(path)
    stored, _ = find(str(source))
    config, _ = read_config(str(source), stored)
    if recorded_digest(config) is None:
        # nobody could say later whether the weights are still the ones that were published
        raise CheckpointError(
            f"{source} records no digest (trained, or saved by something else?): hf-perturb convert {source} OUT writes"
            " a folder that does"
        )
    with nullcontext() if form == OURS else TemporaryDirectory(prefix="hf_perturb-") as scratch:
        folder = source if scratch is None else _written_anew(source, Path(scratch), form)
        stock = form != OURS or is_stock(stored)
        staged = stage(folder, repo_id, _weight_names(folder), {} if stock else travelling_code(config.model_type))
        if form == OURS:  # what was written anew was read for it, and looked at
            if not stock:
                _check_configuration(folder, config, stored)
            _check_card(folder, staged)
            _check_weights(folder, staged, config, token, progress)
            staged.refuse_changed()
        yield staged


def _existing(path: str | Path) -> Path:
    folder = Path(base_location(str(path)))
    if not folder.is_dir():
        raise CheckpointError(f"{path}: no such folder; allowed: that of a variant, a recipe or a base, or 'demo'")
    if not (folder / "config.json").exists():
        raise CheckpointError(
            f"{path} has no config.json, so it is no variant, recipe or base; a folder of many is for"
            " scripts/push_variants.py"
        )
    return folder


def _written_anew(folder: Path, scratch: Path, form: str) -> Path:
    out = scratch / folder.resolve().name
    try:
        export_checkpoint(folder, out, form)
    except OSError as error:
        if error.__cause__ is None:
            raise
        # a full disk, most likely, and in a place that nobody asked for
        raise CheckpointError(f"{error} (it is written anew there first; TMPDIR names another place)") from error
    return out


def _weight_names(folder: Path) -> list[str]:
    """Return the names of the files with the weights, those of a recipe none."""
    if (folder / _WEIGHTS).exists():
        return [_WEIGHTS]
    if (folder / _INDEX).exists():
        shards = shards_of(folder / _INDEX)
        if odd := [shard for shard in shards if not _SHARD.fullmatch(shard)]:
            raise CheckpointError(f"{folder / _INDEX} names {odd[0]!r}; allowed: model-00001-of-00002.safetensors")
        return [_INDEX, *shards]
    if other := [name for name in weight_files() if (folder / name).exists()]:
        raise CheckpointError(
            f"{folder} has its weights in {other[0]}; only safetensors are published: hf-perturb convert {folder} OUT"
        )
    return []


def _check_configuration(folder: Path, config: Any, stored: Mapping[str, Any]) -> None:
    if stored.get("auto_map") != auto_map(config.model_type):
        raise CheckpointError(
            f"{folder}: auto_map in config.json is {stored.get('auto_map')!r}, which does not name the code that is"
            f" published; hf-perturb convert {folder} OUT writes the right one"
        )
    # what somebody wrote there for himself is not for everybody
    if unknown := sorted(stored.keys() - {field.name for field in fields(config)} - _WRITTEN):
        raise CheckpointError(f"{folder}: config.json has {unknown[0]!r}, which no such network has; take it out")


def _check_card(folder: Path, staged: Stage) -> None:
    try:
        data = ModelCard(staged.text("README.md").decode(), ignore_metadata_errors=False).data.to_dict()
    except Exception as error:  # YAML's errors have no common base, and the card adds its own
        raise CheckpointError(f"{folder / 'README.md'}: its metadata cannot be read: {error}") from error
    if not data:
        raise CheckpointError(f"{folder / 'README.md'} has no metadata between two lines '---' at its beginning")


def _check_weights(folder: Path, staged: Stage, config: Any, token: str | None, progress: Progress | None) -> None:
    if not any(map(is_weights, staged.files)):
        _check_recipe(str(folder), token)
        return
    record = config.perturbation
    if record is not None and record.base is not None and Path(record.base.name or "").is_absolute():
        raise CheckpointError(
            f"{folder}: config.json names its base by a path of this machine, {record.base.name!r}; hf-perturb create"
            " writes a variant that does not"
        )
    found = verify_variant(folder, progress=progress)
    if found.problems:
        raise CheckpointError(f"{folder} is not as recorded, so nothing was sent: {'; '.join(found.problems)}")
    if found.nonfinite:
        raise CheckpointError(
            f"{folder} has NaN or infinite weights in {listed(found.nonfinite)}, so nothing was sent: what such a"
            " network computes is no number either"
        )


def _check_recipe(name: str, token: str | None) -> None:
    """Compare a recipe with its base as far as that takes no weights: those are compared whenever it is loaded."""
    recipe = open_recipe(name)
    base = recipe.base
    if base != demo.NAME and recipe.base_revision is None:
        raise CheckpointError(
            f"{name} is a recipe of {base!r}, which nobody else has; push the base, and make the recipe of its Hub id"
        )
    stored, _ = find(base, recipe.base_revision, token)
    if problems := other_sizes(recipe.config, read_config(base, stored)[0]):
        raise CheckpointError(f"{name} is not a recipe of {base!r} as it is: {'; '.join(problems)}")
