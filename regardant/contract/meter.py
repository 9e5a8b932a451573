"""Counts work and memory, the same on every run: no clock is involved.

Work is the number of floating-point operations in matrix products and convolutions plus the number
of elements that every other operation reads and writes. Memory is the largest number of bytes that
were alive at once among the tensors made inside.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from math import log, prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


def _attention_flops(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, times: float) -> int:
    flops = 2 * prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])
    return int(times * flops / (2 if causal else 1))


def _forward_flops(q, k, v, dropout=0.0, causal=False, **_: Any) -> int:
    return _attention_flops(q, k, v, causal=causal, times=1)


def _backward_flops(_, q, k, v, out, logsumexp, dropout, causal, **__: Any) -> int:
    return _attention_flops(q, k, v, causal=causal, times=2.5)


FUSED: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _forward_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward_flops,
}
"""Fused attention that torch's own table of operations leaves out."""
LOOKUPS = {aten.index, aten.index_select, aten.gather, aten.embedding, aten.take}
"""Operations that read no more of their source than they give out."""
WRITES = {
    aten.index_put_,
    aten.scatter_,
    aten.scatter_add_,
    aten.index_add_,
    aten.index_copy_,
    aten.scatter_reduce_,
}
"""Operations that touch no more of their target than they are given."""
FREE = {aten.empty, aten.empty_like, aten.new_empty, aten.empty_strided, aten.new_empty_strided, aten.detach}


class Meter(TorchDispatchMode):
    """Counts while it is entered: `work`, and `peak` in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.work = 0
        self.alive = 0
        self.peak = 0
        self._storages: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = {leaf.untyped_storage()._cdata for leaf in given}
        result = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.work += self._work(func, args, kwargs, result, given, made)
        for tensor in made:
            self._hold(tensor, known)
        return result

    @staticmethod
    def _work(func, args, kwargs, result, given: list[Tensor], made: list[Tensor]) -> int:
        packet = func._overloadpacket
        if func.is_view or packet in FREE:
            return 0
        if packet in FUSED:
            return FUSED[packet](*args, **kwargs)
        work = sum(map(_touched, made))
        if packet in WRITES:
            return 2 * sum(map(_touched, given[1:]))
        if packet in LOOKUPS:
            return 2 * work
        work += sum(map(_touched, given))
        if packet in flop_registry:
            work += flop_registry[packet](*args, **kwargs, out_val=result)
        return work

    def _hold(self, tensor: Tensor, known: set[int]) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in known or (key in self._storages and self._storages[key]() is not None):
            return
        size = storage.nbytes()

        def release(_: weakref.ref) -> None:
            self.alive -= size

        self._storages[key] = weakref.ref(storage, release)
        self.alive += size
        self.peak = max(self.peak, self.alive)


def _touched(tensor: Tensor) -> int:
    """The elements of a tensor, each once: an expanded axis is read, not walked."""
    return prod(size for size, stride in zip(tensor.shape, tensor.stride()) if stride != 0)


def exponent(small: float, large: float, times: float) -> float:
    """How something grew when its cause grew `times` as large: 1 is in proportion, 2 its square."""
    return log(max(large, 1.0) / max(small, 1.0)) / log(times)
