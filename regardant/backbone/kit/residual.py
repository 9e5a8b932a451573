"""Residual branches: x + scale · drop(branch(norm(x))), and how the parts of a backbone are called."""

from __future__ import annotations

import inspect
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.backbone.kit.convolution import absorbing, absorbs
from regardant.backbone.kit.field import Field, field_of
from regardant.core.errors import require
from regardant.core.record import Record


@cache
def _takes(maker: type, word: str) -> bool:
    return word in inspect.signature(maker.forward).parameters


def call(part: nn.Module, x: Tensor, *, record: Record | None = None, plainly: bool = False) -> Tensor:
    """What a part makes of x: its `forward`, or its `reference` where it is to be done plainly and has one.

    The record goes to those that take it, and `plainly` to those that are made of parts themselves.
    """
    if _takes(type(part), "plainly"):
        return part(x, record=record, plainly=plainly)
    if plainly and hasattr(part, "reference"):
        return part.reference(x)
    return part(x, record=record) if _takes(type(part), "record") else part(x)


class InTurn(nn.Sequential):
    """Parts one behind the other, like `nn.Sequential`, with record and plainness handed on.

    In eval mode a layer absorbs the batch norm behind it, where its weights are fewer than the numbers of
    the map: one pass over the map less.
    """

    channels_last = True
    """What gates ask of the network that they are put into."""

    def forward(self, x: Tensor, *, record: Record | None = None, plainly: bool = False) -> Tensor:
        parts = list(self)
        while parts:
            part = parts.pop(0)
            if parts and not plainly and absorbs(part, parts[0], x):
                x = absorbing(part, parts.pop(0), x)
            else:
                x = call(part, x, record=record, plainly=plainly)
        return x


class DropPath(nn.Module):
    """While training, drops whole samples of a branch and scales up the others (Huang et al.)."""

    def __init__(self, rate: float = 0.0):
        super().__init__()
        require(0 <= rate < 1, f"drop_path is {rate}, but it is a probability below 1")
        self.rate = rate

    def forward(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        if not self.training or self.rate == 0:
            return x
        kept = torch.empty(len(x), *(1,) * (x.ndim - 1), dtype=x.dtype, device=x.device)
        return x * kept.bernoulli_(1 - self.rate).div_(1 - self.rate)


class Residual(nn.Module):
    """x + scale · drop(branch(norm(x))).

    `scale` is where a learned number a channel begins (LayerScale); none unless given. `shortcut` is what x
    goes through on its own way, where the branch changes its shape.
    """

    def __init__(
        self, branch: nn.Module, dim: int, *, norm: nn.Module | None = None, drop_path: float = 0.0,
        scale: float | None = None, shortcut: nn.Module | None = None,
    ):  # fmt: skip
        super().__init__()
        self.norm = nn.Identity() if norm is None else norm
        self.branch, self.shortcut = branch, nn.Identity() if shortcut is None else shortcut
        self.scale = None if scale is None else nn.Parameter(torch.full((dim,), scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, *, record: Record | None = None, plainly: bool = False) -> Tensor:
        return self._join(x, call(self.branch, self.norm(x), record=record, plainly=plainly))

    def first(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b 1 c"]:
        """What `forward` makes of the first token, by a branch that can say it of that one alone."""
        return self._join(x[:, :1], self.branch.first(self.norm(x)))

    def _join(self, x: Tensor, heard: Tensor) -> Tensor:
        heard = heard if self.scale is None else heard * self.scale
        return self.shortcut(x) + self.drop_path(heard)

    def field(self, height: int, width: int) -> Field:
        own = field_of(self.norm, height, width).then(field_of(self.branch, height, width))
        return own.beside(field_of(self.shortcut, height, width))
