"""Layers as others write them: nothing here knows of this project."""

import torch
from torch import nn


class CausalAttention(nn.Module):
    """torch's own attention under a causal mask."""

    diagonal = 1

    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.causal = True
        self.inner = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True)

    def forward(self, x, key_padding_mask=None):
        n = x.shape[1]
        hidden = torch.ones(n, n, dtype=torch.bool).triu(self.diagonal)
        out, _ = self.inner(x, x, x, attn_mask=hidden, key_padding_mask=key_padding_mask, need_weights=False)
        return out


class OneTooFar(CausalAttention):
    """The mask begins one place too late."""

    diagonal = 2


class Silent(nn.Module):
    """Says nothing about causality; takes no argument."""

    def __init__(self):
        super().__init__()
        self.mix = nn.GRU(12, 12, batch_first=True)

    def forward(self, x):
        return self.mix(x)[0]


class Both(Silent):
    """A layer of either direction, chosen by its constructor."""

    def __init__(self, d_model, n_heads=2, is_causal=False):
        super().__init__()
        self.inner = CausalAttention(d_model, n_heads)
        self.inner.diagonal = 1 if is_causal else 10_000

    def forward(self, x):
        return self.inner(x)


class FoursOnly(nn.Module):
    """Blocks of four: other lengths raise."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim
        self.mix = nn.Linear(4 * dim, 4 * dim)

    def forward(self, x):
        return self.mix(x.reshape(x.shape[0], -1, 4 * x.shape[2])).reshape(x.shape)


class SinglePrecision(nn.Module):
    """Keeps a float32 tensor that no `.double()` reaches."""

    def __init__(self, dim):
        super().__init__()
        self.mix = nn.Linear(dim, dim)
        self.turn = torch.eye(dim)

    def forward(self, x):
        return self.mix(x) @ self.turn


class SqueezeExcite(nn.Module):
    """A gate on [b, c, h, w]."""

    def __init__(self, in_channels):
        super().__init__()
        self.weights = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(in_channels, in_channels, 1), nn.Sigmoid()
        )

    def forward(self, x):
        return x * self.weights(x)


class ChannelsLast(nn.Module):
    """A mixer on [b, h, w, c] only."""

    def __init__(self, dim):
        super().__init__()
        self.mix = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x):
        return self.mix(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class PlainAttention(nn.Module):
    """A rule: queries, keys and values."""

    def forward(self, q, k, v):
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


class NeedsMore(nn.Module):
    """A constructor that nobody can guess."""

    def __init__(self, dim, codebook):
        super().__init__()
        self.mix = nn.Linear(dim, dim)

    def forward(self, x):
        return self.mix(x)


def made():
    """A factory."""
    return CausalAttention(16, 4)


instance = CausalAttention(16, 4)
number = 7
