"""Small pre-norm networks around any mixer: the same network, only the mixer differs.

A mixer is given as a factory, called once a layer: `[partial(create, "moh", dim=64, heads=4)] * 2`.
Different factories make a network of different layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.record import Record

Factory = Callable[[], nn.Module]


class Block(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)); channels last, on sequences and on maps alike.

    `expansion` is the MLP's hidden width in units of `dim`; 0 leaves the MLP out.
    """

    def __init__(self, mixer: nn.Module, dim: int, *, expansion: int = 4):
        super().__init__()
        require(expansion >= 0, f"expansion is {expansion}, but the MLP's width cannot be negative")
        self.mixer, self.mixer_norm = mixer, nn.LayerNorm(dim)
        self.records = "record" in inspect.signature(mixer.forward).parameters
        self.mlp = (
            nn.Sequential(
                nn.LayerNorm(dim), nn.Linear(dim, expansion * dim), nn.GELU(), nn.Linear(expansion * dim, dim)
            )
            if expansion
            else None
        )

    def forward(self, x: Float[Tensor, "b *n c"], *, record: Record | None = None) -> Float[Tensor, "b *n c"]:
        normed = self.mixer_norm(x)
        x = x + (self.mixer(normed, record=record) if self.records else self.mixer(normed))
        return x if self.mlp is None else x + self.mlp(x)


class Trunk(nn.Module):
    """Learned positions (where `size` is given), blocks, and a last norm. [b, n, c] or [b, h, w, c]."""

    def __init__(
        self, mixers: Sequence[Factory], dim: int, *, size: tuple[int, ...] | None = None, expansion: int = 4
    ):
        super().__init__()
        require(len(mixers) >= 1, "mixers is empty, but a network has at least one layer")
        self.positions = None if size is None else nn.Parameter(0.02 * torch.randn(*size, dim))
        self.blocks = nn.ModuleList(Block(make(), dim, expansion=expansion) for make in mixers)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "b *n c"], *, record: Record | None = None) -> Float[Tensor, "b *n c"]:
        if self.positions is not None:
            x = x + self._positions_of(x)
        for block in self.blocks:
            x = block(x, record=record)
        return self.norm(x)

    def _positions_of(self, x: Tensor) -> Tensor:
        size, room = x.shape[1:-1], self.positions.shape[:-1]
        require(
            len(size) == len(room) and all(wanted <= there for wanted, there in zip(size, room)),
            f"x is of size {list(size)}, but positions were learned for at most {list(room)}",
        )
        return self.positions[tuple(slice(wanted) for wanted in size)]


class TokenModel(nn.Module):
    """Tokens [b, n] → logits over the next token [b, n, vocabulary]. The mixers must be causal."""

    def __init__(
        self, vocabulary: int, mixers: Sequence[Factory], *, dim: int, length: int | None = None,
        expansion: int = 4,
    ):  # fmt: skip
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.trunk = Trunk(mixers, dim, size=None if length is None else (length,), expansion=expansion)
        self.head = nn.Linear(dim, vocabulary, bias=False)

    def forward(
        self, tokens: Int[Tensor, "b n"], *, record: Record | None = None
    ) -> Float[Tensor, "b n vocabulary"]:
        return self.head(self.trunk(self.embedding(tokens), record=record))


class VectorModel(nn.Module):
    """Vectors at positions → vectors at positions, [b, n, features] or [b, h, w, features] → [..., outputs]:
    forecasting with causal mixers, segmentation with grid mixers."""

    def __init__(
        self, features: int, outputs: int, mixers: Sequence[Factory], *, dim: int,
        size: tuple[int, ...] | None = None, expansion: int = 4,
    ):  # fmt: skip
        super().__init__()
        self.embedding = nn.Linear(features, dim)
        self.trunk = Trunk(mixers, dim, size=size, expansion=expansion)
        self.head = nn.Linear(dim, outputs)

    def forward(
        self, x: Float[Tensor, "b *n features"], *, record: Record | None = None
    ) -> Float[Tensor, "b *n outputs"]:
        return self.head(self.trunk(self.embedding(x), record=record))


class Classifier(VectorModel):
    """Vectors [b, n, features] → one class a sequence, read off at the last position: [b, outputs]."""

    def forward(
        self, x: Float[Tensor, "b n features"], *, record: Record | None = None
    ) -> Float[Tensor, "b outputs"]:
        return self.head(self.trunk(self.embedding(x), record=record)[:, -1])
