"""Overlapping cross-attention (Chen et al., 2023, "HAT", arXiv 2309.05239): windows that see around them.

The queries of a window of M × M look at the (1 + r) M × (1 + r) M positions around it:

    y = W₀ softmax(q kᵀ / √d + B[Δrow, Δcolumn]) v

It is the pattern of HaloNet with a halo of r M / 2 and a bias by offset in place of relative logits. What
lies off the map is a key and a value of zeros, as in the released code: it takes weight through its bias,
and gives nothing.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from regardant.core.errors import require
from regardant.core.grid_attention import attend_groups
from regardant.core.grid_groups import blocks_with_halo, groups_of
from regardant.core.grid_mixer import GridMixer
from regardant.core.grid_pattern import Halo, Window2d
from regardant.core.grid_position import TableBias
from regardant.core.supports import Supports


class OverlappingAttention(GridMixer):
    """Multi-head attention of each window to itself and what is around it; `overlap` is the paper's r."""

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False,
        grouped=False, time=1.0, memory=1.0, state=0.0,
    )  # fmt: skip

    def __init__(self, dim: int, heads: int, *, window: int = 16, overlap: float = 0.5, bias: bool = True):
        super().__init__()
        require(heads >= 1 and dim % heads == 0, f"heads={heads} does not divide dim={dim}")
        require(window >= 1, f"window is {window}, but it is at least 1 wide")
        require(
            overlap >= 0, f"overlap is {overlap}, but windows of keys are no smaller than those of queries"
        )
        self.dim, self.heads, self.window = dim, heads, window
        self.halo = int(window * overlap) // 2
        self.position = TableBias(heads, window, halo=self.halo)
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x, *, record=None):
        self.check_map(x, self.to_qkv.weight)
        block, halo = (self.window,) * 2, (self.halo,) * 2
        groups = groups_of(Window2d(self.window).on(*(side + -side % self.window for side in x.shape[1:3])))
        qkv = self.to_qkv(x)
        q = groups.cut(self._filled(qkv[..., : self.dim]))
        kv = blocks_with_halo(qkv[..., self.dim :], block, halo)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, *kv.chunk(2, dim=-1)))
        wide = (self.window + 2 * self.halo,) * 2
        added = self.position.between(q, block, wide, origin=(-self.halo, -self.halo))
        heard = attend_groups(q, k, v, added=added).transpose(1, 2).flatten(2)
        return self.to_out(groups.join(heard)[:, : x.shape[1], : x.shape[2]])

    def _filled(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b i j c"]:
        """Up to whole windows."""
        below, right = (-side % self.window for side in x.shape[1:3])
        return pad(x, (0, 0, 0, right, 0, below)) if below or right else x

    def reference(self, x):
        self.check_map(x, self.to_qkv.weight)
        (height, width), far = x.shape[1:3], self.halo
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 4, 1, 2, 5)
        # Keys on a map with room for every halo, zeros where the image is not.
        room = (0, 0, far, far + -width % self.window, far, far + -height % self.window)
        k, v = pad(k, room), pad(v, room)
        tall, wide = k.shape[2:4]
        at, key = torch.arange(height * width, device=x.device), torch.arange(tall * wide, device=x.device)
        row, column = (along[:, None] for along in (at // width, at % width))
        seen, offsets = True, []
        for query, other in ((row, key // wide), (column, key % wide)):
            top = query // self.window * self.window - far
            seen = seen & (other - far >= top) & (other - far < top + self.window + 2 * far)
            offsets.append(other - far - query)
        q, k, v = (part.flatten(2, 3) for part in (q, k, v))
        logits = q @ k.mT * q.shape[-1] ** -0.5 + self.position.added(q, *offsets)
        weights = logits.masked_fill(~seen, -torch.inf).softmax(dim=-1)
        heard = (weights @ v).transpose(1, 2).flatten(2)
        return self.to_out(heard).unflatten(1, (height, width))

    def receptive_field(self, *size):
        return Halo(self.window, self.halo).on(*size)
