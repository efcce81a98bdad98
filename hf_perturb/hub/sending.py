"""The way to the Hub: repository, branch, files, commit, name, collection; each step can be repeated."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from huggingface_hub import CommitOperationDelete, HfApi

from hf_perturb.errors import HubError
from hf_perturb.hub.grouping import add_to_collection
from hf_perturb.hub.refusals import explained
from hf_perturb.hub.remote import Change, Remote, changes, look, tags_of
from hf_perturb.hub.staging import Stage
from hf_perturb.models.fetching import ATTEMPTS, pause_after, retried

_AS_BEFORE = "{} is as it was: run the same command again, what was sent is not sent again"


@dataclass(frozen=True)
class Sending:
    """The steps of a push, each of which can be repeated.

    Args:
        api: the client, with a token.
        repo_id: the repository.
        branch: what is pushed to.
        staged: what is to be there.
    """

    api: HfApi
    repo_id: str
    branch: str
    staged: Stage

    def left(self, remote: Remote) -> list[Change]:
        """Return what is not there yet as it should be."""
        return [change for change in changes(self.staged.files, remote) if change.action != "keep"]

    def publish(self, remote: Remote, private: bool, title: str) -> Remote:
        """Make the branch hold what is staged; return its state."""
        api, repo_id, branch = self.api, self.repo_id, self.branch
        if not remote.exists:
            with explained(f"{repo_id}: to make the repository", "run the same command again"):
                retried(lambda: api.create_repo(repo_id, private=private, exist_ok=True), connections=True)
                remote = look(api, repo_id, branch)
            if not remote.exists or remote.private != private:
                raise HubError(f"{repo_id} is somebody else's, or was made in between, and is not what was asked for")
        if not remote.has_branch:
            with explained(f"{repo_id}: to make the branch {branch}", _AS_BEFORE.format(repo_id)):
                start: dict[str, Any] = {"branch": branch, "revision": remote.head, "exist_ok": True}
                retried(lambda: api.create_branch(repo_id, **start), connections=True)
        if not (left := self.left(remote)):
            return remote
        with explained(f"{repo_id}: to send the files", _AS_BEFORE.format(branch)):
            files = [self.staged.files[change.path] for change in left if change.action != "delete"]
            # by itself, because the client tries these calls again, and the commit not
            api.preupload_lfs_files(repo_id, files, revision=branch, free_memory=False)
        return self._commit(remote, title)

    def _commit(self, remote: Remote, title: str) -> Remote:
        """Commit once, however often that takes: an answer that was lost is found by looking."""
        operations = [
            CommitOperationDelete(change.path) if change.action == "delete" else self.staged.files[change.path]
            for change in self.left(remote)
        ]
        for attempt in range(1, ATTEMPTS + 1):
            error = self._try_commit(remote, operations, title)
            unknown = f"the commit may or may not be on {self.branch}: run the same command again, it will find out"
            with explained(f"{self.repo_id}: to look at what became of the commit", unknown):
                now = look(self.api, self.repo_id, self.branch)
            if not self.left(now):
                return now
            if error is None:
                raise HubError(f"{self.repo_id}: the Hub left files out of the commit; is there a .gitignore?")
            if now.head != remote.head:
                raise HubError(
                    f"{self.repo_id}: somebody else changed {self.branch} in between, and nothing of ours is in it;"
                    " look at it, and run the same command again"
                )
            seconds = pause_after(error, attempt, connections=True)
            if seconds is None or attempt == ATTEMPTS:
                with explained(f"{self.repo_id}: the commit", _AS_BEFORE.format(self.branch)):
                    raise error
            time.sleep(seconds)
        raise AssertionError("the last attempt returns or raises")

    def _try_commit(self, remote: Remote, operations: list[Any], title: str) -> Exception | None:
        try:
            self.api.create_commit(
                self.repo_id, operations, commit_message=title, revision=self.branch, parent_commit=remote.head
            )
        except Exception as error:  # whatever it is, what became of the commit is seen on the branch
            return error
        return None

    def name(self, remote: Remote, tag: str | None) -> None:
        """Give the commit its name."""
        if tag is None or tag in remote.tags:
            return
        api, repo_id, head = self.api, self.repo_id, remote.head
        with explained(f"{repo_id}: to set the tag {tag}", "the files are there: run the same command again"):
            retried(lambda: api.create_tag(repo_id, tag=tag, revision=head, exist_ok=True), connections=True)
            now = tags_of(api, repo_id).get(tag)
        if now != head:
            raise HubError(f"{repo_id}: somebody else gave the tag {tag} to {now} in between; choose another name")

    def collect(self, collection: str | None, private: bool) -> str | None:
        """Add the repository to a collection; return its slug."""
        if collection is None:
            return None
        with explained(f"collection {collection!r}", "the files are there: run the same command again"):
            return add_to_collection(self.api, self.repo_id, collection, private)
