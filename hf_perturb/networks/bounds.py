# Copyright 2026 The hf_perturb authors. All rights reserved.
#
# Licensed under the MIT License: see the LICENSE file at the root of the repository.
"""The sizes that a configuration may state: a file from elsewhere must not fill the memory or take the day.

Each is some twenty times that of the largest published network or more.
"""

from typing import Any

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


def refuse_size(what: str, name: str, value: Any) -> None:
    """Refuse a size that no network has.

    Args:
        what: the configuration class, for the message.
        name: of the size; any other field is not looked at.
        value: what is stated; one that is no integer is left to the type checks.

    Raises:
        ValueError: naming the field and what is allowed.
    """
    largest = _LARGEST.get(name)
    if largest is not None and isinstance(value, int) and not 1 <= value <= largest:
        shown = value if abs(value) < 10**12 else f"a number of {value.bit_length()} bits"
        raise ValueError(f"{what}.{name}: got {shown}; allowed: an integer of at least 1 and at most {largest}")
