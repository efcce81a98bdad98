"""Any encoder of Transformers: what its own tokenizer makes of sequences, and its hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase

from hf_perturb.embedding.encoder import Encoder, Visit
from hf_perturb.embedding.tokenizing import Tokenizing, load_tokenizer, read_replace
from hf_perturb.errors import FastaError, ModelInputError, UnsupportedModuleError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_perturb.embedding.fasta import Findings, Record
    from hf_perturb.embedding.options import Choices, EmbedOptions

_RARE = "UZOB"  # which the networks of ProtTrans are given as X
_NO_STATES = (TypeError, ValueError, AttributeError, LookupError, NotImplementedError)
_FULL = 0.9  # on a core, what is worked on padding costs more than batches save
_SHORT, _LONG = 8, 40  # pieces of two sequences that a network is tried with
# what is nothing, as a part of the largest value: in batches of one size, and of several in float32 and in half types
_SAME, _NEAR, _NEAR_HALF, _FLOAT = 1e-3, 1e-4, 1e-1, 4


def trunk_of(model: PreTrainedModel) -> Any:
    """Return the part of a model that gives representations: the encoder where there is a decoder too, without heads.

    Raises:
        UnsupportedModuleError: if it reads no tokens.
    """
    several = getattr(model.config, "is_encoder_decoder", False)
    trunk: Any = model.get_encoder() if several else model.base_model
    if getattr(trunk, "main_input_name", "input_ids") != "input_ids":
        raise UnsupportedModuleError(
            f"model: a {type(model).__name__} reads {trunk.main_input_name}; allowed: networks that read tokens"
        )
    return trunk


def _words_of(trunk: Any) -> Any:
    """Return the embedding of tokens, `None` where a network does not say which it is."""
    try:
        return trunk.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def positions_of(trunk: Any, config: Any, tokenizer: Any) -> int | None:
    """Return the tokens that a network has positions for, `None` where these are computed for any number.

    A table of positions is an embedding beside that of the tokens, with a row for each position of the configuration.
    Some have rows that no token has: up to that of their padding (RoBERTa, ESM), or some more than positions (BART).
    """
    stated, words = getattr(config, "max_position_embeddings", None), _words_of(trunk)
    if not isinstance(stated, int):
        return None
    tables = [each for each in trunk.modules() if isinstance(each, torch.nn.Embedding) and each is not words]
    # a table of kinds of tokens, or of distances, has few rows
    tables = [each for each in tables if each.num_embeddings >= stated]
    unused = [0 if each.padding_idx is None else each.padding_idx + 1 for each in tables]
    counts = [min(stated, each.num_embeddings - rows) for each, rows in zip(tables, unused, strict=True)]
    return min(*counts, tokenizer.model_max_length) if counts else None


def _sizes_of(trunk: Any, config: Any, name: str) -> tuple[int, int]:
    """Return the numbers of a representation, and of layers: as the configuration says, or as is found out."""
    try:
        return config.hidden_size, config.num_hidden_layers
    except AttributeError:  # code that comes along may call them anything
        ids = torch.zeros((1, 2), dtype=torch.long, device=next(trunk.parameters()).device)
    try:
        with torch.no_grad():
            states = trunk(input_ids=ids, output_hidden_states=True, return_dict=True).hidden_states
        return states[-1].shape[-1], len(states) - 1
    except _NO_STATES as error:
        raise _without_states(name, error) from error


def _without_states(name: str, error: Exception) -> UnsupportedModuleError:
    said = str(error).partition("\n")[0]
    return UnsupportedModuleError(
        f"model: a {name} gives no representations of tokens: {said}; allowed: networks with hidden_states"
    )


class TokenizerEncoder(Encoder):
    """What any encoder of Transformers reads by its own tokenizer, and its `hidden_states`."""

    def __init__(self, model: PreTrainedModel, tokenizing: Tokenizing, notes: Sequence[str] = ()):
        trunk = trunk_of(model)
        config: Any = getattr(trunk, "config", model.config)
        self._tokenizing, self._name = tokenizing, type(model).__name__
        self.kind = config.model_type
        self.width, self.depth = _sizes_of(trunk, config, self._name)
        self.begin, self.end = (torch.tensor(ids, dtype=torch.long) for ids in (tokenizing.begin, tokenizing.end))
        pads = (tokenizing.tokenizer.pad_token_id, getattr(config, "pad_token_id", None))
        self.pad = next((pad for pad in pads if pad is not None), 0)
        self.mask = tokenizing.tokenizer.mask_token_id
        self._positions = positions_of(trunk, config, tokenizing.tokenizer)
        self.by_residue, self.has_cls = tokenizing.by_residue, tokenizing.has_cls
        # of tokens that are no residues, nobody knows where a record would be cut
        self.most = self._positions if self.by_residue else None
        self.spelt = tokenizing.spelt
        words = _words_of(trunk)
        self._vocabulary: int | None = None if words is None else words.weight.shape[0]
        said = list(notes)
        if trunk is not model.base_model:
            said.append(f"{self._name} has a decoder too: these are representations of its encoder")
        if not self.by_residue:
            said.append(f"{tokenizing.name} makes tokens of several residues: pooled over tokens")
        if (most := len(tokenizing.tokenizer)) > (self._vocabulary or most):
            said.append(
                f"{tokenizing.name} has {most:,} tokens, the network {self._vocabulary:,}: is it of this network?"
            )
        self.notes = tuple(said)

    def to_dict(self) -> dict[str, Any]:
        """Return what of the tokenizer decides the embeddings, as JSON."""
        return self._tokenizing.to_dict()

    def look(self, record: Record, findings: Findings) -> None:
        """Raise a `FastaError` for residues that the tokenizer does not know; note those that are rare, or replaced."""
        tokenizing, sequence = self._tokenizing, record.sequence
        if odd := self.odd(sequence):
            other = "X" if "X" in tokenizing.known else sorted(tokenizing.known)[0]
            raise FastaError(
                f"record {record.name!r} has {', '.join(odd)}, which {tokenizing.name} does not know; say what to read"
                f" them as, such as --replace {''.join(odd)}={other}"
            )
        letters = {*sequence}
        if letters & tokenizing.replace.keys():
            findings.add("replaced", record.name)
        if letters & {*_RARE} - tokenizing.replace.keys():
            findings.add("rare", record.name)
        if self.by_residue or self._positions is None or len(sequence) <= (most := self._positions - self.special):
            return
        if (tokens := len(tokenizing.tokens([sequence])[0])) > most:
            raise FastaError(
                f"record {record.name!r} is {tokens:,} tokens; allowed: at most {most:,}, because this network has"
                " learned its positions; leave it out, or divide it"
            )

    def odd(self, sequence: str) -> list[str]:
        """Return the letters that the tokenizer does not know, and that are not replaced."""
        return self._tokenizing.odd(sequence)

    def pieces(self, sequences: Sequence[str]) -> Sequence[list[int]]:
        """Cut sequences into tokens."""
        return self._tokenizing.tokens(sequences) if sequences else []

    def ids_of(self, part: list[int]) -> torch.Tensor:
        """Return tokens as they are."""
        return torch.tensor(part, dtype=torch.long)

    def prepare(self, model: PreTrainedModel, choices: Choices) -> tuple[_Network, float]:
        """Run short sequences, and see whether the network does with them what is thought here.

        Returns:
            What is called for a batch, and how full of tokens its rows have to be: 1 where padding changes results.

        Raises:
            UnsupportedModuleError: if it gives no representations of tokens, or others than its configuration says.
            ModelInputError: if `cls` is asked for, and sees nothing of a sequence.
        """
        network = _Network(model, self.depth)
        room = _LONG if self._positions is None else min(_LONG, self._positions - self.special)
        sample = self._tokenizing.sample
        long, other = (part[:room] for part in self.pieces([sample, sample[::-1]]))
        parts = [long, short := long[:_SHORT]]
        alone, changed = self._tried(network, [short]), self._tried(network, [other[:_SHORT]])
        differs = (alone[-1] - changed[-1]).abs().amax(1)
        if "cls" in choices.pools and differs[0] <= _NEAR * differs.max():
            raise ModelInputError(
                f"pool: got 'cls'; the first token of this {self.kind} network sees nothing of a sequence; allowed:"
                " mean, max"
            )
        padded, filled = self._tried(network, parts), self._tried(network, parts, filler=long[0])
        # in half types, batches of several sizes differ by as much as a little padding makes; what is in it tells more
        allowed = _NEAR if alone[0].dtype.itemsize >= _FLOAT else _NEAR_HALF
        same = all(
            _is_near(one, both[-len(one) :], allowed) and _is_near(both, there, _SAME)
            for one, both, there in zip(alone, padded, filled, strict=True)
        )
        return network, _FULL if same else 1.0

    def _tried(self, network: _Network, parts: Sequence[list[int]], filler: int | None = None) -> list[torch.Tensor]:
        """Return all representations of a batch, padded with a filler, and see that there are as many as should be."""
        shown: list[torch.Tensor] = []
        device = "cpu" if network.device.type == "meta" else network.device
        ids, sizes = self.encode(parts), self._sizes(parts)
        if filler is not None:
            ids[_padding(ids, sizes)] = filler
        try:
            network.show(ids, sizes, True, device, lambda _, values: shown.append(values))
        except _NO_STATES as error:
            raise _without_states(self._name, error) from error
        if [values.shape[1] for values in shown] != [self.width] * (self.depth + 1):
            got = f"{len(shown)} representations of {', '.join(map(str, {values.shape[1] for values in shown}))}"
            raise UnsupportedModuleError(
                f"model: a {self._name} gives {got} numbers; allowed: {self.depth + 1} of {self.width}, as its"
                " config.json says"
            )
        return shown

    def encode(self, parts: Sequence[list[int]]) -> torch.Tensor:
        """Return tokens, padded on the right, `(batch, length)`.

        Raises:
            ModelInputError: for a token that the network does not have.
        """
        ids = super().encode(parts)
        if self._vocabulary is not None and (largest := int(ids.max())) >= self._vocabulary:
            token = self._tokenizing.tokenizer.convert_ids_to_tokens(largest)
            raise ModelInputError(
                f"tokenizer: {token!r} of this {self._tokenizing.name} has the id {largest:,}, and the network has"
                f" {self._vocabulary:,} tokens; name its own with --tokenizer"
            )
        return ids

    def _sizes(self, parts: Sequence[list[int]]) -> list[int]:
        return [len(part) + self.special for part in parts]

    def show(self, model: _Network, parts: Sequence[list[int]], visit: Visit, choices: Choices, device: Any) -> None:
        """Run a batch, and show its hidden states: that of the embedding, and those of the layers."""
        model.show(self.encode(parts), self._sizes(parts), choices.layers != (self.depth,), device, visit)


class _Network:
    """The part of a model that gives representations, as it is called for a batch."""

    def __init__(self, model: PreTrainedModel, depth: int):
        self._trunk, self._depth, self.device = trunk_of(model), depth, model.device
        taken = signature(self._trunk.forward).parameters
        self._options = {"use_cache": False} if "use_cache" in taken else {}
        self._is_masked = "attention_mask" in taken
        self._ends_with: bool | None = None  # whether the last state is what the network returns

    @torch.no_grad()
    def show(self, ids: torch.Tensor, sizes: Sequence[int], every: bool, device: Any, visit: Visit) -> None:
        """Show representations, all of them if `every`, else the last.

        Args:
            ids: tokens, padded on the right.
            sizes: tokens of each row.
            every: whether all are wanted.
            device: where the network takes tokens.
            visit: called with the number of each, and the values of all tokens one after another, without padding.
        """
        mask = ~_padding(ids, sizes)
        there = None if mask.all() else mask.flatten().nonzero().squeeze(1)
        given = {"attention_mask": mask.long().to(device)} if self._is_masked else {}
        every = every or not self._ends_with
        output = self._trunk(
            input_ids=ids.to(device), output_hidden_states=every, return_dict=True, **given, **self._options
        )
        last: Any = getattr(output, "last_hidden_state", None)
        states: dict[int, torch.Tensor] = dict(enumerate(output.hidden_states)) if every else {self._depth: last}
        if self._ends_with is None:
            self._ends_with = last is not None and torch.equal(last, [*states.values()][-1])
        for number, state in states.items():
            if state.shape[:2] != ids.shape:
                raise ValueError(f"representation {number} of {tuple(ids.shape)} tokens is {tuple(state.shape)}")
            rows = state.flatten(0, 1)
            visit(number, rows if there is None else rows.index_select(0, there.to(rows.device, non_blocking=True)))


def _padding(ids: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Return where rows of tokens have padding."""
    return torch.arange(ids.shape[1]) >= torch.tensor(sizes).unsqueeze(1)


def _is_near(one: torch.Tensor, other: torch.Tensor, allowed: float) -> bool:
    """Whether values differ by no more than a part of the largest."""
    return bool((one - other).abs().max() <= allowed * one.abs().max())


def encoder_of(model: PreTrainedModel, name: Any, hub: Mapping[str, Any], options: EmbedOptions) -> TokenizerEncoder:
    """Say what a network reads.

    Args:
        model: the network, with values or without.
        name: the folder or Hub id that has its tokenizer, if the options name no other.
        hub: what else finds a file there.
        options: for the tokenizer.

    Raises:
        ModelInputError: if there is no tokenizer, or it and the options do not say what a residue is.
        UnsupportedModuleError: if the network reads no tokens.
    """
    given: Any = options.tokenizer
    notes: tuple[str, ...] = ()
    if given is None or isinstance(given, str | Path):
        given, notes = load_tokenizer(name, hub) if given is None else load_tokenizer(given, {})
    elif not isinstance(given, PreTrainedTokenizerBase):
        raise ModelInputError(
            f"tokenizer: got a {type(given).__name__}; allowed: one of Transformers, a folder or a Hub id"
        )
    replace = read_replace(options.replace)
    return TokenizerEncoder(model, Tokenizing(given, options.separate, options.prefix, replace), notes)
