"""The tokenizers of the three alphabets as plain `tokenizers` JSON, which stock `AutoTokenizer` reads."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_perturb.checkpoints.network import Alphabet
from hf_perturb.checkpoints.shapes import listed
from hf_perturb.checkpoints.source import Place, UnreachedError, read_json
from hf_perturb.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_NO_LIMIT = int(1e30)  # of length, as Transformers spells it


def _build(alphabet: Alphabet) -> Tokenizer:
    """Build the tokenizer of an alphabet.

    One residue is one token, lower case is read as upper case, white space is dropped, and a character that is no token
    is read as the unknown one. What is spelt like a token, `<...>`, is that token or an error of the library (`Missing
    [UNK] token`); `<mask>` is the mask of every alphabet. Of a pair, an end token follows each sequence where there is
    one; ESM-1 and CARP have none, and join the two.

    Args:
        alphabet: one of `ESM1`, `ESM1B`, `ESM2`, `CARP`.
    """
    # only who writes one pays for the import
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocabulary = alphabet.ids
    # without a token for what it lacks, the model raises on what is left: `<` and `>`
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=""))
    known = re.escape("".join(token for token in alphabet.tokens if len(token) == 1))
    # the library has no upper-casing normalizer
    upper = {small: small.upper() for small in string.ascii_lowercase}
    # the normalizer is also applied to what the unknown token is called
    unknown: dict[Any, str] = {Regex(rf"[^{known}<>\s]"): alphabet.unk, alphabet.unk.upper(): alphabet.unk}
    changes = {"<mask>": alphabet.mask, **upper, **unknown}
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(old, new) for old, new in changes.items() if old != new]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
    )
    tokenizer.decoder = decoders.Fuse()
    named = {*_named(alphabet).values()}
    # an unknown token that is spelt out is looked for where the normalizer puts it
    spelt = alphabet.unk if len(alphabet.unk) > 1 else None
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=token == spelt, special=True)
            for token in alphabet.tokens
            if len(token) > 1 or token in named
        ]
    )
    single = [part for part in (alphabet.bos, "$A", alphabet.eos) if part is not None]
    # source: `EsmTokenizer.build_inputs_with_special_tokens`, which has no pairs where there is no end token
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=[*single, *("$B" if part == "$A" else part for part in single[1:])] if len(single) > 1 else "$A $B:1",
        special_tokens=[(token, vocabulary[token]) for token in single if token in vocabulary],
    )
    return tokenizer


def _named(alphabet: Alphabet) -> dict[str, str]:
    """Return the tokens that have a part to play, by the names that Transformers gives it."""
    named = {
        "pad_token": alphabet.pad,
        "mask_token": alphabet.mask,
        "unk_token": alphabet.unk,
        "cls_token": alphabet.bos,
        "bos_token": alphabet.bos,
        "eos_token": alphabet.eos,
    }
    return {name: token for name, token in named.items() if token is not None}


def refuse_other_alphabet(place: Place, written: Mapping[str, Any], alphabet: Alphabet) -> None:
    """Raise if a vocabulary beside the weights is not the alphabet of their network; nothing in it is run.

    To have none is fine; where the Hub cannot be asked, those that were fetched before are compared.

    Args:
        place: of the weights.
        written: the content of its `config.json`.
        alphabet: of the network.

    Raises:
        CheckpointError: naming the file, and the tokens that have other ids there.
    """
    if (stated := written.get("vocab_list")) is not None:
        _compare(f"{place.name!r}: vocab_list in its config.json", lambda: _numbered(stated), alphabet)
    for file, read in _VOCABULARIES.items():
        try:
            path = place.find(file)
        except UnreachedError:  # asked once: a Hub that does not answer takes its time
            place = replace(place, hub={**place.hub, "local_files_only": True})
            path = place.find(file)
        if path is not None:
            _compare(f"{place.name!r}: {file}", partial(read, path, alphabet), alphabet)


def _numbered(tokens: Iterable[Any]) -> dict[Any, int]:
    return {token: number for number, token in enumerate(tokens)}


def _of_tokenizer(path: Path, alphabet: Alphabet) -> dict[Any, int]:
    stored = read_json(path)
    vocabulary = stored["model"]["vocab"]
    # that of a unigram model is a list of tokens and scores
    ids = _numbered(token for token, _ in vocabulary) if isinstance(vocabulary, list) else dict(vocabulary)
    return _with_added(ids, stored.get("added_tokens") or (), alphabet)


def _of_lines(path: Path, alphabet: Alphabet) -> dict[Any, int]:
    return _numbered(line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines())


def _of_configuration(path: Path, alphabet: Alphabet) -> dict[Any, int]:
    stored = read_json(path).get("added_tokens_decoder") or {}
    return _with_added(alphabet.ids, [{**token, "id": int(number)} for number, token in stored.items()], alphabet)


def _of_added(path: Path, alphabet: Alphabet) -> dict[Any, int]:
    added = [{"content": token, "id": number} for token, number in read_json(path).items()]
    return _with_added(alphabet.ids, added, alphabet)


def _with_added(ids: dict[Any, int], added: Iterable[Any], alphabet: Alphabet) -> dict[Any, int]:
    """Return a vocabulary with what is put on top of it, but for tokens beyond it, which its network cannot read."""
    counted = {token["content"]: token["id"] for token in added}
    size = len(alphabet.tokens)
    return {**ids, **{token: number for token, number in counted.items() if token in ids or number < size}}


# of each file that says something of it; source: `PreTrainedTokenizerBase`, and `EsmTokenizer` of `vocab.txt`
_VOCABULARIES = {
    "tokenizer.json": _of_tokenizer,
    "vocab.txt": _of_lines,
    "tokenizer_config.json": _of_configuration,
    "added_tokens.json": _of_added,
}


def _compare(what: str, read: Callable[[], dict[Any, int]], alphabet: Alphabet) -> None:
    try:
        found = read()
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise CheckpointError(f"{what} cannot be compared with the alphabet of this network: {error!r}") from error
    ids = alphabet.ids
    if found == ids:
        return
    moved = [
        f"{token!r} is {found.get(token)}, not {number}" for token, number in ids.items() if found.get(token) != number
    ]
    others = [f"{token!r} is none of its tokens" for token in found if token not in ids]
    raise CheckpointError(
        f"{what} is not the alphabet of this network, whose tokens have an order: {listed([*moved, *others])}; weights"
        " that were trained with it are those of another network, and if they were not, take the file away"
    )


def save_tokenizer(alphabet: Alphabet, folder: Path) -> None:
    """Write the tokenizer of an alphabet; none is read from a checkpoint, since its alphabet is part of the network.

    Source: `PreTrainedTokenizerFast.save_pretrained`, byte for byte (tested).

    Raises:
        OSError: if the folder cannot be written.
    """
    said = {
        "backend": "tokenizers",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": alphabet.max_length or _NO_LIMIT,
        "tokenizer_class": "TokenizersBackend",
        **_named(alphabet),
    }
    text = json.dumps(said, indent=2, sort_keys=True) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    try:
        _build(alphabet).save(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exceptions, also for a full disk
        raise OSError(str(error)) from error
