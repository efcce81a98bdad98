"""The model card of a variant."""

from __future__ import annotations

from huggingface_hub import ModelCardData

from hf_perturb.perturbation import Perturbation, default_axis

_METHODS = {
    "reinit": "its weights drawn anew, as the network's constructors draw them",
    "resample": "its trained weights shuffled within each tensor: the statistics survive, the structure does not",
}


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
    named = record.base.name if record.base is not None else "a base without a name"
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
        "tensors changed": f"{changed} of {total}",
        "digest of the weights": record.digest,
    }
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items() if value is not None)
    return f"""
# A control: {named}, {record.method}, seed {record.seed}

This is a protein language model with {_METHODS[record.method]}.
It is a control, not a predictor: a result that it reaches as well as its base does is not due to what the base learned.

| | |
| --- | --- |
{rows}

```python
import hf_perturb
from transformers import AutoModel

model = AutoModel.from_pretrained("this folder or repository")
model.config.perturbation  # what was done to the weights
```
"""


def _axis(family: str, record: Perturbation) -> str | None:
    if record.method != "resample":
        return None
    return "all" if record.rules == "published" else record.with_axis(default_axis(family)).axis
