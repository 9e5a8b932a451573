"""NATTEN's kernels for neighbourhood attention, where that package is installed.

Nothing falls back: what NATTEN cannot do is refused in one sentence.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from jaxtyping import Float
from torch import Tensor

from regardant.core.errors import require
from regardant.core.grid_pattern import Neighborhood


def require_natten() -> None:
    """Refuse where the package is missing."""
    require(
        find_spec("natten") is not None,
        "form is 'natten', but the package natten is not installed: install it, or choose 'fused'",
    )


def attend_natten(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b g n d"], v: Float[Tensor, "b g n e"],
    near: Neighborhood, *, scale: float | None,
) -> Float[Tensor, "b h n e"]:  # fmt: skip
    """Softmax over the neighbourhood and nothing else, by the kernel for its number of axes."""
    require_natten()
    size, kernel, dilation, is_causal = near.bound, *zip(*(axis[1:] for axis in near.axes))
    require(len(size) <= 3, f"the map has {len(size)} axes, but natten has kernels for 1, 2 and 3")
    fits = all(each * step <= length for each, step, length in zip(kernel, dilation, size))
    require(
        fits,
        f"kernel={kernel} with dilation={dilation} is longer than the map of {size}: natten has no such case",
    )
    require(q.shape[-1] == v.shape[-1], f"v is {v.shape[-1]} wide, but natten wants it as wide as q")
    times = q.shape[1] // k.shape[1]
    k, v = (x if times == 1 else x.repeat_interleave(times, dim=1) for x in (k, v))
    attend = getattr(import_module("natten"), f"na{len(size)}d")
    q, k, v = (x.transpose(1, 2).unflatten(1, size).contiguous() for x in (q, k, v))
    out = attend(
        q, k, v, kernel_size=kernel, dilation=dilation, is_causal=is_causal,
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
    )  # fmt: skip
    return out.flatten(1, -3).transpose(1, 2)
