"""TransNormerLLM (Qin et al., "Scaling TransNormer to 175 Billion Parameters", 2023, arXiv:2307.14995):
its token mixer, gated linear attention. The whole network is `regardant.backbone.transnormerllm`.

    Q = SiLU(X W_q)   K = SiLU(X W_k)   V = X W_v   U = X W_u
    O = (SimpleRMSNorm((Q Kᵀ ⊙ M) V) ⊙ U) W_o          M_ts = λ^(t-s) where t ≥ s, else 0
    λ = exp(-(8h/H)(1 - l/L)), head h = 0 … H-1 of layer l = 0 … L-1

The norm stands where softmax has its denominator; there is no 1/√d. Linearised relative positions
(LRPE) turn the queries and keys of the first layer only; the later ones know distances by the decay alone.
Decoding keeps S ← λS + k vᵀ, o = q S, in which no power of λ is negative: the other way round,
Σ λ^(-s) k_s v_sᵀ times λ^t, overflows.

`decay="alibi"` has the rates of the authors' code, exp(-2^(-8(h+1)/H) (1 - l/(L-1) + 1e-5)); `"none"` has
none. What differs from it besides: one projection is three and a gate, so that it is the layer that all
mixers here are; the sum is taken in blocks, in linear time, where the paper's kernel forms every score.
"""

from __future__ import annotations

from typing import Literal

from regardant.core.decayed_heads import DecayedHeads, decays
from regardant.core.decayed_rule import DecayedLinearRule
from regardant.core.mixer import check_heads
from regardant.core.position import Position


class TransNormer(DecayedHeads):
    """Gated linear attention of layer `layer` of `layers`; `position` is LRPE in layer 0 unless given."""

    activates_values = False

    def __init__(
        self, dim: int, heads: int, *, causal: bool = True, layer: int = 0, layers: int = 1,
        decay: Literal["linear", "alibi", "none"] = "linear",
        position: str | Position | None = None, bias: bool = False, **shared,
    ):  # fmt: skip
        check_heads(dim, heads, shared.get("kv_heads"), shared.get("head_dim"))
        if position is None:
            position = "lrpe" if layer == 0 else "none"
        rule = DecayedLinearRule(decays(decay, heads, layer=layer, layers=layers))
        super().__init__(dim, heads, causal=causal, position=position, bias=bias, rule=rule, **shared)
        self.add_norm_and_gate("srms", "full", bias=bias)
