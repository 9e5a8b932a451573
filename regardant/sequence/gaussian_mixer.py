"""Gaussian adaptive attention over tokens (Ioannides et al., "Gaussian Adaptive Attention is All You Need:
Robust Contextual Representations Across Multiple Modalities", 2024, arXiv:2401.11143).

The same weights as the paper's gate over channels, along the time axis: in every channel, a token is scored
by learned Gaussians of how it stands among the tokens of its run, and weighted by its share of the score,

    y_t = x_t ∘ w_t,      w along the tokens of a run: see `regardant.core.gaussian_weights`

Each of the paper's heads has a run of consecutive tokens: of m tokens in h runs, m // h each, and the last
takes what is left (with fewer tokens than runs, the first m have one each). All that tokens tell each other
is the mean and the variance of a channel, at linear cost; there are 2 · gaussians numbers a run, and no
projections. A mean over all tokens knows the future, so there is no causal form.

What differs from the official code: padding is left out of runs, of statistics and of weights, where
there it counts as zeros; logarithms and widths as in `regardant.gate.gaussian_adaptive_attention`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from regardant.core.checks import check_input
from regardant.core.errors import require
from regardant.core.gaussian_weights import Combine, gaussian_weights
from regardant.core.mixer import Mixer
from regardant.core.supports import Supports


class GaussianMixer(Mixer):
    """Weighs tokens, channel by channel, by how they stand among the tokens of their run.

    The record gets the observation "weights" [b, n, c].
    """

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, grouped=False,
        linear_in_values=False, time=1.0, memory=1.0, state=0.0,
    )  # fmt: skip

    def __init__(self, dim: int, *, runs: int = 1, gaussians: int = 3, combine: Combine = "product"):
        super().__init__()
        require(dim >= 1, f"dim is {dim}, but a layer is at least 1 wide")
        require(runs >= 1, f"runs is {runs}, but tokens are in at least 1")
        require(gaussians >= 1, f"gaussians is {gaussians}, but a token is scored by at least 1")
        require(combine in ("product", "sum"), f"combine is {combine!r}, but it is 'product' or 'sum'")
        self.dim, self.runs, self.combine, self.causal = dim, runs, combine, False
        self.offsets = nn.Parameter(torch.zeros(runs, gaussians))
        self.widths = nn.Parameter(torch.randn(runs, gaussians).exp())

    def parted(self, real: Bool[Tensor, "b n"]) -> Bool[Tensor, "h b n"]:
        """Which tokens are whose."""
        size = (real.sum(1, keepdim=True) // self.runs).clamp(min=1)
        run = ((real.cumsum(1) - 1) // size).clamp(max=self.runs - 1)
        return (run == torch.arange(self.runs, device=real.device)[:, None, None]) & real

    def weights(self, x: Tensor, padding: Bool[Tensor, "b n"] | None = None) -> Tensor:
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if padding is None else padding
        each = zip(self.parted(real), self.offsets, self.widths)
        parts = (
            gaussian_weights(x, offsets, widths, axis=1, combine=self.combine, real=own[..., None])
            for own, offsets, widths in each
        )
        return sum(parts).to(x.dtype)

    def forward(self, x, context=None, padding=None, *, record=None):
        self._check(x, context, padding)
        weights = self.weights(x, padding)
        if record is not None:
            record.note("weights", weights)
        return x * weights

    def reference(self, x, context=None, padding=None):
        """Sample by sample and run by run, over real tokens alone, from densities."""
        self._check(x, context, padding)
        y = torch.zeros_like(x)
        for b in range(len(x)):
            at = torch.arange(x.shape[1]) if padding is None else padding[b].nonzero().flatten()
            size = max(len(at) // self.runs, 1)
            for run in range(self.runs):
                end = len(at) if run == self.runs - 1 else (run + 1) * size
                own = at[run * size : end]
                if len(own):
                    y = y.index_put((torch.tensor(b), own), self._weighed(x[b, own], run))
        return y

    def _weighed(self, x: Tensor, run: int) -> Tensor:
        variance = x.var(0, keepdim=True) if len(x) > 1 else torch.zeros_like(x)
        deviation = (variance + 1e-8).sqrt()
        score = [
            torch.distributions.Normal(0.0, width.abs()).log_prob((x - x.mean(0) - offset) / deviation)
            for offset, width in zip(self.offsets[run], self.widths[run])
        ]
        score = torch.stack(score)
        score = score.sum(0) if self.combine == "product" else score.logsumexp(0)
        density = (score - score.amax(0)).exp()
        return x * density / density.sum(0)

    def _check(self, x: Tensor, context: Tensor | None, padding: Tensor | None) -> None:
        check_input("x", x, "batch, length, width", self.dim, self.offsets)
        require(context is None, "context is given, but GaussianMixer has no use for it")
        require(x.shape[1] > 0, "there is no token to weigh: the length is 0")
        if padding is not None:
            require(
                padding.dtype == torch.bool and padding.shape == x.shape[:2],
                f"padding is {padding.dtype} {list(padding.shape)}, but it is bool {list(x.shape[:2])}, "
                "True where real",
            )
