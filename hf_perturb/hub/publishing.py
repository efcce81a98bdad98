"""`push`: a folder becomes a repository on the Hub in one commit, or the repository stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_perturb.checkpoints.bases import find, read_config
from hf_perturb.checkpoints.exports import export_checkpoint
from hf_perturb.checkpoints.progress import Progress
from hf_perturb.errors import CheckpointError, HubError
from hf_perturb.hub.code import travelling_code
from hf_perturb.hub.fitness import refuse_unfit
from hf_perturb.hub.formats import FORMATS, OURS
from hf_perturb.hub.refusals import explained
from hf_perturb.hub.remote import MAIN, Change, Remote, changes, look, recorded_there
from hf_perturb.hub.sending import Sending
from hf_perturb.hub.staging import is_weights, stage
from hf_perturb.models.record import base_location
from hf_perturb.models.stock_esm import is_stock


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
    _refuse_names(repo_id, revision, format)
    api = HfApi(token=token or get_token(), library_name="hf_perturb")
    if not api.token and not dry_run:
        raise HubError(f"{repo_id}: to push needs a token of the Hub: log in with `hf auth login`, or set HF_TOKEN")
    source = Path(base_location(str(path)))
    if not source.is_dir():
        raise CheckpointError(f"{path}: no such folder; allowed: the folder of a variant, a recipe or a base")
    with _in_format(source, format) as folder:
        stored, _ = find(str(folder))
        config, _ = read_config(str(folder), stored)
        staged = stage(folder, repo_id, {} if is_stock(stored) else travelling_code(config.model_type))
        refuse_unfit(source, staged, progress)
        job = Sending(api, repo_id, revision, staged)
        with explained(f"{repo_id}: to look at it", "nothing was sent: run the same command again"):
            remote = look(api, repo_id, revision)
            _refuse_remote(job, remote, stored, private, tag, force)
        planned = tuple(changes(staged.files, remote))
        if not dry_run:
            remote = job.publish(remote, private, f"hf_perturb: {title_of(stored)}")
            job.name(remote, tag)
            collection = job.collect(collection, private)
    url = f"{constants.ENDPOINT}/{repo_id}"
    return Push(repo_id, url, revision, remote.head, planned, staged.left_out, tag, collection, dry_run)


def title_of(stored: Mapping[str, Any]) -> str:
    """Return what a commit says of a model: its record and digest, from its `config.json`."""
    record = stored.get("perturbation")
    if not isinstance(record, dict):
        return f"{stored.get('model_type')}, as a base, {stored.get('digest') or 'without a digest'}"
    return f"{stored.get('model_type')}, {record.get('method')}, seed {record.get('seed', 42)}, {record.get('digest')}"


def _refuse_names(repo_id: str, branch: str, form: str) -> None:
    if form not in FORMATS:
        raise CheckpointError(f"format: got {form!r}; allowed: {', '.join(FORMATS)}")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(f"repo_id: got {repo_id!r}; allowed: NAMESPACE/NAME ({error})") from error
    if repo_id.count("/") != 1:
        raise HubError(f"repo_id: got {repo_id!r}; allowed: NAMESPACE/NAME, such as my-lab/esm1b-reinit-seed42")
    if constants.REGEX_COMMIT_OID.fullmatch(branch) or not branch:
        raise HubError(f"revision: got {branch!r}; allowed: a branch; a commit cannot be pushed to")


def _refuse_remote(
    job: Sending, remote: Remote, stored: Mapping[str, Any], private: bool, tag: str | None, force: bool
) -> None:
    """Refuse what would expose, hide, rename or replace what is there.

    Raises:
        HubError: with the remedy.
    """
    repo_id = job.repo_id
    if remote.exists and private and not remote.private:
        raise HubError(f"{repo_id} is public already; make it private in its settings, or leave --private out")
    left = job.left(remote)
    if tag in remote.tags and (left or not remote.has_branch or remote.tags[str(tag)] != remote.head):
        raise HubError(f"{repo_id}: the tag {tag} names another commit, {remote.tags[str(tag)]}; choose another name")
    there = recorded_there(job.api, repo_id, remote) if left else {}
    if there and not force and _identity(there, remote.sums) != _identity(stored, job.staged.files):
        raise HubError(
            f"{repo_id} has another model on {job.branch}, {title_of(there)}; choose another name or --revision, or"
            " replace it with --force (force=True): it stays in the history"
        )


def _identity(stored: Mapping[str, Any], files: Iterable[str]) -> Any:
    """Return what tells one published model from another: its network, its weights, and whether they are there."""
    record = stored.get("perturbation")
    digest = record.get("digest") if isinstance(record, dict) else stored.get("digest")
    return stored.get("model_type"), stored.get("architectures"), digest, any(map(is_weights, files))


@contextmanager
def _in_format(folder: Path, form: str) -> Iterator[Path]:
    """Give the folder to publish: itself, or what is written anew in another format."""
    if form == OURS:
        yield folder
        return
    with TemporaryDirectory(prefix="hf_perturb-") as scratch:
        out = Path(scratch) / folder.resolve().name
        export_checkpoint(folder, out, form)
        yield out
