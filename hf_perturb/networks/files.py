# Copyright 2026 The hf_perturb authors. All rights reserved.
#
# Licensed under the MIT License: see the LICENSE file at the root of the repository.
"""The files that the weights of a checkpoint are in."""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from .fetching import cached
from .record import CheckpointError

# in the order that Transformers looks for them
_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def weight_files(variant: str | None = None, use_safetensors: bool | None = None) -> list[str]:
    """Return the names that weights may go by; an index names its shards.

    Args:
        variant: Transformers' `variant=`, a part of the name.
        use_safetensors: Transformers' `use_safetensors=`; false for pickles alone.
    """
    files = [file for file in _FILES if use_safetensors is None or use_safetensors == ("safetensors" in file)]
    if variant is None:
        return files
    return [f"{stem}.{variant}.{rest}" for stem, _, rest in (file.rpartition(".") for file in files)]


def weight_paths(
    name: Any, hub: Mapping[str, Any], variant: str | None = None, use_safetensors: bool | None = None
) -> list[Path]:
    """Find the files with the weights of a Transformers checkpoint.

    Args:
        name: a folder or a Hub id.
        hub: what `from_pretrained` takes to find a file on the Hub.
        variant: Transformers' `variant=`.
        use_safetensors: Transformers' `use_safetensors=`.

    Raises:
        OSError: if there are none, or an index names one that is not beside it.
    """
    names = weight_files(variant, use_safetensors)
    for file in names:
        path = cached(name, file, hub)
        if path is None:
            continue
        if ".index." not in file:
            return [Path(path)]
        shards = {shard: cached(name, shard, hub) for shard in shards_of(Path(path))}
        if absent := [shard for shard, found in shards.items() if found is None]:
            raise CheckpointError(f"{path} names {absent[0]!r}, which is not beside it")
        return [Path(found) for found in shards.values() if found is not None]
    raise CheckpointError(f"{str(name)!r} has no weights; looked for {', '.join(names)}")


def shards_of(index: Path) -> list[str]:
    """Return the files that an index names.

    Raises:
        OSError: if it is no index, or names what is not beside it.
    """
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is no index of shards: {error}") from error
    for shard in shards:
        if not isinstance(shard, str) or PurePosixPath(shard).name != shard or shard == "..":
            raise CheckpointError(f"{index}: names {shard!r}; allowed: a file beside it")
    return shards
