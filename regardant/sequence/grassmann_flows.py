"""Grassmann flows ("Attention Is Not What You Need: Grassmann Flows as an Attention-Free Alternative for
Sequence Modeling", 2025, arXiv:2512.19428).

No attention matrix: a token is paired with the tokens a few fixed offsets Δ back. Two small projections span
a plane, the plane is written in Plücker coordinates, and these are mapped to the model's width:

    z_t = W_z h_t + b                        p_ij = z_t[i] z_{t-Δ}[j] - z_t[j] z_{t-Δ}[i],  i < j
    g_t = mean_Δ (W_p p / max(‖p‖, ε) + b)   over the offsets Δ ≤ t;  g_0 = 0
    a_t = sigmoid(W_a [h_t ; g_t] + b)       y_t = LayerNorm(a_t ⊙ h_t + (1 - a_t) ⊙ g_t)

so y blends h and g, and a network puts no residual around it. Where a plane shrinks to a line (a token and
its copy) p is 0 and stays 0. Linear in the length; decoding keeps the last max Δ of the z.

There is no official code. The paper writes the pair as t and t+Δ; a causal layer can only look back. W_p is
applied once, to the mean of the normed coordinates, which is the same and costs as many times less as there
are offsets. There is no dropout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.state import State
from regardant.core.streaming import Streaming
from regardant.core.supports import Supports

LINE = 1e-8
"""ε: a plane whose coordinates are shorter than this is a line."""

TILE = 256
"""Tokens whose planes are worked at once."""


@dataclass
class FlowsState(State):
    """The reduced vectors of the last max Δ tokens, and which of them are there and real."""

    reduced: Float[Tensor, "b r w"]
    real: Bool[Tensor, "b r"]


def plucker(u: Float[Tensor, "*b w"], v: Float[Tensor, "*b w"]) -> Float[Tensor, "*b p"]:
    """The Plücker coordinates u_i v_j - u_j v_i, i < j, of the plane of u and v, row by row of (i, j).

    Another basis of the same plane gives a multiple of them; u and v exchanged, their negative.
    """
    require(u.shape[-1] == v.shape[-1], f"u is {u.shape[-1]} wide and v {v.shape[-1]}: they lie in one space")
    i, j = torch.triu_indices(u.shape[-1], u.shape[-1], 1, device=u.device)
    return u[..., i] * v[..., j] - u[..., j] * v[..., i]


class GrassmannFlows(Streaming):
    """Planes through each token and those `offsets` back, in `reduced` dimensions, blended into the token."""

    supports = Supports(
        noncausal=False, cross=False, causal_cross=False, pattern=False, grouped=False,
        linear_in_values=False, time=1.0, memory=1.0, state=0.0,
    )  # fmt: skip

    def __init__(
        self, dim: int, *, causal: bool = True, reduced: int = 32,
        offsets: Sequence[int] = (1, 2, 4, 8, 12, 16),
    ):  # fmt: skip
        super().__init__()
        self.check_causal(causal)
        require(dim >= 1, f"dim is {dim}, but a layer is at least 1 wide")
        require(reduced >= 2, f"reduced is {reduced}, but a plane needs at least 2 dimensions")
        require(
            len(offsets) > 0 and min(offsets) >= 1 and len(set(offsets)) == len(offsets),
            f"offsets is {tuple(offsets)}, but they are different whole numbers from 1 on: steps back",
        )
        self.dim, self.causal, self.offsets = dim, causal, tuple(offsets)
        self.to_reduced = nn.Linear(dim, reduced)
        self.to_flow = nn.Linear(reduced * (reduced - 1) // 2, dim)
        self.to_gate = nn.Linear(2 * dim, dim)
        self.norm = nn.LayerNorm(dim)
        upper = torch.ones(reduced, reduced, dtype=torch.bool).triu(1).flatten().nonzero()[:, 0]
        self.register_buffer("upper", upper, persistent=False)

    def start(self, batch, *, context=None, padding=None):
        self.check_start(context, padding)
        weight, rows = self.to_reduced.weight, max(self.offsets)
        nobody = torch.zeros(batch, rows, dtype=torch.bool, device=weight.device)
        return FlowsState(0, weight.new_zeros(batch, rows, len(weight)), nobody)

    def run(self, x, state, *, padding=None, plainly=False):
        n, reach = x.shape[1], max(self.offsets)
        here = x.new_ones(x.shape[:2], dtype=torch.bool) if padding is None else padding
        z = torch.cat([state.reduced, self.to_reduced(x)], dim=1)
        real = torch.cat([state.real, here], dim=1)
        flow = self._plain_flow(z, real, n) if plainly else self._flow(z, real, n)
        gate = torch.sigmoid(self.to_gate(torch.cat([x, flow], dim=-1)))
        y = self.norm(torch.lerp(flow, x, gate))
        return y, FlowsState(state.length + n, z[:, n:], real[:, n : n + reach])

    def fits(self, state, batch):
        wanted = (batch, max(self.offsets), self.to_reduced.out_features)
        return (
            isinstance(state, FlowsState) and state.reduced.shape == wanted and state.real.shape == wanted[:2]
        )

    def _flow(self, z: Float[Tensor, "b r w"], real: Bool[Tensor, "b r"], n: int) -> Float[Tensor, "b n c"]:
        """Tile after tile of the sequence, so that a tile's planes stay in a processor's cache."""
        reach, flows = max(self.offsets), []
        (near, *tiles), (there, *others) = (x.split([reach, *_tiles(n)], dim=1) for x in (z, real))
        for tile, here in zip(tiles, others):
            near, there = torch.cat([near, tile], dim=1), torch.cat([there, here], dim=1)
            mean, some = self._planes(near, there)
            flows.append(self.to_flow(mean) * some)
            near, there = near[:, -reach:], there[:, -reach:]
        return torch.cat(flows, dim=1)

    def _planes(
        self, z: Float[Tensor, "b r w"], real: Bool[Tensor, "b r"]
    ) -> tuple[Float[Tensor, "b n p"], Bool[Tensor, "b n 1"]]:
        """The mean plane of every token but the first max Δ, and whether it has any partner.

        A plane is an antisymmetric matrix here, of which p is the half above.
        """
        reach, n = max(self.offsets), z.shape[1] - max(self.offsets)
        exact = z.to(torch.promote_types(z.dtype, torch.float32))
        mine, total, count = exact[:, reach:], 0, 0
        for offset in self.offsets:
            there = real.narrow(1, reach - offset, n)[..., None]
            wedge = mine[..., None] * exact.narrow(1, reach - offset, n)[:, :, None]
            wedge = wedge - wedge.mT
            size = wedge.square().sum((-2, -1)) / 2
            share = there[..., 0] * size.clamp(min=LINE**2).rsqrt()
            total = total + wedge * share[..., None, None]
            count = count + there
        mean = total.flatten(2).index_select(2, self.upper) / count.clamp(min=1)
        return mean.to(z.dtype), count > 0

    def _plain_flow(
        self, z: Float[Tensor, "b r w"], real: Bool[Tensor, "b r"], n: int
    ) -> Float[Tensor, "b n c"]:
        """Token by token and sample by sample, over the partners that are there."""
        reach, rows = max(self.offsets), []
        for sample in range(len(z)):
            for t in range(reach, reach + n):
                flows = []
                for offset in self.offsets:
                    if real[sample, t - offset]:
                        p = plucker(z[sample, t], z[sample, t - offset])
                        flows.append(self.to_flow(p / max(p.norm(), LINE)))
                rows.append(sum(flows) / len(flows) if flows else torch.zeros_like(self.to_flow.bias))
        return torch.stack(rows).unflatten(0, (len(z), n))


def _tiles(n: int) -> list[int]:
    return [min(TILE, n - start) for start in range(0, n, TILE)]
