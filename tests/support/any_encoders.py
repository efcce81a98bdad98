"""Small encoders of Transformers, and tokenizers that read proteins as published ones do."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tokenizers.models import Unigram
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertTokenizer,
    ConvBertConfig,
    ConvBertModel,
    EsmTokenizer,
    PreTrainedTokenizerFast,
    T5Tokenizer,
)
from transformers.models.esmc.tokenization_esmc import EsmcTokenizer

from hf_perturb.checkpoints.network import ESM1B
from support.any_models import MODELS, any_model, noised
from support.embedding import draw

LETTERS = "LAGVESIKRDTPNQFYMHCWXUBZO"


def wordpiece(letters: str = LETTERS) -> BertTokenizer:
    """Return a tokenizer such as ProtBERT's: a word is a residue, so they need blanks."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]))
        return BertTokenizer(str(path), do_lower_case=False)


def unigram(more: Iterable[str] = (), letters: str = LETTERS) -> T5Tokenizer:
    """Return a tokenizer such as ProtT5's: SentencePiece, whose pieces begin words, so residues need blanks."""
    pieces = [*(f"▁{letter}" for letter in letters), *more]
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -2.0) for piece in pieces)]
    return T5Tokenizer(vocab=scores, extra_ids=100)


def prefixed() -> T5Tokenizer:
    """Return a tokenizer such as ProstT5's, with a token that says what follows."""
    tokenizer = unigram()
    tokenizer.add_tokens(["<AA2fold>", "<fold2AA>"])
    return tokenizer


def write_letters(folder: Path) -> Path:
    """Write a tokenizer whose pieces are bare letters, and whose class puts the beginning of a word before them."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -2.0) for letter in LETTERS)]
    written = Tokenizer(Unigram(pieces, unk_id=2, byte_fallback=False))
    written.post_processor = TemplateProcessing(single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 1)])
    written.add_special_tokens(["<pad>", "</s>", "<unk>"])
    folder.mkdir()
    written.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**said, "extra_ids": 0}))
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    return folder


def characters() -> EsmTokenizer:
    """Return the tokenizer of Transformers' own ESM, which is written in Python and drops blanks."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("\n".join(ESM1B.tokens))
        return EsmTokenizer(str(path))


def merging() -> PreTrainedTokenizerFast:
    """Return a tokenizer such as ProtGPT2's: byte pairs, so a token is some residues."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(draw([200] * 40, seed=1), vocab_size=380, special_tokens=["<|endoftext|>"])
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, unk_token=end, bos_token=end, eos_token=end, padding_side="left"
    )


_SHORT = {"max_position_embeddings": 64}
_OFFSET = {"max_position_embeddings": 66, "pad_token_id": 1}  # of which 64 have a position
# by name: that of `any_models`, whether with a head, what is changed in its configuration, and its tokenizer
ENCODERS: dict[str, tuple[str, bool, dict[str, Any], Any]] = {
    "bert": ("bert", False, _SHORT, wordpiece),
    "bert-lm": ("bert", True, _SHORT, wordpiece),
    "albert": ("albert", False, _SHORT, wordpiece),
    "roberta": ("roberta", False, _OFFSET, EsmcTokenizer),
    "esm": ("esm2", True, {**_OFFSET, "position_embedding_type": "absolute", "token_dropout": True}, characters),
    "esmc": ("esmc", False, {}, EsmcTokenizer),
    "t5-encoder": ("t5_encoder", False, {}, unigram),
    "t5": ("t5", True, {}, prefixed),
    "bart": ("bart", False, _SHORT, wordpiece),
    "gpt2": ("gpt2", True, {"n_positions": 64}, merging),
    "llama": ("llama", True, {}, EsmcTokenizer),
    "qwen3_moe": ("qwen3_moe", False, {}, EsmcTokenizer),
    "mamba": ("mamba", False, {}, EsmcTokenizer),
    "convbert": ("bert", False, _SHORT, wordpiece),  # its configuration, for a network that padding changes
}


def encoder(name: str, **more: Any) -> tuple[Any, Any]:
    """Return a small model whose every weight is a draw of its own, as if trained, and its tokenizer."""
    kind, head, changes, make = ENCODERS[name]
    tokenizer = make()
    sizes = {"vocab_size": max(len(tokenizer), 50), **changes, **more}
    if name != "convbert":
        return any_model(kind, head, change=noised, **sizes), tokenizer
    torch.manual_seed(0)
    model = ConvBertModel(ConvBertConfig(**{**MODELS[kind][2], "embedding_size": 32, **sizes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noised(parameter)
    return model, tokenizer


def write_encoder(path: Path, name: str, **more: Any) -> Path:
    """Write such a model and its tokenizer to a folder."""
    model, tokenizer = encoder(name, **more)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
