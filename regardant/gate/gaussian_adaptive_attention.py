"""Gaussian adaptive attention over channels (Ioannides et al., "Gaussian Adaptive Attention is All You Need:
Robust Contextual Representations Across Multiple Modalities", 2024, arXiv:2401.11143).

At every position, channels are standardised among those of their run, scored by learned Gaussians of their
standardised values, and weighted by their share of the score:

    y = x · w,      w along the channels of a run: see `regardant.core.gaussian_weights`

Each of the paper's heads has a run of channels; the last takes what is left over. There are 2 · gaussians
numbers a run. Weights of a run sum to 1, so what comes out is smaller by about its width: a residual (the
released stack is x + gate(x)), a norm or a linear layer belongs behind it. Averaged over data, the weights
rank channels: `importance`.

What differs from the official code: the product of densities is taken in logarithms, so that it cannot
vanish, and is not cut off where its sum falls below 1e-8; a run of one channel, whose variance is undefined,
is refused; there is no value that marks padding. The paper's "mixture" is a product in the code, and here by
default; `combine="sum"` is the mixture.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.gate import Gate
from regardant.core.gaussian_weights import EPSILON, NARROWEST, Combine, gaussian_weights, importance_factor
from regardant.core.supports import Supports


class GaussianAdaptiveAttention(Gate):
    """Weighs each channel by how it stands among its run's channels at the same position."""

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False,
        grouped=False, time=1.0, memory=1.0, state=0.0,
    )  # fmt: skip

    def __init__(self, channels: int, *, runs: int = 4, gaussians: int = 3, combine: Combine = "product"):
        super().__init__()
        require(runs >= 1, f"runs is {runs}, but channels are in at least 1")
        require(
            channels // runs >= 2,
            f"channels={channels} in runs={runs} leave a run fewer than 2 channels, which have no variance",
        )
        require(gaussians >= 1, f"gaussians is {gaussians}, but a channel is scored by at least 1")
        require(combine in ("product", "sum"), f"combine is {combine!r}, but it is 'product' or 'sum'")
        self.channels, self.runs, self.combine = channels, runs, combine
        self.offsets = nn.Parameter(torch.zeros(runs, gaussians))
        self.widths = nn.Parameter(torch.randn(runs, gaussians).exp())

    @property
    def sizes(self) -> list[int]:
        """How many channels each run has."""
        size = self.channels // self.runs
        return [size] * (self.runs - 1) + [self.channels - size * (self.runs - 1)]

    def weights(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        parts = [
            gaussian_weights(part, offsets, widths, axis=1, combine=self.combine)
            for part, offsets, widths in zip(x.split(self.sizes, dim=1), self.offsets, self.widths)
        ]
        return torch.cat(parts, dim=1).to(x.dtype)

    @torch.no_grad()
    def importance(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "c"]:
        """The importance factor of each channel on these maps: from 0 for the least weighted one to 1."""
        self.check_map(x)
        return importance_factor(self.weights(x).movedim(1, -1))

    def reference(self, x):
        self.check_map(x)
        parts = []
        for part, offsets, widths in zip(x.split(self.sizes, dim=1), self.offsets, self.widths):
            mean = part.mean(1, keepdim=True)
            deviation = (part.var(1, keepdim=True) + EPSILON).sqrt()
            score = [
                torch.distributions.Normal(0.0, (width.square() + NARROWEST).sqrt()).log_prob(
                    (part - (mean + offset)) / deviation
                )
                for offset, width in zip(offsets, widths)
            ]
            score = torch.stack(score)
            score = score.sum(0) if self.combine == "product" else score.exp().sum(0).log()
            density = (score - score.amax(1, keepdim=True)).exp()
            parts.append(part * density / density.sum(1, keepdim=True))
        return torch.cat(parts, dim=1)
