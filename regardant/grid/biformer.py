"""Bi-level routing attention (Zhu et al., 2023, "BiFormer", arXiv 2303.08810).

The map is cut into S × S regions. Means of queries and keys say which k regions each region reads; its
positions then attend to all positions of those:

    A = Q̄ K̄ᵀ  [S², S²],    I = top-k of each row of A,    y = W₀ [softmax(q K_Iᵀ / √C) V_I + LCE(v)]

with Q̄, K̄ the regions' means, the same choice for all heads, and LCE a depthwise 5×5 convolution of the values
on the whole map. No gradient goes through the choice. √C is of all channels, as released, where heads have
C / heads of them. With S ~ (hw)^⅓ the work is O((hw)^(4/3)); the S of least work is the default.

Where the regions do not fit, those at the bottom and on the right are smaller: what fills them up is seen by
nobody and counts in no mean. In the released code (`auto_pad`) queries see the filling, and means count it.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from regardant.core.checks import check_heads
from regardant.core.errors import require
from regardant.core.grid_attention import WholeMapAttention
from regardant.core.grid_groups import Groups, groups_of
from regardant.core.grid_mixer import GridMixer
from regardant.core.grid_pattern import Window2d
from regardant.core.grid_position import GridPosition, ValueConvolution
from regardant.core.selected import exact, strongest
from regardant.core.selected_blocks import attend_blocks
from regardant.core.supports import Supports


class BiLevelRoutingAttention(GridMixer):
    """Each of `regions` × `regions` regions reads the `top` regions that it wants most.

    `regions` is a number of regions, not their size: they grow with the map. None takes as many as make the
    least work. `local` is the side of the convolution of the values, 0 for none. A record hears which regions
    are read, as "regions" [b, S², k].
    """

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False,
        grouped=False, time=4 / 3, memory=1.0, state=0.0,
        exempt={"reach": "which regions a position sees is decided by what is in them"},
    )  # fmt: skip

    def __init__(
        self, dim: int, heads: int, *, regions: int | None = None, top: int = 4, local: int = 5,
        bias: bool = True,
    ):  # fmt: skip
        super().__init__()
        check_heads(dim, heads, None, None)
        require(regions is None or regions >= 1, f"regions is {regions}, but a side has at least 1")
        require(top >= 1, f"top is {top}, but a region reads at least 1")
        self.dim, self.heads, self.regions, self.top = dim, heads, regions, top
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim, bias=bias) for _ in range(3))
        self.local = ValueConvolution(dim, local) if local else GridPosition()
        self.to_out = nn.Linear(dim, dim)

    def cut(self, height: int, width: int) -> Groups:
        """The regions of a map of this size."""
        if self.regions is None:
            # Least of 2 S⁴ + 2 (hw)² k / S², what routing and attention take.
            best = (self.top / 2 * (height * width) ** 2) ** (1 / 6)
            cell = [max(1, round(side / best)) for side in (height, width)]
        else:
            cell = [-(-side // self.regions) for side in (height, width)]
        return groups_of(Window2d(tuple(cell)).on(height, width))

    def forward(self, x, *, record=None):
        self.check_map(x, self.to_q.weight)
        groups = self.cut(*x.shape[1:3])
        inside = groups.cut(x)
        q, k, v = (layer(inside) for layer in (self.to_q, self.to_k, self.to_v))
        real = _real(groups, x.device)
        routed = self._route(q, k, real, len(x))
        if record is not None:
            record.note("regions", routed)
        first = torch.arange(len(x), device=x.device) * routed.shape[1]
        queries, keys, values = (part.unflatten(-1, (self.heads, -1)) for part in (q, k, v))
        heard = attend_blocks(
            queries.transpose(1, 2), keys, values, (routed + first[:, None, None]).flatten(0, 1),
            scale=self.dim**-0.5, sees=None if real is None else real[routed].flatten(2).view(len(q), 1, -1),
        )  # fmt: skip
        y = groups.join(heard.transpose(1, 2).flatten(2))
        return self.to_out(y + self.local.values(groups.join(v)) if self.local.mixes_values else y)

    @torch.no_grad()
    def _route(
        self, q: Float[Tensor, "bg s c"], k: Float[Tensor, "bg s c"], real: Bool[Tensor, "g s"] | None,
        batch: int,
    ) -> Int[Tensor, "b g n"]:  # fmt: skip
        """The regions that each region reads, the one that it wants most first."""
        q, k = (_means(part.unflatten(0, (batch, -1)), real)[:, None] for part in (q, k))
        count = q.shape[2]
        chosen, _ = strongest(
            lambda rows: q[:, :, rows] @ k.mT, count, min(self.top, count), pairs_a_row=batch * count
        )
        return chosen[:, 0]

    def reference(self, x):
        self.check_map(x, self.to_q.weight)
        (height, width), groups = x.shape[1:3], self.cut(*x.shape[1:3])
        q, k, v = (layer(x).flatten(1, 2) for layer in (self.to_q, self.to_k, self.to_v))
        row, column = (
            torch.arange(side, device=x.device) // cell for side, cell in zip((height, width), groups.cell)
        )
        region = (row[:, None] * groups.count[1] + column).flatten()
        member = F.one_hot(region).to(x.dtype)
        mean_q, mean_k = (member.mT @ part / member.sum(0)[:, None] for part in (q, k))
        order = (mean_q @ mean_k.mT).argsort(dim=-1, descending=True, stable=True)
        reads = torch.zeros(order.shape, dtype=torch.bool, device=x.device)
        reads = reads.scatter(-1, order[..., : self.top], True)
        sees = reads[:, region][..., region]
        q, k, heads_v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        logits = (q @ k.mT * self.dim**-0.5).masked_fill(~sees[:, None], -inf)
        y = (logits.softmax(dim=-1) @ heads_v).transpose(1, 2).flatten(2).unflatten(1, (height, width))
        if self.local.mixes_values:
            y = y + self.local.values_plainly(v.unflatten(1, (height, width)), None)
        return self.to_out(y)


def _real(groups: Groups, device: torch.device) -> Bool[Tensor, "g s"] | None:
    """Which positions of each region lie on the map; None: all."""
    if groups.padded == groups.size:
        return None
    return groups.cut(torch.ones(1, *groups.size, 1, device=device))[..., 0] > 0


def _means(x: Float[Tensor, "b g s c"], real: Bool[Tensor, "g s"] | None) -> Float[Tensor, "b g c"]:
    """The mean of each region's positions, in single precision at least: close calls are many."""
    if real is None:
        return exact(x).mean(dim=2)
    return (exact(x) * real[..., None]).sum(dim=2) / real.sum(dim=1)[:, None]


class AttentionBesideConvolution(WholeMapAttention):
    """W₀ [softmax(q kᵀ / √d) v + DW(x)], all of the map seen: the last stage of the released models.

    The paper has there what it has everywhere, with all regions read; this convolution is of the input.
    """

    supports = replace(WholeMapAttention.supports, linear_in_values=False)

    def __init__(self, dim: int, heads: int, *, local: int = 5):
        super().__init__(dim, heads)
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.local = ValueConvolution(dim, local) if local else GridPosition()

    def forward(self, x, *, record=None):
        self.check_map(x, self.to_qkv.weight)
        heard = F.scaled_dot_product_attention(*self._project(x)).transpose(1, 2).reshape(x.shape)
        return self.to_out(heard + self.local.values(x) if self.local.mixes_values else heard)

    def reference(self, x):
        self.check_map(x, self.to_qkv.weight)
        q, k, v = self._project(x)
        heard = ((q @ k.mT * self.head_dim**-0.5).softmax(dim=-1) @ v).transpose(1, 2).reshape(x.shape)
        return self.to_out(heard + self.local.values_plainly(x, None) if self.local.mixes_values else heard)

    def _project(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "qkv b e n d"]:
        return self.to_qkv(x.flatten(1, 2)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
