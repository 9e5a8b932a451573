"""Passes over the keys in what a call really does, operation by operation.

The call runs once, with a number of keys that is found in no other length; every operation that touches
something derived from the keys is seen. A fused softmax kernel goes over the keys once; torch's
own softmax needs the row's maximum and then its sum before it can divide.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from regardant.core.errors import require

aten = torch.ops.aten

WHOLE_ROWS = {aten._softmax: 2, aten._log_softmax: 2, aten.logsumexp: 1, aten.sort: 1, aten.argsort: 1}
"""Operations that need a row as a whole, how often, before they give anything."""


@dataclass(frozen=True)
class Traced:
    """What a call did over the keys."""

    passes: int
    """Traversals of the keys that any order of this arithmetic needs."""
    reads: float
    """How often each element of the keys themselves was read."""
    kept: int
    """The most elements along the keys, made on the way, that were alive at once."""


def trace(call: Callable[[Tensor, Tensor, Tensor], Any], q: Tensor, k: Tensor, v: Tensor) -> Traced:
    """What `call(q, k, v)` does over the keys: q [b, h, m, d], k and v [b, h, n, …].

    No other length may be a multiple of n, so that what has the keys' rank is told by its shape.
    """
    keys = k.shape[2]
    others = {size for tensor in (q, k, v) for size in tensor.shape} - {keys}
    require(
        keys > 1 and q.shape[2] != keys and all(size % keys for size in others),
        f"k holds {keys} keys, but other lengths are {sorted(others)} and {q.shape[2]} queries: "
        "take a prime number of keys that is none of them",
    )
    watch = _Watch(keys, k, v)
    with torch.no_grad(), watch:
        call(q, k, v)
    return Traced(watch.passes, watch.reads / k.numel(), watch.most)


class _Watch(TorchDispatchMode):
    def __init__(self, keys: int, k: Tensor, v: Tensor):
        super().__init__()
        self.keys = keys
        self.passes, self.reads = 0, 0
        self.alive, self.most = 0, 0
        self.stage = WeakIdKeyDictionary()
        """What is derived from the keys: the whole traversals that must have ended before it is there."""
        self.stage[k], self.stage[v] = 0, 0
        self.given = {tensor.untyped_storage()._cdata for tensor in (k, v)}
        self.source = k.untyped_storage()._cdata
        self.storages: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        tracked = [tensor for tensor in inputs if tensor in self.stage]
        result = func(*args, **kwargs)
        if not tracked:
            return result
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        before = max(self.stage[tensor] for tensor in tracked)
        along = any(self._is_along(tensor) for tensor in tracked)
        after = before + WHOLE_ROWS.get(func._overloadpacket, 0)
        if along and not func.is_view:
            self.passes = max(self.passes, after + 1)
            self.reads += sum(
                tensor.numel() for tensor in inputs if tensor.untyped_storage()._cdata == self.source
            )
        for tensor in made:
            ended = along and not self._is_along(tensor)
            self.stage[tensor] = max(self.stage.get(tensor, 0), after + ended)
            self._hold(tensor)
        return result

    def _is_along(self, tensor: Tensor) -> bool:
        return any(size and size % self.keys == 0 for size in tensor.shape)

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = key in self.storages and self.storages[key]() is not None
        if known or key in self.given or not self._is_along(tensor):
            return
        size = tensor.numel()

        def release(_: weakref.ref) -> None:
            self.alive -= size

        self.storages[key] = weakref.ref(storage, release)
        self.alive += size
        self.most = max(self.most, self.alive)
