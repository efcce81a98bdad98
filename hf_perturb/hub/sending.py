"""The way to the Hub: repository, branch, files, commit, name, collection; each step can be repeated."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from huggingface_hub import CommitOperationDelete, HfApi

from hf_perturb.errors import HubError
from hf_perturb.hub.grouping import add_to_collection
from hf_perturb.hub.refusals import explained
from hf_perturb.hub.remote import Change, Remote, changes, commits_since, look
from hf_perturb.hub.staging import Stage
from hf_perturb.networks.fetching import ATTEMPTS, pause_after, retried

_SENT = "{} is as it was, and what was sent is not sent again"
_THERE = "the files are there"


@dataclass(frozen=True)
class Sending:
    """The steps of a push, each of which can be repeated.

    Args:
        api: the client, with a token.
        repo_id: the repository.
        branch: what is pushed to.
        staged: what is to be there.
        private: whether nobody else may see it.
    """

    api: HfApi
    repo_id: str
    branch: str
    staged: Stage
    private: bool

    def left(self, remote: Remote) -> list[Change]:
        """Return what is not there yet as it should be."""
        return [change for change in changes(self.staged, remote) if change.action != "keep"]

    def look(self, state: str = "nothing was sent", commit: str | None = None) -> Remote:
        """Look at the branch, or at a commit on it.

        Args:
            state: how things are if that fails.
            commit: which one; `None` for the head.
        """
        with self.trying("to look at it", state):
            return look(self.api, self.repo_id, self.branch, commit)

    def trying(self, what: str, state: str) -> AbstractContextManager[None]:
        """Explain what goes wrong; see `explained`."""
        return explained(f"{self.repo_id}: {what}", state, str(self.api.token or ""))

    def make(self) -> Remote:
        """Make the repository; return its state."""
        options: dict[str, Any] = {"private": self.private, "exist_ok": True}
        with self.trying("to make the repository", "nothing was sent"):
            retried(lambda: self.api.create_repo(self.repo_id, **options), connections=True)
        if not (made := self.look()).exists:
            raise HubError(f"{self.repo_id} is there, but the token may not see it: it is somebody else's")
        return made

    def publish(self, remote: Remote, title: str) -> Remote:
        """Make the branch hold what is staged; return its state."""
        api, repo_id, branch = self.api, self.repo_id, self.branch
        if not remote.has_branch:
            start: dict[str, Any] = {"branch": branch, "revision": remote.head, "exist_ok": True}
            with self.trying(f"to make the branch {branch}", "nothing was sent"):
                retried(lambda: api.create_branch(repo_id, **start), connections=True)
        if not (left := self.left(remote)):
            return remote
        files = [self.staged.files[change.path] for change in left if change.action != "delete"]
        with self.trying("to send the files", _SENT.format(branch)):
            # by itself, because the client tries these calls again, and the commit not
            api.preupload_lfs_files(repo_id, files, revision=branch, free_memory=False)
        self.staged.refuse_changed()
        # sending may take an hour
        if self.private and not self.look(_SENT.format(branch)).private:
            raise HubError(f"{repo_id} was made public in between; {branch} is as it was")
        return self._commit(remote, title)

    def _commit(self, remote: Remote, title: str) -> Remote:
        """Commit once, however often that takes: an answer that was lost is found by looking."""
        for attempt in range(1, ATTEMPTS + 1):
            oid, error = self._try_commit(remote, title)
            if (done := self._landed(remote, title, oid)) is not None:
                return done
            if error is None:
                raise HubError(
                    f"{self.repo_id}: the commit {oid} is on {self.branch}, but lacks some of the files; is there a"
                    " .gitignore? take it away, and run the same command again"
                )
            if self.look(_unknown(self.branch)).head != remote.head:
                raise HubError(
                    f"{self.repo_id}: somebody else changed {self.branch} in between, and nothing of ours is in it;"
                    " look at it, and run the same command again"
                )
            seconds = pause_after(error, attempt, connections=True)
            if seconds is None or attempt == ATTEMPTS:
                with self.trying("the commit", _SENT.format(self.branch)):
                    raise error
            time.sleep(seconds)
        raise AssertionError("the last attempt returns or raises")

    def _try_commit(self, remote: Remote, title: str) -> tuple[str | None, Exception | None]:
        operations = [
            CommitOperationDelete(change.path) if change.action == "delete" else self.staged.files[change.path]
            for change in self.left(remote)
        ]
        where: dict[str, Any] = {"revision": self.branch, "parent_commit": remote.head}
        try:
            return self.api.create_commit(self.repo_id, operations, commit_message=title, **where).oid, None
        except Exception as error:  # whatever it is, what became of the commit is seen on the branch
            return None, error

    def _landed(self, remote: Remote, title: str, oid: str | None) -> Remote | None:
        """Return the state of our commit, `None` where it is not on the branch, or not as it was sent."""
        with self.trying("to look at what became of the commit", _unknown(self.branch)):
            since = commits_since(self.api, self.repo_id, self.branch, remote.head) if oid is None else {oid: title}
        for commit in (commit for commit, said in since.items() if said == title):
            state = self.look(_unknown(self.branch), commit)
            if not self.left(state):
                return state
        return None

    def name(self, remote: Remote, tag: str | None) -> None:
        """Give the commit its name."""
        if tag is None or tag in remote.tags:
            return
        with self.trying(f"to set the tag {tag}", _THERE):
            options: dict[str, Any] = {"tag": tag, "revision": remote.head, "exist_ok": True}
            retried(lambda: self.api.create_tag(self.repo_id, **options), connections=True)
        if (now := self.look(_THERE).tags.get(tag)) != remote.head:
            raise HubError(f"{self.repo_id}: somebody else gave the tag {tag} to {now} in between; choose another name")

    def collect(self, collection: str | None, private: bool) -> str | None:
        """Add the repository to a collection; return its slug.

        Args:
            collection: its slug or title, if any.
            private: whether one that is made for it is a private one.
        """
        if collection is None:
            return None
        with self.trying(f"to add it to the collection {collection!r}", _THERE):
            return add_to_collection(self.api, self.repo_id, collection, private)


def _unknown(branch: str) -> str:
    return f"the commit may or may not be on {branch}, which the next run finds out"
