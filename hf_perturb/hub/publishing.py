"""`push`: a folder becomes a repository on the Hub in one commit, or the repository stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, constants, get_token

from hf_perturb.checkpoints.bases import find, read_config
from hf_perturb.errors import CheckpointError, HubError
from hf_perturb.hub.code import travelling_code
from hf_perturb.hub.fitness import refuse_unfit, refuse_unrecorded
from hf_perturb.hub.formats import FORMATS, OURS
from hf_perturb.hub.guarding import Asked, refuse_hidden_base, refuse_names, refuse_remote, title_of
from hf_perturb.hub.remote import MAIN, Change, changes
from hf_perturb.hub.sending import Sending
from hf_perturb.hub.staging import stage
from hf_perturb.networks.fetching import strange_token
from hf_perturb.networks.record import base_location
from hf_perturb.networks.stock_esm import is_stock
from hf_perturb.variants.exports import export_checkpoint
from hf_perturb.variants.progress import Progress


@dataclass(frozen=True)
class Push:
    """What `push_variant` did, or would do.

    Args:
        repo_id: the repository.
        url: where people see it.
        branch: what was pushed to.
        commit: the branch's commit at the end, `None` for a repository that a dry run would make.
        files: what becomes of each.
        left_out: what is in the folder and stays there.
        tag: the name that the commit was given, if any.
        collection: the collection that it is in, if any.
        dry_run: whether nothing was touched.
    """

    repo_id: str
    url: str
    branch: str
    commit: str | None
    files: tuple[Change, ...]
    left_out: tuple[str, ...]
    tag: str | None = None
    collection: str | None = None
    dry_run: bool = False

    @property
    def changed(self) -> tuple[Change, ...]:
        """The files that are not there already."""
        return tuple(change for change in self.files if change.action != "keep")

    def to_dict(self) -> dict[str, Any]:
        """Return the same as JSON has it."""
        return asdict(self)


def push_variant(
    path: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str = MAIN,
    tag: str | None = None,
    collection: str | None = None,
    format: str = OURS,
    force: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    progress: Progress | None = None,
) -> Push:
    """Publish a variant, a recipe or a base: weights, configuration, tokenizer, card, and the code that loads them.

    The folder is verified before anything is sent, and everything goes into one commit: whatever happens on the way,
    the branch is the old or the new one. What is there already is not sent again.

    Args:
        path: the folder.
        repo_id: `namespace/name`; the repository is made if there is none.
        private: make it a private one; an existing public one is refused.
        revision: the branch; one that is not there starts from `main`.
        tag: a name for the commit; names are not moved.
        collection: a collection to add it to: its slug (`namespace/title-0123abcd`), or a title in the same namespace,
            which is made if there is none.
        format: `"hf-perturb"`, or `"transformers"` for stock Transformers (ESM-1b, ESM-1v, ESM-2; no code travels).
        force: replace another model that is on the branch; it stays in the history.
        dry_run: only say what would change.
        token: of the Hub; `None` for the one that is logged in.
        progress: called with the bytes that are verified and those in all.

    Raises:
        CheckpointError: if the folder is not fit to be published: not as recorded, incomplete, not numbers, no card.
        HubError: if the Hub refuses, or cannot be reached; the message says how things are and what to do.
    """
    if format not in FORMATS:
        raise CheckpointError(f"format: got {format!r}; allowed: {', '.join(FORMATS)}")
    refuse_names(repo_id, revision, tag)
    token = _token(repo_id, token, dry_run)
    api = HfApi(token=token, library_name="hf_perturb")
    refuse_unrecorded(source := _folder(path))
    with _in_format(source, format) as folder:
        stored, _ = find(str(folder))
        config, _ = read_config(str(folder), stored)
        staged = stage(folder, repo_id, {} if is_stock(stored) else travelling_code(config.model_type))
        if format == OURS:  # what was written anew was read for it, and looked at
            refuse_unfit(folder, staged, stored, config, token, progress)
            staged.refuse_changed()
        job, asked = Sending(api, repo_id, revision, staged, private), Asked(stored, tag, force)
        remote = job.look()
        refuse_remote(job, remote, asked)
        refuse_hidden_base(job, remote, stored)
        planned = tuple(changes(staged, remote))
        if not dry_run:
            if not remote.exists:
                remote = job.make()
                refuse_remote(job, remote, asked)
            remote = job.publish(remote, f"hf_perturb: {title_of(stored)}")
            job.name(remote, tag)
            collection = job.collect(collection, remote.private)
    url = f"{constants.ENDPOINT}/{repo_id}"
    return Push(repo_id, url, revision, remote.head, planned, staged.left_out, tag, collection, dry_run)


def _folder(path: str | Path) -> Path:
    folder = Path(base_location(str(path)))
    if not folder.is_dir():
        raise CheckpointError(f"{path}: no such folder; allowed: that of a variant, a recipe or a base, or 'demo'")
    if not (folder / "config.json").exists():
        raise CheckpointError(
            f"{path} has no config.json, so it is no variant, recipe or base; a folder of many is for"
            " scripts/push_variants.py"
        )
    return folder


def _token(repo_id: str, given: str | None, dry_run: bool) -> str | None:
    token = given or get_token()
    if not token and not dry_run:
        raise HubError(f"{repo_id}: to push needs a token of the Hub: log in with `hf auth login`, or set HF_TOKEN")
    if problem := strange_token(token):
        raise HubError(problem)
    return token


@contextmanager
def _in_format(folder: Path, form: str) -> Iterator[Path]:
    """Give the folder to publish: itself, or what is written anew in another format."""
    if form == OURS:
        yield folder
        return
    with TemporaryDirectory(prefix="hf_perturb-") as scratch:
        out = Path(scratch) / folder.resolve().name
        try:
            export_checkpoint(folder, out, form)
        except OSError as error:
            if error.__cause__ is None:
                raise
            # a full disk, most likely, and in a place that nobody asked for
            raise CheckpointError(f"{error} (it is written anew there first; TMPDIR names another place)") from error
        yield out
