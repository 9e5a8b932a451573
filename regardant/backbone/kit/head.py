"""Heads: from the last map [b, h, w, c], or from tokens [b, n, c], to the logits [b, classes]."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn


class PooledHead(nn.Module):
    """The mean over all positions, normed before or after it, and a linear layer.

    `hidden` puts a layer and its activation (`tanh`) between them, as MaxViT has it.
    """

    def __init__(
        self, dim: int, classes: int, *, norm: nn.Module | None = None,
        normed: Literal["before", "after"] = "after", hidden: int | None = None,
    ):  # fmt: skip
        super().__init__()
        self.norm, self.normed = nn.Identity() if norm is None else norm, normed
        self.hidden = nn.Identity() if hidden is None else nn.Sequential(nn.Linear(dim, hidden), nn.Tanh())
        self.classify = nn.Linear(dim if hidden is None else hidden, classes)

    def forward(self, x: Float[Tensor, "b *n c"]) -> Float[Tensor, "b classes"]:
        axes = tuple(range(1, x.ndim - 1))
        pooled = self.norm(x).mean(dim=axes) if self.normed == "before" else self.norm(x.mean(dim=axes))
        return self.classify(self.hidden(pooled))
