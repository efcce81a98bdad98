"""THE tables: for every tensor of a family, how it is drawn anew and whether it is shuffled.

What is kept has a row as well: a tensor that no row names, or that two rows name, is an error.

Sources: *document* is `scr/encoding/README.md` of microsoft/protein-transfer, *study* is
`scr/encoding/encoding_classes.py` there at commit 8aed408, *fair-esm* is fair-esm 2.0.0, *sequence-models* is
sequence-models 1.8.0, *torch* is `torch.nn`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from hf_perturb.errors import PerturbationError, RuleError

if TYPE_CHECKING:
    from hf_perturb.perturbation.floats import Array

Shape = tuple[int, ...]

# what a method does that needs the trained values
_ACTIONS = {"resample": "shuffle", "gaussian": "normal of its mean and deviation"}
# what the document keeps, and `also` names
PARTS = ("embeddings", "head")
_IN_LAYER = re.compile(r"(?:model\.embedder\.)?layers\.([0-9]+)\.(.+)")


@dataclass(frozen=True)
class Initialiser:
    """How a tensor is drawn anew.

    Args:
        kernel: name of a function in `kernels.py`.
        text: how the tables of the README name it.
        arguments: constants for the kernel.
        scale: for the bound of `uniform` or the deviation of `normal`, a function of the shape of the tensor and of
            that of the weight beside it, itself if it is one.
    """

    kernel: str
    text: str
    arguments: tuple[tuple[str, float], ...] = ()
    scale: Callable[[Shape, Shape], float] | None = None

    def for_shape(self, shape: Shape, weight: Shape) -> tuple[tuple[str, float], ...]:
        """Return what the kernel is called with for a tensor of a shape, beside a weight of another."""
        if self.scale is None:
            return self.arguments
        return (*self.arguments, ("bound" if self.kernel == "uniform" else "std", self.scale(shape, weight)))


def _fans(shape: Shape) -> tuple[int, int]:
    """Return fan-in and fan-out of a weight. Source: `torch.nn.init`, which works scales out in the same order."""
    taps = math.prod(shape[2:])
    return shape[1] * taps, shape[0] * taps


def _xavier(shape: Shape, gain: float) -> float:
    return gain * math.sqrt(2.0 / sum(_fans(shape)))


def _kaiming(shape: Shape, a: float) -> float:
    return math.sqrt(2.0 / (1 + a**2)) / math.sqrt(_fans(shape)[0])


@dataclass(frozen=True)
class Row:
    """One rule: what reinit draws, resample shuffles and gaussian draws after its values.

    Args:
        pattern: names of the tensors; `*` stands for anything, `{a,b}` for either.
        reinit: initialiser, `None` to keep.
        source: where the rule comes from.
        published: initialiser under the rules `"published"`; `"same"` where study and document agree.
        part: what `also` names it by, where the rules keep it and it can be perturbed all the same.
        other: what `also` has to name as well, where it is one tensor with that.
    """

    pattern: str
    reinit: Initialiser | None
    source: str
    published: Initialiser | str | None = "same"
    part: str | None = None
    other: str | None = None

    def names(self, name: str) -> bool:
        """Whether this row is the rule of a tensor."""
        return any(fnmatchcase(name, glob) for glob in expand(self.pattern))

    def is_kept(self, also: Collection[str] = ()) -> bool:
        """Whether the tensors stay as they are, with what is perturbed beside what the rules name."""
        return self.reinit is None or not {self.part, self.other} - {None} <= {*also}

    def initialiser(self, rules: str) -> Initialiser | None:
        """Return the initialiser under a set of rules."""
        if rules == "published" and not isinstance(self.published, str):
            return self.published
        return self.reinit

    def action(self, method: str, rules: str = "documented", also: Collection[str] = ()) -> str:
        """Return how tables name what a method does: an initialiser, or what `_ACTIONS` says, or `keep`."""
        initialiser = self.initialiser(rules) if method == "reinit" else self.reinit
        if initialiser is None or self.is_kept(also):
            return "keep"
        return _ACTIONS.get(method, initialiser.text)

    def summary(self, method: str) -> str:
        """Return the same with and without `also`, for tables that tell of both."""
        if self.part is None:
            return self.action(method)
        return f"{self.action(method)}; also `{self.part}`: {self.action(method, also=(self.part,))}"


class Place(NamedTuple):
    """Where in a network a tensor is.

    Args:
        stack: of layers, by what scopes call it where there are several, else `""`.
        layer: its number there, `None` outside of layers.
        rest: of its name.
    """

    stack: str
    layer: int | None
    rest: str


@cache
def expand(pattern: str) -> tuple[str, ...]:
    """Return the globs that a pattern stands for, its braces expanded."""
    head, brace, rest = pattern.partition("{")
    if not brace:
        return (pattern,)
    choices, _, tail = rest.partition("}")
    return tuple(glob for choice in choices.split(",") for glob in expand(head + choice + tail))


@dataclass(frozen=True)
class Table:
    """The rules of a kind of network: what is done to each of its tensors.

    Args:
        family: `model_type` of the network.
        rows: one for every tensor.
        axis: that resample takes if none is asked for.
        rules: the sets of rules that it is the table of, the default first.
    """

    family: str
    rows: tuple[Row, ...]
    axis: str = "all"
    rules: tuple[str, ...] = ("documented", "published")

    def check(self) -> None:
        """Raise if no perturbation of such a network could mean what is asked for."""

    def row(self, name: str) -> Row:
        """Return the one row that names a tensor.

        Raises:
            RuleError: if no row does, or more than one.
        """
        rows = [row for row in self.rows if row.names(name)]
        if len(rows) != 1:
            found = (
                "no rule names it" if not rows else "rules " + " and ".join(repr(r.pattern) for r in rows) + " name it"
            )
            raise RuleError(
                f"tensor {name!r} of family {self.family!r}: {found}; every tensor needs exactly one row in"
                " hf_perturb/perturbation/rules.py"
            )
        return rows[0]

    def initialiser(self, name: str, rules: str) -> Initialiser | None:
        """Return how a tensor is drawn anew under a set of rules, `None` to keep it."""
        return self.row(name).initialiser(rules)

    def drawn(self, name: str, seed: int) -> Callable[[Array], Array] | None:
        """Return what draws a tensor, where that is neither a kernel nor the study's generator; see `Step.drawn`."""

    def named(self, name: str) -> str:
        """Return the name that a tensor is drawn by, whatever it is called where it is stored."""
        return name

    def stack(self, named: str) -> str:
        """Return the stack of layers that a scope means, as `place` calls it."""
        return named

    def place(self, name: str) -> Place:
        """Return where in the network a tensor is."""
        found = _IN_LAYER.fullmatch(name)
        return Place("", int(found[1]), found[2]) if found else Place("", None, name)


XAVIER = Initialiser("uniform", "`xavier_uniform_()`", scale=lambda shape, _: math.sqrt(3.0) * _xavier(shape, 1.0))
XAVIER_QKV = Initialiser(
    "uniform",
    "`xavier_uniform_(gain=1/sqrt(2))`",
    scale=lambda shape, _: math.sqrt(3.0) * _xavier(shape, 1 / math.sqrt(2)),
)
XAVIER_NORMAL = Initialiser("normal", "`xavier_normal_()`", scale=lambda shape, _: _xavier(shape, 1.0))
KAIMING = Initialiser(
    "uniform", "`kaiming_uniform_(a=sqrt(5))`", scale=lambda shape, _: math.sqrt(3.0) * _kaiming(shape, math.sqrt(5))
)
FAN_IN = Initialiser(
    "uniform",
    "U(-b, b), b = 1/sqrt(fan_in) of the weight beside it",
    scale=lambda _, weight: 1 / math.sqrt(math.prod(weight[1:])),
)
ONE = Initialiser("constant", "1", (("value", 1.0),))
ZERO = Initialiser("constant", "0", (("value", 0.0),))
NORMAL = Initialiser("normal", "`normal_()`")
# every fair-esm alphabet pads with id 1, and the row of the padding id is the padding row
NORMAL_PADDED = Initialiser("normal", "`normal_()`, then 0 in the padding row", (("zero_row", 1),))
# sequence-models names CARP's mask as the padding of its embedding
NORMAL_MASKED = Initialiser("normal", "`normal_()`, then 0 in the row of the mask", (("zero_row", 28),))

_ATTENTION = "document; fair-esm MultiheadAttention.reset_parameters"
_LINEAR_BIAS = "document; torch Linear.reset_parameters"
_EMBEDDING = "document; torch Embedding.reset_parameters"
_CONV = "document; torch Conv1d.reset_parameters"
_NORM = "document; fair-esm ESM1LayerNorm and ESM1bLayerNorm; the study builds ones and zeros and drops them"
_LM_HEAD = "document; fair-esm RobertaLMHead"

FAIR_ESM = (
    Row("embed_tokens.weight", NORMAL_PADDED, "document: no bracket; fair-esm ProteinBertModel", part="embeddings"),
    Row("{embed_out,embed_out_bias}", ZERO, "document: no bracket; fair-esm ESM-1 output projection", part="head"),
    Row("embed_positions._float_tensor", None, "document: 'leave untouched'; a buffer without values"),
    Row("layers.*.self_attn.rot_emb.inv_freq", None, "buffer of rotary positions (ESM-2); fair-esm"),
    Row("classifier.*", None, "a downstream head, no part of the studied network"),
    Row("layers.*.self_attn.{q,k,v}_proj.weight", XAVIER_QKV, _ATTENTION),
    Row("layers.*.self_attn.{q,k,v}_proj.bias", FAN_IN, _LINEAR_BIAS),
    Row("layers.*.self_attn.out_proj.weight", XAVIER, _ATTENTION),
    Row("layers.*.self_attn.out_proj.bias", ZERO, _ATTENTION),
    Row("layers.*.self_attn.bias_{k,v}", XAVIER_NORMAL, _ATTENTION + "; the study leaves them", None),
    Row("layers.*.{self_attn,final}_layer_norm.weight", ONE, _NORM, None),
    Row("layers.*.{self_attn,final}_layer_norm.bias", ZERO, _NORM, None),
    Row("emb_layer_norm_{before,after}.weight", ONE, _NORM, None),
    Row("emb_layer_norm_{before,after}.bias", ZERO, _NORM, None),
    Row("layers.*.fc{1,2}.weight", KAIMING, "document; torch Linear.reset_parameters"),
    Row("layers.*.fc{1,2}.bias", FAN_IN, _LINEAR_BIAS),
    Row("contact_head.regression.weight", KAIMING, "document; torch Linear.reset_parameters"),
    Row("contact_head.regression.bias", FAN_IN, _LINEAR_BIAS),
    Row("embed_positions.weight", NORMAL_PADDED, _EMBEDDING + "; the study zeroes no row", NORMAL),
    Row("lm_head.weight", XAVIER, _LM_HEAD + "; the study draws it while tied to embed_tokens"),
    Row("lm_head.bias", ZERO, _LM_HEAD + "; the study leaves it", None),
    Row("lm_head.layer_norm.weight", ONE, _NORM, None),
    Row("lm_head.layer_norm.bias", ZERO, _NORM, None),
    Row("lm_head.dense.weight", KAIMING, _LM_HEAD),
    Row("lm_head.dense.bias", FAN_IN, _LM_HEAD),
)

_BYTENET = "document: no bracket; sequence-models ByteNet"
_BLOCK = "model.embedder.layers.*."
CARP = (
    Row("model.embedder.embedder.weight", NORMAL_MASKED, _BYTENET, part="embeddings"),
    Row("model.embedder.up_embedder.conv.weight", KAIMING, _BYTENET, part="embeddings"),
    Row("model.embedder.up_embedder.conv.bias", FAN_IN, _BYTENET, part="embeddings"),
    Row("model.decoder.conv.weight", KAIMING, _BYTENET + "LM", part="head"),
    Row("model.decoder.conv.bias", FAN_IN, _BYTENET + "LM", part="head"),
    Row("model.last_norm.weight", ONE, _BYTENET + "LM", part="head"),
    Row("model.last_norm.bias", ZERO, _BYTENET + "LM", part="head"),
    Row("classifier.*", None, "a downstream head, no part of the studied network"),
    Row(_BLOCK + "{conv,sequence1.2.conv,sequence2.2.conv}.weight", KAIMING, _CONV),
    Row(_BLOCK + "{conv,sequence1.2.conv,sequence2.2.conv}.bias", FAN_IN, _CONV),
    Row(_BLOCK + "{sequence1.0,sequence1.3,sequence2.0}.weight", ONE, "document; torch LayerNorm"),
    Row(_BLOCK + "{sequence1.0,sequence1.3,sequence2.0}.bias", ZERO, "document; torch LayerNorm"),
)

# the document: ESM "along non-zero or embedding dimension", CARP "along all dim"
FAMILIES = {"fair_esm": Table("fair_esm", FAIR_ESM, "embedding"), "carp": Table("carp", CARP, "all")}


def default_rules(family: str) -> str:
    """Return the rules that hold for a `model_type` if none are asked for."""
    return FAMILIES[family].rules[0] if family in FAMILIES else "transformers"


def default_axis(family: str, rules: str | None = None) -> str:
    """Return the axis that resample takes if none is asked for: under the document's rules, the one that it names."""
    return FAMILIES[family].axis if family in FAMILIES and rules != "transformers" else "all"


def table_of(family: str | Table) -> Table:
    """Return the table of a family of ours; a table is its own.

    Raises:
        PerturbationError: if there is none.
    """
    if isinstance(family, Table):
        return family
    if family not in FAMILIES:
        raise PerturbationError(f"family {family!r} has no rules; allowed: {', '.join(FAMILIES)}")
    return FAMILIES[family]
