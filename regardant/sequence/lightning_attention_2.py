"""Lightning Attention-2 (Qin et al., "A Free Lunch for Handling Unlimited Sequence Lengths in Large
Language Models", 2024, arXiv:2401.04658), in the layer that its authors put it in (TransNormerLLM, Qin
et al., 2024, arXiv:2405.17381).

Linear attention that forgets at a fixed rate, one a head:

    o_t = Σ_{s≤t} λ_h^(t-s) (q_t·k_s) v_s        λ_h = exp(-2^(-8h/H)), h = 1…H
    y   = (LayerNorm(o) ⊙ sigmoid(W₂ W₁ x)) W_O

where q, k and v have passed through SiLU. It costs the same time a token at every length, and decodes
from one matrix S ← λS + k vᵀ a head. How the sum is taken block by block, forward and backward, is the
subject of `regardant.core.decayed_linear`; the layer around it is `regardant.core.decayed_heads`.

As in the authors' module there is no 1/√d (the norm would undo it), and o is normed over all heads
together. `depth` is where the layer stands in its network, from 0 to 1: as in theirs, deeper layers
forget more slowly, λ^(1 - depth + 1e-5). What differs: blocks are worked many at a time, where the
official kernel loops; and the state is float32 when the inputs are half as precise.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

from regardant.core.decayed_heads import DecayedHeads
from regardant.core.decayed_rule import DecayedLinearRule
from regardant.core.errors import require
from regardant.core.mixer import check_heads
from regardant.core.position import alibi_slopes


class LightningAttention2(DecayedHeads):
    """Gated, normed linear attention with a fixed decay a head, `decay` (λ_h, or the paper's slopes)."""

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
        self.add_norm_and_gate("layernorm", "lowrank", bias=bias)
