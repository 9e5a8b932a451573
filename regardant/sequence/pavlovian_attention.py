"""Pavlovian attention ("Understanding Transformers through the Lens of Pavlovian Conditioning", 2025,
arXiv:2508.08289): linear attention as classical conditioning.

Keys are conditional stimuli, values unconditional ones, queries test stimuli. Reading the sequence writes
each pair into a matrix, by a rule of plasticity, and the test stimulus reads it:

    S_t = rule(S_{t-1}, k_t, v_t)        y_t = S_tᵀ q_t        ‖k‖ = ‖q‖ = 1

With Hebb's rule this is attention without softmax and without a normaliser, y_t = Σ_s η (q_t·k_s) v_s. How
many pairs are told apart is a law: √d of them if all others may err in the same direction, d of them if they
err at random (`regardant.structure.associative_memory`). `"decay"` forgets, and `"delta"` writes what was not
foreseen, as DeltaNet does; the rules are in `regardant.core.plasticity`.

The paper is a theory without code; which of the richer rules it means is not certain. Unit keys are ours: the
law and the delta rule need them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from regardant.core.errors import require
from regardant.core.mixer import MultiHead
from regardant.core.plasticity import associate, associate_plainly, check_plasticity, written
from regardant.core.rule import Rule, causal_and_padding
from regardant.core.state import State
from regardant.core.supports import Supports

TINY = 1e-6
"""Under the root of a length, so that an empty key stays empty."""


@dataclass
class AssociationState(State):
    """S: what has been associated so far."""

    matrix: Float[Tensor, "b h d e"]


class PlasticRule(Rule):
    """Pairs of keys and values written into a matrix that queries read; padding writes nothing."""

    supports = Supports(
        noncausal=False, cross=False, causal_cross=False, pattern=False, time=1.0, memory=1.0, state=0.0
    )

    def __init__(
        self, *, rule: Literal["hebb", "decay", "delta"] = "delta", rate: float = 1.0, forget: float = 0.0
    ):
        super().__init__()
        check_plasticity(rule, rate, forget)
        require(rule != "oja", "rule is 'oja', which is not linear in its values: it is in AssociativeMemory")
        self.how = dict(rule=rule, rate=rate, forget=forget)

    def forward(self, q, k, v, *, pattern=None, scale=None):
        return associate(*self._pairs(q, k, v, pattern, scale), **self.how)[0].to(v.dtype)

    def reference(self, q, k, v, *, pattern=None, scale=None):
        return associate_plainly(*self._pairs(q, k, v, pattern, scale), **self.how)[0]

    def start(self, shape, *, pattern=None, keys=None, values=None):
        exact = torch.promote_types(shape.dtype, torch.float32)
        size = (shape.batch, shape.heads, shape.head_dim, shape.value_dim)
        if keys is None:
            return AssociationState(0, torch.zeros(size, device=shape.device, dtype=exact))
        asked = keys.new_zeros(shape.batch, shape.heads, keys.shape[2], shape.head_dim)
        _, matrix = associate(*self._pairs(asked, keys, values, pattern, None), **self.how)
        return AssociationState(keys.shape[2], matrix)

    def step(self, q, k, v, state, *, pattern=None, scale=None):
        q, k, v = self._pairs(q[:, :, None], k[:, :, None], v[:, :, None], pattern, scale)
        exact = state.matrix.dtype
        matrix = written(state.matrix, k[:, :, 0].to(exact), v[:, :, 0].to(exact), **self.how)
        return (q.to(exact) @ matrix)[:, :, 0].to(v.dtype), AssociationState(state.length + 1, matrix)

    def _pairs(self, q, k, v, pattern, scale) -> tuple[Tensor, Tensor, Tensor]:
        """Unit queries and keys, one for each query head; padding has an empty key."""
        causal, real = causal_and_padding(self, pattern)
        require(causal, "causal=False: what is learned pair after pair cannot see the future")
        k = k if real is None else k * real.expand(k.shape[0], -1)[:, None, :, None]
        share = q.shape[1] // k.shape[1]
        k, v = (x if share == 1 else x.repeat_interleave(share, dim=1) for x in (_unit(k), v))
        return _unit(q) if scale is None else _unit(q) * scale, k, v


class PavlovianAttention(MultiHead):
    """Multi-head association by `rule`: "hebb", "decay" (with `forget`), "delta"; `rate` is η."""

    supports = Supports(
        noncausal=False, cross=False, causal_cross=False, pattern=False, time=1.0, memory=1.0, state=0.0
    )

    def __init__(
        self, dim: int, heads: int, *, causal: bool = True,
        rule: Literal["hebb", "decay", "delta"] = "delta", rate: float = 1.0, forget: float = 0.0, **shared,
    ):  # fmt: skip
        plastic = PlasticRule(rule=rule, rate=rate, forget=forget)
        super().__init__(dim, heads, causal=causal, **shared | {"rule": plastic})


def _unit(x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    return exact * (exact.square().sum(-1, keepdim=True) + TINY).rsqrt()
