"""Plans of spans: for each layer and key head a rule α + β·length, found under a budget of what is read.

"MoA: Mixture of Sparse Attention for Automatic Large Language Model Compression" (Fu et al., 2024, arXiv
2406.14909). Of the rules that stay within the text at all `lengths`, each head takes one, each layer at most
two different ones, so that

    Σ_heads Σ_lengths w_N · (influence outside the head's span at N)  is least,
    the mean share of earlier keys that heads see at N  ≤  bound_N         for each N

The paper hands this to a solver of integer programs, one objective a length, with bounds on the others. Here
the weights w run over a few mixtures, and each problem is solved by dynamic programming over the layers,
exactly but for the costs, which are rounded to `GRID` steps of the budget; of all plans those stay that no
other beats at every length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor

from regardant.core.elastic_spans import span_blocks, span_pairs
from regardant.core.errors import require

GRID = 160
"""Steps into which the budget at a length is cut."""
MIXTURES = (1.0, 0.5, 0.0)
"""Weights of the first of two lengths."""

Rule = tuple[int, float]
"""α in tokens, β a share of the length."""


@dataclass(frozen=True)
class SpanPlan:
    """A rule for each key head of each layer; one rule may stand for all heads, one layer for all layers."""

    rules: tuple[tuple[Rule, ...], ...]
    block: int = 64

    def __post_init__(self) -> None:
        require(self.block >= 1, f"block is {self.block}, but a block holds at least 1 token")
        require(
            len(self.rules) > 0 and all(len(layer) > 0 for layer in self.rules),
            "rules has a layer without a rule, but each layer has at least one",
        )

    def blocks(self, layer: int, heads: int, length: int) -> list[int]:
        """The spans of a layer's key heads at a length, in blocks."""
        require(
            len(self.rules) == 1 or layer < len(self.rules),
            f"the plan has {len(self.rules)} layers, but layer {layer} is asked for",
        )
        rules = self.rules[0 if len(self.rules) == 1 else layer]
        require(
            len(rules) in (1, heads),
            f"the plan has {len(rules)} rules for layer {layer}, but that has {heads} key heads",
        )
        spans = [span_blocks(alpha, beta, block=self.block, length=length) for alpha, beta in rules]
        return spans * heads if len(spans) == 1 else spans

    def density(self, length: int) -> float:
        """The share of earlier keys that heads see on average, sinks included."""
        shares = [
            span_pairs(span_blocks(*rule, block=self.block, length=length), block=self.block, length=length)
            for layer in self.rules for rule in layer
        ]  # fmt: skip
        return sum(shares) / len(shares) / (length * (length + 1) / 2)

    def frozen(self, length: int) -> SpanPlan:
        """The spans of this length for all lengths."""
        rules = tuple(
            tuple((span_blocks(*rule, block=self.block, length=length) * self.block, 0.0) for rule in layer)
            for layer in self.rules
        )
        return SpanPlan(rules, self.block)


def candidates(*, block: int, lengths: Sequence[int], step: int, shares: int = 8) -> list[Rule]:
    """Rules with α a multiple of `step` and β one of k/`shares`, whose spans fit at all lengths."""
    most = max(lengths)
    return [
        (alpha, share / shares)
        for share in range(shares + 1)
        for alpha in range(-most // step * step, most + 1, step)
        if all(block <= alpha + share / shares * length <= length for length in lengths)
    ]


def plans(
    influence: Mapping[int, Float[Tensor, "layers heads t t"]], rules: Sequence[Rule],
    bounds: Mapping[int, float], *, block: int, distinct: int = 2,
) -> list[SpanPlan]:  # fmt: skip
    """The plans for influences (of blocks by blocks, for one or two lengths), none of which another beats."""
    lengths = sorted(influence)
    require(len(lengths) in (1, 2), f"influence is of {len(lengths)} lengths, but plans are made for 1 or 2")
    require(set(bounds) == set(lengths), f"bounds is for {sorted(bounds)}, but influence for {lengths}")
    require(distinct in (1, 2), f"distinct is {distinct}, but a layer has 1 or 2 different rules")
    problem = _Problem.of(influence, rules, bounds, block=block, distinct=distinct)
    found: dict[SpanPlan, tuple[float, ...]] = {}
    for first in MIXTURES if len(lengths) == 2 else (1.0,):
        chosen = problem.solve(torch.tensor([first, 1 - first][: len(lengths)]))
        plan = SpanPlan(tuple(tuple(rules[which] for which in layer) for layer in chosen), block)
        found[plan] = problem.losses_of(chosen)
    return [
        plan for plan, losses in found.items()
        if not any(
            other != losses and all(o <= own for o, own in zip(other, losses)) for other in found.values()
        )
    ]  # fmt: skip


@dataclass(frozen=True)
class _Problem:
    losses: Float[Tensor, "lengths layers heads rules"]
    """Influence that a rule leaves out."""
    costs: Float[Tensor, "lengths rules"]
    """Steps of the grid that a head of this rule takes."""
    distinct: int

    @classmethod
    def of(cls, influence, rules, bounds, *, block, distinct) -> _Problem:
        losses, costs = [], []
        for length in sorted(influence):
            tiles = influence[length].double()
            layers, heads = tiles.shape[:2]
            spans = [span_blocks(*rule, block=block, length=length) for rule in rules]
            losses.append(torch.stack([left_out(tiles, span) for span in spans], dim=-1))
            pairs = torch.tensor([span_pairs(span, block=block, length=length) for span in spans]).double()
            budget = bounds[length] * (length * (length + 1) / 2) * layers * heads
            costs.append(pairs / budget * GRID)
            require(
                float(costs[-1].min()) * layers * heads <= GRID,
                f"bounds allows {bounds[length]:.3g} of the earlier keys at {length} tokens, but the "
                f"smallest rules see {float(pairs.min()) / (length * (length + 1) / 2):.3g}",
            )
        return cls(torch.stack(losses), torch.stack(costs), distinct)

    def losses_of(self, chosen: list[list[int]]) -> tuple[float, ...]:
        at = torch.tensor(chosen)
        return tuple(float(each.gather(-1, at[..., None]).sum()) for each in self.losses)

    def solve(self, weights: Float[Tensor, "lengths"]) -> list[list[int]]:
        """For each layer and head the number of its rule."""
        whole = torch.einsum("n,nlhr->lhr", weights.double(), self.losses)
        shape = (GRID + 1,) * len(self.costs)
        best, steps = torch.zeros(shape, dtype=torch.float64), []
        for layer in whole:
            fit = [option for option in self._options(layer) if max(option[1]) <= GRID]
            options = _undominated(fit)
            after = torch.full(shape, inf, dtype=torch.float64)
            taken = torch.full(shape, -1)
            for number, (loss, cost, _) in enumerate(options):
                # What is left of the budget before this layer, where it is `cost` less behind it.
                rest = best[tuple(slice(0, GRID + 1 - c) for c in cost)] + loss
                into = tuple(slice(c, None) for c in cost)
                better = rest < after[into]
                after[into] = torch.where(better, rest, after[into])
                taken[into] = torch.where(better, number, taken[into])
            best = after
            steps.append((options, taken))
        place = [GRID] * len(self.costs)
        while True:
            chosen = _back(steps, place)
            spent = [sum(float(each[layer].sum()) for layer in chosen) for each in self.costs]
            if all(cost <= GRID + 1e-6 for cost in spent):
                return chosen
            # The rounding went the wrong way: a step less for what is over.
            place = [p - (cost > GRID + 1e-6) for p, cost in zip(place, spent)]

    def _options(self, layer: Float[Tensor, "heads rules"]) -> Iterator[tuple[float, tuple[int, ...], tuple]]:
        """What a layer may do: heads in the order of what the second rule brings them take it."""
        heads, count = layer.shape
        for rule in range(count):
            yield self._option(layer, [rule] * heads)
        for one, other in combinations(range(count), 2) if self.distinct == 2 else ():
            order = (layer[:, one] - layer[:, other]).argsort(descending=True).tolist()
            for many in range(1, heads):
                chosen = [one] * heads
                for head in order[:many]:
                    chosen[head] = other
                yield self._option(layer, chosen)

    def _option(self, layer, chosen) -> tuple[float, tuple[int, ...], tuple]:
        loss = float(layer[range(len(chosen)), chosen].sum())
        cost = tuple(round(float(each[chosen].sum())) for each in self.costs)
        return loss, cost, tuple(chosen)


def _back(steps: list[tuple[list[tuple], Tensor]], place: list[int]) -> list[list[int]]:
    """The choices that led to a place of the grid."""
    chosen = []
    for options, taken in reversed(steps):
        number = int(taken[tuple(place)]) if min(place) >= 0 else -1
        require(number >= 0, "bounds leaves no plan within it; a little more would")
        _, cost, rules = options[number]
        chosen.append(list(rules))
        place = [at - c for at, c in zip(place, cost)]
    return chosen[::-1]


def left_out(tiles: Float[Tensor, "layers heads t t"], span: int) -> Float[Tensor, "layers heads"]:
    """The influence outside a span of so many blocks and the first block."""
    at = torch.arange(tiles.shape[-1])
    outside = (at[:, None] - at >= span) & (at > 0)
    return (tiles * outside).sum(dim=(-1, -2))


def _undominated(options: list[tuple]) -> list[tuple]:
    """Without those that another one beats: no dearer at any length, and no more lost."""
    options = sorted(options, key=lambda each: (each[0], sum(each[1])))
    costs = torch.tensor([cost for _, cost, _ in options])
    beaten = (costs[:, None] >= costs).all(dim=-1).tril(-1).any(dim=1)
    return [option for option, gone in zip(options, beaten.tolist()) if not gone]
