# Copyright 2026 The hf_perturb authors. MIT License: see the LICENSE file at the root of the repository.
"""What a `config.json` may say, as plain data: sizes of the networks with the originals' defaults, and other fields.

Both who runs a network and who only reads its files need them, so this file imports neither torch nor Transformers.
"""

import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

# some twenty times those of the largest published network or more: a file from elsewhere must not fill the memory
_LARGEST = {
    "num_hidden_layers": 1_000,
    "num_attention_heads": 4_096,
    "hidden_size": 131_072,
    "embedding_size": 131_072,
    "intermediate_size": 1_048_576,
    "vocab_size": 65_536,
    "max_position_embeddings": 16_777_216,
    "kernel_size": 4_096,
    "max_dilation": 16_777_216,
    "num_labels": 65_536,
}
_FRACTIONS = ("layer_norm_eps", "classifier_dropout")
# what the generation of an ESM decides; source: fair-esm's ProteinBertModel, ESM2 and Alphabet
_VERSIONS: dict[str, dict[str, Any]] = {
    "ESM-1": {
        "vocab_size": 35,
        "bos_token_id": 32,
        "eos_token_id": None,
        "mask_token_id": 33,
        "layer_norm_eps": 1e-12,
        "emb_layer_norm_before": True,
        "token_dropout": False,
        "tie_word_embeddings": False,
    },
    "ESM-1b": {
        "vocab_size": 33,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "mask_token_id": 32,
        "layer_norm_eps": 1e-5,
        "emb_layer_norm_before": True,
        "token_dropout": True,
        "tie_word_embeddings": True,
    },
}
_VERSIONS["ESM-2"] = {**_VERSIONS["ESM-1b"], "emb_layer_norm_before": False}

# of weights, as torch names them
_TYPES = ("float64", "float32", "float16", "bfloat16")
_PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")
_DEEPEST = 20  # levels of lists and objects; those of the deepest quantization_config are some six
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 80

# how the tensors of each family are named; what else a model has is a head on top, or somebody's own
NAMES = {
    "carp": r"model\.(embedder\.(embedder\.weight|(up_embedder\.conv|layers\.\d+\.(conv|sequence1\.[03]|sequence2\.0"
    r"|sequence[12]\.2\.conv))\.(weight|bias))|(decoder\.conv|last_norm)\.(weight|bias))",
    "fair_esm": r"embed_tokens\.weight|embed_positions\.(weight|_float_tensor)|embed_out(_bias)?"
    r"|layers\.\d+\.(self_attn\.(bias_[kv]|rot_emb\.inv_freq)"
    r"|(self_attn\.([kvq]|out)_proj|(self_attn|final)_layer_norm|fc[12])\.(weight|bias))"
    r"|(contact_head\.regression|emb_layer_norm_(before|after)|lm_head(\.dense|\.layer_norm)?)\.(weight|bias)",
}
FIRST = {"carp": "model.embedder.embedder.weight", "fair_esm": "embed_tokens.weight"}
# what only a whole language head has: a module of somebody's own may be called like one
_HEADS = ("model.decoder.conv.weight", "lm_head.dense.weight", "embed_out")
_HEAD = re.compile(r"(model\.(decoder|last_norm)|lm_head)\.|embed_out(_bias)?$")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_true_or_false(value: Any) -> bool:
    return isinstance(value, bool)


def _is_type(value: Any) -> bool:
    return (value if isinstance(value, str) else str(value).removeprefix("torch.")) in _TYPES


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _holds(is_value: Callable[[Any], bool], is_key: Callable[[Any], bool] = _is_text) -> Callable[[Any], bool]:
    """Return what tells whether a value is an object of such keys and values."""
    return lambda value: isinstance(value, dict) and all(map(is_key, value)) and all(map(is_value, value.values()))


_TEXT, _TRUE_OR_FALSE = ("a string", _is_text), ("true, false", _is_true_or_false)
_TYPE = (f"one of {', '.join(_TYPES)}", _is_type)
# every field that a network may have beside its sizes and its record, what is allowed, and whether a value is that;
# most are Transformers', of which the others are code to run, or for networks that are not ours
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "model_type": _TEXT,
    "architectures": ("a list of strings", lambda value: isinstance(value, list) and all(map(_is_text, value))),
    "auto_map": ("an object of strings", _holds(_is_text)),
    "dtype": _TYPE,
    "torch_dtype": _TYPE,
    "num_labels": ("an integer", _is_number),
    "id2label": ("an object of strings by number", _holds(_is_text, lambda key: str(key).isdecimal())),
    "label2id": ("an object of integers or strings", _holds(lambda value: _is_number(value) or _is_text(value))),
    "problem_type": (f"one of {', '.join(_PROBLEMS)}", lambda value: _is_text(value) and value in _PROBLEMS),
    "output_hidden_states": _TRUE_OR_FALSE,
    "output_attentions": _TRUE_OR_FALSE,
    "return_dict": _TRUE_OR_FALSE,
    "quantization_config": (
        "an object whose quant_method is a string",
        lambda value: isinstance(value, dict) and _is_text(value.get("quant_method", "")),
    ),
    "digest": _TEXT,
    "published_as": _TEXT,
    "packing": _TRUE_OR_FALSE,
    "torch_version": _TEXT,
    "transformers_version": _TEXT,
    "_name_or_path": _TEXT,
}
# what Transformers writes into some of its configurations, and none of our networks asks for
_WITHOUT_MEANING = {"use_cache", "chunk_size_feed_forward", "is_encoder_decoder"}


def read_fields(what: str, stored: Mapping[str, Any], own: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide the content of a `config.json` into what a network is told, and what nobody asks for.

    Args:
        what: whose fields they are, for messages.
        stored: the content.
        own: fields that the network's class checks itself, its sizes first.

    Returns:
        The fields that are known, without those of Transformers that are null; and the others.

    Raises:
        ValueError: if one that is known has a value of another kind; it names field, value and what is allowed.
    """
    known, others, own = {}, {}, {*own}
    for key, value in stored.items():
        if key in own or (key in _FIELDS and value is not None):
            _check_field(f"{what}.{key}", key, value)
            known[key] = value
        elif key not in _FIELDS and key not in _WITHOUT_MEANING:
            others[key] = value
    return known, others


def _check_field(what: str, key: str, value: Any) -> None:
    allowed, is_right = _FIELDS.get(key, ("", None))
    if not _is_shallow(value):
        allowed = f"at most {_DEEPEST} levels of lists and objects"
    elif value is None or is_right is None or is_right(value):
        return
    raise ValueError(f"{what}: got {_SHOWN.repr(value)}; allowed: {allowed}")


def _is_shallow(value: Any) -> bool:
    """Whether those who call themselves for each level of a value, to copy or to show it, come to an end."""
    level = [value]
    for _ in range(_DEEPEST):
        held = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [each for values in held for each in values]
    return not level


def check_size(what: str, name: str, value: Any) -> None:
    """Raise a `ValueError` if a size of `what` is one that no network has.

    Other fields are not looked at, and a value that is no number is left to the type checks.
    """
    largest = _LARGEST.get(name)
    if largest is not None and isinstance(value, int) and not 1 <= value <= largest:
        shown = value if abs(value) < 10**12 else f"a number of {value.bit_length()} bits"
        raise ValueError(f"{what}.{name}: got {shown}; allowed: an integer of at least 1 and at most {largest}")
    if name in _FRACTIONS and isinstance(value, float) and not 0 <= value <= 1:  # NaN among them
        raise ValueError(f"{what}.{name}: got {value}; allowed: a number from 0 to 1")


@dataclass
class CarpSizes:
    """The sizes of a CARP; the defaults are `carp_640M`. The fields are described in `CarpConfig`.

    Source: `sequence_models.pretrained.load_carp` (sequence-models 1.8.0).
    """

    model_type: ClassVar[str] = "carp"
    family: ClassVar[str] = "carp"  # also of a configuration that somebody derived, and calls by another type

    vocab_size: int = 30
    embedding_size: int = 8
    hidden_size: int = 1280
    num_hidden_layers: int = 56
    kernel_size: int = 5
    max_dilation: int = 128
    slim: bool = False
    hidden_act: Literal["gelu", "relu"] = "gelu"
    classifier_dropout: float = 0.0
    pad_token_id: int = 27
    mask_token_id: int = 28
    tie_word_embeddings: bool = False

    @property
    def block_size(self) -> int:
        """Channels inside a block (`d_h`)."""
        return self.hidden_size // 2 if self.slim else self.hidden_size

    @property
    def dilations(self) -> list[int]:
        """Dilation of every block. Source: `sequence_models.convolutional.ByteNet`."""
        return [2 ** (n % self.max_dilation.bit_length()) for n in range(self.num_hidden_layers)]

    def validate_architecture(self) -> None:
        """Raise if sizes do not go together; each alone is checked when it is set. Called by `@strict`."""
        for name in ("pad_token_id", "mask_token_id"):
            if not 0 <= (token := getattr(self, name)) < self.vocab_size:
                raise ValueError(f"CarpConfig.{name}: got {token}; allowed: an id from 0 to {self.vocab_size - 1}")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"CarpConfig.kernel_size: got {self.kernel_size}; allowed: an odd number of taps")
        if self.slim and self.hidden_size % 2:
            raise ValueError(f"CarpConfig.hidden_size: got {self.hidden_size}; a slim network needs an even number")


@dataclass
class FairEsmSizes:
    """The sizes of an ESM; the defaults are `esm1b_t33_650M_UR50S`. The fields are described in `FairEsmConfig`.

    A field that is `None` takes the value of its `model_version`.
    Source: `esm.model.esm1.ProteinBertModel` and `esm.model.esm2.ESM2` (fair-esm 2.0.0).
    """

    model_type: ClassVar[str] = "fair_esm"
    family: ClassVar[str] = "fair_esm"

    model_version: Literal["ESM-1", "ESM-1b", "ESM-2"] = "ESM-1b"
    vocab_size: int | None = None
    hidden_size: int = 1280
    num_hidden_layers: int = 33
    num_attention_heads: int = 20
    intermediate_size: int = 5120
    max_position_embeddings: int = 1026
    layer_norm_eps: float | None = None
    emb_layer_norm_before: bool | None = None
    token_dropout: bool | None = None
    final_bias: bool = True
    contact_head: bool = True
    classifier_dropout: float = 0.0
    pad_token_id: int = 1
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    mask_token_id: int | None = None
    tie_word_embeddings: bool | None = None

    def fill_from_version(self) -> None:
        """Give the fields that are `None` the values of the version."""
        for key, value in _VERSIONS.get(self.model_version, {}).items():
            if getattr(self, key) is None:
                setattr(self, key, value)

    @property
    def max_tokens(self) -> int | None:
        """Most tokens that a sequence may have, special tokens included; `None` for no limit."""
        if self.model_version != "ESM-1b":
            return None
        return self.max_position_embeddings - self.pad_token_id - 1

    def validate_architecture(self) -> None:
        """Raise if sizes do not go together; each alone is checked when it is set. Called by `@strict`."""
        for name in ("pad_token_id", "mask_token_id"):
            token, tokens = getattr(self, name), range(self.vocab_size or 0)
            if token not in tokens:
                raise ValueError(f"FairEsmConfig.{name}: got {token}; allowed: an id from 0 to {tokens[-1]}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"FairEsmConfig.hidden_size: got {self.hidden_size}; allowed: a multiple of num_attention_heads"
                f" ({self.num_attention_heads})"
            )
        if self.pad_token_id != 1:
            raise ValueError(f"FairEsmConfig.pad_token_id: got {self.pad_token_id}; allowed: 1, as in every alphabet")
        if self.model_version == "ESM-2" and self.hidden_size // self.num_attention_heads % 2:
            raise ValueError(
                f"FairEsmConfig.hidden_size: got {self.hidden_size}; rotary positions need heads of an even width"
            )
        if self.model_version == "ESM-2" and self.emb_layer_norm_before:
            raise ValueError("FairEsmConfig.emb_layer_norm_before: got True; ESM-2 does not norm its embeddings")
        if self.model_version == "ESM-1" and self.hidden_size < 4:
            raise ValueError(f"FairEsmConfig.hidden_size: got {self.hidden_size}; sinusoidal positions need at least 4")
        if self.model_version == "ESM-1" and self.tie_word_embeddings:
            raise ValueError("FairEsmConfig.tie_word_embeddings: got True; ESM-1 has an output projection of its own")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(
                f"FairEsmConfig.max_position_embeddings: got {self.max_position_embeddings}; allowed: at least 3"
            )


def is_of_network(family: str, name: str) -> bool:
    """Whether a tensor is called as one of a network of a family, with however many layers; no head on top is.

    Of a network that is none of ours every tensor is.
    """
    return family not in NAMES or re.fullmatch(NAMES[family], name) is not None


def tensors_of_network(family: str, names: Iterable[str]) -> list[str]:
    """Return those of the names that are a network's, among others."""
    found = [name for name in names if is_of_network(family, name)]
    return found if {*_HEADS} & {*found} else [name for name in found if not _HEAD.match(name)]


def places_of(family: str, names: Iterable[str]) -> list[str]:
    """Return what the names of a network's tensors may begin with in a file, the most likely first."""
    known, found = re.compile(NAMES[family]), Counter[str]()
    for name in names:
        ends = [0, *(dot.end() for dot in re.finditer(r"\.", name))]
        found.update(name[:end] for end in ends if known.fullmatch(name, end))
    return [place for place, _ in found.most_common()] or [""]
