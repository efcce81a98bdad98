"""A checkpoint of any origin under the document's names, before it is a model or a file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from hf_perturb.errors import CheckpointError
from hf_perturb.loading.auto import import_models
from hf_perturb.networks.configuration_carp import CarpConfig
from hf_perturb.networks.configuration_fair_esm import FairEsmConfig
from hf_perturb.networks.layouts import AUTO_CLASSES, PREFIXES, differences, is_parameter, layout, listed, tied

if TYPE_CHECKING:
    from hf_perturb.networks.perturbable import PerturbablePreTrainedModel

CONFIGS: dict[str, Any] = {"fair_esm": FairEsmConfig, "carp": CarpConfig}
CONTACTS = ("contact_head.regression.weight", "contact_head.regression.bias")
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass
class Checkpoint:
    """Configuration and tensors, mapped from files where these allow it.

    Args:
        what: how messages call it.
        origin: the format that it came in: `fair-esm`, `sequence-models`, `transformers` or `hf_perturb`.
        config: the network, with the record of what was done to its weights.
        architecture: the class that it is stored as.
        tensors: by document name, a tied one once; `check` puts them in the order of the original class.
        dtype: the type that its own package loads it in, `None` for that of the file.
        revision: the commit on the Hub that it came from.
        notes: what a user should know about how it was read.
        parameters: of the network, known once the tensors are checked; a tied one counts once.
    """

    what: str
    origin: str
    config: Any
    architecture: str
    tensors: dict[str, torch.Tensor]
    dtype: torch.dtype | None = None
    revision: str | None = None
    notes: list[str] = field(default_factory=list)
    parameters: int = 0

    @property
    def model_class(self) -> type[PerturbablePreTrainedModel]:
        """The class that it is stored as."""
        # only who runs a model pays for the import of Transformers' models
        import_models()
        module = import_module(f"hf_perturb.networks.modeling_{self.config.model_type}")
        cls: type[PerturbablePreTrainedModel] = getattr(module, self.architecture)
        return cls

    def dtypes(self, asked: torch.dtype | None = None) -> dict[str, torch.dtype]:
        """Return the type of every tensor, as stored, as its package has it, or as asked for.

        Rotary frequencies stay float32 at least, as they do in the model.
        """
        chosen = asked or self.dtype
        return {
            name: torch.promote_types(kind, torch.float32) if name.endswith("rot_emb.inv_freq") else kind
            for name, kind in ((name, chosen or tensor.dtype) for name, tensor in self.tensors.items())
        }

    def check(self) -> Checkpoint:
        """Compare the tensors with those of the network, and put them in its order.

        Raises:
            CheckpointError: naming what is missing, left over, of another shape, or not of floating point.
        """
        expected = layout(self.config, self.architecture)
        for name, source in tied(self.config).items():
            if expected.pop(name, None) is not None:
                self._drop_tied(name, source)
        found = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        said = differences(self.config, self.architecture, found)
        if kinds := [f"{name} {tensor.dtype}" for name, tensor in self.tensors.items() if tensor.dtype not in _FLOATS]:
            said = "; ".join(filter(None, (said, f"tensors that are not of floating point: {listed(kinds)}")))
        if said:
            raise CheckpointError(f"{self.what}: {said}")
        self.tensors = {name: self.tensors[name] for name in expected}
        self.parameters = sum(math.prod(shape) for name, shape in expected.items() if is_parameter(name))
        return self

    def _drop_tied(self, name: str, source: str) -> None:
        tied = self.tensors.pop(name, None)
        if tied is not None and source in self.tensors and not same_values(tied, self.tensors[source]):
            raise CheckpointError(
                f"{self.what}: {name} and {source} differ, and this network has one tensor for both; one with a head of"
                " its own has tie_word_embeddings false in its config.json"
            )

    def model(self) -> PerturbablePreTrainedModel:
        """Return the model over these tensors; one that needs no cast shares its memory with them."""
        dtypes = self.dtypes()
        model = self.model_class.without_weights(self.config)
        state = {name: tensor.to(dtypes[name]) for name, tensor in self.tensors.items()}
        model.load_state_dict(state, strict=False, assign=True)
        model.tie_weights()
        return model.eval()


def auto_map(family: str) -> dict[str, str]:
    """Return the `auto_map` with every head: Transformers alone would record only the class that was saved."""
    prefix = PREFIXES[family]
    heads = {auto: f"modeling_{family}.{prefix}{head}" for auto, head in AUTO_CLASSES.items()}
    return {"AutoConfig": f"configuration_{family}.{prefix}Config", **heads}


def same_values(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same numbers, NaN for NaN, in whatever types."""
    same_shape = one.shape == other.shape
    return same_shape and torch.allclose(one.double(), other.double(), rtol=0, atol=0, equal_nan=True)
