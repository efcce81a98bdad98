"""What lies beside weights and is taken over as it is: tokenizer, processor, generation settings, and code."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from hf_perturb.checkpoints.any_network import AnyNetwork
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.source import Place, reach_hub, retried
from hf_perturb.checkpoints.tokenizers import save_tokenizer
from hf_perturb.errors import HubError

# vocabularies and settings of tokenizers, processors and generation, by how they are called; what else lies there may
# be private, or tell of the training of the base
_BESIDE = re.compile(
    r"\w[\w.-]*\.(model|vocab|bpe|spm|codes|tiktoken|tokenizer|jinja)"
    r"|\w*(tokenizer|special_tokens|added_tokens|vocab|merges|dict|codes|normalizer|processor|feature_extractor"
    r"|generation_config|chat_template|emoji|word_shape|word_pronunciation)([_.-][\w.-]+)?\.(json|txt)",
    re.ASCII,
)
_CODE = re.compile(r"\w+\.py", re.ASCII)


def companions_of(place: Place, code: bool) -> list[Path]:
    """Return the files beside the weights of a network that belong to it, fetched if they are on the Hub.

    Args:
        place: of the weights.
        code: whether the modules that its configuration names are among them.
    """
    names = [name for name in _files_of(place) if _is_companion(name, code)]
    return [path for name in names if (path := place.find(name)) is not None]


def may_be_companion(file: Path) -> bool:
    """Whether a file may have come from a base with its network, before anybody knows that."""
    return _is_companion(file.name, code=True) and (file.parent / "config.json").exists()


def _is_companion(name: str, code: bool) -> bool:
    return bool(_BESIDE.fullmatch(name)) or (code and bool(_CODE.fullmatch(name)))


def _files_of(place: Place) -> list[str]:
    """Return the names of the files beside a configuration: at its commit, or as far as they are cached."""
    subfolder = place.hub.get("subfolder") or ""
    if not place.is_local:
        given = {key: value for key, value in place.hub.items() if key in ("revision", "token") and value}
        prefix = f"{subfolder}/" if subfolder else ""
        try:
            reach_hub(place.hub)
            found = retried(lambda: HfApi().list_repo_files(place.location, **given), connections=True)
            return [name.removeprefix(prefix) for name in found if name.startswith(prefix)]
        except (HubError, OSError, ValueError, HfHubHTTPError):
            path = place.find("config.json")
            folder = None if path is None else path.parent
    else:
        folder = Path(place.location, subfolder)
    return [] if folder is None else sorted(path.name for path in folder.iterdir() if path.is_file())


def taken_over(checkpoint: Checkpoint) -> list[Path]:
    """Return the files that a variant has from its base, fetched if they are on the Hub; ours has a tokenizer instead.

    Raises:
        CheckpointError: if a file cannot be fetched.
    """
    network, place = checkpoint.network, checkpoint.place
    is_any = isinstance(network, AnyNetwork) and place is not None
    return companions_of(place, bool(network.auto_map)) if is_any and place is not None else []


def names_beside(checkpoint: Checkpoint) -> list[str]:
    """Return the names of the files that are beside the weights and the configuration of a variant."""
    if isinstance(checkpoint.network, AnyNetwork):
        return [path.name for path in taken_over(checkpoint)]
    return ["tokenizer.json", "tokenizer_config.json"]


def write_companions(checkpoint: Checkpoint, folder: Path) -> None:
    """Write what belongs beside the weights of a network: the tokenizer of ours, or what any other has beside its own.

    Raises:
        CheckpointError: if a file cannot be fetched.
        OSError: if the folder cannot be written.
    """
    if not isinstance(checkpoint.network, AnyNetwork):
        save_tokenizer(checkpoint.network.alphabet, folder)
    for path in taken_over(checkpoint):
        shutil.copyfile(path, folder / path.name)
