"""What belongs in a repository: the files of a folder that are on the list, the code, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd
from huggingface_hub.utils.sha import git_hash

from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.companions import names_beside
from hf_perturb.checkpoints.source import identity
from hf_perturb.errors import CheckpointError

_HERE = b'"this-folder"'  # what cards call the folder or repository that they are in
_ALWAYS = ("config.json", "README.md")
_FILES = (*_ALWAYS, "tokenizer.json", "tokenizer_config.json")
# what others write beside a tokenizer.json, and tokenizers would put on top of it
_ALPHABETS = ("special_tokens_map.json", "added_tokens.json", "vocab.txt")
# all that Transformers may take for weights or their index, also with `variant=`
_ANY_WEIGHTS = re.compile(r"(pytorch_)?model([.-][\w.-]+)?\.(safetensors|bin)(\.index(\.\w+)?\.json)?")
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")
_IMPORT = re.compile(r"^\s*from\s+\.(\S+)\s+import", re.MULTILINE)
# read as files, never imported
_CODE = Path(__file__).resolve().parent.parent / "networks"


@dataclass(frozen=True)
class Change:
    """What becomes of a file.

    Args:
        path: in the repository.
        action: `add`, `replace`, `delete` or `keep`; `send` where nobody knows what is there.
        size: in bytes, 0 for what is deleted.
    """

    path: str
    action: str
    size: int


@dataclass(frozen=True)
class Stage:
    """What is to be in a repository.

    Args:
        files: by path in the repository, as the client sends them.
        sums: of each, as the Hub may have them: the sha256, and of a small file also git's sha1.
        left_out: what else is in the folder.
        seen: what tells that a file of the folder is still the one that was opened or read.
        unknown: what a dry run could not look up.
    """

    files: Mapping[str, CommitOperationAdd]
    sums: Mapping[str, tuple[str, ...]]
    left_out: tuple[str, ...]
    seen: Mapping[Path, tuple[int, ...] | None]
    unknown: tuple[str, ...] = ()

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of the `config.json` that is to be there."""
        return dict(json.loads(self.text("config.json")))

    def text(self, name: str) -> bytes:
        """Return the content of a small file."""
        with self.files[name].as_file() as file:
            return file.read()

    def changes(self, there: Mapping[str, str] | None) -> list[Change]:
        """Compare what is to be in a repository with the sums of what is; files that are not ours stay as they are."""
        if there is None:
            return [Change(path, "send", file.upload_info.size) for path, file in self.files.items()]
        made = []
        for path, file in self.files.items():
            action = "add" if path not in there else "keep" if there[path] in self.sums[path] else "replace"
            made.append(Change(path, action, file.upload_info.size))
        # what we write, and weights of any kind
        ours = {*_FILES, *_ALPHABETS, *(path.name for path in _CODE.glob("*.py") if path.stem != "__init__")}
        gone = sorted(path for path in there if (is_weights(path) or path in ours) and path not in self.files)
        return made + [Change(path, "delete", 0) for path in gone]

    def refuse_changed(self) -> None:
        """Raise if somebody writes the folder while it is published: its files would be of two models.

        Raises:
            CheckpointError: naming the file.
        """
        for path, seen in self.seen.items():
            if identity(path) != seen:
                raise CheckpointError(
                    f"{path} changed meanwhile, so nothing was published; push it again when it is done"
                )


def stage(opened: Checkpoint, repo_id: str) -> Stage:
    """Choose what of a folder belongs in a repository, and read it; the weights are only summed.

    Raises:
        CheckpointError: if a file is missing, is none of the folder's own, or holds a token of the Hub.
    """
    folder, looked_for = Path(opened.name), {} if opened.place is None else opened.place.seen
    weights = [path for path, found in looked_for.items() if found is not None and is_weights(path.name)]
    if weights and not opened.headers:
        raise CheckpointError(
            f"{opened.name} has its weights in {weights[0].name}; only safetensors are published: hf-perturb convert"
            f" {opened.name} OUT"
        )
    own = [*(folder / name for name in (*_ALWAYS, *names_beside(opened))), *weights]
    for path in own:
        _check_own(path)
    seen = {**{path: identity(path) for path in own}, **looked_for}
    code = {} if opened.origin == "transformers" else travelling_code(opened.network.family)
    large = {path.name: path for path in weights if path.suffix == ".safetensors"}
    small = {path.name: path.read_bytes() for path in (*code.values(), *own) if path.name not in large}
    for name, content in small.items():
        if _TOKEN.search(content):
            raise CheckpointError(f"{folder / name} holds what looks like a token of the Hub: take it out, revoke it")
    # the card calls the repository by its name
    small["README.md"] = small["README.md"].replace(_HERE, f'"{repo_id}"'.encode())
    contents: dict[str, Path | bytes] = {**small, **large}
    files = {name: CommitOperationAdd(name, content) for name, content in sorted(contents.items())}
    # of a large file the Hub has the sha256 alone
    git = {name: (git_hash(content),) for name, content in small.items()}
    sums = {name: (file.upload_info.sha256.hex(), *git.get(name, ())) for name, file in files.items()}
    left_out = sorted(path.name for path in folder.iterdir() if path.name not in contents)
    return Stage(files, sums, tuple(left_out), seen)


def travelling_code(family: str) -> dict[str, Path]:
    """Return the files of the package that a family's `auto_map` needs beside it, by their names in the repository.

    Source: `transformers.dynamic_module_utils.get_relative_import_files`, which fetches the same (tested).
    """
    needed, look = {}, [f"{kind}_{family}" for kind in ("configuration", "modeling")]
    while look:
        path = _CODE / f"{look.pop()}.py"
        if path.name not in needed:
            needed[path.name] = path
            look += _IMPORT.findall(path.read_text(encoding="utf-8"))
    return dict(sorted(needed.items()))


def is_weights(path: str) -> bool:
    """Whether Transformers would take a file for weights, or for their index."""
    return _ANY_WEIGHTS.fullmatch(path) is not None


def _check_own(path: Path) -> None:
    """Raise if a file is not there, or is none of the folder's own."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        what = "a link" if path.is_symlink() else "no file"
        raise CheckpointError(f"{path} is {what}; what is published is the folder's own: put the file itself there")
    if not path.exists():
        raise CheckpointError(
            f"{path} is missing; hf-perturb create writes it, and hf-perturb convert of what was trained or saved since"
        )
