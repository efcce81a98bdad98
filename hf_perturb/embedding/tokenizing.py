"""What a tokenizer of Transformers makes of residues, found out by trying; what cannot be told is asked for by name."""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_perturb.checkpoints.source import Place
from hf_perturb.errors import FastaError, ModelInputError

_STANDARD = "MKWVTFLSRDNAYHIQGECP"
_SPELT = re.compile(r"<[^<>]*>|\[[^\[\]]*\]")
# special tokens that have a name in every tokenizer; more of them would not fit below the letters
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token")
_OTHER = "; if there is none beside the weights, or that of another network, name one with --tokenizer"
_FAILURES = (OSError, ValueError, TypeError, LookupError, AttributeError, ImportError)


@dataclass(frozen=True)
class _Tried:
    """What became of a sequence: the tokens that begin and end it, as the tokenizer's own mask says, and the others."""

    begin: tuple[int, ...]
    core: list[int]
    end: tuple[int, ...]


class Tokenizing:
    """Sequences to tokens by a tokenizer.

    Args:
        tokenizer: of the network.
        separate: whether residues are separated by blanks; `None` to find out.
        prefix: what is written before each sequence.
        replace: letters to others, which they are read as.

    Raises:
        ModelInputError: if it cannot be told what a residue is, or an option does not fit.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        separate: bool | None = None,
        prefix: str | None = None,
        replace: Mapping[str, str] | None = None,
    ):
        self.tokenizer, self.prefix = tokenizer, prefix or ""
        self.name = type(tokenizer).__name__
        named = [str(token) for name in _NAMED if (token := getattr(tokenizer, name, None))]
        self.spelt = {token: token for token in named if _SPELT.fullmatch(token)}
        if mask := getattr(tokenizer, "mask_token", None):
            self.spelt["<mask>"] = str(mask)
        self._written = {chr(number): token for number, token in enumerate(self.spelt.values(), 1)}
        self._letters = [letter for letter in string.ascii_uppercase if self._knows(letter, self._alone(letter))]
        self._probe = [letter for letter in _STANDARD if letter in self._letters]
        if len(self._probe) < 2:
            found = self._alone("M")
            raise ModelInputError(f"tokenizer: this {self.name} makes {self._shown(found)} of 'M'{_OTHER}")
        self.separate, self.by_residue, self.lead = self._ways(separate)
        self.begin, self.end, self.has_cls = self._ends()
        self.known = self._known()
        self.replace = dict(replace or {})
        if unknown := sorted({*self.replace.values()} - self.known):
            raise ModelInputError(f"replace: got {', '.join(unknown)}; allowed: {''.join(sorted(self.known))}")
        self._reading = {**self._written, **self.replace}

    # ---- found out once

    def _ids(self, texts: Sequence[str], **options: Any) -> Any:
        plain = {"padding": False, "truncation": False, "return_attention_mask": False, "verbose": False}
        return self.tokenizer(list(texts), **plain, **options)

    def _alone(self, text: str) -> list[int]:
        ids: list[int] = self._ids([text], add_special_tokens=False)["input_ids"][0]
        return ids

    def _knows(self, letters: str, ids: Sequence[int]) -> bool:
        """Whether tokens are there, and none of them says that it is none."""
        token = self.tokenizer.unk_token
        return bool(ids) and (token in (None, *letters) or self.tokenizer.unk_token_id not in ids)

    def _shown(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, self.tokenizer.convert_ids_to_tokens(list(ids[:8])))) or "nothing"

    def _joined(self, letters: Sequence[str], separate: bool) -> str:
        """Write residues as the tokenizer wants them, after the prefix."""
        return (" " if separate else "").join([self.prefix, *letters] if self.prefix else letters)

    def _tried(self, letters: Sequence[str], separate: bool, prefix: bool = False) -> _Tried:
        """Say which tokens are the special ones that the tokenizer adds."""
        text = self._joined(letters, separate) if prefix else (" " if separate else "").join(letters)
        core = self._alone(text)
        found = self._ids([text], return_special_tokens_mask=True)
        whole, special = found["input_ids"][0], found["special_tokens_mask"][0]
        marked = next((i for i, one in enumerate(special) if not one), len(special))
        # some mark what is special by itself, and so a prefix too
        at = (i for i in range(min(marked, len(whole) - len(core)), -1, -1) if whole[i : i + len(core)] == core)
        if (first := next(at, None)) is None:
            raise ModelInputError(
                f"tokenizer: this {self.name} does not say which of its tokens are special: it makes"
                f" {self._shown(whole)} of {text[:20]!r}, and {self._shown(core)} without special tokens{_OTHER}"
            )
        return _Tried(tuple(whole[:first]), core, tuple(whole[first + len(core) :]))

    def _way(self, separate: bool) -> tuple[str, int, list[int]]:
        """Try residues with or without blanks: `one` token each, after `lead` others, `fewer`, or something `else`.

        Every two letters stand beside each other once, so that a tokenizer that joins some shows it.
        """
        pairs = [letter for one in self._probe for other in self._probe for letter in (one, other)]
        here, there = (self._tried(letters, separate).core for letters in (pairs, pairs[::-1]))
        if not self._knows("".join(self._probe), [*here, *there]):
            return "else", 0, here
        if len(here) == len(there) == len(pairs):
            return "one", 0, here
        if len(here) == len(there) == len(pairs) + 1 and here[0] == there[0]:  # a word's beginning, by itself
            return "one", 1, here
        return ("fewer" if len(here) < len(pairs) else "else"), 0, here

    def _ways(self, separate: bool | None) -> tuple[bool, bool, int]:
        """Decide whether residues are separated, whether each is a token, and how many tokens are before them."""
        ways = {way: self._way(way) for way in (False, True) if separate in (None, way)}
        plain, blanks = ways.get(False), ways.get(True)
        texts = [(" " if way else "").join(self._probe[:4]) for way in ways]
        shown = " and ".join(f"{self._shown(self._alone(text))} of {text!r}" for text in texts)
        able = [way for way, (kind, *_) in ways.items() if kind == "one" or (kind == "fewer" and not way)]
        if plain and blanks and plain[0] == blanks[0] == "one" and plain[2] == blanks[2]:
            able = [False]  # blanks are not there for it
        if not able:
            option = "tokenizer" if separate is None else "separate"
            got = "" if separate is None else f"got {separate}; "
            raise ModelInputError(
                f"{option}: {got}this {self.name} makes no token a residue: {shown}; say how residues are written with"
                f" --separate or --no-separate{_OTHER}"
            )
        if len(able) > 1:
            raise ModelInputError(
                f"separate: got none, and this {self.name} makes {shown}; say which its network was trained on:"
                " --separate (blanks between residues) or --no-separate"
            )
        kind, lead, _ = ways[able[0]]
        return able[0], kind == "one", lead

    def _ends(self) -> tuple[list[int], list[int], bool]:
        """Find the tokens before and after residues, the prefix among them; and whether one special token is first."""
        tried = self._tried(self._probe, self.separate)
        lead, text = tried.core[: self.lead], self._joined(self._probe, self.separate)
        if self.prefix:
            after = self._tried(self._probe, self.separate, prefix=True)
            if not self._knows("", after.core) or not self._alone(self.prefix):
                raise ModelInputError(
                    f"prefix: got {self.prefix!r}, which this {self.name} has no token of: it makes"
                    f" {self._shown(after.core)} ... of {text}"
                )
            more = len(after.core) - len(tried.core)
            if more < 1 or after.core[more + self.lead :] != tried.core[self.lead :]:
                raise ModelInputError(
                    f"prefix: got {self.prefix!r}; this {self.name} makes other tokens of the residues that follow it:"
                    f" {self._shown(after.core)} ... of {text}"
                )
            lead = after.core[: more + self.lead]
        return [*tried.begin, *lead], [*tried.end], len(tried.begin) == 1

    def _known(self) -> set[str]:
        """Find the letters that are read as themselves between others."""
        side, known = self._probe[0], set()
        for letter in self._letters:
            core = self._tried([side, letter, side], self.separate).core[self.lead :]
            if self._knows(letter, core) and (len(core) == 3 or not self.by_residue):
                known.add(letter)
        return known

    # ---- for every sequence

    @property
    def sample(self) -> str:
        """A sequence to try a network with."""
        return "".join(self._probe * 3)

    def odd(self, sequence: str) -> list[str]:
        """Return the letters that the tokenizer does not know, and that are not replaced."""
        return sorted({*sequence} - self.known - self._reading.keys())

    def tokens(self, sequences: Sequence[str]) -> list[list[int]]:
        """Return the tokens of the residues of sequences.

        Raises:
            FastaError: if a residue is no token, or not one.
        """
        texts = [self._joined([self._reading.get(x, x) for x in sequence], self.separate) for sequence in sequences]
        first, last = len(self.begin), len(self.end)
        made = []
        for sequence, ids in zip(sequences, self._ids(texts)["input_ids"], strict=True):
            core = ids[first : len(ids) - last]
            is_framed = ids[:first] == self.begin and ids[len(ids) - last :] == self.end
            is_known = self._knows(sequence, core) or any(character in self._written for character in sequence)
            if not (is_framed and is_known) or (self.by_residue and len(core) != len(sequence)):
                raise FastaError(
                    f"the sequence {sequence[:20]!r} ... of {len(sequence):,} residues: this {self.name} makes"
                    f" {len(core):,} tokens of it, {self._shown(core)} ..., which are not its residues"
                )
            made.append(core)
        return made

    @cached_property
    def digest(self) -> str:
        """The digest of what decides which tokens are made."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            said: Any = [self.name, self.tokenizer.get_vocab()]
        else:
            # how the last call cut and padded is written there, too
            said = {**json.loads(backend.to_str()), "truncation": None, "padding": None}
        return f"sha256:{hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()}"

    def to_dict(self) -> dict[str, Any]:
        """Return what decides which tokens are made, as JSON."""
        return {
            "tokenizer": self.digest,
            "separate": self.separate,
            "prefix": self.prefix or None,
            "replace": self.replace or None,
        }


def read_replace(given: str | Mapping[str, str] | None) -> dict[str, str]:
    """Read which letters are read as others: `"UZOB=X"`, several with commas, or a dict.

    Raises:
        ModelInputError: naming what it got and what is allowed.
    """
    if given is None:
        return {}
    parts = [part.partition("=")[::2] for part in given.split(",")] if isinstance(given, str) else [*given.items()]
    for letters, other in parts:
        if not re.fullmatch("[A-Z]+", str(letters)) or not re.fullmatch("[A-Z]", str(other)):
            raise ModelInputError(f"replace: got {given!r}; allowed: letters and what to read them as, such as UZOB=X")
    return {letter: other for letters, other in parts for letter in letters}


def load_tokenizer(name: str | Path, hub: Mapping[str, Any]) -> tuple[PreTrainedTokenizerBase, tuple[str, ...]]:
    """Load the tokenizer of a folder or a Hub id.

    A class may build another one than its `tokenizer.json` has: that of T5 in Transformers 5 begins each word with `▁`,
    an unknown token where pieces are bare letters. Where they make other tokens of residues, the file is what counts.

    Args:
        name: the folder or Hub id.
        hub: what else finds a file there.

    Returns:
        The tokenizer, and what is to be said of it.

    Raises:
        ModelInputError: if there is none.
    """
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **{"trust_remote_code": False, **hub})
    except _FAILURES as error:
        said = str(error).strip().partition("\n")[0]
        raise ModelInputError(f"tokenizer: {str(name)!r} has none that can be loaded: {said}; name another") from error
    given = {key: value for key, value in hub.items() if key != "trust_remote_code"}
    try:
        if Place(str(name), str(name), given).find("tokenizer.json") is None:
            return found, ()
        written: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(name, **given)
    except _FAILURES:  # the class reads other files
        return found, ()
    texts = [separator.join(_STANDARD) for separator in ("", " ")]
    if all(found.tokenize(text) == written.tokenize(text) for text in texts):
        return found, ()
    kind = type(found).__name__
    return written, (f"tokenizer.json is read as it is written; {kind} would make other tokens of residues",)
