"""The three alphabets as plain `tokenizers` JSON, which stock `AutoTokenizer` reads with no class of ours.

Source: `esm.data.Alphabet` with `esm.constants.proteinseq_toks` (fair-esm 2.0.0) and
`sequence_models.constants.PROTEIN_ALPHABET` (sequence-models 1.8.0).
"""

from __future__ import annotations

import json
import string
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

_FAIR_ESM_RESIDUES = (*"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>")


@dataclass(frozen=True)
class Alphabet:
    """Tokens in the order of their ids, and the parts that some of them play.

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

    def id_of(self, token: str | None) -> int | None:
        """Return the id of a token, `None` for no token."""
        return None if token is None else self.tokens.index(token)


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


def build_tokenizer(alphabet: Alphabet) -> PreTrainedTokenizerFast:
    """Build the tokenizer of an alphabet.

    One residue is one token, lower case is read as upper case, white space is dropped.

    Args:
        alphabet: one of `ESM1`, `ESM1B`, `ESM2`, `CARP`.

    Returns:
        A tokenizer whose `save_pretrained` writes `tokenizer.json` and `tokenizer_config.json`.
    """
    vocabulary = {token: i for i, token in enumerate(alphabet.tokens)}
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


def build_tokenizer_of(config: Any) -> PreTrainedTokenizerFast:
    """Build the tokenizer of a network.

    Args:
        config: its `FairEsmConfig` or `CarpConfig`.
    """
    if config.model_type == "carp":
        return build_tokenizer(CARP)
    if config.model_version == "ESM-1":
        return build_tokenizer(ESM1)
    return build_tokenizer(replace(ESM1B, max_length=config.max_tokens))


def same_alphabet(path: Path, config: Any) -> bool:
    """Whether a `tokenizer.json` gives every token the id that a network has for it; nothing in it is run.

    Args:
        path: the file.
        config: the network's `FairEsmConfig` or `CarpConfig`.
    """
    try:
        vocabulary = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
    except (ValueError, KeyError, TypeError):
        return False
    return bool(vocabulary == build_tokenizer_of(config).get_vocab())


def save_tokenizer(config: Any, folder: Path) -> None:
    """Write the tokenizer of a network; none is read from a checkpoint, since its alphabet is part of the network.

    Raises:
        OSError: if the folder cannot be written.
    """
    tokenizer = build_tokenizer_of(config)
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # the library raises bare Exceptions, also for a full disk
        raise OSError(str(error)) from error
