"""What belongs in a repository: the files of a folder that are on the list, the code, and nothing else."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd

from hf_perturb.errors import CheckpointError
from hf_perturb.hub.code import code_names
from hf_perturb.models.weights import shards_of, weight_files

HERE = '"this-folder"'  # what cards call the folder or repository that they are in
_FILES = ("config.json", "README.md", "tokenizer.json", "tokenizer_config.json")
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")


@dataclass(frozen=True)
class Stage:
    """What is to be in a repository.

    Args:
        files: by path in the repository, as the client sends them; their sums are known.
        left_out: what else is in the folder.
    """

    files: Mapping[str, CommitOperationAdd]
    left_out: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.upload_info.size for file in self.files.values())


def stage(folder: Path, repo_id: str, code: Mapping[str, Path]) -> Stage:
    """Choose what belongs in a repository, and sum it.

    Args:
        folder: a variant, a recipe or a base.
        repo_id: the repository, which the card calls itself by.
        code: the files of the package that travel with it.

    Raises:
        CheckpointError: if a file is missing, is none of the folder's own, or holds a token of the Hub.
    """
    weights = _weight_names(folder)
    for name in (*_FILES, *weights):
        _refuse_strange(folder / name)
    contents: dict[str, Path | bytes] = {**{name: folder / name for name in (*_FILES, *weights)}, **code}
    card = (folder / "README.md").read_text(encoding="utf-8")
    contents["README.md"] = card.replace(HERE, f'"{repo_id}"').encode()
    for name in (*_FILES, *(name for name in weights if name == _INDEX)):
        text = contents[name]
        if _TOKEN.search(text if isinstance(text, bytes) else text.read_bytes()):
            raise CheckpointError(
                f"{folder / name} holds what looks like a token of the Hub; take it out, and revoke it"
            )
    left_out = sorted(path.name for path in folder.iterdir() if path.name not in contents)
    files = {name: CommitOperationAdd(name, content) for name, content in sorted(contents.items())}
    return Stage(files, tuple(left_out))


def is_ours(path: str) -> bool:
    """Whether a file of a repository is one that we may replace or delete: what we write, and weights of any kind."""
    return is_weights(path) or path in {*_FILES, *code_names()}


def is_weights(path: str) -> bool:
    """Whether Transformers would take a file for weights, or for their index."""
    shard = re.fullmatch(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)", path)
    return shard is not None or path in weight_files()


def _weight_names(folder: Path) -> list[str]:
    """Return the names of the files with the weights, those of a recipe none."""
    if (folder / _WEIGHTS).exists():
        return [_WEIGHTS]
    if (folder / _INDEX).exists():
        return [_INDEX, *shards_of(folder / _INDEX)]
    if other := [name for name in weight_files() if (folder / name).exists()]:
        raise CheckpointError(
            f"{folder} has its weights in {other[0]}; only safetensors are published: hf-perturb convert {folder} OUT"
        )
    return []


def _refuse_strange(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing; a folder that hf-perturb create or convert wrote has it: build it again"
        ) from error
    if not stat.S_ISREG(mode):
        what = "a link" if stat.S_ISLNK(mode) else "no file"
        raise CheckpointError(f"{path} is {what}; what is published is the folder's own: put the file itself there")
