"""Folders of small models of Transformers, stored as people store them, and what a perturbation makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from hf_perturb.checkpoints.any_network import DerivedTable
from hf_perturb.checkpoints.of_torch import tensor_of
from hf_perturb.checkpoints.skeleton import Skeleton
from hf_perturb.perturbation import make_plan
from hf_perturb.perturbation.floats import array_of

_ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 33,
    "max_position_embeddings": 32,
}
_DECODER = {**_ENCODER, "num_key_value_heads": 1, "head_dim": 8}
_CODER = {"d_model": 16, "vocab_size": 40}
_T5 = {**_CODER, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 2}
_BART = {
    f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in {"attention_heads": 2, "ffn_dim": 24}.items()
}
_SPEECH = {"conv_dim": (8, 8), "conv_stride": (2, 2), "conv_kernel": (3, 3), "num_feat_extract_layers": 2}
_IMAGES = {"image_size": 16, "patch_size": 8}

# by name: the class that is stored, and its configuration
KINDS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: tf.BertForMaskedLM(tf.BertConfig(**_ENCODER)),
    "bert-trunk": lambda: tf.BertModel(tf.BertConfig(**_ENCODER)),
    "bert-pretraining": lambda: tf.BertForPreTraining(tf.BertConfig(**_ENCODER)),
    "albert": lambda: tf.AlbertForMaskedLM(tf.AlbertConfig(**_ENCODER, embedding_size=8)),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=40, n_positions=32)),
    "t5": lambda: tf.T5ForConditionalGeneration(tf.T5Config(**_T5)),
    "bart": lambda: tf.BartForConditionalGeneration(
        tf.BartConfig(**_CODER, **_BART, encoder_layers=2, decoder_layers=3, max_position_embeddings=32)
    ),
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_DECODER)),
    "qwen3-moe": lambda: tf.Qwen3MoeForCausalLM(
        tf.Qwen3MoeConfig(**_DECODER, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12)
    ),
    "mixtral": lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**_DECODER, num_local_experts=3)),
    "mamba": lambda: tf.MambaForCausalLM(
        tf.MambaConfig(hidden_size=16, num_hidden_layers=3, vocab_size=40, state_size=4)
    ),
    "vit": lambda: tf.ViTForImageClassification(tf.ViTConfig(**_ENCODER, **_IMAGES)),
    "clip": lambda: tf.CLIPModel(
        tf.CLIPConfig(
            text_config={**_ENCODER, "projection_dim": 8},
            vision_config={**_ENCODER, **_IMAGES, "num_hidden_layers": 2},
            projection_dim=8,
        )
    ),
    "wav2vec2": lambda: tf.Wav2Vec2ForCTC(
        tf.Wav2Vec2Config(**_ENCODER, **_SPEECH, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)
    ),
    "esm": lambda: tf.EsmForMaskedLM(
        tf.EsmConfig(**_ENCODER, pad_token_id=1, mask_token_id=32, position_embedding_type="rotary", token_dropout=True)
    ),
}


def trained(kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return a small model of which no tensor is as it was initialised."""
    torch.manual_seed(0)
    model = KINDS[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 20)
    return model.to(dtype)


def stored(kind: str, folder: Path, dtype: torch.dtype = torch.float32, **how: object) -> PreTrainedModel:
    """Save such a model, and return it."""
    model = trained(kind, dtype)
    model.save_pretrained(folder, **how)
    return model


def restored(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], **config) -> None:
    """Change the tensors of a folder by their names, and what its `config.json` says."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, **config}))


def loaded(folder: Path, model_class: type[PreTrainedModel]) -> dict[str, torch.Tensor]:
    """Return what stock Transformers loads; nothing may be missing, nor left over."""
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.state_dict()


def made_in_memory(model: PreTrainedModel, perturbation) -> dict[str, torch.Tensor]:
    """Return the tensors of a model by a perturbation: the same plan, on what the model holds."""
    skeleton = Skeleton.of(model)
    table = DerivedTable(model.config.model_type, (), skeletons=(skeleton,))
    state = model.state_dict()
    shapes = {
        name: tuple(tensor.shape) for name, tensor in state.items() if skeleton.canonical(name) not in skeleton.tied
    }
    made = dict(state)
    for step in make_plan(table, shapes, perturbation).steps:
        old = array_of(state[step.name])
        made[step.name] = tensor_of(step.run(old if step.reads else None, old.dtype))
    for name, source in skeleton.tied.items():
        made[skeleton.stored(name)] = made[skeleton.stored(source)]
    return made
