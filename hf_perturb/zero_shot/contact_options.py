"""What a run of contact maps is asked for. Neither torch nor numpy is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_perturb.embedding.options import EmbedOptions
from hf_perturb.errors import ModelInputError

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedTokenizerBase

PICTURES = 20  # that are drawn where nobody says how many

# called with the residues that are done and those that there are to do, for each network
Progress = Callable[[int, int], object]


@dataclass(frozen=True, kw_only=True)
class ContactOptions:
    """The options of `contacts` and the command.

    Args:
        plot: draw the maps of the first proteins, all networks side by side: of so many, of 20 if `True`.
        dtype: of weights and arithmetic; that of the checkpoint if `None`. Maps are stored in float32.
        device: as torch names it; `"auto"` to spread the network over all there are; a GPU if there is one if `None`.
        tokenizer: of a network that is not ours, if it is not beside the weights: a folder, a Hub id, or one that is
            loaded.
        separate: whether it is given residues separated by blanks; `None` to find out what it makes of both.
        prefix: what it is given before each sequence; no residue.
        replace: letters that are read as others: `"UZOB=X"`, several with commas, or a dict.
        revision: branch, tag or commit of a Hub id.
        trust_remote_code: run the code that comes with a network that Transformers does not have; read it first.
        force: if the folder holds other contact maps, remove them and begin again.
        progress: called with the residues that are done and those that there are to do, for each network.

    Raises:
        ModelInputError: if `plot` is no number.
    """

    plot: int | bool = False
    dtype: str | torch.dtype | None = None
    device: str | None = None
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None
    separate: bool | None = None
    prefix: str | None = None
    replace: str | Mapping[str, str] | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    force: bool = False
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.plot, int) or self.plot < 0:
            raise ModelInputError(f"plot: got {self.plot!r}; allowed: True, or how many proteins to draw")

    @property
    def pictures(self) -> int:
        """How many proteins are drawn."""
        return PICTURES if self.plot is True else self.plot

    @property
    def embedding(self) -> EmbedOptions:
        """What the network is opened and loaded by."""
        return EmbedOptions.among(self)
