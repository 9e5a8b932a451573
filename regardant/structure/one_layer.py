"""One attention layer and a decoder, with nothing between: the model of "Scan and Snap" (Tian et al., 2023).

The last token m of a sequence is the query, the tokens before it are looked at, without positions. With
c_l the number of times that token l stands there,

    b_l = c_l exp(z_ml) / Σ_l' c_l' exp(z_ml'),      f = b / ‖b‖₂,      logits = Yᵀ f

Y and Z (vocabulary × vocabulary) stand for products of the embeddings with the weights of decoder, values,
queries and keys; both start at zero, so that attention begins as frequency. ‖·‖₂ stands for the layer norm:
without it there is no snap.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from regardant.core.errors import require
from regardant.core.network import Example, Network
from regardant.core.record import Record


class OneLayer(Network):
    """tokens [b, n] → the logits of what follows the last."""

    def __init__(self, vocabulary: int):
        super().__init__()
        require(vocabulary >= 1, f"vocabulary is {vocabulary}, but there is at least 1 token")
        self.vocabulary = vocabulary
        self.decoder = nn.Parameter(torch.zeros(vocabulary, vocabulary))
        """Y: what each token that is attended to says for each token that may follow."""
        self.scores = nn.Parameter(torch.zeros(vocabulary, vocabulary))
        """Z: by query, then by the token that is looked at."""

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Example]:
        for batch, length in ((2, 2), (3, 9), (2, 40)):
            tokens = torch.randint(7, (batch, length), generator=generator)
            yield Example({"vocabulary": 7}, (tokens,))

    def forward(self, tokens: Int[Tensor, "b n"], *, record: Record | None = None) -> Float[Tensor, "b v"]:
        self._check(tokens)
        ones = torch.ones((), dtype=self.scores.dtype, device=tokens.device).expand(
            len(tokens), tokens.shape[1] - 1
        )
        counts = self.scores.new_zeros(len(tokens), self.vocabulary).scatter_add(1, tokens[:, :-1], ones)
        return self.from_counts(counts, tokens[:, -1])

    def from_counts(self, counts: Float[Tensor, "b v"], query: Int[Tensor, " b"]) -> Float[Tensor, "b v"]:
        """The same, for contexts that are known by how often each token stands in them (or how likely)."""
        return F.normalize(self.attention(counts, query), dim=-1) @ self.decoder

    def attention(self, counts: Float[Tensor, "b v"], query: Int[Tensor, " b"]) -> Float[Tensor, "b v"]:
        """b: the part of the attention that goes to each token; a token that is not there gets none."""
        # log 0 is −∞: exp(0) is never given to a token that is absent.
        return (self.scores[query] + counts.log()).softmax(dim=-1)

    def reference(self, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b v"]:
        self._check(tokens)
        rows = []
        for context, query in zip(tokens[:, :-1], tokens[:, -1]):
            raised = self.scores[query, context].exp()
            one_hot = F.one_hot(context, self.vocabulary).to(raised.dtype)
            mixed = (raised / raised.sum()) @ one_hot
            rows.append(self.decoder.T @ (mixed / mixed.square().sum().sqrt()))
        return torch.stack(rows)

    def _check(self, tokens: Tensor) -> None:
        require(
            tokens.ndim == 2 and tokens.shape[1] >= 2 and tokens.dtype == torch.int64,
            f"tokens is {tuple(tokens.shape)} of {tokens.dtype}, but it is [batch, length] of int64, "
            "a context and its query",
        )
