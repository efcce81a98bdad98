"""A network as its configuration describes it: family, class, sizes and alphabet, read without Transformers."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError

from hf_perturb.checkpoints.shapes import (
    AUTO_CLASSES,
    PREFIXES,
    Shape,
    is_parameter,
    language_head,
    layout,
    listed,
    part_of_another,
    without_prefix,
)
from hf_perturb.errors import CheckpointError, PerturbationError
from hf_perturb.networks.sizes import (
    FIRST,
    CarpSizes,
    FairEsmSizes,
    check_size,
    places_of,
    read_fields,
    tensors_of_network,
)
from hf_perturb.perturbation.rules import FAMILIES, Table, default_rules
from hf_perturb.perturbation.spec import Perturbation

_LOG = logging.getLogger("hf_perturb")
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

    @property
    def spelt(self) -> dict[str, int]:
        """The id of every token that is spelt `<...>`, `<mask>` always; padding is no part of a sequence."""
        ids = self.ids
        spelt = {token: ids[token] for token in self.tokens if len(token) > 1 and token != self.pad}
        return {**spelt, "<mask>": ids[self.mask]}


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


def stored_fields(written: Mapping[str, Any], family: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide the content of a `config.json` into the fields of a network of ours and the rest; see `read_fields`.

    Args:
        written: the content.
        family: that it is read as where it names none of ours.
    """
    named = written.get("model_type")
    read_as = named if isinstance(named, str) and named in _SIZES else family
    if read_as is None:
        return read_fields("config.json", written, ())
    own = {each.name for each in fields(_SIZES[read_as])}
    return read_fields(f"{PREFIXES[read_as]}Config", written, {*own, "perturbation"})


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
            stored: the content, as `stored_fields` returns it; `model_type` is one of our families.
            architecture: the class that it is stored as.
            name: of the folder or Hub id, for messages.

        Raises:
            CheckpointError: if it has sizes that no network has.
        """
        family = stored["model_type"]
        known = {each.name for each in fields(_SIZES[family])}
        try:
            labels = stored.get("num_labels", len(stored.get("id2label") or "ab"))
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
        return self.sizes.family

    @property
    def rules(self) -> str:
        """The rules that hold if none are asked for."""
        return default_rules(self.family)

    def table(self, rules: str | None = None) -> Table:
        """Return what a set of rules says of each tensor; those of the family if none are named."""
        if rules != "transformers":
            return FAMILIES[self.family]
        from hf_perturb.checkpoints.any_network import derived_table  # takes torch and Transformers

        return derived_table(self)

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
    def anchor(self) -> str:
        """The name of a tensor that networks of its family have, whatever else they have."""
        return FIRST[self.family]

    @property
    def language_head(self) -> tuple[str, ...]:
        """Names of the language head's tensors, also where this class has none."""
        return language_head(self.sizes)

    def whole(self, rules: str) -> dict[str, Shape]:
        """Return the shapes of the network with its language head, also where this class has none.

        By the rules `"published"` it has a contact head too: the class of the study always had one.

        Raises:
            PerturbationError: if the rules are `"published"`, and the study had no such network.
        """
        sizes = self.sizes
        if rules == "published" and self.family == "fair_esm":
            self._check_published()
            sizes = _FairEsm(**self._fields() | {"contact_head": True})
        return layout(sizes, "ForMaskedLM", 0)

    def _check_published(self) -> None:
        if self.version == "ESM-2":
            found = "an ESM-2"
        elif self.version == "ESM-1b" and not self.sizes.emb_layer_norm_before:
            found = "an ESM-1v (an ESM-1b with emb_layer_norm_before False)"
        elif self.version == "ESM-1b" and not self.sizes.tie_word_embeddings:
            found = "an ESM-1b whose head is not tied to its embedding (tie_word_embeddings False)"
        else:
            return
        raise PerturbationError(
            f"perturbation rules: got 'published' for {found}; allowed: 'documented', for 'published' repeats what the"
            " study did, and the document has the networks ESM-1, ESM-1b and CARP alone"
        )

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
        said = [f"{problem}: {listed(names)}" for problem, names in problems.items() if names]
        if said:
            said += self._renamed(found)
        return "; ".join(said)

    def _renamed(self, found: Mapping[str, Shape]) -> list[str]:
        """Say what becomes of tensors that have other names because something held the network."""
        bare, prefix = without_prefix(found, self.anchor)
        renamed = next(((old, new) for old, new in zip(found, bare, strict=True) if old != new), None)
        if renamed is not None and not self.differences(bare):
            return [
                "hf-perturb convert makes a base of it: it reads {!r} as {!r}, and all names alike".format(*renamed)
            ]
        if renamed is None and prefix:
            return [part_of_another(prefix)]
        return []

    def among(self, names: Collection[str], name: str) -> tuple[Network, str, dict[str, str]]:
        """Find a network, of which this is the trunk, among the tensors of somebody's class.

        Args:
            names: of the tensors, as they are stored.
            name: of the folder or Hub id, for messages.

        Returns:
            The network, what its stored names begin with, and these names by document name.

        Raises:
            CheckpointError: if there are several.
        """
        places = places_of(self.family, names)
        if len(whole := [each for each in places if {each + key for key in self.shapes} <= {*names}]) > 1:
            raise CheckpointError(f"{name!r} holds several networks, at {', '.join(map(repr, whole))}; allowed: one")
        place = [*whole, *places][0]
        here = {key.removeprefix(place): key for key in names if key.startswith(place)}
        found = {key: here[key] for key in tensors_of_network(self.family, here)}
        has_head = any(key in found and key not in self.tied for key in self.language_head)
        architecture = PREFIXES[self.family] + ("ForMaskedLM" if has_head else "Model")
        return replace(self, architecture=architecture, _shapes={}), place, found

    def named_and_kept(self, perturbation: Perturbation) -> list[str]:
        """Return the parameters that the globs of `include` name and the rules keep, the language head's among them."""
        from hf_perturb.perturbation.plan import named  # takes numpy, which few need who open a checkpoint

        if not perturbation.include:
            return []
        table, also = self.table(perturbation.rules), perturbation.also
        found = named(table, [*self.shapes, *self.language_head], perturbation)
        return [name for name in found if is_parameter(name) and table.row(name).is_kept(also)]

    def tell_what_is_kept(self, perturbations: Iterable[Perturbation]) -> None:
        """Log a note, once, if `include` names parameters that the rules keep: to name them does not perturb them."""
        told = {each.include: names for each in perturbations if (names := self.named_and_kept(each))}
        for globs, names in told.items():
            _LOG.warning(
                "include %s also names %d parameters that the rules keep, and that stay as they are: %s; `also`"
                " perturbs embeddings and heads all the same, and narrower globs name what is perturbed alone"
                " (hf-perturb list BASE shows which that is)",
                list(globs),
                len(names),
                listed(names),
            )

    def is_parameter(self, name: str) -> bool:
        """Whether a tensor is a parameter, not a buffer."""
        return is_parameter(name)

    def with_sizes(self, **changes: Any) -> Network:
        """Return the same network with other sizes."""
        return replace(self, sizes=replace(self.sizes, **changes), _shapes={})

    def to_dict(self) -> dict[str, Any]:
        """Return what a `config.json` says of the network."""
        named = {"model_type": self.family, "architectures": [self.architecture], "auto_map": self.auto_map}
        return named | self._fields()

    def _fields(self) -> dict[str, Any]:
        return {each.name: getattr(self.sizes, each.name) for each in fields(_SIZES[self.family])}

    @property
    def auto_map(self) -> dict[str, str]:
        """The `auto_map` with every head: Transformers alone would record only the class that was saved."""
        prefix = PREFIXES[self.family]
        heads = {auto: f"modeling_{self.family}.{prefix}{head}" for auto, head in AUTO_CLASSES.items()}
        return {"AutoConfig": f"configuration_{self.family}.{prefix}Config", **heads}
