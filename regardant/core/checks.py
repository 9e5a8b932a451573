"""What a mixer says to inputs and configurations that do not fit it: one sentence each."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regardant.core.errors import require
from regardant.core.pattern import Pattern

if TYPE_CHECKING:
    from regardant.core.mixer import MultiHead


@cache
def computes_in(device_type: str, dtype: torch.dtype) -> bool:
    """Whether a device multiplies matrices of this type at all."""
    try:
        one = torch.ones(2, 2, device=device_type, dtype=dtype)
        torch.softmax(one @ one, dim=-1)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def under_autocast(device_type: str) -> bool:
    """Whether types are autocast's business here, and not the caller's."""
    return _has_autocast(device_type) and torch.is_autocast_enabled(device_type)


_has_autocast = cache(torch.amp.is_autocast_available)


def check_input(name: str, x: Tensor, axes: str, width: int, weight: Tensor) -> None:
    """Rank, width and type of an input, held against the weight that will meet it."""
    count = axes.count(", ") + 1
    if x.ndim == count and x.shape[-1] == width and x.dtype == weight.dtype == torch.float32:
        return  # before sentences are made that nobody will read
    require(x.ndim == count, f"{name} has shape {tuple(x.shape)}, but it is [{axes}]")
    require(x.shape[-1] == width, f"{name} has width {x.shape[-1]}, but this layer was made for {width}")
    if under_autocast(x.device.type):
        return
    require(x.dtype == weight.dtype, f"{name} is {x.dtype}, but this layer's weights are {weight.dtype}")
    require(
        computes_in(x.device.type, x.dtype),
        f"{name} is {x.dtype}, which {x.device.type} does not compute in: use float32 or bfloat16",
    )


def check_heads(dim: int, heads: int, kv_heads: int | None, head_dim: int | None) -> None:
    require(dim >= 1, f"dim is {dim}, but a layer is at least 1 wide")
    require(heads >= 1, f"heads is {heads}, but there is at least 1")
    require(
        head_dim is not None or dim % heads == 0,
        f"dim={dim} does not divide into heads={heads}: make it a multiple, or give head_dim",
    )
    require(
        kv_heads is None or (kv_heads >= 1 and heads % kv_heads == 0),
        f"kv_heads={kv_heads} does not divide heads={heads}",
    )


def check_configuration(layer: MultiHead) -> None:
    """The use, the pattern, the sharing of keys and the position, held against what the class supports."""
    name, supports, across = type(layer).__name__, layer.supports, layer.context_dim is not None
    use = (
        ("causal_cross" if layer.causal else "cross")
        if across
        else ("causal" if layer.causal else "noncausal")
    )
    words = use.replace("_", " ") + ("" if across else " self") + "-attention"
    require(
        getattr(supports, use),
        f"causal={layer.causal} with context_dim={layer.context_dim}: {name} has no {words}",
    )
    require(
        layer.pattern is None or isinstance(layer.pattern, Pattern),
        f"pattern is {layer.pattern!r}, but it is a Pattern, such as Window(256)",
    )
    require(
        layer.pattern is None or supports.pattern,
        f"pattern is {layer.pattern}, but {name} takes no pattern: it chooses its own keys",
    )
    require(
        layer.kv_heads == layer.heads or supports.grouped,
        f"kv_heads={layer.kv_heads} is not heads={layer.heads}, but {name} shares no keys among heads",
    )
    require(
        not (across and layer.position.relates),
        f"position is {type(layer.position).__name__}, which relates positions of one sequence, "
        f"but context_dim={layer.context_dim} makes a layer across two",
    )


def check_attention(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Shapes and types of the operands of attention: q [b, h, m, d], k [b, g, n, d], v [b, g, n, e]."""
    if q.ndim == k.ndim == v.ndim == 4 and q.shape == k.shape == v.shape and q.dtype == k.dtype == v.dtype:
        return  # before any sentence is put together
    for name, x in (("q", q), ("k", k), ("v", v)):
        require(x.ndim == 4, f"{name} is {list(x.shape)}, but it is [batch, heads, length, width]")
    require(
        k.shape[:3] == v.shape[:3] and q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3],
        f"q is {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)}: batches, widths of q and k, and "
        "heads and lengths of k and v must agree",
    )
    require(
        q.shape[1] % k.shape[1] == 0,
        f"q has {q.shape[1]} heads and k {k.shape[1]}, but the heads of k must divide those of q",
    )
    require(q.dtype == k.dtype == v.dtype, f"q is {q.dtype}, k {k.dtype} and v {v.dtype}: they must be one")
