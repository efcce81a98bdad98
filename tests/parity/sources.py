"""Small bases and variants on disk, for the tests of exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hf_perturb
from parity.originals import Pair, small_pair

CONTACTS = ("contact_head.regression.weight", "contact_head.regression.bias")


def source_pair(name: str, **options: bool) -> tuple[Pair, Any]:
    """Return an original, and our model with its weights; as published, ESM-1v has no contact head."""
    pair = small_pair(name, **options)
    if name != "esm1v":
        return pair, pair.model()
    config = hf_perturb.FairEsmConfig(**{**pair.config.to_dict(), "contact_head": False})
    model = hf_perturb.FairEsmForMaskedLM(config)
    state = {key: tensor for key, tensor in pair.original.state_dict().items() if key not in CONTACTS}
    model.load_state_dict(state, strict=True)
    return pair, model.eval()


def write_source(folder: Path, model: Any, asked: Any = None) -> Path:
    """Write a base as `convert_checkpoint` does, or a variant of it; return its folder."""
    model.save_pretrained(folder / "saved")
    hf_perturb.convert_checkpoint(folder / "saved", folder / "base")
    if asked is None:
        return folder / "base"
    hf_perturb.create_variant(folder / "base", folder / "variant", asked)
    return folder / "variant"


def load_source(folder: Path) -> Any:
    """Load a source as the masked language model that it is."""
    carp = hf_perturb.CarpConfig.model_type in (folder / "config.json").read_text()
    return (hf_perturb.CarpForMaskedLM if carp else hf_perturb.FairEsmForMaskedLM).from_pretrained(
        folder, **({} if carp else {"attn_implementation": "eager"})
    )


def files_of(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder by its relative name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
