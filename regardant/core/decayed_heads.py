"""The layer around decayed linear attention: activations before it, a norm and a gate behind it.

    q = SiLU(W_q x)   k = SiLU(W_k x)   v = W_v x or SiLU(W_v x)
    o_t = Σ_{s≤t} λ_h^(t-s) (q_t·k_s) v_s
    y = (norm(o) ⊙ gate(x)) W_O

The norm is over all heads together and takes the place of a denominator and of 1/√d. TransNormerLLM, TNL
and Lightning Attention-2 are this layer with a norm, a gate and decays of their own.
"""

from __future__ import annotations

from dataclasses import replace
from math import exp
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regardant.core.errors import require, unknown
from regardant.core.linearized_relative import LinearizedRelative
from regardant.core.mixer import MultiHead, check_heads
from regardant.core.position import Position, alibi_slopes
from regardant.core.product import Linear, projections
from regardant.core.simple_rms_norm import SimpleRMSNorm
from regardant.core.supports import Supports

Decays = Literal["linear", "alibi", "none"]
Gates = Literal["full", "lowrank"]
Norms = Literal["srms", "layernorm"]


def decays(kind: Decays, heads: int, *, layer: int = 0, layers: int = 1) -> list[float]:
    """The λ of every head, h = 0 … H-1, in layer l = 0 … L-1 of L: deeper layers forget more slowly.

    linear: exp(-(8h/H)(1 - l/L)), of the paper; head 0 forgets nothing.
    alibi: exp(-2^(-8(h+1)/H) (1 - l/(L-1) + 1e-5)), of the authors' code; the last layer hardly forgets.
    none: 1.
    """
    require(layers >= 1, f"layers is {layers}, but a network has at least 1")
    require(0 <= layer < layers, f"layer is {layer}, but layers={layers} are counted from 0 to {layers - 1}")
    match kind:
        case "linear":
            return [exp(-8 * head / heads * (1 - layer / layers)) for head in range(heads)]
        case "alibi":
            # A network of one layer has a first layer and no last one.
            left = 1 - layer / max(layers - 1, 1) + 1e-5
            return [exp(-slope * left) for slope in alibi_slopes(heads)]
        case "none":
            return [1.0] * heads
    raise unknown("decay", str(kind), get_args(Decays))


class LowRankGate(nn.Sequential):
    """sigmoid(W₂ W₁ x)."""

    def __init__(self, dim: int, rank: int, width: int, *, bias: bool):
        super().__init__(Linear(dim, rank, bias=bias), Linear(rank, width, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(super().forward(x))


class DecayedHeads(MultiHead):
    """Gated, normed linear attention; a system gives the rule with its decays, a norm and a gate.

    `position="lrpe"` turns queries and keys by `LinearizedRelative`, which doubles the decoding state.
    """

    supports = Supports(
        noncausal=False, cross=False, causal_cross=False, pattern=False, time=1.0, memory=1.0, state=0.0
    )
    activates_values: ClassVar[bool] = True
    """Whether the values pass through SiLU, as queries and keys do."""

    def __init__(
        self, dim: int, heads: int, *, causal: bool = True, position: str | Position = "none", **shared
    ):
        check_heads(dim, heads, shared.get("kv_heads"), shared.get("head_dim"))
        if position == "lrpe":
            head_dim = shared.get("head_dim") or dim // heads
            position = LinearizedRelative(shared.get("kv_heads") or heads, head_dim)
        super().__init__(dim, heads, causal=causal, position=position, **shared)

    def add_norm_and_gate(self, norm: Norms, gate: Gates, *, bias: bool) -> None:
        """What stands between the heads and the output projection; the constructor's last deed."""
        width = self.heads * self.head_dim
        require(norm in get_args(Norms), f"norm is {norm!r}, but it is one of {', '.join(get_args(Norms))}")
        require(gate in get_args(Gates), f"gate is {gate!r}, but it is one of {', '.join(get_args(Gates))}")
        self.norm = nn.LayerNorm(width) if norm == "layernorm" else SimpleRMSNorm()
        self.to_gate = (
            LowRankGate(self.dim, self.head_dim, width, bias=bias)
            if gate == "lowrank"
            else Linear(self.dim, width, bias=bias)
        )

    def project(self, x, context=None, *, offset=0):
        x = self.position.embed(x, offset)
        q, k, v = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for part in projections(x, self.to_q, self.to_k, self.to_v)
        )
        q, k = self.position.turn(F.silu(q), offset), self.position.turn(F.silu(k), offset)
        return q, k, F.silu(v) if self.activates_values else v

    def merge(self, heads, *, x, record=None):
        normed = self.norm(heads.transpose(1, 2).flatten(2))
        return self.to_out(normed * self.to_gate(x))

    def start(self, batch, *, context=None, padding=None):
        state = super().start(batch, context=context, padding=padding)
        if not isinstance(self.position, LinearizedRelative):
            return state
        # A key is twice as wide once it is turned, and so is the matrix that keeps it.
        inner = replace(state.inner, matrix=torch.cat([state.inner.matrix] * 2, dim=2))
        return replace(state, inner=inner)
