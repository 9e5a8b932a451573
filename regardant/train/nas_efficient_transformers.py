"""A search over architectures with the attention of every layer as a choice ("Neural Architecture Search on
Efficient Transformers and Beyond", 2022, arXiv:2207.13955).

Efficient attention is usually dropped into a network that was tuned for softmax. Here width, heads, the
MLP's width and the kind of attention of each layer are searched together, by RankNAS:

1. one weight-sharing network is trained, at every step as another random architecture: each takes the first
   rows and columns of the shared weights;
2. some architectures are measured with the weights they inherit;
3. a ranker learns from their features which of two is better:  P(a before b) = σ(⟨w, φ(a) − φ(b)⟩);
4. evolution by mutation and crossover, under a limit of operations at the length of use, finds the best;
5. which is then trained from scratch.

The published text gives no list of options and no official code could be read: the axes and the logistic
ranker are our reading. Kinds of attention share no projections, so that none spoils the other's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from regardant.core.errors import require
from regardant.core.known_answer import KnownAnswer
from regardant.core.mixer import MultiHead
from regardant.train.fit import seeded
from regardant.train.search_space import Architecture, Layer, SearchSpace, TokenNetwork


class SuperNet(nn.Module):
    """The largest network with every attention in every layer; any architecture runs on its weights.

    In training each call draws an architecture from `dice`; in evaluation `chosen` must be set.
    """

    def __init__(self, space: SearchSpace, *, seed: int = 0):
        super().__init__()
        self.space, self.dice = space, random.Random(seed)
        every = {name: Layer(name, max(space.heads), max(space.hiddens)) for name in space.attention}
        self.shared = TokenNetwork(space, max(space.widths), [every] * space.depth)
        self.chosen: Architecture | None = None

    def forward(self, tokens: Int[Tensor, "b n"], *, record: object = None) -> Float[Tensor, "b n v"]:
        require(
            self.training or self.chosen is not None,
            "chosen is None, but in evaluation a supernet runs as one architecture",
        )
        return self.run(self.space.draw(self.dice) if self.training else self.chosen, tokens)

    def run(self, one: Architecture, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b n v"]:
        """The architecture with the weights that it inherits."""
        with seeded(0):  # its own weights are drawn for nothing
            model = self.space.network(one).to(tokens.device, self.shared.positions.dtype)
        return functional_call(model, self.inherited(model), (tokens,))

    def inherited(self, model: nn.Module) -> dict[str, Tensor]:
        """The first rows and columns of the shared weights, as many as the model has."""
        shared = dict(self.shared.named_parameters())
        return {
            name: shared[name][tuple(slice(size) for size in weight.shape)]
            for name, weight in model.named_parameters()
        }


class PairwiseRanker:
    """Which of two architectures is better: a logistic model of the difference of their features."""

    def __init__(self, space: SearchSpace, *, ridge: float = 1e-3):
        require(ridge > 0, f"ridge is {ridge}, but it is positive")
        self.space, self.ridge = space, ridge
        self.weights: Float[Tensor, " features"] | None = None

    def fit(self, measured: Sequence[tuple[Architecture, float]]) -> None:
        """Learn from losses: of every pair, the one with the lower loss is better."""
        require(len(measured) >= 2, f"measured has {len(measured)} architectures, but a pair takes 2")
        phi = torch.stack([self.space.features(one) for one, _ in measured])
        loss = torch.tensor([value for _, value in measured], dtype=torch.float64)
        first, second = torch.triu_indices(len(loss), len(loss), 1)
        apart, better = phi[first] - phi[second], (loss[first] < loss[second]).double()
        weights = torch.zeros(phi.shape[1], dtype=torch.float64)
        for _ in range(50):  # Newton's steps: the loss is convex, and the ridge makes it strictly so
            chance = torch.sigmoid(apart @ weights)
            slope = apart.T @ (chance - better) / len(better) + self.ridge * weights
            bend = (apart.T * (chance * (1 - chance))) @ apart / len(better)
            step = torch.linalg.solve(bend + self.ridge * torch.eye(len(weights), dtype=torch.float64), slope)
            weights = weights - step
            if float(step.abs().max()) < 1e-10:
                break
        self.weights = weights

    def score(self, one: Architecture) -> float:
        """Higher is better."""
        require(self.weights is not None, "the ranker has learned nothing yet: call fit first")
        return float(self.space.features(one) @ self.weights)

    def accuracy(self, measured: Sequence[tuple[Architecture, float]]) -> float:
        """The share of pairs that it puts in the order of their losses."""
        scores = [(self.score(one), value) for one, value in measured]
        pairs = [(a, b) for at, a in enumerate(scores) for b in scores[at + 1 :] if a[1] != b[1]]
        require(bool(pairs), "measured holds no two architectures of different loss")
        return sum((a[0] > b[0]) == (a[1] < b[1]) for a, b in pairs) / len(pairs)


def evolve(
    space: SearchSpace, score: Callable[[Architecture], float], dice: random.Random, *,
    cost: Callable[[Architecture], float] | None = None, limit: float = float("inf"),
    population: int = 40, generations: int = 20,
) -> Architecture:  # fmt: skip
    """The architecture of the highest score that evolution finds among those that cost at most `limit`."""
    require(population >= 4, f"population is {population}, but parents and children take at least 4")
    require(
        limit == float("inf") or cost is not None, f"limit is {limit}, but no cost is given to hold it to"
    )
    prices: dict[Architecture, float] = {}

    def allowed(one: Architecture) -> bool:
        if limit == float("inf"):
            return True
        if one not in prices:
            prices[one] = cost(one)
        return prices[one] <= limit

    def draw(make: Callable[[], Architecture]) -> Architecture | None:
        found = (make() for _ in range(200))
        return next((one for one in found if allowed(one)), None)

    drawn = {one for _ in range(population) if (one := draw(partial(space.draw, dice))) is not None}
    require(bool(drawn), f"limit is {limit}, but of the architectures that were drawn none costs so little")
    best = sorted(drawn, key=lambda one: (-score(one), repr(one)))
    for _ in range(generations):
        parents = best[: max(2, population // 4)]
        children = set(parents)
        for _ in range(population):
            one, other = dice.choice(parents), dice.choice(parents)
            make = (
                partial(space.mutated, one, dice)
                if dice.random() < 0.5
                else partial(space.crossed, one, other, dice)
            )
            if (child := draw(make)) is not None:
                children.add(child)
        best = sorted(children, key=lambda one: (-score(one), repr(one)))
    return best[0]


class MixedAttentionSearch:
    """The whole search: train a supernet elsewhere, then `measure`, `rank`, `find`."""

    def __init__(self, supernet: SuperNet, *, seed: int = 0):
        self.supernet, self.space = supernet, supernet.space
        self.dice = random.Random(seed)
        self.ranker = PairwiseRanker(self.space)

    @torch.no_grad()
    def measure(self, loss: Callable[[Architecture], float], count: int) -> list[tuple[Architecture, float]]:
        """The losses of some architectures, each drawn once."""
        drawn: dict[Architecture, float] = {}
        for _ in range(20 * count):
            if len(drawn) == count:
                break
            one = self.space.draw(self.dice)
            if one not in drawn:
                drawn[one] = loss(one)
        return list(drawn.items())

    def find(self, *, limit: float = float("inf"), attention: Sequence[str] = ()) -> Architecture:
        """The best that the ranker knows, of these kinds of attention (all where none is named)."""
        space = self.space.only(*attention) if attention else self.space
        return evolve(space, self.ranker.score, self.dice, cost=self.space.operations, limit=limit)

    @classmethod
    def known_answers(cls, generator: torch.Generator) -> Iterator[KnownAnswer]:
        seed = int(torch.randint(2**31, (), generator=generator))
        kinds = {"softmax": partial(MultiHead, causal=True), "again": partial(MultiHead, causal=True)}
        space = SearchSpace(
            kinds, vocabulary=7, length=8, depth=2, widths=(8, 12), heads=(2, 4), hiddens=(6, 10)
        )
        dice = random.Random(seed)
        with seeded(seed):
            supernet = SuperNet(space).double()
        tokens = torch.randint(7, (2, 8), generator=generator)
        for number in range(3):
            one = space.draw(dice)
            with seeded(seed):
                alone = space.network(one).double()
            alone.load_state_dict(supernet.inherited(alone))
            yield KnownAnswer(f"inherited weights, drawn {number}", supernet.run(one, tokens), alone(tokens))
        taste = torch.randn(len(space.features(one)), generator=generator, dtype=torch.float64)

        def worth(one: Architecture) -> float:
            return float(space.features(one) @ taste)

        ranker, drawn = PairwiseRanker(space, ridge=1e-6), [space.draw(dice) for _ in range(60)]
        ranker.fit([(each, -worth(each)) for each in drawn])
        fresh = [(each, -worth(each)) for each in (space.draw(dice) for _ in range(40))]
        yield KnownAnswer("a linear taste is learned", ranker.accuracy(fresh), 1.0, 0.05)
        every = list(space.everything())
        yield KnownAnswer("architectures in the space", len(set(every)), 2 * (2 * 2 * 2) ** 2)
        best = max(map(worth, every))
        yield KnownAnswer("evolution finds the best", worth(evolve(space, worth, dice)), best)
        narrow = max(worth(each) for each in every if each.width == 8)
        found = evolve(space, worth, dice, cost=lambda each: each.width, limit=8)
        yield KnownAnswer("and the best under a limit", worth(found), narrow)
        one = Architecture(8, (Layer("softmax", 2, 6),) * 2)
        projections, pairs, mlp = 4 * 8 * 8 * 8, 2 * 8 * 8 * 8, 2 * 8 * 8 * 6
        known = 2 * (2 * (projections + pairs + mlp) + 8 * 8 * 7)
        yield KnownAnswer("operations of softmax attention", space.operations(one), known)
