"""What is asked of a folder, of the names and of the token before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import ModelCard, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_perturb import demo
from hf_perturb.checkpoints.any_network import AnyNetwork
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.formats import OURS
from hf_perturb.checkpoints.recipe import Recipe, other_sizes
from hf_perturb.checkpoints.shapes import listed
from hf_perturb.checkpoints.source import UnreachedError, shards_of, strange_token
from hf_perturb.demo import located
from hf_perturb.errors import CheckpointError, HubError
from hf_perturb.hub.errors import redacted
from hf_perturb.hub.files import Stage, stage
from hf_perturb.variants.convert import export_checkpoint
from hf_perturb.variants.matrix import models_in
from hf_perturb.variants.stream import Progress
from hf_perturb.variants.verify import verify_checkpoint

_TRAINED_FURTHER = "Trained further from a control"  # begins the card of what is no control any more
# what git takes for a name, but for a few that nobody misses
_REF = re.compile(r"(?!.*(\.\.|//|/\.|\.lock(/|$)))[A-Za-z0-9][\w./-]*(?<![./])", re.ASCII)
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


def refuse_names(repo_id: str, branch: str, tag: str | None) -> None:
    """Raise if the Hub would refuse a name, which it would do only when the files are there."""
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
    """Return the token to push with, the one that is given or that is logged in; a dry run may do without."""
    token = given or get_token()
    if not token and not dry_run:
        raise HubError(f"{repo_id}: to push needs a token of the Hub: log in with `hf auth login`, or set HF_TOKEN")
    if problem := strange_token(token):
        raise HubError(problem)
    return token


@contextmanager
def checked_files(
    path: str | Path, repo_id: str, form: str, token: str | None, dry_run: bool, progress: Progress | None
) -> Iterator[Stage]:
    """Give the files to publish of a folder that is as it says it is.

    In another format than ours they are written anew, in a place that is gone afterwards.

    Raises:
        CheckpointError: if its card or its weights are not as they should be, or if nobody else could load it.
    """
    source = _existing(path)
    _check_index(source)
    opened = Checkpoint.open(source)
    if opened.owner:
        raise CheckpointError(
            f"{source} was saved by {opened.owner}, whose code is not published here: hf-perturb convert {source} OUT"
            " writes the network in it alone; Transformers' push_to_hub publishes a class of one's own"
        )
    if isinstance(opened.described, AnyNetwork) and opened.record is None:
        raise CheckpointError(
            f"{source} is no control, and no network of ours: Transformers' own push_to_hub publishes a"
            f" {opened.network.family}; hf-perturb create makes a control of it"
        )
    if opened.stated_digest is None and not opened.has_changed:
        # nobody could say later whether the weights are still the ones that were published
        raise CheckpointError(
            f"{source} records no digest (a base that was trained, or something else saved it?): hf-perturb convert"
            f" {source} OUT writes a folder that does"
        )
    if form != OURS:
        with TemporaryDirectory(prefix="hf_perturb-") as scratch:
            # what is written anew is read for that, and looked at
            yield stage(Checkpoint.open(_written_anew(source, Path(scratch), form)), repo_id)
        return
    staged = stage(opened, repo_id)
    if opened.origin != "transformers":
        _check_configuration(opened)
    _check_card(source, staged)
    if opened.is_recipe:
        try:
            _check_recipe(opened, token)
        except UnreachedError as error:
            if not dry_run:
                raise
            staged = replace(staged, unknown=(f"its base: {error}",))
    else:
        _check_weights(opened, progress)
    _check_what_is_told(source, staged, opened)
    staged.refuse_changed()
    yield staged


def _existing(path: str | Path) -> Path:
    folder = Path(located(str(path)))
    if not folder.is_dir():
        raise CheckpointError(f"{path}: no such folder; allowed: that of a variant, a recipe or a base, or 'demo'")
    if not (folder / "config.json").exists():
        raise CheckpointError(
            f"{path} has no config.json, so it is no variant, recipe or base"
            + (f"; it holds {len(held)}, such as {held[0]}: push each of them" if (held := models_in(folder)) else "")
            + "; a folder of folders of many is for scripts/push_variants.py"
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


def _check_index(folder: Path) -> None:
    """Raise if the weights are in files that Transformers would not have named so."""
    index = folder / _INDEX
    named = shards_of(index) if index.exists() and not (folder / "model.safetensors").exists() else []
    if odd := [shard for shard in named if not _SHARD.fullmatch(shard)]:
        raise CheckpointError(f"{index} names {odd[0]!r}; allowed: model-00001-of-00002.safetensors")


def _check_configuration(opened: Checkpoint) -> None:
    stored, network, folder = opened.stored, opened.network, opened.name
    if stored.get("auto_map") != network.auto_map:
        raise CheckpointError(
            f"{folder}: auto_map in config.json is {stored.get('auto_map')!r}, which does not name the code that is"
            f" published; hf-perturb convert {folder} OUT writes the right one"
        )
    # what somebody wrote there for himself is not for everybody
    if private := sorted({*opened.others} | (stored.keys() & {"_name_or_path"})):
        raise CheckpointError(f"{folder}: config.json has {private[0]!r}, which no such network has; take it out")


def _check_card(folder: Path, staged: Stage) -> None:
    try:
        data = ModelCard(staged.text("README.md").decode(), ignore_metadata_errors=False).data.to_dict()
    except Exception as error:  # YAML's errors have no common base, and the card adds its own
        raise CheckpointError(f"{folder / 'README.md'}: its metadata cannot be read: {error}") from error
    if not data:
        raise CheckpointError(f"{folder / 'README.md'} has no metadata between two lines '---' at its beginning")


def _check_what_is_told(folder: Path, staged: Stage, opened: Checkpoint) -> None:
    """Raise if a card is that of other weights: a model was saved over those that it is of."""
    text = staged.text("README.md").decode()
    record, anew = opened.record, f"hf-perturb convert {folder} OUT writes one that is true"
    base = record.base.digest if record is not None and record.base is not None else None
    if others := {*re.findall(r"blake3:[0-9a-f]{64}", text)} - {base, opened.stated_digest}:
        raise CheckpointError(f"{folder / 'README.md'} tells of weights of digest {sorted(others)[0]}; {anew}")
    if opened.has_changed and _TRAINED_FURTHER not in text:
        raise CheckpointError(
            f"{folder / 'README.md'} does not say {_TRAINED_FURTHER!r}, which {folder} is: {record}; {anew}"
        )


def _check_weights(opened: Checkpoint, progress: Progress | None) -> None:
    record = opened.record
    if record is not None and record.base is not None and Path(record.base.name or "").is_absolute():
        raise CheckpointError(
            f"{opened.name}: config.json names its base by a path of this machine, {record.base.name!r}; hf-perturb"
            " create writes a variant that does not"
        )
    found = verify_checkpoint(opened, progress=progress)
    if found.problems:
        raise CheckpointError(f"{opened.name} is not as recorded, so nothing was sent: {'; '.join(found.problems)}")
    if found.nonfinite:
        raise CheckpointError(
            f"{opened.name} has NaN or infinite weights in {listed(found.nonfinite)}, so nothing was sent: what such a"
            " network computes is no number either"
        )


def _check_recipe(opened: Checkpoint, token: str | None) -> None:
    """Compare a recipe with its base as far as that takes no weights: those are compared whenever it is loaded."""
    recipe, name = Recipe.of(opened), opened.name
    base, revision = recipe.base_name, recipe.base.revision
    if base != demo.NAME and revision is None:
        raise CheckpointError(
            f"{name} is a recipe of {base!r}, which nobody else has; push the base, and make the recipe of its Hub id"
        )
    found = Checkpoint.open(base, revision, hub={"token": token}, weights=False, rules=recipe.record.rules)
    if problems := other_sizes(opened, found):
        raise CheckpointError(f"{name} is not a recipe of {base!r} as it is: {'; '.join(problems)}")
