"""Small models of Transformers whose every weight is a draw of its own, as if trained."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from transformers import (
    BertConfig,
    CLIPConfig,
    GPT2Config,
    MambaConfig,
    Qwen3MoeConfig,
    T5Config,
    ViTConfig,
    Wav2Vec2Config,
)

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_CONFIGS = {
    "bert": lambda: BertConfig(**_SIZES, vocab_size=40, max_position_embeddings=64),
    "t5": lambda: T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=40),
    "gpt2": lambda: GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=40, n_positions=64),
    "qwen3_moe": lambda: Qwen3MoeConfig(
        **_SIZES,
        vocab_size=40,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        moe_intermediate_size=16,
        num_experts_per_tok=2,
    ),
    "mamba": lambda: MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=40, state_size=4),
    "vit": lambda: ViTConfig(**_SIZES, image_size=16, patch_size=8),
    "clip": lambda: CLIPConfig(
        text_config={**_SIZES, "vocab_size": 40, "max_position_embeddings": 64},
        vision_config={**_SIZES, "image_size": 16, "patch_size": 8},
        projection_dim=16,
    ),
    "wav2vec2": lambda: Wav2Vec2Config(
        **_SIZES,
        conv_dim=(16, 16),
        conv_kernel=(3, 3),
        conv_stride=(2, 2),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    ),
}
_NAMES = {
    "bert": "BertForMaskedLM",
    "t5": "T5ForConditionalGeneration",
    "gpt2": "GPT2LMHeadModel",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "mamba": "MambaModel",
    "vit": "ViTForImageClassification",
    "clip": "CLIPModel",
    "wav2vec2": "Wav2Vec2ForCTC",
}
CLASSES = {kind: getattr(transformers, name) for kind, name in _NAMES.items()}
TOKENS = torch.tensor([[3, 4, 5, 6]])


def live(kind: str, trained: bool = True):
    """Return a small model, with noise on every weight if it is to look trained."""
    torch.manual_seed(0)
    model = CLASSES[kind](_CONFIGS[kind]()).eval()
    if trained:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def saved(kind: str, folder: Path) -> Path:
    live(kind).save_pretrained(folder)
    return folder


def copied(model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def differing(one, other) -> list[str]:
    """Return the names whose tensors differ by a bit, or that only one has."""
    assert one.keys() == other.keys()
    return [name for name in one if one[name].dtype != other[name].dtype or not torch.equal(one[name], other[name])]
