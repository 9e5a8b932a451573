"""Small networks of cross-attention alone: what is asked meets a memory in every layer.

The counterpart of `regardant.train.model`, for layers that look from one sequence into another. A block's
only way from one query to another is the mixer itself, so that it is the mixer that is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.record import Record

Factory = Callable[[], nn.Module]


class CrossBlock(nn.Module):
    """x + mixer(norm(x), memory), then x + mlp(norm(x))."""

    def __init__(self, mixer: nn.Module, dim: int, *, expansion: int = 4):
        super().__init__()
        self.mixer, self.mixer_norm = mixer, nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, expansion * dim), nn.GELU(), nn.Linear(expansion * dim, dim)
        )

    def forward(
        self, x: Float[Tensor, "b n c"], memory: Float[Tensor, "b m c"], *, record: Record | None = None
    ) -> Float[Tensor, "b n c"]:
        x = x + self.mixer(self.mixer_norm(x), memory, record=record)
        return x + self.mlp(x)


class CrossTrunk(nn.Module):
    """Learned positions on both sides, blocks, and a last norm; the memory is normed once."""

    def __init__(
        self, mixers: Sequence[Factory], dim: int, *, asked: int, memory: int | None, expansion: int = 4
    ):
        super().__init__()
        require(len(mixers) >= 1, "mixers is empty, but a network has at least one layer")
        self.asked_at = nn.Parameter(0.02 * torch.randn(asked, dim))
        self.memory_at = None if memory is None else nn.Parameter(0.02 * torch.randn(memory, dim))
        self.memory_norm, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(CrossBlock(make(), dim, expansion=expansion) for make in mixers)

    def forward(
        self, x: Float[Tensor, "#b n c"], memory: Float[Tensor, "b m c"], *, record: Record | None = None
    ) -> Float[Tensor, "b n c"]:
        x = (x + self.asked_at[: x.shape[1]]).expand(len(memory), -1, -1)
        if self.memory_at is not None:
            memory = memory + self.memory_at[: memory.shape[1]]
        memory = self.memory_norm(memory)
        for block in self.blocks:
            x = block(x, memory, record=record)
        return self.norm(x)


class SetModel(nn.Module):
    """A set of vectors [b, m, features] → the answers to fixed questions [b, asked, outputs]."""

    def __init__(self, features: int, outputs: int, mixers: Sequence[Factory], *, dim: int, asked: int):
        super().__init__()
        self.embedding = nn.Sequential(nn.Linear(features, dim), nn.GELU(), nn.Linear(dim, dim))
        self.trunk = CrossTrunk(mixers, dim, asked=asked, memory=None)
        self.head = nn.Linear(dim, outputs)

    def forward(
        self, x: Float[Tensor, "b m features"], *, record: Record | None = None
    ) -> Float[Tensor, "b asked outputs"]:
        memory = self.embedding(x)
        return self.head(self.trunk(memory.new_zeros(1, len(self.trunk.asked_at), 1), memory, record=record))


class Translator(nn.Module):
    """Tokens, the first `memory` of them the memory and the rest what was said so far → logits over what is
    said next [b, n - memory, vocabulary]. The mixers must be causal."""

    def __init__(self, vocabulary: int, mixers: Sequence[Factory], *, dim: int, memory: int, length: int):
        super().__init__()
        self.memory = memory
        self.embedding = nn.Embedding(vocabulary, dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.trunk = CrossTrunk(mixers, dim, asked=length, memory=memory)
        self.head = nn.Linear(dim, vocabulary, bias=False)

    def forward(
        self, tokens: Int[Tensor, "b n"], *, record: Record | None = None
    ) -> Float[Tensor, "b said vocabulary"]:
        require(
            tokens.shape[1] > self.memory,
            f"tokens are {tokens.shape[1]} long, but the memory alone takes {self.memory}",
        )
        memory, said = self.embedding(tokens).tensor_split([self.memory], dim=1)
        return self.head(self.trunk(said, memory, record=record))
