"""Poolers: from the hidden states of a language model to one vector a text (Tang and Yang, "Pooling And
Attention: What Are Effective Designs For LLM-Based Embedding Models?", 2024, arXiv:2409.02727).

Plain poolers take the last level's vector at the last real token, its mean over real tokens, or that with
weights that grow along the text. Trainable ones ask with r learned latents R, in one cross-attention block:

    X = R + W_o softmax(W_q LN(R) (W_k LN(Z))ᵀ / √d_h) W_v LN(Z)        without biases
    X = X + W_2 geglu(W_1 LN(X))                                         geglu([a, g]) = a · gelu(g)
    embedding = mean of the rows of X, of length 1

Z holds the tokens of the last level, or one summary of each level plus a learned vector a level: then even
what only an early level knows can be asked for. A level's summary is its last token's vector where the model
is causal, its mean where it is not. Levels are as long as they please (a deep model's middle ones are tens
of times as long as the first); the norm before keys and values is what lets them be read side by side.

The caller says what the levels are. The paper's are the outputs of the layers, the last one behind the last
norm, without the embedding: `hidden_states[1:]` of a Hugging Face model. The tokens must end in the one that
the model was taught to end with, which padding on either side leaves where it is.

What differs from the official code: it masks no padding among the tokens of the last level, and of a causal
model gives only the last of them, so that its attention is over one key; it takes position -1 for the end,
which is padding where texts are filled up on the right. Since W_2 is linear, we average before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regardant.core import plan
from regardant.core.checks import check_heads, check_input
from regardant.core.errors import require, unknown
from regardant.core.network import Example, Network
from regardant.core.pattern import Padding

Summary = Literal["end", "mean", "weighted"]
SUMMARIES = ("end", "mean", "weighted")
Levels = Float[Tensor, "b levels n d"] | Sequence[Float[Tensor, "b n d"]]
"""Hidden states of a model: in one tensor, or one a level, as hosts give them."""


def summarise(
    level: Float[Tensor, "b n d"], padding: Bool[Tensor, "b n"] | None, summary: Summary
) -> Float[Tensor, "b d"]:
    """The vector at the last real token, or a mean of the real ones, in which the t-th may weigh t."""
    real = level.new_ones(level.shape[:2], dtype=torch.bool) if padding is None else padding
    if summary == "end":
        last = (real * torch.arange(1, real.shape[1] + 1, device=real.device)).argmax(1)
        return level[torch.arange(len(level), device=level.device), last]
    exact = torch.promote_types(level.dtype, torch.float32)
    weight = real.to(exact) if summary == "mean" else real.cumsum(1) * real.to(exact)
    weight = weight / weight.sum(1, keepdim=True)
    return (weight.to(level.dtype)[:, None] @ level)[:, 0]


class Pooler(Network):
    """Levels [b, levels, n, dim] (or a sequence of them) and padding [b, n], True where real → [b, dim]."""

    def __init__(self, dim: int):
        super().__init__()
        require(dim >= 1, f"dim is {dim}, but hidden states are at least 1 wide")
        self.dim = dim

    def forward(self, states: Levels, padding: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b d"]:
        levels = self.check(states, padding)
        return F.normalize(self.pool(levels, padding), dim=-1)

    def reference(self, states: Levels, padding: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b d"]:
        levels, texts = self.check(states, padding), []
        for text in range(len(levels[0])):
            real = slice(None) if padding is None else padding[text]
            pooled = self.pool_plainly([level[text][real] for level in levels])
            texts.append(pooled / pooled.square().sum().sqrt())
        return torch.stack(texts)

    def pool(self, levels: Sequence[Tensor], padding: Tensor | None) -> Float[Tensor, "b d"]:
        raise TypeError(f"{type(self).__name__} must define pool")

    def pool_plainly(self, levels: Sequence[Float[Tensor, "n d"]]) -> Float[Tensor, " d"]:
        """The same for one text without padding."""
        raise TypeError(f"{type(self).__name__} must define pool_plainly")

    def check(self, states: Levels, padding: Tensor | None) -> Sequence[Tensor]:
        if isinstance(states, Tensor):
            require(
                states.ndim == 4, f"states is {tuple(states.shape)}, but it is [batch, levels, length, width]"
            )
            states = states.unbind(1)
        require(len(states) >= 1, "states holds no level, but there is at least one to pool")
        shape = states[0].shape
        require(
            all(level.shape == shape for level in states)
            and len(shape) == 3
            and shape[1] >= 1
            and shape[2] == self.dim,
            f"states holds levels of {tuple(shape)}, but they are [batch, length, {self.dim}], all alike",
        )
        if padding is not None:
            require(
                padding.dtype == torch.bool and padding.shape == shape[:2],
                f"padding is {padding.dtype} {list(padding.shape)}, but it is bool {list(shape[:2])}, "
                "True where real",
            )
            require(
                bool(padding.any(1).all()), "padding leaves a text without a token, so nothing can be pooled"
            )
        return states


class PlainPooler(Pooler):
    """One summary of the last level; nothing to learn."""

    def __init__(self, dim: int, *, summary: Summary = "end"):
        super().__init__(dim)
        self.summary = checked(summary)

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Example]:
        for number, summary in enumerate(SUMMARIES * 2):
            yield drawn({"dim": 6, "summary": summary}, generator, padded=number % 2 == 0)

    def pool(self, levels: Sequence[Tensor], padding: Tensor | None) -> Float[Tensor, "b d"]:
        return summarise(levels[-1], padding, self.summary)

    def pool_plainly(self, levels: Sequence[Float[Tensor, "n d"]]) -> Float[Tensor, " d"]:
        return summarised_plainly(levels[-1], self.summary)


class LatentPooler(Pooler):
    """Learned latents that ask; what they ask is the subclasses' to say."""

    def __init__(
        self, dim: int, heads: int = 8, *, latents: int = 8, head_dim: int | None = None, expansion: int = 4
    ):
        super().__init__(dim)
        check_heads(dim, heads, None, head_dim)
        require(latents >= 1, f"latents is {latents}, but at least one asks")
        require(expansion >= 1, f"expansion is {expansion}, but the feed-forward layer is at least dim wide")
        self.heads, inner = heads, heads * (dim // heads if head_dim is None else head_dim)
        self.latents = nn.Parameter(torch.randn(latents, dim))
        self.latent_norm, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, inner, bias=False) for _ in range(3))
        self.to_out = nn.Linear(inner, dim, bias=False)
        self.inner_norm, self.inner = nn.LayerNorm(dim), nn.Linear(dim, 2 * expansion * dim)
        self.outer = nn.Linear(expansion * dim, dim)

    def ask(self, z: Float[Tensor, "b m d"], padding: Bool[Tensor, "b m"] | None) -> Float[Tensor, "b d"]:
        """The mean over the latents of what each makes of z."""
        check_input("states", z, "batch, length, width", self.dim, self.to_k.weight)
        z = self.norm(z)
        k, v = (each(z).unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (self.to_k, self.to_v))
        q = self.to_q(self.latent_norm(self.latents)).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        found = plan.attend(q.expand(len(z), -1, -1, -1), k, v, None if padding is None else Padding(padding))
        x = self.latents + self.to_out(found.transpose(1, 2).flatten(2))
        hidden, gate = self.inner(self.inner_norm(x)).chunk(2, dim=-1)
        return x.mean(1) + self.outer((hidden * F.gelu(gate)).mean(1))

    def ask_plainly(self, z: Float[Tensor, "m d"]) -> Float[Tensor, " d"]:
        z, rows = self.norm(z), []
        keys, values = self.to_k(z).chunk(self.heads, -1), self.to_v(z).chunk(self.heads, -1)
        for latent in self.latents:
            queries = self.to_q(self.latent_norm(latent)).chunk(self.heads)
            heads = [(k @ q / len(q) ** 0.5).softmax(0) @ v for q, k, v in zip(queries, keys, values)]
            x = latent + self.to_out(torch.cat(heads))
            hidden, gate = self.inner(self.inner_norm(x)).chunk(2)
            rows.append(x + self.outer(hidden * F.gelu(gate)))
        return torch.stack(rows).mean(0)


class LastLayerPooler(LatentPooler):
    """Latents that attend to the tokens of the last level."""

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Example]:
        for config, padded in (
            ({"heads": 2, "latents": 3}, True),
            ({"heads": 3, "latents": 1, "head_dim": 5, "expansion": 2}, False),
        ):
            yield drawn({"dim": 6, **config}, generator, padded=padded)

    def pool(self, levels: Sequence[Tensor], padding: Tensor | None) -> Float[Tensor, "b d"]:
        return self.ask(levels[-1], padding)

    def pool_plainly(self, levels: Sequence[Float[Tensor, "n d"]]) -> Float[Tensor, " d"]:
        return self.ask_plainly(levels[-1])


class MultiLayerPooler(LatentPooler):
    """Latents that attend to one summary of each of `levels` levels."""

    def __init__(
        self, dim: int, levels: int, heads: int = 8, *, summary: Summary = "end", latents: int = 8,
        head_dim: int | None = None, expansion: int = 4,
    ):  # fmt: skip
        super().__init__(dim, heads, latents=latents, head_dim=head_dim, expansion=expansion)
        require(levels >= 1, f"levels is {levels}, but a model has at least 1")
        self.summary, self.level = checked(summary), nn.Embedding(levels, dim)

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Example]:
        for number, summary in enumerate(SUMMARIES):
            config = {"dim": 6, "levels": 4, "heads": 1 + number, "latents": 3 - number, "summary": summary}
            yield drawn(config, generator, padded=number != 1)

    def pool(self, levels: Sequence[Tensor], padding: Tensor | None) -> Float[Tensor, "b d"]:
        return self.read([summarise(level, padding, self.summary) for level in levels])

    def read(self, summaries: Sequence[Float[Tensor, "b d"]]) -> Float[Tensor, "b d"]:
        """What `pool` makes of the summaries of the levels, for who keeps no more of them than these."""
        self._count(len(summaries))
        return self.ask(torch.stack(list(summaries), dim=1) + self.level.weight, None)

    def pool_plainly(self, levels: Sequence[Float[Tensor, "n d"]]) -> Float[Tensor, " d"]:
        self._count(len(levels))
        each = [
            summarised_plainly(level, self.summary) + self.level.weight[at] for at, level in enumerate(levels)
        ]
        return self.ask_plainly(torch.stack(each))

    def _count(self, given: int) -> None:
        wanted = self.level.num_embeddings
        require(given == wanted, f"states holds {given} levels, but this pooler was made for {wanted}")


def checked(summary: str) -> str:
    if summary not in SUMMARIES:
        raise unknown("summary", summary, SUMMARIES)
    return summary


def summarised_plainly(level: Float[Tensor, "n d"], summary: str) -> Float[Tensor, " d"]:
    if summary == "end":
        return level[-1]
    if summary == "mean":
        return sum(level) / len(level)
    return sum((t + 1) * row for t, row in enumerate(level)) / sum(range(1, len(level) + 1))


def drawn(config: dict, generator: torch.Generator, *, padded: bool) -> Example:
    """Four levels of three texts, as if the later levels were longer, with padding on either side."""
    states = torch.randn(3, 4, 7, config["dim"], generator=generator, dtype=torch.float64)
    states = states * torch.tensor([1.0, 3, 10, 30], dtype=torch.float64)[:, None, None]
    if not padded:
        return Example(config, (states,))
    at = torch.arange(7)
    return Example(config, (states, torch.stack([at < 4, at >= 2, at == 6])))
