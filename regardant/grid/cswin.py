"""Cross-shaped windows (Dong et al., 2021, "CSWin Transformer", arXiv 2107.00652).

The first half of the heads looks down stripes of `stripe` columns, the second along stripes of `stripe` rows,
both at once, so that a position sees a cross:

    y = W₀ [A₁ v₁ + LePE₁(v₁), A₂ v₂ + LePE₂(v₂)],    A = softmax(q kᵀ / √d) inside a stripe

LePE is a depthwise 3×3 convolution of the values with weights of its own for each half. As in the released
code it runs inside each stripe, with zeros beyond the stripe's edge; on the whole map it would leak between
stripes. A stripe that does not divide the map leaves a narrower one at its end; on a map no wider than a
stripe both halves see everything.
"""

from __future__ import annotations

from regardant.core.errors import require
from regardant.core.grid_attention import GroupedAttention
from regardant.core.grid_pattern import Stripe
from regardant.core.grid_position import GridPosition, ValueConvolution
from regardant.core.supports import Supports


class CrossShapedAttention(GroupedAttention):
    """`heads_each` heads in stripes of columns, and as many in stripes of rows."""

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False,
        grouped=False, time=1.5, memory=1.0, state=0.0,
    )  # fmt: skip

    def __init__(
        self, dim: int, *, heads_each: int = 1, stripe: int = 1, lepe: bool = True, bias: bool = True
    ):
        require(stripe >= 1, f"stripe is {stripe}, but it is at least 1 wide")
        require(heads_each >= 1, f"heads_each is {heads_each}, but each way has at least 1 head")
        heads = 2 * heads_each
        require(dim % heads == 0, f"dim={dim} does not divide into heads_each={heads_each} heads each way")
        half = dim // 2
        places = [ValueConvolution(half) if lepe else GridPosition() for _ in range(2)]
        super().__init__(dim, heads, position=places, bias=bias)
        self.stripe = stripe

    def patterns(self, *size):
        return tuple(Stripe(width=self.stripe, axis=axis).on(*size) for axis in (1, 0))
