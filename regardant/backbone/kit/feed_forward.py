"""Feed-forwards: what a block does to each position, of maps [b, h, w, c] or tokens [b, n, c]."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from regardant.backbone.kit.convolution import DepthwiseConvolution
from regardant.backbone.kit.field import Field
from regardant.core.product import Linear


class FeedForward(nn.Module):
    """W₂ φ(W₁ x): two layers, `hidden` wide between them."""

    def __init__(self, dim: int, hidden: int, *, activation: nn.Module | None = None, bias: bool = True):
        super().__init__()
        self.widen = Linear(dim, hidden, bias=bias)
        self.activation = nn.GELU() if activation is None else activation
        self.narrow = Linear(hidden, dim, bias=bias)

    def forward(self, x: Float[Tensor, "b *n c"]) -> Float[Tensor, "b *n c"]:
        return self.narrow(self.activation(self.widen(x)))

    def field(self, height: int, width: int) -> Field:
        return Field.itself((height, width))


class DepthwiseFeedForward(nn.Module):
    """W₂ φ(DW(W₁ x)): the hidden channels look at their neighbours (Wang et al., PVT v2). Maps only."""

    def __init__(self, dim: int, hidden: int, *, kernel: int = 3, activation: nn.Module | None = None):
        super().__init__()
        self.widen = Linear(dim, hidden)
        self.convolution = DepthwiseConvolution(hidden, kernel)
        self.activation = nn.GELU() if activation is None else activation
        self.narrow = Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        return self.narrow(self.activation(self.convolution(self.widen(x))))

    def field(self, height: int, width: int) -> Field:
        return self.convolution.field(height, width)


class GatedConvolution(nn.Module):
    """W₂ (φ(DW(a)) ∘ b), (a, b) = W₁ x: a gate that sees its neighbours (Shi, TransNeXt). Maps only."""

    def __init__(self, dim: int, hidden: int, *, kernel: int = 3, activation: nn.Module | None = None):
        super().__init__()
        self.widen = Linear(dim, 2 * hidden)
        self.convolution = DepthwiseConvolution(hidden, kernel)
        self.activation = nn.GELU() if activation is None else activation
        self.narrow = Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        gate, value = self.widen(x).chunk(2, dim=-1)
        return self.narrow(self.activation(self.convolution(gate)) * value)

    def field(self, height: int, width: int) -> Field:
        return self.convolution.field(height, width)
