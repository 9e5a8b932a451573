"""One layer of attention that regresses in context (He et al., "In-Context Linear Regression Demystified",
2025, arXiv:2503.12734).

    prediction = Σ_h v_h · Σ_l softmax_l(z_lᵀ M_h z_q) z_l

over the context rows z_l = [x_l, y_l] alone, z_q = [x_q, 0] being the last row. M_h is the product of a
head's key and query matrices, v_h the one row of its output and value matrices that reaches the prediction.
There is no 1/√d, no position and no MLP. Trained, it ends where `regardant.lens.in_context_regression` reads
it off: M_h = ω_h on the x part, v_h = μ_h on y, Σ μ_h = 0.

`LinearInContextAttention` divides the scores by a fixed `length` in place of the softmax.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.network import Example, Network


class InContextAttention(Network):
    """`heads` heads of softmax attention from the query to the context; parameters start small and random."""

    def __init__(self, features: int, heads: int, *, spread: float = 0.1):
        super().__init__()
        require(features >= 1, f"features is {features}, but x has at least 1")
        require(heads >= 1, f"heads is {heads}, but there is at least 1")
        require(spread > 0, f"spread is {spread}, but parameters that all start at 0 would stay alike")
        width = features + 1
        self.key_query = nn.Parameter(spread * torch.randn(heads, width, width))
        self.value = nn.Parameter(spread * torch.randn(heads, width))

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Example]:
        for features, heads, length in ((1, 1, 1), (5, 2, 12), (3, 4, 40)):
            rows = torch.randn(3, length + 1, features + 1, generator=generator, dtype=torch.float64)
            yield Example(dict(features=features, heads=heads), (rows,))

    def weights(self, scores: Float[Tensor, "b h l"]) -> Float[Tensor, "b h l"]:
        return scores.softmax(dim=-1)

    def forward(self, z: Float[Tensor, "b n c"]) -> Float[Tensor, "b"]:
        width = self.value.shape[-1]
        require(
            z.ndim == 3 and z.shape[1] >= 2 and z.shape[2] == width,
            f"z has shape {tuple(z.shape)}, but it is [batch, examples and the query, {width}]",
        )
        context, query = z[:, :-1], z[:, -1]
        asked = torch.einsum("hcd,bd->bhc", self.key_query, query)
        weights = self.weights(asked @ context.mT)
        return ((weights @ context) * self.value).sum(dim=(1, 2))

    def reference(self, z: Float[Tensor, "b n c"]) -> Float[Tensor, "b"]:
        """Head by head."""
        context, query = z[:, :-1], z[:, -1]
        total = 0
        for matrix, value in zip(self.key_query, self.value):
            scores = torch.stack([(row @ matrix * query).sum(-1) for row in context.unbind(1)], dim=-1)
            total = total + (self.weights(scores) * (context @ value)).sum(-1)
        return total


class LinearInContextAttention(InContextAttention):
    """The same with scores divided by `length`, the length that it is trained at, and no softmax."""

    def __init__(self, features: int, heads: int, *, length: int, spread: float = 0.1):
        super().__init__(features, heads, spread=spread)
        require(length >= 1, f"length is {length}, but a context has at least 1 example")
        self.length = length

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Example]:
        for example in super().examples(generator):
            yield Example({**example.config, "length": 12}, example.inputs)

    def weights(self, scores):
        return scores / self.length
