"""Linear attention that forgets at a fixed rate, one a head, as a rule: whole sequences, prompts, steps.

    o_t = Σ_{s≤t} λ_h^(t-s) (q_t·k_s) v_s

How the sum is taken in linear time is the subject of `regardant.core.decayed_linear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regardant.core.decayed_linear import decayed_linear, decayed_linear_reference, decayed_linear_step
from regardant.core.errors import require
from regardant.core.pattern import Pattern
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
