"""Small systems that keep their contract; each broken one is one of these with one thing changed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.gate import Gate
from regardant.core.grid_mixer import GridMultiHead
from regardant.core.grid_pattern import Neighborhood
from regardant.core.mixer import Mixer, MultiHead, check_input
from regardant.core.rule import Rule, SoftmaxRule, causal_and_padding
from regardant.core.state import State
from regardant.core.supports import Supports


class PlainSoftmax(MultiHead):
    """Softmax attention as the core has it."""

    supports = Supports(time=2.0, memory=1.0, state=1.0)


class DenseRule(Rule):
    """Softmax over a matrix of all logits; `weigh` is what the broken ones change."""

    supports = Supports(time=2.0, memory=2.0, state=1.0, step=False)

    def weigh(self, logits: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return logits.softmax(-1)
        some = mask.any(-1, keepdim=True)
        return logits.masked_fill(~mask & some, float("-inf")).softmax(-1) * some

    def forward(self, q, k, v, *, pattern=None, scale=None):
        if not self.supports.pattern:
            causal_and_padding(self, pattern)
        k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], dim=1) for part in (k, v))
        logits = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        i, j = torch.arange(q.shape[2]), torch.arange(k.shape[2])
        mask = None if pattern is None else pattern.block(i, j, batch=q.shape[0], heads=q.shape[1])
        return self.weigh(logits, mask) @ v

    reference = forward


@dataclass
class Sum(State):
    total: Tensor


class RunningMean(Mixer):
    """y_i = W Σ_{j≤i} decay^{i-j} x_j / (i + 1), in linear time and with a state of constant size."""

    supports = Supports(
        noncausal=False, cross=False, causal_cross=False, pattern=False, padding=False, grouped=False,
        linear_in_values=False, time=1.0, memory=1.0, state=0.0,
    )  # fmt: skip
    decay = 0.9

    def __init__(self, dim: int, *, causal: bool = True):
        super().__init__()
        require(dim >= 1, f"dim is {dim}, but a layer is at least 1 wide")
        require(causal, "causal=False, but a running mean has no future")
        self.dim, self.causal = dim, causal
        self.to_out = nn.Linear(dim, dim, bias=False)

    def check(self, x: Tensor, padding: Tensor | None) -> None:
        check_input("x", x, "batch, length, width", self.dim, self.to_out.weight)
        require(padding is None, "padding is given, but a running mean takes none")

    def means(self, x: Tensor) -> Tensor:
        total, rows = x.new_zeros(x.shape[0], x.shape[2]), []
        for t, row in enumerate(x.unbind(1)):
            total = total * self.decay + row
            rows.append(total / (t + 1))
        return torch.stack(rows, dim=1)

    def forward(self, x, context=None, padding=None, *, record=None):
        self.check(x, padding)
        return self.to_out(self.means(x))

    def reference(self, x, context=None, padding=None):
        return self.forward(x)

    def start(self, batch, *, context=None, padding=None):
        require(self.supports.step, "this running mean does not decode step by step")
        return Sum(0, self.to_out.weight.new_zeros(batch, self.dim))

    def step(self, x_t, state):
        check_input("x_t", x_t, "batch, width", self.dim, self.to_out.weight)
        total = state.total * self.decay + x_t
        return self.to_out(total / (state.length + 1)), Sum(state.length + 1, total)


class Near(GridMultiHead):
    """Softmax attention over the 3×3 nearest positions."""

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False,
        grouped=False, time=1.0,
    )  # fmt: skip

    def __init__(self, dim: int, heads: int):
        super().__init__(dim, heads, grid_pattern=Neighborhood(3))


class Squeeze(Gate):
    """x · sigmoid(W mean(x)), the mean over the map."""

    def __init__(self, channels: int):
        super().__init__()
        require(channels >= 1, f"channels is {channels}, but there is at least 1")
        self.channels = channels
        self.mix = nn.Linear(channels, channels)

    def weights(self, x):
        return self.mix(x.mean((2, 3))).sigmoid()[:, :, None, None]

    def reference(self, x):
        return self.forward(x)


class PlainRule(SoftmaxRule):
    """Softmax as a rule of its own."""
