"""`push`: a folder becomes a repository on the Hub in one commit, or the repository stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from hf_perturb.checkpoints.formats import OURS, PUSH_FORMATS
from hf_perturb.checkpoints.source import UnreachedError, reach_hub, read_json, retried
from hf_perturb.errors import CheckpointError, HubError
from hf_perturb.hub.errors import explained
from hf_perturb.hub.files import Change, Stage, is_weights
from hf_perturb.hub.preflight import checked_files, refuse_names, usable_token
from hf_perturb.perturbation.spec import in_words
from hf_perturb.variants.stream import Progress

_MAIN = "main"
# how things are when a step fails
_UNSENT = "nothing was sent"
_SENT = "{} is as it was, and what was sent is not sent again"
_UNKNOWN = "the commit may or may not be on {}, which the next run finds out"
_THERE = "the files are there"

_Result = TypeVar("_Result")


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
        unknown: what a dry run could not look up.
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
    unknown: tuple[str, ...] = ()

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
    revision: str = _MAIN,
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
        dry_run: only say what would change; where the Hub cannot be reached, what would be sent.
        token: of the Hub; `None` for the one that is logged in.
        progress: called with the bytes that are verified and those in all.

    Raises:
        CheckpointError: if the folder is not fit to be published: not as recorded, incomplete, not numbers, no card, or
            trained further from a control with a card that does not say so.
        HubError: if the Hub refuses, or cannot be reached; the message says how things are and what to do.
    """
    if format not in PUSH_FORMATS:
        raise CheckpointError(f"format: got {format!r}; allowed: {', '.join(PUSH_FORMATS)}")
    refuse_names(repo_id, revision, tag)
    token = usable_token(repo_id, token, dry_run)
    api = HfApi(token=token, library_name="hf_perturb")
    url = f"{constants.ENDPOINT}/{repo_id}"
    with checked_files(path, repo_id, format, token, dry_run, progress) as staged:
        try:
            reach_hub()
        except UnreachedError as error:
            if not dry_run:
                raise UnreachedError(f"{repo_id}: {error}; {_UNSENT}") from error
            unknown = (*staged.unknown, f"what is on {revision} of {repo_id}: {error}")
            planned = tuple(staged.changes(None))
            return Push(repo_id, url, revision, None, planned, staged.left_out, tag, collection, True, unknown)
        job = _Job(api, repo_id, revision, tag, private, force, staged)
        remote = job.look()
        job.refuse_hidden_base(remote)
        if not remote.exists and not dry_run:
            remote = job.make()
        job.refuse_existing(remote)
        planned = tuple(staged.changes(remote.sums))
        if not dry_run:
            remote = job.send(remote)
            job.name(remote)
            if collection is not None:
                collection = job.collect(collection, remote.private)
    return Push(repo_id, url, revision, remote.head, planned, staged.left_out, tag, collection, dry_run)


@dataclass(frozen=True)
class _Remote:
    """The state of a branch, or of a commit on it.

    Args:
        exists: whether there is such a repository, as far as the token can see.
        has_branch: whether it has the branch; else the rest is that of `main`, which the branch will start from.
        is_new: whether the branch is one that has only just started from `main`, or is to.
        private: whether others cannot see it.
        head: the commit.
        sums: sha256 of large files, git's sha1 of the others, by path.
        tags: their commits by name.
    """

    exists: bool
    has_branch: bool = False
    is_new: bool = True
    private: bool = False
    head: str | None = None
    sums: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Job:
    """A push that is asked for, and the steps of it, each of which can be repeated."""

    api: HfApi
    repo_id: str
    branch: str
    tag: str | None
    private: bool
    force: bool
    staged: Stage

    def trying(self, what: str, state: str) -> AbstractContextManager[None]:
        """Explain what goes wrong; see `explained`."""
        return explained(f"{self.repo_id}: {what}", state, str(self.api.token or ""))

    def ask(self, what: str, state: str, call: Callable[[], _Result]) -> _Result:
        """Call the Hub, again while it is busy or the connection breaks, and explain what goes wrong."""
        with self.trying(what, state):
            return retried(call, connections=True)

    def left(self, remote: _Remote) -> list[Change]:
        """Return what is not there yet as it should be."""
        return [change for change in self.staged.changes(remote.sums) if change.action != "keep"]

    def look(self, state: str = _UNSENT, commit: str | None = None) -> _Remote:
        """Look at the branch, or at a commit on it; if that fails, `state` says how things are."""
        return self.ask("to look at it", state, lambda: self._seen(commit))

    def _seen(self, commit: str | None) -> _Remote:
        try:
            info = self.api.model_info(self.repo_id)
        except RepositoryNotFoundError:
            return _Remote(exists=False)
        refs = self.api.list_repo_refs(self.repo_id)
        branches = {ref.name: ref.target_commit for ref in refs.branches}
        own, main = branches.get(self.branch), branches.get(_MAIN)
        head = commit or own or info.sha
        entries = self.api.list_repo_tree(self.repo_id, recursive=True, revision=head)
        files = [entry for entry in entries if isinstance(entry, RepoFile)]
        sums = {file.path: file.lfs.sha256 if file.lfs is not None else file.blob_id for file in files}
        tags = {tag.name: tag.target_commit for tag in refs.tags}
        is_new = own is None or (self.branch != _MAIN and own == main)
        return _Remote(True, own is not None, is_new, bool(info.private), head, sums, tags)

    def refuse_hidden_base(self, remote: _Remote) -> None:
        """Raise if a recipe would be for everybody, and its base is not."""
        base = (self.staged.config.get("perturbation") or {}).get("base") or {}
        if any(map(is_weights, self.staged.files)) or not base.get("revision"):
            return
        what = f"to look at the base {base['name']}"
        hidden = self.ask(what, _UNSENT, lambda: self.api.model_info(base["name"])).private
        if hidden and not (remote.private if remote.exists else self.private):
            raise HubError(
                f"{self.repo_id} would be a public recipe of the private {base['name']}, which nobody else can load;"
                " push it with --private, or make the base public"
            )

    def make(self) -> _Remote:
        """Make the repository; return its state."""
        make = partial(self.api.create_repo, self.repo_id, private=self.private, exist_ok=True)
        self.ask("to make the repository", _UNSENT, make)
        if not (made := self.look()).exists:
            raise HubError(f"{self.repo_id} is there, but the token may not see it: it is somebody else's")
        return made

    def refuse_existing(self, remote: _Remote) -> None:
        """Raise if the push would expose, hide, rename or replace what is there."""
        repo_id, branch, tag = self.repo_id, self.branch, self.tag
        if not remote.exists:
            return
        if self.private and not remote.private:
            raise HubError(f"{repo_id} is public already; make it private in its settings, or leave --private out")
        if branch in remote.tags and not remote.has_branch:
            raise HubError(f"{repo_id}: {branch} is a tag; allowed for --revision: a branch")
        left = self.left(remote)
        if tag is not None and tag in remote.tags and (left or remote.tags[tag] != remote.head):
            raise HubError(f"{repo_id}: the tag {tag} names another commit, {remote.tags[tag]}; choose another name")
        if "adapter_config.json" in remote.sums:
            raise HubError(
                f"{repo_id} has an adapter on {branch}, which Transformers would put on top of the weights; choose"
                " another name, or take adapter_config.json away"
            )
        # a branch that is new takes nothing away from the one that it starts from
        if not remote.is_new and not self.force and left:
            self._refuse_to_replace(remote, {change.path: change.action for change in left})

    def _refuse_to_replace(self, remote: _Remote, left: Mapping[str, str]) -> None:
        here, there = self.staged.config, self._config_there(remote)
        remedy = "choose another name or --revision, or replace it with --force (force=True): it stays in the history"
        if not there:
            if lost := [path for path, action in left.items() if action in ("replace", "delete")]:
                raise HubError(f"{self.repo_id} has a {lost[0]} on {self.branch} that is not of such a model; {remedy}")
            return
        # stock Transformers knows no digest, so there only the files themselves tell
        weights = [path for path in left if is_weights(path)]
        if _identity(there, remote.sums) == _identity(here, self.staged.files) and (_digest(here) or not weights):
            # under the same configuration the same weights have the same files
            if "config.json" not in left and "replace" in map(left.get, weights):
                raise HubError(f"{self.repo_id} has other weights on {self.branch} than its config.json says; {remedy}")
            return
        same = _digest(there) is not None and _digest(there) == _digest(here)
        what = "the same model in another format or without weights" if same else f"another model on {self.branch}"
        raise HubError(f"{self.repo_id} has {what}, {_title(there)}; {remedy}")

    def _config_there(self, remote: _Remote) -> dict[str, Any]:
        """Return the `config.json` of the repository, `{}` where there is none that can be read."""
        if "config.json" not in remote.sums:
            return {}
        fetch = partial(self.api.hf_hub_download, self.repo_id, "config.json", revision=remote.head)
        path = self.ask("to look at what is there", _UNSENT, fetch)
        with suppress(CheckpointError):
            return read_json(Path(path))
        return {}

    def send(self, remote: _Remote) -> _Remote:
        """Make the branch hold what is staged; return its state."""
        api, repo_id, branch = self.api, self.repo_id, self.branch
        if not remote.has_branch:
            make = partial(api.create_branch, repo_id, branch=branch, revision=remote.head, exist_ok=True)
            self.ask(f"to make the branch {branch}", _UNSENT, make)
        if not (left := self.left(remote)):
            return remote
        files = [self.staged.files[change.path] for change in left if change.action != "delete"]
        gone = [CommitOperationDelete(change.path) for change in left if change.action == "delete"]
        with self.trying("to send the files", _SENT.format(branch)):
            # by itself, because the client tries these calls again, and the commit not
            api.preupload_lfs_files(repo_id, files, revision=branch, free_memory=False)
        self.staged.refuse_changed()
        return self._commit(remote, [*files, *gone])

    def _commit(self, remote: _Remote, operations: list[CommitOperationAdd | CommitOperationDelete]) -> _Remote:
        """Commit once, however often that takes: an answer that was lost is found by looking."""
        title, unknown = f"hf_perturb: {_title(self.staged.config)}", _UNKNOWN.format(self.branch)
        where: dict[str, Any] = {"revision": self.branch, "parent_commit": remote.head, "commit_message": title}

        def commit() -> _Remote:
            try:
                oid = self.api.create_commit(self.repo_id, operations, **where).oid
            except Exception:  # whatever it is, what became of the commit is seen on the branch
                now = self.look(unknown)
                if now.head == remote.head:
                    raise
                if self.left(now):
                    raise HubError(
                        f"{self.repo_id}: somebody else changed {self.branch} in between, and it does not hold what was"
                        " sent; look at it, and run the same command again"
                    ) from None
                return now
            return self.look(unknown, oid)

        done = self.ask("the commit", _SENT.format(self.branch), commit)
        if self.left(done):
            raise HubError(
                f"{self.repo_id}: the commit {done.head} is on {self.branch}, but lacks some of the files; is there a"
                " .gitignore? take it away, and run the same command again"
            )
        return done

    def name(self, remote: _Remote) -> None:
        """Give the commit its name."""
        if (tag := self.tag) is None or tag in remote.tags:
            return
        set_tag = partial(self.api.create_tag, self.repo_id, tag=tag, revision=remote.head, exist_ok=True)
        self.ask(f"to set the tag {tag}", _THERE, set_tag)
        # one that is there already is accepted: it may be ours, its answer lost, or that of another job
        if (now := self.look(_THERE).tags.get(tag)) != remote.head:
            raise HubError(f"{self.repo_id}: somebody else gave the tag {tag} to {now} in between; choose another name")

    def collect(self, collection: str, private: bool) -> str:
        """Add the repository to a collection, if it is not in it already; return the slug.

        Args:
            collection: a slug (`namespace/title-0123abcd`), or a title in the namespace of the repository.
            private: whether a collection that is made for it is a private one.
        """

        def add() -> str:
            slug, namespace = collection, self.repo_id.partition("/")[0]
            if "/" not in slug:
                slug = self.api.create_collection(slug, namespace=namespace, private=private, exists_ok=True).slug
            self.api.add_collection_item(slug, self.repo_id, "model", exists_ok=True)
            return slug

        return self.ask(f"to add it to the collection {collection!r}", _THERE, add)


def _title(stored: Mapping[str, Any]) -> str:
    """Return what a commit says of a model: its record and digest, from its `config.json`."""
    record = stored.get("perturbation")
    if not isinstance(record, dict):
        return f"{stored.get('model_type')}, {stored.get('digest') or 'without a digest'}"
    what = f"{stored.get('model_type')}, {in_words(record)}, {record.get('digest')}"
    return f"{what}{', changed since' if record.get('changed') else ''}"


def _identity(stored: Mapping[str, Any], files: Iterable[str]) -> Any:
    """Return what tells one published model from another: its network, its weights, and whether they are there."""
    return stored.get("model_type"), stored.get("architectures"), _digest(stored), any(map(is_weights, files))


def _digest(stored: Mapping[str, Any]) -> Any:
    """Return the digest of the weights; that of a control from which they were trained further is not theirs."""
    record = stored.get("perturbation")
    if not isinstance(record, dict):
        return stored.get("digest")
    return None if record.get("changed") else record.get("digest")
