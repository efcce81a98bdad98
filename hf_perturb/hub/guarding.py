"""What a push must not do to what is on the Hub already: expose, hide, rename or replace it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_perturb.errors import HubError
from hf_perturb.hub.refusals import redacted
from hf_perturb.hub.remote import Remote, recorded_there
from hf_perturb.hub.sending import Sending
from hf_perturb.hub.staging import is_weights
from hf_perturb.networks.fetching import retried

# what git takes for a name, but for a few that nobody misses
_REF = re.compile(r"(?!.*(\.\.|//|/\.|\.lock(/|$)))[A-Za-z0-9][\w./-]*(?<![./])", re.ASCII)


@dataclass(frozen=True)
class Asked:
    """What `push_variant` was asked for.

    Args:
        stored: content of the `config.json` that is to be published.
        tag: a name for the commit, if any.
        force: whether another model may be replaced.
    """

    stored: Mapping[str, Any]
    tag: str | None
    force: bool


def refuse_names(repo_id: str, branch: str, tag: str | None) -> None:
    """Refuse names that the Hub would refuse when the files are there.

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


def refuse_remote(job: Sending, remote: Remote, asked: Asked) -> None:
    """Refuse to expose, hide, rename or replace what is there.

    Raises:
        HubError: with the remedy.
    """
    repo_id, branch, tag = job.repo_id, job.branch, asked.tag
    if not remote.exists:
        return
    if job.private and not remote.private:
        raise HubError(f"{repo_id} is public already; make it private in its settings, or leave --private out")
    if branch in remote.tags and not remote.has_branch:
        raise HubError(f"{repo_id}: {branch} is a tag; allowed for --revision: a branch")
    left = job.left(remote)
    if tag is not None and tag in remote.tags and (left or remote.tags[tag] != remote.head):
        raise HubError(f"{repo_id}: the tag {tag} names another commit, {remote.tags[tag]}; choose another name")
    if "adapter_config.json" in remote.sums:
        raise HubError(
            f"{repo_id} has an adapter on {branch}, which Transformers would put on top of the weights; choose another"
            " name, or take adapter_config.json away"
        )
    # a branch that is new takes nothing away from the one that it starts from
    if not remote.is_new and not asked.force and left:
        _refuse_to_replace(job, remote, asked.stored)


def refuse_hidden_base(job: Sending, remote: Remote, stored: Mapping[str, Any]) -> None:
    """Refuse a recipe for everybody of a base that not everybody can see.

    Raises:
        HubError: naming the base.
    """
    base = (stored.get("perturbation") or {}).get("base") or {}
    if any(map(is_weights, job.staged.files)) or not base.get("revision"):
        return
    with job.trying(f"to look at the base {base['name']}", "nothing was sent"):
        hidden = retried(lambda: job.api.model_info(base["name"]), connections=True).private
    if hidden and not (remote.private if remote.exists else job.private):
        raise HubError(
            f"{job.repo_id} would be a public recipe of the private {base['name']}, which nobody else can load; push it"
            " with --private, or make the base public"
        )


def title_of(stored: Mapping[str, Any]) -> str:
    """Return what a commit says of a model: its record and digest, from its `config.json`."""
    record = stored.get("perturbation")
    if not isinstance(record, dict):
        return f"{stored.get('model_type')}, {stored.get('digest') or 'without a digest'}"
    return f"{stored.get('model_type')}, {record.get('method')}, seed {record.get('seed', 42)}, {record.get('digest')}"


def _refuse_to_replace(job: Sending, remote: Remote, stored: Mapping[str, Any]) -> None:
    with job.trying("to look at what is there", "nothing was sent"):
        there = recorded_there(job.api, job.repo_id, remote)
    remedy = "choose another name or --revision, or replace it with --force (force=True): it stays in the history"
    left = {change.path: change.action for change in job.left(remote)}
    if not there:
        if lost := [path for path, action in left.items() if action in ("replace", "delete")]:
            raise HubError(f"{job.repo_id} has a {lost[0]} on {job.branch} that is not of such a model; {remedy}")
        return
    # stock Transformers knows no digest, so there only the files themselves tell
    weights = [path for path in left if is_weights(path)]
    if _identity(there, remote.sums) == _identity(stored, job.staged.files) and (_digest(stored) or not weights):
        # under the same configuration the same weights have the same files
        if "config.json" not in left and "replace" in map(left.get, weights):
            raise HubError(f"{job.repo_id} has other weights on {job.branch} than its config.json says; {remedy}")
        return
    same = _digest(there) is not None and _digest(there) == _digest(stored)
    what = "the same model in another format or without weights" if same else f"another model on {job.branch}"
    raise HubError(f"{job.repo_id} has {what}, {title_of(there)}; {remedy}")


def _identity(stored: Mapping[str, Any], files: Iterable[str]) -> Any:
    """Return what tells one published model from another: its network, its weights, and whether they are there."""
    return stored.get("model_type"), stored.get("architectures"), _digest(stored), any(map(is_weights, files))


def _digest(stored: Mapping[str, Any]) -> Any:
    record = stored.get("perturbation")
    return record.get("digest") if isinstance(record, dict) else stored.get("digest")
