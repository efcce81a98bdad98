"""What belongs in a repository: the files of a folder that are on the list, the code, and nothing else."""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd

from hf_perturb.errors import CheckpointError
from hf_perturb.hub.code import code_names
from hf_perturb.networks.files import shards_of, weight_files

HERE = '"this-folder"'  # what cards call the folder or repository that they are in
_FILES = ("config.json", "README.md", "tokenizer.json", "tokenizer_config.json")
# what others write beside a tokenizer.json, and tokenizers would put on top of it
_ALPHABETS = ("special_tokens_map.json", "added_tokens.json", "vocab.txt")
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
# all that Transformers may take for weights or their index, also with `variant=`
_ANY_WEIGHTS = re.compile(r"(pytorch_)?model([.-][\w.-]+)?\.(safetensors|bin)(\.index(\.\w+)?\.json)?")
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")


@dataclass(frozen=True)
class Stage:
    """What is to be in a repository.

    Args:
        files: by path in the repository, as the client sends them.
        sums: of each, as the Hub may have them: the sha256, and of a small file also git's sha1.
        left_out: what else is in the folder.
        seen: what tells that a file of the folder is still the one that was read.
    """

    files: Mapping[str, CommitOperationAdd]
    sums: Mapping[str, tuple[str, ...]]
    left_out: tuple[str, ...]
    seen: Mapping[Path, tuple[int, ...]]

    def text(self, name: str) -> bytes:
        """Return the content of a small file."""
        with self.files[name].as_file() as file:
            return file.read()

    def refuse_changed(self) -> None:
        """Refuse a folder that somebody writes while it is published: its files would be of two models.

        Raises:
            CheckpointError: naming the file.
        """
        for path, seen in self.seen.items():
            if _seen(path) != seen:
                raise CheckpointError(
                    f"{path} changed meanwhile, so nothing was published; push it again when it is done"
                )


def stage(folder: Path, repo_id: str, code: Mapping[str, Path]) -> Stage:
    """Choose what belongs in a repository, and read it; the weights are only summed.

    Args:
        folder: a variant, a recipe or a base.
        repo_id: the repository, which the card calls itself by.
        code: the files of the package that travel with it.

    Raises:
        CheckpointError: if a file is missing, is none of the folder's own, or holds a token of the Hub.
    """
    weights = _weight_names(folder)
    seen = {folder / name: _seen(folder / name) for name in (*_FILES, *weights)}
    large = {name: folder / name for name in weights if name != _INDEX}
    small = {name: path.read_bytes() for name, path in code.items()}
    small |= {path.name: path.read_bytes() for path in seen if path.name not in large}
    for name, content in small.items():
        if _TOKEN.search(content):
            raise CheckpointError(f"{folder / name} holds what looks like a token of the Hub: take it out, revoke it")
    small["README.md"] = small["README.md"].replace(HERE.encode(), f'"{repo_id}"'.encode())
    contents: dict[str, Path | bytes] = {**small, **large}
    files = {name: CommitOperationAdd(name, content) for name, content in sorted(contents.items())}
    sums = {name: (file.upload_info.sha256.hex(), *_git_sum(contents[name])) for name, file in files.items()}
    left_out = sorted(path.name for path in folder.iterdir() if path.name not in contents)
    return Stage(files, sums, tuple(left_out), seen)


def is_ours(path: str) -> bool:
    """Whether a file of a repository is one that we may replace or delete: what we write, and weights of any kind."""
    return is_weights(path) or path in {*_FILES, *_ALPHABETS, *code_names()}


def is_weights(path: str) -> bool:
    """Whether Transformers would take a file for weights, or for their index."""
    return _ANY_WEIGHTS.fullmatch(path) is not None


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


def _seen(path: Path) -> tuple[int, ...]:
    try:
        found = path.lstat()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing; a folder that hf-perturb create or convert wrote has it: build it again"
        ) from error
    if not stat.S_ISREG(found.st_mode):
        what = "a link" if stat.S_ISLNK(found.st_mode) else "no file"
        raise CheckpointError(f"{path} is {what}; what is published is the folder's own: put the file itself there")
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _git_sum(content: Path | bytes) -> tuple[str, ...]:
    """Return git's sum of a small file; a large one has its sha256 on the Hub. Source: git's blob objects."""
    if isinstance(content, Path):
        return ()
    return (hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest(),)
