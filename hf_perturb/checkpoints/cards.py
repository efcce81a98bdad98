"""The model cards of bases and variants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from hf_perturb.checkpoints.catalog import Entry
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.perturbation import Perturbation, default_axis, scope_text

_METHODS = {
    "reinit": "its weights drawn anew, as the network's constructors draw them",
    "resample": "its trained weights shuffled within each tensor: the statistics survive, the structure does not",
}


_CREATE = """
```sh
hf-perturb create "this folder or repository" my-control --method reinit --seed 42
```
"""


def variant_card(family: str, architecture: str, record: Perturbation, changed: int, total: int) -> str:
    """Render the card of a variant.

    Args:
        family: `model_type` of the network.
        architecture: name of the stored model class.
        record: the perturbation with its provenance.
        changed: tensors that the perturbation touches.
        total: tensors in the file.
    """
    base = record.base.name if record.base is not None else None
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="fill-mask" if architecture.endswith("ForMaskedLM") else None,
        tags=["hf-perturb", "protein", "control", record.method],
        base_model=base if record.base is not None and record.base.revision is not None else None,
    )
    return f"---\n{data.to_yaml()}\n---\n{_body(family, architecture, record, changed, total)}"


def _body(family: str, architecture: str, record: Perturbation, changed: int, total: int) -> str:
    base = (record.base.name if record.base is not None else None) or "a base without a name"
    # a recipe has to know whose disk its base is on, its readers have not
    named = Path(base).name if Path(base).is_absolute() else base
    facts = {
        "base": f"`{named}`",
        "base revision": record.base.revision if record.base is not None else None,
        "base digest": record.base.digest if record.base is not None else None,
        "network": f"{family}, stored as {architecture}",
        "method": record.method,
        "seed": record.seed,
        "rules": record.rules,
        "axis": _axis(family, record),
        "include": ", ".join(record.include) or None,
        "exclude": ", ".join(record.exclude) or None,
        "scope": " and ".join(f"`{name}` ({scope_text(family, name)})" for name in record.scope) or None,
        "tensors changed": f"{changed} of {total}",
        "digest of the weights": record.digest,
    }
    return f"""
# A control: {named}, {record.method}, seed {record.seed}

This is a protein language model with {_METHODS[record.method]}.
It is a control, not a predictor: a result that it reaches as well as its base does is not due to what the base learned.

| | |
| --- | --- |
{_rows(facts)}

```python
import hf_perturb
from transformers import AutoModel

model = AutoModel.from_pretrained("this folder or repository")
model.config.perturbation  # what was done to the weights
```
"""


def base_card(checkpoint: Checkpoint, entry: Entry | None, digest: str) -> str:
    """Render the card of a base that `convert` wrote.

    Args:
        checkpoint: what was converted.
        entry: what the catalogue says of it, if it came from there.
        digest: of the weights.
    """
    config = checkpoint.config
    name = entry.name if entry is not None else Path(checkpoint.what).stem
    data = ModelCardData(
        library_name="transformers",
        license="mit" if entry is not None and entry.licence == "MIT" else None,
        pipeline_tag="fill-mask" if checkpoint.architecture.endswith("ForMaskedLM") else None,
        tags=["hf-perturb", "protein"],
    )
    contacts = "absent: the checkpoint came without its weights"
    facts = {
        "converted from": f"{_source(checkpoint)} ({checkpoint.origin})",
        "published at": entry.url if entry is not None else None,
        "licence": entry.licence if entry is not None else None,
        "citation": entry.citation if entry is not None else None,
        "errata": (entry.errata or None) if entry is not None else None,
        "network": f"{config.model_type}, stored as {checkpoint.architecture}",
        "parameters": f"{checkpoint.parameters:,}",
        "contact head": contacts if getattr(config, "contact_head", True) is False else None,
        "what was done to the weights": config.perturbation,
        "digest of the weights": digest,
    }
    return f"""---
{data.to_yaml()}
---

# {name}, {"a control" if config.perturbation is not None else "as a base for controls"}

The weights of a checkpoint under the names of its network's own package, for hf_perturb.

| | |
| --- | --- |
{_rows(facts)}
{_CREATE if config.perturbation is None else ""}"""


def stock_card(checkpoint: Checkpoint) -> str:
    """Render the card of a folder for Transformers' own ESM."""
    config = checkpoint.config
    tags = ["protein", "hf-perturb", *([config.perturbation.method] if config.perturbation is not None else [])]
    data = ModelCardData(library_name="transformers", pipeline_tag="fill-mask", tags=tags)
    facts = {
        "converted from": _source(checkpoint),
        "what was done to the weights": config.perturbation or "nothing",
        "digest of the weights under fair-esm's names": (config.perturbation or config).digest,
        "contact head": None if config.contact_head else "absent: its weights are zeros, which predict 0.5 everywhere",
    }
    return f"""---
{data.to_yaml()}
---

# {Path(checkpoint.what).name}, for Transformers' own ESM

| | |
| --- | --- |
{_rows(facts)}

```python
from transformers import AutoModelForMaskedLM

model = AutoModelForMaskedLM.from_pretrained("this folder or repository")
model.config.perturbation  # what was done to the weights, if anything was
```
"""


def _source(checkpoint: Checkpoint) -> str:
    """Return where a checkpoint came from: of what is on disk its name alone, of the Hub its id and commit."""
    if checkpoint.revision is not None:
        return f"{checkpoint.what} at {checkpoint.revision}"
    return Path(checkpoint.what).name


def _rows(facts: dict[str, Any]) -> str:
    return "\n".join(f"| {key} | {value} |" for key, value in facts.items() if value is not None)


def _axis(family: str, record: Perturbation) -> str | None:
    if record.method != "resample":
        return None
    return "all" if record.rules == "published" else record.with_axis(default_axis(family)).axis
