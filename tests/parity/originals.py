"""The original packages behind one small interface: what every parity test compares with."""

from __future__ import annotations

import random
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from esm.data import Alphabet
from esm.model.esm1 import ProteinBertModel
from esm.model.esm2 import ESM2
from sequence_models.collaters import SimpleCollater
from sequence_models.constants import MASK, PROTEIN_ALPHABET
from sequence_models.convolutional import ByteNetLM
from sequence_models.pretrained import CARP
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

import hf_perturb


@dataclass(frozen=True)
class Tolerance:
    """How far two fp32 values of order 1 may be apart."""

    absolute: float = 1e-5


TOLERANCE = Tolerance()
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
# the last is what ESM-1b's learned positions allow: 1024 tokens, two of them special
LENGTHS = (1, 2, 7, 100, 1022)
ATTENTIONS = ("eager", "sdpa")


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, what: str) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE.absolute, msg=lambda text: f"{what}: {text}")


def draw_sequences(lengths: Iterable[int], mask: str | None = None) -> list[str]:
    """Draw sequences; with a mask token, it hides 15% of the residues of each, and at least one."""
    draw = random.Random(0)
    sequences = []
    for length in lengths:
        residues = draw.choices(RESIDUES, k=length)
        for place in draw.sample(range(length), max(1, length * 15 // 100)) if mask else ():
            residues[place] = mask
        sequences.append("".join(residues))
    return sequences


@dataclass(frozen=True)
class Pair:
    """An original module, and the configuration of ours that should be the same network.

    `tokenize` is the original's own way from sequences to a right-padded batch, `represent` from such a batch to the
    representations 0 to n and the logits.
    """

    original: nn.Module
    config: PreTrainedConfig
    tokenize: Callable[[list[str]], torch.Tensor]
    represent: Callable[[nn.Module, torch.Tensor], tuple[list[torch.Tensor], torch.Tensor]]
    mask: str

    def model(self, attention: str | None = None) -> PreTrainedModel:
        """Build our masked language model with the original's weights."""
        model = (hf_perturb.CarpForMaskedLM if isinstance(self.original, CARP) else hf_perturb.FairEsmForMaskedLM)(
            type(self.config)(**self.config.to_dict(), attn_implementation=attention)
        )
        model.load_state_dict(self.original.state_dict(), strict=True)
        return model.eval()

    def batch(self, lengths: Iterable[int], masked: bool = False) -> torch.Tensor:
        return self.tokenize(draw_sequences(lengths, self.mask if masked else None))

    def outputs(self, input_ids: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        return self.represent(self.original, input_ids)


def _represent_fair_esm(original: nn.Module, input_ids: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    layers = range(original.num_layers + 1)
    result = original(input_ids, repr_layers=layers)
    return [result["representations"][i] for i in layers], result["logits"]


def _represent_carp(original: nn.Module, input_ids: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    layers = range(len(original.model.embedder.layers) + 1)
    result = original(input_ids, repr_layers=list(layers), logits=True)
    # layer 0 is not among the representations but beside them
    return [result[0], *(result["representations"][i] for i in layers[1:])], result["logits"]


def fair_esm(arch: str, embed_dim: int = 32, layers: int = 2, attention_heads: int = 2, **options: bool) -> Pair:
    """Build a fair-esm network; every published one has a feed-forward layer of 4 widths."""
    alphabet = Alphabet.from_architecture(arch)
    options = {"token_dropout": arch == "roberta_large", "emb_layer_norm_before": True, "final_bias": True} | options
    sizes = {"embed_dim": embed_dim, "layers": layers, "attention_heads": attention_heads}
    args = Namespace(arch=arch, ffn_embed_dim=4 * embed_dim, max_positions=1024, **sizes, **options)
    converter = alphabet.get_batch_converter()
    return Pair(
        original=ProteinBertModel(args, alphabet).eval(),
        config=hf_perturb.FairEsmConfig(
            model_version="ESM-1b" if arch == "roberta_large" else "ESM-1",
            hidden_size=embed_dim,
            num_hidden_layers=layers,
            num_attention_heads=attention_heads,
            intermediate_size=4 * embed_dim,
            **options,
        ),
        tokenize=lambda sequences: converter([("", sequence) for sequence in sequences])[2],
        represent=_represent_fair_esm,
        mask="<mask>",
    )


def esm2(embed_dim: int = 32, layers: int = 2, attention_heads: int = 2, token_dropout: bool = True) -> Pair:
    """Build an ESM-2, which takes its sizes as arguments."""
    alphabet = Alphabet.from_architecture("ESM-1b")
    converter = alphabet.get_batch_converter()
    return Pair(
        original=ESM2(layers, embed_dim, attention_heads, alphabet, token_dropout).eval(),
        config=hf_perturb.FairEsmConfig(
            model_version="ESM-2",
            hidden_size=embed_dim,
            num_hidden_layers=layers,
            num_attention_heads=attention_heads,
            intermediate_size=4 * embed_dim,
            token_dropout=token_dropout,
        ),
        tokenize=lambda sequences: converter([("", sequence) for sequence in sequences])[2],
        represent=_represent_fair_esm,
        mask="<mask>",
    )


def carp(d_model: int = 32, n_layers: int = 9, slim: bool = True, activation: str = "gelu", r: int = 128) -> Pair:
    """Build a sequence-models network as `sequence_models.pretrained.load_carp` does."""
    mask_idx = PROTEIN_ALPHABET.index(MASK)
    network = ByteNetLM(
        len(PROTEIN_ALPHABET), 8, d_model, n_layers, 5, r,
        padding_idx=mask_idx, final_ln=True, slim=slim, activation=activation,
    )  # fmt: skip
    collater = SimpleCollater(PROTEIN_ALPHABET, pad=True)
    return Pair(
        original=CARP(network).eval(),
        config=hf_perturb.CarpConfig(
            hidden_size=d_model, num_hidden_layers=n_layers, slim=slim, hidden_act=activation, max_dilation=r
        ),
        tokenize=lambda sequences: collater([[sequence] for sequence in sequences])[0],
        represent=_represent_carp,
        mask=MASK,
    )


FAIR_ESM = {
    "esm1": partial(fair_esm, "protein_bert_base"),
    "esm1b": partial(fair_esm, "roberta_large"),
    "esm1v": partial(fair_esm, "roberta_large", emb_layer_norm_before=False),
    "esm2": esm2,
}
CARPS = {
    "carp": carp,
    "carp_wide": partial(carp, slim=False),
    "carp_relu": partial(carp, activation="relu", r=4),
    "carp_wide_relu": partial(carp, slim=False, activation="relu", r=6),  # r need not be a power of two
}
TIED = ("esm1b", "esm1v", "esm2")


# so that what is compared is of order 1, which the tolerance is meant for
_SCALES = {
    "embed_tokens.weight": 0.2,  # logits
    "q_proj.weight": 3,  # attentions that differ from the mean, also over 1024 tokens
    "contact_head.regression.weight": 20,  # contacts that differ from 0.5
}


def small_pair(name: str, **options: bool) -> Pair:
    """Build a small network by name, every weight a draw of its own, as if trained."""
    torch.manual_seed(0)
    pair = {**FAIR_ESM, **CARPS}[name](**options)
    with torch.no_grad():
        for parameter_name, parameter in pair.original.named_parameters():
            for pattern, scale in _SCALES.items():
                parameter.mul_(scale if pattern in parameter_name else 1)
            parameter.add_(0.1 * torch.randn(parameter.shape))
        for buffer_name, buffer in pair.original.named_buffers():
            if buffer_name.endswith("_float_tensor"):
                buffer.zero_()  # fair-esm leaves it uninitialised, so it may be NaN
    return pair
