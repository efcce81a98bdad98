"""What a network reads: which tokens a sequence becomes, how many of them it takes, and what it shows of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from hf_perturb.checkpoints.network import alphabet_of

if TYPE_CHECKING:
    from hf_perturb.embedding.fasta import Findings, Record
    from hf_perturb.embedding.options import Choices, Config

# called with the number of a representation, and its values, `(tokens, hidden_size)`
Visit = Callable[[int, torch.Tensor], None]


class Encoder(ABC):
    """Sequences to tokens, and tokens through the network.

    A sequence is cut into pieces, one for each residue where `by_residue`, else one for each token; what the network
    sees at a time is some of them between the tokens that begin a sequence and those that end it.
    """

    kind: str  # the `model_type` of the network
    width: int  # numbers of a representation
    depth: int  # number of its last representation
    begin: torch.Tensor  # tokens that begin a sequence and are no residues
    end: torch.Tensor  # those that end it
    pad: int
    mask: int | None  # the token that hides a residue
    most: int | None  # tokens that the network takes at once, `None` for any number
    has_cls: bool  # whether it is one token that begins a sequence
    by_residue = True
    spelt: Iterable[str] = ()  # tokens that may be spelt out in a sequence; see `read_records`
    notes: tuple[str, ...] = ()  # what is to be said of how sequences are read

    @property
    def special(self) -> int:
        """Tokens of a row that are no residues."""
        return len(self.begin) + len(self.end)

    def encode(self, parts: Sequence[Any]) -> torch.Tensor:
        """Return the tokens of pieces of sequences, padded on the right, `(batch, length)`."""
        longest = max(map(len, parts)) + self.special
        ids = torch.full((len(parts), longest), self.pad)
        for row, part in zip(ids, parts, strict=True):
            row[: len(part) + self.special] = torch.cat([self.begin, self.ids_of(part), self.end])
        return ids

    @abstractmethod
    def ids_of(self, part: Any) -> torch.Tensor:
        """Return the tokens of pieces of a sequence."""

    @abstractmethod
    def odd(self, sequence: str) -> list[str]:
        """Return the letters that there is no token of, and that are not replaced."""

    def pieces(self, sequences: Sequence[str]) -> Sequence[Any]:
        """Cut sequences into pieces."""
        return sequences

    def look(self, record: Record, findings: Findings) -> None:  # noqa: B027  # most take every record
        """Raise a `FastaError` if the network cannot take a record, and note what its owner may not know of."""

    def to_dict(self) -> dict[str, Any]:
        """Return what of it decides the embeddings beside the network, as JSON."""
        return {}

    def prepare(self, model: Any, choices: Choices) -> tuple[Any, float]:
        """Return what `show` is called with for a network that is loaded, and how full of tokens rows have to be."""
        return model, 0.0

    @abstractmethod
    def show(self, model: Any, parts: Sequence[Any], visit: Visit, choices: Choices, device: Any) -> None:
        """Run a batch, and show each representation that is wanted: the tokens of all rows, without padding."""


class AlphabetEncoder(Encoder):
    """What a network of ours reads, as its own tokenizer does, by a table: it has one token for each character.

    Tokens that were spelt out are the characters from 1 on; see `read_records`.
    """

    def __init__(self, config: Config):
        ends = ([getattr(config, name, None)] for name in ("bos_token_id", "eos_token_id"))
        self.begin, self.end = (torch.tensor([id_ for id_ in end if id_ is not None], dtype=torch.long) for end in ends)
        self.kind, self.width, self.depth = config.model_type, config.hidden_size, config.num_hidden_layers
        self.pad: int = config.pad_token_id
        self.mask: int | None = config.mask_token_id
        self.most, self.has_cls = getattr(config, "max_tokens", None), len(self.begin) > 0
        alphabet = alphabet_of(config)
        self.spelt, self._ids = alphabet.spelt, (ids := alphabet.ids)
        spelt = dict(enumerate(alphabet.spelt.values(), 1))
        self.table = torch.tensor([spelt.get(code, ids.get(chr(code), ids[alphabet.unk])) for code in range(128)])

    def odd(self, sequence: str) -> list[str]:
        """Return the letters that the alphabet does not have, which are read as its unknown token."""
        return sorted({*sequence} - self._ids.keys())

    def ids_of(self, part: str) -> torch.Tensor:
        """Return the tokens of residues."""
        return self.table[torch.frombuffer(bytearray(part, "ascii"), dtype=torch.uint8).long()]

    def show(self, model: Any, parts: Sequence[str], visit: Visit, choices: Choices, device: Any) -> None:
        """Run a batch; see `visit_representations`."""
        model.visit_representations(visit, self.encode(parts), depth=choices.layers[-1], device=device)
