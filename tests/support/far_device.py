"""A device that is not there: its tensors say they are on it, the CPU computes, and what is asked of it is counted."""

from __future__ import annotations

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

aten = torch.ops.aten
# values, or sizes that depend on values: whoever asks waits until all that was asked for before is done
_WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.unique_dim, aten._unique2}
# views, and what only looks at sizes
_FREE = {
    aten.view, aten._unsafe_view, aten.alias, aten.detach, aten.expand, aten.transpose, aten.permute, aten.select,
    aten.slice, aten.split, aten.split_with_sizes, aten.unbind, aten.unsqueeze, aten.squeeze, aten.t, aten.as_strided,
    aten.empty, aten.new_empty, aten._fused_sdp_choice,
}  # fmt: skip


class _There(torch.Tensor):
    """A tensor on the device; `here` has its values."""

    @staticmethod
    def __new__(cls, here, device):
        options = {"strides": here.stride(), "dtype": here.dtype, "device": device}
        return torch.Tensor._make_wrapper_subclass(cls, here.shape, **options)

    def __init__(self, here, device):
        self.here = here

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func}: this device works only while it is entered")


class FarDevice(TorchDispatchMode):
    """While it is entered there is a device, which counts `launches` and `waits` by operator.

    Its type is one that every build of PyTorch accepts, and takes for a device that has no kernels of its own.
    """

    def __init__(self):
        super().__init__()
        self.device = torch.device("lazy", 0)
        self.launches, self.waits = Counter(), Counter()

    def send(self, module):
        """Put the tensors of a module on the device."""
        return module._apply(lambda tensor: _There(tensor.detach(), self.device))

    def forget(self):
        """Count from here."""
        self.launches.clear()
        self.waits.clear()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, given = dict(kwargs or {}), {}

        def fetch(x):
            if isinstance(x, _There):
                given[id(x.here)] = x
                return x.here
            return x

        asked, kind = kwargs.get("device"), func.overloadpacket
        here, named = tree_map(fetch, (args, {**kwargs, **({} if asked is None else {"device": "cpu"})}))
        stays = bool(given) if asked is None else torch.device(asked).type == self.device.type
        # which looks whether its lengths are right, unless it is told not to
        waits = kind in _WAITS or (kind is aten.segment_reduce and not kwargs.get("unsafe"))
        if given and (waits or not stays):
            self.waits[kind.__name__] += 1
        elif stays and kind not in _FREE:
            self.launches[kind.__name__] += 1
        # attention in parts, not by a kernel that only this or that device has
        output = 0 if kind is aten._fused_sdp_choice and given else func(*here, **named)

        def bring(x):
            return given.get(id(x), _There(x, self.device)) if isinstance(x, torch.Tensor) else x

        return tree_map(bring, output) if stays else output
