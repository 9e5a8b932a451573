"""TNL (Qin et al., "Various Lengths, Constant Speed: Efficient Language Modeling with Lightning
Attention", 2024, arXiv:2405.17381): the token mixer of its language models.

    q = SiLU(W_q x)   k = SiLU(W_k x)   v = SiLU(W_v x)
    o_t = Σ_{s≤t} λ_h^(t-s) (q_t·k_s) v_s         λ_h = exp(-2^(-8(h+1)/H) (1 - l/(L-1) + 1e-5))
    y = (norm(o) ⊙ gate(x)) W_O

Training takes the same time a token at every length, because the sum over the past is taken in blocks:
attention inside a block, one matrix of what came before it (`regardant.core.decayed_linear`). The same
sum can be taken in parallel, all pairs at once (`reference`), or token by token (`step`).

The authors published two layers under this name. Their example module has a LayerNorm and a gate of low
rank, sigmoid(W₂ W₁ x), and this is what `gate="lowrank"` and `norm="layernorm"`, the defaults, give; the
text has a linear gate and the norm without weights, `gate="full"`, `norm="srms"`, and linearised relative
positions in the first layer, `position="lrpe"`. What differs from the official code: a block may be ragged,
layers=1 is no division by zero, and the state is float32 when the inputs are half as precise.
"""

from __future__ import annotations

from typing import Literal

from regardant.core.decayed_heads import DecayedHeads, decays
from regardant.core.decayed_rule import DecayedLinearRule
from regardant.core.mixer import check_heads


class TNL(DecayedHeads):
    """Gated, normed linear attention whose heads forget at the rates of layer `layer` of `layers`."""

    def __init__(
        self, dim: int, heads: int, *, causal: bool = True, layer: int = 0, layers: int = 1,
        decay: Literal["linear", "alibi", "none"] = "alibi",
        gate: Literal["lowrank", "full"] = "lowrank",
        norm: Literal["layernorm", "srms"] = "layernorm", bias: bool = False, **shared,
    ):  # fmt: skip
        check_heads(dim, heads, shared.get("kv_heads"), shared.get("head_dim"))
        rule = DecayedLinearRule(decays(decay, heads, layer=layer, layers=layers))
        super().__init__(dim, heads, causal=causal, bias=bias, rule=rule, **shared)
        self.add_norm_and_gate(norm, gate, bias=bias)
