"""What a run of scores is asked for. Neither torch nor numpy is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_perturb.embedding.options import EmbedOptions
from hf_perturb.errors import ModelInputError

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedTokenizerBase

MARGINALS = ("masked", "wildtype")
LONG = ("refuse", "window")
ALL = "all"  # every single substitution
_FARTHEST = 10**9  # number of a first residue

# called with the positions that are done and those that there are to do, for each network
Progress = Callable[[int, int], object]


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """The options of `score`, `substitution_scores` and the command.

    Args:
        offset: the number that mutants give the first residue of the wild type.
        measured: the column of what was measured; `None` for the only one that says by its name that it is.
        marginal: `"masked"` (each position hidden in turn), `"wildtype"` (one pass that sees all, or one a
            window), or both.
        dtype: of weights and arithmetic; that of the checkpoint if `None`. Probabilities are made of it in float64.
        device: as torch names it; `"auto"` to spread the network over all there are; a GPU if there is one if `None`.
        tokens: most tokens of a batch; `None` for 2,048 on the CPU and 32,768 elsewhere.
        long: what to make of a wild type of more residues than a network with learned positions takes: `"refuse"` it,
            or see each position in the middle of a `"window"`, which is moved inwards at the ends.
        tokenizer: of a network that is not ours, if it is not beside the weights: a folder, a Hub id, or one that is
            loaded.
        separate: whether it is given residues separated by blanks; `None` to find out what it makes of both.
        prefix: what it is given before each sequence; no residue.
        replace: letters that are read as others: `"UZOB=X"`, several with commas, or a dict.
        revision: branch, tag or commit of a Hub id.
        trust_remote_code: run the code that comes with a network that Transformers does not have; read it first.
        force: if the file holds other scores, replace it.
        progress: called with the positions that are done and those that there are to do, for each network.

    Raises:
        ModelInputError: if an option has a value that is not allowed.
    """

    offset: int = 1
    measured: str | None = None
    marginal: str | Iterable[str] = MARGINALS
    dtype: str | torch.dtype | None = None
    device: str | None = None
    tokens: int | None = None
    long: str = "refuse"
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None
    separate: bool | None = None
    prefix: str | None = None
    replace: str | Mapping[str, str] | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    force: bool = False
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.offset, int) or isinstance(self.offset, bool) or abs(self.offset) > _FARTHEST:
            raise ModelInputError(f"offset: got {self.offset!r}; allowed: a number, that of the first residue")
        if self.long not in LONG:
            raise ModelInputError(f"long: got {self.long!r}; allowed: {', '.join(LONG)}")
        if not self.marginals or not {*self._marginals} <= {*MARGINALS}:
            raise ModelInputError(f"marginal: got {self.marginal!r}; allowed: {', '.join(MARGINALS)}, or both")

    @property
    def _marginals(self) -> tuple[str, ...]:
        return (self.marginal,) if isinstance(self.marginal, str) else tuple(self.marginal)

    @property
    def marginals(self) -> tuple[str, ...]:
        """Which are asked for, in one order."""
        return tuple(name for name in MARGINALS if name in self._marginals)

    @property
    def embedding(self) -> EmbedOptions:
        """What the network is opened and loaded by."""
        return EmbedOptions.among(self)
