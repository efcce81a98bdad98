"""The documented checkpoints as data.

Sizes: the document, with two errata that the parameter counts in the names settle (see each entry).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig

from hf_perturb.models.configuration_carp import CarpConfig
from hf_perturb.models.configuration_fair_esm import FairEsmConfig

_CONFIGS = {"fair_esm": FairEsmConfig, "carp": CarpConfig}


@dataclass(frozen=True)
class Entry:
    """One published checkpoint.

    Args:
        name: the name that its publisher gave it.
        family: `model_type` of its network.
        sizes: the configuration fields that set it apart.
        errata: where the document is wrong about it.
    """

    name: str
    family: str
    sizes: dict[str, Any] = field(hash=False)
    errata: str = ""

    def config(self, **changes: Any) -> PreTrainedConfig:
        """Return the configuration of the network."""
        return _CONFIGS[self.family](**{**self.sizes, **changes})


def _esm1(name: str, layers: int, hidden: int, heads: int, intermediate: int, errata: str = "") -> Entry:
    sizes = {
        "model_version": "ESM-1",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
    }
    return Entry(name, "fair_esm", sizes, errata)


def _carp(name: str, layers: int, hidden: int, slim: bool, errata: str = "") -> Entry:
    return Entry(name, "carp", {"num_hidden_layers": layers, "hidden_size": hidden, "slim": slim}, errata)


CATALOG: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        _esm1("esm1_t6_43M_UR50S", 6, 768, 12, 3072),
        _esm1("esm1_t12_85M_UR50S", 12, 768, 12, 3072),
        _esm1(
            "esm1_t34_670M_UR50S",
            34,
            1280,
            20,
            5120,
            "the document has fc_dim 3072, which gives 491M parameters; 5120 gives 669M",
        ),
        Entry("esm1b_t33_650M_UR50S", "fair_esm", {"model_version": "ESM-1b"}),
        _carp("carp_600k", 16, 128, True),
        _carp("carp_38M", 16, 1024, True),
        _carp("carp_76M", 32, 1024, True),
        _carp(
            "carp_640M",
            56,
            1280,
            False,
            "the document has 32 layers, which give 367M parameters; 56 give 643M",
        ),
    )
}
