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
from support.any_models import MODELS, any_config, any_model, noised

_MAMBA2 = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 50, "num_heads": 4, "head_dim": 16, "state_size": 8}


def _musicgen() -> tf.MusicgenConfig:
    decoder = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64, "vocab_size": 50}
    codec = {"num_filters": 4, "hidden_size": 16, "codebook_size": 8, "num_lstm_layers": 1, "codebook_dim": 16}
    parts = {
        "text_encoder": {"model_type": "t5", **MODELS["t5"][2]},
        "audio_encoder": {"model_type": "encodec", **codec},
    }
    return tf.MusicgenConfig(decoder={"model_type": "musicgen_decoder", **decoder}, **parts)


# beside those of `any_models`, by name: the class that is stored, and its configuration
OTHERS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert_trunk": lambda: any_model("bert"),
    "bert_pretraining": lambda: tf.BertForPreTraining(any_config("bert")),
    # its configuration has an infinity, which JSON has no number for
    "mamba2": lambda: tf.Mamba2Model(tf.Mamba2Config(**_MAMBA2)),
    # which does not store its positions
    "marian": lambda: tf.MarianMTModel(tf.MarianConfig(**MODELS["bart"][2], pad_token_id=0, decoder_start_token_id=0)),
    # its trunk cannot be built of the configuration of the whole
    "musicgen": lambda: tf.MusicgenForConditionalGeneration(_musicgen()),
    "mixtral": lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**MODELS["llama"][2], num_local_experts=3)),
}


def trained(kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return a small model of which no tensor is as it was initialised."""
    if kind in MODELS:
        return any_model(kind, head=True, change=noised).to(dtype)
    torch.manual_seed(0)
    model = OTHERS[kind]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in (model._keys_to_ignore_on_save or ()):  # which nobody trains
                noised(parameter)
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
