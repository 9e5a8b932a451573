"""TransNormerLLM (Qin et al., "Scaling TransNormer to 175 Billion Parameters", 2023, arXiv:2307.14995): the
whole language model, and its successor TNL (arXiv:2405.17381).

    X = embedding of the tokens
    X ← X + GLA(norm(X))     X ← X + SGLU(norm(X))     layer after layer, each with decays of its own
    logits = W norm(X)

    norm(x) = x / sqrt(mean(x²) + ε)     SGLU(x) = ((x W_v) ⊙ (x W_u)) W_o, without an activation

GLA is gated linear attention, `regardant.sequence.transnormerllm`, with linearised relative positions in the
first layer and a decay a head and layer; TNL's is `regardant.sequence.tnl_lightning_attention`. There is no
softmax, no position table, and no cache: the state behind any number of tokens is one matrix a head.

As in the official code embeddings may be scaled (√dim there), and are not tied to the output unless asked.
What differs: weights start as torch's layers do, only embeddings at 0.02; one layer is no division by zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.mixer import Mixer
from regardant.core.network import Example, Network
from regardant.core.record import Record
from regardant.core.simple_rms_norm import SimpleRMSNorm
from regardant.core.state import State
from regardant.sequence.tnl_lightning_attention import TNL
from regardant.sequence.transnormerllm import TransNormer


class SGLU(nn.Module):
    """((x W_v) ⊙ (x W_u)) W_o: a gated linear unit whose gate is linear as well."""

    def __init__(self, dim: int, hidden: int, *, bias: bool = False):
        super().__init__()
        self.to_value = nn.Linear(dim, hidden, bias=bias)
        self.to_gate = nn.Linear(dim, hidden, bias=bias)
        self.to_out = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        return self.to_out(self.to_value(x) * self.to_gate(x))


class TransNormerBlock(nn.Module):
    """X + attention(norm(X)), then X + SGLU(norm(X))."""

    def __init__(self, attention: Mixer, dim: int, hidden: int, *, bias: bool = False):
        super().__init__()
        self.attention, self.channels = attention, SGLU(dim, hidden, bias=bias)
        self.norm = SimpleRMSNorm()

    def forward(
        self, x: Float[Tensor, "b n c"], padding: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n c"]:
        x = x + self.attention(self.norm(x), padding=padding)
        return x + self.channels(self.norm(x))

    def step(self, x_t: Float[Tensor, "b c"], state: State) -> tuple[Float[Tensor, "b c"], State]:
        mixed, state = self.attention.step(self.norm(x_t), state)
        x_t = x_t + mixed
        return x_t + self.channels(self.norm(x_t)), state

    def prefill(self, x: Float[Tensor, "b n c"]) -> tuple[Float[Tensor, "b n c"], State]:
        mixed, state = self.attention.prefill(self.norm(x))
        x = x + mixed
        return x + self.channels(self.norm(x)), state


@dataclass
class LayersState(State):
    """The states of all layers, first layer first."""

    layers: tuple[State, ...]


class TransNormerLLM(Network):
    """Tokens [b, n] → logits over the next token [b, n, vocabulary].

    `hidden` is the width of the channel mixers (2·dim unless given), `decay` names the rates at which
    heads forget, `padding` is True where a token is real.
    """

    def __init__(
        self, vocabulary: int, dim: int, *, heads: int, layers: int, hidden: int | None = None,
        decay: Literal["linear", "alibi", "none"] = "linear", embedding_scale: float = 1.0,
        tied: bool = False, bias: bool = False,
    ):  # fmt: skip
        super().__init__()
        hidden = 2 * dim if hidden is None else hidden
        for name, count in (("vocabulary", vocabulary), ("layers", layers), ("hidden", hidden)):
            require(count >= 1, f"{name} is {count}, but a language model needs at least 1")
        require(embedding_scale > 0, f"embedding_scale is {embedding_scale}, but it must be positive")
        self.vocabulary, self.embedding_scale = vocabulary, embedding_scale
        self.embedding = nn.Embedding(vocabulary, dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        place = partial(self.attention, dim, heads, layers=layers, decay=decay, bias=bias)
        self.blocks = nn.ModuleList(
            TransNormerBlock(place(layer=layer), dim, hidden, bias=bias) for layer in range(layers)
        )
        self.norm = SimpleRMSNorm()
        self.head = nn.Linear(dim, vocabulary, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    @staticmethod
    def attention(dim: int, heads: int, **place) -> Mixer:
        """The token mixer of one layer; `place` is its layer among how many, its decays, its bias."""
        return TransNormer(dim, heads, **place)

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Example]:
        plain = {"vocabulary": 11, "dim": 16, "heads": 2, "layers": 2}
        for config, batch, length in (
            (plain, 2, 1),
            (plain | {"decay": "alibi", "embedding_scale": 4.0, "layers": 1}, 3, 17),
            (plain | {"decay": "none", "hidden": 5, "tied": True, "bias": True, "layers": 3}, 2, 66),
        ):
            tokens = torch.randint(11, (batch, length), generator=generator)
            yield Example(config, (tokens,))
            real = torch.rand(batch, length, generator=generator) < 0.7
            yield Example(config, (tokens,), {"padding": real})

    def forward(
        self, tokens: Int[Tensor, "b n"], padding: Bool[Tensor, "b n"] | None = None, *,
        record: Record | None = None,
    ) -> Float[Tensor, "b n vocabulary"]:  # fmt: skip
        x = self._embed(tokens, "b n")
        for block in self.blocks:
            x = block(x, padding)
        return self.head(self.norm(x))

    def reference(self, tokens, padding=None):
        x = self.embedding_scale * self.embedding.weight[tokens]

        def norm(x):
            return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

        for block in self.blocks:
            x = x + block.attention.reference(norm(x), padding=padding)
            value, gate = (linear(norm(x)) for linear in (block.channels.to_value, block.channels.to_gate))
            x = x + block.channels.to_out(value * gate)
        return norm(x) @ self.head.weight.T

    def start(self, batch: int) -> LayersState:
        """The state before the first token."""
        return LayersState(0, tuple(block.attention.start(batch) for block in self.blocks))

    def prefill(self, tokens: Int[Tensor, "b n"]) -> tuple[Float[Tensor, "b n vocabulary"], LayersState]:
        """`forward` over a prompt, and the state behind it."""
        x, states = self._embed(tokens, "b n"), []
        for block in self.blocks:
            x, state = block.prefill(x)
            states.append(state)
        return self.head(self.norm(x)), LayersState(tokens.shape[1], tuple(states))

    def step(
        self, tokens: Int[Tensor, "b"], state: LayersState
    ) -> tuple[Float[Tensor, "b vocabulary"], LayersState]:
        """The logits behind one more token of each sample."""
        x, states = self._embed(tokens, "b"), []
        require(
            len(state.layers) == len(self.blocks),
            f"the state is of {len(state.layers)} layers, but this model has {len(self.blocks)}",
        )
        for block, layer in zip(self.blocks, state.layers):
            x, after = block.step(x, layer)
            states.append(after)
        return self.head(self.norm(x)), LayersState(state.length + 1, tuple(states))

    def _embed(self, tokens: Tensor, axes: str) -> Tensor:
        require(
            tokens.ndim == len(axes.split()) and not tokens.is_floating_point(),
            f"tokens is {tokens.dtype} {list(tokens.shape)}, but it is [{axes}] of whole numbers",
        )
        return self.embedding_scale * self.embedding(tokens)


class TNLModel(TransNormerLLM):
    """The same network around TNL's token mixer; its rates are ALiBi's slopes unless `decay` is given."""

    def __init__(
        self, vocabulary: int, dim: int, *, decay: Literal["linear", "alibi", "none"] = "alibi", **own
    ):
        super().__init__(vocabulary, dim, decay=decay, **own)

    @staticmethod
    def attention(dim, heads, **place):
        return TNL(dim, heads, **place)
