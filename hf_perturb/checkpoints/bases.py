"""Bases: found wherever they are, and read as they are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_perturb import demo
from hf_perturb.checkpoints.catalog import CATALOG
from hf_perturb.checkpoints.checkpoint import CONFIGS, Checkpoint
from hf_perturb.checkpoints.origins.original import read_original
from hf_perturb.errors import CheckpointError, StackedPerturbationError
from hf_perturb.networks.files import weight_paths
from hf_perturb.networks.inspection import read_configuration
from hf_perturb.networks.layouts import AUTO_CLASSES, PREFIXES
from hf_perturb.networks.loading import has_no_weights, stored_config
from hf_perturb.networks.record import base_location
from hf_perturb.networks.stock_esm import is_stock, tensors_from_stock
from hf_perturb.networks.weights import stored_tensors

# the two stock classes that have nothing but a trunk and the language head
_STOCK = ("EsmForMaskedLM", "EsmModel")
# what ends like a file is not asked for on the Hub
_FILES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
_KINDS = f"allowed: a folder of a model, a Hub id, an original .pt file, or {demo.NAME!r}"


def open_base(name: str, revision: str | None = None) -> Checkpoint:
    """Find a base, and compare it with its network.

    Args:
        name: as for `open_checkpoint`.
        revision: see there.

    Raises:
        CheckpointError: if it is missing, is of no known family, or lacks tensors.
        StackedPerturbationError: if it is a variant.
    """
    checkpoint = open_checkpoint(name, revision)
    if (record := checkpoint.config.perturbation) is not None:
        raise StackedPerturbationError(f"base {name!r} is a variant already, by {record}; start from its base")
    return checkpoint.check()


def open_checkpoint(name: str, revision: str | None = None) -> Checkpoint:
    """Find a checkpoint and map its tensors; nothing is compared with the network yet.

    Args:
        name: a folder or Hub id of ours or of Transformers' own ESM, an original `.pt` file, or `demo`.
        revision: of a Hub id.

    Raises:
        CheckpointError: if it is missing, damaged, of another family, or has no weights.
    """
    location = base_location(name)
    if Path(location).is_file():
        if Path(location).suffix == ".safetensors":
            raise CheckpointError(f"{name} is one file of a folder; give the folder, which has the config.json too")
        return read_original(Path(location))
    stored, hub = find(name, revision)
    config, architecture = read_config(name, stored)
    if has_no_weights(location, hub):
        if stored.get("perturbation") is not None:
            named = (stored["perturbation"].get("base") or {}).get("name")
            raise CheckpointError(
                f"{name!r} is a recipe; give it its weights first: hf-perturb create {name} OUT; or start from its base"
                f" {named!r}"
            )
        raise CheckpointError(f"{name!r} has no weights, such as a model.safetensors")
    tensors, foreign = stored_tensors(weight_paths(location, hub)), is_stock(stored)
    if foreign:
        tensors = tensors_from_stock(tensors, config)
    origin = "transformers" if foreign else "hf_perturb"
    return Checkpoint(name, origin, config, architecture, tensors, revision=hub.get("revision"))


def find(name: str, revision: str | None = None, token: str | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Find a folder or a repository, and read its `config.json`.

    Args:
        name: a folder, a Hub id, or `demo`.
        revision: of a Hub id.
        token: of the Hub; `None` for the one that is logged in.

    Returns:
        The file's content, and what finds the other files on the Hub: the commit, `{}` for a folder.

    Raises:
        CheckpointError: if there is none.
    """
    location = base_location(name)
    if Path(location).suffix in _FILES and not Path(location).exists():
        raise CheckpointError(f"{name}: no such file")
    if Path(location).is_file():
        raise CheckpointError(f"{name} is a file, and no recipe; allowed: a folder or a Hub id")
    if name in CATALOG and not Path(name).exists():
        raise CheckpointError(
            f"{name!r} is a name of the catalogue; fetch it and make a base of it first: hf-perturb convert {name} OUT"
        )
    absent = (
        "no config.json in it" if Path(location).is_dir() else "no such file or folder, and not to be had from the Hub"
    )
    given = {"revision": revision, "token": token}
    asked = {} if Path(location).is_dir() else {key: value for key, value in given.items() if value is not None}
    try:
        stored, commit = stored_config(location, asked)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{name!r}: {absent}; {_KINDS} ({error})") from error
    if not stored:
        raise CheckpointError(f"{name!r}: {absent}; {_KINDS}")
    return stored, {} if commit is None else {"revision": commit}


def read_config(name: str, stored: dict[str, Any]) -> tuple[Any, str]:
    """Read the content of a `config.json` as a configuration of ours, and the class that it is of.

    Raises:
        CheckpointError: if it is of another family, or cannot be used.
    """
    family = "fair_esm" if (stock := is_stock(stored)) else stored.get("model_type")
    if not isinstance(family, str) or family not in CONFIGS:
        allowed = ", ".join([*CONFIGS, "esm (Transformers' own)"])
        raise CheckpointError(f"{name!r}: model_type is {family!r}; allowed: {allowed}")
    architecture = _architecture(name, stored.get("architectures"), family, stock)
    config = read_configuration(CONFIGS[family], stored, name)
    config._name_or_path = ""  # whose disk it was on is nobody's business
    return config, architecture


def _architecture(name: str, stored: Any, family: str, stock: bool) -> str:
    """Return our class of a checkpoint, the masked language model's where it does not say."""
    ours = [PREFIXES[family] + head for head in AUTO_CLASSES.values()]
    allowed = list(_STOCK) if stock else ours
    given = stored or [allowed[0] if stock else f"{PREFIXES[family]}ForMaskedLM"]
    if not isinstance(given, list) or given[0] not in allowed:
        raise CheckpointError(f"{name!r}: architectures is {given!r}; allowed: one of {', '.join(allowed)}")
    return f"Fair{given[0]}" if stock else str(given[0])
