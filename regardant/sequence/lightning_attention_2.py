"""Lightning Attention-2 (Qin et al., "A Free Lunch for Handling Unlimited Sequence Lengths in Large
Language Models", 2024, arXiv:2401.04658), in the layer that its authors put it in (TransNormerLLM, Qin
et al., 2024, arXiv:2405.17381).

Linear attention that forgets at a fixed rate, one a head:

    o_t = Σ_{s≤t} λ_h^(t-s) (q_t·k_s) v_s        λ_h = exp(-2^(-8h/H)), h = 1…H
    y   = (LayerNorm(o) ⊙ sigmoid(W₂ W₁ x)) W_O

where q, k and v have passed through SiLU. It costs the same time a token at every length, and decodes
from one matrix S ← λS + k vᵀ a head. How the sum is taken block by block, forward and backward, is the
subject of `regardant.core.decayed_linear`.

As in the authors' module there is no 1/√d (the norm would undo it), and o is normed over all heads
together. `depth` is where the layer stands in its network, from 0 to 1: as in theirs, deeper layers
forget more slowly, λ^(1 - depth + 1e-5). What differs: blocks are worked many at a time, where the
official kernel loops; and the state is float32 when the inputs are half as precise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regardant.core.decayed_linear import decayed_linear, decayed_linear_reference, decayed_linear_step
from regardant.core.errors import require
from regardant.core.mixer import MultiHead, check_heads
from regardant.core.pattern import Pattern
from regardant.core.position import alibi_slopes
from regardant.core.rule import Rule, causal_and_padding
from regardant.core.state import State
from regardant.core.supports import Supports


@dataclass
class DecayedState(State):
    """S_t = Σ_{s≤t} λ^(t-s) k_s v_sᵀ [b, h, d, e]: all that is left of the past."""

    matrix: Tensor


class DecayedLinearRule(Rule):
    """o_t = Σ_{s≤t} λ_h^(t-s) (q_t·k_s) v_s, `decay` being the λ of every head; padding sends nothing."""

    supports = Supports(
        noncausal=False, cross=False, causal_cross=False, pattern=False, time=1.0, memory=1.0, state=0.0
    )

    def __init__(self, decay: Sequence[float]):
        super().__init__()
        for rate in decay:
            require(0 < rate <= 1, f"decay holds {rate}, but a head keeps a share λ of its past, 0 < λ ≤ 1")
        rates = torch.tensor(decay, dtype=torch.float64).log().to(torch.get_default_dtype())
        self.register_buffer("log_decay", rates, persistent=False)

    def forward(self, q, k, v, *, pattern=None, scale=None):
        return decayed_linear(_scaled(q, scale), self._sent(k, pattern), v, self._rates(q))

    def reference(self, q, k, v, *, pattern=None, scale=None):
        return decayed_linear_reference(_scaled(q, scale), self._sent(k, pattern), v, self._rates(q))

    def start(self, shape, *, pattern=None, keys=None, values=None):
        dtype = torch.promote_types(shape.dtype, torch.float32)
        lead = (shape.batch, shape.heads)
        if keys is None:
            empty = torch.zeros(*lead, shape.head_dim, shape.value_dim, device=shape.device, dtype=dtype)
            return DecayedState(0, empty)
        n, share = keys.shape[2], shape.heads // shape.kv_heads
        keys = self._sent(keys, pattern)
        keys, values = (x.to(dtype).repeat_interleave(share, dim=1) for x in (keys, values))
        age = torch.arange(n - 1, -1, -1, device=shape.device)
        left = torch.exp(self._rates(keys)[:, None] * age)
        return DecayedState(n, (keys * left[..., None]).mT @ values)

    def step(self, q, k, v, state, *, pattern=None, scale=None):
        out, matrix = decayed_linear_step(_scaled(q, scale), k, v, state.matrix, self._rates(q))
        return out, DecayedState(state.length + 1, matrix)

    def _rates(self, q: Tensor) -> Tensor:
        return self.log_decay.to(torch.promote_types(q.dtype, torch.float32))

    def _sent(self, k: Tensor, pattern: Pattern | None) -> Tensor:
        causal, real = causal_and_padding(self, pattern)
        require(causal, "causal=False: a sum that runs along the sequence cannot see the future")
        return k if real is None else k * real.expand(k.shape[0], -1)[:, None, :, None]


def _scaled(q: Tensor, scale: float | None) -> Tensor:
    return q if scale is None else q * scale


class LightningAttention2(MultiHead):
    """Gated, normed linear attention with a fixed decay a head, `decay` (λ_h, or the paper's slopes)."""

    supports = Supports(
        noncausal=False, cross=False, causal_cross=False, pattern=False, time=1.0, memory=1.0, state=0.0
    )

    def __init__(
        self, dim: int, heads: int, *, causal: bool = True, decay: Sequence[float] | None = None,
        depth: float = 0.0, bias: bool = False, **shared,
    ):  # fmt: skip
        require(
            decay is None or len(decay) == heads,
            f"decay holds {decay and len(decay)} values, but there is one for each of heads={heads}",
        )
        require(0 <= depth <= 1, f"depth is {depth}, but it runs from 0, the first layer, to 1, the last")
        check_heads(dim, heads, shared.get("kv_heads"), shared.get("head_dim"))
        if decay is None:
            decay = [exp(-slope * (1 - depth + 1e-5)) for slope in alibi_slopes(heads)]
        super().__init__(dim, heads, causal=causal, bias=bias, rule=DecayedLinearRule(decay), **shared)
        width = heads * self.head_dim
        self.norm = nn.LayerNorm(width)
        self.to_gate = nn.Sequential(
            nn.Linear(dim, self.head_dim, bias=bias), nn.Linear(self.head_dim, width, bias=bias)
        )

    def project(self, x, context=None, *, offset=0):
        x = self.position.embed(x, offset)
        q, k, v = (
            F.silu(linear(x)).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for linear in (self.to_q, self.to_k, self.to_v)
        )
        return self.position.turn(q, offset), self.position.turn(k, offset), v

    def merge(self, heads, *, x, record=None):
        normed = self.norm(heads.transpose(1, 2).flatten(2))
        return self.to_out(normed * torch.sigmoid(self.to_gate(x)))
