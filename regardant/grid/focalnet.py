"""Focal modulation (Yang et al., 2022, "Focal Modulation Networks", arXiv 2203.11926): contexts first,
then the query.

    q, z⁰, g = W x                                  g: a number a level and position, as it comes out
    zˡ = GELU(DW_k zˡ⁻¹)     l = 1 … L              each level sees farther: k = k₀, k₀ + 2, …
    zᴸ⁺¹ = GELU(mean of zᴸ over the map)
    m = Σ_l gˡ ∘ zˡ          y = W_o (q ∘ W_h m)

There is no softmax and there are no products of pairs: cost is linear in the positions. Large models take the
mean over levels for the sum (`averaged`), or norm q ∘ W_h m (`normed`). The sum over levels runs in float32
at least.

A record is told the "gates" [b, h, w, L + 1], and the "modulator" W_h m [b, h, w, c], whose length at each
position shows where the layer looks.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from regardant.core.depthwise import depthwise
from regardant.core.errors import require
from regardant.core.grid_mixer import GridMixer
from regardant.core.grid_position import on_channels_first
from regardant.core.supports import Supports


class FocalModulation(GridMixer):
    """Queries modulated by what `levels` of contexts hold; the first looks at `window` × `window`."""

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False,
        grouped=False, linear_in_values=False, time=1.0, memory=1.0, state=0.0,
    )  # fmt: skip

    def __init__(
        self, dim: int, *, levels: int = 2, window: int = 3, growth: int = 2, averaged: bool = False,
        normed: bool = False, bias: bool = True,
    ):  # fmt: skip
        super().__init__()
        require(dim >= 1, f"dim is {dim}, but a layer is at least 1 wide")
        require(levels >= 1, f"levels is {levels}, but there is at least 1")
        require(window >= 1 and window % 2 == 1, f"window is {window}, but it is odd, with a middle")
        require(
            growth >= 0 and growth % 2 == 0,
            f"growth is {growth}, but windows that grow by it stay odd if even",
        )
        self.dim, self.levels, self.averaged = dim, levels, averaged
        self.to_parts = nn.Linear(dim, 2 * dim + levels + 1, bias=bias)
        kernels = [window + growth * level for level in range(levels)]
        self.contexts = nn.ModuleList(
            nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=False) for kernel in kernels
        )
        self.to_modulator = nn.Linear(dim, dim, bias=bias)
        self.norm = nn.LayerNorm(dim) if normed else nn.Identity()
        self.to_out = nn.Linear(dim, dim)

    def parts(self, x: Float[Tensor, "b h w c"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, the context that the levels begin with, and the gates."""
        weight, bias = self.to_parts.weight, self.to_parts.bias
        self.check_map(x, weight)
        sizes = [self.dim, self.dim, self.levels + 1]
        biases = [None] * 3 if bias is None else bias.split(sizes)
        # Each by itself, so that convolutions find their map in one piece.
        q, context, gates = (F.linear(x, *own) for own in zip(weight.split(sizes), biases))
        return q, context, gates

    def gathered(
        self, context: Float[Tensor, "b h w c"], gates: Float[Tensor, "b h w levels"]
    ) -> Float[Tensor, "b h w c"]:
        """The levels, one made from the other, weighted by the gates and summed up."""
        gates = gates.to(torch.promote_types(gates.dtype, torch.float32))
        total = None
        for level, convolution in enumerate(self.contexts):
            context = F.gelu(self._convolved(convolution, context))
            gate = gates[..., level, None]
            total = context * gate if total is None else total.addcmul_(context, gate)
        everywhere = F.gelu(context.mean(dim=(1, 2), keepdim=True))
        return self._scaled(total.addcmul_(everywhere, gates[..., -1:])).to(context.dtype)

    @staticmethod
    def _convolved(convolution: nn.Conv2d, context: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        (padding, _), weight = convolution.padding, convolution.weight
        return on_channels_first(lambda each: depthwise(each, weight, padding=padding), context)

    def _scaled(self, total: Tensor) -> Tensor:
        return total / (self.levels + 1) if self.averaged else total

    def forward(self, x, *, record=None):
        q, context, gates = self.parts(x)
        modulator = self.to_modulator(self.gathered(context, gates))
        if record is not None:
            record.note("gates", gates)
            record.note("modulator", modulator)
        return self.to_out(self.norm(q * modulator))

    def reference(self, x):
        """Convolutions tap by tap, and the levels written out."""
        q, context, gates = self.parts(x)
        height, width = x.shape[1:3]
        levels = []
        for convolution in self.contexts:
            far = convolution.kernel_size[0] // 2
            wide = F.pad(context, (0, 0, far, far, far, far))
            taps = (
                wide[:, down : down + height, right : right + width] * convolution.weight[:, 0, down, right]
                for down in range(2 * far + 1)
                for right in range(2 * far + 1)
            )
            context = F.gelu(sum(taps))
            levels.append(context)
        levels.append(F.gelu(context.mean(dim=(1, 2), keepdim=True)).expand_as(context))
        total = torch.einsum("lbhwc,bhwl->bhwc", torch.stack(levels), gates)
        return self.to_out(self.norm(q * self.to_modulator(self._scaled(total))))
