"""A network as its configuration describes it: family, class, sizes and alphabet, read without Transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError

from hf_perturb.checkpoints.shapes import AUTO_CLASSES, PREFIXES, Shape, language_head, layout, listed
from hf_perturb.errors import CheckpointError
from hf_perturb.networks.sizes import CarpSizes, FairEsmSizes, check_size

_FAIR_ESM_RESIDUES = (*"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>")


@dataclass(frozen=True)
class Alphabet:
    """Tokens in the order of their ids, and the parts that some of them play.

    Source: `esm.data.Alphabet` with `esm.constants.proteinseq_toks` (fair-esm 2.0.0) and
    `sequence_models.constants.PROTEIN_ALPHABET` (sequence-models 1.8.0).

    Args:
        tokens: every token; its place is its id.
        pad: token that fills a batch up.
        mask: token that hides a residue.
        unk: token that stands for what the alphabet lacks.
        bos: token that begins a sequence, if there is one.
        eos: token that ends a sequence, if there is one.
        max_length: most tokens that the model takes, special ones included; `None` for no limit.
    """

    tokens: tuple[str, ...]
    pad: str
    mask: str
    unk: str
    bos: str | None = None
    eos: str | None = None
    max_length: int | None = None

    @property
    def ids(self) -> dict[str, int]:
        """The id of every token."""
        return {token: number for number, token in enumerate(self.tokens)}


ESM1 = Alphabet(
    tokens=("<null_0>", "<pad>", "<eos>", "<unk>", *_FAIR_ESM_RESIDUES, "<cls>", "<mask>", "<sep>"),
    pad="<pad>",
    mask="<mask>",
    unk="<unk>",
    bos="<cls>",
)
ESM1B = Alphabet(
    tokens=("<cls>", "<pad>", "<eos>", "<unk>", *_FAIR_ESM_RESIDUES, "<mask>"),
    pad="<pad>",
    mask="<mask>",
    unk="<unk>",
    bos="<cls>",
    eos="<eos>",
    max_length=1024,
)
# the same tokens; rotary positions have no end
ESM2 = replace(ESM1B, max_length=None)
# CARP has no unknown token: X, the unknown residue, is the nearest that its alphabet has
CARP = Alphabet(tokens=tuple("ACDEFGHIKLMNPQRSTVWYBZXJOU*-#@"), pad="-", mask="#", unk="X")


class _Checked:
    """Checks every size when it is set, as the configuration classes of the networks do."""

    model_type: str

    def __setattr__(self, key: str, value: Any) -> None:
        check_size(f"{PREFIXES[self.model_type]}Config", key, value)
        super().__setattr__(key, value)


@strict
@dataclass
class _Carp(_Checked, CarpSizes):
    """Sizes of a CARP, each of its type."""


@strict
@dataclass
class _FairEsm(_Checked, FairEsmSizes):
    """Sizes of an ESM, each of its type."""

    def __post_init__(self) -> None:
        self.fill_from_version()


_SIZES: dict[str, type[_Carp | _FairEsm]] = {"carp": _Carp, "fair_esm": _FairEsm}
Sizes = Any  # CarpSizes or FairEsmSizes: which, the family says


def alphabet_of(sizes: Sizes) -> Alphabet:
    """Return the tokens that a network reads.

    Args:
        sizes: of the network; a configuration of Transformers will do.
    """
    if isinstance(sizes, CarpSizes):
        return CARP
    return ESM1 if sizes.model_version == "ESM-1" else replace(ESM1B, max_length=sizes.max_tokens)


@dataclass(frozen=True)
class Network:
    """A network of one of our families, as a class of ours.

    Args:
        sizes: what its configuration says; a configuration of Transformers is one as well.
        architecture: the class, such as `FairEsmForMaskedLM`.
        labels: classes or targets of a downstream head.
    """

    sizes: Sizes
    architecture: str
    labels: int = 2
    _shapes: dict[str, Shape] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def read(cls, stored: Mapping[str, Any], architecture: str, name: str) -> Network:
        """Read a network from the content of a `config.json`, in our terms.

        Args:
            stored: the content; `model_type` is one of our families.
            architecture: the class that it is stored as.
            name: of the folder or Hub id, for messages.

        Raises:
            CheckpointError: if it has sizes that no network has.
        """
        family = stored["model_type"]
        known = {each.name for each in fields(_SIZES[family])}
        try:
            names, labels = stored.get("id2label"), stored.get("num_labels")
            if not isinstance(names, dict | None):
                raise TypeError(f"id2label: got a {type(names).__name__}; allowed: an object")
            labels = len(names or "ab") if labels is None else labels
            check_size(f"{PREFIXES[family]}Config", "num_labels", labels)
            sizes = _SIZES[family](**{key: value for key, value in stored.items() if key in known})
        except (TypeError, ValueError, StrictDataclassError) as error:
            raise CheckpointError(f"{name!r}: its config.json cannot be used: {error}") from error
        return cls(sizes, architecture, labels)

    @classmethod
    def of(cls, family: str, architecture: str = "", **sizes: Any) -> Network:
        """Make a network of a family; sizes that are not given are the defaults.

        Args:
            family: `"fair_esm"` or `"carp"`.
            architecture: the class; that of the masked language model if there is none.
            **sizes: fields of `CarpSizes` or `FairEsmSizes`.

        Raises:
            StrictDataclassError: if sizes are of a wrong kind, or do not go together.
        """
        return cls(_SIZES[family](**sizes), architecture or f"{PREFIXES[family]}ForMaskedLM")

    @property
    def family(self) -> str:
        """`"fair_esm"` or `"carp"`."""
        return self.sizes.model_type

    @property
    def version(self) -> str | None:
        """The generation of an ESM, `"ESM-1b"`; `None` for CARP."""
        return getattr(self.sizes, "model_version", None)

    @property
    def max_tokens(self) -> int | None:
        """Most tokens that a sequence may have, special tokens included; `None` for no limit."""
        return getattr(self.sizes, "max_tokens", None)

    @property
    def alphabet(self) -> Alphabet:
        """The tokens that it reads."""
        return alphabet_of(self.sizes)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shape of every parameter and stored buffer by document name, in the order of the original class."""
        if not self._shapes:
            self._shapes.update(layout(self.sizes, self.architecture, self.labels))
        return self._shapes

    @property
    def language_head(self) -> tuple[str, ...]:
        """Names of the language head's tensors, also where this class has none."""
        return language_head(self.sizes)

    @property
    def tied(self) -> dict[str, str]:
        """Names of tensors that have no memory of their own, and where it is. Source: fair-esm's RobertaLMHead."""
        tied = self.family == "fair_esm" and self.sizes.tie_word_embeddings
        return {"lm_head.weight": "embed_tokens.weight"} if tied else {}

    def differences(self, found: Mapping[str, Shape]) -> str:
        """Say how the tensors of a checkpoint differ from those of the network; nothing where they do not.

        Args:
            found: shape of every tensor by document name; a tied one may be there or not.
        """
        expected = self.shapes
        other = [name for name in expected if name in found and found[name] != expected[name]]
        problems = {
            "missing tensors": [name for name in expected if name not in found and name not in self.tied],
            "tensors that this network does not have": [name for name in found if name not in expected],
            "tensors of another shape": [f"{name} {found[name]} instead of {expected[name]}" for name in other],
        }
        return "; ".join(f"{problem}: {listed(names)}" for problem, names in problems.items() if names)

    def with_sizes(self, **changes: Any) -> Network:
        """Return the same network with other sizes."""
        return replace(self, sizes=replace(self.sizes, **changes), _shapes={})

    def to_dict(self) -> dict[str, Any]:
        """Return what a `config.json` says of the network."""
        sizes = {each.name: getattr(self.sizes, each.name) for each in fields(_SIZES[self.family])}
        return {"model_type": self.family, "architectures": [self.architecture], "auto_map": self.auto_map, **sizes}

    @property
    def auto_map(self) -> dict[str, str]:
        """The `auto_map` with every head: Transformers alone would record only the class that was saved."""
        prefix = PREFIXES[self.family]
        heads = {auto: f"modeling_{self.family}.{prefix}{head}" for auto, head in AUTO_CLASSES.items()}
        return {"AutoConfig": f"configuration_{self.family}.{prefix}Config", **heads}
