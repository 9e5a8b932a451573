"""Small pre-norm networks around any mixer: the same network, only the mixer differs.

A mixer is given as a factory, called once a layer: `[partial(create, "moh", dim=64, heads=4)] * 2`.
Different factories make a network of different layers.

With `parallel` the input is this rank's part of sequences that are split over ranks
(`regardant.parallel`), and so is the output.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.record import Record

if TYPE_CHECKING:
    from regardant.parallel.sequence_parallel import SequenceParallel

Factory = Callable[[], nn.Module]


class Block(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)); channels last, on sequences and on maps alike.

    `expansion` is the MLP's hidden width in units of `dim`, rounded to whole channels; 0 leaves the MLP out.
    """

    def __init__(self, mixer: nn.Module, dim: int, *, expansion: float = 4):
        super().__init__()
        hidden = round(expansion * dim)
        require(expansion >= 0, f"expansion is {expansion}, but the MLP's width cannot be negative")
        self.mixer, self.mixer_norm = mixer, nn.LayerNorm(dim)
        self.records = "record" in inspect.signature(mixer.forward).parameters
        self.mlp = (
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
            if hidden
            else None
        )

    def forward(
        self, x: Float[Tensor, "b *n c"], *, record: Record | None = None,
        parallel: SequenceParallel | None = None,
    ) -> Float[Tensor, "b *n c"]:  # fmt: skip
        normed = self.mixer_norm(x)
        if parallel is not None:
            x = x + parallel.mix(self.mixer, normed, record=record)
        else:
            x = x + (self.mixer(normed, record=record) if self.records else self.mixer(normed))
        return x if self.mlp is None else x + self.mlp(x)


class Trunk(nn.Module):
    """Learned positions (where `size` is given), blocks, and a last norm. [b, n, c] or [b, h, w, c]."""

    def __init__(
        self,
        mixers: Sequence[Factory],
        dim: int,
        *,
        size: tuple[int, ...] | None = None,
        expansion: float = 4,
    ):
        super().__init__()
        require(len(mixers) >= 1, "mixers is empty, but a network has at least one layer")
        self.positions = None if size is None else nn.Parameter(0.02 * torch.randn(*size, dim))
        self.blocks = nn.ModuleList(Block(make(), dim, expansion=expansion) for make in mixers)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, x: Float[Tensor, "b *n c"], *, record: Record | None = None,
        parallel: SequenceParallel | None = None,
    ) -> Float[Tensor, "b *n c"]:  # fmt: skip
        require(
            parallel is None or x.ndim == 3,
            f"x is {list(x.shape)}, but what is split over ranks is a sequence, [batch, length, width]",
        )
        if self.positions is not None:
            x = x + self._positions_of(x, parallel)
        if record is None and any(getattr(block.mixer, "needs_record", False) for block in self.blocks):
            record = Record()
        for block in self.blocks:
            x = block(x, record=record, parallel=parallel)
        return self.norm(x)

    def _positions_of(self, x: Tensor, parallel: SequenceParallel | None) -> Tensor:
        if parallel is not None:
            whole = x[:, :1].expand(-1, parallel.ranks * x.shape[1], -1)
            return parallel.cut(self._positions_of(whole, None), axis=0)
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
        expansion: float = 4,
    ):  # fmt: skip
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.trunk = Trunk(mixers, dim, size=None if length is None else (length,), expansion=expansion)
        self.head = nn.Linear(dim, vocabulary, bias=False)

    def forward(
        self, tokens: Int[Tensor, "b n"], *, record: Record | None = None,
        parallel: SequenceParallel | None = None,
    ) -> Float[Tensor, "b n vocabulary"]:  # fmt: skip
        return self.head(self.trunk(self.embedding(tokens), record=record, parallel=parallel))


class VectorModel(nn.Module):
    """Vectors at positions → vectors at positions, [b, n, features] or [b, h, w, features] → [..., outputs]:
    forecasting with causal mixers, segmentation with grid mixers."""

    def __init__(
        self, features: int, outputs: int, mixers: Sequence[Factory], *, dim: int,
        size: tuple[int, ...] | None = None, expansion: float = 4,
    ):  # fmt: skip
        super().__init__()
        self.embedding = nn.Linear(features, dim)
        self.trunk = Trunk(mixers, dim, size=size, expansion=expansion)
        self.head = nn.Linear(dim, outputs)

    def forward(
        self, x: Float[Tensor, "b *n features"], *, record: Record | None = None,
        parallel: SequenceParallel | None = None,
    ) -> Float[Tensor, "b *n outputs"]:  # fmt: skip
        return self.head(self.trunk(self.embedding(x), record=record, parallel=parallel))


class Classifier(VectorModel):
    """Vectors [b, n, features] → one class a sequence, read off at the last position: [b, outputs]."""

    def forward(
        self, x: Float[Tensor, "b n features"], *, record: Record | None = None
    ) -> Float[Tensor, "b outputs"]:
        return self.head(self.trunk(self.embedding(x), record=record)[:, -1])
