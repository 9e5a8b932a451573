"""Spectral gating (Patro et al., "SpectFormer: Frequency and Attention is what you need in a Vision
Transformer", 2023, arXiv 2304.06446; after Rao et al., GFNet, 2021, arXiv 2107.00645).

    y = F⁻¹(W ∘ F(x))        F: the two-dimensional Fourier transform of a map, channel by channel

W is learned, one complex number a frequency and channel, for the half of the frequencies that a real map has.
The same as a circular depthwise convolution with the kernel F⁻¹(W), as large as the map: what lies at the
left edge is near what lies at the right one. Mixing costs n log n, and the filter does not depend on the map.

W belongs to maps of the size that it was made for; for others it is interpolated over the grid of frequencies
(bicubic, as GFNet does). Both transforms are orthonormal, so that no factor is left over, and run in float32
at least. What differs from the official code: where a map has an even side, the transform back does not hear
the imaginary part of W at the frequencies that are their own conjugates; those numbers are kept here, too, so
that released weights fit.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex
from torch import Tensor, nn
from torch.nn import functional as F

from regardant.core.errors import require
from regardant.core.grid_geometry import per_axis
from regardant.core.grid_mixer import GridMixer
from regardant.core.supports import Supports


class SpectralGate(GridMixer):
    """A learned filter over the frequencies of a map; `size` is that of the maps which it is learned on."""

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False,
        grouped=False, time=1.0, memory=1.0, state=0.0,
    )  # fmt: skip

    def __init__(self, dim: int, *, size: int | tuple[int, int] = 14):
        super().__init__()
        require(dim >= 1, f"dim is {dim}, but a layer is at least 1 wide")
        self.dim = dim
        self.size = per_axis(size, 2, "size")
        require(min(self.size) >= 1, f"size is {size}, but a map has at least 1 position along each axis")
        height, width = self.size
        self.weight = nn.Parameter(0.02 * torch.randn(height, width // 2 + 1, dim, 2))

    def filter(self, height: int, width: int) -> Complex[Tensor, "h f c"]:
        """W for maps of this size."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        if (height, width) != self.size:
            parts = weight.flatten(2).permute(2, 0, 1)[None]
            parts = F.interpolate(parts, (height, width // 2 + 1), mode="bicubic", align_corners=False)
            weight = parts[0].permute(1, 2, 0).unflatten(2, (self.dim, 2)).contiguous()
        return torch.view_as_complex(weight)

    def forward(self, x, *, record=None):
        self.check_map(x, self.weight)
        size = x.shape[1:3]
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        heard = torch.fft.rfft2(exact, dim=(1, 2), norm="ortho") * self.filter(*size)
        return torch.fft.irfft2(heard, s=size, dim=(1, 2), norm="ortho").to(x.dtype)

    def reference(self, x):
        """By the matrices of the transforms."""
        self.check_map(x, self.weight)
        height, width = x.shape[1:3]
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        rows, columns = (_transform(side, exact) for side in (height, width))
        half = width // 2 + 1
        heard = torch.einsum("yh,kw,bhwc->bykc", rows, columns[:half], torch.complex(exact, 0 * exact))
        heard = torch.einsum("yh,bykc->bhkc", rows.conj(), heard * self.filter(height, width))
        # A real map has every frequency twice, but the first and, of an even side, the last of the half.
        times = torch.full((half,), 2.0, dtype=exact.dtype)
        times[0] = 1.0
        if width % 2 == 0:
            times[-1] = 1.0
        back = columns[:half].conj() * times[:, None]
        return torch.einsum("kw,bhkc->bhwc", back, heard).real.to(x.dtype)


def _transform(side: int, like: Tensor) -> Complex[Tensor, "n n"]:
    """e^(-2πi jk / n) / √n."""
    at = torch.arange(side, dtype=like.dtype, device=like.device)
    angle = -2 * math.pi / side * at[:, None] * at
    return torch.polar(torch.full_like(angle, side**-0.5), angle)
