"""Words from bytes, and sub-words from words (Feng et al., "Word-Level Representation From Bytes For Language
Modeling", 2022, arXiv:2211.12677): a language model without a table of words or sub-words at its input.

    e_j = E[b_j] + P[j]                            the bytes of one word; E has 256 rows and four for marks
    z   = W_o concat_h softmax(q_h (W_k e)ᵀ / √d_h) W_v e        over the word's own bytes, q learned
    x   = W LN(z)                                  the word's vector
    logits_i = U LN(gelu(W_f H + p_i))             behind the network: its i-th sub-word, for all i at once

A word has a few bytes and a network's cost grows with its words, so that the pooling is small beside it.
Since a byte's key and value are sums of what its row and its place give, both are made once for each row and
place, instead of once for each byte of a text.

We had the abstract and the introduction; no code was published. The pooling by learned queries, prediction at
sub-word level and masking of whole words are the paper's; the widths, P, the norms, f and one set of logits a
slot (instead of a small decoder) are our reading. A word that is padding throughout counts its first symbol,
so that it has a vector; longer words are cut, and two that begin alike become one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from regardant.core.checks import check_heads, check_input
from regardant.core.errors import require
from regardant.core.network import Example, Network

PAD, CLS, SEP, MASK = range(256, 260)
"""Marks stand behind the bytes; the last three are words of one symbol."""
SYMBOLS = 260
IGNORED = -100
"""The sub-word of a slot that a word does not need."""


class ByteWordEmbedding(Network):
    """Symbols [b, words, m], a word's bytes and then PAD → word vectors [b, words, dim].

    `byte_dim` is the width of bytes, `longest` the most symbols that a word has, `queries` how many ask.
    """

    def __init__(
        self, dim: int, *, byte_dim: int | None = None, longest: int = 16, heads: int = 4, queries: int = 1
    ):
        super().__init__()
        byte_dim = dim // 4 if byte_dim is None else byte_dim
        check_heads(byte_dim, heads, None, None)
        require(dim >= 1, f"dim is {dim}, but a word's vector is at least 1 wide")
        require(longest >= 1, f"longest is {longest}, but a word has at least 1 symbol")
        require(queries >= 1, f"queries is {queries}, but at least one asks")
        self.heads, self.longest = heads, longest
        self.byte = nn.Embedding(SYMBOLS, byte_dim)
        self.place = nn.Parameter(0.02 * torch.randn(longest, byte_dim))
        nn.init.normal_(self.byte.weight, std=0.02)
        self.queries = nn.Parameter(torch.randn(queries, byte_dim))
        self.to_k, self.to_v = (nn.Linear(byte_dim, byte_dim, bias=False) for _ in range(2))
        self.to_out = nn.Linear(queries * byte_dim, byte_dim, bias=False)
        self.norm, self.widen = nn.LayerNorm(byte_dim), nn.Linear(byte_dim, dim)

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Example]:
        for own, words in (({}, 5), ({"heads": 2, "queries": 3, "byte_dim": 6}, 1), ({"longest": 7}, 9)):
            longest = own.get("longest", 5)
            symbols = torch.randint(SYMBOLS, (3, words, longest), generator=generator)
            length = torch.randint(longest + 1, (3, words, 1), generator=generator)
            symbols = symbols.where(torch.arange(longest) < length, PAD)
            yield Example({"dim": 9, "byte_dim": 8, "longest": longest, **own}, (symbols,))

    def forward(self, symbols: Int[Tensor, "b w m"]) -> Float[Tensor, "b w d"]:
        self.check(symbols)
        m, real = symbols.shape[2], self.real(symbols)
        ask = self._ask()
        rows, places = self.byte.weight, self.place[:m]
        scores = F.embedding(symbols, rows @ ask) + places @ ask
        scores = scores.unflatten(-1, (-1, self.heads)).masked_fill(~real[..., None, None], -torch.inf)
        share = scores.softmax(dim=2)
        values = (F.embedding(symbols, self.to_v(rows)) + self.to_v(places)).unflatten(-1, (self.heads, -1))
        z = torch.einsum("bwmqh,bwmhd->bwqhd", share, values)
        return self.widen(self.norm(self.to_out(z.flatten(2))))

    def _ask(self) -> Float[Tensor, "c q*h"]:
        """What each query and head scores a byte's vector by: q_hᵀ W_k / √d_h."""
        width = self.queries.shape[1] // self.heads
        keys = self.to_k.weight.view(self.heads, width, -1)
        asked = torch.einsum("qhd,hdc->cqh", self.queries.unflatten(1, (self.heads, width)), keys)
        return asked.flatten(1) * width**-0.5

    def reference(self, symbols: Int[Tensor, "b w m"]) -> Float[Tensor, "b w d"]:
        self.check(symbols)
        vectors = []
        for word in symbols.flatten(0, 1):
            own = [at for at in range(len(word)) if word[at] != PAD] or [0]
            e = torch.stack([self.byte.weight[word[at]] + self.place[at] for at in own])
            keys, values = self.to_k(e).chunk(self.heads, -1), self.to_v(e).chunk(self.heads, -1)
            found = []
            for query in self.queries:
                for q, k, v in zip(query.chunk(self.heads), keys, values):
                    found.append((k @ q / len(q) ** 0.5).softmax(0) @ v)
            vectors.append(self.widen(self.norm(self.to_out(torch.cat(found)))))
        return torch.stack(vectors).unflatten(0, symbols.shape[:2])

    @staticmethod
    def real(symbols: Int[Tensor, "b w m"]) -> Tensor:
        """Where a symbol counts: no padding, but of a word that is nothing else the first."""
        real = symbols != PAD
        first = torch.arange(symbols.shape[2], device=symbols.device) == 0
        return real | (first & ~real.any(2, keepdim=True))

    def check(self, symbols: Tensor) -> None:
        require(
            symbols.ndim == 3 and not symbols.is_floating_point() and 1 <= symbols.shape[2] <= self.longest,
            f"symbols is {symbols.dtype} {tuple(symbols.shape)}, but it is whole numbers [batch, words, "
            f"symbols] with 1 to {self.longest} symbols a word",
        )
        if symbols.numel():
            low, high = (int(each) for each in symbols.aminmax())
            require(
                low >= 0 and high < SYMBOLS,
                f"symbols go from {low} to {high}, but there are 0 to {SYMBOLS - 1}",
            )


class SubwordSlots(Network):
    """Word states [b, words, dim] → logits [b, words, slots, vocabulary] of the sub-words of each word."""

    def __init__(self, dim: int, vocabulary: int, *, slots: int = 4):
        super().__init__()
        for name, value in (("dim", dim), ("vocabulary", vocabulary), ("slots", slots)):
            require(value >= 1, f"{name} is {value}, but it is at least 1")
        self.dim = dim
        self.inner, self.slot = nn.Linear(dim, dim), nn.Parameter(0.02 * torch.randn(slots, dim))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, vocabulary)

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Example]:
        for words, slots in ((5, 3), (1, 1)):
            states = torch.randn(2, words, 6, generator=generator, dtype=torch.float64)
            yield Example({"dim": 6, "vocabulary": 11, "slots": slots}, (states,))

    def forward(self, states: Float[Tensor, "b w d"]) -> Float[Tensor, "b w k v"]:
        check_input("states", states, "batch, words, width", self.dim, self.inner.weight)
        return self.head(self.norm(F.gelu(self.inner(states)[:, :, None] + self.slot)))

    def reference(self, states: Float[Tensor, "b w d"]) -> Float[Tensor, "b w k v"]:
        check_input("states", states, "batch, words, width", self.dim, self.inner.weight)
        return torch.stack([self.head(self.norm(F.gelu(self.inner(states) + p))) for p in self.slot], dim=2)

    def loss(self, states: Float[Tensor, "b w d"], subwords: Int[Tensor, "b w k"]) -> Float[Tensor, ""]:
        """Mean cross-entropy over the slots that are not IGNORED, of which alone logits are made."""
        check_input("states", states, "batch, words, width", self.dim, self.inner.weight)
        wanted = (*states.shape[:2], len(self.slot))
        require(
            subwords.shape == wanted, f"subwords is {tuple(subwords.shape)}, but of these states {wanted}"
        )
        sample, word, slot = (subwords != IGNORED).nonzero(as_tuple=True)
        require(len(slot) > 0, "subwords is IGNORED throughout, but a loss is over at least one")
        hidden = self.norm(F.gelu(self.inner(states)[sample, word] + self.slot[slot]))
        return F.cross_entropy(self.head(hidden), subwords[sample, word, slot])
