"""Random-feature attention, to learn what a single attention layer can learn (Fu et al., "What can a Single
Attention Layer Learn? A Study Through the Random Features Lens", 2023, arXiv:2307.11353).

A query x_0 and N keys x_1 … x_N, each with a 1 behind it (x̃); M heads with frozen random query-key matrices;
only the values v_m are learned, so that learning is ridge regression:

    f(x) = Σ_m 1/N Σ_i relu(x̃_0ᵀ W_m x̃_i) ⟨v_m, x̃_i⟩          W_m = W_0 + deviation · Gaussian

W_0 is zero, or with `biased` the identity on the coordinates of x: heads then look at what correlates with
the query. The features are divided by √M, so that a ridge means the same for any M. f does not change when
the keys change places; the rival, random features of all coordinates in a row, must learn that it should not:

    f(x) = Σ_m v_m relu(⟨w_m, [x_0; …; x_N; 1]⟩)

There is no softmax on purpose: the theory is of this 1/N. No official code was published. A deviation of 1/2
is ours, as the paper's could not be read; where W_0 is zero it does not matter, for relu passes it through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from regardant.core.errors import require
from regardant.core.network import Example, Network
from regardant.core.ridge import best_ridge

STRENGTHS = tuple(10.0**power for power in range(-9, 1))
"""The ridges that are tried, each per sample."""
PIECE = 128
"""Samples that are worked on at once: their scores with every head and key must fit."""


class RandomFeatures(Network):
    """A linear model on frozen random features. `tokens` [b, 1 + N, dim]: the query, then the keys."""

    def __init__(self, dim: int, count: int):
        super().__init__()
        require(dim >= 1, f"dim is {dim}, but tokens are at least 1 wide")
        self.dim = dim
        self.values = nn.Parameter(torch.zeros(count))

    def features(self, tokens: Float[Tensor, "b n dim"]) -> Float[Tensor, "b features"]:
        """Φ(x)."""
        raise NotImplementedError

    def forward(self, tokens: Float[Tensor, "b n dim"]) -> Float[Tensor, " b"]:
        return self.features(tokens) @ self.values

    @torch.no_grad()
    def fit(
        self, tokens: Float[Tensor, "b n dim"], targets: Float[Tensor, " b"],
        held_out: tuple[Float[Tensor, "m n dim"], Float[Tensor, " m"]], *,
        strengths: Sequence[float] = STRENGTHS,
    ) -> None:  # fmt: skip
        """Set the values by the ridge regression that is best on what was held out."""
        kept, right = held_out
        weights = best_ridge(self._all(tokens), targets, (self._all(kept), right), strengths)
        self.values.copy_(weights)

    @torch.no_grad()
    def predict(self, tokens: Float[Tensor, "b n dim"]) -> Float[Tensor, " b"]:
        """`forward` without gradients, in memory that does not grow with the samples."""
        return self._all(tokens) @ self.values

    def _all(self, tokens: Tensor) -> Tensor:
        return torch.cat([self.features(piece) for piece in tokens.split(PIECE)])

    def check(self, tokens: Tensor) -> None:
        require(
            tokens.ndim == 3 and tokens.shape[2] == self.dim and tokens.shape[1] >= 2,
            f"tokens is {tuple(tokens.shape)}, but it is [batch, 1 + keys, {self.dim}] with a key at least",
        )


class RandomFeatureAttention(RandomFeatures):
    """Attention with random queries and keys; its values have heads · (dim + 1) weights."""

    def __init__(self, dim: int, heads: int, *, biased: bool = False, deviation: float = 0.5):
        super().__init__(dim, heads * (dim + 1))
        require(heads >= 1, f"heads is {heads}, but there is at least 1")
        require(deviation > 0, f"deviation is {deviation}, but random weights have a positive one")
        self.heads = heads
        weights = deviation * torch.randn(heads, dim + 1, dim + 1)
        if biased:
            weights[:, :dim, :dim] += torch.eye(dim)
        self.register_buffer("weights", weights)

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Example]:
        for batch, keys, biased in ((2, 1, False), (3, 6, True), (2, 17, False)):
            tokens = torch.randn(batch, 1 + keys, 4, generator=generator, dtype=torch.float64)
            yield Example({"dim": 4, "heads": 5, "biased": biased}, (tokens,))

    def features(self, tokens: Float[Tensor, "b n dim"]) -> Float[Tensor, "b features"]:
        self.check(tokens)
        extended = F.pad(tokens, (0, 1), value=1.0)
        query, keys = extended[:, 0], extended[:, 1:]
        scores = torch.einsum("bd,mde->bme", query, self.weights) @ keys.transpose(1, 2)
        mixed = scores.relu() @ keys / keys.shape[1]
        return mixed.flatten(1) / self.heads**0.5

    def reference(self, tokens: Float[Tensor, "b n dim"]) -> Float[Tensor, " b"]:
        self.check(tokens)
        extended = torch.cat([tokens, torch.ones_like(tokens[..., :1])], dim=-1)
        values, keys = self.values.view(self.heads, self.dim + 1), tokens.shape[1] - 1
        total = tokens.new_zeros(len(tokens))
        for weight, value in zip(self.weights, values):
            for at in range(1, keys + 1):
                score = ((extended[:, 0] @ weight) * extended[:, at]).sum(dim=1)
                total = total + score.clamp(min=0) * (extended[:, at] @ value) / keys
        return total / self.heads**0.5


class RandomFeatureMLP(RandomFeatures):
    """Random features of query and keys in a row: what attention is compared with."""

    def __init__(self, dim: int, keys: int, count: int):
        super().__init__(dim, count)
        require(keys >= 1 and count >= 1, f"keys={keys} and count={count} are at least 1")
        self.keys, self.count = keys, count
        self.register_buffer("weights", torch.randn(count, (keys + 1) * dim + 1))

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Example]:
        for batch, keys in ((2, 1), (3, 6)):
            tokens = torch.randn(batch, 1 + keys, 4, generator=generator, dtype=torch.float64)
            yield Example({"dim": 4, "keys": keys, "count": 9}, (tokens,))

    def features(self, tokens: Float[Tensor, "b n dim"]) -> Float[Tensor, "b features"]:
        self.check(tokens)
        flat = F.pad(tokens.flatten(1), (0, 1), value=1.0)
        return (flat @ self.weights.T).relu() / self.count**0.5

    def reference(self, tokens: Float[Tensor, "b n dim"]) -> Float[Tensor, " b"]:
        self.check(tokens)
        inner, constant = self.weights[:, :-1].unflatten(1, (self.keys + 1, self.dim)), self.weights[:, -1]
        scores = torch.einsum("bnd,mnd->bm", tokens, inner) + constant
        return (scores.clamp(min=0) * self.values).sum(dim=1) / self.count**0.5

    def check(self, tokens: Tensor) -> None:
        super().check(tokens)
        require(
            tokens.shape[1] == self.keys + 1,
            f"tokens holds {tokens.shape[1] - 1} keys, but this model was made for {self.keys}",
        )
