# Copyright 2026 The hf_perturb authors. All rights reserved.
#
# Licensed under the MIT License: see the LICENSE file at the root of the repository.
"""Dilated convolutions over sequences that lie one after another, as matrix multiplications on the CPU.

Beyond the ends of a sequence there are zeros, as `torch.nn.Conv1d` pads it.
"""

import torch

from .packing import Packing

# tokens whose neighbours are gathered at a time: few enough to stay in the cache
_GATHERED = 1024


def packed_convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, dilation: int, packing: Packing
) -> torch.Tensor:
    """Add up one product a tap and sequence, leaving out what a tap would see beyond the ends.

    With proteins of some hundred residues and dilations up to 128, that is a tenth of the work.

    Args:
        x: `(tokens, channels)`.
        weight: `(out, channels, taps)`, an odd number of taps.
        bias: `(out,)`.
        dilation: residues from tap to tap.
        packing: where the sequences are.

    Returns:
        `(tokens, out)`.
    """
    taps = weight.permute(2, 1, 0).contiguous()
    middle = len(taps) // 2
    mixed = torch.addmm(bias, x, taps[middle])
    for residues, result in zip(x.split(packing.lengths), mixed.split(packing.lengths), strict=True):
        for tap, matrix in enumerate(taps):
            shift = (tap - middle) * dilation
            if 0 < shift < len(residues):
                result[:-shift].addmm_(residues[shift:], matrix)
            elif 0 < -shift < len(residues):
                result[-shift:].addmm_(residues[:shift], matrix)
    return mixed


def gathered_convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, dilation: int, packing: Packing
) -> torch.Tensor:
    """Gather what the taps see and multiply once; the arguments are those of `packed_convolution`.

    For half types: there a sum over products would be rounded at each, and small products are slow.
    """
    taps = weight.permute(0, 2, 1).flatten(1)
    seen = packing.neighbours(weight.shape[-1], dilation)
    with_zeros = torch.nn.functional.pad(x, (0, 0, 0, 1))
    mixed = x.new_empty(len(x), len(weight))
    for part, result in zip(seen.split(_GATHERED), mixed.split(_GATHERED), strict=True):
        torch.addmm(bias, with_zeros[part].flatten(1), taps.t(), out=result)
    return mixed
