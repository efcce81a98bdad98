"""The contract's section 4, read a second time and on its own: every test of the rules compares with this reading.

Nothing here comes from `hf_perturb/perturbation`, and whoever changes a rule has to change it twice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection

import torch

import hf_perturb
from support import draws

KEEP = None
XAVIER_QKV = ("xavier_uniform", {"gain": 1 / math.sqrt(2)})
XAVIER = ("xavier_uniform", {"gain": 1.0})
XAVIER_NORMAL = ("xavier_normal", {})
KAIMING = ("kaiming_uniform", {})
FAN_IN = ("uniform", {})  # the bound is that of the weight beside the bias
ONE = ("constant", {"value": 1.0})
ZERO = ("constant", {"value": 0.0})
NORMAL = ("normal", {})
NORMAL_PADDED = ("normal", {"zero_row": 1})
NORMAL_MASKED = ("normal", {"zero_row": 28})

ESM = {
    r"embed_positions\._float_tensor": KEEP,
    r"layers\.\d+\.self_attn\.rot_emb\.inv_freq": KEEP,
    r"classifier\..+": KEEP,
    r"layers\.\d+\.self_attn\.[qkv]_proj\.weight": XAVIER_QKV,
    r"layers\.\d+\.self_attn\.[qkv]_proj\.bias": FAN_IN,
    r"layers\.\d+\.self_attn\.out_proj\.weight": XAVIER,
    r"layers\.\d+\.self_attn\.out_proj\.bias": ZERO,
    r"layers\.\d+\.self_attn\.bias_[kv]": XAVIER_NORMAL,
    r"layers\.\d+\.(self_attn|final)_layer_norm\.weight": ONE,
    r"layers\.\d+\.(self_attn|final)_layer_norm\.bias": ZERO,
    r"emb_layer_norm_(before|after)\.weight": ONE,
    r"emb_layer_norm_(before|after)\.bias": ZERO,
    r"layers\.\d+\.fc[12]\.weight": KAIMING,
    r"layers\.\d+\.fc[12]\.bias": FAN_IN,
    r"contact_head\.regression\.weight": KAIMING,
    r"contact_head\.regression\.bias": FAN_IN,
    r"embed_positions\.weight": NORMAL_PADDED,
    r"lm_head\.weight": XAVIER,
    r"lm_head\.bias": ZERO,
    r"lm_head\.layer_norm\.weight": ONE,
    r"lm_head\.layer_norm\.bias": ZERO,
    r"lm_head\.dense\.weight": KAIMING,
    r"lm_head\.dense\.bias": FAN_IN,
}
CARP = {
    r"classifier\..+": KEEP,
    r"model\.embedder\.layers\.\d+\.(conv|sequence[12]\.2\.conv)\.weight": KAIMING,
    r"model\.embedder\.layers\.\d+\.(conv|sequence[12]\.2\.conv)\.bias": FAN_IN,
    r"model\.embedder\.layers\.\d+\.sequence(1\.0|1\.3|2\.0)\.weight": ONE,
    r"model\.embedder\.layers\.\d+\.sequence(1\.0|1\.3|2\.0)\.bias": ZERO,
}
TABLES = {"fair_esm": ESM, "carp": CARP}
# what the rules keep, and `also` names: the part, and the initialiser of the original constructor
ALSO = {
    "fair_esm": {
        r"embed_tokens\.weight": ("embeddings", NORMAL_PADDED),
        r"embed_out|embed_out_bias": ("head", ZERO),
    },
    "carp": {
        r"model\.embedder\.embedder\.weight": ("embeddings", NORMAL_MASKED),
        r"model\.embedder\.up_embedder\.conv\.weight": ("embeddings", KAIMING),
        r"model\.embedder\.up_embedder\.conv\.bias": ("embeddings", FAN_IN),
        r"model\.decoder\.conv\.weight": ("head", KAIMING),
        r"model\.decoder\.conv\.bias": ("head", FAN_IN),
        r"model\.last_norm\.weight": ("head", ONE),
        r"model\.last_norm\.bias": ("head", ZERO),
    },
}
PARTS = ("embeddings", "head")
DEFAULT_AXIS = {"fair_esm": "embedding", "carp": "all"}

# rules "published", where they differ: left as it was, or drawn in another way
PUBLISHED = {
    "fair_esm": {
        r".*layer_norm.*|.*\.bias_[kv]|lm_head\.bias": KEEP,
        r"embed_positions\.weight": NORMAL,
    },
    "carp": {},
}


def part_of(family: str, name: str) -> str | None:
    """Return what `also` names a tensor by, `None` where it does not."""
    parts = [part for pattern, (part, _) in ALSO[family].items() if re.fullmatch(pattern, name)]
    return parts[0] if parts else None


def rule(family: str, name: str, rules: str = "documented", also: Collection[str] = ()):
    """Return `(kernel, arguments)` of a tensor, or `None` for one that is kept."""
    if rules == "published":
        for pattern, initialiser in PUBLISHED[family].items():
            if re.fullmatch(pattern, name):
                return initialiser
    table = {pattern: found if found[0] in also else ("", KEEP) for pattern, found in ALSO[family].items()}
    table |= {pattern: ("", initialiser) for pattern, initialiser in TABLES[family].items()}
    ((_, found),) = [found for pattern, found in table.items() if re.fullmatch(pattern, name)]
    return found


def distribution(family: str, name: str, shapes: dict[str, tuple[int, ...]], also: Collection[str] = ()):
    """Return what the values of a drawn tensor follow: `("constant" | "uniform" | "normal", parameter)`."""
    kernel, arguments = rule(family, name, also=also)
    if kernel in ("constant", "normal"):
        return kernel, arguments.get("value", 1.0)
    if kernel == "uniform":
        return "uniform", draws.fan_in_bound(shapes[name.removesuffix("bias") + "weight"])
    if kernel == "xavier_normal":
        return "normal", draws.xavier_std(shapes[name])
    if kernel == "xavier_uniform":
        return "uniform", draws.xavier_bound(shapes[name], **arguments)
    return "uniform", draws.kaiming_bound(shapes[name])


def _esm1(layers: int, hidden_size: int, heads: int, feed_forward: int):
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden_size, "num_attention_heads": heads}
    return hf_perturb.FairEsmConfig(model_version="ESM-1", intermediate_size=feed_forward, **sizes)


def _carp(layers: int, hidden_size: int, slim: bool = True):
    return hf_perturb.CarpConfig(num_hidden_layers=layers, hidden_size=hidden_size, slim=slim)


# the eight documented networks at full size, and how many parameters their names promise
DOCUMENTED = {
    "esm1_t6_43M_UR50S": (lambda: _esm1(6, 768, 12, 3072), 43e6),
    "esm1_t12_85M_UR50S": (lambda: _esm1(12, 768, 12, 3072), 85e6),
    "esm1_t34_670M_UR50S": (lambda: _esm1(34, 1280, 20, 5120), 670e6),
    "esm1b_t33_650M_UR50S": (hf_perturb.FairEsmConfig, 650e6),
    "carp_600k": (lambda: _carp(16, 128), 600e3),
    "carp_38M": (lambda: _carp(16, 1024), 38e6),
    "carp_76M": (lambda: _carp(32, 1024), 76e6),
    "carp_640M": (lambda: _carp(56, 1280, slim=False), 640e6),
}


def shapes_of(model) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter and stored buffer, by name."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def copied(model) -> dict[str, torch.Tensor]:
    """Return a model's tensors as they are now; they do not follow the model."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    """Return the names whose tensors are not the same to the bit."""
    assert one.keys() == other.keys()
    return {name for name in one if not same_bits(one[name], other[name])}


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal to the bit: unlike `torch.equal`, 0 is not -0 and a NaN is itself."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(*(tensor.contiguous().view(-1).view(torch.uint8) for tensor in (one, other)))
