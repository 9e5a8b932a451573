"""Multi-head layers of double precision to try things on, and their inputs."""

import torch

from regardant.core.mixer import MultiHead
from regardant.core.supports import Supports


def made(dim=12, heads=4, *, seed=0, **own):
    torch.manual_seed(seed)
    return MultiHead(dim, heads, **own).double()


def tokens(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Ungrouped(MultiHead):
    supports = Supports(grouped=False, pattern=False, padding=False, step=False, causal_cross=False)
