"""The network that all systems of a comparison are trained in, with as many parameters for each.

Tokens or vectors are embedded and, along a sequence, pass a short causal convolution, so that each knows the
two before it: as in the comparisons of Arora et al. (Zoology, 2023), no layer spends itself on that. Then
come pre-norm blocks around the mixers, and a linear readout at every position, at the last, or of the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.record import Record
from regardant.core.short_convolution import ShortConvolution
from regardant.train.model import Factory, Trunk

TAPS = 3
"""Of the convolution along a sequence."""

EXPANSION = 2.0
"""The width of the baseline's MLPs in units of the model's."""

TOLERANCE = 0.02
"""How far numbers of parameters may lie apart."""


class SmallModel(nn.Module):
    """Tokens [b, n] (with `vocabulary`), vectors [b, n, features] or images [b, features, h, w] → outputs.

    `read` is where: "each" position, the "last" one (a single output is one number a sample), or the "mean".
    """

    def __init__(
        self, mixers: Sequence[Factory], *, dim: int, outputs: int, read: Literal["each", "last", "mean"],
        vocabulary: int | None = None, features: int | None = None, size: tuple[int, ...] | None = None,
        expansion: float = EXPANSION,
    ):  # fmt: skip
        super().__init__()
        self.read, self.images = read, read == "mean"
        if vocabulary is None:
            self.embedding: nn.Module = nn.Linear(features, dim)
        else:
            self.embedding = nn.Embedding(vocabulary, dim)
            nn.init.normal_(self.embedding.weight, std=0.02)
        self.convolution = None if self.images else ShortConvolution(dim, TAPS, causal=True)
        self.trunk = Trunk(mixers, dim, size=size, expansion=expansion)
        self.head = nn.Linear(dim, outputs, bias=vocabulary is None)
        if self.convolution is not None:
            nn.init.normal_(self.convolution.weight, std=TAPS**-0.5)

    def forward(self, x: Tensor, *, record: Record | None = None) -> Tensor:
        x = self.embedding(x.movedim(1, -1) if self.images else x)
        if self.convolution is not None:
            x = x + self.convolution(x)
        x = self.trunk(x, record=record)
        if self.read == "each":
            return self.head(x)
        found = self.head(x[:, -1] if self.read == "last" else x.flatten(1, -2).mean(dim=1))
        return found[:, 0] if found.shape[-1] == 1 else found


class Flattened(nn.Module):
    """A sequence mixer on maps: all positions in raster order."""

    def __init__(self, mixer: nn.Module):
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Float[Tensor, "b *n c"], *, record: Record | None = None) -> Float[Tensor, "b *n c"]:
        return self.mixer(x.flatten(1, -2)).unflatten(1, x.shape[1:-1])


def parameters(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


def expansion_for(make: Callable[[float], nn.Module], dim: int, wanted: int, *, name: str) -> float:
    """The MLPs' width, in units of `dim`, with which a model has so many parameters to 2 %."""
    one, two = (parameters(make(hidden / dim)) for hidden in (1, 2))
    hidden = 1 + round((wanted - one) / (two - one))
    found = one + (hidden - 1) * (two - one)
    require(
        hidden >= 1 and abs(found - wanted) <= TOLERANCE * wanted,
        f"{name} has {one:,} parameters with the narrowest MLPs, but every model has {wanted:,}",
    )
    return hidden / dim
