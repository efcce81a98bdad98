"""Whether weights are those that their configuration describes, by what the files of weights say of themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hf_perturb.checkpoints.any_network import AnyNetwork
from hf_perturb.checkpoints.shapes import is_parameter, listed
from hf_perturb.errors import DigestError
from hf_perturb.perturbation.digest import digest_of_lines

if TYPE_CHECKING:
    from hf_perturb.checkpoints.checkpoint import Checkpoint


def differences(opened: Checkpoint, lines: Mapping[str, str]) -> list[str]:
    """Say where weights are not the ones that are stated, given what `Checkpoint.lines` returns.

    A record that Transformers alone has saved beside other weights is noted as that of weights that have changed since.
    """
    stated = None if opened.has_changed else opened.stated_digest
    if stated not in (None, found := digest_of_lines(lines)):
        if opened.record is not None and isinstance(opened.described, AnyNetwork) and _is_silent(opened):
            opened.record = replace(opened.record, changed=True)
            return []
        return [f"the weights have digest {found}, the record says {stated}"]
    wrong = [name for name, line in opened.stated_lines.items() if lines[name] != line]
    return [f"tensors that are not what the header of their file says: {listed(wrong)}"] if wrong else []


def check_record(opened: Checkpoint) -> None:
    """Raise if the weights are not those that the configuration describes, as far as their headers tell.

    Where no header says anything, they are read and compared with the digest.

    Raises:
        DigestError: naming what differs, if anything does.
    """
    problems, stated = other_records(opened), opened.stated_lines
    if stated and not problems:
        problems = differences(opened, {**dict.fromkeys(opened.tensors, ""), **stated})
    if not problems and _is_silent(opened):
        claims = None if opened.has_changed else opened.stated_digest
        # stock Transformers writes no record into a header, and keeps what somebody wrote into its config.json
        if claims is None and opened.origin != "transformers":
            problems = [f"config.json says {opened.record}, without a digest, and no file of weights says so"]
        elif claims is not None:
            problems = differences(opened, opened.lines())
    if problems:
        what = "the state_dict is" if opened.place is None else "the weights are"
        raise DigestError(
            f"{opened.name!r}: {what} not what the configuration says: {'; '.join(problems)}. A save was cut short, a"
            " file was left over, or something was edited or trained; save the model again, or make the control again"
            " from its base (hf-perturb create)"
        )


def other_records(opened: Checkpoint) -> list[str]:
    """Say where the configuration differs from what the files of weights say of themselves."""
    ours = None if opened.record is None else opened.record.to_dict()
    problems = []
    for file, metadata in opened.headers.items():
        said = (metadata or {}).get("perturbation")
        if said is not None and said != json.dumps(ours):
            theirs, here = _where_they_differ(said, ours)
            if theirs != here:
                problems.append(f"{file} says of itself {theirs}, config.json {'nothing' if here is None else here}")
    if problems or opened.is_recipe or opened.place is None:
        return problems
    stated = opened.stated_lines
    unsaid = [name for name in opened.tensors if name not in stated]
    is_partial = opened.record is not None or len(unsaid) < len(opened.tensors)
    if unsaid and is_partial and any("digests" in (said or {}) for said in opened.headers.values()):
        problems.append(f"the files of weights state no digest of {listed(unsaid)}")
    if opened.record is None or opened.record.digest is None or opened.has_changed:  # or its digest tells
        problems += written_apart(opened)
    if opened.record is not None and any(x.region is None for name, x in opened.tensors.items() if is_parameter(name)):
        problems.append(
            f"config.json says {opened.record} of weights in a pickle, which cannot say so themselves; a record needs"
            " .safetensors files"
        )
    return problems


def written_apart(opened: Checkpoint) -> list[str]:
    """Say if files of weights were not written together, by the digest of all of them that each states."""
    if opened.origin == "transformers":
        return []
    whole, stated = {(said or {}).get("digest") for said in opened.headers.values()}, opened.stated_lines
    if whole <= {None, opened.stated_digest, digest_of_lines(stated)} or stated.keys() != opened.tensors.keys():
        return []
    return [f"{', '.join(opened.headers)} were not written together, or one is damaged"]


def _is_silent(opened: Checkpoint) -> bool:
    """Whether there is a record that a file of weights says nothing of."""
    if opened.record is None or opened.is_recipe:
        return False
    return not opened.headers or any("perturbation" not in (said or {}) for said in opened.headers.values())


def _where_they_differ(said: str, ours: Any) -> tuple[Any, Any]:
    """Return what differs in two records, or both whole where one of them is no record."""
    try:
        theirs = json.loads(said)
    except (ValueError, RecursionError):
        return said, ours
    if not isinstance(theirs, dict) or not isinstance(ours, dict):
        return said, ours
    differs = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    return {key: theirs.get(key) for key in differs}, {key: ours.get(key) for key in differs}
