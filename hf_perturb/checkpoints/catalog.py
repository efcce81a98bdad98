"""The published checkpoints as data.

Sizes: fair-esm 2.0.0 and sequence-models 1.8.0; for the documented ones also the document, with two errata that the
parameter counts in the names settle (see each entry). Addresses: `esm.pretrained` and `sequence_models.pretrained`.
Checksums: Meta publishes none. Those of CARP are the sha256 sums that the MultiMolecule project keeps of the same four
files (its golden fixtures of CARP).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hf_perturb.checkpoints.network import Network

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_META = "https://dl.fbaipublicfiles.com/fair-esm"
_ZENODO = "https://zenodo.org/record/6564798/files"

RIVES_2021 = "Rives et al. 2021, PNAS 118:e2016239118, doi:10.1073/pnas.2016239118"
MEIER_2021 = "Meier et al. 2021, NeurIPS 34, doi:10.1101/2021.07.09.450648"
LIN_2023 = "Lin et al. 2023, Science 379:1123-1130, doi:10.1126/science.ade2574"
YANG_2022 = "Yang, Fusi and Lu 2022, bioRxiv, doi:10.1101/2022.05.19.492714"
_CARP_LICENCE = "code: BSD; weights: as Zenodo record 6564798 states"
# how the Hub's metadata names each licence; one that it has no word for is "other", with a name and an address
LICENCES = {
    "MIT": {"license": "mit"},
    _CARP_LICENCE: {
        "license": "other",
        "license_name": "zenodo-6564798",
        "license_link": _ZENODO.removesuffix("/files"),
    },
}
_NO_CONTACTS = "published without a contact regression, on purpose (facebookresearch/esm issue 170)"


@dataclass(frozen=True)
class Entry:
    """One published checkpoint.

    Args:
        name: the name that its publisher gave it.
        family: `model_type` of its network.
        sizes: the configuration fields that set it apart.
        alphabet: which of the alphabets of `tokenizers.py` it reads.
        parameters: how many the original class has; a tied tensor counts once.
        url: where the publisher has the weights.
        regression_url: where the publisher has the contact regression, if there is one.
        sha256: of the weights file, where somebody publishes it.
        licence: of the weights.
        citation: what to cite.
        errata: what is known to be wrong about it, or about what is said of it.
        stock: Hub id of a copy for Transformers' own ESM.
        documented: whether it is one of the study's eight.
    """

    name: str
    family: str
    sizes: Mapping[str, Any] = field(hash=False)
    alphabet: str
    parameters: int
    url: str
    licence: str
    citation: str
    regression_url: str | None = None
    sha256: str | None = None
    errata: str = ""
    stock: str | None = None
    documented: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", MappingProxyType(dict(self.sizes)))

    def network(self) -> Network:
        """Return the network."""
        return Network.of(self.family, **self.sizes)

    def config(self, **changes: Any) -> PreTrainedConfig:
        """Return a configuration of Transformers, for who makes a model of it."""
        from transformers import AutoConfig

        return AutoConfig.for_model(self.family, **{**self.sizes, **changes})

    def fits(self, network: Network) -> bool:
        """Whether a network has the sizes of this checkpoint."""
        same = all(getattr(network.sizes, key, None) == value for key, value in self.sizes.items())
        return same and network.family == self.family


def _esm(
    name: str, version: str, sizes: tuple[int, int, int, int], parameters: int, citation: str, **more: Any
) -> Entry:
    """Make an entry of fair-esm; `sizes` are layers, width, heads and feed-forward width."""
    keys = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    return Entry(
        name,
        "fair_esm",
        {"model_version": version, **dict(zip(keys, sizes, strict=True)), **more.pop("options", {})},
        alphabet="ESM-1" if version == "ESM-1" else "ESM-1b",
        parameters=parameters,
        url=f"{_META}/models/{name}.pt",
        licence="MIT",
        citation=citation,
        **{"regression_url": f"{_META}/regression/{name}-contact-regression.pt", **more},
    )


def _esm1v(member: int) -> Entry:
    name = f"esm1v_t33_650M_UR90S_{member}"
    stated = {"regression_url": None, "errata": _NO_CONTACTS, "stock": f"facebook/{name}"}
    options = {"emb_layer_norm_before": False}
    return _esm(name, "ESM-1b", (33, 1280, 20, 5120), 652_356_534, MEIER_2021, options=options, **stated)


def _esm2(name: str, layers: int, hidden: int, heads: int, parameters: int) -> Entry:
    return _esm(name, "ESM-2", (layers, hidden, heads, 4 * hidden), parameters, LIN_2023, stock=f"facebook/{name}")


def _carp(name: str, layers: int, hidden: int, slim: bool, parameters: int, sha256: str, errata: str = "") -> Entry:
    return Entry(
        name,
        "carp",
        {"num_hidden_layers": layers, "hidden_size": hidden, "slim": slim},
        alphabet="CARP",
        parameters=parameters,
        url=f"{_ZENODO}/{name}.pt?download=1",
        licence=_CARP_LICENCE,
        citation=YANG_2022,
        sha256=sha256,
        errata=errata,
        documented=True,
    )


CATALOG: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        _esm("esm1_t6_43M_UR50S", "ESM-1", (6, 768, 12, 3072), 42_590_316, RIVES_2021, documented=True),
        _esm("esm1_t12_85M_UR50S", "ESM-1", (12, 768, 12, 3072), 85_126_836, RIVES_2021, documented=True),
        _esm(
            "esm1_t34_670M_UR50S",
            "ESM-1",
            (34, 1280, 20, 5120),
            669_210_316,
            RIVES_2021,
            errata="the document has fc_dim 3072, which gives 491M parameters; 5120 gives 669M",
            documented=True,
        ),
        _esm("esm1_t34_670M_UR50D", "ESM-1", (34, 1280, 20, 5120), 669_210_316, RIVES_2021),
        _esm("esm1_t34_670M_UR100", "ESM-1", (34, 1280, 20, 5120), 669_210_316, RIVES_2021),
        _esm(
            "esm1b_t33_650M_UR50S",
            "ESM-1b",
            (33, 1280, 20, 5120),
            652_359_094,
            RIVES_2021,
            stock="facebook/esm1b_t33_650M_UR50S",
            documented=True,
        ),
        *(_esm1v(member) for member in range(1, 6)),
        _esm2("esm2_t6_8M_UR50D", 6, 320, 20, 7_512_474),
        _esm2("esm2_t12_35M_UR50D", 12, 480, 20, 33_501_394),
        _esm2("esm2_t30_150M_UR50D", 30, 640, 20, 148_140_154),
        _esm2("esm2_t33_650M_UR50D", 33, 1280, 20, 651_043_254),
        _esm2("esm2_t36_3B_UR50D", 36, 2560, 40, 2_839_005_634),
        _esm2("esm2_t48_15B_UR50D", 48, 5120, 40, 15_129_100_194),
        _carp("carp_600k", 16, 128, True, 607_630, "787f618e90cfdd6cbe2d98ab944e89dea00e972d81019181aba14bbf31e96e1e"),
        _carp(
            "carp_38M", 16, 1024, True, 37_889_294, "b66b68bce0fd690c780032140297de8fea1f94bfa5ecd67fb408ab3a3794cc3b"
        ),
        _carp(
            "carp_76M", 32, 1024, True, 75_736_334, "7d224abac5eb2d5d649353352acb58efcae94277d26e25f1ac2cf90598205264"
        ),
        _carp(
            "carp_640M",
            56,
            1280,
            False,
            642_950_670,
            "ae1d7e0cbe713c731cfde7ace213f2a73372c31d8df543089e6b6d371228c4f7",
            "the document has 32 layers, which give 367M parameters; 56 give 643M",
        ),
    )
}


def published_name(source: str, network: Network) -> str | None:
    """Return the name of the published checkpoint that a source is, where that is known; a name alone proves nothing.

    Args:
        source: a name of the catalogue, or a Hub id.
        network: of what came from there.
    """
    if Path(source).exists():
        return None
    entry = CATALOG.get(source) or next((entry for entry in CATALOG.values() if entry.stock == source), None)
    return entry.name if entry is not None and entry.fits(network) else None


def published(name: str | None, network: Network) -> Entry | None:
    """Return what the catalogue says of a published checkpoint, if a network has its sizes."""
    entry = CATALOG.get(name or "")
    return entry if entry is not None and entry.fits(network) else None
