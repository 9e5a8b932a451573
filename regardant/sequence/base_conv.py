"""BaseConv (Arora et al., "Zoology: Measuring and Improving Recall in Efficient Language Models", 2023,
arXiv:2312.04927): the least that a gated convolution can be.

    y = (x W + b₁) ⊙ (h * x + b₂) + x

with a causal filter h a channel. The filter is the same whatever the input: which is why such layers find
it hard to recall a pair from a place that only the content tells. `BaseConv` has a short filter of `kernel`
taps. `LongBaseConv` has one as long as the sequence, h_s = MLP(features of s/max_length) as in Hyena, and is
worked through the Fourier transform; it decodes in time linear in what came before, which it has to keep.

The "+ x" is in the official layer, beside the residual of the block around it. Theirs adds the input once
more inside the long convolution; here h has to learn that by itself. Padding is as if it were zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.state import Cache, State
from regardant.core.streaming import Streaming
from regardant.core.supports import Supports


@dataclass
class RecentState(State):
    """The last inputs that the filter still reaches [b, kernel - 1, c]; zeros before the first token."""

    recent: Float[Tensor, "b k c"]


class BaseConv(Streaming):
    """A gated convolution with a filter of `kernel` taps a channel."""

    supports = Supports(
        noncausal=False, cross=False, causal_cross=False, pattern=False, grouped=False,
        linear_in_values=False, time=1.0, memory=1.0, state=0.0,
    )  # fmt: skip

    def __init__(self, dim: int, *, causal: bool = True, kernel: int = 3):
        super().__init__()
        self.check_causal(causal)
        require(dim >= 1, f"dim is {dim}, but a layer is at least 1 wide")
        require(kernel >= 1, f"kernel is {kernel}, but a filter has at least 1 tap")
        self.dim, self.causal, self.kernel = dim, causal, kernel
        self.to_gate = nn.Linear(dim, dim)
        self.filter = nn.Conv1d(dim, dim, kernel, groups=dim)

    def run(self, x, state, *, padding=None, plainly=False):
        real = x if padding is None else x.masked_fill(~padding[..., None], 0)
        history = torch.cat([state.recent, real], dim=1)
        conv = self._plainly(history) if plainly else self.filter(history.mT).mT
        kept = history[:, history.shape[1] - self.kernel + 1 :]
        return self.to_gate(x) * conv + x, RecentState(state.length + x.shape[1], kept)

    def _plainly(self, history: Float[Tensor, "b m c"]) -> Float[Tensor, "b n c"]:
        """Tap by tap; the last tap is the token itself."""
        n = history.shape[1] - self.kernel + 1
        taps = (history[:, at : at + n] * self.filter.weight[:, 0, at] for at in range(self.kernel))
        return sum(taps) + self.filter.bias

    def start(self, batch, *, context=None, padding=None):
        self.check_start(context, padding)
        return RecentState(0, self.to_gate.weight.new_zeros(batch, self.kernel - 1, self.dim))

    def fits(self, state, batch):
        return isinstance(state, RecentState) and state.recent.shape == (batch, self.kernel - 1, self.dim)


@dataclass
class HistoryState(State):
    """Every input so far: a filter as long as the sequence reaches them all."""

    inputs: Cache


class LongBaseConv(Streaming):
    """A gated convolution with a filter over up to `max_length` tokens, made by an MLP of `hidden` units."""

    supports = Supports(
        noncausal=False, cross=False, causal_cross=False, pattern=False, grouped=False,
        linear_in_values=False, time=1.0, memory=1.0, state=1.0,
    )  # fmt: skip

    def __init__(self, dim: int, *, causal: bool = True, max_length: int = 8192, hidden: int = 16):
        super().__init__()
        self.check_causal(causal)
        for name, size in (("dim", dim), ("max_length", max_length), ("hidden", hidden)):
            require(size >= 1, f"{name} is {size}, but it is at least 1")
        self.dim, self.causal, self.max_length = dim, causal, max_length
        self.to_gate = nn.Linear(dim, dim)
        self.place, self.to_taps = nn.Linear(3, hidden), nn.Linear(hidden, dim)
        self.filter_bias = nn.Parameter(torch.zeros(dim))

    def filter(self, length: int) -> Float[Tensor, "n c"]:
        """h_s for s = 0 … length - 1, made from s/max_length and one turn of a circle over it."""
        weight = self.place.weight
        at = torch.arange(length, device=weight.device, dtype=weight.dtype) / self.max_length
        features = torch.stack([at, torch.cos(2 * pi * at), torch.sin(2 * pi * at)], dim=-1)
        return self.to_taps(torch.sin(self.place(features)))

    def run(self, x, state, *, padding=None, plainly=False):
        real = x if padding is None else x.masked_fill(~padding[..., None], 0)
        inputs = state.inputs.append(real)
        history, n = inputs.rows, x.shape[1]
        length = history.shape[1]
        require(
            length <= self.max_length,
            f"the sequence reaches length {length}, but the filter covers max_length={self.max_length}",
        )
        h = self.filter(length)
        if plainly:
            lag = torch.arange(length)[-n:, None] - torch.arange(length)
            conv = torch.einsum("tsc,bsc->btc", h[lag.clamp(min=0)] * (lag >= 0)[..., None], history)
        elif n == 1:
            conv = (h.flip(0) * history).sum(dim=1, keepdim=True)
        else:
            exact = torch.promote_types(x.dtype, torch.float32)
            along = (torch.fft.rfft(part.to(exact), n=2 * length, dim=-2) for part in (h, history))
            first, second = along
            conv = torch.fft.irfft(first * second, n=2 * length, dim=-2)[:, length - n : length].to(x.dtype)
        return self.to_gate(x) * (conv + self.filter_bias) + x, HistoryState(length, inputs)

    def start(self, batch, *, context=None, padding=None):
        self.check_start(context, padding)
        return HistoryState(0, Cache(self.to_gate.weight.new_zeros(batch, 0, self.dim)))

    def fits(self, state, batch):
        return isinstance(state, HistoryState) and state.inputs.rows.shape[::2] == (batch, self.dim)
