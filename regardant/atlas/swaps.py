"""Our systems by name in the place of a pretrained model's attention, and which of them can stand there."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import nn

from regardant.atlas.catalog import bind, names, resolve
from regardant.edit.swap import Swapped, fit, refusal
from regardant.edit.swap import swap as put_in_place

HEADS, HEAD_DIM = 4, 16
"""Of the attention that `swappable` tries systems in."""


def swap(
    model: nn.Module, name: str | Callable[..., nn.Module], *, layers: Collection[int] | None = None,
    stack: str | None = None, **config: Any,
) -> Swapped:  # fmt: skip
    """Put the system of this name (or class of yours) in the place of the attention of these layers.

        swapped = regardant.swap(model, "softplus-attention-lssa", layers=range(8, 16), power=None)
        swapped.back()

    All layers without `layers`. The rule is a part of the model until `back()`: saved, loaded and trained
    with it. As a context manager it goes back at the end.
    """
    make = resolve(name) if isinstance(name, str) else name
    if isinstance(name, str) and refusal(make) is None:
        bind(name, make, dict(dim=0, heads=0) | config)
    return put_in_place(model, make, layers=layers, stack=stack, **config)


def swappable(*, causal: bool | None = None) -> dict[str, str | None]:
    """Every sequence system's name, and why it cannot be swapped in, found out by trying; None: it can.

    `causal` asks for models that write (True), that read both ways (False), or either (None).
    """
    return {name: _why_not(resolve(name), causal) for name in names("sequence")}


def _why_not(make: Any, causal: bool | None) -> str | None:
    why = refusal(make)
    if why is not None:
        return why
    reasons = []
    for order in (True, False) if causal is None else (causal,):
        try:
            fit(make, heads=HEADS, kv_heads=HEADS // 2, head_dim=HEAD_DIM, causal=order)
        except ValueError as error:
            reasons.append(str(error))
        else:
            return None
    return reasons[0]
