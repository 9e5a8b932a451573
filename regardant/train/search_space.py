"""The space of a search over architectures: token networks whose layers differ in kind and size.

A choice for every layer (the kind of attention, its heads, the MLP's width) and one for all (the width).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regardant.core.errors import require, unknown
from regardant.core.operations import flops
from regardant.train.fit import seeded

Attention = Callable[..., nn.Module]
"""Makes a layer from `dim` and `heads`."""


@dataclass(frozen=True)
class Layer:
    """What is chosen in one layer."""

    attention: str
    heads: int
    hidden: int


@dataclass(frozen=True)
class Architecture:
    width: int
    layers: tuple[Layer, ...]

    @property
    def attentions(self) -> tuple[str, ...]:
        return tuple(layer.attention for layer in self.layers)


@dataclass(frozen=True)
class SearchSpace:
    """The options of every axis; `attention` maps names to causal layers of `dim` and `heads`."""

    attention: Mapping[str, Attention]
    vocabulary: int
    length: int
    """The longest input, and the length at which operations are counted."""
    depth: int = 4
    widths: tuple[int, ...] = (32, 48, 64)
    heads: tuple[int, ...] = (2, 4)
    hiddens: tuple[int, ...] = (64, 128)

    def __post_init__(self) -> None:
        for name in ("attention", "widths", "heads", "hiddens"):
            require(len(getattr(self, name)) >= 1, f"{name} is empty, but there is at least one option")
        for name in ("vocabulary", "length", "depth"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, but it is at least 1")
        odd = [width for width in self.widths if any(width % heads for heads in self.heads)]
        require(not odd, f"widths holds {odd}, which heads={self.heads} do not all divide")

    def only(self, *attention: str) -> SearchSpace:
        """The same space with some kinds of attention."""
        for name in attention:
            if name not in self.attention:
                raise unknown("attention", name, self.attention)
        return replace(self, attention={name: self.attention[name] for name in attention})

    def draw(self, dice: random.Random) -> Architecture:
        layers = tuple(self._layer(dice) for _ in range(self.depth))
        return Architecture(dice.choice(self.widths), layers)

    def _layer(self, dice: random.Random) -> Layer:
        return Layer(dice.choice(list(self.attention)), dice.choice(self.heads), dice.choice(self.hiddens))

    def everything(self) -> Iterator[Architecture]:
        """Every architecture of the space: for small ones."""
        layers = [Layer(*each) for each in product(self.attention, self.heads, self.hiddens)]
        for width in self.widths:
            for chosen in product(layers, repeat=self.depth):
                yield Architecture(width, chosen)

    def mutated(self, one: Architecture, dice: random.Random, *, chance: float = 0.3) -> Architecture:
        """Each choice is made anew with this chance."""
        other = self.draw(dice)

        def pick(own: Any, new: Any) -> Any:
            return new if dice.random() < chance else own

        layers = tuple(
            Layer(pick(a.attention, b.attention), pick(a.heads, b.heads), pick(a.hidden, b.hidden))
            for a, b in zip(one.layers, other.layers)
        )
        return Architecture(pick(one.width, other.width), layers)

    def crossed(self, one: Architecture, other: Architecture, dice: random.Random) -> Architecture:
        """Each layer from one of the two."""
        layers = tuple(dice.choice(pair) for pair in zip(one.layers, other.layers))
        return Architecture(dice.choice((one.width, other.width)), layers)

    def features(self, one: Architecture) -> Float[Tensor, " features"]:
        """φ: a switch for each option of each choice, then the shares of the attentions."""
        values = [float(one.width == width) for width in self.widths]
        for layer in one.layers:
            values += [float(layer.attention == name) for name in self.attention]
            values += [float(layer.heads == heads) for heads in self.heads]
            values += [float(layer.hidden == hidden) for hidden in self.hiddens]
        values += [one.attentions.count(name) / self.depth for name in self.attention]
        return torch.tensor(values, dtype=torch.float64)

    def network(self, one: Architecture) -> TokenNetwork:
        """The architecture with weights of its own."""
        return TokenNetwork(self, one.width, [{layer.attention: layer} for layer in one.layers])

    def operations(self, one: Architecture) -> int:
        """Floating-point operations of one sequence of the space's length, in matrix products."""
        with seeded(0):
            model = self.network(one).eval()
        tokens = torch.zeros(1, self.length, dtype=torch.long)
        with torch.no_grad():
            model(tokens)  # what a first call finds out about the machine is no work of the network
            return flops(partial(model, tokens))


class SearchBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); one attention and one norm for each kind."""

    def __init__(self, space: SearchSpace, width: int, layers: Mapping[str, Layer]):
        super().__init__()
        self.norms = nn.ModuleDict({name: nn.LayerNorm(width) for name in layers})
        self.mixers = nn.ModuleDict(
            {name: space.attention[name](dim=width, heads=layer.heads) for name, layer in layers.items()}
        )
        hidden = max(layer.hidden for layer in layers.values())
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        (name,) = self.mixers
        x = x + self.mixers[name](self.norms[name](x))
        return x + self.mlp(x)


class TokenNetwork(nn.Module):
    """Tokens [b, n] → logits over the next token; each layer has the attentions that it is given."""

    def __init__(self, space: SearchSpace, width: int, layers: Sequence[Mapping[str, Layer]]):
        super().__init__()
        self.embedding = nn.Embedding(space.vocabulary, width)
        self.positions = nn.Parameter(0.02 * torch.randn(space.length, width))
        self.blocks = nn.ModuleList(SearchBlock(space, width, each) for each in layers)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, space.vocabulary)

    def forward(self, tokens: Int[Tensor, "b n"], *, record: object = None) -> Float[Tensor, "b n v"]:
        x = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
