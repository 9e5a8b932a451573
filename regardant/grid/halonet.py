"""Blocked local attention with halos (Vaswani et al., 2021, "HaloNet", arXiv 2103.12731).

The map is cut into blocks of b × b queries. All queries of a block share the keys of the block and of h
positions around it, (b + 2h)² in all, so that what is gathered is ((b + 2h) / b)² times the map and not one
window a query:

    y_i = Σ_j softmax_j(q_i·k_j / √d + q_i·(e[Δrow] + e'[Δcolumn])) v_j      j in the block of i and its halo

The term by relative position is not scaled; e and e' are shared by the heads. Offsets run from -(b - 1 + h)
to b - 1 + h. What lies off the map is not seen (public ports differ here; there is no official code). With a
`stride`, every second query of a block is asked and keys are whole, offsets counted in positions of the map.
There is no output projection: heads are put side by side.
"""

from __future__ import annotations

from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.grid_attention import attend_groups, attend_plainly
from regardant.core.grid_groups import blocks_with_halo, groups_of, real_with_halo
from regardant.core.grid_mixer import GridMixer
from regardant.core.grid_pattern import Halo, Window2d
from regardant.core.grid_position import RelativeLogits2d
from regardant.core.supports import Supports


class HaloAttention(GridMixer):
    """Multi-head attention of each block to itself and its halo."""

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False,
        grouped=False, time=1.0, memory=1.0, state=0.0,
    )  # fmt: skip

    def __init__(self, dim: int, heads: int, *, block: int = 8, halo: int = 3):
        super().__init__()
        self._make(dim, heads, block, halo, value_dim=dim, stride=1)

    def _make(self, dim: int, heads: int, block: int, halo: int, *, value_dim: int, stride: int) -> None:
        require(heads >= 1 and dim % heads == 0, f"heads={heads} does not divide dim={dim}")
        require(value_dim % heads == 0, f"heads={heads} does not divide value_dim={value_dim}")
        require(block >= 1, f"block is {block}, but it is at least 1 wide")
        require(halo >= 0, f"halo is {halo}, but it is at least 0")
        require(block % stride == 0, f"stride={stride} does not divide block={block}")
        self.dim, self.heads, self.block, self.halo, self.stride = dim, heads, block, halo, stride
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(dim, dim + value_dim, bias=False)
        self.position = RelativeLogits2d(dim // heads, block, halo=halo)

    def forward(self, x, *, record=None):
        self.check_map(x, self.to_q.weight)
        size = x.shape[1:3]
        # On a small map, blocks and halos are no larger than there is anything to see.
        block = tuple(min(self.block, -(-side // self.stride) * self.stride) for side in size)
        halo = tuple(min(self.halo, side) for side in size)
        asked = x[:, :: self.stride, :: self.stride]
        cell = tuple(side // self.stride for side in block)
        groups = groups_of(Window2d(cell).on(*asked.shape[1:3]))
        q = groups.cut(self.to_q(asked)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv = blocks_with_halo(self.to_kv(x), block, halo)
        k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in kv.split([self.dim, kv.shape[-1] - self.dim], dim=-1)
        )
        wide = tuple(side + 2 * around for side, around in zip(block, halo))
        origin = tuple(-around for around in halo)
        added = self.position.between(q, cell, wide, origin=origin, stride=self.stride)
        mask = real_with_halo(size, block, halo, x.device)[:, None]
        heard = attend_groups(q, k, v, mask=mask, added=added)
        return groups.join(heard.transpose(1, 2).flatten(2))

    def reference(self, x):
        self.check_map(x, self.to_q.weight)
        size, flat = x.shape[1:3], x.flatten(1, 2)
        q = self.to_q(flat)
        k, v = self.to_kv(flat).split([self.dim, self.to_kv.out_features - self.dim], dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        pattern = Halo(self.block, self.halo).on(*size)
        heard: Tensor = attend_plainly(q, k, v, pattern, size, position=self.position)
        heard = heard.transpose(1, 2).flatten(2).unflatten(1, size)
        return heard[:, :: self.stride, :: self.stride]

    def receptive_field(self, *size):
        return Halo(self.block, self.halo).on(*size)


class ReducingHaloAttention(HaloAttention):
    """The same with values of another width, and for every `stride`-th position only."""

    def __init__(
        self, dim: int, heads: int, *, block: int = 8, halo: int = 3, value_dim: int | None = None,
        stride: int = 1,
    ):  # fmt: skip
        nn.Module.__init__(self)
        self._make(dim, heads, block, halo, value_dim=value_dim or dim, stride=stride)
