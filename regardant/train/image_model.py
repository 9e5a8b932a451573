"""Autoregressive models of images: every pixel from those before it in raster order."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn

from regardant.core.record import Record
from regardant.grid.axial_transformer import shift
from regardant.train.model import Factory, Trunk


class AxialImageModel(nn.Module):
    """Grey levels [b, h, w] → logits [b, h, w, levels], after Ho et al. (2019, arXiv 1912.12180).

    `outer` layers may look along whole rows, and down columns causally; their result is shifted down a
    row. `inner` layers look causally along rows, at that and at the image shifted right.
    """

    def __init__(
        self, levels: int, *, outer: Sequence[Factory], inner: Sequence[Factory], dim: int,
        size: tuple[int, int],
    ):  # fmt: skip
        super().__init__()
        self.embedding = nn.Embedding(levels, dim)
        self.outer = Trunk(outer, dim, size=size) if outer else None
        self.inner = Trunk(inner, dim, size=size)
        self.head = nn.Linear(dim, levels)

    def forward(
        self, image: Int[Tensor, "b h w"], *, record: Record | None = None
    ) -> Float[Tensor, "b h w levels"]:
        pixels = self.embedding(image)
        seen = shift(pixels, 2)
        if self.outer is not None:
            seen = seen + shift(self.outer(pixels, record=record), 1)
        return self.head(self.inner(seen, record=record))


class RasterImageModel(nn.Module):
    """The same with causal sequence mixers over all pixels in raster order."""

    def __init__(self, levels: int, mixers: Sequence[Factory], *, dim: int, size: tuple[int, int]):
        super().__init__()
        self.embedding = nn.Embedding(levels, dim)
        self.trunk = Trunk(mixers, dim, size=(size[0] * size[1],))
        self.head = nn.Linear(dim, levels)

    def forward(
        self, image: Int[Tensor, "b h w"], *, record: Record | None = None
    ) -> Float[Tensor, "b h w levels"]:
        before = shift(self.embedding(image.flatten(1)), 1)
        return self.head(self.trunk(before, record=record)).unflatten(1, image.shape[1:])
