"""Padding where it is all that there is to a pattern: of rules in which every query sees every key."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.pattern import Pattern, split_padding


def padding_alone(rule: nn.Module, pattern: Pattern | None) -> Bool[Tensor, "#b n"] | None:
    """The padding mask, or None; any other pattern is refused."""
    rest, real = split_padding(pattern)
    require(rest is None, f"pattern is {rest}, but {type(rule).__name__} sees every key, padding apart")
    return None if real is None else real.reshape(-1, real.shape[-1])
