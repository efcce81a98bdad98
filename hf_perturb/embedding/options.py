"""What a run of embeddings is asked for, and what that means for a network. Neither torch nor numpy is needed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from inspect import Parameter, getdoc, signature
from operator import index
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from hf_perturb.embedding.manifest import EMBEDDED, KEPT, Schema
from hf_perturb.errors import FastaError, ModelInputError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from hf_perturb.embedding.encoder import Encoder
    from hf_perturb.embedding.fasta import Record
    from hf_perturb.networks.sizes import CarpSizes, FairEsmSizes

POOLS = ("mean", "max", "cls")
LONG = ("refuse", "truncate", "window")
TOKENIZING = ("tokenizer", "separate", "prefix", "replace")  # options for encoders that are not ours

# called with the residues that are done and those that this process has to do
Progress = Callable[[int, int], object]
Config: TypeAlias = "CarpSizes | FairEsmSizes"
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """The options of `embed`, `embed_variants` and the command.

    Args:
        layers: which representations: `"last"`, `"all"`, or numbers (in a string with commas, too) counted as in the
            originals, 0 for the embedding; negative ones count from the end.
        pool: how the residues of a record become one vector: `"mean"`, `"max"`, `"cls"` (the token that begins a
            sequence, in ESM), or several of them. Special tokens are no residues, and padding is not there.
        per_residue: keep the vector of every residue too (`pool=()` for these alone).
        residues: of which residues `per_residue` keeps vectors, for each record in order: numbers from 0, ascending,
            none where it is empty; `None` for all. How many there are is in the column `kept`.
        dtype: of weights and arithmetic; that of the checkpoint if `None`. Pooling is in float32, and so is what is
            stored.
        device: as torch names it; `"auto"` to spread the network over all there are; a GPU if there is one if `None`.
        tokens: most tokens of a batch, padding included; `None` for 2,048 on the CPU and 32,768 elsewhere.
        long: what to make of records of more residues than a network with learned positions takes: `"refuse"` them,
            `"truncate"` them, or slide a `"window"` along, whose representations are averaged where windows overlap.
        overlap: residues that neighbouring windows share; `None` for a quarter of a window.
        tokenizer: of an encoder that is not ours, if it is not beside the weights: a folder, a Hub id, or one that is
            loaded.
        separate: whether it is given residues separated by blanks; `None` to find out what it makes of both.
        prefix: what it is given before each sequence, such as `<AA2fold>`; no residue.
        replace: letters that are read as others: `"UZOB=X"`, several with commas, or a dict.
        revision: branch, tag or commit of a Hub id.
        trust_remote_code: run the code that comes with a network that Transformers does not have; read it first.
        force: if the folder holds other embeddings, remove them and begin again.
        progress: called with the residues that are done and those that there are to do, for each folder.

    Raises:
        ModelInputError: if `tokens` is no number of at least 1.
    """

    layers: str | int | Iterable[int] = "last"
    pool: str | Iterable[str] = "mean"
    per_residue: bool = False
    residues: Sequence[Sequence[int]] | None = None
    dtype: str | torch.dtype | None = None
    device: str | None = None
    tokens: int | None = None
    long: str = "refuse"
    overlap: int | None = None
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None
    separate: bool | None = None
    prefix: str | None = None
    replace: str | Mapping[str, str] | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    force: bool = False
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if self.tokens is not None and (not isinstance(self.tokens, int) or self.tokens < 1):
            raise ModelInputError(f"tokens: got {self.tokens!r}; allowed: a number of at least 1")

    @classmethod
    def among(cls, options: Any) -> EmbedOptions:
        """Return what the options of something else say of the network: how it is opened, and what it reads."""
        shared = {each.name for each in fields(cls)} - {"progress"}
        return cls(**{each.name: getattr(options, each.name) for each in fields(options) if each.name in shared})

    def choices(self, encoder: Encoder) -> Choices:
        """Say what is made of each record by a network that reads them so.

        Raises:
            ModelInputError: naming the option, what it got and what is allowed.
        """
        pools = self._pools(encoder)
        if self.long not in LONG:
            raise ModelInputError(f"long: got {self.long!r}; allowed: {', '.join(LONG)}")
        if self.long != "refuse" and not encoder.by_residue:
            raise ModelInputError(
                f"long: got {self.long!r}; the tokenizer of this {encoder.kind} network makes tokens of several"
                " residues; allowed: refuse, as a record is taken whole"
            )
        limit = None if encoder.most is None else encoder.most - encoder.special
        if limit is not None and limit < 1:
            raise ModelInputError(f"this network takes {encoder.most} tokens, and none of them a residue")
        overlap, layers = self._overlap(limit), read_layers(self.layers, encoder.depth)
        return Choices(layers, pools, self.per_residue, limit, self.long, overlap, self._kept())

    def refuse_tokenizing(self, kind: str) -> None:
        """Raise a `ModelInputError` if an option is for a tokenizer, which a network of our own does not ask."""
        for name in TOKENIZING:
            if (got := getattr(self, name)) is not None:
                raise ModelInputError(
                    f"{name}: got {got!r}; a {kind} network has its alphabet, a token for each residue: leave it out"
                )

    def _pools(self, encoder: Encoder) -> tuple[str, ...]:
        pools = tuple(dict.fromkeys([self.pool] if isinstance(self.pool, str) else self.pool))
        for name in pools:
            if name not in POOLS:
                raise ModelInputError(f"pool: got {name!r}; allowed: {', '.join(POOLS)}")
        if "cls" in pools and not encoder.has_cls:
            raise ModelInputError(
                f"pool: got 'cls'; a {encoder.kind} network has no token that begins a sequence; allowed: mean, max"
            )
        if self.per_residue and not encoder.by_residue:
            raise ModelInputError(
                f"per_residue: got True; the tokenizer of this {encoder.kind} network makes tokens of several residues;"
                " allowed: pooled over tokens"
            )
        if not pools and not self.per_residue:
            raise ModelInputError("pool: got none; allowed: at least one of mean, max, cls, or the vectors of residues")
        return pools

    def _kept(self) -> Kept | None:
        if self.residues is None:
            return None
        if not self.per_residue:
            raise ModelInputError("residues: got some, and per_residue is False; allowed: with per_residue=True")
        return Kept(self.residues)

    def _overlap(self, limit: int | None) -> int:
        if self.overlap is None:
            return (limit or 0) // 4
        if limit is None or self.long != "window":
            why = "records of any length are taken whole" if limit is None else f"long is {self.long!r}"
            raise ModelInputError(
                f"overlap: got {self.overlap}, but {why}; it is for networks with a limit and long='window'"
            )
        if not 0 <= self.overlap < limit:
            raise ModelInputError(f"overlap: got {self.overlap}; allowed: 0 to {limit - 1} residues")
        return self.overlap


def with_options(function: Function, kind: type = EmbedOptions) -> Function:
    """Show the options in the signature and the documentation of a function that takes them as `**options`."""
    own = signature(function)
    shown = [given for given in own.parameters.values() if given.kind is not Parameter.VAR_KEYWORD]
    function.__signature__ = own.replace(  # type: ignore[attr-defined]  # it is what `signature` and `help` look for
        parameters=[*shown, *signature(kind).parameters.values()]
    )
    options = (getdoc(kind) or "").partition("Args:\n")[2].partition("\n\nRaises:")[0]
    function.__doc__ = f"{getdoc(function)}\n\nOptions:\n{options}"
    return function


class Kept:
    """Which residues of each record have vectors.

    Raises:
        ModelInputError: if they are no ascending numbers.
    """

    def __init__(self, given: Sequence[Sequence[int]]):
        import numpy as np

        if not isinstance(given, Iterable):
            raise ModelInputError(f"residues: got {given!r}; allowed: a list of numbers for each record")
        self._none = np.zeros(0, np.int64)
        self._numbers = [self._read(numbers, place) for place, numbers in enumerate(given, 1)]
        digest = hashlib.sha256()
        for found in self._numbers:
            digest.update(len(found).to_bytes(8, "little") + found.astype("<i8").tobytes())
        self.digest = f"sha256:{digest.hexdigest()}"

    def _read(self, numbers: Any, place: int) -> NDArray[np.int64]:
        import numpy as np

        try:
            found = np.asarray(numbers)
        except ValueError:  # lists of several lengths
            found = np.zeros((0, 0))
        is_empty = found.shape == (0,)  # whose type says nothing
        if found.ndim == 1 and (is_empty or found.dtype.kind in "iu"):
            whole = found.astype(np.int64)
            if is_empty or (whole[0] >= 0 and (np.diff(whole) > 0).all()):
                return whole
        raise ModelInputError(
            f"residues: got {str(numbers)[:60]} for record {place:,}; allowed: a list of numbers from 0 on, ascending"
        )

    def of(self, record: Record) -> NDArray[np.int64]:
        """Return the numbers of the residues of a record; none of a record that none were given for."""
        return self._numbers[record.index] if record.index < len(self._numbers) else self._none

    def refuse_others(self, record: Record, seen: int) -> None:
        """Raise a `ModelInputError` if a record has no such residues, or the network does not see them."""
        numbers, length = self.of(record), len(record.sequence)
        if len(numbers) and numbers[-1] >= min(seen, length):
            what = f"of its {length:,} residues" if seen >= length else f"of the {seen:,} that are not cut off"
            raise ModelInputError(
                f"residues: got {numbers[-1]} for record {record.name!r}; allowed: numbers {what}, from 0 on"
            )

    def refuse_count(self, records: int) -> None:
        """Raise a `ModelInputError` if there are more or fewer records."""
        if len(self._numbers) != records:
            raise ModelInputError(
                f"residues: got {len(self._numbers):,} lists for {records:,} records; allowed: a list of numbers for"
                " each record, empty where none are kept"
            )


@dataclass(frozen=True)
class Choices:
    """What is made of each record: `EmbedOptions` as one network understands them."""

    layers: tuple[int, ...]  # ascending
    pools: tuple[str, ...] = ("mean",)
    per_residue: bool = False
    limit: int | None = None  # most residues that the network takes at once, `None` for any number
    long: str = "refuse"
    overlap: int = 0
    kept: Kept | None = None  # of which residues there are vectors, `None` for all

    @property
    def vectors(self) -> list[tuple[str, str, int]]:
        """Column, pooling and layer of each vector a record."""
        return [(f"{pool}_{layer}", pool, layer) for layer in self.layers for pool in self.pools]

    @property
    def residues(self) -> list[tuple[str, int]]:
        """Column and layer of each vector a residue."""
        return [(f"residues_{layer}", layer) for layer in self.layers] if self.per_residue else []

    @property
    def integers(self) -> tuple[str, ...]:
        """Columns that say what became of long records, and of how many residues there are vectors."""
        names = {"truncate": (EMBEDDED,), "window": ("windows",)}
        long = () if self.limit is None else names.get(self.long, ())
        return long if self.kept is None else (*long, KEPT)

    def schema(self, width: int, nullable: bool) -> Schema:
        """Return the columns of vectors of `width` numbers; `nullable` if there are records without residues."""
        vectors = {name: width for name, _, _ in self.vectors}
        return Schema(self.integers, vectors, {name: width for name, _ in self.residues}, nullable)

    def to_dict(self) -> dict[str, Any]:
        """Return what decides the embeddings, as JSON."""
        overlap = {"overlap": self.overlap} if self.long == "window" else {}
        long = {"long": self.long, "limit": self.limit, **overlap}
        return {
            "layers": list(self.layers),
            "pool": list(self.pools),
            "per_residue": self.per_residue,
            **({} if self.kept is None else {"residues": self.kept.digest}),
            "long_records": None if self.limit is None else long,
        }

    def seen(self, length: int) -> int:
        """Return how many residues of a record the network sees."""
        return length if self.limit is None or self.long != "truncate" else min(length, self.limit)

    def kept_of(self, record: Record) -> int:
        """Return of how many residues of a record there are vectors, if of any.

        Raises:
            ModelInputError: if it has no such residues.
        """
        seen = self.seen(len(record.sequence))
        if self.kept is None:
            return seen
        self.kept.refuse_others(record, seen)
        return len(self.kept.of(record))

    def windows(self, length: int) -> list[tuple[int, int]]:
        """Return which residues the network sees at a time, as (first, after the last).

        All windows are as wide as the network takes; the last ends where the record does, and so may share more with
        its neighbour than the others do.
        """
        if self.limit is None or length <= self.limit:
            return [(0, length)]
        if self.long == "truncate":
            return [(0, self.limit)]
        starts = range(0, length - self.limit, self.limit - self.overlap)
        return [(start, start + self.limit) for start in (*starts, length - self.limit)]

    def refuse_long(self, longest: int, name: str) -> None:
        """Raise a `FastaError` if the longest record is more than the network takes, and no option says what then."""
        if self.long == "refuse" and self.limit is not None and longest > self.limit:
            raise FastaError(
                f"record {name!r} has {longest:,} residues; allowed: at most {self.limit:,}, because this network has"
                " learned its positions; cut longer ones off with --long truncate, or slide with --long window"
            )


def read_layers(layers: str | int | Iterable[int], depth: int) -> tuple[int, ...]:
    """Read numbers of representations of a network of `depth` layers, counted as the original packages count them.

    Raises:
        ModelInputError: naming what it got and what is allowed.
    """
    if isinstance(layers, str) and layers in ("last", "all"):
        return (depth,) if layers == "last" else tuple(range(depth + 1))
    given = layers.split(",") if isinstance(layers, str) else layers if isinstance(layers, Iterable) else [layers]
    found = set()
    for item in given:
        try:
            number = int(item) if isinstance(item, str) else index(item)
        except (TypeError, ValueError):
            number = depth + 1
        if isinstance(item, bool) or not -depth - 1 <= number <= depth:
            raise ModelInputError(
                f"layers: got {item!r}; allowed: last, all, or numbers from 0 (the embedding) to {depth}, and from"
                f" -{depth + 1} to -1 (the last)"
            )
        found.add(number % (depth + 1))
    if not found:
        raise ModelInputError("layers: got none; allowed: last, all, or at least one number")
    return tuple(sorted(found))
