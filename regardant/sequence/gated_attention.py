"""Gated attention (Bondarenko et al., "Quantizable Transformers: Removing Outliers by Helping Attention
Heads Do Nothing", 2023, arXiv:2306.12929).

A head that wants to do nothing can only push its logits apart, and the activations that it takes to do
so break INT8. Here each head has a gate of its own, token by token:

    y = Σ_h sigmoid(w_h·x_h + b_h) · softmax(q_h k_hᵀ/√d) v_h · W_O,h

x_h is the head's slice of the layer's input, not of its queries. The gates add heads · (dim/heads + 1)
parameters. b starts at logit(π), so that at first every gate is about π, the main hyper-parameter
(0.25 to 0.9).

In a pretrained layer the output is multiplied by 1/π, so that it starts as it was. What differs from
the paper: its fine-tuning draws w from a narrow normal distribution, `from_dense` takes w = 0, with which
the start is exact (each gate still gets a gradient of its own). Of its forms of the gate this is the
linear one, a head at a time.
"""

from __future__ import annotations

from math import log
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.mixer import MultiHead
from regardant.core.supports import Supports


class GatedAttention(MultiHead):
    """Softmax attention with a sigmoid gate on every head's output.

    `initial` is π. `compensate=True` multiplies the output by 1/π, for a layer that was pretrained
    without gates. The record gets the observation "gates" [b, n, heads].
    """

    supports = Supports(time=2.0, memory=1.0, state=1.0)

    def __init__(self, dim: int, heads: int, *, initial: float = 0.5, compensate: bool = False, **shared):
        super().__init__(dim, heads, **shared)
        require(0 < initial < 1, f"initial is {initial}, but a gate starts between 0 and 1")
        require(
            dim % heads == 0,
            f"dim={dim} does not divide into heads={heads}: each gate looks at its head's slice of the input",
        )
        self.initial, self.compensate = initial, compensate
        self.gate_weight = nn.Parameter(torch.empty(heads, dim // heads))
        self.gate_bias = nn.Parameter(torch.full((heads,), self._first_bias))
        bound = (dim // heads) ** -0.5  # as a linear layer of one slice would start
        nn.init.uniform_(self.gate_weight, -bound, bound)

    @classmethod
    def from_dense(cls, layer: MultiHead, **config) -> Self:
        """`layer` with gates that are all at π, made up for by 1/π: at first it computes what it did."""
        new = super().from_dense(layer, **({"compensate": True} | config))
        nn.init.zeros_(new.gate_weight)
        nn.init.constant_(new.gate_bias, new._first_bias)  # once more, in the layer's own precision
        return new

    @property
    def _first_bias(self) -> float:
        return log(self.initial / (1 - self.initial))

    def gates(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n h"]:
        slices = x.unflatten(-1, (self.heads, -1))
        return torch.sigmoid((slices * self.gate_weight).sum(-1) + self.gate_bias)

    def merge(self, heads, *, x, record=None):
        gates = self.gates(x)
        if record is not None:
            record.note("gates", gates)
        if self.compensate:
            gates = gates / self.initial
        return super().merge(heads * gates.transpose(1, 2)[..., None], x=x, record=record)

    def reference(self, x, context=None, padding=None):
        self.check_inputs(x, context, padding)
        q, k, v = self.project(x, context)
        pattern = self.visible(k.shape[2], across=context is not None, padding=padding)
        heads = self.attend_reference(q, k, v, x=x, pattern=pattern)
        width, parts = self.dim // self.heads, []
        for h in range(self.heads):
            logit = x[..., h * width : (h + 1) * width] @ self.gate_weight[h] + self.gate_bias[h]
            gate = 1 / (1 + torch.exp(-logit)) / (self.initial if self.compensate else 1)
            columns = self.to_out.weight[:, h * self.head_dim : (h + 1) * self.head_dim]
            parts.append(gate[..., None] * heads[:, h] @ columns.mT)
        return sum(parts) + (0 if self.to_out.bias is None else self.to_out.bias)
