"""The tokenizers of the three alphabets as plain `tokenizers` JSON, which stock `AutoTokenizer` reads."""

from __future__ import annotations

import string
from pathlib import Path
from typing import TYPE_CHECKING

from hf_perturb.checkpoints.network import Alphabet
from hf_perturb.checkpoints.source import read_json
from hf_perturb.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def build_tokenizer(alphabet: Alphabet) -> PreTrainedTokenizerFast:
    """Build the tokenizer of an alphabet.

    One residue is one token, lower case is read as upper case, white space is dropped.

    Args:
        alphabet: one of `ESM1`, `ESM1B`, `ESM2`, `CARP`.

    Returns:
        A tokenizer whose `save_pretrained` writes `tokenizer.json` and `tokenizer_config.json`.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = alphabet.ids
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=alphabet.unk))
    # the library has no upper-casing normalizer
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(small, small.upper()) for small in string.ascii_lowercase]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
    )
    tokenizer.decoder = decoders.Fuse()
    specials = [token for token in alphabet.tokens if len(token) > 1 or token in (alphabet.pad, alphabet.mask)]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in specials])
    ends = [token for token in (alphabet.bos, alphabet.eos) if token is not None]
    if ends:
        template = " ".join(filter(None, (alphabet.bos, "$A", alphabet.eos)))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(token, vocabulary[token]) for token in ends]
        )
    named = {
        "pad_token": alphabet.pad,
        "mask_token": alphabet.mask,
        "unk_token": alphabet.unk,
        "cls_token": alphabet.bos,
        "bos_token": alphabet.bos,
        "eos_token": alphabet.eos,
    }
    limit = {} if alphabet.max_length is None else {"model_max_length": alphabet.max_length}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **{name: token for name, token in named.items() if token is not None},
        **limit,
    )


def same_alphabet(path: Path, alphabet: Alphabet) -> bool:
    """Whether a `tokenizer.json` gives every token the id that an alphabet has for it; nothing in it is run."""
    try:
        vocabulary = read_json(path)["model"]["vocab"]
    except (CheckpointError, KeyError, TypeError):
        return False
    return bool(vocabulary == alphabet.ids)


def save_tokenizer(alphabet: Alphabet, folder: Path) -> None:
    """Write the tokenizer of an alphabet; none is read from a checkpoint, since its alphabet is part of the network.

    Raises:
        OSError: if the folder cannot be written.
    """
    tokenizer = build_tokenizer(alphabet)
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # the library raises bare Exceptions, also for a full disk
        raise OSError(str(error)) from error
