"""`wrap`: a live original module becomes a model of this package over the same memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers.configuration_utils import PreTrainedConfig

from hf_perturb.checkpoints.origins.stock_esm import tensors_from_stock
from hf_perturb.errors import UnsupportedModuleError
from hf_perturb.loading.perturb import lines_and_digest, network_of
from hf_perturb.networks.configuration_carp import CarpConfig
from hf_perturb.networks.configuration_fair_esm import FairEsmConfig
from hf_perturb.networks.modeling_carp import CarpForMaskedLM
from hf_perturb.networks.modeling_fair_esm import FairEsmForMaskedLM
from hf_perturb.networks.perturbable import PerturbablePreTrainedModel
from hf_perturb.networks.seal import refuse_adapters


def wrap(module: nn.Module) -> PerturbablePreTrainedModel:
    """Make a masked language model of an original module, sharing its tensors.

    No weight is copied: a change of either changes both. A tied head stays tied until a perturbation names it, which
    gives the wrapper one of its own. The original is known by the name of its class, so no other package is imported.
    Dropout that a stock configuration asks for is left out: fair-esm's networks have none. A contact head that was
    never loaded (fair-esm's ESM-1v has none to load) is random, and looks like any other; `hf-perturb convert` knows.

    Args:
        module: an `esm.model.esm1.ProteinBertModel` (ESM-1, ESM-1b, ESM-1v), an `esm.model.esm2.ESM2`, a
            `sequence_models.pretrained.CARP`, or a `transformers.EsmForMaskedLM`.

    Returns:
        A `FairEsmForMaskedLM` or a `CarpForMaskedLM` in the same mode (training or evaluation), ready for `perturb`
        and `save_pretrained`.

    Raises:
        UnsupportedModuleError: a `TypeError`, for any other object, and for a network that is not quite an original.
    """
    refuse_adapters("wrap", module)
    for cls in type(module).__mro__:
        origin = (cls.__module__.partition(".")[0], cls.__name__)
        if origin in _CONFIGS:
            model = _empty_model(module, *_CONFIGS[origin])
            return _share(model, module, _tensors(model, module, origin))
    raise UnsupportedModuleError(
        f"wrap: got a {type(module).__module__}.{type(module).__qualname__}; allowed: fair-esm's ProteinBertModel"
        " (ESM-1, ESM-1b, ESM-1v) and ESM2, sequence-models' CARP, Transformers' EsmForMaskedLM; a checkpoint on disk"
        " needs no wrapping: hf-perturb convert, or from_pretrained(folder)"
    )


def _empty_model(
    module: nn.Module, model_class: type[PerturbablePreTrainedModel], read: Callable[[Any], PreTrainedConfig]
) -> PerturbablePreTrainedModel:
    try:
        config = read(module)
    except (AttributeError, IndexError, TypeError, ValueError, OSError, StrictDataclassError) as error:
        raise UnsupportedModuleError(
            f"wrap: this {type(module).__name__} is not built like an original of this family: {error}"
        ) from error
    return model_class.without_weights(config)


def _fair_esm_config(module: Any) -> FairEsmConfig:
    layer = module.layers[0]
    is_esm1 = module.model_version == "ESM-1"
    return FairEsmConfig(
        model_version=module.model_version,
        vocab_size=module.alphabet_size,
        hidden_size=layer.embed_dim,
        num_hidden_layers=len(module.layers),
        num_attention_heads=layer.attention_heads,
        intermediate_size=layer.ffn_embed_dim,
        max_position_embeddings=1026 if is_esm1 else module.embed_positions.num_embeddings,
        emb_layer_norm_before=bool(module.emb_layer_norm_before),
        token_dropout=bool(getattr(module.args, "token_dropout", False)),
        final_bias=not is_esm1 or module.embed_out_bias is not None,
        pad_token_id=module.padding_idx,
        mask_token_id=module.mask_idx,
        bos_token_id=module.cls_idx,
        eos_token_id=module.eos_idx if module.append_eos else None,
        tie_word_embeddings=not is_esm1 and module.lm_head.weight is module.embed_tokens.weight,
    )


def _esm2_config(module: Any) -> FairEsmConfig:
    return FairEsmConfig(
        model_version="ESM-2",
        vocab_size=module.alphabet_size,
        hidden_size=module.embed_dim,
        num_hidden_layers=module.num_layers,
        num_attention_heads=module.attention_heads,
        intermediate_size=module.layers[0].ffn_embed_dim,
        token_dropout=bool(module.token_dropout),
        pad_token_id=module.padding_idx,
        mask_token_id=module.mask_idx,
        bos_token_id=module.cls_idx,
        eos_token_id=module.eos_idx,
        tie_word_embeddings=module.lm_head.weight is module.embed_tokens.weight,
    )


def _stock_config(module: Any) -> FairEsmConfig:
    tied = module.lm_head.decoder.weight is module.esm.embeddings.word_embeddings.weight
    return FairEsmConfig(**{**FairEsmConfig.read_stored(module.config.to_dict()), "tie_word_embeddings": tied})


def _carp_config(module: Any) -> CarpConfig:
    trunk = module.model.embedder
    block = trunk.layers[0]
    hidden_size = trunk.up_embedder.conv.out_channels
    return CarpConfig(
        vocab_size=trunk.embedder.num_embeddings,
        embedding_size=trunk.embedder.embedding_dim,
        hidden_size=hidden_size,
        num_hidden_layers=len(trunk.layers),
        kernel_size=block.conv.kernel_size[0],
        max_dilation=max(layer.conv.dilation[0] for layer in trunk.layers),
        slim=block.conv.in_channels != hidden_size,
        hidden_act="relu" if isinstance(block.sequence1[1], nn.ReLU) else "gelu",
        pad_token_id=module.pad_idx,
        mask_token_id=trunk.embedder.padding_idx,
    )


_STOCK = ("transformers", "EsmForMaskedLM")
_CONFIGS: dict[tuple[str, str], tuple[type[PerturbablePreTrainedModel], Callable[[Any], PreTrainedConfig]]] = {
    ("esm", "ProteinBertModel"): (FairEsmForMaskedLM, _fair_esm_config),
    ("esm", "ESM2"): (FairEsmForMaskedLM, _esm2_config),
    ("sequence_models", "CARP"): (CarpForMaskedLM, _carp_config),
    _STOCK: (FairEsmForMaskedLM, _stock_config),
}


def _tensors(model: PerturbablePreTrainedModel, module: nn.Module, origin: tuple[str, str]) -> dict[str, torch.Tensor]:
    """Return parameters and stored buffers by our names; only rotary frequencies that layers share are copied."""
    stored = module.state_dict().keys()
    every = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    tensors = {name: tensor for name, tensor in every if name in stored}
    if origin != _STOCK:
        return tensors
    named, network = tensors_from_stock(tensors, network_of(model))
    model.config.contact_head = network.sizes.contact_head
    seen: set[int] = set()
    for name, tensor in named.items():
        if name.endswith("inv_freq") and id(tensor) in seen:
            named[name] = tensor.clone()
        seen.add(id(tensor))
    return named


def _share(
    model: PerturbablePreTrainedModel, module: nn.Module, tensors: dict[str, torch.Tensor]
) -> PerturbablePreTrainedModel:
    """Put the original's tensors in the places of ours."""
    theirs = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if theirs != ours:
        different = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
        raise UnsupportedModuleError(
            f"wrap: this {type(module).__name__} is not built like an original: {len(different)} tensors differ,"
            f" first {different[0]!r} (its shape {theirs.get(different[0])}, expected {ours.get(different[0])})"
        )
    for name, tensor in tensors.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, tensor)
    _tell(model)
    return model.train(module.training)


def _tell(model: PerturbablePreTrainedModel) -> None:
    """Say what the weights are: a stock configuration may bring a record, which its model need not have kept true."""
    record = model.config.perturbation
    if record is None or record.changed:
        model.told(record)
        return
    lines, digest = lines_and_digest(model)
    model.told(record, lines)
    model._is_empty = digest != record.digest  # trained, or cast: nobody can tell which
