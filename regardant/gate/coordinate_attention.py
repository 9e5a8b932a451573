"""Coordinate attention (Hou et al., "Coordinate Attention for Efficient Mobile Network Design", 2021,
arXiv 2103.02907).

    z  = [mean over the width of x, mean over the height of x]     one sequence of h + w positions
    f  = δ(BN(W z))                                                channels / reduction, at least 8
    y  = x · σ(Wₕ f[:h]) · σ(W_w f[h:])

δ is the hard swish. The batch normalisation over all positions of both axes is what small batches disturb.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from regardant.core.errors import require
from regardant.core.gate import Gate
from regardant.core.supports import Supports

NARROWEST = 8


class CoordinateAttention(Gate):
    """Weighs positions by row and by column, through one bottleneck that both axes share."""

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False,
        grouped=False, time=1.0, memory=1.0, state=0.0,
    )  # fmt: skip

    def __init__(self, channels: int, *, reduction: int = 32):
        super().__init__()
        require(channels >= 1, f"channels is {channels}, but a map has at least 1")
        require(reduction >= 1, f"reduction is {reduction}, but it is at least 1")
        narrow = max(NARROWEST, channels // reduction)
        self.channels = channels
        self.narrow, self.norm = nn.Conv1d(channels, narrow, 1), nn.BatchNorm1d(narrow)
        self.rows, self.columns = nn.Conv1d(narrow, channels, 1), nn.Conv1d(narrow, channels, 1)

    def maps(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b c h 1"], Float[Tensor, "b c 1 w"]]:
        """The weights of rows and of columns."""
        profiles = torch.cat([x.mean(dim=3), x.mean(dim=2)], dim=2)
        both = F.hardswish(self.norm(self.narrow(profiles)))
        of_rows, of_columns = both.split(x.shape[2:], dim=2)
        return self.rows(of_rows).sigmoid()[..., None], self.columns(of_columns).sigmoid()[:, :, None]

    def weights(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        rows, columns = self.maps(x)
        return rows * columns

    def reference(self, x):
        self.check_map(x)
        norm, height, width = self.norm, *x.shape[2:]
        means = [x.sum(dim=3) / width, x.sum(dim=2) / height]
        narrow = [_pointwise(self.narrow, mean) for mean in means]
        if norm.training:
            both = torch.cat(narrow, dim=2)
            mean, variance = both.mean(dim=(0, 2)), both.var(dim=(0, 2), unbiased=False)
        else:
            mean, variance = norm.running_mean, norm.running_var
        gates = []
        for each, out in zip(narrow, (self.rows, self.columns)):
            normed = (each - mean[:, None]) / (variance[:, None] + norm.eps).sqrt()
            normed = normed * norm.weight[:, None] + norm.bias[:, None]
            bent = normed * (normed + 3).clamp(0, 6) / 6
            gates.append(1 / (1 + torch.exp(-_pointwise(out, bent))))
        return x * gates[0][:, :, :, None] * gates[1][:, :, None, :]


def _pointwise(layer: nn.Conv1d, x: Float[Tensor, "b c n"]) -> Float[Tensor, "b k n"]:
    return torch.einsum("kc,bcn->bkn", layer.weight[..., 0], x) + layer.bias[:, None]
