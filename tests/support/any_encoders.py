"""Small encoders of Transformers, and tokenizers that read proteins as published ones do."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tokenizers.models import Unigram
from tokenizers.processors import TemplateProcessing
from transformers import BertTokenizer, EsmTokenizer, PreTrainedTokenizerFast, T5Tokenizer
from transformers.models.esmc.tokenization_esmc import EsmcTokenizer

from hf_perturb.checkpoints.network import ESM1B
from support.embedding import draw

LETTERS = "LAGVESIKRDTPNQFYMHCWXUBZO"
_SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_heads": 2}
_BART = {
    "d_model": 16,
    **{
        f"{side}_{name}": number for side in ("encoder", "decoder") for name, number in (("layers", 3), ("ffn_dim", 24))
    },
    **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
}


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


def write_ankh(folder: Path) -> Path:
    """Write a tokenizer such as Ankh's, of whose pieces none begins a word, though its class thinks so."""
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


# by name: the class, its configuration, and its tokenizer
ENCODERS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "bert": ("BertModel", {**_SIZES, "max_position_embeddings": 64}, wordpiece),
    "bert-lm": ("BertForMaskedLM", {**_SIZES, "max_position_embeddings": 64}, wordpiece),
    "albert": ("AlbertModel", {**_SIZES, "embedding_size": 8, "max_position_embeddings": 64}, wordpiece),
    "roberta": ("RobertaModel", {**_SIZES, "max_position_embeddings": 66, "pad_token_id": 1}, EsmcTokenizer),
    "esm": (
        "EsmForMaskedLM",
        {**_SIZES, "max_position_embeddings": 66, "pad_token_id": 1, "mask_token_id": 32, "token_dropout": True},
        characters,
    ),
    "esmc": ("EsmcModel", _SIZES, EsmcTokenizer),
    "t5-encoder": ("T5EncoderModel", _T5, unigram),
    "t5": ("T5ForConditionalGeneration", _T5, prefixed),
    "bart": ("BartModel", {**_BART, "max_position_embeddings": 64}, wordpiece),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64}, merging),
    "llama": ("LlamaForCausalLM", _SIZES, EsmcTokenizer),
    "mamba": ("MambaModel", {"hidden_size": 16, "num_hidden_layers": 3, "state_size": 4}, EsmcTokenizer),
    "convbert": ("ConvBertModel", {**_SIZES, "embedding_size": 16, "max_position_embeddings": 64}, wordpiece),
}


def encoder(name: str, **more: Any) -> tuple[Any, Any]:
    """Return a small model whose every weight is a draw of its own, as if trained, and its tokenizer."""
    kind, sizes, make = ENCODERS[name]
    tokenizer = make()
    cls = getattr(transformers, kind)
    torch.manual_seed(0)
    model = cls(cls.config_class(**{"vocab_size": max(len(tokenizer), 40), **sizes, **more})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model, tokenizer


def write_encoder(path: Path, name: str, **more: Any) -> Path:
    """Write such a model and its tokenizer to a folder."""
    model, tokenizer = encoder(name, **more)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
