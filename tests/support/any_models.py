"""Small networks of Transformers' own architectures, by a name each."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers
from transformers import PreTrainedModel

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_TEXT = {**_SIZES, "vocab_size": 50}
_ENDS = {"bos_token_id": 1, "eos_token_id": 2}
_GROUPED = {**_TEXT, "num_key_value_heads": 2, "head_dim": 8}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 50}
_VISION = {**_SIZES, "image_size": 32, "patch_size": 8}
_BART = {
    "d_model": 32,
    "vocab_size": 50,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "max_position_embeddings": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
_CLIP = {"text_config": {**_TEXT, **_ENDS}, "vision_config": _VISION, "projection_dim": 16}
_CONVOLUTIONS = {"conv_dim": (32, 32), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_conv_pos_embeddings": 16}
_WAV2VEC2 = {**_SIZES, **_CONVOLUTIONS, "num_conv_pos_embedding_groups": 4, "vocab_size": 50}
# the trunk, a class with a head, the configuration; the shapes of ProtT5, ProtBERT, ProtGPT2 and so on, but small
MODELS: dict[str, tuple[str, str, dict[str, object]]] = {
    "esmc": ("EsmcModel", "EsmcForMaskedLM", {**_SIZES, "vocab_size": 64}),
    "t5": ("T5Model", "T5ForConditionalGeneration", _T5),
    "t5_encoder": ("T5EncoderModel", "T5ForTokenClassification", {**_T5, "feed_forward_proj": "gated-gelu"}),
    "bert": ("BertModel", "BertForMaskedLM", _TEXT),
    "albert": ("AlbertModel", "AlbertForMaskedLM", {**_TEXT, "embedding_size": 16}),
    "roberta": ("RobertaModel", "RobertaForMaskedLM", _TEXT),
    "gpt2": ("GPT2Model", "GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, **_ENDS}),
    "llama": ("LlamaModel", "LlamaForCausalLM", _GROUPED),
    "qwen3": ("Qwen3Model", "Qwen3ForCausalLM", _GROUPED),
    "qwen3_moe": (
        *("Qwen3MoeModel", "Qwen3MoeForCausalLM"),
        {**_GROUPED, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2},
    ),
    "mamba": ("MambaModel", "MambaForCausalLM", {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 50}),
    "vit": ("ViTModel", "ViTForImageClassification", _VISION),
    "clip": ("CLIPModel", "CLIPForImageClassification", _CLIP),
    "wav2vec2": ("Wav2Vec2Model", "Wav2Vec2ForCTC", _WAV2VEC2),
    "bart": ("BartModel", "BartForConditionalGeneration", _BART),
    "esm2": (
        *("EsmModel", "EsmForMaskedLM"),
        {**_SIZES, "vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32, "position_embedding_type": "rotary"},
    ),
}


def any_class(name: str, head: bool = False) -> type[PreTrainedModel]:
    """Return the class of a network, with its head if asked for."""
    return getattr(transformers, MODELS[name][head])


def any_config(name: str, **changes: object) -> transformers.PreTrainedConfig:
    """Return the configuration of a network."""
    return any_class(name).config_class(**{**MODELS[name][2], **changes})


def any_model(name: str, head: bool = False, seed: int = 0, change: Callable[..., object] | None = None, **changes):
    """Return a network as its constructor makes it, then changed: "trained", if every parameter is given noise."""
    torch.manual_seed(seed)
    model = any_class(name, head)(any_config(name, **changes)).eval()
    if change is not None:
        with torch.no_grad():
            for parameter in model.parameters():
                change(parameter)
    return model


def noised(parameter: torch.Tensor) -> None:
    """Change every value a little, as training does."""
    parameter.add_(0.1 * torch.randn(parameter.shape))
