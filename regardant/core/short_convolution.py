"""A convolution along time with one short filter a channel, whole and step by step.

y_t = Σ_s w_s ∘ x_(t - k + 1 + s)                 causal: the last filter tap is for the newest token
y_t = Σ_s w_s ∘ x_(t - (k - 1)/2 + s)             otherwise: the middle one is for the token itself
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require


class ShortConvolution(nn.Module):
    """Depth-wise, with zeros beyond the ends; it starts near the identity."""

    def __init__(self, channels: int, kernel: int, *, causal: bool):
        super().__init__()
        require(kernel >= 1, f"kernel is {kernel}, but a filter has at least 1 tap")
        require(
            causal or kernel % 2 == 1,
            f"kernel is {kernel}, but a filter that is not causal is centred on its token: make it odd",
        )
        self.before = kernel - 1 if causal else kernel // 2
        self.after = kernel - 1 - self.before
        self.weight = nn.Parameter(0.02 * torch.randn(channels, kernel))
        with torch.no_grad():
            self.weight[:, self.before] += 1

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        padded = F.pad(x, (0, 0, self.before, self.after))
        taps = self.weight.unbind(-1)
        return sum(padded[:, at : at + x.shape[1]] * tap for at, tap in enumerate(taps))

    def start(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b p c"]:
        """The tokens behind which `step` goes on: the last of x, with zeros where it is shorter."""
        recent = x[:, max(x.shape[1] - self.before, 0) :]
        return F.pad(recent, (0, 0, self.before - recent.shape[1], 0))

    def step(
        self, x_t: Float[Tensor, "b c"], recent: Float[Tensor, "b p c"]
    ) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b p c"]]:
        window = torch.cat([recent, x_t[:, None]], dim=1)
        return (window * self.weight.mT).sum(1), window[:, 1:]
